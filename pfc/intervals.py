"""Intervals: of a mean over seeds, of a difference of two, of a fraction, of a ratio."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

Interval = tuple[float, float]
UNKNOWN = (math.nan, math.nan)


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean; NaN of fewer than two values, and where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return UNKNOWN
    half = _t(level, float(len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def welch(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Welch's interval of the mean of `b` less that of `a`; NaN as in `student` of either."""
    if min(len(a), len(b)) < 2 or not all(map(math.isfinite, [*a, *b])):
        return UNKNOWN
    parts = [stdev(each) ** 2 / len(each) for each in (a, b)]
    apart, square = mean(b) - mean(a), sum(parts)
    if square == 0:
        return apart, apart
    degrees = square**2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (a, b), strict=True))
    half = _t(level, degrees) * math.sqrt(square)
    return apart - half, apart + half


def _t(level: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, degrees))


def normal(level: float) -> float:
    """How many standard errors an interval of this level reaches."""
    from scipy.stats import norm

    if not 0 < level < 1:
        raise ValueError(f"interval must be a level in (0, 1), such as 0.95, got {level}")
    return float(norm.ppf((1 + level) / 2))


def of_ratio(x: float, spread: float) -> Interval:
    """An interval of a positive number, even in its logarithm."""
    if x == 0 or math.isinf(x):
        return x, x
    return x * math.exp(-spread / x), x * math.exp(min(spread / x, 700.0))


def wilson(p: float, n: int, z: float) -> Interval:
    """Wilson's interval of a fraction of n samples (1927)."""
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
