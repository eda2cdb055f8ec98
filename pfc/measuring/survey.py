"""A first look at a model: which layers run, in what order and shape, and where the classifier is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.measuring.layout import Layout
from pfc.measuring.loader import Batch, cut
from pfc.measuring.sums import See
from pfc.measuring.tokens import Tokens
from pfc.taps import (
    CLASSIFIER_INPUT,
    KNOWN_BLOCKS,
    Layers,
    ModuleCall,
    Pool,
    Watch,
    all_tensors,
    choose,
    first_tensor,
    module_names,
    ran_twice,
    trace,
    unwrapped,
    why_silent,
    writes,
)
from pfc.warning import warn

FEW = 2  # samples of the first look; ours: one alone may meet a network's squeeze()


@dataclass(frozen=True, eq=False)
class Survey:
    """A model and where its layers are found; made from a forward pass of a batch's first two samples.

    Args:
        model: The network without wrappers.
        layout: What is measured of it.
        modules: The tapped modules by name, in the order of the forward pass.
        head: The classifier's layer, or `None`.
        pool: How outputs of several tokens or pixels are reduced.
        tokens: How tokens are labelled, if they are.
    """

    model: nn.Module
    layout: Layout
    modules: Mapping[str, nn.Module]
    head: nn.Linear | None
    pool: Pool
    tokens: Tokens | None = None

    @classmethod
    def of(cls, layout: Layout, model: nn.Module, pool: Pool, tokens: Tokens | None = None) -> "Survey":
        """Where the layers of a layout are in a model."""
        names = module_names(model)
        head = None if layout.classifier is None else names[layout.classifier]
        return cls(
            model=unwrapped(model),
            layout=layout,
            modules={name: names[name] for name in layout.names if name in names},
            head=head if isinstance(head, nn.Linear) else None,
            pool=pool,
            tokens=tokens,
        )

    @property
    def weight(self) -> Tensor | None:
        """The classifier's weight, if there is one: a row for each class."""
        W = None if self.head is None else self.head.weight
        if W is None or self.tokens is None:
            return W
        known = self.tokens.vocabulary.to(W.device)
        return W[known] if int(known[-1]) < len(W) else None

    def forward(self, batch: Batch, device: torch.device, see: See) -> Int64[Tensor, " B"] | None:
        """Run a batch, handing each layer's rows to `see` on `device`; the classifier's answers."""
        with self.watching(batch, device, see) as answers:
            self.model(*batch.args, **batch.kwargs)
        if not answers:
            return None
        return answers[-1] if self.tokens is None else self.tokens.classes_of(answers[-1])

    @contextmanager
    def watching(
        self, batch: Batch, device: torch.device, see: See
    ) -> Iterator[list[Int64[Tensor, " B"]]]:
        """As `forward`, for a block that runs the model; rows are handed over on `device`."""
        answers: list[Tensor] = []

        def at_layer(name: str, output: Tensor) -> None:
            see(name, self._rows(name, output, batch).to(device))

        def at_input(x: Tensor) -> None:
            if CLASSIFIER_INPUT in self.layout.shapes:
                at_layer(CLASSIFIER_INPUT, x)

        edge = (at_input, lambda logits: answers.append(self._answers(logits, batch).to(device)))
        with Watch(self.modules, at_layer, self.head, edge) as watch:
            yield answers
            watch.finish(batch.number)

    def _answers(self, logits: Float[Tensor, "..."], batch: Batch) -> Int64[Tensor, " B"]:
        """The classifier's answer to each row, in the numbers of its own outputs."""
        return _answers(logits if batch.tokens is None else batch.rows(logits, self.pool))

    def _rows(self, name: str, output: Tensor, batch: Batch) -> Float[Tensor, "B D"]:
        """The features of each row at a layer."""
        whole = name == CLASSIFIER_INPUT and batch.tokens is None
        H = output if whole else batch.rows(output, self.pool)
        size, shape = len(batch.y), self.layout.shapes[name]
        if H.shape != (size, *shape):
            raise ValueError(
                f"layer {name!r} gave shape {(*H.shape,)} on batch {batch.number} of {size} "
                f"samples; a sample's shape was {shape} before"
                + ("; of texts of many lengths take pool='mean'" if H.ndim == 3 else "")
            )
        return H.reshape(size, -1)


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked to be measured of a model; the arguments are those of `pfc.measure`."""

    model: nn.Module
    layers: Layers = None
    classifier: str | nn.Module | None = None
    pool: Pool = "flatten"
    segments: bool = True
    tokens: Tokens | None = None


def survey(request: Request, batch: Batch) -> Survey:
    """Look at a model, in the state in which it will be measured, by running two samples of a batch."""
    model, layers, pool = request.model, request.layers, request.pool
    chosen, wants_input = choose(model, layers)
    heads = _head_candidates(model, request.classifier)
    calls, result = _trial(model, {**heads, **chosen}, batch)
    last = _classifier(calls, heads, result, named=request.classifier is not None)
    end = None if layers is not None or last is None else calls.index(last)  # logits are no features
    taps = [call for call in calls[:end] if call.name in chosen]
    size = _tried(result, batch)
    if layers is None:
        rows = _automatic(taps, pool, batch, size)
    else:
        rows = _named(taps, chosen, pool, model, batch, size)
    if layers is None and not rows and (last is None or {*chosen} - {call.name for call in calls}):
        raise ValueError(
            f"no layer with features to measure was found; name some with layers= ({why_silent(model)})"
        )
    if wants_input and last is None and layers is not None:
        raise ValueError("no linear classifier was found, so 'classifier.input' names nothing")
    shapes = {name: (*H.shape[1:],) for name, (_, H) in rows.items()}
    at: dict[str, Any] = {"classifier": None, "outputs": 0, "classifier_row": None}
    if last is not None:
        row = next((name for name in reversed(rows) if _feeds(rows[name], last)), None)
        if wants_input and (layers is not None or row != next(reversed(rows), "")):
            row = CLASSIFIER_INPUT
            shapes[row] = (*last.input.shape[1:],)  # type: ignore[union-attr]
        outputs = heads[last.name].out_features
        at = {"classifier": last.name, "outputs": outputs, "classifier_row": row}
    layout = Layout(
        shapes=shapes,
        paired=request.segments,
        **at,
        model=type(unwrapped(model)).__name__,
        pool=pool if isinstance(pool, str) else getattr(pool, "__name__", "callable"),
        chosen=_how(model, layers, chosen),
    )
    return Survey.of(layout, model, pool, request.tokens)


def _answers(logits: Float[Tensor, "B K"]) -> Int64[Tensor, " B"]:
    largest, answers = logits.max(1)
    return torch.where(largest.isfinite(), answers, -1)


def _head_candidates(model: nn.Module, classifier: str | nn.Module | None) -> dict[str, nn.Linear]:
    names = module_names(model)
    linear = {name: m for name, m in names.items() if isinstance(m, nn.Linear)}
    if classifier is None:
        return linear
    wanted = [n for n, m in linear.items() if n == classifier or m is classifier]
    if not wanted:
        given = classifier if isinstance(classifier, str) else type(classifier).__name__
        raise ValueError(f"classifier {given!r} is no linear layer of the model; it has {list(linear)}")
    return {wanted[0]: linear[wanted[0]]}


def _trial(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch
) -> tuple[list[ModuleCall], Any]:
    net = unwrapped(model)
    args, kwargs = cut((batch.args, batch.kwargs), min(FEW, len(batch)), len(batch))
    try:
        return trace(modules, lambda: net(*args, **kwargs))
    except Exception:  # a network may insist on its batch size
        if len(batch) <= FEW:
            raise
        return trace(modules, lambda: net(*batch.args, **batch.kwargs))


def _tried(result: Any, batch: Batch) -> int:
    """How many samples a trial ran: all of the batch where its inputs could not be cut."""
    out = first_tensor(result)
    whole = out is not None and out.ndim and len(out) == len(batch)
    return len(batch) if whole else min(FEW, len(batch))


def _classifier(
    calls: list[ModuleCall], heads: Mapping[str, nn.Linear], result: Any, *, named: bool
) -> ModuleCall | None:
    """The call of the linear layer that gave the model's answer; one that ran twice is none."""
    names = [call.name for call in calls]
    linear = [
        call
        for call in calls
        if call.name in heads and call.output is not None and call.output.ndim == 2
    ]
    once = [call for call in linear if names.count(call.name) == 1]
    if named:
        if not once:
            raise ValueError(
                f"classifier {next(iter(heads))!r} did not run once, on one vector a sample"
            )
        return once[-1]
    tensors = all_tensors(result)
    logits = {name: t for name, t in tensors.items() if name.rpartition(".")[2] == "logits"}
    found = [call for call in once if any(_gave(call, t) for t in (logits or tensors).values())]
    if len(found) > 1:
        warn(
            f"the model returns what {' and '.join(r.name for r in found)} gave: name one as classifier="
        )
    return found[0] if len(found) == 1 else None


