"""Batches as measuring wants them: checked, on the device, known again in the second pass."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.moments import BatchLabels, column_tiles, row_tiles, upcast
from pfc.taps import first_tensor

MOST = 2.0**500  # a mark beyond it is cut off, for its square is no number; ours
ROUNDING = 1e-13  # of an inner product, relative to the vector; ours
SAME = 1e-9  # relative: sums of the same float64 numbers in another order differ by less; ours


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: what the network is called with, and the labels.

    Args:
        number: Counted from 0.
        args: Positional arguments of the forward pass.
        kwargs: Named arguments of the forward pass.
        labels: Prepared for the moments.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: BatchLabels

    def __len__(self) -> int:
        return len(self.labels.y)


class Batches:
    """A pass over the user's data, again and again.

    Args:
        data: A re-iterable of `(x, y)` pairs, or of dicts with `labels`.
        limit: Stop after so many samples.
        device: Where the network is.

    Raises:
        ValueError: If the data can't be read twice, or `limit` is below 1.
    """

    def __init__(self, data: Any, limit: int | None, device: torch.device) -> None:
        if not isinstance(data, Iterable) and not hasattr(type(data), "__getitem__"):
            raise ValueError(
                f"data must be batches that can be iterated over, got {type(data).__name__}"
                + ("; call its batches()" if hasattr(data, "batches") else "")
            )
        if isinstance(data, Iterator) and iter(data) is data:  # asking a loader would draw its seed
            raise ValueError(
                f"data is a one-shot iterator ({type(data).__name__}), and measuring reads it more than "
                "once; give the loader or list that it came from"
            )
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.data, self.limit, self.device = data, limit, device

    @property
    def total(self) -> int | None:
        """Batches in a pass, where the data know it and no limit cuts them."""
        try:
            return None if self.limit is not None else len(self.data)
        except TypeError:
            return None

    @property
    def classes(self) -> int | None:
        """The data's own number of classes: `classes` of the data or of its `dataset`."""
        for owner in (self.data, getattr(self.data, "dataset", None)):
            own = getattr(owner, "classes", None)
            if isinstance(own, int) and not isinstance(own, bool):
                return own
            if isinstance(own, list | tuple) and own:
                return len(own)
        return None

    @property
    def name(self) -> str | None:
        """The data's own name, if they have one."""
        name = getattr(self.data, "name", None)
        return name if isinstance(name, str) else None

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        for number, item in enumerate(self.data):
            args, kwargs, y = _parts(item, number)
            left = None if self.limit is None else self.limit - seen
            if left is not None and left < len(y):
                args, kwargs, y = cut((args, kwargs, y), left, len(y))
            args, kwargs, y = _move((args, kwargs, y), self.device)
            exact = y.cpu() if self.device.type == "mps" else y  # which has no float64
            yield Batch(number, args, kwargs, BatchLabels.of(exact))
            seen += len(y)
            if self.limit is not None and seen >= self.limit:
                return
        if not seen:
            raise ValueError("the data gave no batch at all; is the loader empty?")


def _parts(item: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    if isinstance(item, Mapping):
        name = next((name for name in ("labels", "label") if name in item), None)
        if name is None:
            raise ValueError(f"batch {number} is a dict without 'labels'; it has {list(item)}")
        inputs = {key: value for key, value in item.items() if key not in {"labels", "label"}}
        return (), inputs, _labels(item[name], number)
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"batch {number} must be a pair (x, y) or a dict with 'labels', got {type(item).__name__}"
            + (f" of length {len(item)}" if isinstance(item, tuple | list) else "")
        )
    x, y = item
    if isinstance(x, Mapping):
        return (), dict(x), _labels(y, number)
    return tuple(x) if isinstance(x, tuple | list) else (x,), {}, _labels(y, number)


def _labels(y: Any, number: int) -> Int64[Tensor, " B"]:
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        remedy = "; of one-hot labels take y.argmax(1)" if y.ndim == 2 else ""
        raise ValueError(
            f"labels of batch {number} must be integer class indices of shape (B,), "
            f"got {y.dtype} of shape {(*y.shape,)}{remedy}"
        )
    if not len(y):
        raise ValueError(f"batch {number} has no sample")
    if y.min() < 0:
        raise ValueError(f"batch {number} has the label {int(y.min())}; classes are counted from 0")
    return y.long()


