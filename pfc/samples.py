"""One door for samples and labels: arrays of any library become tensors, checked once.

Nothing is copied that need not be: numpy arrays, also read-only and memory-mapped ones, and whatever
speaks DLPack or `__array__` share their memory with the tensors.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.foreign import of_worker

BLOCK = 2**22  # numbers checked at once; ours
Gaps = Literal["refuse", "drop", "keep"]


@runtime_checkable
class HasArray(Protocol):
    """What numpy can read, such as a DataFrame."""

    def __array__(self) -> np.ndarray: ...


@runtime_checkable
class HasDLPack(Protocol):
    """What torch can read in place, such as an array of jax."""

    def __dlpack__(self) -> Any: ...


ArrayLike = Tensor | np.ndarray | Sequence[Any] | HasArray | HasDLPack


def labelled(
    X: Any,
    y: Any,
    *,
    name: str = "X",
    batch: int | None = None,
    flatten: bool = False,
    finite: bool = True,
    gaps: Gaps = "refuse",
) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]:
    """Samples and their labels as tensors.

    Args:
        X: Samples, one a row, as for `samples`.
        y: The class of each, as for `class_indices`.
        name: What messages call `X`.
        batch: Number of the batch that messages name; `None` if there is only one.
        flatten: Make rows of samples of any shape.
        finite: Refuse NaN and infinity.
        gaps: What to do with classes below the largest label that have no sample: `"refuse"` them, and
            fewer than two classes with them; `"drop"` them, numbering the others anew; or `"keep"` them.

    Returns:
        The samples on their device and the labels beside them.

    Raises:
        ValueError: If one of them is unfit, or their lengths differ.

    Examples:
        >>> labelled([[1, 2], [3, 4]], [0, 5], gaps="drop")[1]
        tensor([0, 1])
    """
    name = name if batch is None else f"{name} of batch {batch}"
    rows = samples(X, name=name, flatten=flatten, finite=finite)
    labels = class_indices(y, batch=batch)
    if len(rows) != len(labels):
        got = f"{len(rows)} rows and {len(labels)} labels"
        raise ValueError(f"need one label a row of {name}, got {got}")
    if gaps == "refuse":
        refuse_gaps(labels.unique(), int(labels.max()) + 1)
    elif gaps == "drop":
        labels = labels.unique(return_inverse=True)[1]
    return rows, labels.to(rows.device)


def samples(
    X: Any, *, name: str = "X", flatten: bool = False, finite: bool = True
) -> Float[Tensor, "N D"]:
    """Samples as the rows of a tensor of a float type.

    Args:
        X: An array or tensor of real numbers, or lists of them, of shape N x D. Floats of 16
            bits and more keep their type; integers become the float32 or float64 that holds them.
        name: What messages call it.
        flatten: Take N x ... of any shape, and make each sample a row.
        finite: Refuse NaN and infinity.

    Returns:
        A tensor without gradient, on the device of `X`; on the CPU if that has no float64.

    Raises:
        ValueError: If `X` is no such array, is empty, or holds NaN or infinity.
    """
    rows = _tensor(X, name)
    if rows.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {rows.dtype}")
    if flatten and rows.ndim > 2:
        rows = rows.flatten(1)
    if rows.ndim != 2 or not rows.numel():
        shape = "N, ..." if flatten else "N, D"
        raise ValueError(
            f"{name} must be of shape ({shape}), one sample a row and at least one number, "
            f"got {rows.dtype} of shape {(*rows.shape,)}{_rows_remedy(rows)}"
        )
    if not rows.is_floating_point() or rows.element_size() == 1:
        rows = rows.to(torch.float32 if rows.element_size() <= 2 else torch.float64)
    height = max(1, BLOCK // rows.shape[1])
    if finite and not all(map(_all_finite, rows.split(height))):
        raise ValueError(f"{name} must be finite, got NaN or infinity; drop or repair those samples")
    return rows


def _all_finite(x: Tensor) -> bool:
    """Whether all are numbers; where their sum is one, all are, and it is found many times faster."""
    total = x.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(total.isfinite()) or bool(x.isfinite().all())


def class_indices(y: Any, *, batch: int | None = None) -> Int64[Tensor, " N"]:
    """Labels as class indices on the CPU, where looking at them waits for no device.

    Args:
        y: An array, tensor or list of integers of any width, from 0 on; of shape (N,) or (N, 1).
        batch: Number of the batch that messages name; `None` if there is only one.

    Returns:
        The class of each sample.

    Raises:
        ValueError: If there is no label, or they are no class indices.
    """
    whose, of, axis = ("y", "", "N") if batch is None else (f"batch {batch}", f" of batch {batch}", "B")
    _refuse_text(y, f"labels{of}")
    found = _tensor(y, f"labels{of}").cpu()
    found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if found.shape == (0,):
        raise ValueError(f"{whose} has no sample, need at least one sample")
    if found.ndim != 1 or not _whole(found):
        raise ValueError(
            f"labels{of} must be integer class indices of shape ({axis},), "
            f"got {found.dtype} of shape {(*found.shape,)}{_labels_remedy(found)}"
        )
    found = found.long()
    if (least := int(found.min())) < 0:
        raise ValueError(f"labels{of} must not be negative, got {least}; count classes from 0")
    return found


def integers(y: Any, name: str) -> Int64[Tensor, "..."]:
    """Whole numbers of any shape as a tensor on the CPU.

    Args:
        y: An array, tensor or list of integers of any width.
        name: What messages call it.

    Returns:
        The numbers.

    Raises:
        ValueError: If they are no whole numbers by their type.
    """
    found = _tensor(y, name).cpu()
    if not _whole(found):
        raise ValueError(f"{name} must be integers, got {found.dtype} of shape {(*found.shape,)}")
    return found.long()


def _whole(found: Tensor) -> bool:
    """Whether a tensor's type is one of integers."""
    return not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)


