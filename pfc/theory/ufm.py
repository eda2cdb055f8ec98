"""The unconstrained features model: its optimum in closed form, and found from random starts.

UFM (Eq. 2 of arXiv 2405.00985) lets the features of balanced classes be free. Its optima are known: the
features of a class coincide, and their means are a simplex equiangular tight frame once centred.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.theory import descent
from pfc.theory.coefficients import at_least, finite, positive
from pfc.theory.joint import LOSSES, Joint, JointSolution, Loss, best
from pfc.theory.minimum import STARTS, Minimum, Vector
from pfc.theory.unbalanced import Unbalanced as Unbalanced
from pfc.theory.unbalanced import mean_and_contrasts
from pfc.theory.unbalanced import unbalanced as unbalanced

TIE = 8 * float(np.finfo(np.float64).eps)  # c this near to 1 is 1 but for rounding; ours
Bias = Literal["free"] | bool | float
Method = Literal["lbfgs", "descent"]


@dataclass(frozen=True, eq=False)
class Optimum:
    """A global minimum of UFM, and what every global minimum shares.

    Args:
        objective: The least value.
        c: K sqrt(n lW lH); from 1 on the optimum is zero.
        scale: Of the centred logits: at the optimum they are `scale` times the centred labels.
        feature_norm2: Mean squared norm of a feature.
        weight_norm2: Mean squared norm of a row of the classifier.
        W: The classifier of one such minimum; the others are its rotations, and more if `features`
            are few.
        b: Its bias; zero without one.
        means: The feature that all samples of a class share.
        per_class: Samples of each class.
        pfc1: Within-class over between-class variance of the features; NaN where it is undefined or
            not the same at every minimum, as for the next two.
        pfc2: Distance of the class means from a simplex equiangular tight frame.
        pfc3: Fraction of the samples nearest to their own class mean.
    """

    objective: float
    c: float
    scale: float
    feature_norm2: float
    weight_norm2: float
    W: Float64[Tensor, "K D"]
    b: Float64[Tensor, " K"]
    means: Float64[Tensor, "K D"]
    per_class: int
    pfc1: float
    pfc2: float
    pfc3: float

    @property
    def zero(self) -> bool:
        """Whether classifier and features vanish: the decays are too strong."""
        return self.c >= 1

    def features(self) -> Float64[Tensor, "N D"]:
        """The features, one sample a row, in the order of the classes."""
        return self.means.repeat_interleave(self.per_class, 0)

    def labels(self) -> Int64[Tensor, " N"]:
        """Their classes."""
        return torch.arange(len(self.means), device="cpu").repeat_interleave(self.per_class)


def optimum(
    classes: int,
    features: int,
    per_class: int,
    *,
    weight_decay: float = 0.005,
    feature_decay: float = 0.005,
    loss: Loss = "mse",
    bias: Bias = False,
) -> Optimum:
    r"""The global minimum of UFM for balanced classes, in closed form.

    With $c = K\sqrt{n\lambda_W\lambda_H}$ and the centring $E$, the logits are

    $$ WH = (1-c)_+ \, Y \quad\text{(MSE)}, \qquad WH = a\,(E \otimes 1^\top),\;
       a = \log(K/c - K + 1) \quad\text{(cross-entropy)}; $$

    a bias takes its share of their mean. If the features have fewer dimensions than the logits need,
    MSE keeps as many directions as there are. Derived for this package, and checked against random
    starts; the objective is Eq. 2 of arXiv 2405.00985, whose constants are lost.

    Args:
        classes: K.
        features: Dimensions of a feature.
        per_class: Samples of each class, n.
        weight_decay: $\lambda_W$; the default is that of Tirer and Bruna 2022, from memory.
        feature_decay: $\lambda_H$; likewise.
        loss: `"mse"` or `"ce"`, the mean cross-entropy.
        bias: `False`, `"free"`, or the decay of a bias. Cross-entropy has no use for one.

    Returns:
        The minimum. Its `pfc1`, `pfc2` and `pfc3` are 0, 0 and 1 unless it is zero or rank-short.

    Raises:
        ValueError: If a number is out of range, the loss or the bias is unknown, or the loss is
            cross-entropy and there are fewer than K - 1 features: no closed form is known then.

    Examples:
        >>> round(optimum(4, 20, 50).objective, 10), round(optimum(4, 20, 50, loss="ce").scale, 10)
        (0.1314213562, 3.2301825126)
    """
    decay = _check(classes, features, per_class, weight_decay, feature_decay, loss, bias)
    K, D, n = classes, features, per_class
    c = K * math.sqrt(n * weight_decay * feature_decay)
    c = 1.0 if math.isclose(c, 1, rel_tol=TIE) else c
    share = 1.0 if decay is None else decay / (1 + decay)  # weight of the logits' mean
    if loss == "ce":
        s, objective = _cross_entropy(K, D, c)
        share, rest = 1.0, 0.0
    else:
        s, objective = _squared(K, D, c, share)
        rest = (1 - s[-1]) * (1 - share) / K
    # singular values of the logits
    z = torch.tensor(s, dtype=torch.float64, device="cpu") * math.sqrt(n)
    ratio = math.sqrt(feature_decay / weight_decay)
    unique = D >= K or (D == K - 1 and (loss == "ce" or share < 1))
    return Optimum(
        objective=objective,
        c=c,
        scale=s[0],
        feature_norm2=float(z.sum()) / ratio / (K * n),
        weight_norm2=float(z.sum()) * ratio / K,
        W=_embed((z * ratio).sqrt(), D),
        b=torch.full((K,), rest, dtype=torch.float64, device="cpu"),
        means=_embed((z / ratio / n).sqrt(), D),
        per_class=n,
        **_metrics(K, D, zero=c >= 1, unique=unique, mean=loss == "mse" and share == 1),
    )


def _squared(K: int, D: int, c: float, share: float) -> tuple[list[float], float]:
    """Scale of each direction of the logits, their mean last, and the objective of MSE."""
    weights = [1.0] * (K - 1) + [share]
    rank = [j < min(D, K - 1) for j in range(K - 1)] + [D >= K and share > 0]
    s = [max(0.0, 1 - c / w) if kept else 0.0 for w, kept in zip(weights, rank, strict=True)]
    return s, sum(w * (1 - x) ** 2 / 2 + c * x for w, x in zip(weights, s, strict=True)) / K


def _cross_entropy(K: int, D: int, c: float) -> tuple[list[float], float]:
    """The same of cross-entropy, which does not see the logits' mean."""
    if D < K - 1:
        raise ValueError(
            f"cross-entropy has a closed form from classes - 1 = {K - 1} features on, got {D}; use solve"
        )
    a = math.log1p(K * (1 - c) / c) if c < 1 else 0.0
    return [a] * (K - 1) + [0.0], math.log1p((K - 1) * math.exp(-a)) + c / K * (K - 1) * a


