"""Optimal transport by assignment: of the whole set, of a subset, of subsets of growing size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.theory.transport.clouds import EPS, Clouds, ratio, times

SMALLEST = 50  # samples of the smallest random subset, doubled from there; ours
DRAWS = 8  # subsets of each size; ours
ROUNDS = 24  # in which potentials are looked for; ours
ROWS = 64  # of a matrix at a time; ours


@dataclass(frozen=True)
class Exact:
    r"""The map's cost against the optimal transport of the same samples, all of one weight.

    The optimal one-to-one map is found exactly. The gap of a random subset is sampled: in expectation it
    is a lower bound of the whole gap, because the subsets' optimal plans average to a plan of the whole
    set.

    Args:
        samples: That were assigned.
        of: Samples there are; fewer were assigned if only a subset was.
        cost: Mean of $\|a_i - b_i\|^2$ over these samples.
        w2: Squared Wasserstein-2 distance of the two clouds of these samples.
        gap: cost - w2, at least 0; 0 where the map is optimal.
        ratio: cost / w2, at least 1; NaN if nothing moves.
        moved: Fraction of the samples whose optimal partner is another; exchanges that gain no more than
            rounding do not count.
    """

    samples: int
    of: int
    cost: float
    w2: float
    gap: float
    ratio: float
    moved: float

    @property
    def sampled(self) -> bool:
        """Whether it is of a subset only."""
        return self.samples < self.of

    def __str__(self) -> str:
        sure = (
            f"sampled, {self.samples:,} of {self.of:,} samples; in expectation at most the whole gap"
            if self.sampled
            else f"exact, all {self.of:,} samples"
        )
        if self.cost == 0:
            return f"The centred clouds are the same, nothing is transported ({sure})."
        if self.gap == 0 and self.sampled:
            return (
                f"No gap was found: the network's map of {self.samples:,} samples is optimal ({sure})."
            )
        if self.gap == 0:
            return f"The network's map is an optimal transport map ({sure})."
        excess = self.gap / self.w2 if self.w2 else math.inf
        return (
            f"The network's map costs {times(self.ratio, excess=excess)} the optimal transport "
            f"({sure}); {100 * self.moved:.3g} % of these samples have another optimal partner."
        )


@dataclass(frozen=True)
class Subset:
    """The gap of random subsets of one size: sampled.

    Its expectation never falls as the size grows, and never exceeds the gap of the whole set.

    Args:
        size: Samples of each subset.
        draws: Subsets drawn.
        gap: Mean over them of cost - W2^2.
        error: Standard error of this mean.
    """

    size: int
    draws: int
    gap: float
    error: float


def assign(clouds: Clouds, index: Int64[Tensor, " n"]) -> Exact:
    """The exact optimal transport between the indexed samples before and after the map."""
    partner = _partners(*_inner(clouds, index), clouds.D)
    apart, best, gain = np.zeros((3, len(partner)))
    for a, b in clouds.columns(index):
        apart += (a - b).square().sum(1).numpy()
        best += (a - b[partner]).square().sum(1).numpy()
        gain += (a * (b[partner] - b)).sum(1).numpy()
    cost = float(apart.mean())
    w2 = min(float(best.mean()), cost)
    moved = float((partner.numpy() != np.arange(len(partner))).mean())
    gap = max(2 * float(gain.mean()), 0.0)  # cost - w2, but for what would cancel
    return Exact(len(partner), clouds.N, cost, w2, gap, ratio(cost, w2), moved)


def assign_at_most(clouds: Clouds, size: int, rng: np.random.Generator) -> Exact:
    """Of the whole set if it has no more samples and these weigh the same, else of a random subset."""
    if clouds.N <= size and clouds.uniform:
        return assign(clouds, torch.arange(clouds.N, device="cpu"))
    return assign(clouds, clouds.subset(min(size, clouds.N), rng))


def draw_subsets(clouds: Clouds, size: int, rng: np.random.Generator) -> Subset:
    """The gap of some random subsets of about one size."""
    found = [assign(clouds, clouds.subset(size, rng)) for _ in range(DRAWS)]
    gaps = np.array([exact.gap for exact in found])
    return Subset(found[0].samples, DRAWS, float(gaps.mean()), float(gaps.std(ddof=1) / DRAWS**0.5))


def subset_sizes(clouds: Clouds, exact: int) -> list[int]:
    """50, 100, 200 and so on below the exact part's size, as far as there are samples for them."""
    largest, least = clouds.N, 2
    if clouds.weighting == "class":
        largest, least = len(clouds.count) * int(clouds.count.min()), len(clouds.count)
    doubled = [SMALLEST * 2**i for i in range(20)]
    return [size for size in doubled if least <= size < min(exact, largest)]


def _inner(
    clouds: Clouds, index: Int64[Tensor, " n"]
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """All inner products of features before with features after, and the norms of both."""
    G = torch.zeros(len(index), len(index), dtype=torch.float64, device="cpu")
    a2, b2 = torch.zeros(2, len(index), dtype=torch.float64, device="cpu")
    for a, b in clouds.columns(index):
        G.addmm_(a, b.mT)
        a2 += a.square().sum(1)
        b2 += b.square().sum(1)
    return G, a2.sqrt(), b2.sqrt()


def _partners(
    G: Float64[Tensor, "n n"], a: Float64[Tensor, " n"], b: Float64[Tensor, " n"], D: int
) -> Int64[Tensor, " n"]:
    """The assignment with the greatest sum of inner products, the identity wherever that ties."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = np.arange(len(G))
    if _nothing_gains(G.numpy()):
        return torch.from_numpy(n)
    partner = linear_sum_assignment(_reduced(G.numpy()))[1]
    cycle = connected_components(coo_array((np.ones(len(G)), (n, partner))))[1]
    gain = G[n, partner] - G.diagonal()
    rounding = D * EPS * a * (b[partner] + b)
    ties = np.bincount(cycle, gain.numpy()) <= np.bincount(cycle, rounding.numpy())
    return torch.from_numpy(np.where(ties[cycle], n, partner))


def _nothing_gains(G: np.ndarray) -> bool:
    """Whether potentials prove that no exchange of partners gains; false if few rounds do not tell."""
    # v with v_j <= v_i + G_ii - G_ij for all i, j exists where no cycle of exchanges gains: shortest
    # paths (Bellman and Ford), found in few rounds where the identity is best by far
    own, v = np.diagonal(G), np.zeros(len(G))
    if _some_pair_gains(G, own):
        return False
    for _ in range(ROUNDS):
        shorter = v.copy()
        for at in _blocks(len(G)):
            np.minimum(shorter, ((v + own)[at, None] - G[at]).min(0), out=shorter)
        if (shorter == v).all():
            return True
        v = shorter
    return False


def _some_pair_gains(G: np.ndarray, own: np.ndarray) -> bool:
    """Whether two samples would gain by an exchange, by more than rounding may do."""
    least = -16 * EPS * float(np.abs(own).max())
    for at in _blocks(len(G)):
        on = slice(at.start, None)  # those before have been paired with these
        if (own[at, None] + own[on] - G[at, on] - G[on, at].T).min() < least:
            return True
    return False


def _reduced(G: np.ndarray) -> np.ndarray:
    """Costs of the same assignment of which the least of each row and of each column is 0."""
    C = G.max(1, keepdims=True) - G
    C -= C.min(0)
    return C


def _blocks(n: int) -> Iterator[slice]:
    """Rows of a matrix, few enough to stay in the processor's cache."""
    return (slice(i, min(i + ROWS, n)) for i in range(0, n, ROWS))
