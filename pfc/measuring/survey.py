"""A first look at a model: which layers run, in what order and shape, and where the classifier is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.foreign import is_ours
from pfc.layers import CLASSIFIER_INPUT, Layers, module_names, wants_input
from pfc.measuring import head as heads
from pfc.measuring.calling import Form, arguments, call, failed, forms
from pfc.measuring.decisions import answers_of
from pfc.measuring.head import Classifier, Head
from pfc.measuring.layout import Layout, Shape
from pfc.measuring.loader import Batch, cut
from pfc.measuring.rows import Row, found_rows, kept_names
from pfc.measuring.sums import See
from pfc.measuring.tokens import Tokens
from pfc.measuring.trial import Trial, run
from pfc.taps import Edge, Pool, Side, Watch, all_tensors, first_tensor, pooled, unwrapped

FEW = 2  # samples of the first look; ours: one alone may meet a network's squeeze()


@dataclass(frozen=True, eq=False)
class Survey:
    """A model and where its layers are found; made from a forward pass of a batch's first two samples.

    Args:
        model: The network without wrappers.
        layout: What is measured of it.
        modules: The tapped modules by name, in the order of the forward pass.
        pool: How outputs of several tokens or pixels are reduced.
        entrance: The module whose input or output is the classifier's input, and which of them.
        giver: The module that gives the logits; `None` where they are the row's and a given weight's.
        weigh: Gives the classifier's weight K x D as it is when called, or `None`.
        bias: Of a classifier whose weight is given.
        form: How the model is called with a batch.
        tokens: How tokens are labelled, if they are.
    """

    model: nn.Module
    layout: Layout
    modules: Mapping[str, nn.Module]
    pool: Pool
    entrance: tuple[nn.Module, Side] | None
    giver: nn.Module | None
    weigh: Callable[[], Tensor | None]
    bias: Tensor | None = None
    form: Form = "given"
    tokens: Tokens | None = None

    @classmethod
    def of(cls, layout: Layout, model: nn.Module, pool: Pool, tokens: Tokens | None = None) -> "Survey":
        """Where the layers of a layout are in a model."""
        names = module_names(model)
        modules = {name: names[name] for name in layout.names if name in names}
        net, head = unwrapped(model), names.get(layout.classifier or "")
        return cls(
            model=net,
            layout=layout,
            modules=modules,
            pool=pool,
            entrance=None
            if layout.entrance is None
            else (names[layout.entrance[0]], layout.entrance[1]),
            giver=head if layout.logits is None else net,
            weigh=lambda: heads.weight_of(head),
            tokens=tokens,
        )

    @property
    def weight(self) -> Tensor | None:
        """The classifier's weight, if it is known: a row for each class."""
        with torch.no_grad():
            W = self.weigh()
        if W is None or self.tokens is None:
            return W
        known = self.tokens.vocabulary.to(W.device)
        return W[known] if int(known[-1]) < len(W) else None

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """Run a batch, handing each layer's rows to `see` on `device`; the classifier's answers."""
        with self.watching(batch, device, see) as answers:
            call(self.model, batch, self.form)
        if not answers:
            return None
        return answers[-1] if self.tokens is None else self.tokens.classes_of(answers[-1])

    def logits(self, batch: Batch, device: torch.device, see: See) -> Float[Tensor, "B C"] | None:
        """As `forward`; the logits themselves, if there are any."""
        with self._watched(batch, device, see, lambda logits: logits) as found:
            call(self.model, batch, self.form)
        return found[-1] if found else None

    @contextmanager
    def watching(
        self, batch: Batch, device: torch.device, see: See
    ) -> Iterator[list[Int64[Tensor, " B"]]]:
        """As `forward`, for a block that runs the model; rows are handed over on `device`."""
        answer = partial(answers_of, threshold=self.layout.threshold)
        with self._watched(batch, device, see, answer) as answers:
            yield answers

    @contextmanager
    def _watched(
        self, batch: Batch, device: torch.device, see: See, of_logits: Callable[[Tensor], Tensor]
    ) -> Iterator[list[Tensor]]:
        """Hand over each layer's rows while a block runs the model, and keep something of the logits."""
        looking = _Looking(self, batch, device, see, of_logits)
        edges = self._edges(looking.at_input, looking.at_logits)
        with Watch(self.modules, looking.at_layer, edges) as watch:
            yield looking.answers
            watch.finish(batch.number)

    def _edges(self, at_input: Callable[[Any], None], at_logits: Callable[[Any], None]) -> list[Edge]:
        """What is watched besides the layers: the classifier's input, and its logits."""
        edges = list[Edge]()
        if CLASSIFIER_INPUT in self.layout.shapes and self.entrance is not None:
            edges.append((*self.entrance, at_input))
        if self.layout.outputs and self.giver is not None:
            edges.append((self.giver, "output", at_logits))
        return edges

    def _product(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        W, b = self.weight, self.bias
        assert W is not None
        return rows.double() @ W.to(rows.device).double().mT + (0 if b is None else b.to(rows.device))

    def _logits(self, value: Any, batch: Batch) -> Float[Tensor, "B C"]:
        """A row of logits for each row of the features."""
        K, place, size = self.layout.outputs, self.layout.logits, len(batch.y)
        logits = first_tensor(value) if place is None else all_tensors(value).get(place)
        logits = None if logits is None else heads.logits_of(logits)
        if logits is not None and batch.tokens is not None:
            logits = batch.rows(logits, self.pool)
        if logits is None or logits.numel() < size * K or (logits.shape[-1:] != (K,) and K > 1):
            got = "nothing" if logits is None else f"shape {(*logits.shape,)}"
            raise ValueError(
                f"classifier {self.layout.classifier!r} gave {got} on batch {batch.number} of {size} "
                f"samples, not {K} logits a sample"
            )
        return logits.detach().reshape(-1, K)

    def _rows(self, name: str, output: Tensor, batch: Batch) -> Float[Tensor, "B D"]:
        """The features of each row at a layer."""
        shape, layout, size = self.layout.shapes[name], self.layout, len(batch.y)
        output = output.transpose(0, 1) if name in layout.sequence_first else output
        if size == 1 and output.shape == shape:
            output = output[None]  # a squeeze() took the axis of the only sample
        by_pool = name != CLASSIFIER_INPUT or layout.input_pool == "pool"
        H = batch.rows(output, self.pool) if by_pool else pooled(output, layout.input_pool)
        if H.shape != (size, *shape):
            raise ValueError(
                f"layer {name!r} gave shape {(*H.shape,)} on batch {batch.number} of {size} "
                f"samples; a sample's shape was {shape} before"
                + ("; of texts of many lengths take pool='mean'" if H.ndim == 3 else "")
            )
        return (H.movedim(1, -1) if name in layout.lying else H).reshape(size, -1)


@dataclass(frozen=True, eq=False)
class _Looking:
    """A batch on its way through a model."""

    survey: Survey
    batch: Batch
    device: torch.device
    see: See
    of_logits: Callable[[Tensor], Tensor]
    answers: list[Tensor] = field(default_factory=list)

    def at_layer(self, name: str, output: Tensor) -> None:
        """Hand over the rows of a layer, and answer by them where the classifier is no module."""
        rows = self.survey._rows(name, output, self.batch)
        if name == self.survey.layout.classifier_row and self.survey.giver is None:
            self.at_logits(self.survey._product(rows))
        self.see(name, rows if rows.device == self.device else rows.to(self.device))

    def at_input(self, value: Any) -> None:
        """Hand over what the classifier reads."""
        if (x := first_tensor(value)) is not None:
            self.at_layer(CLASSIFIER_INPUT, x.detach())

    def at_logits(self, value: Any) -> None:
        """Keep something of the logits."""
        self.answers.append(self.of_logits(self.survey._logits(value, self.batch)).to(self.device))


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked to be measured of a model; the arguments are those of `pfc.measure`."""

    model: nn.Module
    layers: Layers = None
    classifier: Classifier = None
    pool: Pool = "flatten"
    segments: bool = True
    tokens: Tokens | None = None
    as_it_lies: bool = False  # rows may be read in the order in which they lie in memory


def survey(request: Request, batch: Batch, *, form: Form | None = None) -> Survey:
    """Look at a model, in the state in which it will be measured, by running two samples of a batch."""
    model, pool = request.model, request.pool
    form, trial = _looked(request, batch, form)
    every = batch if batch.tokens is None else replace(batch, tokens=torch.ones_like(batch.tokens))
    trial = replace(trial, pool=pool, reduce=partial(every.rows, pool=pool, samples=trial.size))
    head = heads.find(trial, request.classifier)
    rows, how = found_rows(trial, request.layers, head)
    shapes = {name: (*row.H.shape[1:],) for name, row in rows.items()}
    row = _classifier_row(rows, shapes, request, head)
    asked = wants_input(request.layers)
    layout = Layout(
        shapes=shapes,
        paired=request.segments,
        **({} if head is None else head.to_dict()),
        classifier_row=row,
        sequence_first=tuple(name for name, row in rows.items() if row.sequence_first),
        model=type(unwrapped(model)).__name__,
        pool=pool if isinstance(pool, str) else getattr(pool, "__name__", "callable"),
        chosen=how + _not_found(head, row, asked=asked),
    )
    if request.as_it_lies and pool == "flatten":
        layout = replace(layout, lying=_lying(layout, rows))
    found = replace(Survey.of(layout, model, pool, request.tokens), form=form)
    return found if head is None else replace(found, weigh=head.weight, bias=head.bias)


def _lying(layout: Layout, rows: Mapping[str, Row]) -> tuple[str, ...]:
    """Rows of maps whose channels lie last, of whole segments; not what the classifier reads."""
    return tuple(
        name
        for group in layout.groups
        if layout.classifier_row not in group and all(n in rows and rows[n].channels_last for n in group)
        for name in group
    )


def _classifier_row(
    rows: Mapping[str, Row], shapes: dict[str, Shape], request: Request, head: Head | None
) -> str | None:
    """The row that the classifier reads; one more is made where it is wanted and no layer's."""
    named = request.layers is not None
    row = None if head is None else next((n for n in reversed([*rows]) if rows[n].feeds(head)), None)
    wanted = wants_input(request.layers) and (named or row != next(reversed([*rows]), ""))
    if not wanted:
        return row
    if head is None or head.entrance is None:
        if named and row is None:
            raise ValueError(
                "no classifier that reads what a module reads or gives was found, so 'classifier.input' "
                "names nothing; give the classifier as classifier="
            )
        return row
    shapes[CLASSIFIER_INPUT] = head.shape
    return CLASSIFIER_INPUT if head.reads else None


def _not_found(head: Head | None, row: str | None, *, asked: bool) -> str:
    """What is not known of the classifier, and what would help."""
    if head is None:
        return "; no classifier found: give it as classifier="
    if not head.outputs:
        return "; what the classifier answers to a sample is not known: give it as classifier="
    if row is not None or not asked:
        return ""
    if head.weight() is None and head.entrance is None:
        return "; nc3 and nc4 unknown: no weight K x D found: give it as classifier="
    if head.entrance is None:
        return "; nc3 and nc4 unknown: what the classifier reads must be a module's input or output"
    if head.input_pool == "flatten":
        return (
            "; nc3 and nc4 unknown: the logits are not in the order of the weight's rows: give the "
            "weight K x D as classifier="
        )
    return "; nc3 and nc4 unknown: the classifier does not read what pool= makes of its input"


def _looked(request: Request, batch: Batch, form: Form | None) -> tuple[Form, Trial]:
    """A trial in which the axis of the samples is told from that of the tokens."""
    model = request.model
    kept = kept_names(model, request.layers) | heads.kept_names(model, request.classifier)
    form, trial = _trial(model, batch, FEW, kept, form)
    size = trial.size
    outputs = [call.output for call in trial.calls if call.output is not None]
    square = any(out.ndim == 3 and out.shape[:2] == (size, size) for out in outputs)
    if square and size < len(batch):
        return _trial(model, batch, size + 1, kept, form)
    return form, trial


def _trial(
    model: nn.Module, batch: Batch, few: int, kept: set[str], form: Form | None
) -> tuple[Form, Trial]:
    """Run few samples, or all where a network insists on that, in the first form that works."""
    net, errors = unwrapped(model), list[Exception]()
    for each in [form] if form else forms(net, batch):
        for size in sorted({min(few, len(batch)), len(batch)}):
            args, kwargs = cut(arguments(batch, each), size, len(batch))
            try:
                return each, run(model, args, kwargs, size, len(batch), kept)
            except Exception as error:
                errors.append(error)
    if is_ours(errors[0]):
        raise errors[0]
    raise failed(net, batch, errors[0]) from errors[0]
