"""A model and data made ready to be measured: the first batch is read, the layers are known."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pfc.data.classes import renamed_classes
from pfc.evaluation import Precision, undisturbed
from pfc.foreign import workers_told
from pfc.layers import Layers
from pfc.measuring import shards
from pfc.measuring.calling import place_of
from pfc.measuring.head import Classifier
from pfc.measuring.loader import Batch, MeasuredBatches, StatisticsPlace
from pfc.measuring.outlook import Outlook
from pfc.measuring.passes import How
from pfc.measuring.reference import Reference
from pfc.measuring.survey import Request, Survey
from pfc.measuring.tokens import Tokens
from pfc.metrics import Weighting, class_weights
from pfc.processes import Processes, together
from pfc.profile.profile import Profile
from pfc.taps import Pool, unwrapped
from pfc.warning import warn

ONE_PASS = "about the means of other data both passes are needed, got passes=1"


@dataclass(frozen=True, eq=False)
class Opened:
    """A model and data that are ready to be measured.

    Args:
        survey: The model, and where its layers are found.
        first: The first batch of this process, by which they were found; `None` for none.
        rest: The other batches of a pass.
        batches: All of them, again and again.
        how: How they are measured.
        request: What was asked to be measured of the model.
        ranks: The processes that measure together.
    """

    survey: Survey
    first: Batch | None
    rest: Iterator[Batch]
    batches: MeasuredBatches
    how: How
    request: Request
    ranks: Processes

    @property
    def outlook(self) -> Outlook:
        """What measuring takes, told of a first batch."""
        first, batches = self.first, self.batches
        assert first is not None, "a process without samples tells nothing"
        total = batches.expected(len(first))
        return Outlook.of(self.survey.layout, first, batches, total, self.how, of_model=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """What is asked for: arguments of `pfc.measure`, and whether features are probed besides."""

    layers: Layers = None
    classes: int | None = None
    weighting: Weighting = "class"
    passes: int = 2
    segments: bool = True
    intervals: bool = False
    pool: Pool = "flatten"
    limit: int | None = None
    device: str | torch.device | None = None
    classifier: Classifier = None
    means: Profile | None = None
    shift: int = 0
    statistics: StatisticsPlace | None = None
    group: Any = None
    precision: Precision | None = None
    probed: bool = False

    @cached_property
    def reference(self) -> Reference | None:
        """The means of other data, about which these are measured."""
        return Reference.of(self.means)

    @cached_property
    def tokens(self) -> Tokens | None:
        """How tokens are labelled, while their labels are not known."""
        return Tokens.asked(self.pool, self.shift, self.classes)

    @contextmanager
    def opened(self, model: nn.Module, data: Iterable[Any]) -> Iterator[Opened]:
        """Make ready what is measured, for a block that measures; the model is put back at its end."""
        reference, tokens = self.reference, self.tokens
        with together(self.group) as ranks, workers_told(), ExitStack() as stack:
            device = place_of(model, self.device)
            how = self.how
            ranks.use_device(device)
            self._agree(model, reference, ranks)
            stack.enter_context(undisturbed(unwrapped(model), device, self.precision))
            shards.share_buffers(unwrapped(model), ranks)
            batches = _batches(model, data, self.limit, device, tokens, reference, ranks)
            if (tokens := batches.tokens) is not None:
                labels = tuple(tokens.vocabulary.tolist())
                how = replace(how, classes=len(labels), labels=labels)
            request = self._request(model, reference, tokens)
            looked, first, rest = _looked(request, batches, self.limit, reference, ranks)
            yield Opened(looked, first, rest, batches, how, request, ranks)

    @property
    def how(self) -> How:
        """How data are measured, if all arguments have a meaning."""
        return checked_how(
            self.passes,
            self.classes,
            self.weighting,
            self.statistics,
            self.reference,
            intervals=self.intervals,
        )

    def _agree(self, model: nn.Module, reference: Reference | None, ranks: Processes) -> None:
        """Refuse processes that were asked for different things."""
        ranks.agree(
            passes=self.passes,
            classes=self.classes,
            weighting=self.weighting,
            segments=self.segments,
            intervals=self.intervals,
            limit=self.limit,
            precision=self.precision,
            pool=self.pool if isinstance(self.pool, str) else "callable",
            shift=self.shift,
            means=None if reference is None else reference.digest,
            network=shards.weights_digest(model) if ranks.size > 1 else None,
        )

    def _request(self, model: nn.Module, reference: Reference | None, tokens: Tokens | None) -> Request:
        """What is to be found in the model: about other data's means, the layers of these."""
        known = reference is not None and self.layers is None
        names = [*reference.moments] if known and reference is not None else self.layers
        own = reference is None
        segments, as_it_lies = self.segments and own, own and not self.probed
        return Request(model, names, self.classifier, self.pool, segments, tokens, as_it_lies)


def checked_how(
    passes: int,
    classes: int | None,
    weighting: Weighting,
    statistics: StatisticsPlace | None,
    reference: Reference | None,
    *,
    intervals: bool,
) -> How:
    """How to measure, if all arguments have a meaning."""
    if passes not in {1, 2}:
        raise ValueError(f"passes must be 1 or 2, got {passes}")
    if classes is not None and classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if reference is not None and classes not in {None, reference.classes}:
        raise ValueError(f"the means are of {reference.classes} classes, got classes={classes}")
    if reference is not None and passes == 1:
        raise ValueError(ONE_PASS)
    if intervals and passes == 1:
        raise ValueError("intervals need both passes, got passes=1")
    class_weights(torch.ones(2, dtype=torch.float64, device="cpu"), weighting)
    return How(passes, classes, weighting, statistics, reference, intervals=intervals)


def _batches(
    model: nn.Module,
    data: Iterable[Any],
    limit: int | None,
    device: torch.device,
    tokens: Tokens | None,
    reference: Reference | None,
    ranks: Processes,
) -> MeasuredBatches:
    """This process's batches, whose classes are known where tokens have them; other names are told."""
    own = shards.own_limit(limit, data, ranks)
    batches = MeasuredBatches(data, own, device, tokens, may_be_empty=ranks.size > 1)
    if tokens is not None:
        batches.tokens = _vocabulary(batches, tokens, reference, ranks)
    if ranks.is_main and (how := renamed_classes(unwrapped(model), batches.class_names)):
        warn(f"the data's classes are not those of the model's id2label: {how}")
    return batches


def _looked(
    request: Request,
    batches: MeasuredBatches,
    limit: int | None,
    reference: Reference | None,
    ranks: Processes,
) -> tuple[Survey, Batch | None, Iterator[Batch]]:
    """What is measured of a model, the first batch, by which it was found, and the others."""
    rest = iter(batches)
    first = next(rest, None)
    looked = shards.agreed_survey(request, first, ranks)
    if shards.read_the_same(first, ranks):
        shards.divide(batches, request, limit, ranks)
        rest = iter(batches)
        first = next(rest, None)
    if reference is not None:
        reference.check(looked.layout)
    return looked, first, rest


def _vocabulary(
    batches: MeasuredBatches, tokens: Tokens, reference: Reference | None, ranks: Processes
) -> Tokens:
    """The labels that occur, or those of the reference."""
    if reference is None:
        found = shards.shared_labels(batches.labels(), ranks)
    else:
        found = torch.tensor(reference.about.get("labels", range(reference.classes)), device="cpu")
    if len(found) < 2:
        raise ValueError(f"need tokens of at least 2 labels, got {found.tolist()}")
    return Tokens(tokens.shift, found)
