"""The span of the class means of a layer: an orthonormal basis, and the means as points in it.

What rounding could have moved counts as nothing: means that lie no further apart are one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import at_hand, processor
from pfc.metrics import Weighting, class_weights
from pfc.moments import ClassMoments
from pfc.pairs import EPS
from pfc.prototypes import Prototypes
from pfc.tiles import coordinates, rows_at_once, spares

WIDE = 2**8  # times as many columns as rows, from which on coordinates of the rows come first; measured
STEEP = 2**3  # times weaker than the strongest, from which on directions are made orthogonal; ours
FEWER = 2**8  # rows that a compiled loop makes triangular as fast as LAPACK, or faster; measured
SAFE = 2.0**400  # sizes up to which, and down to whose inverse, squares stay in float64; ours
LINE = 8  # numbers of a line of the processor's cache


@dataclass(frozen=True, eq=False)
class MeansSpan:
    """The span of the centred class means of one layer (of the classes that have samples).

    Args:
        centre: The weighted mean of the class means, g.
        basis: Orthonormal columns, the singular directions of the weighted, centred means.
        values: Their singular values, all above round-off; 0 for directions that only classes of no
            weight need.
        points: The centred class means in this basis.
        place: Position in `points` of each class; -1 for a class without samples.
        floor: How far rounding may move a point.
        centre_error: What rounding took from `centre`; without it a large offset would cost digits.
    """

    centre: Float64[Tensor, " D"]
    basis: Float64[Tensor, "D R"]
    values: Float64[Tensor, " R"]
    points: Float64[Tensor, "P R"]
    place: Int64[Tensor, " K"]
    floor: Float64[Tensor, ""]
    centre_error: Float64[Tensor, " D"]

    @classmethod
    def of(
        cls,
        moments: ClassMoments,
        weighting: Weighting = "class",
        weights: Float64[Tensor, " K"] | None = None,
    ) -> "MeansSpan":
        """Span of a layer's means.

        Singular values up to eps max(D, K) of the largest count as zero, and so do those that the
        rounding of the means themselves explains. Means no further apart than that are one.

        Args:
            moments: Of the layer.
            weighting: What a class counts in the centre and the singular values.
            weights: What it counts there instead, such as by the samples of other data; may be 0.

        Returns:
            The span; its rank is at most the number of classes with samples less one.
        """
        seen = moments.count > 0
        means = moments.present()
        pi = class_weights(means.count, weighting) if weights is None else weights[seen]
        centre, error, M, near, size = _about_centre(means, pi)
        found = _Directions.of(near, M.shape[1], pi, _rounding(means, size))
        basis, values, points, floor = found.columns(M), found.values, found.points, found.floor
        if not bool(pi.all()):  # the means of no weight need further directions
            noise = EPS * max(M.shape) * torch.linalg.matrix_norm(M, 2)
            rest = _beyond(M[pi == 0], basis)
            ones, noise = torch.ones_like(rest[:, 0]), torch.maximum(floor, noise)
            more = _Directions.of(_near(rest), rest.shape[1], ones, noise)
            further = torch.linalg.qr(_beyond(more.columns(rest).mT, basis).mT).Q
            basis = laid_out([basis, further])
            values = torch.cat([values, values.new_zeros(further.shape[1])])
            points, floor = M @ basis, more.floor
        points = _together(points, floor)
        return cls(centre, basis, values, points, _places(seen), floor, error)

    @classmethod
    def room(cls, moments: ClassMoments, rank: int) -> "MeansSpan":
        """Room for a span of that rank, to be filled with what another process found."""
        seen = moments.count > 0
        new, D = moments.mean.new_empty, moments.mean.shape[1]
        points = new(int(seen.sum()), rank)
        basis = _room(D, rank, moments.mean)
        return cls(new(D), basis, new(rank), points, _places(seen), new(()), new(D))

    @cached_property
    def central(self) -> bool:
        """Whether the origin is among the class means, rather than far from them."""
        if not len(self.values):
            return False
        return bool(self.centre.norm() <= self.points.norm(dim=1).max())

    @cached_property
    def prototypes(self) -> Prototypes:
        """The points, to the nearest of which samples are assigned."""
        return Prototypes(self.points, self.floor)


def points_of(moments: ClassMoments, weighting: Weighting = "class") -> Float64[Tensor, "P R"]:
    """The `points` of a layer's span, without its basis, which is as large as the means."""
    means = moments.present()
    pi = class_weights(means.count, weighting)
    looped = _by_loop([means], pi) if _is_wide(means.mean) else None
    near, size, _ = looped or (_near(means.centred(pi)), None, [])
    found = _Directions.of(near, means.mean.shape[1], pi, _rounding(means, size))
    return _together(found.points, found.floor)


