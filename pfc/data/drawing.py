"""Which samples are taken of a set where not all are: as equal a class as can be, fixed by a seed."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor


@runtime_checkable
class Labelled(Protocol):
    """Samples of which some may be taken."""

    @property
    def labels(self) -> Int64[Tensor, " N"]:
        """Class of each sample."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    def rows(self, index: Int64[Tensor, " n"]) -> Any:
        """The samples with these numbers."""


L = TypeVar("L", bound=Labelled)


def drawn(labels: Int64[Tensor, " N"], limit: int, seed: int = 0) -> Int64[Tensor, " M"]:
    """Numbers of some samples, ascending, as equal a class as can be; a smaller limit's are among them.

    Args:
        labels: Class of each sample.
        limit: Samples in all; more than there are means all.
        seed: Chooses them.

    Returns:
        Their numbers.

    Raises:
        ValueError: If the limit leaves out a class.
    """
    present = int(labels.bincount().count_nonzero())
    if limit < present:
        raise ValueError(f"limit must be at least {present}, one sample a class, got {limit}")
    return balanced(labels, limit, seed)


def stratified(whole: L, limit: int, weighting: Literal["class", "sample"]) -> L:
    """Some samples of a set, drawn as their classes are weighted.

    Args:
        whole: The set.
        limit: Samples in all, at most.
        weighting: `"class"` for as equal a class as can be, `"sample"` for samples of any class.

    Returns:
        The chosen samples in the order of the set.

    Raises:
        ValueError: If the limit leaves out a class that is to be equal.
    """
    labels = whole.labels
    if weighting == "class" or limit >= len(labels):
        return whole.rows(drawn(labels, limit))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(labels), generator=generator, device="cpu")[:limit].sort().values
    return whole.rows(chosen)


def balanced(labels: Int64[Tensor, " N"], limit: int, seed: int) -> Int64[Tensor, " M"]:
    """Shuffle, deal out one image of each class a round, keep the first `limit`, in their order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    by_class = labels[order].argsort(stable=True)
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rounds = torch.empty_like(order)
    rounds[by_class] = torch.arange(len(labels), device="cpu") - starts
    return order[rounds.argsort(stable=True)[:limit]].sort().values
