r"""What Theorem 4 of arXiv 2405.00985 rests on: MUFM with the best classifier put in, and its flow.

With MSE the best classifier for features is a ridge regression, and what is left is a function L(H).
MUFM's features solve a backward Euler step, $H = X - \nabla L(H) / \lambda$, of the flow
$dH/dt = -\nabla L(H)$ from the data at time $1/\lambda$. The model is without bias and so is not
invariant under translations of the data.

The theorem says that for a coefficient that is large enough PFC1 of the features is below that of the
data. It needs balanced classes. Here PFC1 of the data is 2 and the features go above it, however large
the coefficient:

>>> X, y = torch.tensor([[0.0], [1], [1], [0], [1]]), torch.tensor([0, 0, 0, 0, 1])
>>> data = expansion(X, y)
>>> round(data.pfc1, 10), round(data.kappa, 6)  # kappa is 64/121
(2.0, 0.528926)

And for a smaller coefficient it needs the global minimum. With as many features as classes there may be
others, strict and with more spread than the data, to which a third of the starts lead:

>>> from pfc.theory import descent
>>> X, y = torch.tensor([[0.0, -1], [0, -2], [1, 0], [2, -2]]), torch.tensor([0, 0, 1, 1])
>>> good, bad = (descent.on_mufm(X, y, lam=0.1, steps=2000, seed=s, progress=False) for s in (0, 8))
>>> [round(float(end), 3) for end in (good.objective[-1], bad.objective[-1])]
[0.054, 0.267]
>>> bool(good.pfc1[-1] < expansion(X, y).pfc1 < bad.pfc1[-1])  # 0.57, 1.2 and, in the end, 4.88
True
"""

from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from pfc.device import one_thread
from pfc.metrics import Weighting, class_weights
from pfc.progress import shown
from pfc.samples import ArrayLike, in_float64
from pfc.theory.coefficients import at_least, positive
from pfc.theory.collapse import measured

Features = Float64[Tensor, "N D"]
OneHot = Float64[Tensor, "N K"]
RELATIVE, ABSOLUTE = 1e-10, 1e-12  # tolerances of the integrator; ours


def one_hot(y: Int[Tensor, " N"]) -> Float64[Tensor, "N K"]:
    """Labels as rows of zeros and a one."""
    return torch.nn.functional.one_hot(y.long()).double()


def ridge(H: ArrayLike, y: ArrayLike, *, weight_decay: float) -> Float64[Tensor, "K D"]:
    r"""The best classifier for features under MSE, $W^* = Y H^\top (H H^\top + N \lambda_W I)^{-1}$.

    Args:
        H: Features, N x D, one sample a row.
        y: Class of each sample.
        weight_decay: $\lambda_W$.

    Returns:
        The classifier, one row a class.

    Raises:
        ValueError: If features, labels or the coefficient are unfit.
    """
    return _ridge(*_features(H, y, weight_decay), weight_decay)


def _features(H: ArrayLike, y: ArrayLike, weight_decay: float) -> tuple[Features, OneHot]:
    """Features and one-hot labels, checked; a tensor keeps its gradient."""
    positive(weight_decay=weight_decay)
    data, labels = in_float64(H, y)
    return H.cpu().double() if isinstance(H, Tensor) else data, one_hot(labels)


def _ridge(H: Features, Y: OneHot, weight_decay: float) -> Float64[Tensor, "K D"]:
    """`ridge` for one-hot labels, unchecked."""
    # by the factor R of [H; sqrt(N lW) I], whose squares may overlook the decay beside large features
    N, D = H.shape
    room = (N * weight_decay) ** 0.5 * torch.eye(min(N, D), dtype=torch.float64, device="cpu")
    Q, R = torch.linalg.qr(torch.cat([H if D <= N else H.mT, room]))
    if D <= N:
        return torch.linalg.solve_triangular(R, Q[:N].mT @ Y, upper=True).mT
    half = torch.linalg.solve_triangular(R.mT, Y, upper=False)
    return torch.linalg.solve_triangular(R, half, upper=True).mT @ H


