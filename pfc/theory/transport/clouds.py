"""Two clouds of the same samples, weighted and centred, read in float64 block by block."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.metrics import Weighting, class_weights
from pfc.samples import labelled, samples
from pfc.schema import rounded

SMALL = 1e-140  # the squares of features below it, or above its inverse, leave float64; ours
BLOCK = 2**21  # numbers of one cloud in float64 at a time, 16 MiB; ours
EPS = float(np.finfo(np.float64).eps)


def ratio(cost: float, w2: float) -> float:
    """Cost over optimal cost: infinite if only the optimal one is zero, NaN if both are."""
    if w2 > 0:
        return cost / w2
    return math.inf if cost > 0 else math.nan


def times(ratio: float, *, excess: float | None = None, up: bool = False) -> str:
    """A ratio in words, that shows an excess over 1 however small; of an upper bound, rounded up."""
    excess = ratio - 1 if excess is None else excess
    if 0 < excess < 0.0005:
        return f"1 + {rounded(excess, 2, up=up) if up else f'{excess:.1e}'} times"
    return f"{rounded(ratio, 4, up=True) if up else f'{ratio:.4g}'} times"


@dataclass(frozen=True, eq=False)
class Clouds:
    """The samples before and after a map.

    Args:
        start: Features before, a row a sample, in any float type.
        end: Features after.
        weighting: `"sample"` if all samples weigh the same, `"class"` if all classes do.
        w: Weight of each sample; they sum to 1.
        means: Weighted means of the two clouds; every block has them taken off.
        labels: Class of each sample, renumbered to those that occur; `None` if unknown.
    """

    start: Float[Tensor, "N D"]
    end: Float[Tensor, "N D"]
    weighting: Weighting
    w: Float64[Tensor, " N"]
    means: Float64[Tensor, "2 D"]
    labels: Int64[Tensor, " N"] | None

    @classmethod
    def of(cls, start: Any, end: Any, y: Any, weighting: Weighting) -> "Clouds":
        """Two clouds of the same samples, checked."""
        before, after = samples(start, name="start"), samples(end, name="end")
        if before.shape != after.shape:
            raise ValueError(
                "start and end must be two N x D arrays of the same samples, "
                f"got shapes {tuple(before.shape)} and {tuple(after.shape)}"
            )
        if len(before) < 2:
            raise ValueError(f"need at least 2 samples, got start of shape {tuple(before.shape)}")
        labels = None
        if y is not None:
            labels = labelled(before, y, name="start", finite=False, gaps="drop")[1].cpu()
        w = _weights(labels, len(before), weighting)
        _check_sizes("start", before)
        _check_sizes("end", after)
        means = torch.stack([_mean(cloud, w) for cloud in (before, after)])
        return cls(before, after, weighting, w, means, labels)

    @property
    def N(self) -> int:
        """Samples."""
        return self.start.shape[0]

    @property
    def D(self) -> int:
        """Features of a sample."""
        return self.start.shape[1]

    @property
    def count(self) -> np.ndarray:
        """Samples of each class that occurs."""
        return np.bincount(np.zeros(self.N, int) if self.labels is None else self.labels.numpy())

    @property
    def uniform(self) -> bool:
        """Whether all samples weigh the same."""
        return self.weighting == "sample" or len(set(self.count.tolist())) == 1

    def rows(
        self, size: int | None = None
    ) -> Iterator[tuple[slice, Float64[Tensor, "B D"], Float64[Tensor, "B D"]]]:
        """Blocks of samples: which, and their centred features before and after."""
        size = size or max(1, BLOCK // self.D)
        for i in range(0, self.N, size):
            at = slice(i, min(i + size, self.N))
            a, b = (x[at].cpu().double() for x in (self.start, self.end))
            yield at, a - self.means[0], b - self.means[1]

    def columns(
        self, index: Int64[Tensor, " n"]
    ) -> Iterator[tuple[Float64[Tensor, "n B"], Float64[Tensor, "n B"]]]:
        """Blocks of centred features of some samples, before and after."""
        size = max(1, BLOCK // len(index))
        for i in range(0, self.D, size):
            at = slice(i, i + size)
            a, b = (x[:, at][index].cpu().double() for x in (self.start, self.end))
            yield a - self.means[0, at], b - self.means[1, at]

    def cost(self) -> float:
        r"""Transport cost of the map between the centred clouds, $\sum_i w_i \|a_i - b_i\|^2$."""
        apart = torch.cat([(b - a).square().sum(1) for _, a, b in self.rows()])
        return float(self.w @ apart)

    def subset(self, size: int, rng: np.random.Generator) -> Int64[Tensor, " n"]:
        """At most `size` random samples of one weight: of any class, or of each class equally many."""
        if self.weighting == "sample" or self.labels is None:
            chosen = rng.choice(self.N, size, replace=False)
        else:
            labels, count = self.labels.numpy(), self.count
            each = min(size // len(count), int(count.min()))
            groups = [np.flatnonzero(labels == k) for k in range(len(count))]
            chosen = np.concatenate([rng.choice(g, each, replace=False) for g in groups])
        return torch.from_numpy(np.sort(chosen))


def _mean(x: Float[Tensor, "N D"], w: Float64[Tensor, " N"]) -> Float64[Tensor, " D"]:
    size = max(1, BLOCK // x.shape[1])
    parts = zip(w.split(size), x.split(size), strict=True)
    return torch.stack([share @ rows.cpu().double() for share, rows in parts]).sum(0)


def _check_sizes(name: str, x: Float[Tensor, "N D"]) -> None:
    """Refuse a cloud whose squares, or those of whose differences, leave float64."""
    first, height = x[0].cpu().double(), max(1, BLOCK // x.shape[1])
    spread = max(float((rows.cpu().double() - first).abs().amax()) for rows in x.split(height))
    for size, what in ((float(x.abs().amax()), "features"), (spread, "differences")):
        if size and not SMALL <= size <= 1 / SMALL:
            raise ValueError(
                f"{name} has {what} of {size:.3g} at most: float64 cannot hold the squares; "
                "multiply start and end by one number"
            )


def _weights(labels: Int64[Tensor, " N"] | None, N: int, weighting: Weighting) -> Float64[Tensor, " N"]:
    if weighting == "class" and labels is None:
        raise ValueError("weighting='class' needs the labels y; weighting='sample' does not")
    labels = torch.zeros(N, dtype=torch.long, device="cpu") if labels is None else labels
    count = labels.bincount().double()
    pi = class_weights(count, weighting)
    if weighting == "class" and len(count) < 2:
        raise ValueError("weighting='class' needs samples of at least 2 classes, got 1")
    return (pi / count)[labels]
