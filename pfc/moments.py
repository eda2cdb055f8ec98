"""First pass: streaming, exact class statistics of one layer and of what pairs the layers of a segment.

All state is float64 and mergeable: batches, processes and resumed work may be combined in any order.
Features are upcast in tiles that stay in the processor's cache, so that exactness costs less than one
float32 product with the class means.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from pfc.samples import ArrayLike, class_indices, labelled

TILE = {"cpu": 2**18, "cuda": 2**22}  # float64 numbers worked on at once: near the cache, few calls
AT_HAND = {"cpu"}  # devices whose numbers can be looked at without waiting for a queue of work


@dataclass(frozen=True, eq=False)
class BatchLabels:
    """The labels of one batch, prepared once for all layers.

    Args:
        y: Class of each sample.
        present: Classes that occur, ascending.
        place: Position of each sample's class in `present`.
        first: Number of the first sample of each class in `present`.
        count: Samples of each class in `present`.
        one_hot: Membership in the classes of `present`, where sums are the faster by it; else `None`.
        numbers: The classes of `present` once more, known without asking a device.
    """

    y: Int64[Tensor, " B"]
    present: Int64[Tensor, " P"]
    place: Int64[Tensor, " B"]
    first: Int64[Tensor, " P"]
    count: Float64[Tensor, " P"]
    one_hot: Float64[Tensor, "P B"] | None
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, y: Int[Tensor, " B"], device: torch.device | None = None) -> "BatchLabels":
        """Prepare the integer labels of a batch: where they are, which on the CPU asks no device.

        Args:
            y: Class of each sample.
            device: Where the features will be; the labels' own place if `None`.

        Returns:
            What every layer needs to know of them.

        Raises:
            ValueError: If the batch is empty or a label is negative.
        """
        y, device = class_indices(y), device or y.device
        present, place, count = torch.unique(y, return_inverse=True, return_counts=True)
        order = torch.argsort(place, stable=True)
        first = order[count.cumsum(0) - count]
        numbers = tuple(present.tolist())
        y, present, place, first, count = (
            part.to(device, non_blocking=True) for part in (y, present, place, first, count)
        )
        one_hot = None if device.type in AT_HAND else (present[:, None] == y).double()
        return cls(y, present, place, first, count.double(), one_hot, numbers)

    def sums(self, X: Float64[Tensor, "B C"]) -> Float64[Tensor, "P C"]:
        """Sum of the rows of each class present."""
        if self.one_hot is not None:
            return self.one_hot @ X
        return X.new_zeros(len(self.present), X.shape[1]).index_add_(0, self.place, X)

    def rows(self, rows: slice) -> "BatchLabels":
        """The labels of some rows; the classes keep their places."""
        one_hot = None if self.one_hot is None else self.one_hot[:, rows]
        place, y = self.place[rows], self.y[rows]
        return BatchLabels(y, self.present, place, self.first, self.count, one_hot, self.numbers)


@dataclass(eq=False)
class ClassMoments:
    """Counts, means and within-class scatter of the labelled features of one layer.

    A commutative monoid: `empty` is its zero and `merge` its sum.

    Args:
        count: Samples of each class.
        mean: Mean of each class; zero where a class has no sample.
        scatter: Sum over the class's samples of the squared distance to the class mean.
        low: What rounding took from `mean`; without it a large offset would cost digits at each batch.
    """

    count: Float64[Tensor, " K"]
    mean: Float64[Tensor, "K D"]
    scatter: Float64[Tensor, " K"]
    low: Float64[Tensor, "K D"]

    @classmethod
    def empty(
        cls, classes: int, features: int, device: torch.device | str | None = None
    ) -> "ClassMoments":
        """Moments of no samples."""
        zeros = torch.zeros(classes, features, dtype=torch.float64, device=device)
        return cls(zeros.new_zeros(classes), zeros, zeros.new_zeros(classes), zeros.clone())

    @classmethod
    def of(cls, H: ArrayLike, y: ArrayLike, classes: int | None = None) -> "ClassMoments":
        """Moments of features `H` with labels `y` in 0..classes-1.

        Args:
            H: Features of any type, N x D, one sample a row.
            y: Class of each sample.
            classes: Number of classes; one more than the largest label if `None`.

        Returns:
            The moments of these features.

        Raises:
            ValueError: If there is no sample, the lengths differ, a feature is not finite, or a label is
                out of range.
        """
        features, indices = labelled(H, y, name="H", gaps="keep")
        labels = BatchLabels.of(indices, features.device)
        moments = cls.empty(classes or labels.numbers[-1] + 1, features.shape[1], features.device)
        moments.update(features, labels)
        return moments

    def update(self, H: Float[Tensor, "B D"], labels: BatchLabels) -> None:
        """Add a batch in place."""
        absorb([self], [H], labels)

    def merge(self, other: "ClassMoments") -> None:
        """Add `other` in place: Chan, Golub and LeVeque (1983), class by class."""
        n, m = self.count, other.count
        share = m / (n + m).clamp(min=1)
        delta = self.distance(other)
        self.scatter += other.scatter + n * share * delta.square().sum(1)
        self.mean, self.low = exact_sum(self.mean, self.low + delta * share[:, None])
        self.count = n + m

    def distance(self, other: "ClassMoments") -> Float64[Tensor, "K D"]:
        """How far the class means of `other` are from these."""
        return (other.mean - self.mean) + (other.low - self.low)

    def centred(self, pi: Float64[Tensor, " K"]) -> Float64[Tensor, "K D"]:
        """Class means less their mean under the weights `pi`, exact at any common offset."""
        M = (self.mean - pi @ self.mean) + self.low
        return M - pi @ M

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        more = classes - len(self.count)
        if more > 0:
            self.count = torch.cat([self.count, self.count.new_zeros(more)])
            self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(more)])
            room = self.mean.new_zeros(more, self.mean.shape[1])
            self.mean, self.low = torch.cat([self.mean, room]), torch.cat([self.low, room])

    def present(self) -> "ClassMoments":
        """The same moments without the classes that have no sample; no copy where all have some."""
        seen = self.count > 0
        if bool(seen.all()):
            return self
        return ClassMoments(self.count[seen], self.mean[seen], self.scatter[seen], self.low[seen])

    def cpu(self) -> "ClassMoments":
        """The same moments on the CPU."""
        return ClassMoments(self.count.cpu(), self.mean.cpu(), self.scatter.cpu(), self.low.cpu())


@dataclass(eq=False)
class SegmentMoments:
    """Moments of consecutive layers of one shape, and what pairs them: a monoid like its parts.

    It holds what the straight line from the first to the last layer needs beyond the two layers' own
    moments (the cross scatter), and all inner products of the increments D_l = H_{l+1} - H_l, summed
    over the samples of each class (positions, lengths, energies and angles of the path).

    Args:
        layers: Moments of each layer.
        cross: Per class, sum over its samples of the inner product of the residuals (feature minus
            class mean) at the first and at the last layer.
        steps: Per class, sum over its samples of the Gram matrix of the L increments.
    """

    layers: list[ClassMoments]
    cross: Float64[Tensor, " K"]
    steps: Float64[Tensor, "K L L"]

    @classmethod
    def empty(
        cls, depth: int, classes: int, features: int, device: torch.device | str | None = None
    ) -> "SegmentMoments":
        """Moments of no samples of `depth` layers."""
        layers = [ClassMoments.empty(classes, features, device) for _ in range(depth)]
        zeros = layers[0].count
        return cls(layers, zeros.clone(), zeros.new_zeros(classes, depth - 1, depth - 1))

    def update(
        self, batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels
    ) -> Float64[Tensor, "B L L"]:
        """Add a batch in place, one feature matrix a layer; returns each sample's own Gram matrix."""
        return absorb(self.layers, batch, labels, self)

    def merge(self, other: "SegmentMoments") -> None:
        """Add `other` in place."""
        n, m = self.layers[0].count, other.layers[0].count
        share = n * m / (n + m).clamp(min=1)
        first, last = (self.layers[i].distance(other.layers[i]) for i in (0, -1))
        self.cross += other.cross + share * (first * last).sum(1)
        self.steps += other.steps
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            ours.merge(theirs)

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        more = classes - len(self.cross)
        if more > 0:
            self.cross = torch.cat([self.cross, self.cross.new_zeros(more)])
            self.steps = torch.cat([self.steps, self.steps.new_zeros(more, *self.steps.shape[1:])])
        for layer in self.layers:
            layer.grow(classes)


