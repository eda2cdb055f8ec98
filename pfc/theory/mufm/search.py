"""Minimise the reduced problem: L-BFGS, Newton's method, ways out of spurious minima, several starts.

The order of things and the two orthogonal escapes are ours, found by trial on many random problems: the
ridge start alone finds the best of 25 starts in all but a few noisy problems, and a homotopy from large
lam does worse than random starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from pfc.progress import shown
from pfc.theory.minimum import STARTS
from pfc.theory.mufm.reduced import Classifier, Point, Problem

HANDOVER = 1e-8  # gradient norm at which Newton's method takes over, L-BFGS stalls at 1e-9; ours
DENSE = 400  # numbers in W up to which the Hessian is a matrix, about 50 ms a step there; ours
ROUNDS = 30  # escapes in a row from one start; ours
PROVEN = 1e-9  # relative gap that counts as a proof; ours
DROP = 1e-10  # relative fall of the objective that counts as one; ours
See = Callable[[Classifier], None]
STEPS = 10.0 ** -np.arange(0, 5)  # lengths tried along a direction of negative curvature; ours


def _ignore(_: Classifier) -> None:
    """Default callback: does nothing."""


@dataclass(frozen=True, eq=False)
class Effort:
    """Limits of the search.

    Args:
        restarts: Random starts after the ridge start, unless it is proven to be the global minimum.
        iterations: Of L-BFGS, from each start.
        tolerance: Gradient norm to reach.
        seed: Of the random starts.
    """

    restarts: int
    iterations: int
    tolerance: float
    seed: int


@dataclass(frozen=True, eq=False)
class Found:
    """The best point and the objectives from all starts, in their order."""

    best: Point
    values: list[float]

    @property
    def spread(self) -> float:
        """Relative distance of the worst start from the best; 0 for one start."""
        return (max(self.values) - min(self.values)) / min(self.values)


def search(problem: Problem, effort: Effort, *, balanced: bool, progress: bool = False) -> Found:
    """The best minimum from the ridge start and random ones, up to one proven to be global."""
    points: list[Point] = []
    with shown("starts of the model", effort.restarts + 1, enabled=progress) as step:
        for W in _starts(problem, effort):
            points.append(settle(problem, W, effort, balanced=balanced))
            step(len(points), f"objective {points[-1].value:.6g}")
            if points[-1].gap <= PROVEN:
                break
    best = min(points, key=lambda point: point.value)
    return Found(best, [point.value for point in points])


def relaxed(point: Point, effort: Effort) -> Point:
    """The minimum of the problem with K zero features more, whose value is that of a convex one."""
    K = len(point.W)
    W = np.concatenate([point.W, np.zeros((K, K))], axis=1)
    return settle(point.problem.padded(), W, effort, balanced=False)


def settle(
    problem: Problem, W: Classifier, effort: Effort, *, balanced: bool, see: See = _ignore
) -> Point:
    """The lowest of the minima that a start and escapes from it lead to; `see` is called with each W."""
    left = effort.iterations
    for _ in range(ROUNDS):
        W, used = _descend(problem, W, left, effort.tolerance, see)
        left -= used
        point = _polished(problem.at(W), effort.tolerance, see=see) if left > 0 else problem.at(W)
        if left <= 0 or point.gap <= PROVEN:
            break
        W = _escaped(point, balanced=balanced)
        if W is point.W:
            break
    return point


def _starts(problem: Problem, effort: Effort) -> Iterator[Classifier]:
    """Ridge regression; then noise of its size, in coordinates in which the problem is well scaled."""
    ridge = problem.ridge()
    yield ridge
    rng = np.random.default_rng([effort.seed, STARTS])
    O, d = _scaling(problem, ridge)
    size = np.linalg.norm(O.T @ ridge / d) or 1.0
    for _ in range(effort.restarts):
        noise = rng.normal(size=d.shape)
        yield O @ (noise * (size / np.linalg.norm(noise)) * d)


def _scaling(problem: Problem, W: Classifier) -> tuple[Float64[np.ndarray, "K K"], Classifier]:
    """Coordinates W = O (U * d): the Hessian's leading part, lam P V S + lW V, is the identity there."""
    p, O = np.linalg.eigh(problem.at(W).P)
    return O, 1 / np.sqrt(problem.lam * p[:, None] * problem.e + problem.weight_decay)


def _descend(
    problem: Problem, W: Classifier, iterations: int, tolerance: float, see: See = _ignore
) -> tuple[Classifier, int]:
    """L-BFGS in scaled coordinates, until the gradient (unscaled) is small or round-off is reached."""
    from scipy.optimize import OptimizeResult, minimize

    O, d = _scaling(problem, W)
    goal, norm = max(tolerance, HANDOVER), np.inf

    def back(u: Float64[np.ndarray, " KR"]) -> Classifier:
        return O @ (u.reshape(d.shape) * d)

    def evaluate(u: Float64[np.ndarray, " KR"]) -> tuple[float, Float64[np.ndarray, " KR"]]:
        nonlocal norm
        value, gradient = problem.value_and_gradient(back(u))
        norm = float(np.linalg.norm(gradient))
        return value, ((O.T @ gradient) * d).ravel()

    def enough(intermediate_result: OptimizeResult) -> None:
        see(back(intermediate_result.x))
        if norm <= goal:
            raise StopIteration

    pairs = 20 if W.size <= DENSE else 5  # for wide problems as good at half the cost; ours
    limits = dict(maxiter=iterations, maxfun=2 * iterations + 20, ftol=1e-15, gtol=0.0)
    options: Any = dict(maxcor=pairs, **limits)
    found = minimize(
        evaluate, (O.T @ W / d).ravel(), jac=True, method="L-BFGS-B", callback=enough, options=options
    )
    return back(found.x), max(1, found.nit)


