"""First pass: streaming, exact class statistics of one layer, and cross-layer statistics of a segment.

All state is float64 and mergeable: batches, processes and resumed work may be combined in any order.
Features are upcast in tiles that stay in the processor's cache, so that exactness costs less than one
float32 product with the class means.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import Loops, loops_for
from pfc.labels import BatchLabels
from pfc.samples import ArrayLike, labelled
from pfc.tiles import column_tiles, exact_sum, row_tiles, scratch, upcast
from pfc.warning import renamed

SLICE = 2**22  # float64 numbers of the means that are merged at once: 32 MiB; ours

Gained = tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]  # by cross scatter, and by sample
Total = Callable[[Tensor], Tensor]  # sums a tensor over processes, in place
Gather = Callable[[Tensor], list[Tensor]]  # the tensors of all processes, by rank


def alone(x: Tensor) -> Tensor:
    """The sum over this process alone."""
    return x


def own(x: Tensor) -> list[Tensor]:
    """The tensors of this process alone."""
    return [x]


@dataclass(eq=False)
class ClassMoments:
    """Counts, means and within-class scatter of the labelled features of one layer.

    A commutative monoid: `empty` is its zero and `merge` its sum.

    Args:
        count: Samples of each class.
        mean: Mean of each class; zero where a class has no sample.
        scatter: Sum over the class's samples of the squared distance to the class mean.
        mean_error: What rounding took from `mean`, the compensation term of a two-float sum: without
            it a large offset would cost digits at each batch.
    """

    count: Float64[Tensor, " K"]
    mean: Float64[Tensor, "K D"]
    scatter: Float64[Tensor, " K"]
    mean_error: Float64[Tensor, "K D"]
    begun: set[int] = field(default_factory=set, init=False, repr=False)  # known to have samples

    low = renamed("ClassMoments.low", "ClassMoments.mean_error")

    @classmethod
    def empty(
        cls, classes: int, features: int, device: torch.device | str | None = None
    ) -> "ClassMoments":
        """Moments of no samples."""
        zeros = torch.zeros(classes, features, dtype=torch.float64, device=device)
        return cls(zeros.new_zeros(classes), zeros, zeros.new_zeros(classes), torch.zeros_like(zeros))

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
        SegmentMoments.around(self).update([H], labels)

    def merge(self, other: "ClassMoments") -> None:
        """Add `other` in place."""
        SegmentMoments.around(self).merge(SegmentMoments.around(other))

    def centred(self, pi: Float64[Tensor, " K"] | None = None) -> Float64[Tensor, "K D"]:
        """Class means less their mean under the weights `pi`, or unweighted; exact at any offset."""
        pi = torch.full_like(self.count, 1 / len(self.count)) if pi is None else pi
        return self.about_centre(pi)[2]

    def about_centre(
        self, pi: Float64[Tensor, " K"]
    ) -> tuple[Float64[Tensor, " D"], Float64[Tensor, " D"], Float64[Tensor, "K D"]]:
        """The mean of the class means under weights, what rounding took from it, and `centred`."""
        centre = pi @ self.mean
        M = (self.mean - centre).add_(self.mean_error)
        error = pi @ M
        return centre, error, M.sub_(error)

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        more = classes - len(self.count)
        if more > 0:
            self.count = torch.cat([self.count, self.count.new_zeros(more)])
            self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(more)])
            room = self.mean.new_zeros(more, self.mean.shape[1])
            self.mean = torch.cat([self.mean, room])
            self.mean_error = torch.cat([self.mean_error, room])

    def present(self) -> "ClassMoments":
        """The same moments without the classes that have no sample; no copy where all have some."""
        seen = self.count > 0
        if bool(seen.all()):
            return self
        return ClassMoments(*(part[seen] for part in self._parts()))

    def cpu(self) -> "ClassMoments":
        """The same moments on the CPU."""
        return self.to("cpu")

    def to(self, device: torch.device | str) -> "ClassMoments":
        """The same moments on a device."""
        return ClassMoments(*(part.to(device) for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.count, self.mean, self.scatter, self.mean_error


@dataclass(eq=False)
class SegmentMoments:
    """Moments of consecutive layers of one shape, and their cross-layer statistics: a monoid.

    The straight line from the first to the last layer needs their cross scatter beside their own
    moments; the path needs all inner products of the increments D_l = H_{l+1} - H_l. A layer by itself
    is a segment of one, without cross-layer statistics.

    Args:
        layers: Moments of each layer.
        cross: Per class, sum over its samples of the inner product of the residuals (feature minus
            class mean) at the first and at the last layer; zero for one layer.
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

    @classmethod
    def around(cls, layer: ClassMoments) -> "SegmentMoments":
        """A segment of one layer, whose moments are those of the layer itself."""
        zeros = layer.count.new_zeros
        return cls([layer], zeros(len(layer.count)), zeros(len(layer.count), 0, 0))

    @property
    def paired(self) -> bool:
        """Whether there are cross-layer statistics."""
        return len(self.layers) > 1

    def update(
        self, batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels
    ) -> Float64[Tensor, "B L L"] | None:
        """Add a batch in place: `absorb` and `count`."""
        gram = self.absorb(batch, labels)
        SegmentMoments.count([self], labels)
        return gram

    @staticmethod
    def count(segments: Sequence["SegmentMoments"], labels: BatchLabels) -> None:
        """Count the samples of a batch that these segments have absorbed; all at once."""
        layers = [layer for segment in segments for layer in segment.layers]
        counts = [layer.count for layer in layers]
        if len(labels.numbers) == counts[0].shape[0]:  # of all classes in a fifth of the time
            torch._foreach_add_(counts, [labels.count] * len(counts))
        else:
            for count in counts:
                count.index_add_(0, labels.present, labels.count)
        for layer in layers:
            if len(layer.begun) < layer.count.shape[0]:
                layer.begun.update(labels.numbers)

    def absorb(
        self, batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels
    ) -> Float64[Tensor, "B L L"] | None:
        """Add a batch in place, all but its counts, tile by tile.

        With shift s (the mean so far as float64 has it, or the class's first sample), n samples before
        whose mean is s + e, m new ones and delta = mean of the new ones minus s, the mean becomes
        s + step, step = (n e + m delta)/(n + m), and the scatter grows by
        sum |h - s|^2 + n |e|^2 - (n + m) |step|^2: the merge of Chan, Golub and LeVeque (1983), in a
        form that never needs the batch's own scatter. The cross scatter follows the same rule with
        inner products.

        Args:
            batch: Features of each layer.
            labels: Their classes.

        Returns:
            Each sample's Gram matrix of the increments between the layers, if there are several.

        Raises:
            ValueError: If the numbers of samples differ or a label is out of range.
        """
        _check(self.layers, batch, labels)
        loops = loops_for(batch)
        begins = loops is not None and loops.BEGINS
        if not (begins or all(layer.begun.issuperset(labels.numbers) for layer in self.layers)):
            self._begin(batch, labels)
        gained = self._absorb(loops, batch, labels) if loops else self._add(batch, labels)
        if gained is None:
            return None
        cross, steps = gained
        self.cross.index_add_(0, labels.present, cross)
        self.steps.index_add_(0, labels.y, steps)
        return steps

    def _begin(self, batch: Sequence[Tensor], labels: BatchLabels) -> None:
        """Put the mean of each class that is seen for the first time at its first sample."""
        k, begins, count = labels.present, labels.first, self.layers[0].count
        known, waits = count[k] > 0, count.device.type not in SYNCHRONOUS_DEVICES
        if not waits:
            k, begins = k[~known], begins[~known]
        for layer, H in zip(self.layers, batch, strict=True):
            first = H[begins].double()
            first = torch.where(known[:, None], layer.mean[k], first) if waits else first
            layer.mean.index_copy_(0, k, first)

    def _absorb(self, loops: Loops, batch: Sequence[Tensor], labels: BatchLabels) -> Gained | None:
        """Add a batch to the layers by compiled loops; what cross-layer statistics gain."""
        absorbed = partial(self._absorb_columns, loops, batch, labels)
        depth, width = len(batch), batch[0].shape[1]
        parts = loops.spread(absorbed, depth, width, depth * batch[0].numel())
        if len(parts) > 1:
            for layer, *apart in zip(self.layers, *(scatters for scatters, _ in parts), strict=True):
                layer.scatter += total_of(apart, alone)
        if not self.paired:
            return None
        crosses, steps = zip(*(gained for _, gained in parts if gained), strict=True)
        return total_of(crosses, alone), total_of(steps, alone)

    def _absorb_columns(
        self, loops: Loops, batch: Sequence[Tensor], labels: BatchLabels, columns: slice
    ) -> tuple[list[Float64[Tensor, " K"]], Gained | None]:
        """Add some columns, which may run beside others: then scatter is gathered apart."""
        width, count, gained = columns.stop - columns.start, self.layers[0].count, None
        own = [layer.scatter for layer in self.layers]
        scatters = own if width == batch[0].shape[1] else [torch.zeros_like(part) for part in own]
        states = [(l.mean, l.mean_error, part) for l, part in zip(self.layers, scatters, strict=True)]
        inner = slice(1, -1) if self.paired else slice(None)
        if self.paired:
            ends = states[0], states[-1]
            gained = loops.absorb_ends(batch, labels, count, ends, columns)
        for H, state in zip(batch[inner], states[inner], strict=True):
            loops.absorb(H, labels, count, *state, columns)
        return scatters, gained

    def _add(self, batch: Sequence[Tensor], labels: BatchLabels) -> Gained | None:
        """As `_absorb`, tile by tile."""
        k, m = labels.present, labels.count
        n, work = self.layers[0].count[k], _Work(len(batch), labels)
        for columns in column_tiles(batch[0]):
            shifts = [layer.mean[k, columns] for layer in self.layers]
            errors = [layer.mean_error[k, columns] for layer in self.layers]
            totals = work.tile(batch, shifts, columns)
            steps = [
                (n[:, None] * e + t) / (n + m)[:, None] for e, t in zip(errors, totals, strict=True)
            ]
            for layer, S, error, step, lost in zip(
                self.layers, shifts, errors, steps, work.lost, strict=True
            ):
                layer.mean[k, columns], layer.mean_error[k, columns] = exact_sum(S, step)
                lost += (n + m) * step.square().sum(1) - n * error.square().sum(1)
            if self.paired:
                work.lost_cross += (n + m) * (steps[0] * steps[-1]).sum(1)
                work.lost_cross -= n * (errors[0] * errors[-1]).sum(1)
        *scatters, cross = work.gained()
        for layer, scatter in zip(self.layers, scatters, strict=True):
            layer.scatter.index_add_(0, k, scatter)
        return (cross, work.steps) if self.paired else None

    def merge(self, *others: "SegmentMoments", total: Total = alone) -> None:
        """Add others in place: those given here, and those of the processes that `total` sums over.

        The merge of Chan, Golub and LeVeque (1983), class by class and for all parts at once. With n
        samples in all and S the sum of the shares (n_r / n) mean_r, a part's mean is delta_r from S,
        the mean of all is S + step, step = sum (n_r / n) delta_r, and the scatter is
        sum (scatter_r + n_r |delta_r|^2) - n |step|^2; the cross scatter of two layers likewise. No
        common offset costs a digit. Means are merged in slices, so that nothing of K x D is copied.

        Args:
            *others: Of the same layers and classes.
            total: Sums a tensor over processes in place, each of which makes the same call.
        """
        parts = (self, *others)
        n = total_of([part.layers[0].count.clone() for part in parts], total)
        lost, lost_cross = [torch.zeros_like(n) for _ in self.layers], torch.zeros_like(n)
        for columns in _slices(self.layers[0].mean):
            moved = [_merge_means(layers, n, columns, total) for layers in _by_layer(parts)]
            for layers, gone, (deltas, step) in zip(_by_layer(parts), lost, moved, strict=True):
                gone += n * step.square().sum(1)
                for layer, delta in zip(layers, deltas, strict=True):
                    layers[0].scatter += layer.count * delta.square().sum(1)
            if self.paired:
                (firsts, first_step), (lasts, last_step) = moved[0], moved[-1]
                lost_cross += n * (first_step * last_step).sum(1)
                for part, first, last in zip(parts, firsts, lasts, strict=True):
                    self.cross += part.layers[0].count * (first * last).sum(1)
        for layers, gone in zip(_by_layer(parts), lost, strict=True):
            layers[0].scatter = total_of([layer.scatter for layer in layers], total) - gone
            layers[0].count = n.clone()
        if self.paired:
            self.cross = total_of([part.cross for part in parts], total) - lost_cross
            self.steps = total_of([part.steps for part in parts], total)

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        more = classes - len(self.cross)
        if more > 0:
            self.cross = torch.cat([self.cross, self.cross.new_zeros(more)])
            self.steps = torch.cat([self.steps, self.steps.new_zeros(more, *self.steps.shape[1:])])
        for layer in self.layers:
            layer.grow(classes)

    def rescale(self, exponent: int) -> None:
        """Multiply the features by a power of two, in place and exactly."""
        once, twice = 2.0**exponent, 4.0**exponent
        for layer in self.layers:
            layer.mean *= once
            layer.mean_error *= once
            layer.scatter *= twice
        self.cross *= twice
        self.steps *= twice