def refuse_gaps(present: Int64[Tensor, " P"], classes: int) -> None:
    """Refuse fewer than two classes with samples, and a class without.

    Args:
        present: Classes with samples, ascending.
        classes: How many classes there are.

    Raises:
        ValueError: If there are fewer than two, or one has no sample.
    """
    if len(present) < 2:
        raise ValueError(f"need samples of at least 2 classes, got {len(present)}")
    if len(present) < classes:
        empty = next((k for k, c in enumerate(present.tolist()) if c != k), len(present))
        raise ValueError(f"class {empty} has no sample; number the classes 0..K-1 without gaps")


def in_float64(X: Any, y: Any) -> tuple[Float64[Tensor, "N D"], Int64[Tensor, " N"]]:
    """Samples and labels of a model that is solved in float64 on the CPU; `labelled` checks them."""
    rows, labels = labelled(X, y)
    return rows.cpu().double(), labels.cpu()


def _rows_remedy(X: Tensor) -> str:
    """What would make rows of these samples."""
    if X.ndim == 1:
        return "; of one feature take X[:, None]"
    return "; flatten each sample, X.reshape(len(X), -1)" if X.ndim > 2 else ""


def _labels_remedy(y: Tensor) -> str:
    """What would make class indices of these labels."""
    if y.ndim > 2:
        return "; pixels or patches have no class of their own here: give one label a sample"
    if y.ndim < 2:
        return "; of whole numbers and booleans take y.astype(int) or y.long()" if y.ndim else ""
    if _whole(y) and bool(((y != 0) & (y != 1)).any()):
        return "; of tokens, one label each, take pool='tokens'"
    if bool((y.double().sum(1) == 1).all()):
        return "; of one-hot labels take y.argmax(1)"
    if bool(((y == 0) | (y == 1)).all()):
        return "; a sample of several classes, or of none, has no class mean: give each sample one class"
    return "; of soft labels or scores take y.argmax(1)"


def _refuse_text(y: Any, name: str) -> None:
    """Refuse labels that are words, with what would number them."""
    first = y[0] if isinstance(y, list | tuple) and y else None
    if isinstance(first, str) or (isinstance(y, np.ndarray) and y.dtype.kind in "US"):
        raise ValueError(
            f"{name} must be an array of numbers, got {type(y).__name__} of text such as {str(y[0])!r}; "
            "number the classes, once for all batches: {c: k for k, c in enumerate(sorted(classes))}"
        )


def _tensor(value: Any, name: str) -> Tensor:
    """Any array as a tensor; what its own library raises is told once, under its name."""
    try:
        found = _converted(value).detach()
        if found.layout != torch.strided:
            raise TypeError(f"its layout is {found.layout}; take its to_dense()")
    except Exception as error:
        if of_worker(error):  # it only came while the array was read
            raise
        kind = type(value).__name__
        raise ValueError(f"{name} must be an array of numbers, got {kind}: {error}") from error
    return found.cpu() if found.device.type == "mps" else found  # which has no float64


def _converted(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        return torch.stack([*value])
    if isinstance(value, HasDLPack) and not isinstance(value, np.ndarray):
        try:
            return torch.utils.dlpack.from_dlpack(value)
        except Exception:  # such as of a type that only the other protocol knows
            if not isinstance(value, HasArray):
                raise
    if np.ma.is_masked(value):
        raise TypeError("some of its entries are masked; fill or drop them")
    return _of_numpy(np.asarray(value))


def _of_numpy(array: np.ndarray) -> Tensor:
    """A tensor of the array's memory; a copy where torch has no such type or order."""
    if array.dtype.kind == "O" and not array.ndim:
        raise TypeError("it is no array")
    wide = array.dtype.kind == "O" or array.dtype == np.longdouble
    array = array.astype(np.float64 if wide else array.dtype.newbyteorder("="), copy=False)
    if min(array.strides, default=0) < 0:
        array = array.copy()
    with warnings.catch_warnings():  # torch warns of read-only memory; nothing here writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
