"""Which samples and classes a straight line must be solved for: seen coarsely, then exactly.

Of most pairs lower bounds of the three coefficients, in single precision and with all that this may
round taken off, say that the sample stays nearer to its own class. Where the nearest class at an end
holds a sample to a known time, only the rest of the line is asked about. What is left is computed in
double precision about the own class, to all digits.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.bounds import Bounds, Form
from pfc.crossings import SURE, Coefficients, Pairs, beyond, leaves, may_fall
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.fused import on_processor, processor
from pfc.prototypes import Prototypes
from pfc.tiles import rows_at_once

PAIRS = 2**20  # of samples and classes that are seen at once; ours
FEW = 3  # times what is worth a compiler in pass one, for what is seen of a batch or of several; ours
WIDER = 2.0**-20  # by which the part of the line that is asked about is stretched, for single precision


@dataclass(frozen=True, eq=False)
class Ends:
    """Class points at the two ends of a line, each in the bases of both ends side by side.

    Args:
        first: At the first layer, in its basis.
        last: At the last layer, or what stands in for it, in its basis.
        a: Those of the first end in both bases.
        b: Those of the last end in both bases.
        first_gaps: Squared distances from those of the first end, less that from the origin.
    """

    first: Prototypes
    last: Prototypes
    a: Float64[Tensor, "K S"]
    b: Float64[Tensor, "K S"]
    first_gaps: Form

    @property
    def axes(self) -> tuple[slice, slice]:
        """Which coordinates are of the first basis, and which of the last."""
        r = self.first.points.shape[1]
        return slice(None, r), slice(r, None)

    @cached_property
    def floors(self) -> Float64[Tensor, "2"]:
        """How far rounding may have moved the points of both."""
        return torch.stack([self.first.floor, self.last.floor])

    @cached_property
    def largest(self) -> Float64[Tensor, "2"]:
        """The largest norms of both, by which products round; 0 where these are about the own class."""
        sizes = torch.stack([self.first.largest, self.last.largest])
        return 0 * sizes if self.first.crowded or self.last.crowded else sizes

    @cached_property
    def forms(self) -> tuple[Form, Form, Form, Form]:
        """Of the first coefficient, of the two parts of the second, of the third: what is of a class."""
        (A, B), a, b, unit = self.axes, self.a, self.b, self.first_gaps.unit
        p, q = a.norm(dim=1), b.norm(dim=1)
        return (
            self.first_gaps,
            Form.of(-b[:, B], (a[:, B] * b[:, B]).sum(1), (p * q, q), unit),
            Form.of(-a[:, A], 0 * p, (0 * p, p), unit),
            Form.gaps(self.last.points, unit),
        )

    def gaps(self, start: "Places", stop: "Places") -> tuple[Bounds, Bounds]:
        """Bounds of squared distances from all class points at both ends, less that from the origin."""
        (A, B), (first, *_, last) = self.axes, self.forms
        return start.bounds(first, A), stop.bounds(last, B)

    @cached_property
    def _points(self) -> "Places":
        return Places(self.b, torch.arange(len(self.b), device=self.b.device))

    def collapsed(self, own: Int64[Tensor, " B"]) -> "Places":
        """Samples of these classes, in ascending order, in their class points at the last end."""
        if len(self.b) ** 2 <= PAIRS:  # then what is of pairs of classes is computed once
            return replace(self._points, each=own)
        if own.device.type not in SYNCHRONOUS_DEVICES:
            return Places(self.b[own], own)
        own, each = own.unique_consecutive(return_inverse=True)
        return Places(self.b[own], own, each)


@dataclass(frozen=True, eq=False)
class Places:
    """Where samples are at an end of their lines, in both bases side by side.

    Args:
        z: The places.
        own: The class of the samples in each.
        each: The place of each sample; `None` if every sample has its own.
        seen: Bounds of forms that were asked for.
        against: These against those of the own classes.
    """

    z: Float64[Tensor, "P S"]
    own: Int64[Tensor, " P"]
    each: Int64[Tensor, " B"] | None = None
    seen: dict[Form, Bounds] = field(default_factory=dict)
    against: dict[Form, "Above"] = field(default_factory=dict)

    @cached_property
    def norms(self) -> Float64[Tensor, " P"]:
        """The norms of the places."""
        return self.z.norm(dim=1)

    def of(self, i: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The places of some samples."""
        return i if self.each is None else self.each[i]

    def bounds(self, form: Form, axes: slice) -> Bounds:
        """Bounds of a form of some axes."""
        if form not in self.seen:
            self.seen[form] = form.bounds(self.z[:, axes], self.norms)
        return self.seen[form]

    def above(self, form: Form, axes: slice) -> "Above":
        """These bounds against those of the own classes."""
        if form not in self.against:
            bounds = self.bounds(form, axes)
            self.against[form] = Above(bounds.values, bounds.above(self.own))
        return self.against[form]


class Above(NamedTuple):
    """Lower bounds of what coefficients of each class are above that of the own.

    Args:
        values: Lower bounds of coefficients.
        own: What that of the own class is at most.
    """

    values: Float[Tensor, "P K"]
    own: Float[Tensor, " P"]

    def differences(self) -> Float[Tensor, "P K"]:
        """The bounds."""
        return self.values - self.own[:, None]