@dataclass(frozen=True, eq=False)
class _Directions:
    """The singular directions of weighted rows, by few numbers where the rows are wide.

    Args:
        values: The singular values, all above `floor`.
        points: The rows along the directions.
        shares: What share of each row, or else of each column, makes a direction.
        floor: What the values are above.
    """

    values: Float64[Tensor, " R"]
    points: Float64[Tensor, "P R"]
    shares: Float64[Tensor, "PD R"]
    floor: Float64[Tensor, ""]

    @classmethod
    def of(
        cls,
        near: Float64[Tensor, "P R"],
        D: int,
        weights: Float64[Tensor, " P"],
        rounding: Float64[Tensor, ""],
    ) -> "_Directions":
        """Those of rows of D numbers, of which these are the coordinates, or which these are."""
        scale = weights.sqrt()[:, None]
        left, values, right = _svd(near * scale)
        floor = torch.maximum(EPS * max(len(near), D) * values[0], rounding)
        rank = int((values > floor).sum())
        left, values, right = left[:, :rank], values[:rank], right[:rank].mT
        own = near.shape[1] == D
        return cls(values, near @ right, right if own else left * scale / values, floor)

    def columns(self, M: Float64[Tensor, "P D"]) -> Float64[Tensor, "D R"]:
        """The directions as orthonormal columns, of the same rows `M`."""
        if not _is_wide(M):
            return laid_out([self.shares])
        found = _room(M.shape[1], len(self.values), M)
        torch.mm(self.shares.mT, M, out=found.mT)
        if bool((self.values * STEEP < self.values[:1]).any()):  # as oblique as the values span
            Q, ends = torch.linalg.qr(found)
            torch.mul(Q, ends.diagonal().sign(), out=found)
        return found


def near_means(layers: Sequence[ClassMoments], pi: Float64[Tensor, " K"]) -> Float64[Tensor, "P R"]:
    """Class means of layers about their centres, one layer under the other, in few coordinates."""
    found = _by_loop(layers, pi)
    return coordinates(torch.cat([layer.centred(pi) for layer in layers])) if found is None else found[0]


