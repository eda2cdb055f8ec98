"""What is proven of a point: bounds of the objective and of its least value, with rounding in them.

For any loss l that is convex in the logits Z = W H, K x N, and any U of the same shape, duality gives

    F* >= -l*(U) - 1/2 |Lambda^{-1/2} U X^T|^2,    Lambda = lW I - U U^T / lam positive definite,

where l* is the conjugate of l; at a minimum U is the slope of l. For squared loss U = (Z - Y)/N and for
cross-entropy U = (P - Y)/N, P being the softmax. Near the border of what is allowed U is shortened,
which mixes P with Y. Derived for this package, not in arXiv 2405.00985.

Nothing is assumed of U, so how it was found costs no proof. What is computed from X and U has the error
of sums of that many terms, and what X itself is known to likewise; both are taken off the bounds. An
offset of the data or columns of different size make them wider, never false.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

Vector = Float64[np.ndarray, " D"]
Square = Float64[np.ndarray, "K K"]
Wide = Float64[np.ndarray, "K D"]
Samples = Float64[np.ndarray, "N D"]
# U as J rows: its factor on the residuals of the samples, and its column of each class
Rows = Float64[np.ndarray, "J D"]
Columns = Float64[np.ndarray, "J K"]
SHORTER = 1 - np.concatenate([[0.0], np.geomspace(1e-15, 0.9, 60)])  # lengths of U tried; ours
# relative error of a sum of n terms over the root of n, and a factor for safety (Higham and Mary 2019)
ROUNDING = 4 * float(np.finfo(np.float64).eps)


def rounding(samples: float, features: int) -> float:
    """Relative error of what is computed from so many samples and features."""
    return ROUNDING * (samples + features) ** 0.5


@dataclass(frozen=True, eq=False)
class Data:
    """What the bounds read of data, K classes and D features.

    Args:
        count: Samples of each class.
        mean: Mean of each class, as the model sees it.
        within: Summed outer products of the residuals.
        target: Labels of each class, a column each: the identity, less its mean with a free bias.
        size: Norm of each feature over the samples, before any mean was taken off.
    """

    count: Float64[np.ndarray, " K"]
    mean: Wide
    within: Float64[np.ndarray, "D D"]
    target: Square
    size: Vector

    @property
    def error(self) -> float:
        """Relative error of what is computed."""
        return rounding(float(self.count.sum()), len(self.size))

    def gram(self, V: Rows, T: Columns) -> Float64[np.ndarray, "J J"]:
        """U U^T, for U of V times the residual of a sample plus its class's column of T."""
        return (V @ self.within) @ V.T + (T * self.count) @ T.T

    def length(self, V: Rows, T: Columns) -> float:
        """A bound of |U| that no cancellation among the features lessens."""
        spread = np.sqrt(np.diag(self.within)) + self.error * self.size
        return float(np.linalg.norm(V, axis=0) @ spread + self.norm(T))

    def slack(self, V: Rows, T: Columns) -> float:
        """Error of |U|^2 and of U U^T."""
        moved = self.error * float(np.linalg.norm(V, axis=0) @ self.size)  # of an inexact class mean
        return self.error * self.length(V, T) ** 2 + moved**2

    def norm(self, T: Columns) -> float:
        """|U| of what is the same in each class."""
        return float(np.sqrt((T**2 @ self.count).sum()))


@dataclass(frozen=True, eq=False)
class Dual:
    """A point U of the dual and what its bound needs of it.

    Args:
        gram: U U^T.
        pulled: U X^T.
        length: A bound of |U|.
        slack: Error of `gram`.
        size: Norm of each feature of X.
        error: Relative error of `pulled`, over `length` and `size`.
        lam: Coefficient of the change of the data.
        weight_decay: Coefficient of W.
    """

    gram: Square
    pulled: Wide
    length: float
    slack: float
    size: Vector
    error: float
    lam: float
    weight_decay: float

    @property
    def certificate(self) -> float:
        """Least eigenvalue of Lambda over lW, less its rounding; a proof at a minimum from 0 on."""
        top = np.linalg.eigvalsh(self.gram)[-1]
        return float(1 - (top + self.slack) / (self.lam * self.weight_decay)) - self.error

    def penalties(self) -> tuple[Float64[np.ndarray, " A"], Float64[np.ndarray, " A"]]:
        """Lengths a at which a U is allowed, and there 1/2 |Lambda^{-1/2} a U X^T|^2 from above."""
        values, q = np.linalg.eigh((self.gram + self.gram.T) / 2)
        limit = self.lam * self.weight_decay * (1 - 4 * self.error)
        top = values[-1] + self.slack
        lengths = SHORTER * (1.0 if top < limit else (limit / top) ** 0.5)
        allowed, found = [], []
        rows = q.T @ self.pulled
        for a in lengths:
            left = self.weight_decay - a**2 * (values + self.slack) / self.lam
            left = left - self.error * self.weight_decay
            if left[-1] <= 0:
                continue
            W = q @ (a * rows / left[:, None])
            wrong = a * self.error * self.length * self.size
            square = (a**2 * rows**2 / left[:, None]).sum() * (1 + self.error)
            cross = 2 * np.linalg.norm(W, axis=0) @ wrong + wrong @ wrong / left[-1]
            allowed.append(a)
            found.append((square + cross) / 2)
        return np.array(allowed), np.array(found)


