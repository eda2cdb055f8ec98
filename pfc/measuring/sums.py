"""State of pass one: what is summed of features and labels, wherever they come from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.labels import BatchLabels
from pfc.measuring.layout import Layout
from pfc.measuring.scale import Origin, Scale
from pfc.moments import ClassMoments, SegmentMoments
from pfc.schema import short
from pfc.theory.path import PathSample
from pfc.warning import warn

See = Callable[[str, Float[Tensor, "B D"]], None]  # takes a layer's name and its features


class TooFewClassesError(ValueError):
    """The samples that came are of one class, or of none."""


class NotFinite(ValueError):
    """Features that are NaN or infinite."""


@dataclass(eq=False)
class GroupSums:
    """What is summed of a segment, or of a layer by itself: a monoid, part by part.

    Args:
        names: Of the layers.
        moments: Of the layers, and their cross-layer statistics.
        paths: The samples' own paths through a segment.
        scale: The power of two by which all of them are divided.
    """

    names: tuple[str, ...]
    moments: SegmentMoments
    paths: PathSample = field(default_factory=PathSample)
    scale: Scale = field(default_factory=Scale)

    def add(self, batch: Sequence[Float[Tensor, "B D"]], labels: BatchLabels, origin: Origin) -> None:
        """Add a batch, one feature matrix a layer; all but its counts."""
        gram = self.moments.absorb(self.scale.fit(self.names, batch, origin), labels)
        if gram is not None:
            self.paths.update(gram, labels.y)

    def rescale(self, exponent: int) -> None:
        """Multiply the features by a power of two, in place and exactly."""
        self.moments.rescale(exponent)
        self.paths.scale(2.0**exponent)


@dataclass(eq=False)
class Sums:
    """State of pass one: knows features and labels only.

    Args:
        layout: What is measured.
        groups: The segments, and the other layers by themselves.
        classes: Number of classes; `None` while the labels seen so far decide.
    """

    layout: Layout
    groups: list[GroupSums]
    classes: int | None
    _nonfinite: Int64[Tensor, " L"]  # of each layer the first batch that was not finite, or -1

    @classmethod
    def empty(cls, layout: Layout, classes: int | None, device: torch.device | str = "cpu") -> "Sums":
        """Sums of no samples, kept on `device`; where `classes` is `None`, labels decide."""
        K, features = classes or 1, layout.features
        groups = [
            GroupSums(names, SegmentMoments.empty(len(names), K, features[names[0]], device))
            for names in layout.groups
        ]
        return cls(layout, groups, classes, torch.full((len(features),), -1, device=device))

    @property
    def moments(self) -> dict[str, ClassMoments]:
        """Moments of each layer, in the order of the layout."""
        found = {
            name: moments
            for group in self.groups
            for name, moments in zip(group.names, group.moments.layers, strict=True)
        }
        return {name: found[name] for name in self.layout.names}

    @property
    def scales(self) -> dict[str, Scale]:
        """The power of two by which each layer's features are divided."""
        return {name: group.scale for group in self.groups for name in group.names}

    @property
    def count(self) -> Float64[Tensor, " K"]:
        """Samples of each class."""
        return self.groups[0].moments.layers[0].count

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self._nonfinite.device

    @contextmanager
    def batch(
        self, labels: BatchLabels, origin: Origin, copies: "Copies | None" = None
    ) -> Iterator[See]:
        """Take a batch layer by layer: yields what is to be called with each layer and its features."""
        self.make_room(labels.numbers[-1], origin)
        group_of = {name: group for group in self.groups for name in group.names}
        adding = _Adding(group_of, labels, origin, copies or Copies())
        yield adding.see
        found = [_taken(adding.nonfinite, name, None, origin) for name in self.layout.names]
        SegmentMoments.count([group.moments for group in self.groups], labels)
        self._note_nonfinite(found)

    def update(
        self, features: Mapping[str, Float[Tensor, "B D"]], labels: BatchLabels, origin: Origin
    ) -> None:
        """Add a batch of which every layer's features are in memory."""
        with self.batch(labels, origin) as see:
            for name in self.layout.names:
                see(name, features[name])

    def make_room(self, largest: int, origin: Origin) -> None:
        """Grow to the classes up to a label, or refuse it where there are fewer."""
        if self.classes is None:
            self.grow(largest + 1)
        else:
            refuse_label(largest, self.classes, origin)

    def grow(self, classes: int) -> None:
        """Grow to `classes` classes."""
        for group in self.groups:
            group.moments.grow(classes)

    def _note_nonfinite(self, batches: Sequence[int | Tensor]) -> None:
        """Keep the first batch after which a layer's scatter is not finite; a device is not asked."""
        if self.device.type in SYNCHRONOUS_DEVICES and self._finite():
            return
        scatters = torch.stack([moments.scatter for moments in self.moments.values()])
        fine, new = scatters.sum(1).isfinite(), self._nonfinite.new_full
        # filled there: a copy from the host would wait for the device
        batch = torch.stack([each if isinstance(each, Tensor) else new((), each) for each in batches])
        self._nonfinite = torch.where(fine | (self._nonfinite >= 0), self._nonfinite, batch)

    def _finite(self) -> bool:
        """Whether the scatter of all layers is; if so, it is not asked layer by layer."""
        scatters = [layer.scatter for group in self.groups for layer in group.moments.layers]
        return isfinite(torch.cat(scatters).sum())

    def check_finite(self) -> None:
        """Refuse features that were not finite, or whose squares are not."""
        found = zip(self._nonfinite.tolist(), self.layout.names, strict=True)
        if first := min((each for each in found if each[0] >= 0), key=itemgetter(0), default=None):
            batch, name = first
            self.scales[name].refuse_larger(name, lambda: batch)
            raise NotFinite(f"layer {name!r} gave NaN or infinite features on batch {batch}")

    def check(self, *, own: bool = True, labels: Sequence[int] | None = None) -> None:
        """Refuse what float64 could not hold, and of the data's own means less than two classes."""
        for group in self.groups:
            group.scale.check()
        known = range(len(self.count)) if labels is None else labels
        missing, single = (
            [known[k] for k in (self.count == n).nonzero().flatten().tolist()] for n in (0, 1)
        )
        present = len(self.count) - len(missing)
        if own and present < 2:
            raise TooFewClassesError(f"need samples of at least 2 classes, got {present}")
        if missing:
            warn(f"classes {short(missing)} have no sample and are left out")
        if own and len(single) == present:
            warn("every class has one sample, so PFC1 = 0 and PFC3 = 1 say nothing")
        elif own and single:
            warn(
                f"classes {short(single)} have one sample, which is its own mean: they add nothing to "
                "the within-class variance, and pfc1_unbiased is undefined; leave them out"
            )


