"""Batches as measuring wants them: checked, on the device, known again in the second pass."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.moments import BatchLabels, column_tiles, row_tiles, upcast
from pfc.taps import first_tensor

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
            args, kwargs = _move((args, kwargs), self.device)
            yield Batch(number, args, kwargs, BatchLabels.of(y, exact(self.device)))
            seen += len(y)
            if self.limit is not None and seen >= self.limit:
                return
        if not seen:
            raise ValueError("the data gave no batch at all; is the loader empty?")


def exact(device: torch.device) -> torch.device:
    """Where statistics of features on a device are kept: there, if it has float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _parts(item: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    if isinstance(item, Mapping):
        name = next((name for name in ("labels", "label") if name in item), None)
        if name is None:
            raise ValueError(f"batch {number} is a dict without 'labels'; it has {list(item)}")
        inputs = {key: value for key, value in item.items() if key not in {"labels", "label"}}
        return (), inputs, checked_labels(item[name], number)
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"batch {number} must be a pair (x, y) or a dict with 'labels', got {type(item).__name__}"
            + (f" of length {len(item)}" if isinstance(item, tuple | list) else "")
        )
    x, y = item
    if isinstance(x, Mapping):
        return (), dict(x), checked_labels(y, number)
    return tuple(x) if isinstance(x, tuple | list) else (x,), {}, checked_labels(y, number)


def checked_labels(y: Any, number: int) -> Int64[Tensor, " B"]:
    """The labels of a batch, on the CPU.

    Args:
        y: Class of each sample.
        number: The batch's number, for the message.

    Returns:
        The same as a tensor.

    Raises:
        ValueError: If they are no class indices.
    """
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        remedy = "; of one-hot labels take y.argmax(1)" if y.ndim == 2 else ""
        raise ValueError(
            f"labels of batch {number} must be integer class indices of shape (B,), "
            f"got {y.dtype} of shape {(*y.shape,)}{remedy}"
        )
    if not len(y):
        raise ValueError(f"batch {number} has no sample")
    y = y.cpu().long()  # a loader's own labels are there, and tell all without asking a device
    if y.min() < 0:
        raise ValueError(f"batch {number} has the label {int(y.min())}; classes are counted from 0")
    return y


def cut(item: Any, left: int, size: int) -> Any:
    """A copy of the first `left` samples of everything that has `size` of them."""
    if isinstance(item, Tensor):
        return item[:left].clone() if item.ndim and len(item) == size else item
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

    Each input is one inner product with a fixed vector of incommensurable cosines; of each class the
    number, the sum and the sum of squares are kept.
    """

    def __init__(self) -> None:
        self.sums: Float64[Tensor, "K 3"] | None = None
        self._waves: dict[tuple[int, torch.device], Tensor] = {}

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        x = first_tensor((batch.args, batch.kwargs))
        labels = batch.labels
        mark = torch.zeros(len(batch), dtype=torch.float64, device=labels.y.device)
        if x is not None and x.device.type != "mps" and len(x) == len(batch):
            mark = self._mark(x.reshape(len(x), -1)).to(mark.device)
        rows = torch.stack([torch.ones_like(mark), mark, mark.square()], dim=1)
        have = mark.new_zeros(0, 3) if self.sums is None else self.sums
        self.sums = _room(have, labels.numbers[-1] + 1).index_add_(0, labels.y, rows)

    @property
    def of_class(self) -> dict[int, Float64[Tensor, "3"]]:
        """What is kept of each class that has inputs."""
        sums = () if self.sums is None else self.sums.cpu().unbind()
        return {k: total for k, total in enumerate(sums) if total[0] > 0}

    def _mark(self, x: Tensor) -> Float64[Tensor, " B"]:
        key = (x.shape[1], x.device)
        if key not in self._waves:
            steps = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
            self._waves = {key: torch.cos(steps * 2.399963229728653)}  # the golden angle
        wave, mark = self._waves[key], torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for columns in column_tiles(x):
            for rows in row_tiles(x, columns):
                mark[rows] += upcast(x[rows, columns], "fingerprint") @ wave[columns]
        return mark

    def compare(self, again: "Fingerprint") -> None:
        """Check that the second pass read the samples of the first.

        Raises:
            ValueError: If it did not.
        """
        remedy = "turn off random augmentation (and shuffling, under a limit), or take passes=1"
        ours, theirs = self.of_class, again.of_class
        for k in sorted({*ours, *theirs}):
            zero = torch.zeros(3, dtype=torch.float64)
            a, b = ours.get(k, zero), theirs.get(k, zero)
            if a[0] != b[0]:
                raise ValueError(
                    f"the second pass saw other samples than the first: {int(b[0])} of class {k} after "
                    f"{int(a[0])}; {remedy}"
                )
            size = a[2].clamp(min=b[2].item())
            if (a[1] - b[1]).abs() > SAME * (a[0] * size).sqrt() or (a[2] - b[2]).abs() > SAME * size:
                raise ValueError(
                    f"the second pass saw other samples than the first: the inputs of class {k} differ; "
                    f"{remedy}"
                )


def _room(sums: Float64[Tensor, "K 3"], classes: int) -> Float64[Tensor, "M 3"]:
    """The same rows, and zero ones for further classes."""
    more = classes - len(sums)
    return torch.cat([sums, sums.new_zeros(more, 3)]) if more > 0 else sums
