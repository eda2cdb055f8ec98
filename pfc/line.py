"""Nearest class means along the straight line of a segment: exact PFC3 at every t, in one pass.

Between the first layer's features A and the last layer's B, H_t = (1 - t) A + t B. A sample is nearer
to the wrong mean j than to its own exactly where a quadratic F(t) is negative; its roots are all there
is to know. The curve of a whole data set is a step function with a few breakpoints a sample at most.
"""

from dataclasses import dataclass, field
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
from pfc.nearest import MeansSpan, longest, tie_break

End = Literal["measured", "means", "etf"]
ENDS: tuple[End, ...] = ("measured", "means", "etf")
EPS, TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)
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
        """Fraction of the samples that are nearest to their own class mean at each t in [0, 1]."""
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
    _waiting: list[tuple[End, tuple[Tensor, Tensor, Tensor]]] = field(default_factory=list)

    @cached_property
    def bases(self) -> Float64[Tensor, "D R"]:
        """The two bases side by side: both layers are projected on both."""
        return torch.cat([self.first.basis.mT, self.last.basis.mT]).mT

    @cached_property
    def overlap(self) -> Float64[Tensor, "R1 R2"]:
        """Inner products of the first basis with the last."""
        return self.first.basis.mT @ self.last.basis

    @cached_property
    def points(self) -> dict[End, Float64[Tensor, "K R"] | None]:
        """Class points at each end of the line, in the last basis; `None` where undefined."""
        b = self.last.points
        return {"measured": b, "means": b, "etf": nearest_frame(b)}

    @cached_property
    def ties(self) -> list[Float64[Tensor, " K"]]:
        """What breaks ties in the three coefficients of F, by how far rounding may move them."""
        A, B = self.first, self.last
        across = 2 * (A.floor * longest(B.points) + B.floor * longest(A.points))
        return [tie_break(tie, A.points) for tie in (A.tie, across, B.tie)]

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
        r = self.first.basis.shape[1]
        a, overlap, p = self.first.points, self.overlap, self.first.place[y]
        first, across, last = self.ties
        for end, points in self.points.items():
            if points is None:
                continue
            own = z_B[:, r:] if end == "measured" else points[p]  # b_i
            on_A = z_B[:, :r] if end == "measured" else points[p] @ overlap.mT
            f0 = _gap(z_A[:, :r], a, p, first)
            f2 = _gap(own, points, p, last)
            inner = ((a @ overlap) * points).sum(1) + across - z_A[:, r:] @ points.mT - on_A @ a.mT
            f1 = inner - inner.gather(1, p[:, None])
            self._waiting.append((end, (f0, f1, f2)))
        waiting = sum(3 * f0.numel() for _, (f0, *_) in self._waiting)
        if y.device.type in SYNCHRONOUS_DEVICES or waiting > WAITING:
            self.fetch()

    def fetch(self) -> None:
        """Find the intervals of the batches that wait; each fetch waits for the device's queue."""
        for end, coefficients in self._waiting:
            self.found.setdefault(end, []).append(_intervals(*(f.cpu() for f in coefficients)))
        self._waiting.clear()

    def merge(self, *others: "LineCrossings", total: Total = alone, gather: Gather = own) -> None:
        """Add others in place: those given here, and those of the processes."""
        parts = (self, *others)
        for part in parts:
            part.fetch()
        self.samples = int(total(torch.tensor([sum(part.samples for part in parts)], device="cpu")))
        for end in (end for end, points in self.points.items() if points is not None):
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


def _gap(
    z: Float64[Tensor, "B R"],
    points: Float64[Tensor, "K R"],
    p: Int64[Tensor, " B"],
    added: Float64[Tensor, " K"],
) -> Float64[Tensor, "B K"]:
    """Squared distance to each class mean less that to the own one, both with what is added."""
    distance = torch.addmm(points.square().sum(1) + added, z, points.mT, alpha=-2)
    return distance.sub_(distance.gather(1, p[:, None]))


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


def _intervals(
    f0: Float64[Tensor, "B K"], f1: Float64[Tensor, "B K"], f2: Float64[Tensor, "B K"]
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of where f0 (1-t)^2 + 2 f1 t (1-t) + f2 t^2 < 0 for a sample and some class."""
    flat = np.flatnonzero((torch.minimum(torch.minimum(f0, f2), f1) < 0).numpy())
    sample = flat // f0.shape[1]
    c = np.stack([f.numpy().ravel()[flat] for f in (f0, f1, f2)])
    first, last = c[0] < 0, c[2] < 0  # before a tie, which may be of least size, is scaled to nothing
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
