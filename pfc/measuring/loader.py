"""Batches as measuring wants them: checked, on the device, labels beside the statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from pfc.labels import BatchLabels
from pfc.samples import class_indices

StatisticsPlace = Literal["device", "host"]
EMPTY = "the data gave no batch at all; is the loader empty?"
ROOM = 0.7  # part of a device's free memory that statistics may take; ours


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: what the network is called with, and the labels.

    Args:
        number: Counted from 0.
        args: Positional arguments of the forward pass.
        kwargs: Named arguments of the forward pass.
        labels: Class of each sample, prepared on the CPU.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: BatchLabels

    def __len__(self) -> int:
        return len(self.labels.y)


class MeasuredBatches:
    """A pass over the user's data, again and again.

    Args:
        data: A re-iterable of `(x, y)` pairs, or of dicts with `labels`.
        limit: Use at most this many samples.
        device: Where the network is.
        may_be_empty: Whether there may be no batch, as in one of many processes.

    Raises:
        ValueError: If the data can't be read twice, or `limit` is below 1.
    """

    def __init__(
        self, data: Any, limit: int | None, device: torch.device, *, may_be_empty: bool = False
    ) -> None:
        _check_iterable(data)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.data, self.limit, self.device = data, limit, device
        self.may_be_empty = may_be_empty
        self.largest = 0  # samples of the largest batch so far

    @property
    def total(self) -> int | None:
        """Batches in a pass, where the data know it and no limit cuts them."""
        try:
            return None if self.limit is not None else len(self.data)
        except TypeError:
            return None

    @property
    def dataset_size(self) -> int | None:
        """Samples of the dataset behind a loader, where it knows."""
        try:
            return len(self.data.dataset)
        except (AttributeError, TypeError):
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
            args, kwargs, y = _split(item, number)
            left = None if self.limit is None else self.limit - seen
            if left is not None and left < len(y):
                args, kwargs, y = cut((args, kwargs, y), left, len(y))
            args, kwargs = _move((args, kwargs), self.device)
            yield Batch(number, args, kwargs, BatchLabels.of(y))
            seen += len(y)
            self.largest = max(self.largest, len(y))
            if self.limit is not None and seen >= self.limit:
                return
        if not seen and not self.may_be_empty:
            raise ValueError(EMPTY)


def _check_iterable(data: Any) -> None:
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


def float64_device(device: torch.device) -> torch.device:
    """Where statistics of features on a device are kept: there, if it has float64."""
    return torch.device("cpu") if device.type == "mps" else device


def statistics_device(device: torch.device, place: str | None, size: int) -> torch.device:
    """Where statistics of so many bytes are kept: on the device, or by the host where it has no room."""
    if place not in {None, "device", "host"}:
        raise ValueError(f"statistics must be 'device', 'host' or None, got {place!r}")
    if place is None and device.type == "cuda" and size >= ROOM * torch.cuda.mem_get_info(device)[0]:
        place = "host"
    return torch.device("cpu") if place == "host" else float64_device(device)


def _split(item: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    if isinstance(item, Mapping):
        name = next((name for name in ("labels", "label") if name in item), None)
        if name is None:
            raise ValueError(f"batch {number} is a dict without 'labels'; it has {list(item)}")
        inputs = {key: value for key, value in item.items() if key not in {"labels", "label"}}
        return (), inputs, class_indices(item[name], batch=number)
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(
            f"batch {number} must be a pair (x, y) or a dict with 'labels', got {type(item).__name__}"
            + (f" of length {len(item)}" if isinstance(item, tuple | list) else "")
        )
    x, y = item
    if isinstance(x, Mapping):
        return (), dict(x), class_indices(y, batch=number)
    return (x,), {}, class_indices(y, batch=number)


def cut(item: Any, left: int, size: int) -> Any:
    """A copy of the first `left` samples of everything that has `size` of them."""
    if isinstance(item, Tensor):
        return item[:left].clone() if item.ndim and len(item) == size else item
    if isinstance(item, Mapping):
        return {key: cut(value, left, size) for key, value in item.items()}
    if isinstance(item, PackedSequence):
        return (
            pack_sequence(unpack_sequence(item)[:left], enforce_sorted=False)
            if _packed(item) == size
            else item
        )
    return _each(item, lambda part: cut(part, left, size))


def _packed(item: PackedSequence) -> int:
    """Samples of packed sequences, of which each has a first element."""
    return int(item.batch_sizes[0])


def _move(item: Any, device: torch.device) -> Any:
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=device.type == "cuda")
    if isinstance(item, PackedSequence):
        return item.to(device)  # type: ignore[arg-type]
    if isinstance(item, Mapping):
        return {key: _move(value, device) for key, value in item.items()}
    return _each(item, lambda part: _move(part, device))


def _each(item: Any, change: Callable[[Any], Any]) -> Any:
    """The same list or tuple, also a named one, of changed parts."""
    if not isinstance(item, tuple | list):
        return item
    parts = [change(part) for part in item]
    return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
