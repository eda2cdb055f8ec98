"""What the model with squared loss needs of the data: counts, class means, second moments; one pass.

Second moments are kept about the class means and merged by Chan's rule, sums of squares only: neither an
offset of the data nor near-total collapse costs digits, and centring is a choice made afterwards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from pfc.metrics import Weighting, class_weights
from pfc.samples import ArrayLike, labelled, refuse_gaps
from pfc.schema import short

Samples = tuple[Float[Tensor, "N F"], Int64[Tensor, " N"]]
EMPTY = "the data gave no batch at all; is the loader empty?"
TILE = 2**22  # float64 numbers upcast at once, 32 MiB; ours
EACH = 2**24  # K D D up to which the scatter of each class is kept by itself, 128 MiB; ours


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular value decomposition of X, of whose left vectors only the classes' sums are kept.

    Args:
        root: Singular values, ascending; numerically zero ones are exact zeros.
        vectors: Right singular vectors, orthonormal columns.
        sums: Of the left singular vectors, summed over each class and over the root of its count.
    """

    root: Float64[Tensor, " D"]
    vectors: Float64[Tensor, "D D"]
    sums: Float64[Tensor, "K D"]

    @property
    def values(self) -> Float64[Tensor, " D"]:
        """Eigenvalues of X^T X."""
        return self.root.square()


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts, class means and within-class second moments of labelled data; a monoid under `merge`.

    Args:
        count: Samples of each class.
        mean: Mean of each class.
        within: Summed outer products of the residuals, of each class or (G = 1) of all together.
    """

    count: Float64[Tensor, " K"]
    mean: Float64[Tensor, "K D"]
    within: Float64[Tensor, "G D D"]

    @classmethod
    def of(cls, X: ArrayLike, y: ArrayLike) -> "Statistics":
        """Statistics of samples `X` (flattened) with labels `y` in 0..K-1, each class with a sample."""
        return summed([labelled(X, y, flatten=True)])

    @classmethod
    def empty(cls, classes: int, features: int, device: torch.device | str) -> "Statistics":
        """Of no samples, with the scatters of all classes pooled; `add` takes samples in."""
        zeros = torch.zeros(classes, dtype=torch.float64, device=device)
        return cls(zeros, zeros.new_zeros(classes, features), zeros.new_zeros(1, features, features))

    def add(self, x: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> None:
        """Take in samples of known classes, in place."""
        _add(self, x, y)

    def cpu(self) -> "Statistics":
        """The same statistics on the CPU."""
        return Statistics(self.count.cpu(), self.mean.cpu(), self.within.cpu())

    @property
    def samples(self) -> float:
        """Number of samples, N."""
        return float(self.count.sum())

    @property
    def balanced(self) -> bool:
        """Whether all classes have as many samples."""
        return bool((self.count == self.count[0]).all())

    @property
    def centre(self) -> Float64[Tensor, " D"]:
        """Mean of all samples."""
        return self.count @ self.mean / self.count.sum()

    @property
    def second(self) -> Float64[Tensor, "D D"]:
        """X^T X, the sum of the outer products of the samples."""
        scaled = self.mean * self.count.sqrt()[:, None]
        return torch.addmm(self.within.sum(0), scaled.mT, scaled)

    @cached_property
    def centred(self) -> "Statistics":
        """The statistics of the data less their mean."""
        return Statistics(self.count, self.mean - self.centre, self.within)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Singular value decomposition of X, computed once however many problems are solved."""
        # of means over a root of the within-class scatter, not of X^T X, in which an offset of the data
        # would be squared: what is read of X has the error of a factor, not of a Gram matrix
        if not self.second.isfinite().all():
            raise ValueError("the data are so large that their squares overflow; scale them down")
        K, scaled = len(self.count), self.mean * self.count.sqrt()[:, None]
        U, root, Vt = torch.linalg.svd(
            torch.cat([scaled, _root(self.within.sum(0))]), full_matrices=False
        )
        floor = len(root) * torch.finfo(torch.float64).eps * root[0]
        root = torch.where(root > floor, root, 0.0)
        return Spectrum(root.flip(0), Vt.mT.flip(1), U[:K].flip(1))

    def covariance(self, weighting: Weighting = "class") -> Float64[Tensor, "D D"]:
        """Within-class covariance.

        Args:
            weighting: Class weights: equal (`"class"`) or proportional to the counts (`"sample"`).

        Returns:
            A D x D matrix; zero at perfect collapse.

        Raises:
            ValueError: If unbalanced classes are to weigh the same and their scatters were pooled.
        """
        share = class_weights(self.count, weighting) / self.count
        if len(self.within) == len(self.count):
            return torch.tensordot(share, self.within, 1)
        if weighting == "class" and not self.balanced:
            raise ValueError(
                f"weighting 'class' needs the scatter of each class, and {len(self.count)} classes of "
                f"{self.mean.shape[1]} features were pooled to spare memory; take weighting='sample'"
            )
        return share[0] * self.within[0]

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of both data sets together.

        Args:
            other: Of other samples of the same classes and width.

        Returns:
            Their sum, the same in any order up to round-off.

        Raises:
            ValueError: If the shapes differ.
        """
        if self.mean.shape != other.mean.shape or self.within.shape != other.within.shape:
            raise ValueError(
                f"need statistics of the same classes and width, {(*self.mean.shape,)}, "
                f"got {(*other.mean.shape,)}"
            )
        merged = Statistics(self.count.clone(), self.mean.clone(), self.within + other.within)
        _join(merged, torch.arange(len(self.count), device="cpu"), other.count, other.mean)
        return merged


def _root(S: Float64[Tensor, "D D"]) -> Float64[Tensor, "D D"]:
    """R with R^T R = S, exact to rounding in every column, by Cholesky's method with pivots."""
    from scipy.linalg.lapack import dpstrf

    size = S.diag().sqrt()
    safe = torch.where(size > 0, size, 1.0)
    tolerance = len(S) * torch.finfo(torch.float64).eps
    upper, order, rank, _ = dpstrf((S / safe / safe[:, None]).numpy(), tol=tolerance)
    R = torch.zeros_like(S)
    R[:rank, torch.from_numpy(order).long() - 1] = torch.from_numpy(upper).triu()[:rank]
    return R * size


