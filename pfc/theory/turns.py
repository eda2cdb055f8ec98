"""Where PFC1 and PFC2 turn between two ends A and B: roots of forms in two variables, never sampled.

Along (1 - t) A + t B both metrics depend on the direction of (1 - t, t) alone. In the basis of B and S,
where S is the part of A that is orthogonal to B, neither the sizes of the ends nor their near
cancellation costs digits: PFC1 is a ratio of quadratic forms, PFC2 a quartic form on the unit circle.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

ZERO = 1e-13  # of the size of what is subtracted: a difference below it is round-off; ours
ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of products of unit vectors; ours
NEAR = 1e-3  # imaginary part of a direction that may be a multiple root off the circle; ours
RELATIVE = 4 * float(np.finfo(np.float64).eps)  # the least that a bracketed root may be asked for
FIRST, LAST = float(np.finfo(np.float64).tiny), 1 - 2.0**-53  # the ends of (0, 1)

Matrix = Float64[np.ndarray, "K R"]
Quadratic = Sequence[float]  # of first with first, first with last, last with last


@dataclass(frozen=True)
class Course:
    """How a metric goes along the line: it falls and rises in turn.

    Args:
        turns: Where it turns, inside (0, 1), ascending.
        falls: Whether it falls after the last turn.
        constant: Whether it is the same everywhere.
    """

    turns: tuple[float, ...]
    falls: bool
    constant: bool = False


def differences(within: Quadratic, between: Quadratic) -> tuple[float, float, float]:
    """D0, D1, D2: PFC1' has the sign of -((1-t)^2 D0 + t (1-t) D1 + t^2 D2); round-off counts as 0."""
    (W0, W01, W1), (B0, B01, B1) = within, between
    sizes = math.sqrt(W0 * W1), math.sqrt(B0 * B1)  # of W01 and B01, whatever these cancel to
    return (
        _less(W0 * B01, W01 * B0, W0 * sizes[1] + B0 * sizes[0]),
        _less(W0 * B1, W1 * B0, W0 * B1 + W1 * B0),
        _less(W01 * B1, W1 * B01, B1 * sizes[0] + W1 * sizes[1]),
    )


def of_ratio(within: Quadratic, between: Quadratic) -> Course:
    """The course of within over between, each the three numbers of a line's two ends."""
    B0, B01, B1 = between
    if not (B0 > 0 or B1 > 0):
        return Course((), falls=False)
    if not B1 > 0:
        return _reversed(of_ratio(within[::-1], between[::-1]))
    a, b = math.sqrt(B0 or B1), math.sqrt(B1)
    d0, d1, d2 = differences(*([x / a / a, y / a / b, z / b / b] for x, y, z in (within, between)))
    if not (d0 or d1 or d2):
        return Course((), falls=True, constant=True)
    cosine = min(max(B01 / a / b, -1.0), 1.0)
    apart = (1 - cosine) * (1 + cosine) if B0 else 0.0  # squared length of S
    # the roots of d2 x^2 + d1 x + d0 are real: its discriminant is a sum of squares
    root = math.hypot(d1 - 2 * d2 * cosine, 2 * d2 * math.sqrt(apart))
    z = -(d1 + math.copysign(root, d1)) / 2
    steps = sorted(x for x in ([z / d2] if d2 else []) + ([d0 / z] if z else []) if x > 0)
    return Course(_places(steps, b / a), falls=(d2 or d1 or d0) > 0)


def _places(steps: Iterable[float], ratio: float) -> tuple[float, ...]:
    """The turns at these steps, ascending; two that are one number are none."""
    turns: list[float] = []
    for t in (_inside(step, ratio) for step in steps):
        if turns and turns[-1] == t:
            turns.pop()
        else:
            turns.append(t)
    return tuple(turns)


def _inside(step: float, ratio: float) -> float:
    """The t in (0, 1) with t / (1 - t) = step / ratio."""
    return _clamped(step / (step + ratio))


def _clamped(t: float) -> float:
    """A time that rounding may have moved to an end of (0, 1), inside."""
    return min(max(t, FIRST), LAST)


def _reversed(course: Course) -> Course:
    """The course from the other end."""
    turns = tuple(_clamped(1 - t) for t in reversed(course.turns))
    return Course(turns, course.falls != (len(turns) % 2 == 0), course.constant)


def _less(a: float, b: float, size: float) -> float:
    """Their difference; 0 where it is round-off of numbers of that size."""
    return a - b if abs(a - b) > ZERO * size else 0.0


