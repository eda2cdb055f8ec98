"""The solution of an MUFM: what was found, what it proves, and its metrics from statistics alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from pfc.metrics import Weighting, class_weights, etf_distance
from pfc.theory.mufm.reduced import Point
from pfc.theory.mufm.source import Hidden, Source
from pfc.theory.mufm.statistics import EMPTY, Samples, pair
from pfc.warning import renamed

COMPLETE = 512  # width up to which a basis of all that W does not see is formed; ours


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of problem (13) of arXiv 2405.00985 and what is known of it.

    Args:
        loss: `"mse"` or `"ce"`.
        lam: Coefficient of the change of the data.
        weight_decay: Coefficient of W.
        objective: The value of the problem.
        gradient_norm: Frobenius norm of the gradient (in W; for cross-entropy in W and H).
        certificate: Least eigenvalue of lW I - U U^T / lam over lW, less its rounding, in (-inf, 1], U
            being the slope of the loss: from 0 on a critical point is proven to be a global minimum.
        gap: A rigorous bound of (F - F*)/F, rounding included, in [0, 1].
        spread: Relative distance of the worst start's objective from the best's; 0 for one start.
        starts: How many starts were made.
        proven: What all this proves, in words.
        W: Classifier.
        bias: The free bias, or `None`.
        pfc1: Within-class over between-class variance of H; 0 at perfect collapse.
        pfc2: Distance of the class means of H from a simplex equiangular tight frame; 0 there.
        pfc3: Fraction of H nearest to its own class mean; NaN if only statistics were given.
        cosine: Between H and the data X. The measure of the paper's figure is inferred, so all four.
        direction_distance: | H/|H| - X/|X| |.
        relative_displacement: |H - X| / |X|.
        norm_ratio: |H| / |X|.
        hidden: H, or what it is formed from.
        data: The samples and labels, if they were given.
    """

    loss: str
    lam: float
    weight_decay: float
    objective: float
    gradient_norm: float
    certificate: float
    gap: float
    spread: float
    starts: int
    proven: str
    W: Float64[Tensor, "K D"] = field(repr=False)
    bias: Float64[Tensor, " K"] | None = field(repr=False)
    pfc1: float
    pfc2: float
    pfc3: float
    cosine: float
    direction_distance: float
    relative_displacement: float
    norm_ratio: float
    hidden: Hidden | Float64[Tensor, "N D"] = field(repr=False)
    data: Samples | None = field(repr=False)

    moved = renamed("Solution.moved", "Solution.relative_displacement")
    size = renamed("Solution.size", "Solution.norm_ratio")
    distance = renamed("Solution.distance", "Solution.direction_distance")

    def features(self) -> Float64[Tensor, "N D"]:
        """The features H of all samples, N x D.

        Returns:
            H in float64; of centred data if `centre` was asked for.

        Raises:
            ValueError: If the problem was solved from statistics, without the samples.
        """
        if isinstance(self.hidden, Tensor):
            return self.hidden
        if self.data is None:
            raise ValueError(
                "the features need the samples, and statistics were given; solve(X, y, ...)"
            )
        return self.hidden.form(*self.data)

    def accuracy(self, batches: Iterable[Any]) -> float:
        """PFC3 of H in one pass over the data that the statistics came from.

        Args:
            batches: Pairs `(x, y)` of arrays, as they were gathered.

        Returns:
            A number in [0, 1]; 1 if every sample is nearest to its own class mean.

        Raises:
            ValueError: If the loss is cross-entropy, whose H belongs to its own samples, or the batches
                are not of the kind that was gathered.
        """
        if isinstance(self.hidden, Tensor):
            raise ValueError("with loss='ce' H is known for its own samples only; see pfc3")
        hits, seen, (K, D) = 0, 0, self.W.shape
        for number, batch in enumerate(batches):
            X, y = pair(batch, number)
            if X.shape[1] != D or y.max() >= K:
                raise ValueError(f"need samples of {D} features in {K} classes, as the statistics' were")
            hits, seen = hits + self.hidden.hits(X.cpu(), y.cpu()), seen + len(y)
        if not seen:
            raise ValueError(EMPTY)
        return hits / seen


def within_trace(
    W: Float64[Tensor, "K D"], beta: float, Sigma_W: Float64[Tensor, "D D"]
) -> Float64[Tensor, ""]:
    """Trace of the within-class covariance of H from that of X."""
    # with W = U s V^T the noise along column j of V shrinks by beta / (s_j^2 + beta) and the rest stays
    # as it is; a sum of squares, so no digit is lost at collapse. Derived for this package
    D = W.shape[1]
    _, s, Vt = torch.linalg.svd(W, full_matrices=D <= COMPLETE)
    seen, unseen = Vt[: len(s)], Vt[len(s) :]
    shrunk = ((beta / (s.square() + beta)).square() * ((seen @ Sigma_W) * seen).sum(1)).sum()
    if D > COMPLETE:
        return shrunk + Sigma_W.trace() - ((seen @ Sigma_W) * seen).sum()
    return shrunk + ((unseen @ Sigma_W) * unseen).sum()


def metrics(source: Source, hidden: Hidden, point: Point, weighting: Weighting) -> dict[str, float]:
    """PFC1-3 of H and its distances from X by their names in `Solution`; PFC3 alone takes samples."""
    statistics, samples, M = source.statistics, source.samples, hidden.means
    pi = class_weights(statistics.count, weighting)
    between = pi @ (M - pi @ M).square().sum(1)
    within = within_trace(hidden.W, point.problem.beta, statistics.covariance(weighting))
    return {
        "pfc1": float(within / between),
        "pfc2": float(etf_distance(M)),
        "pfc3": hidden.hits(*samples) / len(samples[0]) if samples else math.nan,
        **_distances_at(source, point),
    }


def _distances_at(source: Source, point: Point) -> dict[str, float]:
    """How far H is from X: |H - X|^2 = tr(P W W^T P Q), <H - X, X> = -tr(P A W^T)."""
    PW, statistics = point.P @ point.W, source.statistics
    data = float(point.problem.e.sum())
    if source.free:
        data += statistics.samples * float(statistics.centre.square().sum())
    return _distances(data, float((PW * (point.Q @ PW)).sum()), -float((PW * point.A).sum()))


def distances(X: Float64[Tensor, "N D"], H: Float64[Tensor, "N D"]) -> dict[str, float]:
    """How far given features are from the data."""
    D = H - X
    return _distances(*(float(part.sum()) for part in (X.square(), D.square(), D * X)))


def _distances(data: float, moved: float, along: float) -> dict[str, float]:
    """Of |X|^2, |H - X|^2 and <H - X, X>, none of them a difference of large numbers."""
    moved = max(moved, 0.0)  # below it by rounding where nothing moves
    X, H = data**0.5, max(data + 2 * along + moved, 0.0) ** 0.5
    longer = (2 * along + moved) / (H + X) if H + X else math.nan
    apart = max(moved - longer**2, 0.0) / (H * X) if H * X else math.nan
    return {
        "cosine": 1 - apart / 2,
        "direction_distance": apart**0.5,
        "relative_displacement": moved**0.5 / X if X else math.nan,
        "norm_ratio": H / X if X else math.nan,
    }