def reduced_loss(H: ArrayLike, y: ArrayLike, *, weight_decay: float) -> Float64[Tensor, ""]:
    r"""The objective of features with their best classifier.

    $$ L(H) = \min_W \tfrac1{2N}\|WH - Y\|_F^2 + \tfrac{\lambda_W}2 \|W\|_F^2. $$

    In Eq. 20 of arXiv 2405.00985, restored from Tirer et al. 2023.

    Args:
        H: Features, N x D, one sample a row.
        y: Class of each sample.
        weight_decay: $\lambda_W$.

    Returns:
        A number in (0, 1/2].

    Raises:
        ValueError: If features, labels or the coefficient are unfit.
    """
    data, Y = _features(H, y, weight_decay)
    W = _ridge(data, Y, weight_decay)
    R = data @ W.mT - Y
    return R.square().sum() / (2 * len(data)) + weight_decay / 2 * W.square().sum()


def reduced_gradient(H: ArrayLike, y: ArrayLike, *, weight_decay: float) -> Float64[Tensor, "N D"]:
    r"""Gradient of `reduced_loss`, $\tfrac1N {W^*}^\top (W^* H - Y)$, one sample a row."""
    return _gradient(*_features(H, y, weight_decay), weight_decay)


def _gradient(H: Features, Y: OneHot, weight_decay: float) -> Features:
    W = _ridge(H, Y, weight_decay)
    return (H @ W.mT - Y) @ W / len(H)


@dataclass(frozen=True)
class Expansion:
    r"""PFC1 of MUFM's features to first order, $\mathrm{PFC1}(X) + \kappa/\lambda + O(\lambda^{-2})$.

    Args:
        pfc1: Of the data.
        within: Trace of their within-class covariance.
        between: Trace of their between-class covariance.
        d_within: Its first-order change, over 1/lam.
        d_between: The same of the other.
        kappa: Slope of PFC1; negative for balanced data that have not collapsed.
    """

    pfc1: float
    within: float
    between: float
    d_within: float
    d_between: float
    kappa: float

    def predict(self, lam: float) -> float:
        """PFC1 of MUFM's features to first order in 1/lam."""
        return self.pfc1 + self.kappa / lam


def expansion(
    X: ArrayLike, y: ArrayLike, *, weight_decay: float = 0.005, weighting: Weighting = "class"
) -> Expansion:
    r"""How PFC1 of MUFM's features leaves that of the data as the coefficient comes down from infinity.

    With $V = -\nabla L(X)$, residuals $X_w$ and centred class means $X_b$,

    $$ \kappa = \frac{\dot W\,\mathrm{Tr}\,\Sigma_B - \mathrm{Tr}\,\Sigma_W\,\dot B}
       {(\mathrm{Tr}\,\Sigma_B)^2}, \quad \dot W = \tfrac2N \langle X_w, V_w\rangle, \quad
       \dot B = \tfrac2K \langle X_b, V_b\rangle. $$

    Derived for this package; Theorem 4 of arXiv 2405.00985 is the sign of kappa, for balanced data.

    Args:
        X: The data, N x D, one sample a row.
        y: Class of each sample.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        weighting: Class weights in both covariances: equal (`"class"`) or proportional to the counts
            (`"sample"`).

    Returns:
        The expansion; kappa is 0 for collapsed data and NaN where all class means coincide.

    Raises:
        ValueError: If the data, the coefficient or the weighting is out of range.

    Examples:
        >>> from pfc.theory.toy import toy
        >>> round(expansion(*toy()).kappa, 10)
        -0.0148258765
    """
    H, labels = in_float64(X, y)
    positive(weight_decay=weight_decay)
    Y = one_hot(labels)
    V = -_gradient(H, Y, weight_decay)
    within, between = _cross_traces(H, H, Y, weighting)
    d_within, d_between = (2 * trace for trace in _cross_traces(H, V, Y, weighting))
    kappa = (d_within * between - within * d_between) / between**2
    return Expansion(*map(float, (within / between, within, between, d_within, d_between, kappa)))


