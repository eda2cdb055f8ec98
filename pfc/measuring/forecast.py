"""What a measurement will cost, told beforehand: one batch is measured as all will be, and timed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from pfc.device import free_memory, wait_for
from pfc.measuring.arrays import ArraySource
from pfc.measuring.costs import Cost, cost
from pfc.measuring.fingerprint import Fingerprint
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch
from pfc.measuring.opening import Asked, Opened
from pfc.measuring.outlook import Outlook
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
from pfc.measuring.sums import See
from pfc.measuring.survey import survey
from pfc.processes import ALONE

Clock = Callable[[], float]
BRIEF = 5.0  # seconds up to which a batch is run twice, of which the second time counts; ours


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
class Saving:
    """What an option saves, by its name as an argument of `pfc.measure`.

    Args:
        value: Of the argument.
        seconds: That all batches take less.
        bytes: That are needed less at the peak.
    """

    value: Any
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a measurement will cost.

    Args:
        layout: What is measured.
        classes: Number of classes, as far as it is known.
        rows: Of the first batch: samples, or tokens where these have the labels.
        samples: Of the first batch.
        batches: In a pass; `None` where the data do not tell.
        bytes: The state, as `pfc.measuring.cost` has it.
        peak: Bytes at the peak, the features of a batch included.
        free: Bytes of memory that are free; `None` where nobody tells.
        per_batch: Seconds of a batch.
        savings: What options would save, by the names of the arguments.
    """

    layout: Layout
    classes: int
    rows: int
    samples: int
    batches: int | None
    bytes: Cost
    peak: int
    free: int | None
    per_batch: Seconds
    savings: Mapping[str, Saving]

    @property
    def seconds(self) -> float | None:
        """About how long it will take; `None` where the number of batches is not known."""
        return None if self.batches is None else self.per_batch.of(self.batches)


def forecast(
    model: nn.Module, data: Iterable[Any], asked: Asked, *, clock: Clock = time.perf_counter
) -> Forecast:
    """What `measure` would cost: what it would refuse at its first batch is refused here.

    Args:
        model: As for `measure`.
        data: As for `measure`.
        asked: The arguments of `measure`.
        clock: Tells the time in seconds.

    Returns:
        The forecast, from the first batch and the time that the second one takes to come.

    Raises:
        ValueError: If `measure` would refuse the arguments, the model or the first batch, or several
            processes measure together.
    """
    with asked.opened(model, data) as it:
        if it.ranks.size > 1:
            raise ValueError(f"a forecast is for one process, and {it.ranks.size} measure together")
        assert it.first is not None, "one process has a batch"
        reading = _reading(it.rest, clock)
        trial = _Trial(it.survey, it.first, it.batches, it.how, reading, clock)
        return _told(it.outlook, trial, _pooled(it))


def forecast_features(
    features: Mapping[str, Any],
    y: Any,
    classifier: Any,
    asked: Asked,
    *,
    clock: Clock = time.perf_counter,
) -> Forecast:
    """What `measure_features` would cost, as `forecast`."""
    reference = asked.reference
    source = ArraySource(features, y, classifier, segments=asked.segments and reference is None)
    how = asked.how
    if reference is not None:
        reference.check(source.layout)
    rest = iter(source)
    first = next(rest)
    trial = _Trial(source, first, source, how, _reading(rest, clock), clock)
    outlook = Outlook.of(source.layout, first, source, len(source), how, of_model=False)
    return _told(outlook, trial, None)


def _reading(rest: Iterator[Batch], clock: Clock) -> float:
    """Seconds until the next batch comes: the first may have started workers; 0 if there is no other."""
    began = clock()
    return clock() - began if next(rest, None) is not None else 0.0


def _pooled(it: Opened) -> Source | None:
    """The same model with `pool="mean"`, if that changes anything."""
    if it.first is None or it.outlook.pooled is None:
        return None
    return survey(replace(it.request, pool="mean"), it.first)


