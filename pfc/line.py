"""Nearest class means along the straight line of a segment: exact PFC3 at every t, in one pass.

Between the first layer's features A and the last layer's B, H_t = (1 - t) A + t B. A sample is nearer
to the wrong mean j than to its own exactly where a quadratic F(t) is negative; its roots are all there
is to know. The curve of a whole data set is a step function with a few breakpoints a sample at most.
Where two means pass through each other on the way, F has a double root, known to half of the digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.metrics import effective_depth
from pfc.moments import Gather, Total, alone, own
from pfc.nearest import MeansSpan
from pfc.prototypes import EPS, ROUNDING, Prototypes, by_class

End = Literal["measured", "means", "etf"]
ENDS: tuple[End, ...] = ("measured", "means", "etf")
TINY = float(np.finfo(np.float64).tiny)
FINE = 2**20  # times rounding: above it a gap has digits enough; ours
WAITING = 2**22  # numbers that may wait on a device to be fetched at once, 32 MB; ours


@dataclass(frozen=True, eq=False)
class StepCurve:
    """Accuracy of the nearest class mean at every t in [0, 1], exactly.

    A sample is wrong from a start on, that time included, to before its stop.

    Args:
        samples: Of the data set.
        starts: Times at which samples become wrong, ascending.
        stops: Times at which they become right again, ascending.
    """

    samples: int
    starts: Float64[Tensor, " breaks"]
    stops: Float64[Tensor, " breaks"]

    @property
    def breakpoints(self) -> Float64[Tensor, " breaks"]:
        """The times at which the accuracy may change, ascending."""
        return torch.cat([self.starts, self.stops]).unique()

    def accuracy(self, t: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
        """Fraction of the samples nearest to their own class mean at each t in [0, 1].

        Args:
            t: The times.

        Returns:
            In [0, 1]; at a breakpoint inside (0, 1), which is known to rounding, that of either side.
        """
        started, stopped = (torch.searchsorted(e, t, right=True) for e in (self.starts, self.stops))
        return (self.samples - started + stopped).double() / self.samples

    def effective_depth(self, eps: float = 0.01) -> float | None:
        """The first t from which on the accuracy stays at least 1 - `eps`.

        Args:
            eps: The tolerated error, in [0, 1].

        Returns:
            A t in [0, 1], or `None` if the error at the end is larger.

        Raises:
            ValueError: If `eps` is out of range.
        """
        t = torch.cat([self.starts.new_zeros(1), self.breakpoints])
        t = t[t <= 1]
        depth = effective_depth((1 - self.accuracy(t)).tolist(), eps)
        return None if depth is None else float(t[depth])


@dataclass(eq=False)
class LineCrossings:
    """Where the samples of a segment change sides along the line, for its three ends at once.

    Ends: `"measured"`, the last layer's features; `"means"`, these collapsed to their class means;
    `"etf"`, the means moved to their nearest simplex equiangular tight frame besides.

    Args:
        first: Span of the first layer's class means.
        last: Span of the last layer's class means.
        samples: Seen so far.
        found: For each end the intervals found: starts and stops, batch by batch.
    """

    first: MeansSpan
    last: MeansSpan
    samples: int = 0
    found: dict[End, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    _waiting: list[tuple[End, "Gaps"]] = field(default_factory=list)

    @cached_property
    def bases(self) -> Float64[Tensor, "D R"]:
        """The two bases side by side: both layers are projected on both."""
        return torch.cat([self.first.basis.mT, self.last.basis.mT]).mT

    @cached_property
    def prototypes(self) -> dict[End, Prototypes]:
        """Class points at each end of the line, in the last basis; an undefined one is absent."""
        b = self.last.prototypes
        frame = nearest_frame(b.points)
        etf: dict[End, Prototypes] = {} if frame is None else {"etf": Prototypes(frame, b.floor)}
        return {"measured": b, "means": b, **etf}

    @cached_property
    def points(self) -> dict[End, tuple[Float64[Tensor, "K R"], Float64[Tensor, "K R"]]]:
        """Class points of the first layer and of each end, in both bases side by side."""
        overlap = self.first.basis.mT @ self.last.basis
        a = torch.cat([self.first.points, self.first.points @ overlap], 1)
        ends = {end: B.points for end, B in self.prototypes.items()}
        return {end: (a, torch.cat([b @ overlap.mT, b], 1)) for end, b in ends.items()}

    def update(
        self, z_A: Float64[Tensor, "B R"], z_B: Float64[Tensor, "B R"], y: Int64[Tensor, " B"]
    ) -> None:
        """Add a batch.

        Args:
            z_A: Centred features of the first layer in `bases`.
            z_B: Those of the last layer.
            y: The samples' classes.
        """
        self.samples += len(y)
        A, p = self.first.prototypes, self.first.place[y]
        for end, (a, b) in self.points.items():
            B = self.prototypes[end]
            gaps = _gaps((A, B), (a, b), (z_A, z_B if end == "measured" else b[p]), p)
            self._waiting.append((end, gaps))
        waiting = sum(gaps.coefficients.numel() for _, gaps in self._waiting)
        if y.device.type in SYNCHRONOUS_DEVICES or waiting > WAITING:
            self.fetch()

    def fetch(self) -> None:
        """Find the intervals of the batches that wait; each fetch waits for the device's queue."""
        for end, gaps in self._waiting:
            self.found.setdefault(end, []).append(_intervals(gaps))
        self._waiting.clear()

    def merge(self, *others: "LineCrossings", total: Total = alone, gather: Gather = own) -> None:
        """Add others in place: those given here, and those of the processes."""
        parts = (self, *others)
        for part in parts:
            part.fetch()
        self.samples = int(total(torch.tensor([sum(part.samples for part in parts)], device="cpu")))
        for end in self.prototypes:
            found = [events for part in parts for events in part.found.get(end, [])]
            ours = [np.concatenate([events[i] for events in found] or [np.empty(0)]) for i in (0, 1)]
            starts, stops = (gather(torch.from_numpy(events)) for events in ours)
            self.found[end] = [(a.numpy(), b.numpy()) for a, b in zip(starts, stops, strict=True)]

    def curves(self) -> dict[End, StepCurve]:
        """The step function of each end; an end that is undefined is absent."""
        self.fetch()
        curves = {}
        for end, parts in self.found.items():
            events = [np.sort(np.concatenate([part[i] for part in parts])) for i in (0, 1)]
            starts, stops = map(torch.from_numpy, events)
            curves[end] = StepCurve(self.samples, starts, stops)
        return curves


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

    def arrays(self) -> Iterator[np.ndarray]:
        """All of them on the processor."""
        return (getattr(self, part.name).cpu().numpy() for part in fields(self))


