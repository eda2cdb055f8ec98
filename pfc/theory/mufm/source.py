"""From data to the reduced problem and back: narrow coordinates, the eigenbasis, the bias."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.samples import labelled
from pfc.theory.mufm.bounds import Data, Square, Wide, squared_lower, squared_upper
from pfc.theory.mufm.reduced import Point, Problem
from pfc.theory.mufm.statistics import Samples, Statistics, check_classes, summed


@dataclass(frozen=True, eq=False)
class Source:
    """Statistics of the data in coordinates in which they are narrow, and the samples if given.

    Args:
        statistics: In `basis`.
        basis: Orthonormal columns whose span holds all samples, and up to K directions more, for these
            can matter; `None` if the coordinates are the data's own.
        samples: As rows, if they were given.
        features: Width of the data, D.
        centre: Whether X loses its mean.
        free: Whether the bias is free: X and Y lose their means, which it restores.
    """

    statistics: Statistics
    basis: Float64[Tensor, "F D"] | None
    samples: Samples | None
    features: int
    centre: bool
    free: bool

    @classmethod
    def of(cls, data: Samples | Statistics, *, centre: bool = False, free: bool = False) -> "Source":
        """The source of checked data; of N samples in more than N + K features in their row space."""
        if isinstance(data, Statistics):
            return cls(data, None, None, data.mean.shape[1], centre, free)
        X, y = data
        classes, basis, narrow = int(y.max()) + 1, None, data
        if len(X) + classes < X.shape[1]:
            basis = _row_space(X.double(), classes)
            narrow = X.double() @ basis, y
        return cls(summed([narrow]), basis, data, X.shape[1], centre, free)

    @property
    def seen(self) -> Statistics:
        """The statistics of X as the model sees it, without its mean or with it."""
        return self.statistics.centred if self.centre or self.free else self.statistics

    def problem(self, *, lam: float, weight_decay: float) -> tuple[Problem, Float64[Tensor, "D R"]]:
        """The reduced problem and the eigenvectors that are its columns, at most K of eigenvalue 0."""
        statistics = self.seen
        spectrum, n = statistics.spectrum, statistics.count
        zero = int((spectrum.root == 0).sum())
        kept = slice(max(0, zero - len(n)), None)
        root, V = spectrum.root[kept], spectrum.vectors[:, kept]
        Z = torch.where(root > 0, n.sqrt()[:, None] * spectrum.sums[:, kept], 0.0)
        YY = n.diag() - torch.outer(n, n) / n.sum() * self.free
        rest = (YY - Z @ Z.mT).numpy()
        return Problem(root.numpy(), Z.numpy(), rest, statistics.samples, lam, weight_decay), V

    @cached_property
    def data(self) -> Data:
        """What bounds are read from."""
        seen, plain = self.seen, self.statistics
        size = plain.second.diag().sqrt()
        if self.basis is not None:  # whose coordinates mix the features
            size = torch.full_like(size, float(size.square().sum().sqrt()))
        share = seen.count / seen.count.sum()
        target = torch.eye(len(share), dtype=torch.float64, device="cpu") - share[:, None] * self.free
        within = seen.within.sum(0)
        return Data(*(part.numpy() for part in (seen.count, seen.mean, within, target, size)))

    def upper(
        self, point: Point, W: Float64[Tensor, "K D"], V: Float64[Tensor, "D R"]
    ) -> tuple[float, float]:
        """The objective at `W`, to which a point was rounded, and a bound of it from above."""
        lam, decay = point.problem.lam, point.problem.weight_decay
        slope = self._slope(point, V)
        return squared_upper(self.data, W.numpy(), *slope, lam=lam, weight_decay=decay)

    def lower(self, point: Point, V: Float64[Tensor, "D R"]) -> tuple[float, float]:
        """A bound from below of the least objective, and the certificate of a point."""
        lam, decay = point.problem.lam, point.problem.weight_decay
        return squared_lower(self.data, *self._slope(point, V), lam=lam, weight_decay=decay)

    def _slope(self, point: Point, V: Float64[Tensor, "D R"]) -> tuple[Wide, Square]:
        """The slope of the loss at a point: of a sample's residual, and of each class."""
        seen, P = slice(V.shape[1]), point.problem.lam * point.P  # further features are zero in the data
        fit = (point.W * point.problem.root)[:, seen] @ point.problem.Z[:, seen].T
        return P @ point.W[:, seen] @ V.mT.numpy(), P @ (fit / self.data.count - self.data.target)


