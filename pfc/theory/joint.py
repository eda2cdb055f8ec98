"""The objective of a classifier and free features, which UFM, MUFM and the paper's descent share.

In the paper's orientation, X and H are D x N and Y is one-hot, K x N. UFM has X = 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pfc.theory.collapse import cosine, measured
from pfc.theory.minimum import Minimum, Vector, least, minima

Loss = Literal["mse", "ce"]
LOSSES: tuple[Loss, ...] = ("mse", "ce")


@dataclass(frozen=True, eq=False)
class Joint:
    r"""The objective as a function of $(W, H, b)$ in one vector.

    $$ f = \mathcal L(W H + b 1^\top, Y) + \tfrac{\lambda_W}2 \|W\|_F^2
         + \tfrac\lambda2 \|H - X\|_F^2 + \tfrac{\lambda_b}2 \|b\|^2 $$

    Eqs. 2 and 13 of arXiv 2405.00985; the constants are lost there. The loss is the mean cross-entropy
    or $\frac1{2N}\|\cdot\|_F^2$, as in Tirer et al. 2023 and Zhu et al. 2021; inferred.

    Args:
        y: Class of each sample.
        Y: The same, one-hot.
        X: What the features are drawn to: the data, or zero.
        pull: How strongly, $\lambda$.
        weight_decay: $\lambda_W$.
        loss: `"mse"` or `"ce"`.
        bias: $\lambda_b$, zero for a bias that is free; `None` for no bias.
    """

    y: Int[np.ndarray, " N"]
    Y: Float64[np.ndarray, "K N"]
    X: Float64[np.ndarray, "D N"]
    pull: float
    weight_decay: float
    loss: Loss = "mse"
    bias: float | None = None

    @classmethod
    def of(cls, X: Float[Tensor, "N D"], y: Int[Tensor, " N"], **options: Any) -> "Joint":
        """The objective for data with one sample a row; zero data make UFM. Options as above."""
        if (loss := options.get("loss", "mse")) not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        labels = y.numpy()
        Y = np.ascontiguousarray(np.eye(labels.max() + 1)[labels].T)
        data = np.ascontiguousarray(X.detach().double().numpy().T)
        return cls(labels, Y, data, **options)

    @classmethod
    def without_data(cls, classes: int, features: int, per_class: int, **options: Any) -> "Joint":
        """The objective of UFM, whose classes are balanced; options as for `of`."""
        y = torch.arange(classes, device="cpu").repeat_interleave(per_class)
        return cls.of(torch.zeros(len(y), features, dtype=torch.float64, device="cpu"), y, **options)

    def split(
        self, theta: Vector
    ) -> tuple[Float64[np.ndarray, "K D"], Float64[np.ndarray, "D N"], Float64[np.ndarray, " B"]]:
        """W, H and b as views of the vector; b is empty without bias."""
        K, (D, N) = len(self.Y), self.X.shape
        W, H, b = np.split(theta, [K * D, K * D + D * N])
        return W.reshape(K, D), H.reshape(D, N), b

    def logits(self, theta: Vector) -> Float64[np.ndarray, "K N"]:
        """W H + b."""
        W, H, b = self.split(theta)
        return W @ H if self.bias is None else W @ H + b[:, None]

    def value(self, theta: Vector) -> tuple[float, Vector]:
        """The objective and its gradient."""
        W, H, b = self.split(theta)
        loss, G = (_mse if self.loss == "mse" else _ce)(self.logits(theta), self.Y)
        away, lb = H - self.X, self.bias or 0.0
        decay = self.weight_decay * (W**2).sum() + self.pull * (away**2).sum() + lb * (b**2).sum()
        dW, dH = G @ H.T + self.weight_decay * W, W.T @ G + self.pull * away
        db = G.sum(1)[: len(b)] + lb * b  # empty without bias
        return float(loss + decay / 2), np.concatenate([dW, dH, db], axis=None)

    def curvature(self, theta: Vector) -> Callable[[Vector], Vector]:
        """The product of the Hessian at `theta` with a vector."""
        W, H, _ = self.split(theta)
        Z, lb = self.logits(theta), self.bias or 0.0
        G = (_mse if self.loss == "mse" else _ce)(Z, self.Y)[1]
        p = softmax(Z) if self.loss == "ce" else None

        def product(direction: Vector) -> Vector:
            V, U, c = self.split(direction)
            dG = V @ H + W @ U
            if len(c):
                dG += c[:, None]
            if p is not None:
                dG = p * (dG - (p * dG).sum(0))
            dG /= self.Y.shape[1]
            dW, dH = dG @ H.T + G @ U.T + self.weight_decay * V, V.T @ G + W.T @ dG + self.pull * U
            return np.concatenate([dW, dH, dG.sum(1)[: len(c)] + lb * c], axis=None)

        return product

    def join(self, W: Float64[np.ndarray, "K D"], H: Float64[np.ndarray, "D N"]) -> Vector:
        """The vector of a classifier and features, with no bias yet."""
        return np.concatenate([W, H, np.zeros(0 if self.bias is None else len(self.Y))], axis=None)

    def normal_start(self, rng: np.random.Generator) -> Vector:
        """W, then H, from the standard normal distribution; the bias is zero."""
        K, (D, N) = len(self.Y), self.X.shape
        return self.join(rng.normal(size=(K, D)), rng.normal(size=(D, N)))


def _mse(Z: Float64[np.ndarray, "K N"], Y: Float64[np.ndarray, "K N"]) -> tuple[float, np.ndarray]:
    R, N = Z - Y, Y.shape[1]
    return float((R**2).sum() / (2 * N)), R / N


def _ce(Z: Float64[np.ndarray, "K N"], Y: Float64[np.ndarray, "K N"]) -> tuple[float, np.ndarray]:
    # how far the others are above the own class; no digit is lost
    others = np.where(Y > 0, -np.inf, Z - (Z * Y).sum(0))
    loss = np.logaddexp(0.0, np.logaddexp.reduce(others, axis=0))
    return float(loss.mean()), (softmax(Z) - Y) / Y.shape[1]


def softmax(
    Z: Float64[np.ndarray, "K N"], out: Float64[np.ndarray, "K N"] | None = None
) -> Float64[np.ndarray, "K N"]:
    """Probabilities of logits, which they may replace."""
    p = np.subtract(Z, Z.max(0), out=out)
    np.exp(p, out=p)
    p /= p.sum(0)
    return p


@dataclass(frozen=True, eq=False)
class JointSolution:
    """A classifier and features found together.

    Args:
        W: The classifier.
        b: Its bias; zero without one.
        H: The features, one sample a row.
        objective: The value reached.
        gradient_norm: Euclidean norm of the gradient in all variables.
        spread: The largest objective that a start has led to, less the least.
        starts: How many starts were made.
        pfc1: Within-class over between-class variance of the features.
        pfc2: Distance of their class means from a simplex equiangular tight frame.
        pfc3: Fraction of them nearest to their own class mean.
        cosine: Alignment with the data; NaN where there are none.
    """

    W: Float64[Tensor, "K D"]
    b: Float64[Tensor, " K"]
    H: Float64[Tensor, "N D"]
    objective: float
    gradient_norm: float
    spread: float
    starts: int
    pfc1: float
    pfc2: float
    pfc3: float
    cosine: float

    @classmethod
    def of(cls, problem: Joint, found: list[Minimum]) -> "JointSolution":
        """The least of the minima found of a problem, with its metrics."""
        one, spread = least(found)
        W, H, b = tensors(problem, one.theta)
        return cls(W, b, H, one.value, one.gradient_norm, spread, len(found), *read(problem, H))

    def features(self) -> Float64[Tensor, "N D"]:
        """The features, one sample a row."""
        return self.H


def tensors(
    problem: Joint, theta: Vector
) -> tuple[Float64[Tensor, "K D"], Float64[Tensor, "N D"], Float64[Tensor, " K"]]:
    """W, H and b as tensors of their own, one sample a row."""
    W, H, b = (part.copy() for part in problem.split(theta))
    bias = b if len(b) else np.zeros(len(W))
    return torch.from_numpy(W), torch.from_numpy(H.T.copy()), torch.from_numpy(bias)


def read(problem: Joint, H: Float64[Tensor, "N D"]) -> tuple[float, float, float, float]:
    """PFC1-3 of features and their alignment with the data."""
    row = measured(H, torch.from_numpy(problem.y))
    return row.pfc1, row.pfc2, row.pfc3, cosine(H, torch.from_numpy(problem.X).T)


def best(
    problem: Joint, starts: Iterator[Vector], total: int, *, progress: bool, **search: Any
) -> JointSolution:
    """The least of the minima that `total` starts lead to, with the spread over them."""
    found = minima(problem, starts, total, size=problem.X.size, progress=progress, **search)
    return JointSolution.of(problem, found)
