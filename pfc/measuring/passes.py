"""The passes: a source of features runs every batch, and they go to states that know nothing of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from pfc import fused
from pfc.device import SYNCHRONOUS_DEVICES
from pfc.influence import Influence
from pfc.measuring import shards
from pfc.measuring.costs import cost
from pfc.measuring.decisions import Decisions
from pfc.measuring.fingerprint import Fingerprint
from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch, StatisticsPlace, statistics_device
from pfc.measuring.reference import Reference
from pfc.measuring.subset import Subset
from pfc.measuring.sums import Copies, See, Sums
from pfc.metrics import Weighting
from pfc.processes import Processes
from pfc.profile.classes import SamplePoints
from pfc.progress import Step
from pfc.span import MeansSpan

LOOK = 64  # batches between two looks at a device for features that are not finite; ours


@runtime_checkable
class Source(Protocol):
    """Where features come from: a model, or arrays."""

    @property
    def layout(self) -> Layout:
        """What is measured."""

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """Hand each layer's rows to `see` on `device`; the classifier's answers, if it has any."""


@runtime_checkable
class Batches(Protocol):
    """The data, batch by batch, again and again."""

    device: torch.device
    largest: int

    @property
    def classes(self) -> int | None:
        """The data's own number of classes."""

    @property
    def dataset_size(self) -> int | None:
        """Samples of the dataset behind it, where it knows."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""


@dataclass(frozen=True, eq=False)
class How:
    """How data are measured: arguments of `pfc.measure`, and the labels of tokens."""

    passes: int = 2
    classes: int | None = None
    weighting: Weighting = "class"
    statistics: StatisticsPlace | None = None
    reference: Reference | None = None
    labels: tuple[int, ...] | None = None
    intervals: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """The states after the passes, merged over the processes."""

    sums: Sums
    decisions: Decisions | None = None
    points: SamplePoints | None = None


def run_passes(
    source: Source,
    first: Batch | None,
    rest: Iterator[Batch],
    batches: Batches,
    how: How,
    ranks: Processes,
    step: Step,
) -> Measured:
    """Run the passes, of which the first goes on from a first batch that was read; merge each."""
    sums = empty_sums(source.layout, first, batches, how, ranks)
    inputs = shards.fingerprint(first, ranks) if how.passes == 2 or ranks.size > 1 else None
    head = [] if first is None else [first]
    read = shards.polled(chain(head, rest), ranks)
    rows = 0 if first is None else len(first.labels.y)
    if fused.compiles(rows * max(source.layout.features.values()), sums.device):
        step(0, "compiling, once on this machine")
    done = first_pass(source, read, sums, inputs, step)
    shards.merge_sums(sums, batches.dataset_size, batches.largest, ranks)
    if inputs is not None:
        shards.merge_fingerprint(inputs, len(sums.count), ranks)
    sums.check(own=how.reference is None, labels=how.labels)
    if inputs is None or how.passes == 1:
        return Measured(sums)
    decisions, again, subset = about_means(sums, how, ranks), inputs.fresh(), Subset()
    second_pass(source, shards.polled(batches, ranks), decisions, again, subset, step, done)
    shards.merge_decisions(decisions, ranks)
    shards.merge_fingerprint(again, len(sums.count), ranks)
    inputs.compare(again)
    decisions.check()
    return Measured(sums, decisions, subset.points(decisions.spans, ranks))


def empty_sums(
    layout: Layout, first: Batch | None, batches: Batches, how: How, ranks: Processes
) -> Sums:
    """Sums of no samples, where there is room for them."""
    reference, K = how.reference, known_classes(layout, batches, how)
    sums = Sums.empty(layout, K, place_of_sums(layout, K or least_classes(first), batches.device, how))
    if reference is not None:
        reference.prepare(sums)
    shards.number_samples(sums, ranks)
    return sums


def known_classes(layout: Layout, batches: Batches, how: How) -> int | None:
    """The number of classes, where it does not depend on labels that are yet to come."""
    if how.reference is not None:
        return how.reference.classes
    return how.classes or layout.classes or batches.classes


def least_classes(first: Batch | None) -> int:
    """The number of classes as far as the first batch tells."""
    return 1 if first is None else first.labels.numbers[-1] + 1


def place_of_sums(layout: Layout, classes: int, device: torch.device, how: How) -> torch.device:
    """Where the statistics of what is computed on a device are kept."""
    size = cost([*layout.shapes.values()], classes, intervals=how.intervals).peak
    return statistics_device(device, how.statistics, size)


def about_means(sums: Sums, how: How, ranks: Processes) -> Decisions:
    """No decisions yet, about the data's own means or about the reference's."""
    if how.reference is None:
        moments = sums.moments.items()
        spans, own = {name: shards.shared_span(m, how.weighting, ranks) for name, m in moments}, None
    else:
        spans, own = how.reference.spans(sums, how.weighting, ranks)
    influences = {name: _influence(name, sums, how, spans) for name in spans if how.intervals}
    return Decisions.about(sums, spans, own, influences)


def _influence(name: str, sums: Sums, how: How, spans: Mapping[str, MeansSpan]) -> Influence:
    """How far samples move the metrics of a layer; of no sample yet."""
    moments, reference = sums.moments[name], how.reference
    if reference is None:
        return Influence.of(moments, how.weighting)
    about = reference.about_means(name, moments, spans[name])
    return Influence.of(moments, how.weighting, about, reference.offsets(name, moments))


def first_pass(
    source: Source,
    batches: Iterable[Batch],
    sums: Sums,
    inputs: Fingerprint | None,
    step: Step,
) -> int:
    """Feed the features of all batches to `sums`, the inputs to their fingerprint; counts batches."""
    done, copies = 0, Copies()
    for batch in batches:
        done = batch.number + 1
        with sums.batch(batch.labels.to(sums.device), batch.number, copies) as see:
            if inputs is not None:
                inputs.update(batch)
            source.forward(batch, sums.device, see)
            if inputs is not None:
                inputs.note_writes(batch)
        if sums.device.type in SYNCHRONOUS_DEVICES or done % LOOK == 0:
            sums.check_finite()
        step(done, "pass 1")
    sums.check_finite()
    return done


def second_pass(
    source: Source,
    batches: Iterable[Batch],
    decisions: Decisions,
    inputs: Fingerprint,
    subset: Subset,
    step: Step,
    done: int,
) -> None:
    """Feed the features of all batches again, and the classifier's answers, to `decisions`."""
    device = decisions.classes.device
    for batch in batches:
        inputs.update(batch)
        labels = batch.labels.to(device)
        with decisions.batch(labels, batch.number) as seen:
            see = subset.follow(batch, labels, decisions, seen)
            seen.answers = source.forward(batch, device, see)
        subset.settle()
        step(done + batch.number + 1, "pass 2")
    decisions.settle()
