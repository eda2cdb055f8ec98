"""Second pass: nearest class means, in the coordinates of the span of the means.

An orthonormal basis of the span of the centred means turns a sample into at most K - 1 numbers. All
distances to the means differ by a constant from distances there, so nearest-mean decisions, and all of
the within-class scatter that the pseudo-inverse of Sigma_B can see, are read from these numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import at_hand, loops_for, processor
from pfc.metrics import Weighting, class_weights
from pfc.moments import ClassMoments, Gather, Total, alone, own, total_of
from pfc.pairs import EPS
from pfc.prototypes import Prototypes
from pfc.tiles import (
    column_tiles,
    coordinates,
    coordinates_of,
    row_tiles,
    rows_at_once,
    scratch,
    upcast,
    wide_tiles,
)

MOST_PAIRED = 200  # classes up to which numbers of pairs of classes are kept; ours
WIDE = 2**8  # times as many columns as rows, from which on coordinates of the rows come first; measured
STEEP = 2**3  # times weaker than the strongest, from which on directions are made orthogonal; ours
LINE = 8  # numbers of a line of the processor's cache
FEW = 64  # columns up to which a product is twice as fast with its few rows first; measured


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
        centre, error, M = means.about_centre(pi)
        found = _Directions.of(_near(M), M.shape[1], pi, _rounding(means))
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
    if _is_wide(means.mean):
        near = coordinates_of(means.about_centre_of(pi, each)[2] for each in wide_tiles(means.mean))
    else:
        near = means.centred(pi)
    found = _Directions.of(near, means.mean.shape[1], pi, _rounding(means))
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


@dataclass(frozen=True, eq=False)
class Axes:
    """What the features of a layer are projected on.

    Args:
        span: Of the layer's class means, about whose centre.
        bases: Orthonormal columns, of the span itself or of a line's both ends, as `laid_out` lays them.
    """

    span: MeansSpan
    bases: Float64[Tensor, "D R"]

    @cached_property
    def _shift(self) -> Float64[Tensor, " R"]:
        """What rounding took from the centre, along the columns."""
        return self.span.centre_error @ self.bases

    def project(
        self, H: Float[Tensor, "B D"], room: Float64[Tensor, "B R"] | None = None
    ) -> Float64[Tensor, "B R"]:
        """Coordinates of the centred rows of `H`, upcast tile by tile; in that room, if there is any."""
        span, flat = self.span, self.bases.mT
        few = len(flat) <= FEW
        if few and (loops := loops_for([H])):
            room = flat.new_empty(len(H), len(flat)) if room is None else room
            return loops.project(H, span.centre, flat, room.copy_(-self._shift))
        z = flat.new_zeros(len(flat), len(H)).mT if few else flat.new_zeros(len(H), len(flat))
        if H.dtype == torch.float64 and span.central:  # needs no copy
            _add(z, H, flat, few=few)
        else:
            for columns in column_tiles(H):
                for rows in row_tiles(H, columns):
                    X = upcast(H[rows, columns], "project")
                    X = X if span.central else X.sub_(span.centre[columns])
                    _add(z[rows], X, flat[:, columns], few=few)
        # to subtract the centre at last loses nothing where it is among the means
        z -= (span.centre + span.centre_error) @ self.bases if span.central else self._shift
        z = z.contiguous()
        return z if room is None else room.copy_(z)


def project(
    H: Float[Tensor, "B D"], span: MeansSpan, bases: Float64[Tensor, "D R"]
) -> Float64[Tensor, "B R"]:
    """Coordinates of the rows of `H`, centred, along orthonormal columns."""
    return Axes(span, bases).project(H)


def _add(
    z: Float64[Tensor, "B R"], X: Float64[Tensor, "B C"], flat: Float64[Tensor, "R C"], *, few: bool
) -> None:
    """Add the products of rows with rows; in the order that is the faster for so many of `flat`."""
    if few:
        z.mT.addmm_(flat, X.mT)
    else:
        z.addmm_(X, flat.mT)


def _rounding(means: ClassMoments) -> Float64[Tensor, ""]:
    """How far rounding may move the means: it is of their samples' spread, hardly of an offset."""
    spread = (means.scatter / means.count).max().sqrt()
    size = torch.linalg.vector_norm(means.mean, dim=1).max()
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


