"""State of pass two: nearest class means, about means that are known, which may be another set's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int64
from torch import Tensor

from pfc.labels import BatchLabels
from pfc.line import LineCrossings
from pfc.measuring.layout import Layout
from pfc.measuring.scale import Scale
from pfc.measuring.sums import See
from pfc.nearest import MeansSpan, NearestMean, project
from pfc.warning import warn


@dataclass(eq=False)
class Answers:
    """What the classifier answered, beside the labels and the nearest class means.

    Args:
        tally: Samples answered rightly, not with the nearest mean's class, and with no number.
        samples: That were answered.
    """

    tally: Int64[Tensor, "3"]
    samples: int = 0

    @property
    def known(self) -> bool:
        """Whether there are answers, all of them numbers."""
        return self.samples > 0 and not int(self.tally[2])

    @property
    def accuracy(self) -> float | None:
        """Fraction answered rightly; `None` if it is not known."""
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
        known: The same classes as numbers.
        answers: What the classifier answered.
    """

    layout: Layout
    nearest: dict[str, NearestMean]
    lines: dict[tuple[str, str], LineCrossings]
    scales: Mapping[str, Scale]
    classes: Int64[Tensor, " P"]
    known: frozenset[int]
    answers: Answers
    _projected: dict[str, Tensor] = field(default_factory=dict)  # the line's first end
    _decided: Tensor | None = None  # at the classifier's input

    @classmethod
    def about(
        cls,
        spans: Mapping[str, MeansSpan],
        layout: Layout,
        scales: Mapping[str, Scale],
        classes: Int64[Tensor, " P"],
    ) -> "Decisions":
        """No decisions yet.

        Args:
            spans: Of each layer's class means.
            layout: What is measured.
            scales: Of each layer.
            classes: The classes behind the means, in their order.

        Returns:
            The empty state.
        """
        ends = [(names[0], names[-1]) for names in layout.segments]
        return cls(
            layout=layout,
            nearest={name: NearestMean.empty(span) for name, span in spans.items()},
            lines={(a, b): LineCrossings(spans[a], spans[b]) for a, b in ends},
            scales=scales,
            classes=classes,
            known=frozenset(classes.tolist()),
            answers=Answers(classes.new_zeros(3)),
        )

    @property
    def answerable(self) -> bool:
        """Whether the classifier has an output for every class."""
        K = len(next(iter(self.nearest.values())).span.place)
        return self.layout.outputs >= K

    def batch(self, labels: BatchLabels, origin: int = 0) -> See:
        """Take a batch layer by layer; returns what is to be called with each layer's features."""
        if not self.known.issuperset(labels.numbers):
            raise ValueError(
                f"the second pass saw different samples from the first: batch {origin} has a class "
                "that had no sample before; turn off random augmentation and sampling, or take passes=1"
            )
        ends = {name: pair for pair in self.lines for name in pair}

        def see(name: str, H: Float[Tensor, "B D"]) -> None:
            H = self.scales[name].rescaled(H)
            if name in ends:
                decided = self._end_of_line(name, H, labels, ends[name])
            else:
                decided = self.nearest[name].update(H, labels.y)
            if name == self.layout.classifier_row:
                self._decided = decided

        return see

    def _end_of_line(
        self, name: str, H: Float[Tensor, "B D"], labels: BatchLabels, ends: tuple[str, str]
    ) -> Int64[Tensor, " B"]:
        """An end of a line is projected on the means of both ends at once."""
        line, nearest = self.lines[ends], self.nearest[name]
        r = line.first.basis.shape[1]
        z = project(H, nearest.span, line.bases)
        if name == ends[0]:
            self._projected[name] = z
            return nearest.take(z[:, :r], labels.y, H.dtype)
        line.update(self._projected.pop(ends[0]), z, labels.y)
        return nearest.take(z[:, r:], labels.y, H.dtype)

    def compare(self, answers: Int64[Tensor, " B"], labels: BatchLabels) -> None:
        """Add the classifier's answers to the samples of the batch that was taken."""
        tally = self.answers.tally
        self.answers.samples += len(answers)
        tally[0] += (answers == labels.y).sum()
        tally[2] += (answers < 0).sum()
        if self._decided is not None:
            tally[1] += (self.classes[self._decided] != answers).sum()

    def check(self) -> None:
        """Refuse other features than those of the means; warn of answers that are no numbers."""
        for name, nearest in self.nearest.items():
            nearest.check(name)
        if int(self.answers.tally[2]):
            warn(
                f"layer {self.layout.classifier!r}: the classifier gave NaN or infinite answers, so "
                "accuracy and nc4 are undefined"
            )