def squared_upper(
    data: Data, W: Wide, V: Rows, T: Columns, *, lam: float, weight_decay: float
) -> tuple[float, float]:
    """The objective of W and H = X - W^T U / lam, of the best H if U is the slope; and its bound."""
    e, N, WW = data.error, data.count.sum(), W @ W.T
    rest = W - WW @ V / lam, W @ data.mean.T - data.target - WW @ T / lam
    parts = np.linalg.norm(np.abs(W) + np.abs(WW) @ np.abs(V) / lam, axis=0)
    fixed = data.norm(data.target) + data.norm(np.abs(WW) @ np.abs(T)) / lam
    square, wrong = data.gram(*rest).trace(), e * (parts @ data.size + fixed)
    most = (max(square + data.slack(*rest), 0.0) ** 0.5 + wrong) ** 2
    O, s, _ = np.linalg.svd(W, full_matrices=False)
    turned = O.T @ V, O.T @ T
    moved = s**2 @ np.diag(data.gram(*turned))
    slack = sum(x**2 * data.slack(v[None], t[None]) for x, v, t in zip(s, *turned, strict=True))
    decay = weight_decay * (W**2).sum()
    value = float(square / N + moved / lam + decay) / 2
    return value, float((most / N + (moved + slack) / lam + decay) / 2 * (1 + e))


def squared_lower(
    data: Data, V: Wide, T: Square, *, lam: float, weight_decay: float
) -> tuple[float, float]:
    """A bound from below of the least objective, and the certificate of U."""
    dual = Dual(
        gram=data.gram(V, T),
        pulled=V @ data.within + (T * data.count) @ data.mean,
        length=data.length(V, T),
        slack=data.slack(V, T),
        size=data.size,
        error=data.error,
        lam=lam,
        weight_decay=weight_decay,
    )
    a, penalty = dual.penalties()
    N, along = data.count.sum(), T * data.count * data.target
    conjugate = a * along.sum() + a**2 * N / 2 * (dual.gram.trace() + dual.slack)
    wrong = data.error * (a * np.abs(along).sum() + a**2 * N / 2 * dual.gram.trace() + penalty)
    return max(0.0, float((-conjugate - penalty - wrong).max(initial=0.0))), dual.certificate


def entropy_bounds(
    X: Samples,
    y: Int64[np.ndarray, " N"],
    W: Wide,
    H: Samples,
    *,
    lam: float,
    weight_decay: float,
) -> tuple[float, float, float]:
    """Bounds from above at W and H and from below of the least for this X, and the certificate."""
    N, e, size = len(X), rounding(float(len(X)), X.shape[1]), np.linalg.norm(X, axis=0)
    p, loss = _wrong_answers(H @ W.T, y)
    U = p / N
    U[np.arange(N), y] = -U.sum(1)
    length, logits = float(np.linalg.norm(U)), np.linalg.norm(W, axis=0)
    wrong = e * logits @ (np.linalg.norm(H, axis=0) + size)  # in the logits, whose curvature is 1/(2N)
    rest = weight_decay * (W**2).sum() + lam * ((H - X) ** 2).sum()
    upper = (loss + rest / 2) * (1 + e) + length * wrong + wrong**2 / (4 * N)
    gram, pulled, slack = U.T @ U, U.T @ X, e * length**2
    dual = Dual(gram, pulled, length, slack, size, e, lam, weight_decay)
    best = 0.0
    for a, penalty in zip(*dual.penalties(), strict=True):
        if a * p.sum(1).max() * (1 + e) < 1:
            gained, doubt = _entropy(a * p)
            best = max(best, gained - penalty - e * (doubt + penalty))
    return float(upper), best, dual.certificate


def _wrong_answers(
    Z: Float64[np.ndarray, "N K"], y: Int64[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, "N K"], float]:
    """Probabilities with zeros for the own classes, and the mean cross-entropy, to relative rounding."""
    own = np.arange(len(y)), y
    M = Z - Z[own][:, None]
    M[own] = -np.inf
    norm = np.logaddexp(0.0, np.logaddexp.reduce(M, axis=1))
    return np.exp(M - norm[:, None]), float(norm.mean())


def _entropy(p: Float64[np.ndarray, "N K"]) -> tuple[float, float]:
    """Mean entropy of probabilities that lack those of the own classes, and what rounds in it."""
    from scipy.special import xlog1py, xlogy

    q = p.sum(1)
    terms = -xlogy(p, p).sum(1) - xlog1py(1 - q, -q)
    return float(terms.mean()), float((np.abs(terms) + q).mean())