def _gave(call: ModuleCall, answer: Tensor) -> bool:
    """Whether a returned tensor is this layer's output, cast or not, or the probabilities made of it."""
    out = call.output
    if out is None or out.numel() != answer.numel() or not answer.is_floating_point():
        return False
    if answer.data_ptr() == out.data_ptr():
        return call.version == writes(out)
    out = out.to(answer.device, torch.promote_types(answer.dtype, torch.float32))
    made = (out, out.log_softmax(1), out.softmax(1), out.sigmoid())
    return any(torch.allclose(answer.to(p), p.view_as(answer), rtol=1e-2, atol=1e-5) for p in made)


def _automatic(
    taps: list[ModuleCall], pool: Pool, batch: Batch, size: int
) -> dict[str, tuple[ModuleCall, Tensor]]:
    """Rows of the layers that can be measured: they ran once and gave numbers for each sample."""
    names = [call.name for call in taps]
    fit = [
        call
        for call in taps
        if names.count(call.name) == 1
        and call.output is not None
        and call.output.is_floating_point()
        and call.output.ndim > 1
        and len(call.output) == size
        and (batch.tokens is None or call.output.shape[1:2] == batch.tokens.shape[1:])
    ]
    return {
        call.name: (call, batch.rows(call.output, pool, size)) for call in fit if call.output is not None
    }


