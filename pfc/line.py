"""Nearest class means along the straight line of a segment: exact PFC3 at every t, in one pass.

Between the first layer's features A and the last layer's B, H_t = (1 - t) A + t B. A sample is nearer
to the wrong mean j than to its own exactly where a quadratic F(t) is negative; its roots are all there
is to know. The curve of a whole data set is a step function with a few breakpoints a sample at most.
Where two means pass through each other on the way, F has a double root, known to half of the digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.crossings import Gaps, intervals
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.metrics import effective_depth
from pfc.moments import Gather, Total, alone, own
from pfc.nearest import MeansSpan
from pfc.pairs import ROUNDING
from pfc.prototypes import Prototypes, by_class
from pfc.tiles import rows_at_once

End = Literal["measured", "means", "etf"]
ENDS: tuple[End, ...] = ("measured", "means", "etf")
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
    _waiting: list[tuple[End, Gaps]] = field(default_factory=list)

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
        p = self.first.place[y]
        order = p.argsort()  # samples of a class one after the other, as they share its mean
        for rows in order.split(rows_at_once(len(self.first.points), z_A)):
            self._waiting.extend(self._gaps(z_A[rows], z_B[rows], p[rows]))
            waiting = sum(gaps.coefficients.numel() for _, gaps in self._waiting)
            if y.device.type in SYNCHRONOUS_DEVICES or waiting > WAITING:
                self.fetch()

    def _gaps(
        self, x: Float64[Tensor, "B R"], y: Float64[Tensor, "B R"], own: Int64[Tensor, " B"]
    ) -> Iterator[tuple[End, Gaps]]:
        """The gaps of some samples for each end; what two ends have in common is computed once."""
        A, r = self.first.prototypes, self.first.points.shape[1]
        first, each, over = A.gaps(x[:, :r]), _each(own), None
        for end, (a, b) in self.points.items():
            B = self.prototypes[end]
            over = x[:, r:] @ b[:, r:].mT if over is None or end == "etf" else over
            ends, share = (y, slice(None)) if end == "measured" else (b[each[0]], each[1])
            f = torch.stack([first, (a[:, r:] * b[:, r:]).sum(1) - over, B.gaps(ends[:, r:])[share]])
            f[1] -= (ends[:, :r] @ a[:, :r].mT)[share]
            z = (x, y if end == "measured" else b[own])
            yield end, _about_own(f, (A, B), (a, b), z, own)

    def fetch(self) -> None:
        """Find the intervals of the batches that wait; each fetch waits for the device's queue."""
        for end, gaps in self._waiting:
            self.found.setdefault(end, []).append(intervals(gaps))
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


def _about_own(
    f: Float64[Tensor, "3 B K"],
    ends: tuple[Prototypes, Prototypes],
    points: Sequence[Float64[Tensor, "K R"]],
    z: Sequence[Float64[Tensor, "B R"]],
    own: Int64[Tensor, " B"],
) -> Gaps:
    """The gaps of squared distances about the origin, with all their digits where points are crowded.

    Args:
        f: Squared distances along the line but for what all classes share; they are used up.
        ends: The class points of both ends.
        points: The same in both bases side by side.
        z: The samples at both ends, likewise.
        own: Class of each sample.
    """
    A, B = ends
    r = A.points.shape[1]
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


def _each(
    own: Int64[Tensor, " B"],
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " B"] | slice]:
    """The classes of sorted samples, and the place of each sample's; of a device not asked, as given."""
    if own.device.type in SYNCHRONOUS_DEVICES:
        classes, place = own.unique_consecutive(return_inverse=True)
        return classes, place
    return own, slice(None)


def nearest_frame(points: Float64[Tensor, "K R"]) -> Float64[Tensor, "K R"] | None:
    """The simplex equiangular tight frame nearest to class means; `None` if they span less than K - 1.

    Args:
        points: The class means in any orthonormal coordinates.

    Returns:
        The frame around the same centre, of the nearest size, or `None`.
    """
    K, centre = len(points), points.mean(0)
    if points.shape[1] < K - 1:
        return None
    V, S, U = torch.linalg.svd(points - centre, full_matrices=False)
    if S[K - 2] <= torch.finfo(S.dtype).eps * max(points.shape) * S[0]:
        return None
    return centre + S[: K - 1].sum() / (K - 1) * V[:, : K - 1] @ U[: K - 1]
