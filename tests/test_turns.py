"""Turning points and verdicts of the line against exact arithmetic, near cancellation above all."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from pfc.theory.turns import FIRST, Course, _places, of_frame_distance, of_ratio
from tests import exact_line
from tests.test_geodesic import segment

MANY = 50_000  # instances of each metric, by name: pytest -m slow tests/test_turns.py
SIZES = [(2, 3), (3, 2), (3, 5), (4, 3), (4, 8), (5, 2), (12, 4), (12, 12)]  # K, D


def whole(rng, *shape):
    return rng.integers(-3, 4, size=shape).astype(float)


def far(rng, least=-6, most=6):
    return 10.0 ** rng.uniform(least, most)


def rotation(rng, D):
    """A signed permutation, a rotation or a reflection in exact numbers."""
    return np.diag(rng.choice([-1.0, 1.0], D))[rng.permutation(D)]


ENDS = {
    "apart": lambda A, B, rng: (A, B),
    "of very different size": lambda A, B, rng: (A, B * far(rng)),
    "almost opposite": lambda A, B, rng: (A * far(rng, -8, -1) - B * rng.uniform(0.1, 3), B),
    "almost the same": lambda A, B, rng: (A, A + B * far(rng, -8, -1)),
    "almost opposite, small": lambda A, B, rng: (A * far(rng, -8, -1) - B, B * far(rng)),
    "whole numbers": lambda A, B, rng: (whole(rng, *A.shape), whole(rng, *A.shape)),
    "rotated": lambda A, B, rng: (whole(rng, *A.shape), None),
    "orthogonal": lambda A, B, rng: (np.hstack([A, 0 * A]), np.hstack([0 * A, B])),
    "a multiple": lambda A, B, rng: (A, A * 2.0 ** rng.integers(-9, 9) * rng.choice([-1, 1])),
}
RESIDUALS = {
    "apart": lambda R, Q, rng: (R, Q),
    "equal": lambda R, Q, rng: (R, R),
    "opposite": lambda R, Q, rng: (R, -R),
    "of very different size": lambda R, Q, rng: (R, Q * far(rng)),
    "collapsed at the end": lambda R, Q, rng: (R, 0 * R),
    "collapsed at the start": lambda R, Q, rng: (0 * R, R),
    "almost equal": lambda R, Q, rng: (R, R + Q * far(rng, -6, -1)),
}


def ends(seed):
    """Class means of the two ends, of some kind."""
    rng = np.random.default_rng(seed)
    kind = list(ENDS)[seed % len(ENDS)]
    K, D = SIZES[seed // len(ENDS) % len(SIZES)]
    A, B = ENDS[kind](rng.normal(size=(K, D)), rng.normal(size=(K, D)), rng)
    return (A, A @ rotation(rng, D) if B is None else B), rng, kind


def centred(M):
    """Less its mean, which is exact, and then rounded."""
    M = exact_line.exact(M)
    return (M - M.sum(axis=0) / Fraction(len(M))).astype(float)


def agree(found, fall, context):
    turns, last = exact_line.course(fall)
    assert len(found.turns) == len(turns), (context, found, turns)
    assert found.turns == pytest.approx(turns, abs=1e-5), (context, found, turns)
    assert found.falls == (last >= 0), (context, found, last)
    assert found.constant == (last == 0), (context, found, last)
    assert list(found.turns) == sorted(found.turns)
    assert all(0 < turn < 1 for turn in found.turns)


def check_frame_distance(seed):
    (A, B), _, kind = ends(seed)
    if not (centred(A).any() and centred(B).any()):
        return
    found = of_frame_distance(centred(A), centred(B), frame=False)
    agree(found, exact_line.fall_of_frame_distance(A, B), (kind, seed))


def check_frame(seed):
    """The end is a frame exactly, the start is anything, its part along the frame too."""
    rng = np.random.default_rng(seed)
    K = [3, 4, 12][seed % 3]
    E = np.eye(K) - 1 / K
    exact_E = exact_line.exact(np.eye(K)) - Fraction(1, K)
    rest = [rng.normal(size=(K, K)), whole(rng, K, K)][seed // 3 % 2]
    along = [float(rng.integers(-2, 3)), rng.normal()][seed // 6 % 2]
    size = 2.0 ** round(rng.uniform(*[(0, 0), (-10, 10), (-20, -3)][seed // 12 % 3]))  # exact
    A = np.hstack([along * E, E @ rest * size])
    exact_A = np.hstack([Fraction(along) * exact_E, exact_E @ exact_line.exact(rest * size)])
    B, exact_B = np.hstack([E, 0 * E]), np.hstack([exact_E, 0 * exact_E])
    if seed // 36 % 2:
        A, exact_A = A - A[:, ::-1], exact_A - exact_A[:, ::-1]
    if not A.any():
        return
    found = of_frame_distance(A, B, frame=True)
    agree(found, exact_line.fall_of_frame_distance(exact_A, exact_B), seed)
    assert found.falls, "near a frame PFC2 always falls"


def check_ratio(seed):
    (A, B), rng, kind = ends(seed)
    A, B = (M - M.sum(axis=0) / Fraction(len(M)) for M in (exact_line.exact(A), exact_line.exact(B)))
    residuals = list(RESIDUALS)[seed // 7 % len(RESIDUALS)]
    R, Q = RESIDUALS[residuals](rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), rng)
    if not (A.any() and B.any()) or not (R.any() or Q.any()):
        return
    within, between = exact_line.products(R, Q), exact_line.products(A, B)
    found = of_ratio(tuple(map(float, within)), tuple(map(float, between)))
    agree(found, exact_line.fall_of_ratio(within, between), (kind, residuals, seed))


def check_features(seed):
    """From features of whole numbers, whose ties are exact, through all of the engine."""
    rng = np.random.default_rng(seed)
    K, D, m = int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    y = np.repeat(np.arange(K), m)
    A, B = (rng.integers(-2, 3, size=(len(y), D)).astype(float) for _ in range(2))
    B = [B, A @ rotation(rng, D), A + B[::m].repeat(m, axis=0), 2 * A + 1, B[:, ::-1], -A][seed % 6]
    A, B = A + float(seed // 6 % 2 * 1000), B * 2.0 ** (seed // 12 % 3)
    if len(np.unique(y)) < 2:
        return
    for end in ("measured", "means"):
        about, within, between = exact_line.of_features(A, B, y, collapsed=end == "means")
        found = segment(A, B, torch.from_numpy(y)).certify(end)
        if between[0] and between[2]:
            fall = exact_line.fall_of_ratio(within, between)
            agree(course_of(found.theorem1), fall, (end, seed))
            assert found.theorem1.monotone == (not found.theorem1.turns and found.theorem1.falls)
            agree(course_of(found.theorem2), exact_line.fall_of_frame_distance(*about), (end, seed))


def course_of(theorem):
    return Course(theorem.turns, theorem.falls, theorem.constant)


CHECKS = {
    "ratio": check_ratio,
    "frame distance": check_frame_distance,
    "to a frame": check_frame,
    "features": check_features,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("block", range(4))
def test_verdicts_are_those_of_exact_arithmetic(check, block):
    for seed in range(36 * block, 36 * (block + 1)):
        CHECKS[check](seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("block", range(10))
def test_many_verdicts_are_those_of_exact_arithmetic(check, block):
    for seed in range(MANY // 10 * block, MANY // 10 * (block + 1)):
        CHECKS[check](seed)


def test_two_turns_that_are_one_number_are_none():
    assert _places([1.0, 1.0], 1.0) == ()
    assert _places([0.25, 1.0, 1.0], 0.25) == (0.5,)
    assert _places([0.0, 0.0, 0.0], 1.0) == (FIRST,)