def _about_centre(
    means: ClassMoments, pi: Float64[Tensor, " P"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """What `about_centre` gives, few coordinates of the means, and the size of the largest if known."""
    looped = _by_loop([means], pi, keep=True) if _is_wide(means.mean) else None
    if looped is None:
        centre, error, M = means.about_centre(pi)
        return centre, error, M, _near(M), None
    near, size, (centre, error, M) = looped
    return centre, error, M, near, size


def _by_loop(
    layers: Sequence[ClassMoments], pi: Float64[Tensor, " K"], *, keep: bool = False
) -> tuple[Float64[Tensor, "P R"], Float64[Tensor, ""], list[Tensor]] | None:
    """As `near_means`, the largest size, what `about_centre` gives if kept; where a loop serves."""
    means, P = layers[0].mean, len(layers) * len(pi)
    K, D = means.shape
    if P > FEWER or not spares(P, D) or not at_hand(means.device, P * D):
        return None
    kept = [means.new_empty(shape) for shape in ((D,), (D,), (K, D))] if keep else []
    states = [(layer.mean.contiguous(), layer.mean_error.contiguous()) for layer in layers]
    factor, squares = processor.triangular(states, pi, kept)
    largest = squares.max()
    # squares that left float64 are not to be trusted
    safe = 1 / SAFE < float(factor.abs().max()) < SAFE and bool(largest.isfinite())
    return (factor.mT, largest.sqrt(), kept) if safe else None


def _near(M: Float64[Tensor, "P D"]) -> Float64[Tensor, "P R"]:
    """Coordinates of rows that are wide, or the rows."""
    return coordinates(M) if _is_wide(M) else M


def _is_wide(M: Float64[Tensor, "P D"]) -> bool:
    """Whether coordinates of the rows are worth their time."""
    return M.shape[1] >= WIDE * len(M)


def laid_out(parts: Sequence[Float64[Tensor, "D _"]]) -> Float64[Tensor, "D R"]:
    """Columns of several matrices, laid out as they are to be projected on."""
    sizes = [part.shape[1] for part in parts]
    found = _room(len(parts[0]), sum(sizes), parts[0])
    for room, part in zip(found.split(sizes, 1), parts, strict=True):
        room.copy_(part)
    return found


def _room(D: int, R: int, like: Tensor) -> Float64[Tensor, "D R"]:
    """Room for columns, an odd number of lines apart where caches are to hold some rows of all."""
    lines = -(-D // LINE)
    width = LINE * (lines | 1) if like.device.type in SYNCHRONOUS_DEVICES else D
    return like.new_empty(R, width)[:, :D].mT


def _svd(M: Float64[Tensor, "P D"]) -> tuple[Tensor, Tensor, Tensor]:
    """The thin decomposition; what is tall is decomposed in half of the time."""
    if M.shape[0] >= M.shape[1]:
        return torch.linalg.svd(M, full_matrices=False)
    left, values, right = torch.linalg.svd(M.mT, full_matrices=False)
    return right.mT, values, left.mT


def _beyond(M: Float64[Tensor, "P D"], basis: Float64[Tensor, "D R"]) -> Float64[Tensor, "P D"]:
    """What orthonormal columns miss of the rows of a matrix; twice, as once leaves round-off."""
    for _ in range(2):
        M = M - (M @ basis) @ basis.mT
    return M


def _places(seen: Bool[Tensor, " K"]) -> Int64[Tensor, " K"]:
    return torch.where(seen, seen.cumsum(0) - 1, -1)


def _rounding(means: ClassMoments, size: Float64[Tensor, ""] | None) -> Float64[Tensor, ""]:
    """How far rounding may move the means: it is of their samples' spread, hardly of an offset."""
    spread = (means.scatter / means.count).max().sqrt()
    size = torch.linalg.vector_norm(means.mean, dim=1).max() if size is None else size
    return 32 * len(means.count) ** 0.5 * EPS * (spread + EPS * size)


def _together(points: Float64[Tensor, "P R"], floor: Float64[Tensor, ""]) -> Float64[Tensor, "P R"]:
    """The points, those within rounding of a point of a lower class moved onto it."""
    along, order = points.sum(1).sort()  # what is apart along one direction is apart
    close = along.diff() <= points.shape[1] * floor
    if not bool(close.any()):
        return points
    some = torch.zeros_like(order, dtype=torch.bool)
    some[order[1:][close]] = some[order[:-1][close]] = True
    near, moved = some.nonzero()[:, 0], points.clone()
    for rows in near.split(rows_at_once(len(near), points)):
        apart = torch.cdist(points[rows], points[near], compute_mode="donot_use_mm_for_euclid_dist")
        moved[rows] = points[near[(apart <= floor).byte().argmax(1)]]
    return moved
