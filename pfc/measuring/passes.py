"""The two passes over the data: moments of every layer, then nearest class means."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from operator import itemgetter

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.line import LineCrossings
from pfc.measuring.costs import cost
from pfc.measuring.loader import Batch, Batches, Fingerprint, refuse_repeated
from pfc.measuring.scale import Scale
from pfc.measuring.shards import (
    merge_crossings,
    merge_layers,
    merge_nearest,
    merge_paths,
    one_scale,
    one_span,
)
from pfc.measuring.survey import Survey, agreed, survey
from pfc.metrics import Weighting
from pfc.moments import AT_HAND, BatchLabels, ClassMoments, SegmentMoments
from pfc.nearest import NearestMean, project
from pfc.processes import ALONE, Processes
from pfc.progress import Step
from pfc.taps import Layers, Pool
from pfc.theory.path import PathSample
from pfc.warning import warn

LOOK = 64  # batches between two looks at a device for features that are not finite; ours


class FirstPass:
    """Moments of every layer, and of what pairs the layers of a segment.

    Args:
        model: The network.
        layers: As for `measure`.
        classifier: As for `measure`.
        pool: As for `measure`.
        classes: As for `measure`.
        segments: As for `measure`.
        again: Whether a second pass will have to know the inputs again.
        ranks: The processes, of which each runs the passes over its own part of the data.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        classifier: str | nn.Module | None,
        pool: Pool,
        classes: int | None,
        *,
        segments: bool,
        again: bool,
        ranks: Processes = ALONE,
    ) -> None:
        self.asked = (model, layers, classifier, pool)
        self.paired, self.again = segments, again
        self.ranks = ranks
        self.classes = classes
        self.growing = False
        self.survey: Survey
        self.moments: dict[str, ClassMoments] = {}
        self.segments: list[tuple[list[str], SegmentMoments]] = []
        self.paths: dict[str, PathSample] = {}
        self.scales: dict[str, Scale] = {}
        self.inputs = Fingerprint()
        self._kept: dict[str, Tensor] = {}
        self._batch = self._largest = 0
        self._bad: Int64[Tensor, " L"]
        self._of_layer: dict[str, tuple[list[str], SegmentMoments]] = {}

    def run(self, batches: Batches, step: Step) -> int:
        """Feed all batches; returns their number."""
        done = 0
        for batch in batches:
            self.ranks.look()
            if not done:
                self._meet(batch, batches)
                batch = batches.at_home(batch)
            with self.seeing(batch):
                self.survey.model(*batch.args, **batch.kwargs)
            done = batch.number + 1
            if batch.labels.y.device.type in AT_HAND or done % LOOK == 0:
                self._finite()
            step(done, "pass 1")
        if not done:
            self._meet(None, batches)
        self.finish(batches.whole)
        return done

    def _meet(self, batch: Batch | None, batches: Batches) -> None:
        """Begin with the first batch, or without one, as all processes do."""
        model, layers, classifier, pool = self.asked
        found = None if batch is None else survey(model, batch, layers, classifier, pool)
        looked = agreed(found, model, pool, self.ranks)
        self.inputs.begin(batch, self.ranks)
        largest = 0 if batch is None else batch.labels.numbers[-1]
        K = self.begin(looked, largest, batches.classes)
        self.open(K, batches.settle(cost([*looked.shapes.values()], K).peak))

    @contextmanager
    def seeing(self, batch: Batch) -> Iterator[None]:
        """Add a batch that the block runs through the model."""
        self._batch, labels = batch.number, batch.labels
        self._largest = max(self._largest, len(batch))
        self.make_room(labels.numbers[-1], batch.number)
        if self.again or self.ranks.size > 1:
            self.inputs.update(batch)
        see = partial(self._see, labels)
        with self.survey.watching(batch.number, len(batch), labels.y.device, see):
            yield
        self._note_finite(batch.number)

    def add(
        self,
        rows: Mapping[str, Float[Tensor, "B D"]],
        labels: BatchLabels,
        numbers: Int64[Tensor, " B"],
    ) -> None:
        """Add the features of several batches at once.

        Args:
            rows: Of every layer, in the order of the forward pass.
            labels: Of all rows.
            numbers: The batch that each row is of.
        """
        for name, H in rows.items():
            self._see(labels, name, H)
        bad = [~rows[name].sum(1, dtype=torch.float64).isfinite() for name in self.moments]
        self._note_finite(numbers[torch.stack(bad).int().argmax(1)])

    def finish(self, whole: int | None = None) -> None:
        """Make what was gathered that of all processes, and check it.

        Args:
            whole: Samples of the dataset behind the batches, where it knows.

        Raises:
            ValueError: If features were not finite, or samples of less than two classes were seen.
        """
        self._finite()
        self._merge(whole)
        self._check()

    def begin(self, looked: Survey, largest: int, own_classes: int | None) -> int:
        """Settle what will be measured.

        Args:
            looked: A look at the model.
            largest: Label of the first batch.
            own_classes: The data's own number of classes, if they have one.

        Returns:
            Number of classes; more may come if none of these know it.
        """
        self.survey = looked
        if self.classes is None:
            outputs = self.survey.head.out_features if self.survey.head else 1
            # one logit is two classes, or no class at all
            self.classes = outputs if outputs > 1 else own_classes
        self.growing = self.classes is None
        return self.classes or largest + 1

    def open(self, K: int, place: torch.device) -> None:
        """Make the empty statistics of every layer and segment, of so many classes, at a place."""
        features = {name: prod(shape) for name, shape in self.survey.shapes.items()}
        for names in self.survey.segments if self.paired else []:
            if len(names) > 1:
                pair = (names, SegmentMoments.empty(len(names), K, features[names[0]], place))
                self.segments.append(pair)
                self.paths[names[-1]] = PathSample(stream=self.ranks.rank)
                self._of_layer.update(dict.fromkeys(names, pair))
                self.scales.update(dict.fromkeys(names, Scale()))
                self.moments.update(zip(names, pair[1].layers, strict=True))
        for name in self.survey.shapes:
            if name not in self.moments:
                self.moments[name] = ClassMoments.empty(K, features[name], place)
                self.scales[name] = Scale()
        self.moments = {name: self.moments[name] for name in self.survey.shapes}
        self._bad = torch.full((len(self.moments),), -1, device=place)

    @property
    def answered(self) -> bool:
        """Whether the classifier has an output for every class."""
        K = len(next(iter(self.moments.values())).count)
        return self.survey.head is not None and self.survey.head.out_features >= K

    def make_room(self, largest: int, batch: int) -> None:
        """Make room for a batch's classes.

        Args:
            largest: Of its labels.
            batch: Its number, for the message.

        Raises:
            ValueError: If there are not so many classes.
        """
        if self.classes is not None and largest >= self.classes:
            raise ValueError(
                f"batch {batch} has the label {largest}, but there are {self.classes} classes "
                f"(0..{self.classes - 1})"
            )
        if self.growing:
            self._grow(largest + 1)

    def _grow(self, classes: int) -> None:
        for _, segment in self.segments:
            segment.grow(classes)
        for moments in self.moments.values():
            moments.grow(classes)

    def _merge(self, whole: int | None) -> None:
        """Make the statistics those of all processes."""
        if self.ranks.size == 1:
            return
        count = next(iter(self.moments.values())).count
        ours = {"seen": int(count.sum()), "whole": whole, "batch": self._largest, "classes": len(count)}
        told = self.ranks.meet("pass 1", ours)
        refuse_repeated(told)
        classes = max(each["classes"] for each in told)
        self.inputs.merge(classes, self.ranks)
        self._grow(classes)
        for name, moments in self.moments.items():
            if name not in self._of_layer:
                one_scale(self.scales[name], name, [moments], self.ranks)
                merge_layers([moments], self.ranks)
        for names, segment in self.segments:
            path = self.paths[names[-1]]
            one_scale(self.scales[names[0]], names[0], segment.layers, self.ranks, segment, path)
            merge_layers(segment.layers, self.ranks, segment)
            self.paths[names[-1]] = merge_paths(path, len(names) - 1, self.ranks)

    def _see(self, labels: BatchLabels, name: str, H: Float[Tensor, "B D"]) -> None:
        if name not in self._of_layer:
            [H] = self.scales[name].fit([name], [H], self._batch)
            self.moments[name].update(H, labels)
            return
        names, segment = self._of_layer[name]
        self._kept[name] = H if name == names[-1] else H.clone()  # the network may write over it
        if name == names[-1]:
            batch = [self._take(each, name) for each in names]
            gram = segment.update(self.scales[name].fit(names, batch, self._batch), labels)
            self.paths[name].update(gram, labels.y)

    def _take(self, name: str, last: str) -> Tensor:
        if name not in self._kept:
            raise ValueError(
                f"layer {name!r} did not run on batch {self._batch} before {last!r}, as it did before; "
                "tap layers that run on every batch in one order"
            )
        return self._kept.pop(name)

    def _note_finite(self, batch: int | Int64[Tensor, " L"]) -> None:
        """Keep the first batch after which a layer's scatter is not finite; asks no device."""
        fine = torch.stack([moments.scatter.sum() for moments in self.moments.values()]).isfinite()
        self._bad = torch.where(fine | (self._bad >= 0), self._bad, batch)

    def _finite(self) -> None:
        bad = zip(self._bad.tolist(), self.moments, strict=True)
        first = min((b for b in bad if b[0] >= 0), key=itemgetter(0), default=None)
        if first:
            raise ValueError(f"layer {first[1]!r} gave NaN or infinite features on batch {first[0]}")

    def _check(self) -> None:
        for scale in self.scales.values():
            scale.check()
        count = next(iter(self.moments.values())).count
        missing = (count == 0).nonzero().flatten().tolist()
        if len(count) - len(missing) < 2:
            raise ValueError(f"need samples of at least 2 classes, got {len(count) - len(missing)}")
        if missing:
            warn(f"classes {missing} have no sample and are left out")
        if count.max() <= 1:
            warn("every class has one sample, so PFC1 = 0 and PFC3 = 1 say nothing")


