"""Where on a straight line samples change sides: roots of quadratics, and the union of stretches.

Of a sample and a wrong class, F(t) = c0 (1-t)^2 + 2 c1 t (1-t) + c2 t^2 is the squared distance to that
class's mean less the one to the own. Between two times where it is positive it can only be negative
where c1, of that part of the line, is below -sqrt(c0 c2).
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from pfc.pairs import EPS, ROUNDING

TINY = float(np.finfo(np.float64).tiny)
SURE = 1 - 2.0**-16  # of a discriminant's terms, far from what their products round; ours

Coefficients = tuple[Float[Tensor, "B K"], Float[Tensor, "B K"], Float[Tensor, "B K"]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Samples and wrong classes, with squared distances along the line less those to the own mean.

    Args:
        coefficients: Of (1-t)^2, 2 t (1-t) and t^2.
        sample: Which sample each is of.
        lower: Whether its class comes before the own.
        distance: Of its sample from the own mean, at both ends.
        norms: Of its sample, at both ends.
        floors: How far rounding may have moved the means of the two ends.
        largest: The largest norm of a mean of both ends, by which products round; 0 of crowded means.
    """

    coefficients: Float64[Tensor, "3 n"]
    sample: Int64[Tensor, " n"]
    lower: Bool[Tensor, " n"]
    distance: Float64[Tensor, "2 n"]
    norms: Float64[Tensor, "2 n"]
    floors: Float64[Tensor, "2"]
    largest: Float64[Tensor, "2"]

    @classmethod
    def of(cls, *parts: "Pairs") -> "Pairs":
        """All of these together."""
        names = [part.name for part in fields(cls)][:-2]
        joined = {name: torch.cat([getattr(p, name) for p in parts], -1) for name in names}
        return cls(**joined, floors=parts[0].floors, largest=parts[0].largest)

    @property
    def room(self) -> float:
        """A number above every tie; 0 of no pairs."""
        if not len(self.sample):
            return 0.0
        most, floor = self.distance.max(), self.floors.max()
        rounding = _rounding(*self.norms.amax(1).tolist(), *self.largest.tolist())
        return max(rounding) + float(8 * floor * (most + floor))


def may_fall(
    c0: Float[Tensor, "*B"], c1: Float[Tensor, "*B"], c2: Float[Tensor, "*B"]
) -> Bool[Tensor, "*B"]:
    """Whether lower bounds of the coefficients leave it open that F is negative somewhere."""
    sure = (torch.minimum(c0, c2) > 0) & ((c1 > 0) | (c1.square() < c0 * c2 * SURE))
    return ~sure


def beyond(c: Coefficients, e: Float[Tensor, "B 1"]) -> Coefficients:
    """The coefficients of the part of the line from e on (de Casteljau)."""
    first, last = torch.lerp(c[0], c[1], e), torch.lerp(c[1], c[2], e)
    return first.lerp_(last, e), last, c[2]


def leaves(c: Float64[Tensor, "3 n"], room: float) -> Float64[Tensor, " n"]:
    """When F, negative at 0, first is not: 1 if never, 0 if rounding might decide that."""
    f = c.cpu().numpy()
    c0, c1, c2 = _near_one(f)
    root = _cuts(c0, c1, c2)[1]
    sure = (f[0] < -room) & (np.abs(f[2]) > room) & ((root < 1) | (f[2] < 0))
    return torch.from_numpy(np.where(sure, root, 0.0)).to(c)


