"""How far features have collapsed: PFC1, PFC2 and PFC3 of a tensor that fits in memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pfc.metrics import (
    Weighting,
    between_trace,
    etf_distance,
    nearest_mean_accuracy,
    scatter_ratio,
    within_trace,
)
from pfc.moments import ClassMoments
from pfc.nearest import MeansSpan, NearestMean


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


def collapse(H: Float[Tensor, "N D"], y: Int[Tensor, " N"], weighting: Weighting = "class") -> Collapse:
    """The metrics of features, by the package's own moments and nearest means.

    Args:
        H: Features, one sample a row, in any float type; they are upcast tile by tile.
        y: Their classes.
        weighting: What a class counts in both covariances.

    Returns:
        The metrics; 0, 0 and 1 at perfect collapse.
    """
    moments = ClassMoments.of(H, y)
    nearest = NearestMean.empty(MeansSpan.of(moments, weighting))
    nearest.update(H, y.long())
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
        X: The data.

    Returns:
        A number in [-1, 1]; NaN if either is zero.
    """
    return float((H * X).sum() / (torch.linalg.norm(H) * torch.linalg.norm(X)))