def _cross_traces(
    A: Features, B: Features, Y: OneHot, weighting: Weighting
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Weighted inner products of the residuals and of the centred class means of two matrices."""
    count = Y.sum(0)
    pi = class_weights(count, weighting)
    a, b = (Y.mT @ C / count[:, None] for C in (A, B))
    within = (Y @ (pi / count)) @ ((A - Y @ a) * (B - Y @ b)).sum(1)
    return within, pi @ ((a - pi @ a) * (b - pi @ b)).sum(1)


@dataclass(frozen=True, eq=False)
class Flow:
    """The gradient flow from the data, at some times.

    Args:
        times: When; time t answers to the coefficient 1/t.
        loss: The objective L.
        within: Trace of the within-class covariance; it falls for balanced data.
        between: Trace of the between-class covariance; it rises for balanced data.
        pfc1: Their ratio; it falls for balanced data.
        pfc2: Distance of the class means from a simplex equiangular tight frame.
        pfc3: Fraction of the samples nearest to their own class mean.
        H: The features at the end, one sample a row.
    """

    times: Float64[Tensor, " T"]
    loss: Float64[Tensor, " T"]
    within: Float64[Tensor, " T"]
    between: Float64[Tensor, " T"]
    pfc1: Float64[Tensor, " T"]
    pfc2: Float64[Tensor, " T"]
    pfc3: Float64[Tensor, " T"]
    H: Float64[Tensor, "N D"]


def flow(
    X: ArrayLike,
    y: ArrayLike,
    *,
    until: float,
    weight_decay: float = 0.005,
    records: int = 60,
    weighting: Weighting = "class",
    progress: bool = True,
) -> Flow:
    r"""Follow $dH/dt = -\nabla L(H)$ from the data, by adaptive Runge-Kutta steps of order 8.

    Its cost grows with `until`. Eq. 21 of arXiv 2405.00985, restored from Tirer et al. 2023. Lemma 1
    there: for balanced data the within-class trace falls, the between-class trace rises and PFC1 falls,
    all strictly.

    Args:
        X: The data, N x D, one sample a row.
        y: Class of each sample.
        until: The last time.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        records: Times to record, growing geometrically from `until` / 10^4, besides 0; ours.
        weighting: Class weights in both covariances: equal (`"class"`) or proportional to the counts
            (`"sample"`).
        progress: Show a progress bar.

    Returns:
        The metrics along the flow.

    Raises:
        ValueError: If the data or a number is out of range, or the integrator gives up.
    """
    data, labels = in_float64(X, y)
    positive(until=until, weight_decay=weight_decay)
    at_least(2, records=records)
    Y = one_hot(labels)
    times = np.concatenate([[0.0], np.geomspace(until / 1e4, until, records)])
    path = _integrate(data, Y, times, weight_decay, progress)
    rows = []
    for H in path:
        row = measured(H, labels, weighting)
        rows.append([float(reduced_loss(H, labels, weight_decay=weight_decay)), *astuple(row)])
    columns = torch.tensor(rows, dtype=torch.float64, device="cpu").unbind(1)
    fields = [torch.from_numpy(times), *columns, path[-1].clone()]
    return Flow(*fields)


def _integrate(
    X: Features, Y: OneHot, times: Float64[np.ndarray, " T"], weight_decay: float, progress: bool
) -> Float64[Tensor, "T N D"]:
    """The features at the given times, of which the first is 0."""
    from scipy.integrate import DOP853

    def slope(_: float, h: np.ndarray) -> np.ndarray:
        H = torch.from_numpy(h).view(X.shape)
        G = _gradient(H, Y, weight_decay)
        if not torch.isfinite(G).all():  # the integrator would go on forever
            raise ValueError("the features' slope is not finite; scale the data down")
        return -G.flatten().numpy()

    path, done = X.repeat(len(times), 1, 1), 1
    solver = DOP853(slope, 0.0, X.flatten().numpy(), times[-1], rtol=RELATIVE, atol=ABSOLUTE)
    with one_thread(X.numel()), shown("flow", len(times), enabled=progress) as tell:
        while solver.t < times[-1]:
            if solver.step():  # a message of failure
                raise ValueError(f"the flow cannot be followed beyond {solver.t:.6g}; lessen until")
            between = solver.dense_output()
            while done < len(times) and times[done] <= solver.t:
                path[done] = torch.from_numpy(between(times[done])).view(X.shape)
                done += 1
            tell(done)
    return path
