"""The straight line from the first to the last features of a segment: metrics at t, Theorems 1 and 2.

Along H_t = (1 - t) A + t B all moments are quadratic in t, so PFC1 and PFC2 are quotients of polynomials
whose coefficients are statistics of the two ends, and every turning point is a root. Nothing is sampled.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.line import ENDS, End, StepCurve, nearest_frame
from pfc.metrics import Weighting, class_weights, etf_distance

REAL = 1e-9  # relative imaginary part below which a root is real; ours


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
        slacks: D0, D1, D2 over B00 B11: PFC1' has the sign of -((1-t)^2 D0 + t (1-t) D1 + t^2 D2).
        monotone: Whether PFC1 falls on [0, 1], exactly; false if the end is undefined.
        turns: Where it turns, inside (0, 1).
    """

    b01: float
    align: float
    slacks: tuple[float, float, float]
    monotone: bool
    turns: tuple[float, ...]


@dataclass(frozen=True)
class Theorem2:
    """From where on does PFC2 fall to the end of the line? Theorem 2 of arXiv 2405.00985, certified.

    The theorem is local: some t0 < 1 exists from which PFC2 falls. A small transport cost does not make
    t0 = 0, so only t0 is asserted; its statement is inferred, the paper's formula is lost.

    Args:
        t0: The least t from which on PFC2 falls to the end; NaN if it rises at the end.
        radius: 1 - t0.
        curvature: Second derivative of PFC2^2 / 2 at t = 1 for the end `"etf"`, else NaN.
        turns: Where PFC2 turns, inside (0, 1).
    """

    t0: float
    radius: float
    curvature: float
    turns: tuple[float, ...]


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
    """

    end: End
    within: Float64[Tensor, "3"]
    between: Float64[Tensor, "3"]
    means: Float64[Tensor, "2 K R"]
    curve: StepCurve | None

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
    ) -> "Line":
        """The line of a segment.

        Args:
            count: Samples of each class.
            scatter: Summed squared residuals of each class, at the first and the last layer.
            cross: Summed inner products of a sample's residuals there and there.
            means: Class means of the two layers, centred without weights, in one orthonormal basis.
            weighting: What a class counts in covariances.
            end: What stands at the end.
            curve: Exact PFC3 for this end.

        Returns:
            The line.

        Raises:
            ValueError: If the end is unknown.
        """
        if end not in ENDS:
            raise ValueError(f"end must be one of {', '.join(ENDS)}, got {end!r}")
        pi = class_weights(count, weighting)
        if end == "etf":
            frame = nearest_frame(means[1])
            means = torch.stack([means[0], means[1] * torch.nan if frame is None else frame])
        A, B = means - (pi @ means)[:, None]
        collapsed = 0.0 if end != "measured" else 1.0
        return cls(
            end=end,
            within=torch.stack([
                s @ (pi / count) for s in (scatter[0], collapsed * cross, collapsed * scatter[1])
            ]),
            between=torch.stack([pi @ (a * b).sum(1) for a, b in ((A, A), (A, B), (B, B))]),
            means=means,
            curve=curve,
        )

    def at(self, t: Float64[Tensor, " T"]) -> OnLine:
        """The metrics at each t in [0, 1]."""
        basis = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
        unknown = torch.full_like(t, torch.nan)
        return OnLine(
            pfc1=(self.within @ basis) / (self.between @ basis),
            pfc2=torch.stack([etf_distance((1 - s) * self.means[0] + s * self.means[1]) for s in t]),
            pfc3=unknown if self.curve is None else self.curve.accuracy(t),
        )

    def certify(self) -> Certificate:
        """Where PFC1 and PFC2 turn on this line, exactly."""
        return Certificate(self.end, self._theorem1(), self._theorem2())

    def _theorem1(self) -> Theorem1:
        (W0, W01, W1), (B0, B01, B1) = self.within.tolist(), self.between.tolist()
        D = (W0 * B01 - W01 * B0, W0 * B1 - W1 * B0, W01 * B1 - W1 * B01)
        fall = np.polynomial.Polynomial([D[0], D[1] - 2 * D[0], D[0] - D[1] + D[2]])
        monotone = D[0] >= 0 and D[2] >= 0 and D[1] >= -2 * (D[0] * D[2]) ** 0.5
        scale = B0 * B1 if B0 * B1 > 0 else float("nan")
        return Theorem1(
            b01=B01,
            align=B01 / scale**0.5,
            slacks=(D[0] / scale, D[1] / scale, D[2] / scale),
            monotone=bool(monotone),
            turns=() if monotone else _turns(fall),
        )

    def _theorem2(self) -> Theorem2:
        g = self._fall_of_pfc2()
        if g is None:
            return Theorem2(float("nan"), float("nan"), float("nan"), ())
        if self.end == "etf":
            g = np.polynomial.Polynomial(np.cumsum(g.coef)[:-1])  # g = (1 - t) times this
        turns = _turns(g)
        t0 = turns[-1] if turns else 0.0
        t0 = t0 if g((t0 + 1) / 2) >= 0 else float("nan")
        return Theorem2(t0, 1 - t0, self._curvature() if self.end == "etf" else float("nan"), turns)

    def _fall_of_pfc2(self) -> np.polynomial.Polynomial | None:
        """A polynomial of degree 4 that is positive where PFC2 falls; `None` if undefined."""
        A, B = self.means.numpy()
        if not np.isfinite(B).all() or not (A.any() and B.any()):
            return None
        C = A @ B.T + B @ A.T
        powers = [A @ A.T, C - 2 * A @ A.T, A @ A.T - C + B @ B.T]
        p = np.polynomial.Polynomial([np.trace(G) for G in powers])
        products = np.array([[(G * H).sum() for H in powers] for G in powers])
        r = np.polynomial.Polynomial([np.trace(products[:, ::-1], offset=2 - k) for k in range(5)])
        g = 2 * p.deriv() * r - p * r.deriv()
        if len(A) == 2 or np.abs(g.coef).max() <= 1e-12 * np.abs((p.deriv() * r).coef).max():
            return np.polynomial.Polynomial(np.zeros(5))  # two classes are always a frame
        return np.polynomial.Polynomial(g.coef[:5])  # the terms of t^5 cancel

    def _curvature(self) -> float:
        A, B = self.means.numpy()
        K = len(A)
        alpha, C = np.trace(B @ B.T) / (K - 1), A @ B.T + B @ A.T
        rest = C - np.trace(C) / (K - 1) * (np.eye(K) - 1 / K)
        return float((rest**2).sum() / (alpha**2 * (K - 1)))


def _turns(fall: np.polynomial.Polynomial) -> tuple[float, ...]:
    """Roots in (0, 1) at which a polynomial changes its sign, ascending; none if it is undefined."""
    if not np.isfinite(fall.coef).all():
        return ()
    z = np.asarray(fall.roots(), dtype=complex)
    real = z.real[np.abs(z.imag) <= REAL * np.maximum(1, np.abs(z))]
    roots = np.sort(real[(real > 0) & (real < 1)])
    cuts = np.concatenate([[0.0], roots, [1.0]])
    signs = np.sign(fall((cuts[1:] + cuts[:-1]) / 2))
    return tuple(float(root) for root, (a, b) in zip(roots, pairwise(signs), strict=True) if a * b < 0)
