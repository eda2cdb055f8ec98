"""One batch, measured as all will be, and timed; of much memory only a part of the statistics."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pfc.device import wait_for
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import Fingerprint
from pfc.measuring.layout import Layout, Shape
from pfc.measuring.loader import Batch
from pfc.measuring.outlook import Outlook, cost_of
from pfc.measuring.passes import (
    Batches,
    How,
    Source,
    about_means,
    empty_sums,
    first_pass,
    second_pass,
)
from pfc.measuring.subset import Subset
from pfc.measuring.sums import See, Sums
from pfc.memory import free_memory
from pfc.moments import ClassMoments
from pfc.processes import ALONE

Clock = Callable[[], float]
CLOCK: Clock = time.perf_counter
SHARE = 0.1  # of the free memory, which a rehearsal may take; ours
BYTES = 2**30  # that it may take where nobody tells what is free; ours
WORK = 4e9  # products for the bases of all layers, a few seconds of a processor's; ours


@dataclass(frozen=True)
class Seconds:
    """Seconds that a batch takes.

    Args:
        reading: Until the data have given it and it has been moved.
        forward: In the network.
        first: For the statistics of pass one.
        second: For those of pass two.
        once: For what is found once between the passes.
        passes: How many there are.
    """

    reading: float
    forward: float
    first: float
    second: float = 0.0
    once: float = 0.0
    passes: int = 2

    def of(self, batches: int | float) -> float:
        """Seconds of so many batches in all passes."""
        each = self.passes * (self.reading + self.forward) + self.first + self.second
        return batches * each + self.once


@dataclass(frozen=True)
class Products:
    """Products of a sample or of all means, to which the seconds of the statistics are proportional.

    Args:
        first: Of a sample in pass one.
        second: Of a sample in pass two: with the basis, and in its coordinates with the means.
        once: For the bases.
    """

    first: int
    second: int
    once: int

    @classmethod
    def of(cls, layout: Layout, classes: int) -> "Products":
        """Of the layers of a layout."""
        K, widths = classes, layout.features.values()
        second = sum((D + K) * min(K, D) for D in widths)
        return cls(sum(widths), second, sum(K * D * min(K, D) for D in widths))


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A source with another layout, of whose layers it gives the first numbers."""

    source: Source
    layout: Layout

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """As the source's."""
        widths = self.layout.features

        def cut(name: str, H: Tensor) -> None:
            see(name, H[:, : widths[name]].contiguous())

        return self.source.forward(batch, device, cut)


