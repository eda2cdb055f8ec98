"""Batches as measuring wants them: checked, on the device, known again in the second pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from pfc.measuring.scale import exponent_of
from pfc.moments import BatchLabels, column_tiles, row_tiles, upcast
from pfc.processes import ALONE, Processes
from pfc.taps import first_tensor
from pfc.warning import warn

Home = Literal["device", "host"]
EMPTY = "the data gave no batch at all; is the loader empty?"
ROOM = 0.7  # part of a device's free memory that statistics may take; ours
MOST = 2.0**500  # a mark beyond it is cut off, for its square is no number; ours
ROUNDING = 1e-13  # of an inner product, relative to the vector; ours
NEAR = 1e-12  # of the largest mark: marks of one input, in batches of another size; ours
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
        limit: Stop after so many samples, of all processes together.
        device: Where the network is.
        ranks: The processes, of which this one has its own part of the data.
        statistics: Where the statistics are kept: on the `"device"`, or in the `"host"`'s memory; where
            they fit if `None`.

    Raises:
        ValueError: If the data can't be read twice, `limit` is below 1, or there is no such place.
    """

    def __init__(
        self,
        data: Any,
        limit: int | None,
        device: torch.device,
        ranks: Processes = ALONE,
        statistics: str | None = None,
    ) -> None:
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
        if statistics not in {None, "device", "host"}:
            raise ValueError(f"statistics must be 'device', 'host' or None, got {statistics!r}")
        self.data, self.device, self.ranks = data, device, ranks
        self.limit = _least(own_part(limit, ranks), unpadded(data))
        self.statistics = statistics
        self.home = torch.device("cpu") if statistics == "host" else exact(device)

    def settle(self, size: int) -> torch.device:
        """Keep statistics of so many bytes in the host's memory where the device has no room."""
        if self.statistics is None and self.home.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.home)
            self.home = self.home if size < ROOM * free else torch.device("cpu")
        return self.home

    def at_home(self, batch: Batch) -> Batch:
        """The same batch with its labels where the statistics are."""
        if batch.labels.y.device == self.home:
            return batch
        return replace(batch, labels=BatchLabels.of(batch.labels.y.cpu(), self.home))

    @property
    def total(self) -> int | None:
        """Batches in a pass, where the data know it and no limit cuts them."""
        try:
            return None if self.limit is not None else len(self.data)
        except TypeError:
            return None

    @property
    def whole(self) -> int | None:
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
            args, kwargs, y = _parts(item, number)
            left = None if self.limit is None else self.limit - seen
            if left is not None and left < len(y):
                args, kwargs, y = cut((args, kwargs, y), left, len(y))
            args, kwargs = _move((args, kwargs), self.device)
            yield Batch(number, args, kwargs, BatchLabels.of(y, self.home))
            seen += len(y)
            if self.limit is not None and seen >= self.limit:
                return
        if not seen and self.ranks.size == 1:
            raise ValueError(EMPTY)


def refuse_repeated(told: Sequence[Mapping[str, int | None]]) -> None:
    """Refuse what a sampler that we don't know repeated to make the processes' parts even.

    Args:
        told: Of each process the samples that it saw, of how many in its loader's dataset, and the size
            of its largest batch.

    Raises:
        ValueError: If together they saw a little more samples than there are.
    """
    seen, whole, batch = ([int(each[name] or 0) for each in told] for name in ("seen", "whole", "batch"))
    together, N = sum(seen), whole[0]
    if set(whole) == {N} and max(seen) < N < together <= N + sum(batch):
        raise ValueError(
            f"{len(told)} processes saw {together} samples of a dataset of {N}: their sampler repeats "
            f"some to make the parts even; let it leave the last {together - N} away, or use "
            "torch.utils.data.DistributedSampler, whose repeated samples are known and counted once"
        )


def own_part(limit: int | None, ranks: Processes) -> int | None:
    """This process's part of a limit; the parts of all differ by one at most.

    Args:
        limit: Of all processes together.
        ranks: The processes.

    Returns:
        Samples, or `None` without a limit.

    Raises:
        ValueError: If a process would have none.
    """
    if limit is not None and limit < ranks.size:
        raise ValueError(f"limit must be at least 1 for each of {ranks.size} processes, got {limit}")
    return limit if limit is None else (limit + ranks.size - 1 - ranks.rank) // ranks.size