def absorb(
    layers: Sequence[ClassMoments],
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    segment: SegmentMoments | None = None,
) -> Float64[Tensor, "B L L"]:
    """Add a batch to the moments of one or more layers of one shape, tile by tile.

    With shift s (the mean so far as float64 has it, or the class's first sample), n samples before whose
    mean is s + low, m new ones and delta = mean of the new ones minus s, the mean becomes s + step,
    step = (n low + m delta)/(n + m), and the scatter grows by
    sum |h - s|^2 + n |low|^2 - (n + m) |step|^2: Chan's merge, in a form that never needs the batch's
    own scatter. The cross scatter of two layers follows the same rule with inner products.

    Args:
        layers: Moments to be updated.
        batch: Features of each layer.
        labels: Their classes.
        segment: Where the statistics that pair the layers go.

    Returns:
        Each sample's Gram matrix of the increments between the layers; zero without a segment.

    Raises:
        ValueError: If the numbers of samples differ or a label is out of range.
    """
    _check(layers, batch, labels)
    k, m, n = labels.present, labels.count, layers[0].count[labels.present]
    work = _Work(len(batch), labels, paired=segment is not None)
    for columns in column_tiles(batch[0]):
        shifts = [_shift(*pair, n, labels, columns) for pair in zip(layers, batch, strict=True)]
        lows = [layer.low[k, columns] for layer in layers]
        totals = work.tile(batch, shifts, columns)
        steps = [(n[:, None] * a + t) / (n + m)[:, None] for a, t in zip(lows, totals, strict=True)]
        for layer, S, low, step, lost in zip(layers, shifts, lows, steps, work.lost, strict=True):
            layer.mean[k, columns], layer.low[k, columns] = exact_sum(S, step)
            lost += (n + m) * step.square().sum(1) - n * low.square().sum(1)
        work.lost_cross += (n + m) * (steps[0] * steps[-1]).sum(1) - n * (lows[0] * lows[-1]).sum(1)
    for layer, squares, lost in zip(layers, work.squares, work.lost, strict=True):
        layer.scatter.index_add_(0, labels.y, squares).index_add_(0, k, lost, alpha=-1)
        layer.count.index_add_(0, k, m)
    if segment is not None:
        segment.cross.index_add_(0, labels.y, work.cross).index_add_(0, k, work.lost_cross, alpha=-1)
        segment.steps.index_add_(0, labels.y, work.steps)
    return work.steps


