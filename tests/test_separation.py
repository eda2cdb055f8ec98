"""The law of data separation: an exact law is found again, a twin by numpy, limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfc.theory.separation import fit


def test_an_exact_law_is_recovered():
    law = fit([50 * 0.4**l for l in range(6)])
    assert (law.start, law.rate) == pytest.approx((50, 0.4), rel=1e-12)
    assert (law.correlation, law.r2) == pytest.approx((-1, 1), rel=1e-12)
    assert law.half_life == pytest.approx(0.7564707973660301, rel=1e-12)
    assert law.layers == 6


@given(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=12).filter(lambda v: max(v) > 1.01 * min(v)))
@settings(max_examples=100, deadline=None)
def test_the_fit_is_least_squares_of_the_logarithm(values):
    law, l = fit(values), np.arange(len(values))
    slope, start = np.polyfit(l, np.log(values), 1)
    assert math.log(law.rate) == pytest.approx(slope, rel=1e-8, abs=1e-10)
    assert math.log(law.start) == pytest.approx(start, rel=1e-8, abs=1e-9)
    assert law.correlation == pytest.approx(np.corrcoef(l, np.log(values))[0, 1], rel=1e-8, abs=1e-10)
    scaled = fit([7 * v for v in values])
    assert (scaled.rate, scaled.start) == pytest.approx((law.rate, 7 * law.start), rel=1e-9)
    backwards = fit(values[::-1])
    assert backwards.rate == pytest.approx(1 / law.rate, rel=1e-9)
    if abs(law.half_life) < 1e6:
        assert backwards.half_life == pytest.approx(-law.half_life, rel=1e-7)


def test_zeros_and_what_is_not_finite_are_left_out_in_their_places():
    law = fit([8.0, 0.0, 2.0, math.nan, 0.5, math.inf])
    assert law.layers == 3
    assert (law.start, law.rate, law.correlation) == pytest.approx((8, 0.5, -1), rel=1e-12)


def test_too_few_or_equal_values_have_no_law():
    for values in ([], [1.0], [0.0, 3.0], [math.nan, 1.0, 0.0]):
        assert math.isnan(fit(values).rate)
        assert math.isnan(fit(values).half_life)
    same = fit([0.3, 0.3 * (1 + 1e-16), 0.3])
    assert (same.rate, same.half_life) == (1, math.inf)
    assert math.isnan(same.correlation)


def test_the_line_at_constant_speed_is_no_geometric_law():
    """With a collapsed end and equal means D(t) = (1-t)^2 D_0; shrinking steps obey it."""
    L, rho = 8, 0.49
    constant = fit([(1 - l / L) ** 2 for l in range(L)])
    assert constant.r2 < 0.95
    shrinking = [1 - rho ** (l / 2) for l in range(L)]
    law = fit([(1 - t) ** 2 for t in shrinking])
    assert (law.rate, law.r2) == pytest.approx((rho, 1), rel=1e-12)
