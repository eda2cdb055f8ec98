"""The straight line from the first to the last features of a segment: metrics at t, Theorems 1 and 2.

Along H_t = (1 - t) A + t B all moments are quadratic in t, so PFC1, and a monotone function of PFC2, are
quotients of polynomials whose coefficients are statistics of the two ends, and every turning point is a
root. Nothing is sampled. What is within rounding of these statistics counts as no change.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.line import ENDS, End, StepCurve, nearest_frame
from pfc.metrics import Weighting, class_weights, etf_distance
from pfc.theory.path import times
from pfc.theory.turns import ROUNDING, ZERO, differences, exponent_of, of_frame_distance, of_ratio

LARGEST = {"pfc1": 0.0, "pfc2": 1.0, "pfc3": 1.0}  # below ZERO of it, a change of a metric is round-off
AT_ONCE = 2**20  # numbers of class means at several t, at once; ours


@dataclass(frozen=True, eq=False)
class OnLine:
    """The metrics at some points of the line.

    Args:
        pfc1: Within-class over between-class variance.
        pfc2: Distance of the class means from a simplex equiangular tight frame.
        pfc3: Fraction of the samples nearest to their own class mean; NaN if it was not measured.
    """

    pfc1: Float64[Tensor, " T"]
    pfc2: Float64[Tensor, " T"]
    pfc3: Float64[Tensor, " T"]


@dataclass(frozen=True)
class Theorem1:
    """Does PFC1 fall all along the line? Theorem 1 of arXiv 2405.00985 as a certificate.

    With a collapsed end (`"means"`, `"etf"`) its assumption, B01 >= 0, is necessary and sufficient, and
    an optimal transport map implies it; with the measured end the three numbers D decide.

    Args:
        b01: Mean inner product of the class means of the two ends, centred; its statement is inferred,
            the paper's formula is lost.
        align: The same as a cosine, in [-1, 1].
        d: D0, D1, D2: PFC1' has the sign of -((1-t)^2 D0 + t (1-t) D1 + t^2 D2), so that PFC1 falls on
            [0, 1] exactly if D0 >= 0, D2 >= 0 and D1 >= -2 sqrt(D0 D2).
        slacks: The same over B00 B11, which no scale changes.
        monotone: Whether PFC1 falls on [0, 1], or does not change; false if it is undefined.
        turns: Where it turns, inside (0, 1).
        falls: Whether it falls, or does not change, after its last turning point; false if undefined.
    """

    b01: float
    align: float
    d: tuple[float, float, float]
    slacks: tuple[float, float, float]
    monotone: bool
    turns: tuple[float, ...]
    falls: bool

    @property
    def constant(self) -> bool:
        """Whether PFC1 is the same all along the line; not so if the end is undefined."""
        return not any(self.slacks)


@dataclass(frozen=True)
class Theorem2:
    """From where on does PFC2 fall to the end of the line? Theorem 2 of arXiv 2405.00985, certified.

    The theorem is local: some t0 < 1 exists from which PFC2 falls. A small transport cost does not make
    t0 = 0 (the example below), so only t0 is asserted; its statement is inferred, the paper's formula is
    lost. It speaks of an end that is a frame, `"etf"`; for the others the same polynomial decides.

    Args:
        t0: The least t from which on PFC2 falls to the end; NaN if it rises there.
        radius: 1 - t0.
        falls: Whether PFC2 falls, or does not change, after its last turning point; false if the end is
            undefined.
        curvature: Second derivative of PFC2^2 / 2 at t = 1 for the end `"etf"`, else NaN; it may be 0.
        turns: Where PFC2 turns, inside (0, 1).
        constant: Whether PFC2 is the same all along the line.

    Examples:
        Four means as near to a frame as one likes, their identity an optimal map, and PFC2 rises between
        t = 1/2 and 3/4 all the same:

        >>> delta, E = 0.01, np.eye(4) - 1 / 4
        >>> M, N = np.vstack([E, 0 * E]), np.vstack([0 * E, np.diag([2, 1, 0, 0]) @ E])
        >>> P = N.T @ N - np.trace(N.T @ N) / 3 * E
        >>> start = M + delta * N - delta**2 * M @ P / 4
        >>> means = torch.from_numpy(np.stack([start.T, M.T]))
        >>> none = torch.zeros(2, 4, dtype=torch.float64)
        >>> line = Line.of(count=none[0] + 1, scatter=none, cross=none[0], means=means,
        ...     weighting="class", end="etf", curve=None)
        >>> [round(turn, 2) for turn in line.certify().theorem2.turns], line.certify().theorem1.monotone
        ([0.5, 0.75], True)
    """

    t0: float
    radius: float
    falls: bool
    curvature: float
    turns: tuple[float, ...]
    constant: bool = False


@dataclass(frozen=True)
class Certificate:
    """Both theorems on one segment.

    Args:
        end: What stands at the end of the line.
        theorem1: On PFC1.
        theorem2: On PFC2.
    """

    end: End
    theorem1: Theorem1
    theorem2: Theorem2


@dataclass(frozen=True)
class Agreement:
    """How far measured layers are from the line, each at its position.

    Args:
        position: Of each layer.
        difference: For each metric the measured value less the line's, layer by layer; NaN where the
            position lies outside [0, 1], as that of a chord or a projection may.
        off: For each metric one number: the root mean square of the inner layers' differences over the
            whole change of the metric from the first layer to the last; 0 on the line, NaN without an
            inner layer or a change. Ours.
    """

    position: tuple[float, ...]
    difference: Mapping[str, tuple[float, ...]]
    off: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Line:
    """The statistics of the two ends of a line, all that its metrics need.

    Args:
        end: What stands at its end: the features `"measured"`, their class `"means"`, or the nearest
            simplex equiangular tight frame of these, `"etf"`.
        within: Mean inner products of the residuals: first with first, first with last, last with last.
        between: The same of the class means, centred with the weights.
        weights: Of the classes in both.
        means: Class means of the two ends, centred without weights, in one orthonormal basis; NaN where
            the end is undefined (its means span fewer than K - 1 dimensions).
        curve: Exact PFC3, or `None`.
        exponent: The features are larger by this power of two than these statistics say.
    """

    end: End
    within: Float64[Tensor, "3"]
    between: Float64[Tensor, "3"]
    weights: Float64[Tensor, " K"]
    means: Float64[Tensor, "2 K R"]
    curve: StepCurve | None
    exponent: int = 0

    @classmethod
    def of(
        cls,
        *,
        count: Float64[Tensor, " K"],
        scatter: Float64[Tensor, "2 K"],
        cross: Float64[Tensor, " K"],
        means: Float64[Tensor, "2 K R"],
        weighting: Weighting,
        end: End,
        curve: StepCurve | None,
        exponent: int = 0,
    ) -> "Line":
        """The line of a segment, from the scatters of its two ends, their cross scatter and means."""
        if end not in ENDS:
            raise ValueError(f"end must be one of {', '.join(ENDS)}, got {end!r}")
        pi = class_weights(count, weighting)
        if end == "etf":
            frame = nearest_frame(means[1])
            means = torch.stack([means[0], means[1] * torch.nan if frame is None else frame])
        A, B = means - (pi @ means)[:, None]
        kept = 1.0 if end == "measured" else 0.0
        scatters = (scatter[0], kept * cross, kept * scatter[1])
        within = torch.stack([s @ (pi / count) for s in scatters])
        between = torch.stack([pi @ (a * b).sum(1) for a, b in ((A, A), (A, B), (B, B))])
        return cls(end, within, between, pi, means, curve, exponent)

    def at(self, t: Float64[Tensor, " T"]) -> OnLine:
        """The metrics at each t in [0, 1]; PFC1 and PFC2 are undefined where all features vanish."""
        u = 1 - t
        size = u**2 * self.within[0] + t**2 * self.within[2]
        within = size + 2 * u * t * self.within[1]
        parts = t.split(max(1, AT_ONCE // self.means[0].numel()))
        between, pfc2 = zip(*(self._of(s) for s in parts), strict=True)
        return OnLine(
            pfc1=torch.where(within > ROUNDING * size, within, 0.0) / torch.cat(between),
            pfc2=torch.cat(pfc2),
            pfc3=t * torch.nan if self.curve is None else self.curve.accuracy(t),
        )

    def _of(self, t: Float64[Tensor, " T"]) -> tuple[Float64[Tensor, " T"], Float64[Tensor, " T"]]:
        """The between-class variance and PFC2 at each t; means that cancel to round-off are zero."""
        A, B = self.means
        means = torch.lerp(A, B, t[:, None, None])
        size = (1 - t) * A.norm() + t * B.norm()
        means[means.flatten(1).norm(dim=1) <= ZERO * size] = 0
        M = means - (self.weights @ means)[:, None]
        return M.square().sum(2) @ self.weights, etf_distance(means)

    def certify(self) -> Certificate:
        """Where PFC1 and PFC2 turn on this line, exactly."""
        return Certificate(self.end, self._theorem1(), self._theorem2())

    def _theorem1(self) -> Theorem1:
        traces = torch.stack([self.within, self.between]).numpy()
        unit = exponent_of(traces)
        within, between = np.ldexp(traces, -unit).tolist()
        scale = math.sqrt(between[0]) * math.sqrt(between[2]) or math.nan
        D, course = differences(within, between), of_ratio(within, between)
        d0, d1, d2 = times(np.array(D), 2 * unit + 4 * self.exponent).tolist()
        return Theorem1(
            b01=float(times(np.array(between[1]), unit + 2 * self.exponent)),
            align=between[1] / scale,
            d=(d0, d1, d2),
            slacks=(D[0] / scale**2, D[1] / scale**2, D[2] / scale**2),
            monotone=course.falls and not course.turns,
            turns=course.turns,
            falls=course.falls,
        )

    def _theorem2(self) -> Theorem2:
        means = self.means.numpy()
        A, B = np.ldexp(means, -exponent_of(means))
        if not np.isfinite(means).all() or not (A.any() and B.any()):
            return Theorem2(math.nan, math.nan, False, math.nan, ())
        frame = self.end == "etf"
        course = of_frame_distance(A, B, frame=frame)
        t0 = (course.turns or (0.0,))[-1] if course.falls else math.nan
        curvature = _curvature(A, B) if frame else math.nan
        return Theorem2(t0, 1 - t0, course.falls, curvature, course.turns, course.constant)


def _curvature(A: np.ndarray, B: np.ndarray) -> float:
    """Second derivative of PFC2^2 / 2 at the end B, a frame."""
    K = len(A)
    alpha, C = np.trace(B @ B.T) / (K - 1), A @ B.T + B @ A.T
    rest = C - np.trace(C) / (K - 1) * (np.eye(K) - 1 / K)
    size = float(np.linalg.norm(rest))
    known = size > ZERO * np.linalg.norm(A) * np.linalg.norm(B)
    return size**2 / (alpha**2 * (K - 1)) if known else 0.0


def agreement(line: Line, position: Sequence[float], values: Mapping[str, Sequence[float]]) -> Agreement:
    """Compare the measured values of a segment's layers, at their positions, with its line."""
    t = torch.tensor(position, dtype=torch.float64, device="cpu")
    on_line = line.at(t.clamp(0, 1))
    t = torch.where((t >= 0) & (t <= 1), t, torch.nan)
    difference, off = {}, {}
    for metric, largest in LARGEST.items():
        measured = torch.tensor(values[metric], dtype=torch.float64, device="cpu")
        gap = torch.where(t.isnan(), torch.nan, measured - getattr(on_line, metric))
        difference[metric] = tuple(gap.tolist())
        inner = gap[1:-1][~gap[1:-1].isnan()]
        change = float((measured[-1] - measured[0]).abs())
        if change <= ZERO * max(largest, float(measured[0]), float(measured[-1])):
            change = math.nan
        off[metric] = float(inner.square().mean().sqrt() / change)
    return Agreement(tuple(position), difference, off)