class _Work:
    """What one batch adds, a number a sample; filled tile by tile."""

    def __init__(self, layers: int, labels: BatchLabels, *, paired: bool) -> None:
        zeros = labels.count.new_zeros
        self.labels = labels
        self.paired = paired
        self.squares = [zeros(len(labels.y)) for _ in range(layers)]
        self.cross = zeros(len(labels.y))
        self.steps = zeros(len(labels.y), layers - 1, layers - 1)
        self.lost = [zeros(len(labels.present)) for _ in range(layers)]
        self.lost_cross = zeros(len(labels.present))

    def tile(
        self, batch: Sequence[Tensor], shifts: Sequence[Tensor], columns: slice
    ) -> list[Float64[Tensor, "P C"]]:
        """Add some columns of all rows; returns the class sums of the shifted features."""
        totals = [torch.zeros_like(S) for S in shifts]
        for rows in row_tiles(batch[0], columns):
            tiles = [upcast(H[rows, columns], f"tile {l}") for l, H in enumerate(batch)]
            if self.paired and len(tiles) > 1:
                D = scratch("steps", (len(tiles[0]), len(tiles) - 1, tiles[0].shape[1]), tiles[0])
                for l, (a, b) in enumerate(pairwise(tiles)):
                    torch.sub(b, a, out=D[:, l])
                self.steps[rows] += D @ D.mT
            self._centred(tiles, shifts, totals, rows)
        return totals

    def _centred(
        self, tiles: list[Tensor], shifts: Sequence[Tensor], totals: list[Tensor], rows: slice
    ) -> None:
        labels = self.labels.rows(rows)
        S_y = scratch("shift", tiles[0].shape, tiles[0])
        for X, S, total, squares in zip(tiles, shifts, totals, self.squares, strict=True):
            X -= torch.index_select(S, 0, labels.place, out=S_y)
            total += labels.sums(X)
            squares[rows] += torch.linalg.vector_norm(X, dim=1).square_()
        if self.paired:
            self.cross[rows] += torch.mul(tiles[0], tiles[-1], out=S_y).sum(1)