@dataclass(eq=False)
class _Stopwatch:
    """A source that knows how long it has run without what was done with its features."""

    source: Source
    device: torch.device
    clock: Clock
    seconds: float = 0.0

    @property
    def layout(self) -> Layout:
        """The source's."""
        return self.source.layout

    def now(self) -> float:
        """The time, when the device has done what it was given."""
        wait_for(self.device)
        return self.clock()

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """As the source's."""
        elsewhere = 0.0

        def seen(name: str, H: Tensor) -> None:
            nonlocal elsewhere
            began = self.now()
            see(name, H)
            elsewhere += self.now() - began

        began = self.now()
        answers = self.source.forward(batch, device, seen)
        self.seconds += self.now() - began - elsewhere
        return answers


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """One batch, measured as all will be, about made-up means of the classes that it lacks.

    Args:
        source: Where features come from.
        outlook: What measuring them takes.
        batches: The data.
        reading: Seconds until a batch comes.
        clock: Tells the time in seconds.
    """

    source: Source
    outlook: Outlook
    batches: Batches
    reading: float
    clock: Clock = CLOCK

    def of(self, source: Source) -> "Rehearsal":
        """The same of another source."""
        return replace(self, source=source, outlook=replace(self.outlook, layout=source.layout))

    @cached_property
    def classes(self) -> int:
        """Of the measurement, at least two."""
        return max(2, self.outlook.classes)

    @cached_property
    def most(self) -> int | None:
        """Classes, and numbers of a sample at a layer, that are rehearsed at most; `None` for all."""
        layout, free = self.source.layout, free_memory(self.outlook.device)
        room = BYTES if free is None else SHARE * free
        most = whole = max(self.classes, *layout.features.values())
        while most > 2 and not self._fits(cut(layout, most), min(most, self.classes), room):
            most = (most + 1) // 2
        return None if most == whole else most

    def _fits(self, layout: Layout, classes: int, room: int | float) -> bool:
        """Whether to rehearse so much takes little memory and little time."""
        how = self.outlook.how
        return cost_of(layout, classes, how).peak <= room and (
            how.passes == 1 or Products.of(layout, classes).once <= WORK
        )

    def seconds(self) -> Seconds:
        """How long each part takes, scaled up where a part was rehearsed."""
        layout = self.source.layout
        if self.most is None:
            return self._rehearsed(layout, self.classes, self.outlook.first, self.outlook.how)
        K, less = min(self.most, self.classes), cut(layout, self.most)
        batch = self.outlook.first
        batch = replace(batch, y=batch.y % K)
        found = self._rehearsed(less, K, batch, _cut_reference(self.outlook.how, less, K))
        whole, part = Products.of(layout, self.classes), Products.of(less, K)
        return replace(
            found,
            first=found.first * whole.first / part.first,
            second=found.second * whole.second / part.second,
            once=found.once * whole.once / part.once,
        )

    def _rehearsed(self, layout: Layout, classes: int, batch: Batch, how: How) -> Seconds:
        """How long each part takes."""
        here = self.outlook.device == self.batches.device
        how = replace(how, classes=classes, statistics="device" if here else "host")
        sums = empty_sums(layout, batch, self.batches, how, ALONE)
        inputs = Fingerprint() if how.passes == 2 else None
        forward, first = self._timed(layout, lambda of: first_pass(of, [batch], sums, inputs, _quiet))
        known = Seconds(self.reading, forward, first, passes=how.passes)
        if inputs is None:
            return known
        if how.reference is None:
            _make_up(sums)
        once, decisions = self._once(sums, how)
        again, subset = inputs.fresh(), Subset()
        _, second = self._timed(
            layout, lambda of: second_pass(of, [batch], decisions, again, subset, _quiet, 0)
        )
        return replace(known, second=second, once=once)

    def _once(self, sums: Sums, how: How) -> tuple[float, Decisions]:
        """Seconds of what is found between the passes, and what is found; the first time may compile."""
        for _ in range(2):
            wait_for(sums.device)
            began = self.clock()
            decisions = about_means(sums, how, ALONE)
            for line in decisions.lines.values():
                _ = line.ends  # the frames nearest to the means
            wait_for(sums.device)
            taken = self.clock() - began
        return taken, decisions

    def _timed(self, layout: Layout, run: Callable[[Source], object]) -> tuple[float, float]:
        """Seconds of a pass over the batch in the network, and besides; the first time may compile."""
        for _ in range(2):
            source = _Stopwatch(self.source, self.batches.device, self.clock)
            began = source.now()
            run(Elsewhere(source, layout))
            took = source.now() - began
        return source.seconds, took - source.seconds


def cut(layout: Layout, most: int) -> Layout:
    """The layout with at most so many numbers of a sample at each layer, in the same segments."""
    apart = {shape: i for i, shape in enumerate(dict.fromkeys(layout.shapes.values()))}
    features = layout.features
    shapes: Mapping[str, Shape] = {
        name: (min(features[name], most), *[1] * apart[shape]) for name, shape in layout.shapes.items()
    }
    return replace(layout, shapes=shapes)


def _cut_reference(how: How, layout: Layout, classes: int) -> How:
    """How to measure about a part of other means."""
    if (other := how.reference) is None:
        return how
    moments = {}
    for name, D in layout.features.items():
        of = other.moments[name]
        count, scatter = of.count[:classes].clamp(min=1), of.scatter[:classes]
        moments[name] = ClassMoments(count, of.mean[:classes, :D], scatter, of.mean_error[:classes, :D])
    about = {**other.about, "classes": classes}
    return replace(how, reference=replace(other, moments=moments, about=about))


def _make_up(sums: Sums) -> None:
    """Give each class without samples one at random; only how long it takes to use them matters."""
    for moments in sums.moments.values():
        seen = moments.count > 0
        lack = (~seen).nonzero().flatten()
        M = moments.mean[seen]
        moments.mean[lack] = _strewn(M, len(lack))
        moments.count[lack] = 1


def _strewn(M: Float64[Tensor, "P D"], count: int) -> Float64[Tensor, "N D"]:
    """Points about the centre of others, as far from it as these, or as it is from the origin."""
    centre = M.mean(0)
    spread = (M - centre).square().mean().sqrt() if len(M) > 1 else centre.square().mean().sqrt()
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    chance = torch.Generator(M.device).manual_seed(0)
    found = torch.randn(count, M.shape[1], dtype=M.dtype, device=M.device, generator=chance)
    return found.mul_(spread).add_(centre)


def _quiet(done: int, note: str = "") -> None:
    """Reports nothing."""