def refuse_label(largest: int, classes: int, origin: Origin) -> None:
    """Refuse the largest label of a batch if there are not so many classes."""
    if largest >= classes:
        raise ValueError(
            f"batch {origin} has the label {largest}, but there are {classes} classes (0..{classes - 1})"
        )


def _first_overflow(H: Float[Tensor, "B D"], origin: Int64[Tensor, " B"]) -> Int64[Tensor, ""]:
    """The batch of the first row whose square is not finite, without synchronising the device."""
    squares = torch.linalg.vector_norm(H.double(), dim=1).square()
    return origin[(~squares.isfinite()).int().argmax()]


class Copies:
    """Copies of features in memory that serves again and again: new memory costs more than the copy."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lent: dict[str, Tensor] = {}

    def of(self, name: str, H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """A copy of the features of a layer, until they are done with."""
        self.done([name])
        kind, room = (H.dtype, H.device), None
        if self._free and (self._free[-1].dtype, self._free[-1].device) == kind:
            room = self._free.pop()
        if room is None or len(room) < H.numel():
            room = H.new_empty(H.numel())
        self._lent[name] = room
        return room[: H.numel()].view(H.shape).copy_(H)

    def done(self, names: Sequence[str]) -> None:
        """Take back the memory of these layers' copies."""
        self._free += [self._lent.pop(name) for name in names if name in self._lent]


@dataclass(frozen=True, eq=False)
class _Adding:
    """A batch that is taken layer by layer."""

    group_of: Mapping[str, GroupSums]
    labels: BatchLabels
    origin: Origin
    copies: Copies
    kept: dict[str, Tensor] = field(default_factory=dict)
    nonfinite: dict[str, int | Tensor] = field(default_factory=dict)

    def see(self, name: str, H: Float[Tensor, "B D"]) -> None:
        """Take the features of a layer, and add those of its group with its last one."""
        group, origin = self.group_of[name], self.origin
        self.nonfinite[name] = origin if isinstance(origin, int) else _first_overflow(H, origin)
        *before, last = group.names
        if name != last:
            self.kept[name] = self.copies.of(name, H)  # for the network may write over it
            return
        kept = [_taken(self.kept, each, name, origin) for each in before]
        group.add([*kept, H], self.labels, origin)
        self.copies.done(before)


def _taken(kept: dict[str, Any], name: str, before: str | None, origin: Origin) -> Any:
    """What was kept of a layer of this batch."""
    if name not in kept:
        order = "" if before is None else f" before {before!r}, as it did before"
        raise ValueError(
            f"layer {name!r} did not run on batch {origin}{order}; tap layers that run on every batch "
            "in one order"
        )
    return kept.pop(name)
