"""Which samples and classes a straight line must be solved for: seen coarsely, then exactly.

Of most pairs lower bounds of the three coefficients, in single precision and with all that this may
round taken off, say that the sample stays nearer to its own class. Where the nearest class at an end
holds a sample to a known time, only the rest of the line is asked about. What is left is computed in
double precision about the own class, to all digits.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.crossings import Coefficients, Pairs, leaves, may_fall, part
from pfc.pairs import ROUNDING
from pfc.prototypes import Prototypes
from pfc.tiles import rows_at_once

WIDER = 2.0**-20  # by which the part of the line that is asked about is stretched, for single precision


@dataclass(frozen=True, eq=False)
class Ends:
    """Class points at the two ends of a line, each in the bases of both ends side by side.

    Args:
        first: At the first layer, in its basis.
        last: At the last layer, or what stands in for it, in its basis.
        a: Those of the first end in both bases.
        b: Those of the last end in both bases.
        unit: A power of two near the largest of them, over which single precision has room.
    """

    first: Prototypes
    last: Prototypes
    a: Float64[Tensor, "K S"]
    b: Float64[Tensor, "K S"]
    unit: Float64[Tensor, ""]

    @property
    def axes(self) -> tuple[slice, slice]:
        """Which coordinates are of the first basis, and which of the last."""
        r = self.first.points.shape[1]
        return slice(None, r), slice(r, None)

    @cached_property
    def sizes(self) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
        """The largest norms at both ends."""
        return self.a.norm(dim=1).max(), self.b.norm(dim=1).max()

    @cached_property
    def coarse(self) -> tuple[Float[Tensor, "K S"], Float[Tensor, "K S"]]:
        """The points of both ends over the unit."""
        return _coarse(self.a / self.unit), _coarse(self.b / self.unit)

    @cached_property
    def constants(self) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, " K"]]:
        """What a class has in the coefficients by itself."""
        A, B = self.axes
        a, b = self.a / self.unit, self.b / self.unit
        pairs = (a[:, A], a[:, A]), (a[:, B], b[:, B]), (b[:, B], b[:, B])
        first, across, last = (_coarse((p * q).sum(1)) for p, q in pairs)
        return first, across, last


@dataclass(frozen=True, eq=False)
class Tile:
    """Samples on their lines, in both bases side by side; those of a class one after the other.

    Args:
        x: At the first end.
        y: At the last end; `None` for those that lie in their class points there.
        own: Class of each.
        nearest: That of the nearest point at the first and at the last end.
        products: With the points of an end, for all ends that have them in common.
    """

    x: Float64[Tensor, "B S"]
    y: Float64[Tensor, "B S"] | None
    own: Int64[Tensor, " B"]
    nearest: tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]]
    products: dict[str, Tensor]

    def product(self, name: str, points: Float[Tensor, "K R"], unit: Tensor, axes: slice) -> Tensor:
        """Inner products of the first end with points, computed once under this name."""
        if name not in self.products:
            self.products[name] = _times(_coarse(self.x[:, axes] / unit), points[:, axes])
        return self.products[name]

    def last(self, ends: Ends) -> Float64[Tensor, "B S"]:
        """The samples at the last end."""
        return ends.b[self.own] if self.y is None else self.y

    def pairs(self, ends: Ends, name: str) -> Pairs:
        """The pairs of samples and classes that may matter, and their coefficients."""
        known = [self._exact(ends, *self._wrong(places)) for places in self.nearest]
        e, s = (self.x.new_full((len(self.x),), float(t)) for t in (0, 1))
        e[known[0].sample] = leaves(known[0].coefficients, known[0].room)
        s[known[1].sample] = 1 - leaves(known[1].coefficients.flip(0), known[1].room)
        rest = (e < s).nonzero()[:, 0]
        i, j = self._open(ends, name, rest, e[rest, None], s[rest, None])
        return Pairs.of(self._exact(ends, i, j), *known)

    def _wrong(self, places: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        rows = (places != self.own).nonzero()[:, 0]
        return rows, places[rows]

    def _open(
        self,
        ends: Ends,
        name: str,
        rest: Int64[Tensor, " b"],
        e: Float64[Tensor, "b 1"],
        s: Float64[Tensor, "b 1"],
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Pairs of the rows in `rest` that the coarse bounds leave open between their times e and s."""
        if not len(rest):
            return rest, rest
        c = self._bounds(ends, name, rest)
        if bool((e > 0).any() | (s < 1).any()):
            e = e * (1 - WIDER)
            u = ((s - e) / (1 - e) * (1 + WIDER)).clamp(max=1)
            c = part(c, e.to(c[0]), u.to(c[0]))
        asked = torch.minimum(torch.minimum(c[0], c[1]), c[2]) > 0
        asked = asked.logical_not_().scatter_(1, self.own[rest, None], value=False)
        flat = asked.flatten().nonzero()[:, 0]
        flat = flat[may_fall(*(each.flatten()[flat] for each in c))]
        return rest[flat // asked.shape[1]], flat % asked.shape[1]

    def _bounds(self, ends: Ends, name: str, rest: Int64[Tensor, " b"]) -> Coefficients:
        """Lower bounds of the coefficients of all classes, over the square of the unit."""
        (A, B), (a, b) = ends.axes, ends.coarse
        x, y, own = self.x[rest], self.last(ends)[rest], self.own[rest]
        some = slice(None) if len(rest) == len(self.x) else rest
        first = self.product("first", a, ends.unit, A)[some]
        over = self.product(name, b, ends.unit, B)[some]
        if self.y is None and y.device.type == "cpu":
            k, each = own.unique_consecutive(return_inverse=True)
            z = b[k]
        else:
            z, each = _coarse(y / ends.unit), slice(None)
        back, last = _times(z[:, A], a[:, A])[each], _times(z[:, B], b[:, B])[each]
        zero, one, two = ends.constants
        c = zero - 2 * first, (one - over).sub_(back), two - 2 * last
        for f, off in zip(c, self._rounded(ends, x, y, c[0].dtype), strict=True):
            f.sub_(f.gather(1, own[:, None]) + off[:, None])
        return c

    @staticmethod
    def _rounded(ends: Ends, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What coarse sums of products may be off at most, each term rounded as often as there are."""
        a, b = (size / ends.unit for size in ends.sizes)
        x, y = (H.norm(dim=1) / ends.unit for H in (x, y))
        most = 2 * torch.finfo(dtype).eps * (ends.a.shape[1] + 16)
        sizes = a * (a + 2 * x), a * (b + y) + b * (a + x), b * (b + 2 * y)
        first, across, last = ((most * size).to(dtype) + 1e-30 for size in sizes)
        return first, across, last

    def _exact(self, ends: Ends, i: Int64[Tensor, " n"], j: Int64[Tensor, " n"]) -> Pairs:
        """The coefficients of some pairs about the own class, and what decides their ties."""
        y = self.last(ends)
        x, y = self.x - ends.a[self.own], y - ends.b[self.own]
        height = rows_at_once(4 * x.shape[1], x)
        parts = [
            _about_own(ends, x, y, self.own, *p)
            for p in zip(i.split(height), j.split(height), strict=True)
        ]
        (A, B), own = ends.axes, self.own[i]
        distance = torch.stack([x[:, A].norm(dim=1), y[:, B].norm(dim=1)])[:, i]
        return Pairs(
            coefficients=torch.cat(parts, 1),
            sample=i,
            lower=j < own,
            distance=distance,
            rounding=self._rounding(ends)[:, i],
            floors=torch.stack([ends.first.floor, ends.last.floor]),
        )

    def _rounding(self, ends: Ends) -> Float64[Tensor, "3 B"]:
        """Up to where a coefficient counts as none; about the own class, where points are crowded, 0."""
        x, y = self.x, self.last(ends)
        if ends.first.crowded or ends.last.crowded:
            return x.new_zeros(3, len(x))
        a, b = ends.first.largest, ends.last.largest
        across = a * (b + y.norm(dim=1)) + b * (a + x.norm(dim=1))
        return torch.stack([
            ends.first.rounding(x),
            ROUNDING / 2 * across,
            ends.last.rounding(y),
        ])


def _about_own(
    ends: Ends,
    x: Float64[Tensor, "B S"],
    y: Float64[Tensor, "B S"],
    own: Int64[Tensor, " B"],
    i: Int64[Tensor, " n"],
    j: Int64[Tensor, " n"],
) -> Float64[Tensor, "3 n"]:
    """Coefficients of pairs from the samples' residuals and from the classes' differences."""
    A, B = ends.axes
    p, q = ends.a[j] - ends.a[own[i]], ends.b[j] - ends.b[own[i]]
    x, y = x[i], y[i]
    first = (p[:, A] * (p[:, A] - 2 * x[:, A])).sum(1)
    across = (q[:, B] * (p[:, B] - x[:, B])).sum(1) - (p[:, A] * y[:, A]).sum(1)
    last = (q[:, B] * (q[:, B] - 2 * y[:, B])).sum(1)
    return torch.stack([first, across, last])


def _coarse(H: Float64[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """In single precision on the processor, where it is twice as fast."""
    return H.float() if H.device.type == "cpu" else H


def _times(A: Float[Tensor, "a R"], B: Float[Tensor, "b R"]) -> Float[Tensor, "a b"]:
    """Inner products of rows; by numpy, as torch can be told to compute them more coarsely."""
    if A.device.type != "cpu":
        return A @ B.mT
    return torch.from_numpy(np.matmul(A.numpy(), B.numpy().T))