def _told(outlook: Outlook, trial: "_Trial", pooled: Source | None) -> Forecast:
    """The forecast of a measurement, with what each option would save of it."""
    layout, how, per_batch = outlook.layout, outlook.how, trial.seconds()
    state = cost(
        [*layout.shapes.values()],
        outlook.classes,
        passes=how.passes,
        segments=layout.paired,
        intervals=how.intervals,
    )
    return Forecast(
        layout=layout,
        classes=outlook.classes,
        rows=len(outlook.first.y),
        samples=len(outlook.first),
        batches=outlook.batches,
        bytes=state,
        peak=outlook.bytes,
        free=free_memory(outlook.device),
        per_batch=per_batch,
        savings=dict(_savings(outlook, trial, per_batch, pooled)),
    )


def _savings(
    outlook: Outlook, trial: "_Trial", per_batch: Seconds, pooled: Source | None
) -> Iterator[tuple[str, Saving]]:
    """What each option would save; of the others a batch is measured and timed as well."""
    batches = outlook.batches
    if batches is None:
        return
    others: dict[tuple[str, Any], Source | None] = {
        ("segments", False): None if outlook.unpaired is None else _unpaired(trial.source),
        ("pool", "mean"): pooled,
    }
    for (name, value), source in others.items():
        if source is not None:
            less = per_batch.of(batches) - replace(trial, source=source).seconds().of(batches)
            size = outlook.bytes - outlook.needed(source.layout)
            yield name, Saving(value, max(0.0, less), max(0, size))
    if outlook.limit is not None:
        left = per_batch.of(outlook.limit / len(outlook.first))
        yield "limit", Saving(outlook.limit, per_batch.of(batches) - left, 0)


def _unpaired(source: Source) -> Source:
    """The same source without what pairs layers."""
    layout = replace(source.layout, paired=False)
    return _Elsewhere(source, layout)


@dataclass(frozen=True, eq=False)
class _Elsewhere:
    """A source with another layout."""

    source: Source
    layout: Layout

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """As the source's."""
        return self.source.forward(batch, device, see)


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
class _Trial:
    """One batch, measured as all will be."""

    source: Source
    batch: Batch
    batches: Batches
    how: How
    reading: float
    clock: Clock

    def seconds(self) -> Seconds:
        """How long each part takes."""
        how, batch = self.how, self.batch
        if how.reference is None and len(batch.labels.numbers) < 2:
            batch = replace(batch, y=torch.arange(len(batch.y), device="cpu") % 2)  # sorted data
        sums = empty_sums(self.source.layout, batch, self.batches, how, ALONE)
        inputs = Fingerprint() if how.passes == 2 else None
        forward, first = self._timed(lambda of: first_pass(of, [batch], sums, inputs, _quiet))
        known = Seconds(self.reading, forward, first, passes=how.passes)
        if inputs is None:
            return known
        if how.reference is None and len(batch.labels.numbers) < 2:  # one row spans nothing
            return replace(known, second=first)
        began = self.clock()
        decisions = about_means(sums, how, ALONE)
        once, again, subset = self.clock() - began, inputs.fresh(), Subset()
        _, second = self._timed(lambda of: second_pass(of, [batch], decisions, again, subset, _quiet, 0))
        more = self._more(sums.layout, batch, len(sums.count))
        return replace(known, second=second * more, once=once * more**2)

    def _timed(self, run: Callable[[Source], object]) -> tuple[float, float]:
        """Seconds of a pass over the batch in the network, and besides; the second time, if brief."""
        for _ in range(2):
            source = _Stopwatch(self.source, self.batches.device, self.clock)
            began = source.now()
            run(source)
            took = source.now() - began
            if took > BRIEF:
                break
        return source.seconds, took - source.seconds

    def _more(self, layout: Layout, batch: Batch, classes: int) -> float:
        """By how much the rank of all class means passes that of the batch's."""
        if self.how.reference is not None:
            return 1.0
        present = len(batch.labels.numbers)
        full, here = (
            sum(D * min(K - 1, D) for D in layout.features.values()) for K in (classes, present)
        )
        return max(1.0, full / here)


def _quiet(done: int, note: str = "") -> None:
    """Reports nothing."""