def _add(sums: Statistics, x: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> None:
    """Add samples in place: their scatter about their own class means, then the shift of these."""
    present, place, m = torch.unique(y, return_inverse=True, return_counts=True)
    x = x.double()
    mean = x.new_zeros(len(present), x.shape[1]).index_add_(0, place, x) / m[:, None]
    x = x - mean[place]
    if len(sums.within) == 1:
        sums.within[0].addmm_(x.mT, x)
    else:
        for p, k in enumerate(present.tolist()):
            rows = x[place == p]
            sums.within[k].addmm_(rows.mT, rows)
    _join(sums, present, m.double(), mean)


def _join(
    sums: Statistics, k: Int64[Tensor, " P"], m: Float64[Tensor, " P"], mean: Float64[Tensor, "P D"]
) -> None:
    """Merge in place means of `m` more samples of classes `k` whose own scatter is added (Chan)."""
    n = sums.count[k]
    delta = mean - sums.mean[k]
    rows = delta * (n * m / (n + m)).sqrt()[:, None]
    if len(sums.within) == 1:
        sums.within[0].addmm_(rows.mT, rows)
    else:
        sums.within[k] += rows[:, :, None] * rows[:, None, :]
    sums.mean[k] += delta * (m / (n + m))[:, None]
    sums.count[k] += m


def _grown(sums: Statistics, classes: int) -> Statistics:
    """With zeros for more classes; the scatters pooled where they would be too many."""
    (K, D), within = sums.mean.shape, sums.within
    if classes <= K:
        return sums
    more = classes - K
    if len(within) == K:
        fits = classes * D * D <= EACH
        within = pad(within, (0, 0, 0, 0, 0, more)) if fits else within.sum(0, keepdim=True)
    return Statistics(pad(sums.count, (0, more)), pad(sums.mean, (0, 0, 0, more)), within)


def gather(batches: Iterable[Any]) -> Statistics:
    """The statistics that `solve` needs, in one pass over batches of any size.

    Args:
        batches: Pairs `(x, y)` of arrays: samples N x ..., each flattened to a row, and labels in
            0..K-1. Whether the data are centred is said later, to `solve`.

    Returns:
        Statistics in float64, the same for any order and size of the batches up to round-off.

    Raises:
        ValueError: If there is no batch, a batch is unfit or of another width, or a class below the
            largest label has no sample.

    Examples:
        >>> gather([([[1, 0], [3, 0], [0, 2]], [0, 0, 1])]).mean
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    try:
        each = iter(batches)
    except TypeError as error:
        message = f"batches must be pairs (x, y) to iterate over, got {short(batches)}"
        raise ValueError(message) from error
    return summed(pair(batch, number) for number, batch in enumerate(each))


def summed(pairs: Iterable[Samples]) -> Statistics:
    """Statistics of samples and labels that are checked already, but for gaps among the classes."""
    sums = None
    for number, (x, y) in enumerate(pairs):
        if sums is None:
            count, D = torch.zeros(0, dtype=torch.float64, device=x.device), x.shape[1]
            sums = Statistics(count, count.new_zeros(0, D), count.new_zeros(0, D, D))
        if x.shape[1] != sums.mean.shape[1]:
            raise ValueError(
                f"batch {number} has {x.shape[1]} features, those before {sums.mean.shape[1]}"
            )
        sums = _grown(sums, int(y.max()) + 1)
        height = max(1, TILE // x.shape[1])
        for rows, labels in zip(x.split(height), y.split(height), strict=True):
            _add(sums, rows, labels)
    if sums is None:
        raise ValueError(EMPTY)
    check_classes(sums.count)
    return sums.cpu()


def check_classes(count: Float64[Tensor, " K"]) -> None:
    """Refuse counts of fewer than two classes, or of a class without samples."""
    refuse_gaps(count.nonzero().flatten(), len(count))


def pair(batch: Any, number: int) -> Samples:
    """A batch as samples and labels, checked but for gaps among the classes."""
    if isinstance(batch, Mapping) or not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch {number} must be a pair (x, y), got {type(batch).__name__}")
    return labelled(*batch, batch=number, flatten=True, gaps="keep")