def unpadded(data: Any) -> int | None:
    """How many samples of a loader are its own: a `DistributedSampler` repeats some at the end.

    Its samples stand at every size-th place of one order, in which those that are repeated come last.

    Args:
        data: Any batches.

    Returns:
        Samples before the first that is repeated, or `None` if nothing is known to be.
    """
    batch_sampler = getattr(data, "batch_sampler", None)
    sampler = getattr(batch_sampler, "sampler", None) or getattr(data, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def _least(a: int | None, b: int | None) -> int | None:
    return min((x for x in (a, b) if x is not None), default=None)


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

    Each input is one inner product with a fixed vector of incommensurable cosines, less that of the
    first input, so that a common offset hides nothing; of each class the number, the sum and the sum of
    squares are kept.
    """

    def __init__(self) -> None:
        self.sums: Float64[Tensor, "K 3"] | None = None
        self.marks: list[Float64[Tensor, "B 2"]] | None = None  # class and mark of each sample
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
        x, labels = _inputs(batch), batch.labels
        mark = torch.zeros(len(batch), dtype=torch.float64, device=labels.y.device)
        if x is not None:
            if self._exponent is None:
                self._look(x)
            mark = (self._mark(x) - self._origin).to(mark.device)
        if self.marks is not None:
            self.marks.append(torch.stack([labels.y.double(), mark], dim=1))
        rows = torch.stack([torch.ones_like(mark), mark, mark.square()], dim=1)
        have = mark.new_zeros(0, 3) if self.sums is None else self.sums
        self.sums = _room(have, labels.numbers[-1] + 1).index_add_(0, labels.y, rows)

    @property
    def of_class(self) -> dict[int, Float64[Tensor, "3"]]:
        """What is kept of each class that has inputs."""
        sums = () if self.sums is None else self.sums.cpu().unbind()
        return {k: total for k, total in enumerate(sums) if total[0] > 0}

    def begin(self, batch: Batch | None, ranks: Processes) -> None:
        """Take the first input of the first process that has one for the first of all."""
        if ranks.size == 1:
            return
        self.marks = []
        x = None if batch is None else _inputs(batch)
        if x is not None:
            self._look(x)
        ours = (self._exponent, self._origin, self._length)
        first = next((each for each in ranks.meet("inputs", ours) if each[0] is not None), ours)
        self._exponent, self._origin, self._length = first
        self._waves.clear()  # which hold the exponent

    def _look(self, x: Tensor) -> None:
        far = x.dtype == torch.float64 and x.numel() > 0
        size = float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) if far else 0.0
        self._exponent = exponent_of(size)
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

    def merge(self, classes: int, ranks: Processes) -> None:
        """Make this what all processes saw together.

        Raises:
            ValueError: If all saw the same samples.
        """
        if ranks.size == 1:
            return
        ours = torch.zeros(0, 3, dtype=torch.float64) if self.sums is None else self.sums.cpu()
        ours = _room(ours, classes)
        parts = torch.stack(ranks.gather(ours[None])).flatten(0, 1)
        equal = torch.isclose(parts, parts[0], rtol=SAME, atol=0.0).all()
        if bool(equal & parts[..., 1:].any()):  # inputs of no known form leave no mark
            raise ValueError(
                f"each of the {ranks.size} processes was given the same {int(ours[:, 0].sum())} "
                "samples: give each its own part, such as by a DistributedSampler, or pass group=False "
                "to measure in each process alone"
            )
        self.sums = parts.sum(0)
        self._tell_shared(ranks)

    def _tell_shared(self, ranks: Processes) -> None:
        """Warn of samples that are in more than one process; the second pass need not look again."""
        if self.marks is None:
            return
        ours = torch.cat([torch.zeros(0, 2, dtype=torch.float64), *(each.cpu() for each in self.marks)])
        self.marks = None
        if shared := _shared(ranks.gather(ours)):
            warn(
                f"{shared} sample(s) of a process are in another too and count in both: if a sampler "
                "repeats them, give measure the DataLoader with its DistributedSampler"
            )

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


def _inputs(batch: Batch) -> Tensor | None:
    """A row of numbers for each sample, where the network's first input is that."""
    x = first_tensor((batch.args, batch.kwargs))
    if x is None or x.device.type == "mps" or len(x) != len(batch):
        return None
    return x.reshape(len(x), -1)


def _shared(marks: Sequence[Float64[Tensor, "N 2"]]) -> int:
    """How many samples have the class and the mark of another process's."""
    rank = torch.cat([torch.full((len(each),), i) for i, each in enumerate(marks)])
    y, mark = torch.cat([*marks]).unbind(1)
    order = torch.from_numpy(np.lexsort((mark.numpy(), y.numpy())))
    rank, y, mark = rank[order], y[order], mark[order]
    near = mark.diff().abs() <= NEAR * mark.abs().max()
    return int((near & (y.diff() == 0) & (rank.diff() != 0)).sum()) if bool(mark.any()) else 0


def _room(sums: Float64[Tensor, "K 3"], classes: int) -> Float64[Tensor, "M 3"]:
    """The same rows, and zero ones for further classes."""
    more = classes - len(sums)
    return torch.cat([sums, sums.new_zeros(more, 3)]) if more > 0 else sums
