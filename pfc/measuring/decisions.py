"""State of pass two: nearest class means, about means that are known, which may be another set's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.influence import Influence
from pfc.labels import BatchLabels
from pfc.line import LineCrossings
from pfc.measuring.layout import Layout
from pfc.measuring.scale import Scale
from pfc.measuring.sums import Sums
from pfc.moments import Gather, Total
from pfc.nearest import MeansSpan, NearestMean, project
from pfc.warning import warn

Decide = Callable[[str, Float[Tensor, "B D"]], Float64[Tensor, "B R"]]  # gives where features are
Answered = Callable[[Int64[Tensor, " B"]], None]  # takes the classifier's answers


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
        self, answers: Int64[Tensor, " B"], labels: BatchLabels, nearest: Sequence[Int64[Tensor, " B"]]
    ) -> None:
        """Add the answers to a batch, with the classes of the nearest means where they are known."""
        self.samples += len(answers)
        self.tally[0] += (answers == labels.y).sum()
        self.tally[2] += (answers < 0).sum()
        for classes in nearest:
            self.tally[1] += (classes != answers).sum()

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

    def batch(self, labels: BatchLabels, number: int) -> tuple[Decide, Answered]:
        """Take a batch: what is to be called with each layer's features, then with the answers."""
        if not self.known.issuperset(labels.numbers):
            raise ValueError(
                f"the second pass saw different samples from the first: batch {number} has a class "
                "that had no sample before; turn off random augmentation and sampling, or take passes=1"
            )
        deciding = _Deciding(self, labels, {name: pair for pair in self.lines for name in pair})
        return deciding.see, deciding.answered

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
class _Deciding:
    """A batch that is decided layer by layer."""

    decisions: Decisions
    labels: BatchLabels
    ends: Mapping[str, tuple[str, str]]
    starts: dict[str, tuple[Tensor, torch.dtype]] = field(
        default_factory=dict
    )  # first layers of the segments, projected, and the type of their features
    decided: list[Tensor] = field(default_factory=list)  # at the classifier's input

    def see(self, name: str, H: Float[Tensor, "B D"]) -> Float64[Tensor, "B R"]:
        """Decide by the features of a layer; their coordinates in the span of its means."""
        of = self.decisions
        H = of.scales[name].rescaled(H)
        if name in of.influences:
            of.influences[name].update(H, self.labels.y)
        if name in self.ends:
            return self._end_of_line(name, H)
        span = of.nearest[name].span
        z = project(H, span, span.basis)
        self._take(name, z, H.dtype)
        return z

    def _end_of_line(self, name: str, H: Float[Tensor, "B D"]) -> Float64[Tensor, "B R"]:
        """An end of a line is projected on the means of both ends at once, and waits for the other."""
        first, last = ends = self.ends[name]
        line = self.decisions.lines[ends]
        r = line.first.basis.shape[1]
        z = project(H, self.decisions.nearest[name].span, line.bases)
        if name == first:
            self.starts[name] = z, H.dtype
            return z[:, :r]
        start, dtype = self.starts.pop(first)
        nearest = line.update(start, z, self.labels.y)
        self._take(first, start[:, :r], dtype, nearest[0])
        self._take(last, z[:, r:], H.dtype, nearest[1])
        return z[:, r:]

    def _take(self, name: str, z: Tensor, dtype: torch.dtype, nearest: Tensor | None = None) -> None:
        """Add a layer's coordinates in the span of its means, and the nearest means if known."""
        found = self.decisions.nearest[name].take(z, self.labels.y, dtype, nearest)
        if name == self.decisions.layout.classifier_row:
            self.decided.append(found)

    def answered(self, answers: Int64[Tensor, " B"]) -> None:
        """Compare what the classifier answered."""
        of = self.decisions
        if of.answerable:
            of.answers.add(answers, self.labels, [of.classes[place] for place in self.decided])
