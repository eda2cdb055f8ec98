"""All that a profile says, by its definitions, where numbers are hostile: the judge of test_hostile.py.

Residuals, class means and increments are taken in extended precision from features less their first
sample, brought to a common size by a power of two, and only then rounded to float64. What follows works
with those, so no offset and no size touches it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial.distance import cdist

from tests.oracles import weights
from tests.test_path import naive

LONG = np.longdouble
TIE = 1e-12  # of squared distances: a decision that close may go either way


@dataclass
class Layer:
    """Residuals and class means of one layer over 2^exponent, the means centred without weights."""

    R: np.ndarray
    M: np.ndarray


class Truth:
    """The numbers of a stack of layers.

    Args:
        layers: Features of each layer, of one shape, exactly as stored.
        y: Labels.
        weighting: Of the classes.
        W: The classifier's weights, for NC3.
        answers: The classifier's answers, for NC4.
    """

    def __init__(self, layers, y, weighting="class", W=None, answers=None):
        self.classes, self.p = np.unique(y, return_inverse=True)
        self.K, self.N, self.weighting = len(self.classes), len(y), weighting
        self.w, self.W, self.answers = weights(y, weighting), W, answers
        self.pi = np.bincount(self.p, self.w)
        long = [np.asarray(H, dtype=LONG) for H in layers]
        largest = max(float(np.frexp(np.abs(H - H[0]).max())[1]) for H in long)
        steps = [b - a for a, b in pairwise(long)]
        largest = max([largest, *(float(np.frexp(np.abs(s).max())[1]) for s in steps)])
        self.exponent = int(largest)
        self.layers = [self._layer(H - H[0]) for H in long]
        self.steps = np.stack([self._small(s) for s in steps], axis=1) if steps else None  # N x L x D

    def _small(self, X):
        return np.ldexp(X, -self.exponent).astype(np.float64)

    def _layer(self, H):
        mean = np.stack([H[self.p == k].mean(axis=0) for k in range(self.K)])
        return Layer(self._small(H - mean[self.p]), self._small(mean - mean.mean(axis=0)))

    def covariances(self, a, b):
        """Mean inner products of the residuals and of the centred means of two layers."""
        M, Q = (X.M - self.pi @ X.M for X in (a, b))
        return self.w @ (a.R * b.R).sum(axis=1), self.pi @ (M * Q).sum(axis=1)

    def pfc2(self, M):
        G = M @ M.T
        E = np.eye(self.K) - 1 / self.K
        return np.linalg.norm(G / np.linalg.norm(G) - E / math.sqrt(self.K - 1))

    def gaps(self, layer):
        """Squared distance to each mean less that to the own one, and how much is a tie."""
        R, M, p = layer.R, layer.M, self.p
        between = squared_distances(M)
        inner = R @ M.T
        F = between[p] + 2 * (inner[np.arange(self.N), p][:, None] - inner)
        return F, TIE * ((R**2).sum(axis=1) + (M**2).sum(axis=1).max())[:, None]

    def accuracy(self, layer):
        """PFC3, and the part of the samples that are too close to a tie."""
        F, tie = self.gaps(layer)
        lower = np.arange(self.K) < self.p[:, None]
        own = np.arange(self.K) == self.p[:, None]
        right = (np.where(lower, F > 0, F >= 0) | own).all(axis=1)
        return right.mean(), ((np.abs(F) <= tie) & ~own).any(axis=1).mean()

    def disagreement(self, layer):
        """NC4, and the part of the samples whose two nearest means are too close to a tie."""
        F, tie = self.gaps(layer)
        nearest = self.classes[F.argmin(axis=1)]
        two = np.sort(F, axis=1)[:, :2]
        return (nearest != self.answers).mean(), (two[:, 1] - two[:, 0] <= tie[:, 0]).mean()

    def row(self, l):
        """Every metric of a layer; PFC3 and NC4 as a pair with what may go either way."""
        layer = self.layers[l]
        M, K = layer.M, self.K
        within, between = self.covariances(layer, layer)
        A = np.sqrt(self.pi)[:, None] * (M - self.pi @ M)
        onto = np.linalg.pinv(A, rcond=1e-13)
        fuzziness = self.w @ ((layer.R @ onto) ** 2).sum(axis=1)
        norms, off = np.linalg.norm(M, axis=1), ~np.eye(K, dtype=bool)
        cosines = (M @ M.T / np.outer(norms, norms))[off]
        variance = np.bincount(self.p, (layer.R**2).sum(axis=1)) / np.bincount(self.p)
        apart = squared_distances(M)[off]
        out = {
            "pfc1": within / between,
            "pfc2": self.pfc2(M),
            "pfc3": self.accuracy(layer),
            "fuzziness": fuzziness,
            "nc1": fuzziness / K,
            "nc2_norm": norms.std(ddof=1) / norms.mean(),
            "nc2_angle": cosines.std(),
            "nc2_max_angle": np.abs(cosines + 1 / (K - 1)).mean(),
            "cdnv": (np.add.outer(variance, variance)[off] / (2 * apart)).mean(),
            "nc3": math.nan,
            "nc4": math.nan,
        }
        if l == len(self.layers) - 1 and self.W is not None:
            W = np.asarray(self.W, LONG)[self.classes]
            W = (W / np.sqrt((W**2).sum())).astype(np.float64)
            out["nc3"] = np.linalg.norm(W - M / np.linalg.norm(M))
            out["nc4"] = self.disagreement(layer)
        return out

    def positions(self):
        """Of each kind, where the layers stand."""
        square = lambda D: math.sqrt(self.w @ (D**2).sum(axis=1))  # noqa: E731
        done = self.steps.cumsum(axis=1)
        L = self.steps.shape[1]
        lengths = np.cumsum([square(self.steps[:, l]) for l in range(L)])
        chords = np.array([square(done[:, l]) for l in range(L)])
        along = [self.w @ (done[:, l] * done[:, -1]).sum(axis=1) for l in range(L)]
        return {
            "path": [0, *lengths / lengths[-1]],
            "chord": [0, *chords / chords[-1]],
            "proj": [0, *np.array(along) / along[-1]],
            "index": [l / L for l in range(L + 1)],
        }

    def path(self):
        """The path of the whole: all samples as one point."""
        rows = np.sqrt(self.w)[:, None, None] * self.steps
        return self._numbers(rows.transpose(1, 0, 2).reshape(rows.shape[1], -1))

    def path_of(self, i):
        """The path of one sample."""
        return self._numbers(self.steps[i])

    @np.errstate(divide="ignore", invalid="ignore")
    def _numbers(self, D):
        numbers = naive(np.vstack([0 * D[:1], D.cumsum(axis=0)]))
        unit = {"length": 1, "chord": 1, "energy": 2, "steps": 1, "curvature": -1}
        return {
            name: times_two_to(value, self.exponent * unit.get(name.partition(".")[0], 0))
            for name, value in numbers.items()
        }

    def end(self, kind):
        """The last layer as it stands at the end of the line; `None` where undefined."""
        last = self.layers[-1]
        if kind == "measured":
            return last
        M = last.M
        if kind == "etf":
            U, S, Vt = np.linalg.svd(M, full_matrices=False)
            r = self.K - 1
            if len(S) < r or S[r - 1] < 1e-13 * S[0]:
                return None
            M = S[:r].sum() / r * U[:, :r] @ Vt[:r]
        return Layer(0 * last.R, M)

    def line(self, t, kind):
        """PFC1, PFC2 and the pair of PFC3 at a t."""
        first, end = self.layers[0], self.end(kind)
        here = Layer((1 - t) * first.R + t * end.R, (1 - t) * first.M + t * end.M)
        within, between = self.covariances(here, here)
        return within / between, self.pfc2(here.M), self.accuracy(here)

    def theorem1(self, kind):
        """B01, align, D over B00 B11, whether PFC1 falls, and where it turns."""
        a, b = self.layers[0], self.end(kind)
        (W0, B0), (W01, B01), (W1, B1) = (self.covariances(*pair) for pair in ((a, a), (a, b), (b, b)))
        D = np.array([W0 * B01 - W01 * B0, W0 * B1 - W1 * B0, W01 * B1 - W1 * B01])
        turns = sign_changes([D[0], D[1] - 2 * D[0], D[0] - D[1] + D[2]])
        return {
            "b01": times_two_to(B01, 2 * self.exponent),
            "align": B01 / math.sqrt(B0 * B1),
            "slacks": D / (B0 * B1),
            "d": [times_two_to(x, 4 * self.exponent) for x in D],
            "turns": turns,
            "monotone": not turns and D[0] >= 0 and D[2] >= 0,
        }

    def pfc2_turns(self, kind):
        """Where PFC2 turns in (0, 1), from p and r as interpolated polynomials."""
        A, B = self.layers[0].M, self.end(kind).M
        nodes = np.linspace(0, 1, 9)
        G = [M @ M.T for M in ((1 - t) * A + t * B for t in nodes)]
        p = np.polynomial.Polynomial.fit(nodes, [np.trace(g) for g in G], 2, domain=[0, 1]).convert()
        r = np.polynomial.Polynomial.fit(nodes, [(g**2).sum() for g in G], 4, domain=[0, 1]).convert()
        g = (2 * p.deriv() * r - p * r.deriv()).coef[:5]
        if self.K == 2 or A.shape[1] == 1:
            return []  # all such means have one PFC2
        return sign_changes(np.cumsum(g)[:-1] if kind == "etf" else g)


def squared_distances(M):
    """Of all rows from all rows, without expanding the square."""
    return cdist(M, M, "sqeuclidean")


def sign_changes(coef):
    """Where a polynomial changes its sign inside (0, 1)."""
    roots = np.polynomial.Polynomial(coef).roots()
    real = sorted(
        z.real for z in np.atleast_1d(roots) if abs(z.imag) < 1e-9 and 1e-9 < z.real < 1 - 1e-9
    )
    f = np.polynomial.Polynomial(coef)
    return [float(z) for z in real if f(z - 1e-6) * f(z + 1e-6) < 0]


def times_two_to(x, exponent):
    """Infinite or zero where float64 ends."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(np.float64(x), exponent))
