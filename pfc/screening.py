"""Which samples and classes a straight line must be solved for: seen coarsely, then exactly.

Of most pairs lower bounds of the three coefficients, in single precision and with all that this may
round taken off, say that the sample stays nearer to its own class. Where the nearest class at an end
holds a sample to a known time, only the rest of the line is asked about. What is left is computed in
double precision about the own class, to all digits.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.crossings import SURE, Coefficients, Pairs, beyond, leaves, may_fall
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import on_processor, processor
from pfc.pairs import ROUNDING
from pfc.prototypes import Prototypes
from pfc.tiles import coarse, inner, rows_at_once

WIDER = 2.0**-20  # by which the part of the line that is asked about is stretched, for single precision
LEAST = 1e-30  # of a coefficient over the square of the unit: below it single precision ends


@dataclass(frozen=True, eq=False)
class Form:
    """A coefficient as one product of what is known of samples and of classes.

    Args:
        classes: What samples are multiplied with, less what that may round, and a 1 for the own class.
        sizes: What it may round of each class: of all samples, and times the samples' norms.
    """

    classes: Float[Tensor, "K C"]
    sizes: Float[Tensor, "K M"]

    @classmethod
    def of(
        cls,
        factors: Float64[Tensor, "K c"],
        constant: Float64[Tensor, " K"],
        *sizes: Float64[Tensor, " K"],
    ) -> "Form":
        """From factors of the samples' coordinates, what is added, and the sizes of all that."""
        share = (factors.shape[1] + 16) * torch.finfo(coarse(constant).dtype).eps
        off, one = share * torch.stack(sizes, 1), torch.ones_like(constant)[:, None]
        return cls(coarse(torch.cat([factors, constant[:, None], -off, one], 1)), coarse(off))

    def bounds(
        self, z: Float[Tensor, "B c"], norms: Float[Tensor, " B"], own: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B K"]:
        """Lower bounds of the coefficient of each class less that of the own."""
        one = z.new_ones(len(z), 1)
        off = torch.cat([one, norms[:, None]], 1)
        v = torch.cat([z, one, off], 1)
        most = (v * self.classes[own, :-1]).sum(1) + 2 * (off * self.sizes[own]).sum(1) + LEAST
        return inner(torch.cat([v, -most[:, None]], 1), self.classes)


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
    def norms(self) -> tuple[Float64[Tensor, " K"], Float64[Tensor, " K"]]:
        """Of the points in both bases."""
        return self.a.norm(dim=1), self.b.norm(dim=1)

    @cached_property
    def forms(self) -> tuple[Form, Form, Form, Form]:
        """The first coefficient, the second's two parts, and the third, over the square of the unit."""
        (A, B), a, b = self.axes, self.a / self.unit, self.b / self.unit
        p, q = (norms / self.unit for norms in self.norms)
        return (
            Form.of(-2 * a[:, A], a[:, A].square().sum(1), p.square(), 2 * p),
            Form.of(-b[:, B], (a[:, B] * b[:, B]).sum(1), p * q, q),
            Form.of(-a[:, A], 0 * p, 0 * p, p),
            Form.of(-2 * b[:, B], b[:, B].square().sum(1), q.square(), 2 * q),
        )

    @cached_property
    def coarse_last(self) -> tuple[Float[Tensor, "K S"], Float[Tensor, " K"]]:
        """The last end's points over the unit, and their norms, in single precision."""
        return coarse(self.b / self.unit), coarse(self.norms[1] / self.unit)


@dataclass(frozen=True, eq=False)
class Start:
    """Samples at the first end, in both bases side by side; those of a class one after the other.

    Args:
        x: The samples.
        own: Class of each.
        unit: That of the ends.
        products: What ends have in common, by name.
    """

    x: Float64[Tensor, "B S"]
    own: Int64[Tensor, " B"]
    unit: Float64[Tensor, ""]
    products: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def norms(self) -> Float64[Tensor, " B"]:
        """The samples' norms."""
        return self.x.norm(dim=1)

    def bounds(self, name: str, form: Form, axes: slice) -> Float[Tensor, "B K"]:
        """Lower bounds of a form of some axes, computed once under this name."""
        if name not in self.products:
            norms = coarse(self.norms / self.unit)
            self.products[name] = form.bounds(coarse(self.x[:, axes] / self.unit), norms, self.own)
        return self.products[name]


@dataclass(frozen=True, eq=False)
class Tile:
    """Samples on their lines to an end.

    Args:
        ends: The class points.
        start: The samples at the first end.
        y: At the last end; `None` for those that lie in their class points there.
        nearest: That of the nearest point at the first and at the last end.
        frame: Whether the last end's points are other than the last layer's.
    """

    ends: Ends
    start: Start
    y: Float64[Tensor, "B S"] | None
    nearest: tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]]
    frame: bool = False

    @property
    def own(self) -> Int64[Tensor, " B"]:
        """Class of each sample."""
        return self.start.own

    @cached_property
    def last_norms(self) -> Float64[Tensor, " B"]:
        """The samples' norms at the last end."""
        return self.ends.norms[1][self.own] if self.y is None else self.y.norm(dim=1)

    def pairs(self) -> Pairs:
        """The pairs of samples and classes that may matter, and their coefficients."""
        known = [self._exact(*self._wrong(places)) for places in self.nearest]
        e, s = (torch.full_like(self.start.norms[:, None], float(t)) for t in (0, 1))
        e[known[0].sample, 0] = leaves(known[0].coefficients, known[0].room)
        s[known[1].sample, 0] = 1 - leaves(known[1].coefficients.flip(0), known[1].room)
        rest = (e < s).nonzero()[:, 0].split(rows_at_once(len(self.ends.a), e))
        i, j = zip(*(self._open(rows, e[rows], s[rows]) for rows in rest), strict=True)
        return Pairs.of(self._exact(torch.cat(i), torch.cat(j)), *known)

    def _wrong(self, places: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """The samples that are in another place than their own, and that place."""
        rows = (places != self.own).nonzero()[:, 0]
        return rows, places[rows]

    def _open(
        self, rows: Int64[Tensor, " b"], e: Float64[Tensor, "b 1"], s: Float64[Tensor, "b 1"]
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Pairs of some rows that the coarse bounds leave open between their times e and s."""
        if not len(rows):
            return rows, rows
        bounds = self._bounds(rows)
        K, single = bounds.first.shape[1], bounds.first.dtype
        e = (e * (1 - WIDER)).to(single)  # the time that is asked from, as single precision has it
        u = ((1 - s) / (1 - e.double()) * (1 - WIDER)).to(single)  # the part that is left out at the end
        if on_processor(rows.device, len(rows) * K):
            flat = processor.screen(*bounds, e[:, 0], u[:, 0], self.own[rows], SURE)
        else:
            flat = _undecided(bounds, e, u, self.own[rows])
        return rows[flat // K], flat % K

    def _bounds(self, rows: Int64[Tensor, " b"]) -> "_Bounds":
        """Lower bounds of the coefficients of all classes, over the square of the unit."""
        (A, B), (first, over, back, last) = self.ends.axes, self.ends.forms
        own, each = self.own[rows], None
        if self.y is None:  # samples of a class lie in one point
            if own.device.type in SYNCHRONOUS_DEVICES:
                own, each = own.unique_consecutive(return_inverse=True)
            y, q = (part[own] for part in self.ends.coarse_last)
        else:
            y, q = (coarse(part[rows] / self.ends.unit) for part in (self.y, self.last_norms))
        return _Bounds(
            first=self.start.bounds("first", first, A),
            over=self.start.bounds("frame" if self.frame else "means", over, B),
            rows=rows,
            back=back.bounds(y[:, A], q, own),
            last=last.bounds(y[:, B], q, own),
            each=each,
        )

    def _exact(self, i: Int64[Tensor, " n"], j: Int64[Tensor, " n"]) -> Pairs:
        """The coefficients of some pairs, and what decides their ties."""
        x, y, (a, b) = self.start.x, self.y, (self.ends.a, self.ends.b)
        if on_processor(x.device, len(i) * x.shape[1]):
            k = self.own[i]
            y, l = (b, k) if y is None else (y, i)
            found = processor.relative(x, y, a, b, torch.stack([i, l, k, j]), self.ends.axes[0].stop)
        else:
            height = rows_at_once(2 * x.shape[1], x)
            parts = zip(i.split(height), j.split(height), strict=True)
            found = torch.cat([self._about_own(*part) for part in parts], 1)
        return Pairs(
            coefficients=found[:3],
            sample=i,
            lower=j < self.own[i],
            distance=found[3:].sqrt(),
            rounding=self._rounding(i),
            floors=torch.stack([self.ends.first.floor, self.ends.last.floor]),
        )

    def _about_own(self, i: Int64[Tensor, " n"], j: Int64[Tensor, " n"]) -> Float64[Tensor, "5 n"]:
        """Coefficients from residuals and from the classes' differences; the squared residuals."""
        (A, B), k, a, b = self.ends.axes, self.own[i], self.ends.a, self.ends.b
        x, p, q = self.start.x[i] - a[k], a[j] - a[k], (b[j] - b[k])[:, B]
        y = torch.zeros_like(x) if self.y is None else self.y[i] - b[k]
        first = (p[:, A] * (p[:, A] - 2 * x[:, A])).sum(1)
        across = (q * (p[:, B] - x[:, B])).sum(1) - (p[:, A] * y[:, A]).sum(1)
        last = (q * (q - 2 * y[:, B])).sum(1)
        return torch.stack([first, across, last, x[:, A].square().sum(1), y[:, B].square().sum(1)])

    def _rounding(self, i: Int64[Tensor, " n"]) -> Float64[Tensor, "3 n"]:
        """Up to where a coefficient counts as none; about the own class, where points are crowded, 0."""
        A, B, p, q = self.ends.first, self.ends.last, self.start.norms[i], self.last_norms[i]
        if A.crowded or B.crowded:
            return p.new_zeros(3, len(i))
        a, b = A.largest, B.largest
        sizes = 2 * a * (a + p), a * (b + q) + b * (a + p), 2 * b * (b + q)
        return ROUNDING / 2 * torch.stack(sizes)


class _Bounds(NamedTuple):
    """Lower bounds of coefficients: the first, the two parts of the second, the third.

    Args:
        rows: Rows of the first two that are asked about.
        each: Row of the last two for each of these; `None` if they have the same rows.
    """

    first: Float[Tensor, "B K"]
    over: Float[Tensor, "B K"]
    rows: Int64[Tensor, " b"]
    back: Float[Tensor, "P K"]
    last: Float[Tensor, "P K"]
    each: Int64[Tensor, " b"] | None

    @property
    def coefficients(self) -> Coefficients:
        """Those of the rows that are asked about."""
        ends = self.back, self.last
        back, last = ends if self.each is None else (part[self.each] for part in ends)
        return self.first[self.rows], self.over[self.rows].add_(back), last


def _undecided(
    bounds: _Bounds, e: Float[Tensor, "b 1"], u: Float[Tensor, "b 1"], own: Int64[Tensor, " b"]
) -> Int64[Tensor, " n"]:
    """Numbers of the pairs that lower bounds leave open beyond e and before the last part u."""
    c = bounds.coefficients
    c = beyond(c, e) if bool((e > 0).any()) else c
    c = beyond(c[::-1], u)[::-1] if bool((u > 0).any()) else c
    asked = torch.minimum(torch.minimum(c[0], c[1]), c[2]) > 0
    asked = asked.logical_not_().scatter_(1, own[:, None], value=False)
    flat = asked.flatten().nonzero()[:, 0]
    return flat[may_fall(*(each.flatten()[flat] for each in c))]
