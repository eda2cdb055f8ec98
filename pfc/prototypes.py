"""The nearest of several points, decided to the last digit of the data; ties go to the lowest class.

With r = z - p_o about an anchor p_o and q_j = p_j - p_o, a squared distance less that to the anchor is
|q_j|^2 - 2 <r, q_j>: one product of matrices. The origin serves all samples; where points nearly
coincide, those that it leaves undecided are seen again about a point near them, to all their digits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
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
    def _squares(self) -> Float64[Tensor, " P"]:
        """Squared norms of the points."""
        return self.points.square().sum(1)

    @cached_property
    def crowded(self) -> bool:
        """Whether two points differ, but by so little that rounding about the origin might hide it."""
        p, squares = self.points, self._squares
        if not p.shape[1]:
            return False
        same = torch.unique(p, dim=0, return_inverse=True)[1]
        for rows in torch.arange(len(p), device=p.device).split(ROWS):
            apart = squares[rows, None] + squares - 2 * p[rows] @ p.mT
            if ((apart < (CROWDED * self.largest) ** 2) & (same[rows, None] != same)).any():
                return True
        return False

    def nearest(self, z: Float64[Tensor, "B R"]) -> Int64[Tensor, " B"]:
        """The nearest point of each sample."""
        near = self._near(z, self.points, self._squares, self.rounding(z))
        found = near.argmax(1)
        if self.crowded:
            for rows, k in by_class(found, near.sum(1) > 1):
                r, q = z[rows] - self.points[k], self.points - self.points[k]
                found[rows] = self._near(r, q, q.square().sum(1)).argmax(1)
        return found

    def _near(
        self,
        r: Float64[Tensor, "b R"],
        q: Float64[Tensor, "P R"],
        squares: Float64[Tensor, " P"],
        rounding: Tensor | float = 0.0,
    ) -> UInt8[Tensor, "b P"]:
        """Which points are the nearest to within rounding, as 1."""
        gap = torch.addmm(squares, r, q.mT, alpha=-2)
        least = gap.amin(1)
        tie = self.tie((least + r.square().sum(1)).clamp(min=0).sqrt()) + rounding
        return (gap <= (least + tie)[:, None]).byte()

    def tie(self, distance: Float64[Tensor, "*B"]) -> Float64[Tensor, "*B"]:
        """How far moved points may move the difference of two squared distances of this size."""
        return 8 * self.floor * (distance + self.floor)

    def rounding(self, z: Float64[Tensor, "B R"]) -> Float64[Tensor, " B"]:
        """What computing about the origin rounds in this difference."""
        return ROUNDING * self.largest * (self.largest + z.norm(dim=1))


def by_class(
    classes: Int64[Tensor, " B"], among: Bool[Tensor, " B"]
) -> Iterator[tuple[Int64[Tensor, " b"], Int64[Tensor, ""]]]:
    """The rows of each class, among some rows; they wait for the device."""
    for k in classes[among].unique():
        yield ((classes == k) & among).nonzero()[:, 0], k
