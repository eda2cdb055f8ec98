"""What a measurement will cost, told beforehand: one batch is rehearsed and timed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pfc.measuring.arrays import ArraySource
from pfc.measuring.costs import Cost
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch
from pfc.measuring.opening import Asked, Opened
from pfc.measuring.outlook import Outlook, cost_of
from pfc.measuring.passes import Batches, How, Source, known_classes
from pfc.measuring.rehearsal import CLOCK, Clock, Elsewhere, Rehearsal, Seconds
from pfc.measuring.sums import refuse_label
from pfc.measuring.survey import survey
from pfc.memory import free_memory


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
        most: Classes, and numbers of a sample at a layer, of which the statistics were timed at most,
            and from which their seconds are scaled up; `None` where all were.
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
    most: int | None
    savings: Mapping[str, Saving]

    @property
    def seconds(self) -> float | None:
        """About how long it will take; `None` where the number of batches is not known."""
        return None if self.batches is None else self.per_batch.of(self.batches)


def forecast(model: nn.Module, data: Iterable[Any], asked: Asked, *, clock: Clock = CLOCK) -> Forecast:
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
        _check(it.survey.layout, it.first, it.batches, it.how)
        reading = _reading(it.rest, clock)
        trial = Rehearsal(it.survey, it.outlook, it.batches, reading, clock)
        return _told(trial, _pooled(it))


def forecast_features(
    features: Mapping[str, Any],
    y: Any,
    classifier: Any,
    asked: Asked,
    *,
    clock: Clock = CLOCK,
) -> Forecast:
    """What `measure_features` would cost, as `forecast`."""
    reference = asked.reference
    source = ArraySource(features, y, classifier, segments=asked.segments and reference is None)
    how = asked.how
    if reference is not None:
        reference.check(source.layout)
    rest = iter(source)
    first = next(rest)
    _check(source.layout, first, source, how)
    outlook = Outlook.of(source.layout, first, source, len(source), how, of_model=False)
    with source.checked_late():
        seconds = _reading(rest, clock)
    return _told(Rehearsal(source, outlook, source, seconds, clock), None)


def _check(layout: Layout, first: Batch, batches: Batches, how: How) -> None:
    """Refuse labels of a first batch that `measure` would refuse, then or after its first pass."""
    K, y = known_classes(layout, batches, how), first.labels
    if K is not None:
        refuse_label(y.numbers[-1], K, first.number)
    if how.reference is not None:
        how.reference.refuse_unknown(torch.bincount(y.y, minlength=how.reference.classes))


def _reading(rest: Iterator[Batch], clock: Clock) -> float:
    """Seconds until the next batch comes: the first may have started workers; 0 if there is no other."""
    began = clock()
    return clock() - began if next(rest, None) is not None else 0.0


def _pooled(it: Opened) -> Source | None:
    """The same model with `pool="mean"`, if that changes anything."""
    if it.first is None or it.outlook.pooled is None:
        return None
    return survey(replace(it.request, pool="mean"), it.first)


def _told(trial: Rehearsal, pooled: Source | None) -> Forecast:
    """The forecast of a measurement, with what each option would save of it."""
    outlook = trial.outlook
    layout, per_batch = outlook.layout, trial.seconds()
    return Forecast(
        layout=layout,
        classes=outlook.classes,
        rows=len(outlook.first.y),
        samples=len(outlook.first),
        batches=outlook.batches,
        bytes=cost_of(layout, outlook.classes, outlook.how),
        peak=outlook.bytes,
        free=free_memory(outlook.device),
        per_batch=per_batch,
        most=trial.most,
        savings=dict(_savings(trial, per_batch, pooled)),
    )


def _savings(
    trial: Rehearsal, per_batch: Seconds, pooled: Source | None
) -> Iterator[tuple[str, Saving]]:
    """What each option would save; of the others a batch is measured and timed as well."""
    outlook = trial.outlook
    batches = outlook.batches
    if batches is None:
        return
    others: dict[tuple[str, Any], Source | None] = {
        ("segments", False): None if outlook.unpaired is None else _unpaired(trial.source),
        ("pool", "mean"): pooled,
    }
    for (name, value), source in others.items():
        if source is not None:
            less = per_batch.of(batches) - trial.of(source).seconds().of(batches)
            size = outlook.bytes - outlook.needed(source.layout)
            yield name, Saving(value, max(0.0, less), max(0, size))
    if outlook.limit is not None:
        left = per_batch.of(outlook.limit / len(outlook.first))
        yield "limit", Saving(outlook.limit, per_batch.of(batches) - left, 0)


def _unpaired(source: Source) -> Source:
    """The same source without what pairs layers."""
    return Elsewhere(source, replace(source.layout, paired=False))