@dataclass(frozen=True, eq=False)
class Tile:
    """Samples on their lines to an end; those of a class one after the other.

    Args:
        ends: The class points.
        start: The samples at the first end, each in a place of its own.
        stop: The samples at the last end.
        nearest: The nearest points at both ends, as far as they are known: any other class may stand.
    """

    ends: Ends
    start: Places
    stop: Places
    nearest: tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]]

    @property
    def own(self) -> Int64[Tensor, " B"]:
        """Class of each sample."""
        return self.start.own

    def pairs(self) -> Pairs:
        """The pairs of samples and classes that may matter, and their coefficients."""
        known = [self._exact(*self._wrong(places)) for places in self.nearest]
        e, s = (torch.full_like(self.start.norms, float(t)) for t in (0, 1))
        e[known[0].sample] = leaves(known[0].coefficients, known[0].room)
        s[known[1].sample] = 1 - leaves(known[1].coefficients.flip(0), known[1].room)
        return Pairs.of(self._exact(*self._open(e, s)), *known)

    @property
    def _compiled(self) -> bool:
        """Whether loops are compiled for so many pairs of samples and classes; few are soon seen."""
        return on_processor(self.start.z.device, len(self.own) * len(self.ends.a) // FEW)

    def _wrong(self, places: Int64[Tensor, " B"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """The samples that are in another place than their own, and that place."""
        rows = (places != self.own).nonzero()[:, 0]
        return rows, places[rows]

    def _open(
        self, e: Float64[Tensor, " B"], s: Float64[Tensor, " B"]
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Pairs that the coarse bounds leave open between their times e and s."""
        bounds = self._bounds()
        K, single = bounds.first.values.shape[1], bounds.first.values.dtype
        asked = e < s
        e = (e * (1 - WIDER)).to(single)  # the time that is asked from, as single precision has it
        u = ((1 - s) / (1 - e.double()) * (1 - WIDER)).to(single)  # the part that is left out at the end
        u = torch.where(asked, u, -1)
        if self._compiled:
            flat = processor.screen(*bounds, self.stop.each, e, u, self.own, SURE)
        else:
            flat = _undecided(bounds, self.stop.each, e, u, self.own)
        return flat // K, flat % K

    def _bounds(self) -> "_Bounds":
        """Lower bounds of the coefficients of all classes, over the square of the unit."""
        (A, B), (first, over, back, last) = self.ends.axes, self.ends.forms
        x, y = self.start, self.stop
        return _Bounds(x.above(first, A), x.above(over, B), y.above(back, A), y.above(last, B))

    def _exact(self, i: Int64[Tensor, " n"], j: Int64[Tensor, " n"]) -> Pairs:
        """The coefficients of some pairs, and what decides their ties."""
        x, y, (a, b) = self.start.z, self.stop.z, (self.ends.a, self.ends.b)
        if self._compiled:
            pairs = torch.stack([i, self.stop.of(i), self.own[i], j])
            found = processor.relative(x, y, a, b, pairs, self.ends.axes[0].stop)
        else:
            height = rows_at_once(2 * x.shape[1], x)
            parts = zip(i.split(height), j.split(height), strict=True)
            found = torch.cat([self._about_own(*part) for part in parts], 1)
        return Pairs(
            coefficients=found[:3],
            sample=i,
            lower=j < self.own[i],
            distance=found[3:].sqrt(),
            norms=torch.stack([self.start.norms[i], self.stop.norms[self.stop.of(i)]]),
            floors=self.ends.floors,
            largest=self.ends.largest,
        )

    def _about_own(self, i: Int64[Tensor, " n"], j: Int64[Tensor, " n"]) -> Float64[Tensor, "5 n"]:
        """Coefficients from residuals and from the classes' differences; the squared residuals."""
        (A, B), k, a, b = self.ends.axes, self.own[i], self.ends.a, self.ends.b
        x, y = self.start.z[i] - a[k], self.stop.z[self.stop.of(i)] - b[k]
        p, q = a[j] - a[k], (b[j] - b[k])[:, B]
        first = (p[:, A] * (p[:, A] - 2 * x[:, A])).sum(1)
        across = (q * (p[:, B] - x[:, B])).sum(1) - (p[:, A] * y[:, A]).sum(1)
        last = (q * (q - 2 * y[:, B])).sum(1)
        return torch.stack([first, across, last, x[:, A].square().sum(1), y[:, B].square().sum(1)])


class _Bounds(NamedTuple):
    """Lower bounds of coefficients: the first, the second's two parts, and the third."""

    first: Above
    over: Above
    back: Above
    last: Above

    def coefficients(self, each: Int64[Tensor, " B"] | None) -> Coefficients:
        """Those of every sample, whose places at the last end are these."""
        first, over, back, last = (part.differences() for part in self)
        back, last = (back, last) if each is None else (back[each], last[each])
        return first, over + back, last


def _undecided(
    bounds: _Bounds,
    each: Int64[Tensor, " B"] | None,
    e: Float[Tensor, " B"],
    u: Float[Tensor, " B"],
    own: Int64[Tensor, " B"],
) -> Int64[Tensor, " n"]:
    """Numbers of the pairs that lower bounds leave open beyond e and before the last part u, if any."""
    c = beyond(bounds.coefficients(each), e[:, None])
    c = beyond(c[::-1], u[:, None].clamp(min=0))[::-1]
    asked = torch.minimum(torch.minimum(c[0], c[1]), c[2]) > 0
    asked = asked.logical_not_().scatter_(1, own[:, None], value=False)
    flat = (asked & (u >= 0)[:, None]).flatten().nonzero()[:, 0]
    return flat[may_fall(*(part.flatten()[flat] for part in c))]