def _by_layer(parts: Sequence[SegmentMoments]) -> Iterator[tuple[ClassMoments, ...]]:
    return zip(*(part.layers for part in parts), strict=True)


def _slices(M: Float64[Tensor, "K D"]) -> Iterator[slice]:
    width = max(1, SLICE // len(M))
    return (slice(start, start + width) for start in range(0, M.shape[1], width))


def _merge_means(
    parts: Sequence[ClassMoments], n: Float64[Tensor, " K"], columns: slice, total: Total
) -> tuple[list[Float64[Tensor, "K C"]], Float64[Tensor, "K C"]]:
    """Merge some columns of the means; how far each part's were from S, and the means of all are."""
    shares = [(part.count / n.clamp(min=1))[:, None] for part in parts]
    means = [part.mean[:, columns] for part in parts]
    S = total_of([share * mean for share, mean in zip(shares, means, strict=True)], total)
    deltas = [(mean - S) + part.mean_error[:, columns] for mean, part in zip(means, parts, strict=True)]
    step = total_of([share * delta for share, delta in zip(shares, deltas, strict=True)], total)
    parts[0].mean[:, columns], parts[0].mean_error[:, columns] = exact_sum(S, step)
    return deltas, step


def total_of(parts: Sequence[Tensor], total: Total) -> Tensor:
    """The sum over parts and over processes; of a single part in its own place."""
    return total(reduce(torch.add, parts))


class _Work:
    """What one batch adds, a number a sample; filled tile by tile."""

    def __init__(self, layers: int, labels: BatchLabels) -> None:
        zeros = labels.count.new_zeros
        self.labels = labels
        self.squares = [zeros(len(labels.y)) for _ in range(layers)]
        self.cross = zeros(len(labels.y))
        self.steps = zeros(len(labels.y), layers - 1, layers - 1)
        self.lost = [zeros(len(labels.present)) for _ in range(layers)]
        self.lost_cross = zeros(len(labels.present))

    def gained(self) -> list[Float64[Tensor, " P"]]:
        """By class, what the scatter of each layer gains, and the cross scatter."""
        place, zeros = self.labels.place, torch.zeros_like(self.lost_cross)
        pairs = zip((*self.squares, self.cross), (*self.lost, self.lost_cross), strict=True)
        return [zeros.index_add(0, place, each) - lost for each, lost in pairs]

    def tile(
        self, batch: Sequence[Tensor], shifts: Sequence[Tensor], columns: slice
    ) -> list[Float64[Tensor, "P C"]]:
        """Add some columns of all rows; returns the class sums of the shifted features."""
        totals = [torch.zeros_like(S) for S in shifts]
        for rows in row_tiles(batch[0], columns):
            tiles = [upcast(H[rows, columns], f"tile {l}") for l, H in enumerate(batch)]
            if len(tiles) > 1:
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
        if len(tiles) > 1:
            self.cross[rows] += torch.mul(tiles[0], tiles[-1], out=S_y).sum(1)


def _check(
    layers: Sequence[ClassMoments], batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels
) -> None:
    (K, D), rows = layers[0].mean.shape, labels.y.numel()
    if labels.numbers[-1] >= K:
        raise ValueError(f"labels must lie in 0..{K - 1}, got {labels.numbers[-1]}")
    for H in batch:
        if H.shape != (rows, D):
            raise ValueError(f"need features of shape ({rows}, {D}), one row a label, got {(*H.shape,)}")