class _Kept(threading.local):
    """Work arrays of each thread, by use and device."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, torch.device], Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Float64[Tensor, "..."]:
    """A float64 work array that keeps its memory from call to call; its content is arbitrary."""
    key, size = (name, like.device), prod(shape)
    buffer = _kept.arrays.get(key)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # it is to serve outside, too
            buffer = _kept.arrays[key] = torch.empty(size, dtype=torch.float64, device=like.device)
    return buffer[:size].view(*shape)


def upcast(H: Float[Tensor, "B C"], name: str) -> Float64[Tensor, "B C"]:
    """A float64 copy of `H` in the work array `name`."""
    return scratch(name, H.shape, H).copy_(H)


def exact_sum(
    a: Float64[Tensor, "*n"], b: Float64[Tensor, "*n"]
) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
    """The rounded sum and what rounding took from it (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _shift(
    layer: ClassMoments,
    H: Float[Tensor, "B D"],
    n: Float64[Tensor, " P"],
    labels: BatchLabels,
    columns: slice,
) -> Float64[Tensor, "P C"]:
    """The mean so far; for a class not seen yet, its first sample."""
    S = layer.mean[labels.present, columns]
    new = n == 0
    if H.device.type in AT_HAND and not new.any():
        return S
    return torch.where(new[:, None], H[labels.first, columns].double(), S)


def column_tiles(H: Float[Tensor, "B D"]) -> Iterator[slice]:
    """Columns to be worked on at once: as many as fit in a tile with up to 128 rows."""
    width = max(1, TILE.get(H.device.type, TILE["cpu"]) // min(len(H), 128))
    return (slice(start, min(start + width, H.shape[1])) for start in range(0, H.shape[1], width))


def row_tiles(H: Float[Tensor, "B D"], columns: slice) -> Iterator[slice]:
    """Rows that fill a tile of these columns."""
    width = columns.stop - columns.start
    height = max(1, TILE.get(H.device.type, TILE["cpu"]) // width)
    return (slice(start, min(start + height, len(H))) for start in range(0, len(H), height))


def _check(
    layers: Sequence[ClassMoments], batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels
) -> None:
    K, D = layers[0].mean.shape
    if labels.numbers[-1] >= K:
        raise ValueError(f"labels must lie in 0..{K - 1}, got {labels.numbers[-1]}")
    for H in batch:
        if H.shape != (len(labels.y), D):
            raise ValueError(
                f"need features of shape ({len(labels.y)}, {D}), one row a label, got {(*H.shape,)}"
            )