class SecondPass:
    """Nearest class means of every layer, now that the means are known.

    Args:
        first: The first pass, done.
        weighting: As for `measure`.
    """

    def __init__(self, first: FirstPass, weighting: Weighting) -> None:
        self.first = first
        self.ranks = first.ranks
        self.nearest = {
            name: NearestMean.empty(one_span(moments, weighting, self.ranks))
            for name, moments in first.moments.items()
        }
        self.crossings = {
            (names[0], names[-1]): LineCrossings(
                self.nearest[names[0]].span, self.nearest[names[-1]].span
            )
            for names, _ in first.segments
        }
        self._line_of = {name: ends for ends in self.crossings for name in ends}
        self._first_end: dict[str, Tensor] = {}
        self.inputs = first.inputs.again()
        self.samples = 0
        self.right = 0
        self.disagree = 0
        self.unknown = False
        count = next(iter(first.moments.values())).count
        self._seen = (count > 0).nonzero().flatten()  # the classes behind the means, in their order
        self._expected = frozenset(self._seen.tolist())
        self._tally = self._seen.new_zeros(3)  # right, in disagreement, unknown
        self._decided: dict[str, Tensor] = {}

    def run(self, batches: Batches, step: Step, done: int) -> None:
        """Feed all batches again and check that they are the same."""
        for batch in batches:
            self.ranks.look()
            self._known(batch)
            self.inputs.update(batch)
            answers = self.first.survey.forward(batch, partial(self._see, batch.labels))
            if answers is not None and self.first.answered:
                self._compare(answers, batch.labels)
            step(done + batch.number + 1, "pass 2")
        self._merge()
        self.right, self.disagree, unknown = self._tally.tolist()
        self.unknown = unknown > 0
        self.first.inputs.compare(self.inputs)
        for name, nearest in self.nearest.items():
            nearest.check(name)
        if self.unknown:
            warn(
                f"layer {self.first.survey.classifier!r}: the classifier gave NaN or infinite answers, "
                "so accuracy and nc4 are undefined"
            )

    def _merge(self) -> None:
        """Make what was gathered that of all processes."""
        if self.ranks.size == 1:
            return
        self.ranks.meet("pass 2")
        for nearest in self.nearest.values():
            merge_nearest(nearest, self.ranks)
        for line in self.crossings.values():
            merge_crossings(line, self.ranks)
        self.inputs.merge(len(next(iter(self.first.moments.values())).count), self.ranks)
        self.ranks.total(self._tally)
        self.samples = int(self.ranks.total(torch.tensor([self.samples])))

    def _known(self, batch: Batch) -> None:
        if not self._expected.issuperset(batch.labels.numbers):
            raise ValueError(
                f"the second pass saw other samples than the first: batch {batch.number} has a class "
                "that had no sample before; turn off random augmentation and sampling, or take passes=1"
            )

    def _see(self, labels: BatchLabels, name: str, H: Float[Tensor, "B D"]) -> None:
        H = self.first.scales[name].over(H)
        if name in self._line_of:
            decided = self._see_end(name, H, labels)
        else:
            decided = self.nearest[name].update(H, labels.y)
        if name == self.first.survey.at_head:
            self._decided = {name: decided}

    def _see_end(self, name: str, H: Float[Tensor, "B D"], labels: BatchLabels) -> Int64[Tensor, " B"]:
        """An end of a line is projected on the means of both ends at once."""
        ends = self._line_of[name]
        line, nearest = self.crossings[ends], self.nearest[name]
        r = line.first.basis.shape[1]
        z = project(H, nearest.span, line.bases)
        if name == ends[0]:
            self._first_end[name] = z
            return nearest.take(z[:, :r], labels.y, H.dtype)
        line.update(self._first_end.pop(ends[0]), z, labels.y)
        return nearest.take(z[:, r:], labels.y, H.dtype)

    def _compare(self, answers: Int64[Tensor, " B"], labels: BatchLabels) -> None:
        self._tally[2] += (answers < 0).sum()
        self.samples += len(answers)
        self._tally[0] += (answers == labels.y).sum()
        for decided in self._decided.values():
            self._tally[1] += (self._seen[decided] != answers).sum()