def intervals(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of where another mean is nearer than the own, or as near and of a lower class."""
    c, sample, lower, distance, norms, floors, largest = (
        getattr(pairs, part.name).cpu().numpy() for part in fields(pairs)
    )
    first, last = c[0] < 0, c[2] < 0
    near = np.flatnonzero(np.minimum(np.abs(c[0]), np.abs(c[2])) <= pairs.room)
    if len(near):
        rounding = np.stack(_rounding(*norms[:, near], *largest))
        settled = _settled(c[:, near], distance[:, near], rounding, floors)
        settled[:, lower[near] & ~settled.any(axis=0)] = -1  # all along
        c[:, near] = settled
        first[near], last[near] = ((e < 0) | (lower[near] & (e == 0)) for e in settled[::2])
    c0, c1, c2 = _near_one(c)
    kept = first | last | (c1**2 > c0 * c2)
    sample, first, last, c0, c1, c2 = (part[kept] for part in (sample, first, last, c0, c1, c2))
    pieces = []
    for start, stop in pairwise(_cuts(c0, c1, c2)):
        start = np.maximum(start, TINY)  # 0 is an end
        bad = (stop > start) & (_value(c0, c1, c2, (start + stop) / 2) < 0)
        pieces.append(np.stack([sample, start, stop])[:, bad])
    for t, after, bad in ((0.0, TINY, first), (1.0, 1 + EPS, last)):  # however near a root is
        pieces.append(np.stack([sample, 0 * sample + t, 0 * sample + after])[:, bad])
    return _union(np.concatenate(pieces, axis=1))


def _rounding(p: Any, q: Any, a: Any, b: Any) -> tuple[Any, Any, Any]:
    """What products round, of samples of norms p and q with means up to a and b; below it is none."""
    half = ROUNDING / 2
    return half * (2 * a * (a + p)), half * (a * (b + q) + b * (a + p)), half * (2 * b * (b + q))


def _settled(
    c: np.ndarray, distance: np.ndarray, rounding: np.ndarray, floors: np.ndarray
) -> np.ndarray:
    """Coefficients, zero where they are within what the means' and the arithmetic's rounding explain."""
    far = distance + np.sqrt(np.maximum(c[::2] + distance**2, 0))  # from both means together
    a, b = 4 * floors
    tie = np.stack([a * (far[0] + a), a * far[1] + b * far[0], b * (far[1] + b)]) + rounding
    return np.where(np.abs(c) <= tie, 0, c)


def _near_one(c: np.ndarray) -> np.ndarray:
    """Coefficients over a power of two, column by column, so that their products are numbers."""
    return np.ldexp(c, -np.frexp(np.abs(c).max(axis=0))[1])


def _value(c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, t: np.ndarray) -> np.ndarray:
    return c0 * (1 - t) ** 2 + 2 * c1 * t * (1 - t) + c2 * t**2


def _cuts(c0: np.ndarray, c1: np.ndarray, c2: np.ndarray) -> list[np.ndarray]:
    """0, the roots in (0, 1) in ascending order, 1; a root that is not there stands at 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        q = -(c1 + np.copysign(np.sqrt(c1**2 - c0 * c2), c1))
        roots = q / (q + c2), c0 / (c0 + q)
    a, b = (np.where((root > 0) & (root < 1), root, 1.0) for root in roots)
    return [np.zeros_like(c0), np.minimum(a, b), np.maximum(a, b), np.ones_like(c0)]


def _union(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the union of each sample's intervals [start, stop)."""
    sample, start, stop = _unhidden(*pieces)
    t, change = np.concatenate([start, stop]), np.repeat([1, -1], len(sample))
    order = np.lexsort((t, np.concatenate([sample, sample])))  # it keeps starts before stops
    t, change = t[order], change[order]
    open_now = np.cumsum(change)
    return t[(change > 0) & (open_now == 1)], t[(change < 0) & (open_now == 0)]


def _unhidden(sample: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, ...]:
    """The intervals but those within the longest of their sample from 0 on, which the instant joins."""
    sample = sample.astype(int)
    longest, begun = np.zeros(sample.max(initial=0) + 1), start == 0
    for _ in range(2):  # again with those that begin where the instant at 0 ends
        np.maximum.at(longest, sample[begun], stop[begun])
        begun = start <= np.minimum(longest[sample], TINY)
    kept = (stop > longest[sample]) | (begun & (stop == longest[sample]))
    return sample[kept], np.where(begun, 0, start)[kept], stop[kept]
