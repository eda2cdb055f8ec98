"""The straight line from the first to the last features of a segment: metrics at t, Theorems 1 and 2.

Along H_t = (1 - t) A + t B all moments are quadratic in t, so PFC1 and PFC2 are quotients of polynomials
whose coefficients are statistics of the two ends, and every turning point is a root. Nothing is sampled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.line import ENDS, End, StepCurve, nearest_frame
from pfc.metrics import Weighting, class_weights, etf_distance
from pfc.theory.path import times

METRICS = ("pfc1", "pfc2", "pfc3")
AT_ONCE = 2**20  # numbers of class means at several t, at once; ours
REAL = 1e-9  # relative imaginary part below which a root is real; ours
ZERO = 1e-13  # of the size of what is subtracted: a difference below it is round-off; ours


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
        monotone: Whether PFC1 falls on [0, 1], exactly; false if the end is undefined.
        turns: Where it turns, inside (0, 1).
    """

    b01: float
    align: float
    d: tuple[float, float, float]
    slacks: tuple[float, float, float]
    monotone: bool
    turns: tuple[float, ...]

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

    Example:
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
        means: Class means of the two ends, centred without weights, in one orthonormal basis; NaN where
            the end is undefined (its means span fewer than K - 1 dimensions).
        curve: Exact PFC3, or `None`.
        exponent: The features are larger by this power of two than these statistics say.
    """

    end: End
    within: Float64[Tensor, "3"]
    between: Float64[Tensor, "3"]
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
        return cls(end, within, between, means, curve, exponent)

    def at(self, t: Float64[Tensor, " T"]) -> OnLine:
        """The metrics at each t in [0, 1]."""
        basis = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
        parts = t.split(max(1, AT_ONCE // self.means[0].numel()))
        A, B = self.means
        means = (torch.lerp(A, B, s[:, None, None]) for s in parts)
        return OnLine(
            pfc1=(self.within @ basis) / (self.between @ basis),
            pfc2=torch.cat([etf_distance(M) for M in means]),
            pfc3=t * torch.nan if self.curve is None else self.curve.accuracy(t),
        )

    def certify(self) -> Certificate:
        """Where PFC1 and PFC2 turn on this line, exactly."""
        return Certificate(self.end, self._theorem1(), self._theorem2())

    def _theorem1(self) -> Theorem1:
        traces = torch.stack([self.within, self.between]).numpy()
        unit = _exponent(traces)
        (W0, W01, W1), (B0, B01, B1) = np.ldexp(traces, -unit).tolist()
        D = (_less(W0 * B01, W01 * B0), _less(W0 * B1, W1 * B0), _less(W01 * B1, W1 * B01))
        fall = np.polynomial.Polynomial([D[0], D[1] - 2 * D[0], D[0] - D[1] + D[2]])
        monotone = D[0] >= 0 and D[2] >= 0 and D[1] >= -2 * (D[0] * D[2]) ** 0.5
        scale = B0 * B1 if B0 * B1 > 0 else math.nan
        d0, d1, d2 = times(np.array(D), 2 * unit + 4 * self.exponent).tolist()
        return Theorem1(
            b01=float(times(np.array(B01), unit + 2 * self.exponent)),
            align=B01 / scale**0.5,
            d=(d0, d1, d2),
            slacks=(D[0] / scale, D[1] / scale, D[2] / scale),
            monotone=bool(monotone),
            turns=() if monotone else _turns(fall),
        )

    def _theorem2(self) -> Theorem2:
        means = self.means.numpy()
        A, B = np.ldexp(means, -_exponent(means))  # so that products of six of them are numbers
        if not np.isfinite(B).all() or not (A.any() and B.any()):
            return Theorem2(math.nan, math.nan, False, math.nan, ())
        g, curvature = _fall_of_pfc2(A, B), math.nan
        if self.end == "etf":
            g = np.polynomial.Polynomial(np.cumsum(g.coef)[:-1])  # g = (1 - t) times this
            curvature = _curvature(A, B)
        turns = _turns(g)
        last = turns[-1] if turns else 0.0
        falls = bool(g((last + 1) / 2) >= 0)
        t0 = last if falls else math.nan
        return Theorem2(t0, 1 - t0, falls, curvature, turns, not g.coef.any())


def _fall_of_pfc2(A: np.ndarray, B: np.ndarray) -> np.polynomial.Polynomial:
    """A polynomial of degree 4 that is positive where PFC2 falls between means A and B."""
    C = A @ B.T + B @ A.T
    powers = [A @ A.T, C - 2 * A @ A.T, A @ A.T - C + B @ B.T]
    p = np.polynomial.Polynomial([np.trace(G) for G in powers])
    products = np.array([[(G * H).sum() for H in powers] for G in powers])
    r = np.polynomial.Polynomial([np.trace(products[:, ::-1], offset=2 - k) for k in range(5)])
    g = 2 * p.deriv() * r - p * r.deriv()
    size = np.abs(p.coef).max() * np.abs(r.coef).max()
    if len(A) == 2 or np.abs(g.coef).max() <= ZERO * size:
        return np.polynomial.Polynomial(np.zeros(5))  # two classes are always a frame
    return np.polynomial.Polynomial(g.coef[:5])  # the terms of t^5 cancel


def _curvature(A: np.ndarray, B: np.ndarray) -> float:
    """Second derivative of PFC2^2 / 2 at the end B, a frame."""
    K = len(A)
    alpha, C = np.trace(B @ B.T) / (K - 1), A @ B.T + B @ A.T
    rest = C - np.trace(C) / (K - 1) * (np.eye(K) - 1 / K)
    return float((rest**2).sum() / (alpha**2 * (K - 1)))


def agreement(line: Line, position: Sequence[float], values: Mapping[str, Sequence[float]]) -> Agreement:
    """Compare the measured values of a segment's layers, at their positions, with its line."""
    t = torch.tensor(position, dtype=torch.float64)
    on_line = line.at(t.clamp(0, 1))
    t = torch.where((t >= 0) & (t <= 1), t, torch.nan)
    difference, off = {}, {}
    for metric in METRICS:
        measured = torch.tensor(values[metric], dtype=torch.float64)
        gap = torch.where(t.isnan(), torch.nan, measured - getattr(on_line, metric))
        difference[metric] = tuple(gap.tolist())
        inner = gap[1:-1][~gap[1:-1].isnan()]
        change = abs(_less(float(measured[-1]), float(measured[0]))) or math.nan
        off[metric] = float(inner.square().mean().sqrt() / change)
    return Agreement(tuple(position), difference, off)


