"""Random pairs and cycles of samples: one negative proves that a map is not optimal."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.schema import rounded
from pfc.theory.transport.clouds import BLOCK, EPS, Clouds

LENGTHS = (2, 3, 5, 10)  # pairs are cycles of two; ours
DRAWN = 10_000  # cycles of each length; ours


@dataclass(frozen=True)
class Cycles:
    r"""Random cycles of samples $i \to \sigma(i)$ of one length, drawn by weight.

    A map is an optimal transport map exactly if $\sum_i \langle a_i, b_i - b_{\sigma(i)} \rangle \ge 0$
    for every cycle of every length; for a pair the sum is $\langle a_i - a_j, b_i - b_j \rangle$. So one
    negative cycle is a proof against, and the witness lets anyone check it. The rate is sampled:
    cycles are drawn anew each time, one sample after another by weight, none twice in a cycle. A sum
    within rounding of zero, in the worst case, does not count. If the end is collapsed and no pair at
    all is negative, Theorem 1's assumption of arXiv 2405.00985 holds (inferred, like its statement).

    Args:
        length: Samples of a cycle; 2 means pairs.
        drawn: Cycles drawn.
        negative: Those that are negative.
        low: Lower end of the two-sided Clopper-Pearson 95 % interval of the rate of negative cycles.
        high: Its upper end.
        upper: One-sided 95 % upper bound of the rate; 3 / drawn if none was negative.
        witness: Samples of the most negative cycle in its order; empty if none is.
        value: Its sum; NaN if there is none.
    """

    length: int
    drawn: int
    negative: int
    low: float
    high: float
    upper: float
    witness: tuple[int, ...]
    value: float

    @property
    def rate(self) -> float:
        """Fraction of the drawn cycles that are negative: sampled."""
        return self.negative / self.drawn

    def __str__(self) -> str:
        name = "pairs" if self.length == 2 else f"cycles of {self.length}"
        if not self.negative:
            return (
                f"None of {self.drawn:,} random {name} is negative: at most {100 * self.upper:.2g} % of "
                "all are (sampled, 95 %)."
            )
        samples = f"{', '.join(map(str, self.witness[:-1]))} and {self.witness[-1]}"
        return (
            f"{self.negative:,} of {self.drawn:,} random {name} {'is' if self.negative == 1 else 'are'} "
            f"negative: not optimal, proven by samples {samples} ({self.value:.3g}); of all, "
            f"{rounded(100 * self.low, 2, up=False)} to {rounded(100 * self.high, 2, up=True)} % are "
            "(sampled, 95 %)."
        )


def draw_cycles(clouds: Clouds, length: int, rng: np.random.Generator, drawn: int = DRAWN) -> Cycles:
    """Count the negative ones among `drawn` random cycles of one length."""
    cycles = _distinct(clouds.w, length, drawn, rng)
    value, rounding = cycle_sums(clouds, cycles)
    negative = value < -rounding
    x = int(negative.sum())
    low, high, upper = _clopper_pearson(x, drawn)
    if not x:
        return Cycles(length, drawn, 0, low, high, upper, (), math.nan)
    worst = int(torch.where(negative, value, math.inf).argmin())
    witness = tuple(cycles[worst].tolist())
    return Cycles(length, drawn, x, low, high, upper, witness, float(value[worst]))


def cycle_sums(
    clouds: Clouds, cycles: Int64[Tensor, "m k"]
) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]:
    """Each cycle's sum, and how far rounding can have moved it."""
    # from differences of features as they are given, so that no mean enters; the worst case of an inner
    # product is (k D + 4) eps times the sum of the factors' norms, whose squares may underflow
    k = cycles.shape[1]
    step = max(1, BLOCK // (k * clouds.D))
    sums, rounding = [], []
    for part in cycles.split(step):
        a, b = (x[part].cpu().double() for x in (clouds.start, clouds.end))
        a, b = a - a[:, :1], b - b.roll(-1, dims=1)
        terms = a * b
        sums.append(terms.sum((1, 2)))
        size = torch.maximum((a.norm(dim=2) * b.norm(dim=2)).sum(1), terms.abs().sum((1, 2)))
        rounding.append((k * clouds.D + 4) * EPS * size)
    return torch.cat(sums), torch.cat(rounding)


def _distinct(
    w: Float64[Tensor, " N"], k: int, drawn: int, rng: np.random.Generator
) -> Int64[Tensor, "m k"]:
    """Rows of distinct samples, drawn one after another by weight."""
    cumulative = np.cumsum(w.numpy())
    cycles = np.full((drawn, k), -1)
    for p in range(k):
        again = np.arange(drawn)
        while len(again):
            u = rng.random(len(again)) * cumulative[-1]
            found = np.searchsorted(cumulative, u, side="right").clip(max=len(w) - 1)
            taken = (cycles[again, :p] == found[:, None]).any(1)
            cycles[again, p] = found
            again = again[taken]
    return torch.from_numpy(cycles)


def _clopper_pearson(x: int, m: int) -> tuple[float, float, float]:
    """Two-sided 95 % interval and one-sided 95 % upper bound of a rate seen x times in m draws."""
    from scipy.special import betaincinv

    low = float(betaincinv(x, m - x + 1, 0.025)) if x else 0.0
    high, upper = (float(betaincinv(x + 1, m - x, p)) if x < m else 1.0 for p in (0.975, 0.95))
    return low, high, upper if x else min(1.0, 3 / m)
