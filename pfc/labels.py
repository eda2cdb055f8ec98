"""The labels of a batch, prepared once for all layers."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.samples import class_indices

MANY = 2**12  # few labels from here on are renumbered first: counting needs room for all below; ours


@dataclass(frozen=True, eq=False)
class BatchLabels:
    """The labels of one batch, prepared once for all layers.

    Args:
        y: Class of each sample.
        present: Classes that occur, ascending.
        place: Position of each sample's class in `present`; maybe `y` itself: not to write to.
        order: Numbers of the whole batch's samples, class by class.
        count: Samples of each class in `present`.
        one_hot: Membership in the classes of `present`, where sums are the faster by it; else `None`.
        numbers: The classes of `present` once more, known without asking a device.
    """

    y: Int64[Tensor, " B"]
    present: Int64[Tensor, " P"]
    place: Int64[Tensor, " B"]
    order: Int64[Tensor, " N"]
    count: Float64[Tensor, " P"]
    one_hot: Float64[Tensor, "P B"] | None
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, y: Int[Tensor, " B"], device: torch.device | None = None) -> "BatchLabels":
        """Prepare the integer labels of a batch for features on `device`, or where the labels are."""
        return cls.of_indices(class_indices(y)).to(device or y.device)

    @classmethod
    def of_indices(cls, indices: Int64[Tensor, " B"]) -> "BatchLabels":
        """Prepare labels on the CPU that are known to be class indices."""
        labels, named = indices.numpy(), None  # by numpy, as these are many small steps
        if labels.max() >= max(MANY, 8 * len(labels)):
            named, labels = np.unique(labels, return_inverse=True)
        counts = np.bincount(labels)
        (classes,), size = counts.nonzero(), len(counts)
        rows = np.argsort(labels.astype(np.uint16 if size <= 2**16 else np.int64), kind="stable")
        if len(classes) < size:
            places, counts = np.empty_like(counts), counts[classes]
            places[classes] = np.arange(len(classes))
            labels = places[labels]
        present, place, order, count = map(
            torch.from_numpy,
            (classes if named is None else named, labels, rows, counts.astype(np.float64)),
        )
        return cls(indices, present, place, order, count, None, tuple(present.tolist()))

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """For compiled loops, where `order`, `present` and `count` lie, and how many classes occur."""
        order, present, count = (part.data_ptr() for part in (self.order, self.present, self.count))
        return order, present, count, len(self.numbers)

    @property
    def first(self) -> Int64[Tensor, " P"]:
        """Number of the first sample of each class in `present`."""
        return self.order[(self.count.cumsum(0) - self.count).long()]

    def to(self, device: torch.device) -> "BatchLabels":
        """The same for features on another device; from the CPU without synchronising it."""
        if device.type in SYNCHRONOUS_DEVICES and device == self.y.device:
            return self
        parts = (self.y, self.present, self.place, self.order, self.count)
        y, present, place, order, count = (part.to(device, non_blocking=True) for part in parts)
        one_hot = None if device.type in SYNCHRONOUS_DEVICES else (present[:, None] == y).double()
        return BatchLabels(y, present, place, order, count, one_hot, self.numbers)

    def sums(self, X: Float64[Tensor, "B C"]) -> Float64[Tensor, "P C"]:
        """Sum of the rows of each class present."""
        if self.one_hot is not None:
            return self.one_hot @ X
        return X.new_zeros(len(self.present), X.shape[1]).index_add_(0, self.place, X)

    def rows(self, rows: slice) -> "BatchLabels":
        """The labels of some rows; the classes keep their places."""
        one_hot = None if self.one_hot is None else self.one_hot[:, rows]
        return replace(self, y=self.y[rows], place=self.place[rows], one_hot=one_hot)
