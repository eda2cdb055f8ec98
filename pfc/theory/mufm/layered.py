"""MUFM with the features of every layer free, Eq. 12 of arXiv 2405.00985, solved as it stands.

Theorem 3 says that its features lie on straight lines at equal distances and that only the last layer
matters. Nothing of this is used here, so that it can be seen.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.samples import ArrayLike, in_float64
from pfc.theory.coefficients import at_least, positive, several
from pfc.theory.minimum import STARTS, Minimum, Vector, least, minima
from pfc.theory.mufm.flow import ridge

Classifier = Float64[np.ndarray, "K D"]
Layer = Float64[np.ndarray, "D N"]


@dataclass(frozen=True, eq=False)
class Layered:
    """A classifier and the features of all layers.

    Args:
        W: The classifier.
        H: Features of each layer, the data first.
        objective: The value reached.
        gradient_norm: Euclidean norm of the gradient in the classifier and all free features.
        spread: The largest objective that a start has led to, less the least.
        lams: Coefficient of each layer.
    """

    W: Float64[Tensor, "K D"]
    H: Float64[Tensor, "L1 N D"]
    objective: float
    gradient_norm: float
    spread: float
    lams: Float64[Tensor, " L"]

    @property
    def increments(self) -> Float64[Tensor, "L N D"]:
        """What each layer adds; all the same for one coefficient, by Theorem 3."""
        return self.H.diff(dim=0)

    @property
    def positions(self) -> Float64[Tensor, " L1"]:
        r"""Where Theorem 3 puts the layers on the straight line from the data to the last features.

        $t_l = \sum_{j \le l} \lambda_j^{-1} / \sum_j \lambda_j^{-1}$; derived for this package from
        Theorem 3, which has one coefficient for all layers.
        """
        steps = 1 / self.lams
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)]) / steps.sum()

    @property
    def lam(self) -> float:
        r"""Coefficient of Eq. 13 with the same solution, $1 / \sum_j \lambda_j^{-1}$."""
        return float(1 / (1 / self.lams).sum())

    def features(self) -> Float64[Tensor, "N D"]:
        """The features of the last layer, one sample a row."""
        return self.H[-1]


@dataclass(frozen=True, eq=False)
class _Chain:
    """The objective as a function of W, the features being solved for at each W.

    For fixed W they solve a linear system over the layers, T x I + e_L e_L' x W'W / N: T is tridiagonal
    and the same for every feature, W only acts on the last layer and has rank K at most.
    """

    X: Layer
    Y: Float64[np.ndarray, "K N"]
    lams: Float64[np.ndarray, " L"]
    weight_decay: float

    def value(self, theta: Vector) -> tuple[float, Vector]:
        """The objective and its gradient in W."""
        W = theta.reshape(len(self.Y), -1)
        f, G, _ = self.at(W, self.features(W))
        return f, G.ravel()

    def at(
        self, W: Classifier, H: Float64[np.ndarray, "L1 D N"]
    ) -> tuple[float, Classifier, Float64[np.ndarray, "L D N"]]:
        """The objective and its gradients in W and in the free features."""
        N, R, D = self.Y.shape[1], W @ H[-1] - self.Y, np.diff(H, axis=0)
        pull = self.lams[:, None, None] * D
        f = (R**2).sum() / N + self.weight_decay * (W**2).sum() + (pull * D).sum()
        slope = pull - np.concatenate([pull[1:], np.zeros_like(pull[:1])])
        slope[-1] += W.T @ R / N
        return float(f / 2), R @ H[-1].T / N + self.weight_decay * W, slope

    def curvature(self, theta: Vector) -> Callable[[Vector], Vector]:
        """The product of the Hessian with a vector; the features follow W."""
        W, N = theta.reshape(len(self.Y), -1), self.Y.shape[1]
        near, held = self._reach()[1], self._held(W)
        H = self.features(W)[-1]
        R = W @ H - self.Y

        def product(direction: Vector) -> Vector:
            V = direction.reshape(W.shape)
            dH = held(-near / N * (V.T @ R), -V @ H)
            dR = V @ H + W @ dH
            return ((dR @ H.T + R @ dH.T) / N + self.weight_decay * V).ravel()

        return product

    def features(self, W: Classifier) -> Float64[np.ndarray, "L1 D N"]:
        """The best features of every layer for a classifier, the data first."""
        force = self.lams[0] * self.X
        end = self._held(W)(self._reach()[0] * force, self.Y)
        between = self._between()[:, :, None, None]
        return np.concatenate([self.X[None], between[:, 0] * force + between[:, 1] * end])

    def _links(self) -> Float64[np.ndarray, "L L"]:
        """The tridiagonal T."""
        after = np.append(self.lams[1:], 0.0)
        return np.diag(self.lams + after) - np.diag(after[:-1], 1) - np.diag(after[:-1], -1)

    def _reach(self) -> tuple[float, float]:
        """How far unit forces on the first and on the last layer move the last, with no classifier."""
        force = np.zeros(len(self.lams))
        force[-1] = 1
        moved = np.linalg.solve(self._links(), force)
        return moved[0], moved[-1]

    def _between(self) -> Float64[np.ndarray, "L 2"]:
        """What each layer takes of a force on the first and of the place of the last, which is held."""
        T, given = self._links(), np.zeros((len(self.lams), 2))
        given[0, 0] = 1
        T[-1, :], T[-1, -1], given[-1] = 0, 1, (0, 1)
        return np.linalg.solve(T, given)

    def _held(self, W: Classifier) -> Callable[[Layer, Float64[np.ndarray, "K N"]], Layer]:
        """Where the last layer rests, from where it would without W and what W is to make of it."""
        U, s, V = np.linalg.svd(W, full_matrices=False)
        N, near, s = self.Y.shape[1], self._reach()[1], s[:, None]

        def held(free: Layer, aim: Float64[np.ndarray, "K N"]) -> Layer:
            along = V @ free
            rest = free - V.T @ along
            rest -= V.T @ (V @ rest)  # the rounding that a large `free` has left along V
            return rest + V.T @ ((along + near / N * s * (U.T @ aim)) / (1 + near / N * s**2))

        return held


def solve_layered(
    X: ArrayLike,
    y: ArrayLike,
    *,
    layers: int,
    lam: float | Sequence[float],
    weight_decay: float = 0.005,
    restarts: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Layered:
    r"""Minimise MUFM with all layers free, MSE.

    $$ \frac1{2N}\|W H_L - Y\|_F^2 + \tfrac{\lambda_W}2 \|W\|_F^2
       + \tfrac12 \sum_{l=1}^{L} \lambda_l \|H_l - H_{l-1}\|_F^2, \qquad H_0 = X $$

    Eq. 12 of arXiv 2405.00985, restored up to its constants; there all layers share one coefficient. By
    Theorem 3 it has the solution of Eq. 13 with $\lambda / L$, or $1 / \sum_l \lambda_l^{-1}$, in place
    of $\lambda$. Time and memory grow like (L + K) D N.

    Args:
        X: The data, N x D, one sample a row.
        y: Class of each sample.
        layers: L, the free layers.
        lam: The coefficient of Eq. 12, L times that of Eq. 13, the `lam` of the other solvers; or one
            for each layer, the first that of the step away from the data.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        restarts: Random starts beside the ridge classifier of the data; their number is ours.
        seed: Of the random starts.
        progress: Show a progress bar.

    Returns:
        The least objective found, its gradient norm, and the spread over the starts.

    Raises:
        ValueError: If the data, a coefficient, `layers` or `restarts` is out of range.

    Examples:
        >>> X, y = [[1.0], [2.0], [-1.0], [-2.0]], [0, 0, 1, 1]
        >>> found = solve_layered(X, y, layers=3, lam=0.1, restarts=0, progress=False)
        >>> bool((found.increments - found.increments.mean(0)).abs().max() < 1e-12)
        True
        >>> solve_layered(X, y, layers=3, lam=[0.4, 0.2, 0.1], restarts=0, progress=False).positions
        tensor([0.0000, 0.1429, 0.4286, 1.0000], dtype=torch.float64)
    """
    data, labels = in_float64(X, y)
    at_least(1, layers=layers)
    at_least(0, restarts=restarts, seed=seed)
    each = several("lam", lam) if isinstance(lam, Iterable) else [lam]
    if len(each) not in {1, layers}:
        raise ValueError(f"lam must be one number or one for each of {layers} layers, got {len(each)}")
    for one in each:
        positive(lam=one, weight_decay=weight_decay)
    first = ridge(data, labels, weight_decay=weight_decay).numpy()
    Y = np.eye(len(first))[labels.numpy()].T
    lams = np.full(layers, each, dtype=np.float64)
    chain = _Chain(np.ascontiguousarray(data.numpy().T), Y, lams, weight_decay)
    rng = np.random.default_rng([seed, STARTS])
    starts = ((first if i == 0 else rng.normal(size=first.shape)).ravel() for i in range(restarts + 1))
    found = minima(chain, starts, restarts + 1, size=data.numel(), progress=progress)
    return _layered(chain, found)


def _layered(chain: _Chain, found: list[Minimum]) -> Layered:
    one, spread = least(found)
    W = one.theta.reshape(len(chain.Y), -1)
    H = chain.features(W)
    f, dW, dH = chain.at(W, H)
    return Layered(
        W=torch.from_numpy(W.copy()),
        H=torch.from_numpy(H.transpose(0, 2, 1).copy()),
        objective=f,
        gradient_norm=float(np.sqrt((dW**2).sum() + (dH**2).sum())),
        spread=spread,
        lams=torch.from_numpy(chain.lams),
    )
