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


def of_change(lost: int, won: int, n: int, level: float = 0.95) -> Interval:
    """Tango's score interval of a change of accuracy on the same n samples (1998).

    It is right where few samples or none change sides, where resampling them would claim certainty.

    Args:
        lost: Samples that were right and are wrong now.
        won: Samples that were wrong and are right now.
        n: All samples.
        level: Of the interval, in (0, 1).

    Returns:
        What is won less what is lost, as fractions of the samples, from and to; NaN of no sample.
    """
    if n < 1:
        return UNKNOWN
    z, change = normal(level), (won - lost) / n
    return _end(change, -1.0, lost, won, n, z), _end(change, 1.0, lost, won, n, z)


def _end(change: float, end: float, lost: int, won: int, n: int, z: float) -> float:
    """Where the score of a change is z standard errors away, towards an end of [-1, 1]."""
    from scipy.optimize import brentq

    def beyond(x: float) -> float:
        return abs(won - lost - n * x) - z * _spread(x, lost, won, n)

    if change == end or beyond(end) <= 0:
        return end
    start = change + math.copysign(1e-13, end)  # where no sample or every one changed, it is a root too
    return float(brentq(beyond, start, end, xtol=1e-15))


def _spread(x: float, lost: int, won: int, n: int) -> float:
    """The standard error of won less lost if the change is x, its other parameter the likeliest."""
    b = (2 * n - won + lost) * x - won - lost
    q = (math.sqrt(max(0.0, b * b + 8 * n * lost * x * (1 - x))) - b) / (4 * n)
    return math.sqrt(max(0.0, n * (2 * q + x * (1 - x))))
