"""The nearest of several points, decided to the last digit of the data; ties go to the lowest class.

With r = z - p_o about an anchor p_o and q_j = p_j - p_o, a squared distance less that to the anchor is
|q_j|^2 - 2 <r, q_j>: one product of matrices. The origin serves all samples; where points nearly
coincide, those that it leaves undecided are seen again about a point near them, to all their digits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pfc.bounds import Bounds, Form
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.pairs import ROUNDING, blocks
from pfc.tiles import rows_at_once

CROWDED = 0.01  # of the largest norm: a distance below it needs anchors; ours

MANY = 2**15  # numbers of points from which single precision, and a second look, cost less; ours


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
        """Whether two points differ, but by so little that rounding about the origin might hide it."""
        p, squares = self.points, self.points.square().sum(1)
        return any(
            bool((p[i] != p[j]).any(1).any())
            for rows, rest in blocks(p)
            for i, j in _near_pairs(p, squares, rows, rest, (CROWDED * self.largest) ** 2)
        )

    def nearest(self, z: Float64[Tensor, "B R"]) -> Int64[Tensor, " B"]:
        """The nearest point of each sample."""
        height = rows_at_once(len(self.points), z)
        if self.points.numel() < MANY or z.device.type not in SYNCHRONOUS_DEVICES:
            return torch.cat([self._exactly(rows) for rows in z.split(height)])
        parts = [
            self.likely(rows, self._form.bounds(rows, rows.norm(dim=1))) for rows in z.split(height)
        ]
        return self.settled(z, *map(torch.cat, zip(*parts, strict=True)))

    @cached_property
    def _form(self) -> Form:
        return Form.gaps(self.points)

    def likely(
        self, z: Float64[Tensor, "b R"], gaps: Bounds
    ) -> tuple[Int64[Tensor, " b"], Bool[Tensor, " b"]]:
        """The nearest point by bounds of the gaps, and whether another may be as near."""
        (found, others), unit, size = gaps.least(), gaps.form.unit, z.norm(dim=1)
        most = gaps.above(found)
        distance = unit * (most + (size / unit).square()).clamp(min=0).sqrt()
        return found, gaps.reached(others, most, self.tie(distance) + self.rounding(size))

    def settled(
        self, z: Float64[Tensor, "B R"], found: Int64[Tensor, " B"], unsure: Bool[Tensor, " B"]
    ) -> Int64[Tensor, " B"]:
        """The nearest point, of samples of which it is unsure by double precision."""
        for few in unsure.nonzero()[:, 0].split(rows_at_once(len(self.points), z)):
            found[few] = self._exactly(z[few])
        return found

    def _exactly(self, z: Float64[Tensor, "b R"]) -> Int64[Tensor, " b"]:
        """That of few samples in double precision, and where points are crowded to all digits."""
        size = z.norm(dim=1)
        near = self._near(_gaps(z, self.points), size, self.rounding(size))
        found = _first(near)
        if self.crowded:
            for rows, k in by_class(found, near.sum(0) > 1):
                r, q = z[rows] - self.points[k], self.points - self.points[k]
                found[rows] = _first(self._near(_gaps(r, q), r.norm(dim=1)))
        return found

    def _near(
        self, gaps: Float64[Tensor, "P b"], size: Float64[Tensor, " b"], rounding: Tensor | float = 0.0
    ) -> Bool[Tensor, "P b"]:
        """Which points are the nearest to within rounding."""
        least = gaps.amin(0)
        tie = self.tie((least + size.square()).clamp(min=0).sqrt()) + rounding
        return gaps <= least + tie

    def tie(self, distance: Float64[Tensor, "*B"]) -> Float64[Tensor, "*B"]:
        """How far moved points may move the difference of two squared distances of this size."""
        return 8 * self.floor * (distance + self.floor)

    def rounding(self, size: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """What computing about the origin rounds in this difference, of samples of these norms."""
        return ROUNDING * self.largest * (self.largest + size)


def _gaps(z: Float64[Tensor, "b R"], points: Float64[Tensor, "P R"]) -> Float64[Tensor, "P b"]:
    """Squared distances of samples to points, less those to the origin; a row a point, as is fast."""
    return torch.addmm(points.square().sum(1)[:, None], points, z.mT, alpha=-2)


def _first(near: Bool[Tensor, "P b"]) -> Int64[Tensor, " b"]:
    """The first point that is near, 0 where none is; by the largest of numbers, as argmax is slow."""
    P = len(near)
    numbers = torch.arange(P, 0, -1, dtype=torch.uint8 if P < 256 else torch.int32, device=near.device)
    largest = (near * numbers[:, None]).amax(0)
    return P - largest.masked_fill_(largest == 0, P).long()


def _near_pairs(
    p: Float64[Tensor, "P R"], squares: Float64[Tensor, " P"], rows: slice, rest: slice, within: Tensor
) -> Iterator[tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]]:
    """Points among some rows and others after them whose squared distance may be less than this."""
    apart = torch.addmm(squares[rest], p[rows], p[rest].mT, alpha=-2) + squares[rows, None]
    i, j = (apart < within).triu_(1).nonzero().unbind(1)
    for part in torch.arange(len(i), device=p.device).split(len(p)):
        yield i[part] + rows.start, j[part] + rows.start


def by_class(
    classes: Int64[Tensor, " B"], among: Bool[Tensor, " B"]
) -> Iterator[tuple[Int64[Tensor, " b"], Int64[Tensor, ""]]]:
    """The rows of each class, among some rows; they wait for the device."""
    rows = among.nonzero()[:, 0]
    rows = rows[classes[rows].argsort(stable=True)]
    known, count = classes[rows].unique_consecutive(return_counts=True)
    yield from zip(rows.split(count.tolist()), known, strict=True)
