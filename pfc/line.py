"""Nearest class means along the straight line of a segment: exact PFC3 at every t, in one pass.

Between the first layer's features A and the last layer's B, H_t = (1 - t) A + t B. A sample is nearer
to the wrong mean j than to its own exactly where a quadratic F(t) is negative; its roots are all there
is to know. The curve of a whole data set is a step function with a few breakpoints a sample at most.
Where two means pass through each other on the way, F has a double root, known to half of the digits.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.bounds import Form, unit_of
from pfc.crossings import intervals
from pfc.metrics import effective_depth
from pfc.moments import Gather, Total, alone, own
from pfc.prototypes import Prototypes
from pfc.screening import PAIRS, Ends, Places, Tile
from pfc.span import MeansSpan, laid_out
from pfc.tiles import FEWEST

End = Literal["measured", "means", "etf"]
ENDS: tuple[End, ...] = ("measured", "means", "etf")


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

    @cached_property
    def bases(self) -> Float64[Tensor, "D R"]:
        """The two bases side by side: both layers are projected on both."""
        return laid_out([self.first.basis, self.last.basis])

    @cached_property
    def prototypes(self) -> dict[End, Prototypes]:
        """Class points at each end of the line, in the last basis; an undefined one is absent."""
        b = self.last.prototypes
        frame = nearest_frame(b.points)
        etf: dict[End, Prototypes] = {} if frame is None else {"etf": Prototypes(frame, b.floor)}
        return {"measured": b, "means": b, **etf}

    @cached_property
    def ends(self) -> dict[End, Ends]:
        """Class points of the first layer and of each end, in both bases side by side."""
        A, overlap = self.first.prototypes, self.first.basis.mT @ self.last.basis
        a = torch.cat([A.points, A.points @ overlap], 1)
        unit = unit_of(torch.stack([A.largest, self.last.prototypes.largest]))
        gaps = Form.gaps(A.points, unit)
        made = {
            B: Ends(A, B, a, torch.cat([B.points @ overlap.mT, B.points], 1), gaps)
            for B in set(self.prototypes.values())
        }
        return {end: made[B] for end, B in self.prototypes.items()}

    def update(
        self, z_A: Float64[Tensor, "B R"], z_B: Float64[Tensor, "B R"], y: Int64[Tensor, " B"]
    ) -> tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]]:
        """Add a batch.

        Args:
            z_A: Centred features of the first layer in `bases`.
            z_B: Those of the last layer.
            y: The samples' classes.

        Returns:
            The nearest class points at both layers.
        """
        self.samples += len(y)
        likely = zip(self._layers(z_A, z_B), *self._find(z_A, z_B, self.first.place[y]), strict=True)
        first, last = (points.settled(z, *found) for (points, z), *found in likely)
        return first, last

    def _find(self, x: Tensor, y: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Find the intervals of samples for each end; what is `likely` their nearest at both layers."""
        order = own.argsort()  # samples of a class one after the other, as they share its mean
        height = max(FEWEST, PAIRS // len(self.first.points))
        found = own.new_empty(2, len(own))
        unsure = torch.empty_like(found, dtype=torch.bool)
        for i in order.split(height):
            found[:, i], unsure[:, i] = self._screened(x[i], y[i], own[i])
        return found, unsure

    def _layers(self, x: Tensor, y: Tensor) -> list[tuple[Prototypes, Tensor]]:
        """The class points of both layers, and places in their coordinates."""
        r = self.first.points.shape[1]
        return [(self.first.prototypes, x[:, :r]), (self.last.prototypes, y[:, r:])]

    def _screened(self, x: Tensor, y: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The same of samples that are sorted by class."""
        start, stop = Places(x, own), Places(y, own)
        gaps = self.ends["measured"].gaps(start, stop)
        layers = zip(self._layers(x, y), gaps, strict=True)
        likely = [points.likely(z, bounds) for (points, z), bounds in layers]
        found, unsure = map(torch.stack, zip(*likely, strict=True))
        for end, ends in self.ends.items():
            if end == "measured":
                tile = Tile(ends, start, stop, (found[0], found[1]))
            else:
                tile = Tile(ends, start, ends.collapsed(own), (found[0], own))
            self.found.setdefault(end, []).append(intervals(tile.pairs()))
        return found, unsure

    def merge(self, *others: "LineCrossings", total: Total = alone, gather: Gather = own) -> None:
        """Add others in place: those given here, and those of the processes."""
        parts = (self, *others)
        self.samples = int(total(torch.tensor([sum(part.samples for part in parts)], device="cpu")))
        for end in self.prototypes:
            found = [events for part in parts for events in part.found.get(end, [])]
            ours = [np.concatenate([events[i] for events in found] or [np.empty(0)]) for i in (0, 1)]
            starts, stops = (gather(torch.from_numpy(events)) for events in ours)
            self.found[end] = [(a.numpy(), b.numpy()) for a, b in zip(starts, stops, strict=True)]

    def curves(self) -> dict[End, StepCurve]:
        """The step function of each end; an end that is undefined is absent."""
        curves = {}
        for end, parts in self.found.items():
            events = [np.sort(np.concatenate([part[i] for part in parts])) for i in (0, 1)]
            starts, stops = map(torch.from_numpy, events)
            curves[end] = StepCurve(self.samples, starts, stops)
        return curves


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
