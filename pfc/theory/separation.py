r"""The law of data separation of He and Su: fuzziness falls by one factor a layer.

Their law (He and Su 2023, "A law of data separation in deep learning") is $D_l = \rho^l D_0$ for the
separation fuzziness. It stands against the straight line at constant speed: there, with a collapsed end
and equal means, $D(t) = (1 - t)^2 D_0$, which reaches 0 at t = 1, and no geometric sequence does. Both
hold together only if $1 - t_l = \rho^{l/2}$: blocks whose steps shrink by one factor each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from pfc.schema import short
from pfc.theory.coefficients import several

SAME = 1e-12  # relative differences below this are round-off; ours


@dataclass(frozen=True)
class Law:
    """A geometric law fitted to a metric over layers: log value = log start + l log rate, least squares.

    Args:
        start: The fitted value at the first layer, D_0.
        rate: The factor from layer to layer, rho: below 1 if the metric falls.
        correlation: Pearson's, of the layer's number with the logarithm: -1 if the law is exact; NaN
            of two layers, through which every law goes.
        r2: Its square, the part of the variance of the logarithm that the law explains.
        half_life: Layers in which the metric halves; negative if it grows, infinite if it does neither.
        layers: How many layers have a value above zero and so take part.
    """

    start: float
    rate: float
    correlation: float
    r2: float
    half_life: float
    layers: int


def fit(values: Sequence[float]) -> Law:
    """Fit the law of data separation to a metric's values, layer by layer.

    Args:
        values: Of successive layers, such as the fuzziness; zeros and what is not finite are left out.

    Returns:
        The law; NaN throughout with fewer than two values above zero, and a NaN correlation with two, or
        where all values are the same.

    Raises:
        ValueError: If they are no sequence of numbers.

    Examples:
        >>> law = fit([50 * 0.4**l for l in range(6)])
        >>> round(law.rate, 12), round(law.half_life, 9), round(law.correlation, 12)
        (0.4, 0.756470797, -1.0)
    """
    for value in (listed := several("values", values)):
        if not isinstance(value, Real):
            raise ValueError(f"values must be numbers, got {short(value)}")
    kept = [(l, math.log(v)) for l, v in enumerate(listed) if math.isfinite(v) and v > 0]
    if len(kept) < 2:
        return Law(math.nan, math.nan, math.nan, math.nan, math.nan, len(kept))
    l, logs = np.array(kept).T
    deviation, height = l - l.mean(), logs - logs.mean()
    moves = np.ptp(logs) > SAME
    slope = float(deviation @ height / (deviation @ deviation)) if moves else 0.0
    spread = math.sqrt((deviation @ deviation) * (height @ height))
    correlation = float(deviation @ height) / spread if moves and len(kept) > 2 else math.nan
    return Law(
        start=math.exp(logs.mean() - slope * l.mean()),
        rate=math.exp(slope),
        correlation=correlation,
        r2=correlation**2,
        half_life=math.log(2) / -slope if slope else math.inf,
        layers=len(kept),
    )