def checked(X: Any, y: Any) -> Samples | Statistics:
    """Samples as rows on the CPU with their labels, or statistics without, fit to be solved for."""
    if not isinstance(X, Statistics):
        rows, labels = labelled(X, y, flatten=True)
        return rows.cpu(), labels.cpu()
    if y is not None:
        raise ValueError("statistics know their labels; leave y out")
    check_classes(X.count)
    return X


def _row_space(X: Float64[Tensor, "N F"], more: int) -> Float64[Tensor, "F D"]:
    """Orthonormal columns: the row space of X, then up to `more` directions outside."""
    rows = torch.linalg.svd(X, full_matrices=False)[2].mT
    shape, seeded = (len(rows), min(more, len(rows) - rows.shape[1])), torch.Generator().manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64, generator=seeded, device="cpu")
    return torch.linalg.qr(torch.cat([rows, noise], dim=1)).Q


@dataclass(frozen=True, eq=False)
class Hidden:
    """The features of a solution with squared loss: H = X - (X W^T - Y) P W, rows are samples.

    Args:
        W: Classifier, in the coordinates of the statistics.
        P: (W W^T + beta I)^{-1}.
        shift: What is taken from X first: its mean, or zero.
        target: What is taken from Y first: its mean with a free bias, else zero.
        means: Class means of H; with a free bias less the mean of H.
        share: Fraction of the samples in each class.
        centre: Mean of X.
        basis: Of the source.
    """

    W: Float64[Tensor, "K D"]
    P: Float64[Tensor, "K K"]
    shift: Float64[Tensor, " D"]
    target: Float64[Tensor, " K"]
    means: Float64[Tensor, "K D"]
    share: Float64[Tensor, " K"]
    centre: Float64[Tensor, " D"]
    basis: Float64[Tensor, "F D"] | None

    @classmethod
    def of(cls, source: Source, point: Point, V: Float64[Tensor, "D R"]) -> "Hidden":
        """The features at a point whose columns stand for the eigenvectors `V`."""
        P, W = torch.from_numpy(point.P), torch.from_numpy(point.W) @ V.mT
        statistics, Mu = source.statistics, source.seen.mean
        mean, share = statistics.centre, statistics.count / statistics.count.sum()
        shift, target = mean * (source.centre or source.free), share * source.free
        own = torch.eye(len(share), dtype=torch.float64, device="cpu") - target
        means = Mu - (Mu @ W.mT - own) @ P @ W
        return cls(W, P, shift, target, means, share, mean, source.basis)

    @property
    def classifier(self) -> Float64[Tensor, "K F"]:
        """W in the coordinates of the data."""
        return self.wide(self.W)

    @property
    def bias(self) -> Float64[Tensor, " K"]:
        """The free bias: mean of Y less W times the mean of H, which is that of X."""
        return self.share - self.W @ self.centre

    def wide(self, rows: Float64[Tensor, "*K D"]) -> Float64[Tensor, "*K F"]:
        """Rows in the coordinates of the data."""
        return rows if self.basis is None else rows @ self.basis.mT

    def form(self, X: Float[Tensor, "N F"], y: Int64[Tensor, " N"]) -> Float64[Tensor, "N F"]:
        """H for samples and their labels; with a free bias it keeps the mean of X."""
        W, X, shift = self.classifier, X.double(), self.wide(self.shift)
        R = (X - shift) @ W.mT + self.target
        R[torch.arange(len(y), device="cpu"), y] -= 1
        return (X if self.target.any() else X - shift) - R @ self.P @ W

    def hits(self, X: Float[Tensor, "N F"], y: Int64[Tensor, " N"]) -> int:
        """How many samples of H lie nearest to their own class mean; ties go to the lowest class."""
        # with M the means of H less its mean and A = I - W^T P W, h . M_k is (x - mean) . (A M_k)
        # + (P W M_k)_y, less the mean of that over the samples: one product with K columns
        M = self.means - self.share @ self.means
        WM = self.W @ M.mT
        moved = self.P @ WM
        table = moved - self.share @ moved - M.square().sum(1) / 2
        A_M, centre = self.wide(M - moved.mT @ self.W).mT, self.wide(self.centre)
        height, found = max(1, 2**22 // X.shape[1]), 0
        for x, k in zip(X.split(height), y.split(height), strict=True):
            found += int((((x.double() - centre) @ A_M + table[k]).argmax(1) == k).sum())
        return found