def _turns(fall: np.polynomial.Polynomial) -> tuple[float, ...]:
    """Roots in (0, 1) at which a polynomial changes its sign, ascending; none if it is undefined."""
    if not np.isfinite(fall.coef).all():
        return ()
    z = np.asarray(_inside(fall).roots(), dtype=complex)
    real = z.real[np.abs(z.imag) <= REAL * np.maximum(1, np.abs(z))]
    roots = np.sort(real[(real > 0) & (real < 1)])
    cuts = np.concatenate([[0.0], roots, [1.0]])
    signs = np.sign(fall((cuts[1:] + cuts[:-1]) / 2))
    return tuple(float(root) for root, (a, b) in zip(roots, pairwise(signs), strict=True) if a * b < 0)


def _exponent(values: np.ndarray) -> int:
    """That of the power of two above the largest."""
    return int(np.frexp(np.nan_to_num(np.abs(values), posinf=0.0).max(initial=0.0))[1])


def _less(a: float, b: float) -> float:
    """Their difference; 0 where it is round-off."""
    return a - b if not abs(a - b) <= ZERO * max(abs(a), abs(b)) else 0.0


def _inside(fall: np.polynomial.Polynomial) -> np.polynomial.Polynomial:
    """The polynomial without its roots at 0 and 1, which rounding would move into the interval."""
    c = fall.coef
    while len(c) > 1 and abs(c[0]) <= ZERO * np.abs(c).sum():
        c = c[1:]  # divided by t
    while len(c) > 1 and abs(c.sum()) <= ZERO * np.abs(c).sum():
        c = np.cumsum(c)[:-1]  # divided by 1 - t
    return np.polynomial.Polynomial(c)
