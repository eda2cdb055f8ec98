"""The model with squared loss in W alone: value, gradient, Hessian product and what proves a minimum.

Columns are samples. Given W, the best H is (W^T W + beta I)^{-1} (W^T Y + beta X), beta = N lam. Put in,
 with S = X X^T, C = Y X^T, A = W S - C, Q = (W X - Y)(W X - Y)^T and P = (W W^T + beta I)^{-1},

    F(W) = lam/2 tr(P Q) + lW/2 |W|^2.

In the eigenbasis of S an evaluation costs K K D, whatever N. Derived for this package, not in
arXiv 2405.00985. Arrays are numpy: at K = 4, D = 20 the calls would cost more than the numbers.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float64

Classifier = Float64[np.ndarray, "K R"]


@dataclass(frozen=True, eq=False)
class Problem:
    """The reduced problem (13) of arXiv 2405.00985 in the eigenbasis of X^T X.

    Args:
        root: Singular values of X; of the zero ones at most K, for more cannot matter.
        Z: Y X^T in the eigenbasis over `root`; zero where that is.
        rest: Y Y^T - Z Z^T, what no W can fit.
        samples: N.
        lam: Coefficient of the change of the data.
        weight_decay: Coefficient of W.
    """

    root: Float64[np.ndarray, " R"]
    Z: Classifier
    rest: Float64[np.ndarray, "K K"]
    samples: float
    lam: float
    weight_decay: float

    @cached_property
    def e(self) -> Float64[np.ndarray, " R"]:
        """Eigenvalues of X^T X."""
        return self.root**2

    @property
    def beta(self) -> float:
        """N lam, what a change of one sample costs beside its loss."""
        return self.samples * self.lam

    @cached_property
    def _eye(self) -> Float64[np.ndarray, "K K"]:
        return np.eye(len(self.Z))

    def _inverse(self, W: Classifier) -> Float64[np.ndarray, "K K"]:
        """(W W^T + beta I)^{-1}, also where beta is lost beside W W^T to rounding."""
        G = W @ W.T
        try:
            return np.linalg.inv(G + self.beta * self._eye)
        except np.linalg.LinAlgError:
            values, q = np.linalg.eigh(G)
            return (q / (np.maximum(values, 0.0) + self.beta)) @ q.T

    def value_and_gradient(self, W: Classifier) -> tuple[float, Classifier]:
        """F(W) = lam/2 tr(P Q) + lW/2 |W|^2 and lam (P A - P Q P W) + lW W, at once."""
        B = W * self.root
        B -= self.Z
        P = self._inverse(W)
        PQ = P @ (B @ B.T + self.rest)
        value = (self.lam * PQ.trace() + self.weight_decay * np.vdot(W, W)) / 2
        B *= self.root
        gradient = (self.lam * P) @ B
        gradient += (self.weight_decay * self._eye - self.lam * PQ @ P) @ W
        return float(value), gradient

    def at(self, W: Classifier) -> "Point":
        """The point W with the matrices that its derivatives share."""
        B = W * self.root - self.Z
        P = self._inverse(W)
        return Point(self, W, (P + P.T) / 2, B @ B.T + self.rest, B * self.root)

    def ridge(self) -> Classifier:
        """The best W for H = X: ridge regression, C (S + N lW I)^{-1}."""
        return self.Z * (self.root / (self.e + self.samples * self.weight_decay))

    def padded(self) -> "Problem":
        """The problem with K zero features more: its minimum is that of a convex relaxation."""
        K = len(self.Z)
        wide = np.concatenate([self.Z, np.zeros((K, K))], axis=1)
        return replace(self, root=np.concatenate([self.root, np.zeros(K)]), Z=wide)


@dataclass(frozen=True, eq=False)
class Point:
    """A point of a reduced problem.

    Args:
        problem: The problem.
        W: The point.
        P: (W W^T + beta I)^{-1}.
        Q: (W X - Y)(W X - Y)^T.
        A: (W X - Y) X^T.
    """

    problem: Problem
    W: Classifier
    P: Float64[np.ndarray, "K K"]
    Q: Float64[np.ndarray, "K K"]
    A: Classifier

    @cached_property
    def value(self) -> float:
        """The objective, F(W)."""
        problem = self.problem
        fit = np.vdot(self.P, self.Q)
        return float(problem.lam * fit + problem.weight_decay * np.vdot(self.W, self.W)) / 2

    @cached_property
    def gradient(self) -> Classifier:
        """Of F: lam P A + Lambda W."""
        return self.problem.lam * self.P @ self.A + self.multiplier @ self.W

    @cached_property
    def gradient_norm(self) -> float:
        """Frobenius norm of the gradient."""
        return float(np.linalg.norm(self.gradient))

    @cached_property
    def multiplier(self) -> Float64[np.ndarray, "K K"]:
        """Lambda = lW I - lam P Q P: at a critical point, if it is PSD, W is a global minimum."""
        problem = self.problem
        return problem.weight_decay * np.eye(len(self.P)) - problem.lam * self.P @ self.Q @ self.P

    @cached_property
    def certificate(self) -> float:
        """Least eigenvalue of Lambda over lW, in (-inf, 1]; a global minimum is proven from 0 on."""
        return float(np.linalg.eigvalsh(self.multiplier)[0]) / self.problem.weight_decay

    @cached_property
    def residue(self) -> float:
        """What the gradient alone adds to the gap: 2 |grad| sqrt(2/(lW F)), free of the data's scale."""
        if self.value <= 0:  # by rounding, of a W so large that the data are lost beside it
            return float("inf")
        scale = (2 / (self.problem.weight_decay * self.value)) ** 0.5
        return 2 * self.gradient_norm * scale

    @property
    def gap(self) -> float:
        """A bound of (F - F*)/F at any W, but for rounding: 4 max(0, -certificate) + the residue."""
        return min(1.0, 4 * max(0.0, -self.certificate) + self.residue)

    def hessian(self, V: Float64[np.ndarray, "*batch K R"]) -> Float64[np.ndarray, "*batch K R"]:
        """Product of the Hessian with one or more directions V."""
        # with dP = -P (V W^T + W V^T) P and dQ = V A^T + A V^T it is
        # lam (dP A + P V S - dP Q P W - P dQ P W - P Q dP W - P Q P V) + lW V
        W, P, Q, A, lam = self.W, self.P, self.Q, self.A, self.problem.lam
        VW, VA = V @ W.T, V @ A.T
        dP = -P @ (VW + VW.swapaxes(-1, -2)) @ P
        dQ = VA + VA.swapaxes(-1, -2)
        turned = P @ Q @ dP
        inner = P @ dQ @ P + turned + turned.swapaxes(-1, -2)
        return lam * (dP @ A + P @ (V * self.problem.e) - inner @ W) + self.multiplier @ V
