"""PFC1, PFC2 and PFC3 of a feature matrix in memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.labels import BatchLabels
from pfc.metrics import (
    Weighting,
    between_trace,
    etf_distance,
    nearest_mean_accuracy,
    scatter_ratio,
    within_trace,
)
from pfc.moments import ClassMoments
from pfc.nearest import NearestMean
from pfc.samples import ArrayLike, labelled
from pfc.span import MeansSpan


@dataclass(frozen=True)
class Collapse:
    """The metrics of one feature matrix.

    Args:
        within: Trace of the within-class covariance.
        between: Trace of the between-class covariance.
        pfc1: Their ratio; NaN if all features coincide.
        pfc2: Distance of the class means from a simplex equiangular tight frame; NaN if they coincide.
        pfc3: Fraction of the samples nearest to their own class mean; ties go to the lowest class.
    """

    within: float
    between: float
    pfc1: float
    pfc2: float
    pfc3: float


def collapse(H: ArrayLike, y: ArrayLike, weighting: Weighting = "class") -> Collapse:
    """PFC1-3 of features.

    Args:
        H: Features of any type, N x D, one sample a row; they are upcast tile by tile.
        y: Class of each sample.
        weighting: Class weights in both covariances: equal (`"class"`) or proportional to the counts
            (`"sample"`).

    Returns:
        The metrics; PFC1-3 are 0, 0 and 1 at perfect collapse.

    Raises:
        ValueError: If features or labels are unfit, or there are fewer than two classes.

    Examples:
        >>> collapse([[0.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1]).pfc1
        0.0
    """
    return measured(*labelled(H, y, name="H"), weighting)


def measured(
    H: Float[Tensor, "N D"], y: Int64[Tensor, " N"], weighting: Weighting = "class"
) -> Collapse:
    """PFC1-3 of features that are known to be sound."""
    moments = ClassMoments.empty(int(y.max()) + 1, H.shape[1], H.device)
    moments.update(H, BatchLabels.of(y))
    nearest = NearestMean.empty(MeansSpan.of(moments, weighting))
    nearest.update(H, y)
    return Collapse(
        within=float(within_trace(moments, weighting)),
        between=float(between_trace(moments, weighting)),
        pfc1=float(scatter_ratio(moments, weighting)),
        pfc2=float(etf_distance(moments.mean)),
        pfc3=float(nearest_mean_accuracy(nearest.hits, nearest.count)),
    )


def cosine(H: Float64[Tensor, "N D"], X: Float64[Tensor, "N D"]) -> float:
    r"""Alignment of features with the data, $\langle H,X\rangle / (\|H\|_F \|X\|_F)$.

    Figure 5 of arXiv 2405.00985, where its formula is lost: inferred from its words.

    Args:
        H: Features.
        X: The data, of the same shape.

    Returns:
        A number in [-1, 1]; NaN if either is zero.
    """
    return float((H * X).sum() / (torch.linalg.norm(H) * torch.linalg.norm(X)))
