"""State of pass two: nearest class means, about means that are known, which may be another set's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES
from pfc.influence import Influence
from pfc.labels import BatchLabels
from pfc.line import LineCrossings
from pfc.measuring.layout import Layout
from pfc.measuring.scale import Scale
from pfc.measuring.sums import Sums
from pfc.moments import Gather, Total
from pfc.nearest import Axes, NearestMean
from pfc.span import MeansSpan
from pfc.warning import warn

WAITING = 2**19  # numbers of samples that wait to be decided at once, 4 MB; ours
QUEUED = 2**22  # the same on a device whose queue has to be waited for, 32 MB; ours


def answers_of(logits: Float[Tensor, "B K"], threshold: float = 0.0) -> Int64[Tensor, " B"]:
    """The class of the largest logit, of one logit by its threshold; -1 where it is no number."""
    largest, answers = logits.max(1)
    answers = (largest > threshold).long() if logits.shape[1] == 1 else answers
    return torch.where(largest.isfinite(), answers, -1)


@dataclass(eq=False)
class Answers:
    """What the classifier answered, beside the labels and the nearest class means.

    Args:
        tally: Correct answers, disagreements with the nearest class mean, and non-finite logits.
        samples: That were answered.
    """

    tally: Int64[Tensor, "3"]
    samples: int = 0

    def add(
        self, answers: Int64[Tensor, " B"], y: Int64[Tensor, " B"], nearest: Int64[Tensor, " B"] | None
    ) -> None:
        """Add the answers to a batch, with the classes of the nearest means where they are known."""
        self.samples += len(answers)
        self.tally[0] += (answers == y).sum()
        self.tally[2] += (answers < 0).sum()
        if nearest is not None:
            self.tally[1] += (nearest != answers).sum()

    def merge(self, total: Total) -> None:
        """Make the answers those of all processes that `total` sums over."""
        total(self.tally)
        self.samples = int(total(torch.tensor([self.samples], device="cpu")))

    @property
    def known(self) -> bool:
        """Whether there are answers, all of them numbers."""
        return self.samples > 0 and not int(self.tally[2])

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct answers; `None` if it is not known."""
        return int(self.tally[0]) / self.samples if self.known else None

    @property
    def disagreement(self) -> float | None:
        """Fraction answered with another class than the nearest mean's; `None` if it is not known."""
        return int(self.tally[1]) / self.samples if self.known else None


