"""The unconstrained features model with squared loss and unbalanced classes: minority collapse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.theory.coefficients import at_least, positive, several


@dataclass(frozen=True, eq=False)
class Unbalanced:
    """A global minimum of UFM with unbalanced classes; the others are its rotations.

    Args:
        objective: The least value.
        threshold: N^2 lW lH: without a bias, a class of no more samples vanishes.
        vanished: Classes whose classifier and features are zero; with a free bias they may only
            coincide, see `merged`.
        merged: Sets of classes whose features coincide, each in ascending order.
        W: The classifier.
        b: Its bias; zero without one.
        means: The feature that all samples of a class share.
        counts: Samples of each class.
    """

    objective: float
    threshold: float
    vanished: tuple[int, ...]
    merged: tuple[tuple[int, ...], ...]
    W: Float64[Tensor, "K D"]
    b: Float64[Tensor, " K"]
    means: Float64[Tensor, "K D"]
    counts: Int64[Tensor, " K"]

    def features(self) -> Float64[Tensor, "N D"]:
        """The features, one sample a row, in the order of the classes."""
        return self.means.repeat_interleave(self.counts, 0)

    def labels(self) -> Int64[Tensor, " N"]:
        """Their classes."""
        return torch.arange(len(self.counts), device="cpu").repeat_interleave(self.counts)

    def __str__(self) -> str:
        K, gone = len(self.counts), set(self.vanished)
        if len(gone) == K:
            return f"All {K} classes vanish: the decays are too strong."
        told = []
        if gone:
            few = "" if self.b.any() else f", of no more than N^2 lW lH = {self._limit()} samples"
            told.append(f"Classes that vanish{few}: {', '.join(map(str, self.vanished))}.")
        if groups := [" and ".join(map(str, group)) for group in self.merged if not gone >= set(group)]:
            told.append(f"Classes whose features coincide: {'; '.join(groups)}.")
        return " ".join(told) or "No class vanishes and no two coincide."

    def _limit(self) -> str:
        """The threshold, with digits enough to part the classes that vanish from the others."""
        told = [f"{self.threshold:.{digits}g}" for digits in (6, 9, 12, 17)]
        return next((x for x in told if self._within(float(x)) == self.vanished), told[0])

    def _within(self, limit: float) -> tuple[int, ...]:
        """Classes of no more samples than a limit."""
        return tuple((self.counts.double() <= limit).nonzero().flatten().tolist())


def unbalanced(
    counts: Sequence[int],
    features: int,
    *,
    weight_decay: float = 0.005,
    feature_decay: float = 0.005,
    bias: Literal["free"] | bool = False,
) -> Unbalanced:
    r"""The global minimum of UFM with squared loss for classes of any size, in closed form.

    For enough features the logits solve $\min_Z \frac1{2N}\|Z - Y\|_F^2 +
    \sqrt{\lambda_W\lambda_H}\,\|Z\|_*$: the singular values of Y, which are $\sqrt{n_k}$, are lowered by
    $N\sqrt{\lambda_W\lambda_H}$, and a class with $n_k \le N^2\lambda_W\lambda_H$ vanishes. With a free
    bias the same holds of the centred labels, and small classes of one size first coincide: minority
    collapse (Fang et al. 2021, from memory). Derived for this package; Eq. 2 of arXiv 2405.00985 has
    balanced classes.

    Args:
        counts: Samples of each class.
        features: Dimensions of a feature: at least the number of classes, or one less with a bias.
        weight_decay: $\lambda_W$; the default is that of Tirer and Bruna 2022, from memory.
        feature_decay: $\lambda_H$; likewise.
        bias: `False` or `"free"`.

    Returns:
        The minimum, which prints what vanishes.

    Raises:
        ValueError: If a number is out of range, there are too few features, or the bias is unknown.

    Examples:
        >>> found = unbalanced([100, 100, 5], 4, weight_decay=0.01, feature_decay=0.02)
        >>> print(found)
        Classes that vanish, of no more than N^2 lW lH = 8.405 samples: 2.
        >>> print(unbalanced([100, 4, 4], 2, weight_decay=0.02, feature_decay=0.02, bias="free"))
        Classes whose features coincide: 1 and 2.
    """
    n = _check(counts, features, weight_decay, feature_decay, bias)
    N, K = float(n.sum()), len(n)
    share = n / N * (bias == "free")
    cut = N * math.sqrt(weight_decay * feature_decay)
    U, s, V = _directions(n, free=bias == "free")
    floor = K * torch.finfo(torch.float64).eps * max(float(s[0]), cut)
    z = torch.where(s - cut > floor, s - cut, 0.0)  # a tie vanishes, and with it what is zero in s
    ratio = math.sqrt(feature_decay / weight_decay)
    W, H = (torch.zeros(K, max(K, features), dtype=torch.float64, device="cpu") for _ in range(2))
    W[:, :K], H[:, :K] = U * (z * ratio).sqrt(), V * (z / ratio).sqrt() / n.sqrt()[:, None]
    return Unbalanced(
        objective=float(((s - z).square() / 2 + cut * z).sum() / N),
        threshold=cut**2,
        vanished=tuple((~torch.cat([W, H], 1).any(1)).nonzero().flatten().tolist()),
        merged=_merged(H),
        W=W[:, :features].clone(),
        b=share,
        means=H[:, :features].clone(),
        counts=n.long(),
    )


def _directions(
    n: Float64[Tensor, " K"], *, free: bool
) -> tuple[Float64[Tensor, "K K"], Float64[Tensor, " K"], Float64[Tensor, "K K"]]:
    """Singular vectors and values of the labels, whose columns of class k are n_k times the same."""
    # classes of one size are alike: their mean is a row of a small matrix, and every contrast between
    # them keeps the value sqrt(n), so that what coincides does so exactly
    sizes, group, m = torch.unique(n, return_inverse=True, return_counts=True)
    root = m.double().sqrt()
    share = sizes * root / n.sum() * free
    U, s, Vt = torch.linalg.svd(
        (torch.diag(torch.ones_like(sizes)) - share[:, None] * root) * sizes.sqrt()
    )
    contrasts = torch.empty(len(n), len(n) - len(sizes), dtype=torch.float64, device="cpu")
    contrasts[group.argsort()] = torch.block_diag(*(mean_and_contrasts(k)[:, 1:] for k in m.tolist()))
    values = torch.cat([s, sizes.sqrt().repeat_interleave(m - 1)])
    order = values.argsort(descending=True, stable=True)
    left, right = (torch.cat([(x / root[:, None])[group], contrasts], 1)[:, order] for x in (U, Vt.mT))
    return left, values[order], right


def mean_and_contrasts(m: int) -> Float64[Tensor, "m m"]:
    """An orthonormal basis in columns, the first of equal entries, the others of sum zero."""
    ones, units = torch.ones(m, 1, device="cpu"), torch.eye(m, m - 1, device="cpu")
    return torch.linalg.qr(torch.cat([ones, units], 1).double()).Q


def _merged(H: Float64[Tensor, "K D"]) -> tuple[tuple[int, ...], ...]:
    """Sets of two or more rows that coincide."""
    same = torch.unique(H, dim=0, return_inverse=True)[1]
    groups = {tuple((same == k).nonzero().flatten().tolist()) for k in same}
    return tuple(sorted(group for group in groups if len(group) > 1))


def _check(counts: Sequence[int], D: int, lW: float, lH: float, bias: object) -> Float64[Tensor, " K"]:
    """Samples of each class as a tensor, once all arguments are sound."""
    counts = several("counts", counts)
    at_least(2, classes=len(counts))
    for count in counts:
        at_least(1, counts=count)
    at_least(1, features=D)
    positive(weight_decay=lW, feature_decay=lH)
    if bias is not False and bias != "free":
        raise ValueError(f"bias must be False or 'free', got {bias!r}")
    if D < (least := len(counts) - (bias == "free")):
        raise ValueError(f"unbalanced classes have a closed form from {least} features on, got {D}")
    return torch.tensor([float(count) for count in counts], dtype=torch.float64, device="cpu")
