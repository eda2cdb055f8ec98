"""Known data against unknown: the area under the ROC curve with its interval, and NC5."""

import math

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from torch import Tensor

from pfc.intervals import UNKNOWN, normal
from pfc.moments import ClassMoments

BASELINES = ("max softmax", "max logit", "energy")  # scores of the logits; large for what is known


def auroc(known: ArrayLike, unknown: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    r"""Area under the ROC curve of scores, with an interval.

    It is the probability that a known sample has a larger score than an unknown one, where equal scores
    count half: Mann and Whitney's statistic, from midranks. The interval is by DeLong, DeLong and
    Clarke-Pearson's variance (1988), $S_{10}/n + S_{01}/m$ with the variances over the n known and the
    m unknown samples of the share of the others that each beats, and normal in the logit.

    Args:
        known: Scores of known samples.
        unknown: Scores of unknown samples.
        level: Of the interval, in (0, 1).

    Returns:
        The area in [0, 1], and the two ends of the interval. The area is NaN where a score is; the ends
        are where the variance is 0, as at an area of 0 or 1, or of fewer than two samples.

    Raises:
        ValueError: If there is no known or no unknown score, or the level is not in (0, 1).

    Examples:
        >>> auroc([2, 3, 3], [1, 2])[0]
        0.9166666666666666
    """
    from scipy.stats import rankdata

    z, a, b = normal(level), np.asarray(known, np.float64), np.asarray(unknown, np.float64)
    if not len(a) or not len(b):
        raise ValueError(f"need scores of both, got {len(a)} known and {len(b)} unknown")
    if np.isnan(a).any() or np.isnan(b).any():
        return math.nan, *UNKNOWN
    n, m = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]))
    beaten = (ranks[:n] - rankdata(a)) / m  # of each known sample: the share of the unknown below it
    above = 1 - (ranks[n:] - rankdata(b)) / n  # of each unknown one: the share of the known above it
    area = float(beaten.mean())
    if min(n, m) < 2:
        return area, *UNKNOWN
    variance = float(beaten.var(ddof=1) / n + above.var(ddof=1) / m)
    return area, *_in_logits(area, z * math.sqrt(variance))


def _in_logits(p: float, half: float) -> tuple[float, float]:
    """An interval even in the logit; NaN where there is none."""
    if not 0 < p < 1 or half == 0:
        return UNKNOWN
    middle, half = math.log(p / (1 - p)), half / (p * (1 - p))
    low, high = (0.5 + 0.5 * math.tanh(x / 2) for x in (middle - half, middle + half))
    return low, high


def orthogonality(moments: ClassMoments, mean: Float64[Tensor, " D"], *, centre: bool) -> float:
    r"""NC5: how far the mean of unknown data is from orthogonal to the class means.

    $$ \frac{1}{K} \sum_c \frac{|\langle \mu_c, \mu \rangle|}{\|\mu_c\| \, \|\mu\|} $$

    Eq. 5 of Ben Ammar et al. (NECO, arXiv 2310.06823), where both are taken as they come, as far as
    public implementations of it show; its text was not at hand.

    Args:
        moments: Of the known classes at a layer.
        mean: Of the features of the unknown data.
        centre: Take both from the unweighted mean of the class means, which makes the number invariant
            under translations; ours.

    Returns:
        A number in [0, 1]: 0 where they are orthogonal; NaN where one of the vectors is zero.
    """
    present = moments.present()
    M, u = present.mean, mean
    if centre:
        u = u - M.mean(0)
        M = present.centred()
    cosines = M @ u / torch.linalg.vector_norm(M, dim=1) / torch.linalg.vector_norm(u)
    return float(cosines.abs().clamp(max=1).mean())