@dataclass(eq=False)
class Decisions:
    """State of pass two: knows features, labels, answers, and the span of the class means.

    Args:
        layout: What is measured.
        nearest: Nearest class means of each layer.
        lines: Crossings along the straight line of each segment, by its first and last layer.
        scales: The power of two by which each layer's features are divided.
        classes: The classes behind the means, in their order.
        known: Those that have samples, as numbers.
        answers: What the classifier answered.
        influences: Of each layer how far the samples move its metrics, where that is asked for.
    """

    layout: Layout
    nearest: dict[str, NearestMean]
    lines: dict[tuple[str, str], LineCrossings]
    scales: Mapping[str, Scale]
    classes: Int64[Tensor, " P"]
    known: frozenset[int]
    answers: Answers
    influences: Mapping[str, Influence]
    _waiting: list["Coordinates"] = field(default_factory=list)
    _samples: int = 0  # that wait

    @classmethod
    def about(
        cls,
        sums: Sums,
        spans: Mapping[str, MeansSpan],
        own: Mapping[str, Float64[Tensor, "P R"]] | None = None,
        influences: Mapping[str, Influence] | None = None,
    ) -> "Decisions":
        """No decisions yet, about the means in these spans, from which the data's own may be off."""
        ends = [(names[0], names[-1]) for names in sums.layout.segments]
        classes = (next(iter(spans.values())).place >= 0).nonzero().flatten()
        own = own or {}
        return cls(
            layout=sums.layout,
            nearest={name: NearestMean.empty(span, own.get(name)) for name, span in spans.items()},
            lines={(a, b): LineCrossings(spans[a], spans[b]) for a, b in ends},
            scales=sums.scales,
            classes=classes,
            known=frozenset((sums.count > 0).nonzero().flatten().tolist()),
            answers=Answers(classes.new_zeros(3)),
            influences=influences or {},
        )

    @property
    def spans(self) -> dict[str, MeansSpan]:
        """The span of the means at each layer."""
        return {name: nearest.span for name, nearest in self.nearest.items()}

    @contextmanager
    def batch(self, labels: BatchLabels, number: int) -> Iterator["Coordinates"]:
        """Take a batch layer by layer; it is decided together with others."""
        if not self.known.issuperset(labels.numbers):
            raise ValueError(
                f"the second pass saw different samples from the first: batch {number} has a class "
                "that had no sample before; turn off random augmentation and sampling, or take passes=1"
            )
        size = len(labels.y)
        if self._samples + size > self._most:
            self.settle()
        batch = Coordinates(self, labels, self._samples if size <= self._most else None)
        yield batch
        if batch.start is None:
            self._compare(batch, batch.nearest)
        else:
            self._waiting.append(batch)
            self._samples += size

    def settle(self) -> None:
        """Decide the samples that wait; from then on all numbers are those of all batches."""
        if not self._waiting:
            return
        labels = [batch.labels.y for batch in self._waiting]
        y = torch.cat(labels)
        nearest = self.decide({name: room[: len(y)] for name, room in self._room.items()}, y)
        parts = [None] * len(labels) if nearest is None else nearest.split([*map(len, labels)])
        for batch, own in zip(self._waiting, parts, strict=True):
            self._compare(batch, own)
        self._waiting, self._samples = [], 0

    def decide(
        self, z: Mapping[str, Float64[Tensor, "B R"]], y: Int64[Tensor, " B"]
    ) -> Int64[Tensor, " B"] | None:
        """Decide samples at some layers by their coordinates; the nearest means for the classifier."""
        found: dict[str, Int64[Tensor, " B"]] = {}
        for (first, last), line in self.lines.items():
            if last in z:
                found[first], found[last] = line.update(z[first], z[last], y)
        for name, coordinates in z.items():
            own = self.frames[name].owned(coordinates)
            found[name] = self.nearest[name].take(own, y, found.get(name))
        row = self.layout.classifier_row
        return self.classes[found[row]] if row in found else None

    def _compare(self, batch: "Coordinates", nearest: Int64[Tensor, " B"] | None) -> None:
        """Compare what the classifier answered to a batch."""
        if self.answerable and batch.answers is not None:
            self.answers.add(batch.answers, batch.labels.y, nearest)

    def room(self, name: str, start: int, size: int) -> Float64[Tensor, "B R"]:
        """Where coordinates wait, in memory that serves again, as new one costs more."""
        return self._room[name][start : start + size]

    @cached_property
    def _most(self) -> int:
        """Samples that may wait."""
        numbers = sum(frame.axes.bases.shape[1] for frame in self.frames.values())
        here = self.classes.device.type in SYNCHRONOUS_DEVICES
        return (WAITING if here else QUEUED) // max(1, numbers)

    @cached_property
    def _room(self) -> dict[str, Float64[Tensor, "M R"]]:
        """Memory for the coordinates of these."""
        frames = {name: frame.axes.bases for name, frame in self.frames.items()}
        return {name: bases.new_empty(self._most, bases.shape[1]) for name, bases in frames.items()}

    @cached_property
    def frames(self) -> dict[str, "Frame"]:
        """What each layer is projected on; an end of a line on the means of both ends."""
        found = {
            name: Frame(Axes(span, span.basis), slice(None), (name,))
            for name, span in self.spans.items()
        }
        for (first, last), line in self.lines.items():
            own = line.first.basis.shape[1]
            found[first] = Frame(Axes(line.first, line.bases), slice(own), ())
            found[last] = Frame(Axes(line.last, line.bases), slice(own, None), (first, last))
        return found

    @property
    def answerable(self) -> bool:
        """Whether the classifier has an answer for every class."""
        return self.layout.answers >= len(next(iter(self.nearest.values())).span.place)

    def merge(self, total: Total, gather: Gather) -> None:
        """Make the decisions those of all processes, by their sums and their tensors."""
        for nearest in self.nearest.values():
            nearest.merge(total=total, gather=gather)
        for line in self.lines.values():
            line.merge(total=total, gather=gather)
        for influence in self.influences.values():
            influence.merge(total)
        self.answers.merge(total)

    def check(self) -> None:
        """Refuse other features than those of the means; warn of answers that are no numbers."""
        for name, nearest in self.nearest.items():
            nearest.check(name)
        if int(self.answers.tally[2]):
            warn(
                f"layer {self.layout.classifier!r}: the classifier gave NaN or infinite answers, so "
                "accuracy and nc4 are undefined"
            )


@dataclass(frozen=True, eq=False)
class Frame:
    """The coordinates of a layer, and what is decided by them.

    Args:
        axes: Of the layer's span or of a line's both ends.
        own: Those axes that are of the layer's span.
        ready: Layers that can be decided once this one is seen.
    """

    axes: Axes
    own: slice
    ready: tuple[str, ...]

    def owned(self, z: Float64[Tensor, "B R"]) -> Float64[Tensor, "B r"]:
        """The coordinates along the axes of the layer's span; no view where these are all."""
        return z if self.own == slice(None) else z[:, self.own]


@dataclass(eq=False)
class Coordinates:
    """A batch that is seen layer by layer: where its samples are about the class means.

    Args:
        decisions: That it is for.
        labels: Of its samples.
        start: Where it lies among the samples that wait; `None` if it is decided layer by layer.
        nearest: The nearest means at the classifier's input, once they are decided.
        answers: What the classifier answered, if it has.
    """

    decisions: Decisions
    labels: BatchLabels
    start: int | None
    nearest: Int64[Tensor, " B"] | None = None
    answers: Int64[Tensor, " B"] | None = None
    _seen: dict[str, Float64[Tensor, "B R"]] = field(default_factory=dict)

    def see(self, name: str, H: Float[Tensor, "B D"]) -> Float64[Tensor, "B R"]:
        """Take the features of a layer; their coordinates in the span of its means."""
        of = self.decisions
        H = of.scales[name].rescaled(H)
        if name in of.influences:
            of.influences[name].update(H, self.labels.y)
        nearest, frame = of.nearest[name], of.frames[name]
        nearest.note(H.dtype)
        if self.start is not None:
            return frame.owned(frame.axes.project(H, of.room(name, self.start, len(H))))
        self._seen[name] = z = frame.axes.project(H)
        found = of.decide({each: self._seen.pop(each) for each in frame.ready}, self.labels.y)
        self.nearest = self.nearest if found is None else found
        return frame.owned(z)
