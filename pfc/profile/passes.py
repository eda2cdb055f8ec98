"""The two passes over the data: moments of every layer, then nearest class means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.line import LineCrossings
from pfc.metrics import Weighting
from pfc.moments import BatchLabels, ClassMoments, SegmentMoments
from pfc.nearest import MeansSpan, NearestMean, project
from pfc.profile.batches import Batch, Batches, Fingerprint
from pfc.profile.result import warn
from pfc.profile.survey import Survey, survey
from pfc.progress import Step
from pfc.taps import Layers, Pool
from pfc.theory.path import PathSample

SAFE = 400  # float64 features within 2^-400..2^400, about 1e120, are taken as they are; ours
FAR = 465  # beyond 2^465, about 1e140, squares and their sums would leave float64; ours


@dataclass
class Scale:
    """The power of two over which the features of a segment, or of a layer by itself, are measured.

    It is 0 unless they are float64 and so large or small that their squares would overflow or vanish;
    then the first batch that is not all zeros settles it.

    Args:
        exponent: The power.
        settled: Whether it stands.
        largest: Of each layer, the largest size seen.
    """

    exponent: int = 0
    settled: bool = False
    largest: dict[str, float] = field(default_factory=dict)

    def fit(
        self, names: Sequence[str], batch: Sequence[Float[Tensor, "B D"]], number: int
    ) -> list[Float[Tensor, "B D"]]:
        """Scale a batch of features of these layers.

        Args:
            names: Of the layers.
            batch: The features of each.
            number: Of the batch.

        Returns:
            The features over the power of two.

        Raises:
            ValueError: If float64 features do not fit the power.
        """
        if all(H.dtype != torch.float64 for H in batch):
            return list(batch)
        for name, H in zip(names, batch, strict=True):
            self.largest[name] = max(self.largest.get(name, 0.0), float(H.abs().amax()))
        if not self.settled and any(self.largest.values()):
            self.settled, exponent = True, math.frexp(max(self.largest.values()))[1]
            self.exponent = max(-1000, min(exponent, 1000)) if abs(exponent) > SAFE else 0
        for name in names:
            if self._place(name) > FAR:
                raise ValueError(
                    f"layer {name!r} gave features of {self.largest[name]:.3g} on batch {number}, the "
                    f"first were near {2.0**self.exponent:.3g}: float64 cannot square both; scale them"
                )
        return [self.over(H) for H in batch]

    def _place(self, name: str) -> int:
        return math.frexp(self.largest[name])[1] - self.exponent

    def over(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Features over the power of two, exactly."""
        return H.double() * 2.0**-self.exponent if self.exponent else H

    def check(self) -> None:
        """Check that the features of each layer were large enough for their squares.

        Raises:
            ValueError: If those of one vanish beside those of another layer of the segment.
        """
        for name, size in self.largest.items():
            if size and self._place(name) < -FAR:
                most = max(self.largest.values())
                raise ValueError(
                    f"layer {name!r} has features of at most {size:.3g}, another of its shape of "
                    f"{most:.3g}: float64 cannot square both; take segments=False"
                )


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
    ) -> None:
        self.asked = (model, layers, classifier, pool)
        self.paired, self.again = segments, again
        self.classes = classes
        self.growing = False
        self.survey: Survey
        self.moments: dict[str, ClassMoments] = {}
        self.segments: list[tuple[list[str], SegmentMoments]] = []
        self.paths: dict[str, PathSample] = {}
        self.scales: dict[str, Scale] = {}
        self.inputs = Fingerprint()
        self._kept: dict[str, Tensor] = {}
        self._batch = 0
        self._of_layer: dict[str, tuple[list[str], SegmentMoments]] = {}

    def run(self, batches: Batches, step: Step) -> int:
        """Feed all batches; returns their number."""
        done = 0
        for batch in batches:
            if not done:
                self._begin(batch, batches.classes)
            self._batch = batch.number
            self._make_room(batch)
            if self.again:
                self.inputs.update(batch)
            self.survey.forward(batch, partial(self._see, batch.labels))
            self._finite(batch)
            done = batch.number + 1
            step(done, "pass 1")
        self._check()
        return done

    def _begin(self, batch: Batch, own_classes: int | None) -> None:
        model, layers, classifier, pool = self.asked
        self.survey = survey(model, batch, layers, classifier, pool)
        if self.classes is None:
            outputs = self.survey.head.out_features if self.survey.head else 1
            # one logit is two classes, or no class at all
            self.classes = outputs if outputs > 1 else own_classes
        self.growing = self.classes is None
        K = self.classes or int(batch.labels.present[-1]) + 1
        place = batch.labels.y.device
        features = {name: prod(shape) for name, shape in self.survey.shapes.items()}
        for names in self.survey.segments if self.paired else []:
            if len(names) > 1:
                pair = (names, SegmentMoments.empty(len(names), K, features[names[0]], place))
                self.segments.append(pair)
                self.paths[names[-1]] = PathSample()
                self._of_layer.update(dict.fromkeys(names, pair))
                self.scales.update(dict.fromkeys(names, Scale()))
                self.moments.update(zip(names, pair[1].layers, strict=True))
        for name in self.survey.shapes:
            if name not in self.moments:
                self.moments[name] = ClassMoments.empty(K, features[name], place)
                self.scales[name] = Scale()
        self.moments = {name: self.moments[name] for name in self.survey.shapes}

    @property
    def answered(self) -> bool:
        """Whether the classifier has an output for every class."""
        K = len(next(iter(self.moments.values())).count)
        return self.survey.head is not None and self.survey.head.out_features >= K

    def _make_room(self, batch: Batch) -> None:
        largest = int(batch.labels.present[-1])
        if self.classes is not None and largest >= self.classes:
            raise ValueError(
                f"batch {batch.number} has the label {largest}, but there are {self.classes} classes "
                f"(0..{self.classes - 1})"
            )
        if self.growing:
            for _, segment in self.segments:
                segment.grow(largest + 1)
            for moments in self.moments.values():
                moments.grow(largest + 1)

    def _see(self, labels: BatchLabels, name: str, H: Float[Tensor, "B D"]) -> None:
        if name not in self._of_layer:
            [H] = self.scales[name].fit([name], [H], self._batch)
            self.moments[name].update(H, labels)
            return
        names, segment = self._of_layer[name]
        self._kept[name] = H.clone()  # the network may write over it
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

    def _finite(self, batch: Batch) -> None:
        for name, moments in self.moments.items():
            if not bool(torch.isfinite(moments.scatter.sum())):
                raise ValueError(f"layer {name!r} gave NaN or infinite features on batch {batch.number}")

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
        self.nearest = {
            name: NearestMean.empty(MeansSpan.of(moments, weighting))
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
        self._decided: dict[str, Tensor] = {}

    def run(self, batches: Batches, step: Step, done: int) -> None:
        """Feed all batches again and check that they are the same."""
        for batch in batches:
            self._known(batch)
            self.inputs.update(batch)
            answers = self.first.survey.forward(batch, partial(self._see, batch.labels))
            if answers is not None and self.first.answered:
                self._compare(answers, batch.labels)
            step(done + batch.number + 1, "pass 2")
        self.first.inputs.compare(self.inputs)
        for name, nearest in self.nearest.items():
            nearest.check(name)
        if self.unknown:
            warn(
                f"layer {self.first.survey.classifier!r}: the classifier gave NaN or infinite answers, "
                "so accuracy and nc4 are undefined"
            )

    def _known(self, batch: Batch) -> None:
        place = next(iter(self.nearest.values())).span.place
        largest = int(batch.labels.present[-1])
        if largest >= len(place) or (place[batch.labels.present] < 0).any():
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
        self.unknown |= bool((answers < 0).any())
        self.samples += len(answers)
        self.right += int((answers == labels.y).sum())
        for name, decided in self._decided.items():
            place = self.nearest[name].span.place
            mean_class = (place >= 0).nonzero().flatten()[decided]
            self.disagree += int((mean_class != answers).sum())
