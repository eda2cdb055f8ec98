"""Minima to the last digits: L-BFGS in float64, then Newton steps that lessen the gradient.

L-BFGS stalls at gradient norms near 1e-9, where differences of the objective drown in rounding; Newton
steps need no such differences.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from pfc.device import one_thread
from pfc.progress import shown

Vector = Float64[np.ndarray, " P"]

STARTS = 1  # beside the seed of random starts: else they would be the toy data's own noise; ours
MEMORY = 20  # pairs of L-BFGS; ours
ITERATIONS = 20_000  # of L-BFGS at most; ours
FIRST = 1e-9  # largest entry of the gradient at which L-BFGS hands over; ours
TIGHT = 1e-13  # gradient norm at which the polish has nothing left to do; ours
ROUNDS = 30  # Newton steps at most; ours
DROP = 1e-10  # relative fall of the objective that counts as one; ours
ROUNDING = 1e-13  # relative rise of the objective that counts as rounding; ours


@runtime_checkable
class Smooth(Protocol):
    """An objective with its gradient and its curvature."""

    def value(self, theta: Vector) -> tuple[float, Vector]:
        """The objective and its gradient."""

    def curvature(self, theta: Vector) -> Callable[[Vector], Vector]:
        """The product of the Hessian at `theta` with a vector."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """A point at which the gradient vanishes, up to rounding.

    Args:
        theta: The point.
        value: The objective there.
        gradient_norm: Euclidean norm of the gradient there.
    """

    theta: Vector
    value: float
    gradient_norm: float


def minimum(problem: Smooth, start: Vector) -> Minimum:
    """The local minimum that L-BFGS finds from a start, refined by Newton steps."""
    from scipy.optimize import minimize

    limits = dict(maxiter=ITERATIONS, maxfun=2 * ITERATIONS, ftol=0.0, gtol=FIRST)
    options: Any = dict(maxcor=MEMORY, **limits)
    found = minimize(problem.value, start, jac=True, method="L-BFGS-B", options=options)
    return _polish(problem, found.x)


def minima(
    problem: Smooth,
    starts: Iterable[Vector],
    total: int,
    *,
    size: int,  # of the data
    progress: bool,
    turned: Callable[[Vector], Vector] | None = None,
    enough: Callable[[Vector], bool] | None = None,
) -> list[Minimum]:
    """The minima of `total` starts, `turned` while that is lower, up to one that is `enough`."""
    found: list[Minimum] = []
    with one_thread(size), shown("solve", total, enabled=progress) as step:
        for start in starts:
            one = minimum(problem, start)
            while turned and problem.value(other := turned(one.theta))[0] < one.value * (1 - DROP):
                one = minimum(problem, other)
            found.append(one)
            step(len(found), f"objective {one.value:.6g}")
            if enough and enough(one.theta):
                break
    return found


def least(found: Sequence[Minimum]) -> tuple[Minimum, float]:
    """The least of some minima, and how far the largest lies above it."""
    first = min(found, key=lambda one: one.value)
    return first, max(one.value for one in found) - first.value


def _polish(problem: Smooth, theta: Vector) -> Minimum:
    """Newton steps as long as they lessen the gradient and do not raise the objective."""
    f, g = problem.value(theta)
    for _ in range(ROUNDS):
        if np.linalg.norm(g) <= TIGHT:
            break
        candidate = theta + _newton_step(problem, theta, g)
        f_new, g_new = problem.value(candidate)
        if np.linalg.norm(g_new) >= np.linalg.norm(g) or f_new > f + ROUNDING * abs(f):
            break
        theta, f, g = candidate, f_new, g_new
    return Minimum(theta, f, float(np.linalg.norm(g)))


def _newton_step(problem: Smooth, theta: Vector, g: Vector) -> Vector:
    """Minimal residual: a rotation of the features costs nothing, so the Hessian is singular."""
    from scipy.sparse.linalg import LinearOperator, minres

    shape = (len(theta), len(theta))
    hessian = LinearOperator(shape, matvec=problem.curvature(theta), dtype=np.float64)
    step: Vector = minres(hessian, -g, rtol=1e-8, maxiter=1000)[0]
    return step