@dataclass(eq=False)
class NearestMean:
    """What the second pass gathers of one layer; mergeable with its like of the same span.

    Args:
        span: The span of the means that the first pass found.
        count: Samples of each class seen in this pass.
        hits: Samples of each class that are nearest to its own mean.
        sums: Per class, sum of the residuals in the span: zero if the means are those of these data.
        squares: Per class, sum of the squared residuals in the span.
        confusion: Samples of each class by the class of the nearest mean; without rows for more than
            `MOST_PAIRED` classes.
        offset: The data's own class means less those of the span, in it; a zero if they are the same.
        rounding: The coarsest relative precision of the features seen.
    """

    span: MeansSpan
    count: Float64[Tensor, " P"]
    hits: Float64[Tensor, " P"]
    sums: Float64[Tensor, "P R"]
    squares: Float64[Tensor, "P R"]
    confusion: Float64[Tensor, "Q C"]
    offset: Float64[Tensor, "..."]
    rounding: float = 0.0

    @classmethod
    def empty(cls, span: MeansSpan, offset: Float64[Tensor, "P R"] | None = None) -> "NearestMean":
        """Nothing seen yet."""
        P, R = span.points.shape
        zeros = span.points.new_zeros
        confusion = zeros(P if P <= MOST_PAIRED else 0, P)
        offset = zeros(()) if offset is None else offset
        return cls(span, zeros(P), zeros(P), zeros(P, R), zeros(P, R), confusion, offset)

    def update(self, H: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """Add a batch in place.

        Args:
            H: Features.
            y: Their classes, all of which the first pass has seen.

        Returns:
            The class of the nearest mean of each sample, as a position in `span.points`.
        """
        self.note(H.dtype)
        return self.take(project(H, self.span, self.span.basis), y)

    def note(self, dtype: torch.dtype) -> None:
        """Note that features had this type."""
        self.rounding = max(self.rounding, torch.finfo(dtype).eps)

    def take(
        self,
        z: Float64[Tensor, "B R"],
        y: Int64[Tensor, " B"],
        nearest: Int64[Tensor, " B"] | None = None,
    ) -> Int64[Tensor, " B"]:
        """Add a batch that is already in the coordinates of the span, with the nearest if known."""
        p = self.span.place[y]
        nearest = self.span.prototypes.nearest(z) if nearest is None else nearest
        if at_hand(z.device, z.numel()):
            state = self.count, self.hits, self.sums, self.squares
            processor.gather(z, p, nearest, self.span.points, state, self.confusion)
            return nearest
        self.count.index_add_(0, p, z.new_ones(len(z)))
        self.hits.index_add_(0, p, (nearest == p).to(z))
        if len(self.confusion):
            pairs = self.confusion.view(-1)
            pairs.index_add_(0, p * len(self.count) + nearest, z.new_ones(len(z)))
        height = rows_at_once(2 * z.shape[1], z)
        for some, places in zip(z.split(height), p.split(height), strict=True):
            residual = scratch("residual", some.shape, some)
            torch.sub(some, torch.index_select(self.span.points, 0, places, out=residual), out=residual)
            self.sums.index_add_(0, places, residual)
            self.squares.index_add_(0, places, residual.square_())
        return nearest

    def rows(self, places: Int64[Tensor, " Q"]) -> "NearestMean":
        """What was gathered of some of the classes."""
        confusion = self.confusion[places] if len(self.confusion) else self.confusion
        count, hits = self.count[places], self.hits[places]
        sums, squares, offset = self.sums[places], self.squares[places], self.offset[places]
        return NearestMean(self.span, count, hits, sums, squares, confusion, offset)

    def check(self, name: str) -> None:
        """Check that this pass saw the features of the first: the same counts and class means.

        Args:
            name: The layer's name, for the message.

        Raises:
            ValueError: If it did not.
        """
        drift = (self.sums / self.count.clamp(min=1)[:, None] - self.offset).norm(dim=1)
        spread = (self.squares.sum() / self.count.sum() + self.span.points.square().sum(1).max()).sqrt()
        # 1000 eps: a forward pass in batches of other sizes rounds otherwise; half precision far more
        most = min(1e3 * self.rounding, 0.03) * (spread + self.span.centre.norm())
        if not (drift.isfinite() & (drift <= most)).all():  # both may be infinite
            raise ValueError(
                f"the second pass saw different features from the first at layer {name!r}: the model is "
                "random in evaluation mode, or the data are; take passes=1"
            )

    def merge(self, *others: "NearestMean", total: Total = alone, gather: Gather = own) -> None:
        """Add others in place: those given here, and those of the processes."""
        parts = (self, *others)
        for name in ("count", "hits", "sums", "squares", "confusion"):
            setattr(self, name, total_of([getattr(part, name) for part in parts], total))
        rounding = torch.tensor(
            [max(part.rounding for part in parts)], dtype=torch.float64, device="cpu"
        )
        self.rounding = max(map(float, gather(rounding)))
