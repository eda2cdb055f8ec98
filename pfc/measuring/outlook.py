"""What a measurement will take, in words: said once where it is long, or more than memory holds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from pfc.measuring.costs import Cost, cost, probe_width
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch
from pfc.measuring.passes import Batches, How, known_classes, least_classes, place_of_sums
from pfc.memory import free_memory
from pfc.progress import Step
from pfc.warning import CostWarning, warn

LONG = 600.0  # seconds above which it is said what would take less; ours
ENOUGH = 10.0  # seconds of batches by which the others are foretold; ours
CLOCK = time.monotonic
EACH = 100  # samples a class of the limit that is named: PFC1 is then 1 % too small; ours


def pooled_by_mean(layout: Layout) -> Layout | None:
    """The layout with `pool="mean"`; `None` where that would change nothing."""
    shapes = {name: (probe_width(s),) if len(s) > 1 else s for name, s in layout.shapes.items()}
    changed = layout.pool == "flatten" and shapes != dict(layout.shapes)
    return replace(layout, shapes=shapes, pool="mean") if changed else None


def cost_of(layout: Layout, classes: int, how: How) -> Cost:
    """What one process keeps of a layout, measured so."""
    shapes = [*layout.shapes.values()]
    return cost(shapes, classes, passes=how.passes, segments=layout.paired, intervals=how.intervals)


def in_bytes(size: int | float) -> str:
    """A number of bytes in words."""
    unit, name = next((u for u in UNITS if size >= u[0]), UNITS[-1])
    return f"{size / unit:.{max(3, len(str(int(size / unit))))}g} {name}"


UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def in_time(seconds: int | float) -> str:
    """A time in words, as exact as an estimate is."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, eq=False)
class Outlook:
    """What measuring takes, and which options would make it less.

    Args:
        layout: What is measured.
        classes: Number of classes, as far as it is known.
        first: The first batch.
        batches: In a pass; `None` where nobody knows.
        how: How data are measured.
        device: Where the statistics are kept.
        of_model: Whether a model is measured, with `pool` and `limit`, or arrays, without.
    """

    layout: Layout
    classes: int
    first: Batch
    batches: int | None
    how: How
    device: torch.device
    of_model: bool = True

    @classmethod
    def of(
        cls,
        layout: Layout,
        first: Batch,
        batches: Batches,
        total: int | None,
        how: How,
        *,
        of_model: bool,
    ) -> "Outlook":
        """The outlook on data of which the first batch is read."""
        classes = known_classes(layout, batches, how) or least_classes(first)
        device = place_of_sums(layout, classes, batches.device, how)
        return cls(layout, classes, first, total, how, device, of_model)

    @property
    def bytes(self) -> int:
        """That are needed at the peak."""
        return self.needed(self.layout)

    def needed(self, layout: Layout) -> int:
        """Bytes that are needed for this layout: state, and what is kept of a batch."""
        told = cost_of(layout, self.classes, self.how)
        return told.peak + told.batch * len(self.first.y)

    @property
    def unpaired(self) -> Layout | None:
        """The layout with `segments=False`; `None` where that would change nothing."""
        return replace(self.layout, paired=False) if self.layout.segments else None

    @property
    def pooled(self) -> Layout | None:
        """The layout with `pool="mean"`; `None` where that has no meaning or changes nothing."""
        free = self.of_model and self.how.reference is None
        return pooled_by_mean(self.layout) if free else None

    @property
    def limit(self) -> int | None:
        """A number of samples that would do, where there are twice as many or more."""
        enough = EACH * self.classes
        known = self.of_model and self.batches is not None and self.first.tokens is None
        return enough if known and 2 * enough <= (self.batches or 0) * len(self.first) else None

    def of_memory(self, free: int | None) -> str | None:
        """What to say where less is free than is needed."""
        if free is None or self.bytes <= free:
            return None
        others = {"pool='mean'": self.pooled, "segments=False": self.unpaired}
        less = {name: self.needed(other) for name, other in others.items() if other is not None}
        helps = [f"{name} needs about {in_bytes(n)}" for name, n in less.items() if n < self.bytes]
        return (
            f"measuring needs about {in_bytes(self.bytes)} of memory, and {in_bytes(free)} are free: "
            + ", ".join(helps or ["name fewer layers with layers="])
        )

    def of_time(self, seconds: float) -> str | None:
        """What to say of so many seconds, if they are long."""
        if seconds <= LONG:
            return None
        helps = ", ".join(self._shorter(seconds)) or "name fewer layers with layers="
        return f"measuring takes about {in_time(seconds)}, by its first batches: {helps}"

    def _shorter(self, seconds: float) -> Iterator[str]:
        """What each option would save."""
        if self.limit is not None and self.batches is not None:
            share = self.limit / (self.batches * len(self.first))
            yield f"limit={self.limit} ({EACH} a class) takes about {in_time(share * seconds)}"
        if self.pooled is not None:
            times = sum(self.layout.features.values()) / sum(self.pooled.features.values())
            yield f"pool='mean' has {times:.3g} times fewer numbers to sum"
        if self.unpaired is not None:
            saved = self.bytes - self.needed(self.unpaired)
            yield f"segments=False pairs no layers and keeps {in_bytes(saved)} less"

    def watched(self, step: Step) -> Step:
        """Warn of memory now, and of time as soon as the first batches tell it."""
        if words := self.of_memory(free_memory(self.device)):
            warn(words, CostWarning)
        total = None if self.batches is None else self.how.passes * self.batches
        return step if total is None else _Watched(step, total, self.of_time)


@dataclass(eq=False)
class _Watched:
    """Reports progress, and says once that it will take long; the first batch loads and compiles."""

    step: Step
    total: int
    words: Callable[[float], str | None]
    began: tuple[float, int] | None = None
    settled: bool = False

    def __call__(self, done: int, note: str = "") -> None:
        self.step(done, note)
        if self.settled or not done:  # before the first batch it is compiled
            return
        now = CLOCK()
        self.began = self.began or (now, done)
        took, counted = now - self.began[0], done - self.began[1]
        if took >= ENOUGH and counted:
            self.settled = True
            if words := self.words(took / counted * self.total):
                warn(words, CostWarning)