def _named(
    taps: list[ModuleCall],
    chosen: Mapping[str, nn.Module],
    pool: Pool,
    model: nn.Module,
    batch: Batch,
    size: int,
) -> dict[str, tuple[ModuleCall, Tensor]]:
    names = [call.name for call in taps]
    for name in chosen:
        if name not in names:
            raise ValueError(f"layer {name!r} never ran: {why_silent(model)}")
        if names.count(name) > 1:
            raise ValueError(ran_twice(name))
    rows = {}
    for call in taps:
        if call.output is None or not call.output.is_floating_point() or not call.output.ndim:
            got = "no tensor" if call.output is None else f"{call.output.dtype}"
            raise ValueError(
                f"layer {call.name!r} gave {got}, not floating-point numbers of each sample"
            )
        rows[call.name] = (call, batch.rows(call.output, pool, size))
    return rows


def _feeds(row: tuple[ModuleCall, Tensor], last: ModuleCall) -> bool:
    """Whether a row's features are what the classifier reads: the same memory, or the same pooling."""
    call, H = row
    x, H = last.input, H.reshape(len(H), -1)
    if x is None or call.output is None or x.shape != H.shape:
        return False
    if call.version == -1 or call.version != writes(call.output):  # written to since, so H says nothing
        return False
    if H.data_ptr() == call.output.data_ptr():
        return x.data_ptr() == H.data_ptr()
    return torch.equal(x, H)


def _how(model: nn.Module, layers: Layers, chosen: Mapping[str, nn.Module]) -> str:
    if layers is not None:
        return "named"
    if getattr(unwrapped(model), "taps", None) == tuple(chosen):
        return "the net's own tap points"
    known = all(type(module).__name__ in KNOWN_BLOCKS for module in chosen.values())
    return "residual blocks" if known else "direct children"
