"""MUFM with cross-entropy: neither the classifier nor the features can be eliminated."""

import numpy as np
from jaxtyping import Float64

from pfc.samples import ArrayLike, in_float64
from pfc.theory.coefficients import at_least, positive
from pfc.theory.joint import Joint, JointSolution, best
from pfc.theory.minimum import STARTS, Vector
from pfc.theory.mufm.bounds import entropy_bounds
from pfc.theory.mufm.flow import ridge
from pfc.theory.mufm.search import PROVEN
from pfc.theory.mufm.statistics import Samples


def solve_cross_entropy(
    X: ArrayLike,
    y: ArrayLike,
    *,
    lam: float,
    weight_decay: float = 0.005,
    restarts: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> JointSolution:
    r"""Minimise MUFM with cross-entropy, in the classifier and the features together.

    $$ \frac1N \sum_i \mathrm{CE}(W h_i, y_i) + \tfrac{\lambda_W}2 \|W\|_F^2
       + \tfrac\lambda2 \|H - X\|_F^2 $$

    Eq. 13 of arXiv 2405.00985; its constants are lost and the form is inferred. The first start has the
    features at the data and the ridge classifier, the others are standard normal. From a minimum the
    features are turned and mirrored towards the data, which leaves the loss as it is, and no start
    follows one that is proven to be global.

    Args:
        X: The data, N x D, one sample a row.
        y: Class of each sample.
        lam: How strongly the features are drawn to the data.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        restarts: Random starts beside the first; their number is ours.
        seed: Of the random starts.
        progress: Show a progress bar.

    Returns:
        The least objective found, its gradient norm, and the spread over the starts.

    Raises:
        ValueError: If the data, a coefficient or `restarts` is out of range.

    Examples:
        >>> X = [[1.0], [2.0], [-1.0], [-2.0]]
        >>> found = solve_cross_entropy(X, [0, 0, 1, 1], lam=0.1, progress=False)
        >>> found.gradient_norm < 1e-10
        True
    """
    data, labels = in_float64(X, y)
    positive(lam=lam, weight_decay=weight_decay)
    at_least(0, restarts=restarts, seed=seed)
    problem = Joint.of(data, labels, pull=lam, weight_decay=weight_decay, loss="ce")
    rng = np.random.default_rng([seed, STARTS])
    first = problem.join(ridge(data, labels, weight_decay=weight_decay).numpy(), problem.X)
    starts = (first if i == 0 else problem.normal_start(rng) for i in range(restarts + 1))

    def enough(theta: Vector) -> bool:
        W, H, _ = problem.split(theta)
        upper, lower, _ = proof((data, labels), W, H.T, lam=lam, weight_decay=weight_decay)
        return bool(upper - lower <= PROVEN * upper)

    def turned(theta: Vector) -> Vector:
        W, H, _ = problem.split(theta)
        U, _, Vt = np.linalg.svd(problem.X @ H.T)
        return problem.join(W @ (U @ Vt).T, U @ Vt @ H)

    return best(problem, starts, restarts + 1, progress=progress, turned=turned, enough=enough)


def proof(
    samples: Samples,
    W: Float64[np.ndarray, "K D"],
    H: Float64[np.ndarray, "N D"],
    *,
    lam: float,
    weight_decay: float,
) -> tuple[float, float, float]:
    """Bounds of the objective and its least value for the samples as solved, and the certificate."""
    X, y = samples[0].numpy(), samples[1].numpy()
    return entropy_bounds(X, y, W, H, lam=lam, weight_decay=weight_decay)