def of_frame_distance(A: Matrix, B: Matrix, *, frame: bool) -> Course:
    """The course of PFC2 between the centred class means A and B; `frame` if B is a simplex ETF."""
    (A, shift), (B, back) = _near_one(A), _near_one(B)
    a, b = float(np.linalg.norm(A)), float(np.linalg.norm(B))
    S, along = _rejection(A, B)
    s = float(np.linalg.norm(S))
    if s <= ROUNDING * a:  # one is a multiple of the other
        return Course((), falls=True, constant=True)
    fall, room = _fall_on_circle(S / s, B / b, frame=frame)
    if not np.abs(fall).max() > room:
        return Course((), falls=True, constant=True)
    top = math.atan2(s, along * b)
    angles, falls = _crossings(fall, top, room)
    with np.errstate(over="ignore"):
        ratio = float(np.ldexp(b / a, back - shift))
    steps = (math.sin(top - angle) / math.sin(angle) for angle in angles)
    return Course(_places(steps, ratio), falls)


def _near_one(M: Matrix) -> tuple[Matrix, int]:
    """A matrix over a power of two, which is exact, and the power."""
    exponent = exponent_of(M)
    return np.ldexp(M, -exponent), exponent


def exponent_of(values: np.ndarray) -> int:
    """That of the power of two above the largest number."""
    return int(np.frexp(np.nan_to_num(np.abs(values), posinf=0.0).max(initial=0.0))[1])


def _rejection(A: Matrix, B: Matrix) -> tuple[Matrix, float]:
    """The part of A orthogonal to B, to its own last digits, and the multiple of B taken off."""
    S, along = A, 0.0
    high = B.astype(np.float32).astype(np.float64)  # products of two halves are exact
    for _ in range(3):
        part = float(np.float32(np.vdot(S, B) / np.vdot(B, B)))
        S, along = (S - part * high) - part * (B - high), along + part
    # the means were centred to their own last digits, not to those of S
    return S - S.mean(axis=0), along


def _fall_on_circle(S: Matrix, B: Matrix, *, frame: bool) -> tuple[Float64[np.ndarray, "5"], float]:
    """Of sum c_k sin^k cos^(4-k), positive where PFC2 grows away from B: c, and what is round-off."""
    ss, sb, bb = (_off_frame(G) for G in (S @ S.T, S @ B.T + B @ S.T, 0 * B @ B.T if frame else B @ B.T))
    # on the circle PFC2 grows with the square of the part of the Gram matrix that is off the frame's
    c0, c1, c3, c4 = (2 * np.vdot(bb, bb), np.vdot(sb, bb), np.vdot(ss, sb), 2 * np.vdot(ss, ss))
    c2 = np.vdot(sb, sb) + 2 * np.vdot(ss, bb)
    room = 4 * ROUNDING * max(float(np.linalg.norm(P)) for P in (ss, sb, bb))
    return np.array([c1, c2 - c0, 3 * (c3 - c1), c4 - c2, -c3]), room


def _off_frame(G: Float64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """The part of a Gram matrix orthogonal to that of a simplex ETF; 0 where it is round-off."""
    K = len(G)
    P = G - np.trace(G) / (K - 1) * (np.eye(K) - 1 / K)
    return P if np.linalg.norm(P) > ROUNDING else 0 * P


def _crossings(fall: Float64[np.ndarray, "5"], top: float, room: float) -> tuple[list[float], bool]:
    """Angles in (0, top) where the form changes its sign, descending, and whether it ends positive."""
    from scipy.optimize import brentq

    def value(angle: float) -> float:
        sin, cos = math.sin(angle), math.cos(angle)
        return float(sum(c * sin**k * cos ** (4 - k) for k, c in enumerate(fall)))

    cuts = [top, *_directions(fall, top), 0.0]
    middles = [middle for pair in pairwise(cuts) if abs(value(middle := sum(pair) / 2)) > room]
    brackets = [pair for pair in pairwise(middles) if value(pair[0]) * value(pair[1]) < 0]
    turns = [float(brentq(value, *pair, xtol=FIRST, rtol=RELATIVE)) for pair in brackets]
    return turns, not middles or value(middles[-1]) > 0


def _directions(fall: Float64[np.ndarray, "5"], top: float) -> list[float]:
    """Angles in (0, top) between which lie the roots of the form, descending."""
    from scipy.linalg import eigvals

    c = fall / np.abs(fall).max()
    companion = np.eye(4, k=1)
    companion[-1] = -c[:4]
    a, b = eigvals(companion, np.diag([1, 1, 1, c[4]]), homogeneous_eigvals=True)
    real = np.abs((a * b.conj()).imag) <= NEAR * (np.abs(a) ** 2 + np.abs(b) ** 2)
    angles = np.copysign(np.arctan2(np.abs(a), np.abs(b)), (a * b.conj()).real)[real] % np.pi
    return [float(angle) for angle in np.sort(angles)[::-1] if 0 < angle < top]
