"""Where on a straight line samples change sides, as roots of quadratics of which few are needed.

Of a sample and a wrong class, F(t) = c0 (1-t)^2 + 2 c1 t (1-t) + c2 t^2 is the squared distance to that
class's mean less the one to the own. It is negative nowhere between two times where it is positive,
unless c1 is below -sqrt(c0 c2), with the coefficients of that part of the line. Pairs of which this is
sure, by more than rounding, have no root there; those that are negative only where another class of the
sample is known to be nearer change nothing. What is left is solved.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pfc.pairs import EPS

TINY = float(np.finfo(np.float64).tiny)
MANY = 0.02  # share of pairs that may be negative from which on those of others are sorted out; ours
MARGIN = 2.0**-30  # of a sample's largest coefficient, far above rounding; ours
SURE = 1 - 2.0**-16  # of a discriminant's terms, whose coefficients are known to MARGIN; ours

Coefficients = tuple[Float64[Tensor, "B K"], Float64[Tensor, "B K"], Float64[Tensor, "B K"]]


@dataclass(frozen=True, eq=False)
class Gaps:
    """Squared distances to each mean along the line, less that to the own.

    Args:
        coefficients: Of (1-t)^2, 2 t (1-t) and t^2.
        own: Class of each sample.
        distance: Of each sample from its own mean, at both ends.
        rounding: What computing may have rounded in each coefficient.
        floors: How far rounding may have moved the means of the two ends.
    """

    coefficients: Float64[Tensor, "3 B K"]
    own: Int64[Tensor, " B"]
    distance: Float64[Tensor, "2 B"]
    rounding: Float64[Tensor, "3 B"]
    floors: Float64[Tensor, "2"]

    @property
    def room(self) -> Float64[Tensor, ""]:
        """A number above every tie."""
        most, floor = self.distance.max(), self.floors.max()
        return self.rounding.max() + 8 * floor * (most + floor)


def intervals(gaps: Gaps) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of where another mean is nearer than the own, or as near and of a lower class."""
    found = wanted(gaps.coefficients, gaps.room)
    flat = found.scatter_(1, gaps.own[:, None], value=False).flatten().nonzero()[:, 0]
    c = gaps.coefficients.flatten(1)[:, flat].cpu().numpy()
    K, place = found.shape[1], flat.cpu().numpy()
    return _solved(c, place // K, place % K, gaps)


def wanted(f: Float64[Tensor, "3 B K"], room: Float64[Tensor, ""]) -> Bool[Tensor, "B K"]:
    """Pairs that may be negative, and not only where another class of the sample is."""
    found = _may_fall((f[0], f[1], f[2]), room)
    if int(found.sum()) <= MANY * found.numel():
        return found
    nearest = torch.stack([f[0].argmin(1), f[2].argmin(1)])
    first, last = (f.gather(2, k.expand(3, -1)[..., None])[..., 0].cpu().numpy() for k in nearest)
    e, s = _leaves(first, float(room)), 1 - _leaves(last[::-1], float(room))
    largest = torch.maximum(f.amax((0, 2)), -f.amin((0, 2)))
    times = (torch.from_numpy(t).to(f)[:, None] for t in (e, s))
    found = _may_fall(_part((f[0], f[1], f[2]), *times), (2 * room + MARGIN * largest)[:, None])
    found &= torch.from_numpy(e < s).to(found.device)[:, None]
    return found.scatter_(1, nearest.mT, value=True)


def _may_fall(c: Coefficients, room: Float64[Tensor, "..."]) -> Bool[Tensor, "B K"]:
    """Whether these coefficients leave it open that F is negative between the times they are of."""
    found = torch.minimum(c[0], c[2]) <= room
    return found.logical_or_((c[1] < 0).logical_and_(c[1].square() >= (c[0] * c[2]).mul_(SURE)))


def _part(f: Coefficients, e: Float64[Tensor, "B 1"], s: Float64[Tensor, "B 1"]) -> Coefficients:
    """The coefficients of the part of the line from e to s (de Casteljau)."""
    start, middle = torch.lerp(f[0], f[1], e), torch.lerp(f[1], f[2], e)
    start.lerp_(middle, e)
    u = torch.where(e < 1, (s - e) / (1 - e), 1.0)
    across, last = torch.lerp(start, middle, u), middle.lerp_(f[2], u)
    return start, across, torch.lerp(across, last, u)


def _leaves(c: np.ndarray, room: float) -> np.ndarray:
    """When a pair that is negative at 0 first is not: 1 if never; 0 if rounding might decide that."""
    c0, c1, c2 = _near_one(c)
    root = _cuts(c0, c1, c2)[1]
    sure = (c[0] < -room) & (np.abs(c[2]) > room) & ((root < 1) | (c[2] < 0))
    return np.where(sure, root, 0.0)


def _solved(
    c: np.ndarray, sample: np.ndarray, other: np.ndarray, gaps: Gaps
) -> tuple[np.ndarray, np.ndarray]:
    """The union of the stretches of these pairs, sample by sample."""
    own, distance, rounding, floors = (
        part.cpu().numpy() for part in (gaps.own, gaps.distance, gaps.rounding, gaps.floors)
    )
    first, last = c[0] < 0, c[2] < 0
    near = np.flatnonzero(np.minimum(np.abs(c[0]), np.abs(c[2])) <= float(gaps.room))
    if len(near):
        s = sample[near]
        settled = _settled(c[:, near], distance[:, s], rounding[:, s], floors)
        settled[:, (lower := other[near] < own[s]) & ~settled.any(axis=0)] = -1  # all along
        c[:, near] = settled
        first[near], last[near] = ((e < 0) | (lower & (e == 0)) for e in settled[::2])
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
        roots = np.stack([q / (q + c2), c0 / (c0 + q)])
    roots = np.sort(np.where((roots > 0) & (roots < 1), roots, 1.0), axis=0)
    return [np.zeros_like(c0), *roots, np.ones_like(c0)]


def _union(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the union of each sample's intervals [start, stop)."""
    sample, start, stop = pieces
    t, change = np.concatenate([start, stop]), np.repeat([1, -1], len(sample))
    order = np.lexsort((-change, t, np.concatenate([sample, sample])))
    t, change = t[order], change[order]
    open_now = np.cumsum(change)
    return t[(change > 0) & (open_now == 1)], t[(change < 0) & (open_now == 0)]