def cut(item: Any, left: int, size: int) -> Any:
    """The first `left` samples of everything that has `size` of them."""
    if isinstance(item, Tensor):
        return item[:left] if item.ndim and len(item) == size else item
    if isinstance(item, Mapping):
        return {key: cut(value, left, size) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return tuple(cut(value, left, size) for value in item)
    return item


def _move(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=device.type == "cuda")
    if isinstance(item, Mapping):
        return {key: _move(value, device) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return tuple(_move(value, device) for value in item)
    return item


class Fingerprint:
    """Knows a set of labelled inputs again, in whatever order they come.

    Each input is one inner product with a fixed vector of incommensurable cosines, less that of the
    first input, so that a common offset hides nothing; of each class the number, the sum and the sum of
    squares are kept.
    """

    def __init__(self) -> None:
        self.of_class: dict[int, Float64[Tensor, 3]] = {}
        self._waves: dict[tuple[int, torch.device], Tensor] = {}
        self._exponent: int | None = None  # inputs are taken over this power of two
        self._origin = 0.0  # mark of the first input
        self._length = 0.0  # its norm

    def again(self) -> "Fingerprint":
        """An empty one for the second pass."""
        empty = Fingerprint()
        empty._exponent, empty._origin, empty._length = self._exponent, self._origin, self._length
        return empty

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        x = first_tensor((batch.args, batch.kwargs))
        labels = batch.labels
        mark = torch.zeros(len(batch), dtype=torch.float64, device=labels.y.device)
        if x is not None and x.device.type != "mps" and len(x) == len(batch):
            x = x.reshape(len(x), -1)
            if self._exponent is None:
                self._begin(x)
            mark = (self._mark(x) - self._origin).to(mark.device)
        rows = torch.stack([torch.ones_like(mark), mark, mark.square()], dim=1)
        for k, total in zip(labels.present.tolist(), labels.sums(rows).cpu(), strict=True):
            self.of_class[k] = self.of_class.get(k, torch.zeros(3, dtype=torch.float64)) + total

    def _begin(self, x: Tensor) -> None:
        far = x.dtype == torch.float64 and x.numel() > 0
        size = float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) if far else 0.0
        exponent = math.frexp(size)[1]
        self._exponent = max(-1000, min(exponent, 1000)) if abs(exponent) > 400 else 0
        self._length = float((x[0].double() * 2.0**-self._exponent).nan_to_num(0.0, 0.0, 0.0).norm())
        self._origin = float(self._mark(x[:1]))

    def _mark(self, x: Tensor) -> Float64[Tensor, " B"]:
        key = (x.shape[1], x.device)
        if key not in self._waves:
            steps = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
            wave = torch.cos(steps * 2.399963229728653)  # the golden angle
            self._waves = {key: wave * 2.0 ** -(self._exponent or 0)}
        wave, mark = self._waves[key], torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for columns in column_tiles(x):
            for rows in row_tiles(x, columns):
                mark[rows] += upcast(x[rows, columns], "fingerprint") @ wave[columns]
        return mark.nan_to_num(0.0, MOST, -MOST).clamp(-MOST, MOST)

    def compare(self, again: "Fingerprint") -> None:
        """Check that the second pass read the samples of the first.

        Raises:
            ValueError: If it did not.
        """
        remedy = "turn off random augmentation (and shuffling, under a limit), or take passes=1"
        for k in sorted({*self.of_class, *again.of_class}):
            zero = torch.zeros(3, dtype=torch.float64)
            a, b = self.of_class.get(k, zero), again.of_class.get(k, zero)
            if a[0] != b[0]:
                raise ValueError(
                    f"the second pass saw other samples than the first: {int(b[0])} of class {k} after "
                    f"{int(a[0])}; {remedy}"
                )
            n, size, slip = a[0], a[2].clamp(min=b[2].item()), ROUNDING * self._length
            sums, squares = (a - b).abs()[1:]
            if (
                sums > SAME * (n * size).sqrt() + n * slip
                or squares > SAME * size + n * slip**2 + 2 * slip * (n * size).sqrt()
            ):
                raise ValueError(
                    f"the second pass saw other samples than the first: the inputs of class {k} differ; "
                    f"{remedy}"
                )