def _metrics(K: int, D: int, *, zero: bool, unique: bool, mean: bool) -> dict[str, float]:
    """PFC1-3 where all minima agree; a single direction may be that of the mean."""
    if zero:
        return {"pfc1": math.nan, "pfc2": math.nan, "pfc3": 1 / K}  # a tie goes to the lowest class
    if unique:
        return {"pfc1": 0.0, "pfc2": 0.0, "pfc3": 1.0}
    return {"pfc1": math.nan if mean and D == 1 else 0.0, "pfc2": math.nan, "pfc3": math.nan}


def _embed(sizes: Float64[Tensor, " K"], D: int) -> Float64[Tensor, "K D"]:
    """K points, these sizes along an orthonormal basis whose last direction is their mean."""
    K = len(sizes)
    Q = mean_and_contrasts(K).roll(-1, 1)
    points = torch.zeros(K, D, dtype=torch.float64, device="cpu")
    points[:, :K] = (Q * sizes)[:, :D]
    return points


def solve(
    classes: int,
    features: int,
    per_class: int,
    *,
    weight_decay: float = 0.005,
    feature_decay: float = 0.005,
    loss: Loss = "mse",
    bias: Bias = False,
    restarts: int = 4,
    seed: int = 0,
    method: Method = "lbfgs",
    step: float = descent.STEP,
    steps: int = descent.STEPS,
    progress: bool = True,
) -> JointSolution:
    """Minimise UFM from random starts, in the classifier, the features and the bias together.

    Eq. 2 of arXiv 2405.00985. UFM has no bad local minima for enough features, so all starts agree.

    Args:
        classes: K.
        features: Dimensions of a feature.
        per_class: Samples of each class.
        weight_decay: Of the classifier; the default is that of Tirer and Bruna 2022, from memory.
        feature_decay: Of the features; likewise.
        loss: `"mse"` or `"ce"`.
        bias: `False`, `"free"`, or the decay of a bias.
        restarts: Random starts, from the standard normal distribution as in the paper; their number
            is ours.
        seed: Of the random starts.
        method: `"lbfgs"`, L-BFGS and Newton steps, or `"descent"`, the paper's plain gradient descent.
        step: Of plain gradient descent.
        steps: Of plain gradient descent.
        progress: Show a progress bar.

    Returns:
        The least objective found; its `cosine` is NaN, there being no data.

    Raises:
        ValueError: If a number is out of range, or the loss, the bias or the method is unknown.

    Examples:
        >>> found = solve(3, 5, 4, restarts=2, progress=False)
        >>> abs(found.objective - optimum(3, 5, 4).objective) < 1e-12
        True
    """
    decay = _check(classes, features, per_class, weight_decay, feature_decay, loss, bias)
    at_least(1, restarts=restarts)
    at_least(0, seed=seed)
    how = {"pull": feature_decay, "weight_decay": weight_decay, "loss": loss, "bias": decay}
    problem = Joint.without_data(classes, features, per_class, **how)
    rng = np.random.default_rng([seed, STARTS])
    starts = (problem.normal_start(rng) for _ in range(restarts))
    if method == "lbfgs":
        return best(problem, starts, restarts, progress=progress)
    if method == "descent":
        return _descended(problem, starts, step, steps, progress)
    raise ValueError(f"method must be 'lbfgs' or 'descent', got {method!r}")


def _descended(
    problem: Joint, starts: Iterator[Vector], step: float, steps: int, progress: bool
) -> JointSolution:
    """The best end of plain gradient descent."""
    ends = []
    for start in starts:
        descent.run(problem, start, step=step, steps=steps, records=2, progress=progress)
        f, g = problem.value(start)
        ends.append(Minimum(start, f, float(np.linalg.norm(g))))
    return JointSolution.of(problem, ends)


def _check(K: int, D: int, n: int, lW: float, lH: float, loss: Loss, bias: Bias) -> float | None:
    """The decay of the bias, `None` without one, once all arguments are sound."""
    at_least(2, classes=K)
    at_least(1, features=D, per_class=n)
    positive(weight_decay=lW, feature_decay=lH)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if bias is False:
        return None
    if bias == "free":
        return 0.0
    if not (finite(bias) and bias > 0):
        raise ValueError(f"bias must be False, 'free' or a decay above 0, got {bias!r}")
    return float(bias)
