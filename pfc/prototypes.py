"""The nearest of several points, decided to the last digit of the data; ties go to the lowest class.

With r = z - p_o about an anchor p_o and q_j = p_j - p_o, a squared distance less that to the anchor is
|q_j|^2 - 2 <r, q_j>: one product of matrices. One anchor serves all samples unless points nearly
coincide; then each sample's is its own class mean, about which near points keep their digits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
CROWDED = 0.01  # of the largest norm: a distance below it needs anchors; ours
ROUNDING = 16 * EPS  # of a squared distance about the origin, over its terms; ours
ROWS = 2**10  # of a matrix of distances between points at once; ours


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Class means to the nearest of which a sample is assigned.

    Args:
        points: Their coordinates.
        floor: How far rounding may have moved a point.
    """

    points: Float64[Tensor, "P R"]
    floor: Float64[Tensor, ""]

    @cached_property
    def largest(self) -> Float64[Tensor, ""]:
        """The largest norm of the points."""
        return self.points.norm(dim=1).max()

    @cached_property
    def crowded(self) -> bool:
        """Whether two points differ, but by less than rounding about the origin might hide."""
        p, squares = self.points, self.points.square().sum(1)
        if not p.shape[1]:
            return False
        same = torch.unique(p, dim=0, return_inverse=True)[1]
        for rows in torch.arange(len(p), device=p.device).split(ROWS):
            apart = squares[rows, None] + squares - 2 * p[rows] @ p.mT
            if ((apart < (CROWDED * self.largest) ** 2) & (same[rows, None] != same)).any():
                return True
        return False

    def nearest(self, z: Float64[Tensor, "B R"], own: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """The nearest point of each sample; `own` is that of its class, near which it may be."""
        for _ in range(2 if self.crowded else 1):  # about the sample's class, then about what is found
            found = torch.empty_like(own)
            for rows, k in anchored(own, crowded=self.crowded):
                r, q = (about(M, self.points, k) for M in (z[rows], self.points))
                found[rows] = self._lowest(r, q)
            own = found
        return own

    def _lowest(self, r: Float64[Tensor, "b R"], q: Float64[Tensor, "P R"]) -> Int64[Tensor, " b"]:
        """The lowest of those points that are nearest to within rounding."""
        gap = torch.addmm(q.square().sum(1), r, q.mT, alpha=-2)
        least, square = gap.amin(1), r.square().sum(1)
        tie = self.tie((least + square).clamp(min=0).sqrt()) + self.rounding(square.sqrt())
        return (gap <= (least + tie)[:, None]).byte().argmax(1)

    def tie(self, distance: Float64[Tensor, "*B"]) -> Float64[Tensor, "*B"]:
        """How far moved points may move the difference of two squared distances of this size."""
        return 8 * self.floor * (distance + self.floor)

    def rounding(self, size: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """What computing rounds in this difference, for samples of that norm; nothing about anchors."""
        return (0.0 if self.crowded else ROUNDING * self.largest) * (self.largest + size)


def anchored(
    own: Int64[Tensor, " B"], *, crowded: bool
) -> Iterator[tuple[Int64[Tensor, " b"] | slice, Int64[Tensor, ""] | None]]:
    """Samples, as rows, and the point about which they are seen; `None` for the origin."""
    if not crowded:
        yield slice(None), None
        return
    for k in own.unique():
        yield (own == k).nonzero()[:, 0], k


def about(
    M: Float64[Tensor, "N R"], points: Float64[Tensor, "P R"], k: Int64[Tensor, ""] | None
) -> Float64[Tensor, "N R"]:
    """Rows about a point, or about the origin."""
    return M if k is None else M - points[k]
