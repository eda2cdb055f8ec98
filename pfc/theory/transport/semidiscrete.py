"""Semi-discrete optimal transport to the class means of the end, by its dual in K numbers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pfc.theory.transport.clouds import Clouds, ratio, times

COOLING = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # temperatures over the mean cost; ours
UNSURE = 30  # samples a class that the first linear program may move; ours
ROWS = 300_000  # of this program, at most; ours
MANY = 300  # classes above which a linear program would take minutes; ours
ROUNDS = 6  # linear programs at most, each with twice as many such samples; ours
SAME = 1e-12  # an excess of less, over the mean cost, is rounding; ours


@dataclass(frozen=True)
class SemiDiscrete:
    r"""The end replaced by its class means $m_k$ with the classes' weights $\pi_k$: a proven bound.

    For any potential $v$

    $$ W_2^2 \ge \sum_i w_i \min_k (\|a_i - m_k\|^2 - v_k) + \sum_k \pi_k v_k, $$

    so the bound holds whatever the maximiser found; at its best it is W2^2.

    Args:
        cost: Of sending each sample to the mean of its own class.
        bound: Of the squared Wasserstein-2 distance to the class means, from below.
        ratio: cost / bound: the labels cost at most so many times the optimal transport.
        optimal: Whether no potential is better, within the maximiser's tolerance of 1e-10: then the
            bound is W2^2.
        other: Samples that lie in another class's power cell, $\arg\min_k \|a_i - m_k\|^2 - v_k$.
        potential: v, for the classes that occur, in ascending order.
    """

    cost: float
    bound: float
    ratio: float
    optimal: bool
    other: int
    potential: tuple[float, ...]

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return "The samples stand on their class means already, nothing is transported to these."
        most = times(self.ratio) if self.optimal else f"at most {times(self.ratio, up=True)}"
        return (
            f"Proven by duality, on the whole set: sending the samples to their class means costs "
            f"{most} the optimal transport to these; {self.other:,} samples lie in another class's "
            "power cell (least squared distance less potential)."
        )


def transport_to_means(clouds: Clouds) -> SemiDiscrete:
    """Bound the transport to the class means of the end; the clouds know their labels."""
    cost, excess = _costs(clouds)
    w, y = clouds.w.numpy(), clouds.labels.numpy()  # type: ignore[union-attr]
    scale = float(w @ np.abs(excess).mean(1)) or 1.0
    v, optimal = _minimise(excess / scale, w, y)
    over = _over(excess, y, v * scale)
    bound = max(cost - float(w @ over), 0.0)
    other = int((over > SAME * scale).sum())
    return SemiDiscrete(cost, bound, ratio(cost, bound), optimal, other, tuple((v * scale).tolist()))


def _costs(clouds: Clouds) -> tuple[float, np.ndarray]:
    """The labels' cost, and how much more (N x K) each sample would cost at each class mean."""
    y = clouds.labels
    assert y is not None
    pi = torch.zeros(int(y.max()) + 1, dtype=torch.float64, device="cpu").index_add(0, y, clouds.w)
    M = torch.zeros(len(pi), clouds.D, dtype=torch.float64, device="cpu")
    for at, _, b in clouds.rows():
        M.index_add_(0, y[at], clouds.w[at, None] * b)
    M /= pi[:, None]
    cost, excess = 0.0, []
    for at, a, _ in clouds.rows():
        cost += float(clouds.w[at] @ (a - M[y[at]]).square().sum(1))
        c = M.square().sum(1) - 2 * a @ M.mT
        excess.append(c - c.gather(1, y[at, None]))
    return cost, torch.cat(excess).numpy()


def _over(c: np.ndarray, y: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What each sample could save over its own class at these prices; their mean bounds the gap."""
    return np.asarray((v - c).max(1) - v[y])


def _minimise(c: np.ndarray, w: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, bool]:
    """The potential with the least mean saving, by a smooth approximation and linear programs."""
    zero = np.zeros(c.shape[1])
    if not _over(c, y, zero).any():
        return zero, True
    pi = np.bincount(y, w)
    v = min((zero, _smooth(c, w, pi)), key=lambda v: float(w @ _over(c, y, v)))
    loose = min(UNSURE * len(pi), ROWS // len(pi))
    for i in range(ROUNDS if len(pi) <= MANY else 0):
        new, optimal = _polish(c, w, pi, v, loose * 2**i)
        v = min((v, new), key=lambda v: float(w @ _over(c, y, v)))
        if optimal:
            return v, True
    return v, False


def _smooth(c: np.ndarray, w: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """Maximum replaced by log-sum-exp, at falling temperatures."""
    from scipy.optimize import minimize

    def value_and_slope(v: np.ndarray, T: float) -> tuple[float, np.ndarray]:
        z = (v - c) / T
        top = z.max(1)
        p = np.exp(z - top[:, None])
        total = p.sum(1)
        return T * float(w @ (top + np.log(total))) - float(pi @ v), (w / total) @ p - pi

    v = np.zeros(len(pi))
    with np.errstate(under="ignore"):  # whatever the user wants of numpy
        for T in COOLING:
            v = minimize(value_and_slope, v, args=(T,), jac=True, method="L-BFGS-B").x
    return v - v[0]


def _polish(
    c: np.ndarray, w: np.ndarray, pi: np.ndarray, v: np.ndarray, n: int
) -> tuple[np.ndarray, bool]:
    """The best potential at which only the n least sure samples change their cell; is it optimal?"""
    # variables are v and, for each such sample, u_i = max_k (v_k - c_ik); if keeping the others in their
    # cells costs nothing, convexity makes it optimal
    from scipy.optimize import linprog

    cell = (v - c).argmax(1)
    two = np.partition(v - c, -2, axis=1)[:, -2:]
    order = np.argsort(two[:, 1] - two[:, 0])
    loose, fixed = order[:n], order[n:]
    A, b, kept = _constraints(c, loose, fixed, cell)
    still = np.bincount(cell[fixed], w[fixed], minlength=len(pi))
    slope = len(w) * np.concatenate([still - pi, w[loose]])
    bounds = [(0, 0)] + [(None, None)] * (len(pi) - 1 + len(loose))
    options: Any = {f"{side}_feasibility_tolerance": 1e-10 for side in ("primal", "dual")}
    found = linprog(slope, A_ub=A, b_ub=b, bounds=bounds, method="highs", options=options)
    if found.x is None:
        return v, False
    price = -found.ineqlin.marginals[len(b) - kept :]
    return found.x[: len(pi)], bool((price <= 1e-9 * len(w)).all())


def _constraints(
    c: np.ndarray, loose: np.ndarray, fixed: np.ndarray, cell: np.ndarray
) -> tuple[Any, np.ndarray, int]:
    """Rows v_k - u_i <= c_ik of the loose samples, v_j - v_k <= c_ij - c_ik of those fixed in k."""
    from scipy.sparse import coo_array

    K, n = c.shape[1], len(loose)
    held = np.unique(cell[fixed])
    least = [
        (c[mine] - c[mine, k][:, None]).min(0) for k in held if len(mine := fixed[cell[fixed] == k])
    ]
    rows = np.arange((n + len(held)) * K)
    plus = np.tile(np.arange(K), n + len(held))
    minus = np.concatenate([np.repeat(K + np.arange(n), K), np.repeat(held, K)])
    sign = np.repeat([1.0, -1.0], len(rows))
    at = (np.tile(rows, 2), np.concatenate([plus, minus]))
    A = coo_array((sign, at), shape=(len(rows), K + n)).tocsr()
    return A, np.concatenate([c[loose].ravel(), *least]), K * len(held)
