"""Nearest class means along the straight line of a segment: exact PFC3 at every t, in one pass.

Between the first layer's features A and the last layer's B, H_t = (1 - t) A + t B. A sample is nearer
to the wrong mean j than to its own exactly where a quadratic F(t) is negative; its roots are all there
is to know. The curve of a whole data set is a step function with a few breakpoints a sample at most.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.nearest import MeansSpan

End = Literal["measured", "means", "etf"]
ENDS: tuple[End, ...] = ("measured", "means", "etf")


@dataclass(frozen=True, eq=False)
class StepCurve:
    """Accuracy of the nearest class mean at every t in [0, 1], exactly.

    Args:
        samples: Of the data set.
        starts: Where samples become wrong: a row of times, and a row that is 0 if the sample is wrong
            at that time already and 1 if only after it; ascending.
        stops: Where they become right again, in the same form.
    """

    samples: int
    starts: Float64[Tensor, "2 breaks"]
    stops: Float64[Tensor, "2 ends"]

    def accuracy(self, t: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
        """Fraction of the samples that are nearest to their own class mean at each t in [0, 1]."""
        wrong = _passed(self.starts, t) - _passed(self.stops, t)
        return 1 - wrong.double() / self.samples


def _passed(events: Float64[Tensor, "2 E"], t: Float64[Tensor, " T"]) -> Int64[Tensor, " T"]:
    at, after = (events[0, events[1] == side].contiguous() for side in (0, 1))
    return torch.searchsorted(at, t, right=True) + torch.searchsorted(after, t)


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

    @property
    def bases(self) -> Float64[Tensor, "D R"]:
        """The two bases side by side: both layers are projected on both."""
        return torch.cat([self.first.basis, self.last.basis], dim=1)

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
        a, b, overlap = self.first.points, self.last.points, self.first.basis.mT @ self.last.basis
        p = self.first.place[y]
        for end in ENDS:
            points = _nearest_frame(b) if end == "etf" else b
            if points is None:
                continue
            own = z_B[:, r:] if end == "measured" else points[p]  # b_i
            on_A = z_B[:, :r] if end == "measured" else points[p] @ overlap.mT
            f0 = _gap(z_A[:, :r], a, p)
            f2 = _gap(own, points, p)
            inner = ((a @ overlap) * points).sum(1) - z_A[:, r:] @ points.mT - on_A @ a.mT
            f1 = inner - inner.gather(1, p[:, None])
            self.found.setdefault(end, []).append(_intervals(f0.cpu(), f1.cpu(), f2.cpu(), p.cpu()))

    def curves(self) -> dict[End, StepCurve]:
        """The step function of each end; an end that is undefined is absent."""
        curves = {}
        for end, parts in self.found.items():
            events = [np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1)]
            starts, stops = (e[:, np.lexsort(e[::-1])] for e in events)
            curves[end] = StepCurve(self.samples, torch.from_numpy(starts), torch.from_numpy(stops))
        return curves


def _gap(
    z: Float64[Tensor, "B R"], points: Float64[Tensor, "K R"], p: Int64[Tensor, " B"]
) -> Float64[Tensor, "B K"]:
    """Squared distance to each class mean less that to the own one."""
    distance = points.square().sum(1) - 2 * z @ points.mT
    return distance - distance.gather(1, p[:, None])


def _nearest_frame(points: Float64[Tensor, "K R"]) -> Float64[Tensor, "K R"] | None:
    """The simplex equiangular tight frame nearest to the class means; `None` below rank K - 1."""
    K, centre = len(points), points.mean(0)
    if points.shape[1] < K - 1:
        return None
    V, S, U = torch.linalg.svd(points - centre, full_matrices=False)
    return centre + S[: K - 1].sum() / (K - 1) * V[:, : K - 1] @ U[: K - 1]


def _intervals(
    f0: Float64[Tensor, "B K"],
    f1: Float64[Tensor, "B K"],
    f2: Float64[Tensor, "B K"],
    p: Int64[Tensor, " B"],
) -> tuple[np.ndarray, np.ndarray]:
    """Where each sample is wrong: F(t) = f0 (1-t)^2 + 2 f1 t (1-t) + f2 t^2 < 0 for some class.

    A tie F(t) = 0 is wrong if the other class is the lower one, as at a measured layer.

    Args:
        f0: Coefficient of each sample and class.
        f1: The same.
        f2: The same.
        p: Each sample's own class.

    Returns:
        Starts and stops of the intervals, times and sides.
    """
    lower = torch.arange(f0.shape[1]) < p[:, None]
    other = torch.arange(f0.shape[1]) != p[:, None]
    never = (f0 >= 0) & (f2 >= 0) & ((f1 >= 0) | (f1.square() <= f0 * f2))
    tied = lower & ((f0 == 0) | (f2 == 0))
    sample, j = (other & (~never | tied)).nonzero(as_tuple=True)
    c0, c1, c2 = (f[sample, j].numpy() for f in (f0, f1, f2))
    closed = lower[sample, j].numpy()
    cuts = _cuts(c0, c1, c2)
    pieces = []
    for t0, t1 in pairwise(cuts):
        bad = (t1 > t0) & (_value(c0, c1, c2, (t0 + t1) / 2) < 0)
        bad |= closed & (t1 > t0) & (c0 == 0) & (c1 == 0) & (c2 == 0)  # one mean is another, everywhere
        start = np.where(((t0 == 0) & (c0 < 0)) | closed, 0, 1)
        stop = np.where(((t1 == 1) & (c2 < 0)) | closed, 1, 0)
        pieces.append(np.stack([sample.numpy(), t0, start, t1, stop])[:, bad])
    for t, f in ((0.0, c0), (1.0, c2)):  # a tie at an end alone
        tie = closed & (f == 0)
        ones = np.ones(int(tie.sum()))
        pieces.append(np.stack([sample.numpy()[tie], t * ones, 0 * ones, t * ones, ones]))
    return _union(np.concatenate(pieces, axis=1))


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
    """Starts and stops of the union of each sample's intervals.

    Args:
        pieces: Rows: sample, start and its side, stop and its side; (t, 0) comes before (t, 1).

    Returns:
        Starts and stops of the union, times and sides.
    """
    sample, t0, side0, t1, side1 = pieces
    n = len(sample)
    t, side = np.concatenate([t0, t1]), np.concatenate([side0, side1])
    change = np.concatenate([np.ones(n), -np.ones(n)])
    order = np.lexsort((-change, side, t, np.concatenate([sample, sample])))
    t, side, change = t[order], side[order], change[order]
    open_now = np.cumsum(change)
    starts = (change > 0) & (open_now == 1)
    stops = (change < 0) & (open_now == 0)
    return np.stack([t[starts], side[starts]]), np.stack([t[stops], side[stops]])
