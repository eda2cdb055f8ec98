"""Where PFC1 and PFC2 turn on a line, in exact arithmetic: an obviously right twin."""

from fractions import Fraction

import numpy as np
from sympy import QQ, Poly, Rational, sign
from sympy.abc import t


def exact(M):
    """A matrix of floats as rational numbers."""
    return np.array([[Fraction(x) for x in row] for row in np.atleast_2d(M)], dtype=object)


def along(a, b, c):
    """(1-t)^2 a + 2 t (1-t) b + t^2 c, from the constant term on."""
    return [a, 2 * (b - a), a - 2 * b + c]


def polynomial(coefficients):
    return Poly(
        [Rational(Fraction(c).numerator, Fraction(c).denominator) for c in reversed(coefficients)],
        t,
        domain=QQ,
    )


def fall_of_ratio(within, between):
    """A polynomial that is positive where within over between falls."""
    W, B = (polynomial(along(*map(Fraction, values))) for values in (within, between))
    return W * B.diff() - W.diff() * B


def products(A, B):
    """Mean inner products of two matrices: first with first, first with last, last with last."""
    A, B = exact(A), exact(B)
    return (A * A).sum(), (A * B).sum(), (B * B).sum()


def of_features(A, B, y, *, collapsed):
    """Class means of whole-number features, their residuals' products and those of the means."""
    A, B = exact(A), exact(B)
    K = int(max(y)) + 1
    means = [
        np.array([M[y == k].sum(axis=0) / Fraction(int((y == k).sum())) for k in range(K)])
        for M in (A, B)
    ]
    rest = [M - means[i][y] for i, M in enumerate((A, B))]
    rest[1] = rest[1] * (0 if collapsed else 1)
    share = np.array([Fraction(1, K * int((y == k).sum())) for k in y])[:, None]
    about = [M - M.sum(axis=0) / Fraction(K) for M in means]
    within = [(share * rest[i] * rest[j]).sum() for i, j in ((0, 0), (0, 1), (1, 1))]
    between = [(about[i] * about[j]).sum() / Fraction(K) for i, j in ((0, 0), (0, 1), (1, 1))]
    return about, within, between


def fall_of_frame_distance(A, B):
    """A polynomial that is positive where PFC2 falls between class means: 2 p' r - p r' of MATH 2.2."""
    A, B = (M - M.sum(axis=0) / len(M) for M in (exact(A), exact(B)))
    grams = A @ A.T, A @ B.T + B @ A.T, B @ B.T
    traces = [G.trace() for G in grams]
    inner = np.array([[(G * H).sum() for H in grams] for G in grams])
    basis = [polynomial(c) for c in ([1, -2, 1], [0, 1, -1], [0, 0, 1])]  # (1-t)^2, t (1-t), t^2
    p = sum((b * polynomial([c]) for b, c in zip(basis, traces, strict=True)), 0 * basis[0])
    pairs = [(a * b, inner[i, j]) for i, a in enumerate(basis) for j, b in enumerate(basis)]
    r = sum((ab * polynomial([c]) for ab, c in pairs), 0 * basis[0])
    return 2 * p.diff() * r - p * r.diff()


def course(fall):
    """Where a metric turns inside (0, 1), and the sign of its fall after that; 0 if it is constant."""
    if fall.is_zero:
        return [], 0
    eps = Rational(1, 10**30)
    found = fall.intervals(inf=0, sup=1, eps=eps) if fall.degree() else []
    inside = [(left, right, times) for (left, right), times in found if right > 0 and left < 1]
    inside = [(left, right, times) for left, right, times in inside if not left == right in {0, 1}]
    turns = [float((left + right) / 2) for left, right, times in inside if times % 2]
    last = inside[-1][1] if inside else Rational(0)
    value = fall.eval((last + 1) / 2)
    return turns, int(sign(value))