def _polished(point: Point, tolerance: float, steps: int = 20, see: See = _ignore) -> Point:
    """Newton's method, each step accepted only if the gradient becomes smaller."""
    for _ in range(steps):
        if point.gradient_norm <= tolerance:
            break
        D = _newton(point) if point.W.size <= DENSE else _newton_by_products(point)
        for length in (1.0, 0.5, 0.1):
            moved = point.problem.at(point.W + length * D)
            if moved.gradient_norm < point.gradient_norm:
                break
        else:
            break
        point = moved
        see(point.W)
    return point


def _curvatures(point: Point) -> tuple[Float64[np.ndarray, " KR"], Float64[np.ndarray, "KR KR"]]:
    """Eigenvalues and eigenvectors of the Hessian as a matrix."""
    size = point.W.size
    columns = point.hessian(np.eye(size).reshape(size, *point.W.shape)).reshape(size, size)
    values, vectors = np.linalg.eigh((columns + columns.T) / 2)
    return values, vectors


def _newton(point: Point) -> Classifier:
    """Newton's step; flat directions (turning what stands in zero features) are left alone."""
    values, vectors = _curvatures(point)
    size = np.abs(values)
    inverse = np.where(size > 1e-11 * size.max(), 1 / np.maximum(size, 1e-300), 0.0)
    return -(vectors @ (inverse * (vectors.T @ point.gradient.ravel()))).reshape(point.W.shape)


def _newton_by_products(point: Point, products: int = 200) -> Classifier:
    """Newton's step by conjugate gradients in scaled coordinates, cut short where it bends down."""
    O, d = _scaling(point.problem, point.W)
    residual = -d * (O.T @ point.gradient)
    step, direction, square = np.zeros_like(d), residual, np.vdot(residual, residual)
    goal = 1e-6 * square
    for _ in range(products):
        image = d * (O.T @ point.hessian(O @ (d * direction)))
        bend = np.vdot(direction, image)
        if bend <= 0 or square <= goal:
            break
        step = step + square / bend * direction
        residual = residual - square / bend * image
        before, square = square, np.vdot(residual, residual)
        direction = residual + square / before * direction
    return O @ (d * step)


def _escaped(point: Point, *, balanced: bool) -> Classifier:
    """The best point that an escape leads to, if it lies lower, else the point itself."""
    ways = _exchanged(point) if balanced else []
    ways += [*_turned(point), *_into_zero_features(point), *_along_curvature(point)]
    if not ways:
        return point.W
    values = [point.problem.value_and_gradient(W)[0] for W in ways]
    lowest = int(np.argmin(values))
    return ways[lowest] if values[lowest] < (1 - DROP) * point.value else point.W


def _exchanged(point: Point) -> list[Classifier]:
    """Turn the classes, so that the means of H agree best: W <- O^T W, O = polar(Mu_H^T Mu_X)."""
    problem, W, P = point.problem, point.W, point.P
    Mu_X = problem.Z * problem.root * (len(W) / problem.samples)
    Mu_H = Mu_X - (Mu_X @ W.T - np.eye(len(W))) @ P @ W
    U, _, Vt = np.linalg.svd(Mu_H @ Mu_X.T)
    return [(U @ Vt).T @ W]


def _turned(point: Point) -> list[Classifier]:
    """Turn the features, so that H agrees best with X: W <- W Q^T, Q = polar(X H^T)."""
    # at a critical point X H^T = S + W^T Lambda W / lam is symmetric: Q reflects what is negative
    if point.certificate >= 0:
        return []
    W, M = point.W, point.multiplier / point.problem.lam
    if W.size <= DENSE * len(W):
        values, vectors = np.linalg.eigh(np.diag(point.problem.e) + W.T @ M @ W)
        V = vectors[:, values < 0]
    else:  # of a wide problem only the most negative one in the span of W's rows
        V = _most_negative(point.problem.e, W, M)
    return [W - 2 * (W @ V) @ V.T] if V.shape[1] else []


def _most_negative(
    e: Float64[np.ndarray, " R"], W: Classifier, M: Float64[np.ndarray, "K K"]
) -> Float64[np.ndarray, "R one"]:
    """Direction in the span of the rows of W in which diag(e) + W^T M W is most negative, if it is."""
    basis = np.linalg.qr(W.T)[0]
    T = W @ basis
    values, vectors = np.linalg.eigh((basis.T * e) @ basis + T.T @ M @ T)
    return basis @ vectors[:, :1] if values[0] < 0 else np.zeros((len(e), 0))


def _into_zero_features(point: Point) -> list[Classifier]:
    """Put the negative directions of Lambda into features that are zero in the data: always downhill."""
    zero = np.flatnonzero(point.problem.e == 0)
    if not len(zero) or point.certificate >= 0:
        return []
    values, vectors = np.linalg.eigh(point.multiplier)
    count = min(len(zero), int((values < 0).sum()))
    size = np.sqrt(np.linalg.norm(point.W, 2) ** 2 + point.problem.beta)
    V = np.zeros_like(point.W)
    V[:, zero[:count]] = vectors[:, :count]
    return [point.W + length * V for length in size * STEPS]


def _along_curvature(point: Point) -> list[Classifier]:
    """Both ways along the direction of least curvature, if it is negative: off a saddle point."""
    if point.W.size > DENSE:
        return []
    values, vectors = _curvatures(point)
    if values[0] >= -1e-9 * values[-1]:
        return []
    size = np.sqrt(np.linalg.norm(point.W, 2) ** 2 + point.problem.beta)
    V = vectors[:, 0].reshape(point.W.shape)
    return [point.W + sign * length * V for length in size * STEPS for sign in (1, -1)]