def _gaps(
    ends: tuple[Prototypes, Prototypes],
    points: Sequence[Float64[Tensor, "K R"]],
    z: Sequence[Float64[Tensor, "B R"]],
    own: Int64[Tensor, " B"],
) -> Gaps:
    """The gaps between means and samples of two ends, each given in both bases side by side."""
    A, B = ends
    r = A.points.shape[1]
    f = _coefficients(points, z, r)
    f -= f.gather(2, own.expand(3, -1)[..., None])
    x, y = (H.norm(dim=1) for H in z)
    across = A.largest * (B.largest + y) + B.largest * (A.largest + x)
    first, last = A.rounding(z[0]), B.rounding(z[1])
    rounding = torch.stack([first, ROUNDING / 2 * across, last])
    if A.crowded or B.crowded:
        least = torch.minimum(f[0].abs(), f[2].abs()).scatter(1, own[:, None], torch.inf)
        for rows, k in by_class(own, least.amin(1) <= FINE * torch.maximum(first, last)):
            moved = [M - M[k] for M in points]
            f[:, rows] = _coefficients(
                moved, [H[rows] - M[k] for H, M in zip(z, points, strict=True)], r
            )
            f[:, rows] -= f[:, rows, k, None]
            rounding[:, rows] = 0
    x, y = (H - M[own] for H, M in zip(z, points, strict=True))
    distance = torch.stack([x[:, :r].norm(dim=1), y[:, r:].norm(dim=1)])
    return Gaps(f, own, distance, rounding, torch.stack([A.floor, B.floor]))


def _coefficients(
    points: Sequence[Float64[Tensor, "K R"]], z: Sequence[Float64[Tensor, "B R"]], r: int
) -> Float64[Tensor, "3 B K"]:
    """Squared distances along the line but for what all classes share; the first r axes are A's."""
    (a, b), (x, y), A, B = points, z, slice(None, r), slice(r, None)
    f = x.new_empty(3, len(x), len(a))
    torch.addmm(a[:, A].square().sum(1), x[:, A], a[:, A].mT, alpha=-2, out=f[0])
    f[1] = (a[:, B] * b[:, B]).sum(1) - x[:, B] @ b[:, B].mT - y[:, A] @ a[:, A].mT
    torch.addmm(b[:, B].square().sum(1), y[:, B], b[:, B].mT, alpha=-2, out=f[2])
    return f


def nearest_frame(points: Float64[Tensor, "K R"]) -> Float64[Tensor, "K R"] | None:
    """The simplex equiangular tight frame nearest to class means; `None` if they span less than K - 1.

    Args:
        points: The class means in any orthonormal coordinates.

    Returns:
        The frame around the same centre, of the nearest size, or `None`.
    """
    K, centre = len(points), points.mean(0)
    V, S, U = torch.linalg.svd(points - centre, full_matrices=False)
    if len(S) < K - 1 or S[K - 2] <= torch.finfo(S.dtype).eps * max(points.shape) * S[0]:
        return None
    return centre + S[: K - 1].sum() / (K - 1) * V[:, : K - 1] @ U[: K - 1]


def _intervals(gaps: Gaps) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of where another mean is nearer than the own, or as near and of a lower class."""
    f, own, distance, rounding, floors = gaps.arrays()
    room = rounding.max() + 8 * floors.max() * (distance.max() + floors.max())  # above every tie
    least = np.minimum(np.minimum(f[0], f[2]), f[1])
    least[np.arange(len(own)), own] = np.inf
    flat = np.flatnonzero(least <= room)
    sample = flat // f.shape[2]
    c = f.reshape(3, -1)[:, flat]
    first, last = c[0] < 0, c[2] < 0
    near = np.flatnonzero(np.minimum(np.abs(c[0]), np.abs(c[2])) <= room)
    if len(near):
        s = sample[near]
        settled = _settled(c[:, near], distance[:, s], rounding[:, s], floors)
        settled[:, (lower := flat[near] % f.shape[2] < own[s]) & ~settled.any(axis=0)] = -1  # all along
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
