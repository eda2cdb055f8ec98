"""Second pass: nearest class means, in the coordinates of the span of the means.

An orthonormal basis of the span of the centred means turns a sample into at most K - 1 numbers. All
distances to the means differ by a constant from distances there, so nearest-mean decisions, and all of
the within-class scatter that the pseudo-inverse of Sigma_B can see, are read from these numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.fused import at_hand, loops_for, processor
from pfc.moments import Gather, Total, alone, own, total_of
from pfc.span import MeansSpan
from pfc.tiles import column_tiles, row_tiles, rows_at_once, scratch, upcast

MOST_PAIRED = 200  # classes up to which numbers of pairs of classes are kept; ours
FEW = 64  # columns up to which a product is twice as fast with its few rows first; measured


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
    def _flat(self) -> Float64[Tensor, "R D"]:
        return self.bases.mT

    @cached_property
    def _start(self) -> Float64[Tensor, " R"]:
        """Less what rounding took from the centre, along the columns."""
        return -(self.span.centre_error @ self.bases)

    def project(
        self, H: Float[Tensor, "B D"], room: Float64[Tensor, "B R"] | None = None
    ) -> Float64[Tensor, "B R"]:
        """Coordinates of the centred rows of `H`, upcast tile by tile; in that room, if there is any."""
        span, flat = self.span, self._flat
        few = len(flat) <= FEW
        if few and (loops := loops_for([H])):
            room = flat.new_empty(len(H), len(flat)) if room is None else room
            return loops.project(H, span.centre, flat, room.copy_(self._start))
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
        z += -((span.centre + span.centre_error) @ self.bases) if span.central else self._start
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
