"""A first look at a model: which layers run, in what order and shape, and where the classifier is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.measuring.loader import EMPTY, Batch, cut
from pfc.processes import Processes
from pfc.taps import (
    CLASSIFIER_INPUT,
    KNOWN_BLOCKS,
    Layers,
    Pool,
    Run,
    Watch,
    all_tensors,
    choose,
    first_tensor,
    module_names,
    pooled,
    ran_twice,
    trace,
    unwrapped,
    why_silent,
    writes,
)
from pfc.warning import warn

See = Callable[[str, Float[Tensor, "B D"]], None]

FEW = 2  # samples of the first look; ours: one alone may meet a network's squeeze()


@dataclass(frozen=True, eq=False)
class Survey:
    """What will be measured of a model; made from a forward pass of a batch's first two samples.

    Args:
        model: The network without wrappers.
        modules: The tapped modules by name, in the order of the forward pass.
        shapes: Shape of a sample at each row, also of the classifier's input where that is one.
        pool: What becomes of a layer's output.
        classifier: Name of the last linear layer, or `None`.
        head: That layer.
        at_head: The row that is the classifier's input, or `None`.
        chosen: How the layers were chosen, in words.
    """

    model: nn.Module
    modules: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    pool: Pool
    classifier: str | None
    head: nn.Linear | None
    at_head: str | None
    chosen: str

    @property
    def segments(self) -> list[list[str]]:
        """Runs of consecutive layers of one shape; the row of the classifier's input stands aside."""
        names = [name for name in self.shapes if name != CLASSIFIER_INPUT]
        return [list(run) for _, run in groupby(names, key=self.shapes.__getitem__)]

    def forward(self, batch: Batch, see: See) -> Int64[Tensor, " B"] | None:
        """Run a batch, handing the rows of every layer to `see`, inside its hook.

        Args:
            batch: What the model is called with.
            see: Is given a layer's name and its features, one sample a row.

        Returns:
            The classifier's answers, -1 where its outputs have no largest number, or `None` if there
            is no classifier.

        Raises:
            ValueError: If a layer does not run once, or its shape is not the one surveyed.
        """
        with self.watching(batch.number, len(batch), batch.labels.y.device, see) as answers:
            self.model(*batch.args, **batch.kwargs)
        return answers[-1] if answers else None

    @contextmanager
    def watching(
        self, number: int, size: int, place: torch.device, see: See
    ) -> Iterator[list[Int64[Tensor, " B"]]]:
        """As `forward`, for a block that runs the model once on a batch of that number and size.

        Args:
            number: For messages.
            size: Samples.
            place: Where the rows are wanted.
            see: As for `forward`.

        Yields:
            Where the answers will be.
        """
        answers: list[Tensor] = []

        def at_layer(name: str, output: Tensor) -> None:
            see(name, self._rows(name, output, number, size).to(place))

        def at_input(x: Tensor) -> None:
            if CLASSIFIER_INPUT in self.shapes:
                at_layer(CLASSIFIER_INPUT, x)

        edge = (at_input, lambda logits: answers.append(_answers(logits).to(place)))
        with Watch(self.modules, at_layer, self.head, edge) as watch:
            yield answers
            watch.finish(number)

    def _rows(self, name: str, output: Tensor, number: int, size: int) -> Float[Tensor, "B D"]:
        H = output if name == CLASSIFIER_INPUT else pooled(output, self.pool)
        if H.shape != (size, *self.shapes[name]):
            raise ValueError(
                f"layer {name!r} gave shape {(*H.shape,)} on batch {number} of {size} "
                f"samples; a sample's shape was {self.shapes[name]} before"
            )
        return H.reshape(size, -1)


def survey(
    model: nn.Module, batch: Batch, layers: Layers, classifier: str | nn.Module | None, pool: Pool
) -> Survey:
    """Look at a model by running the first two samples of a batch.

    Args:
        model: The network, wrapped or not, in the state in which it will be measured.
        batch: Any batch.
        layers: As for `pfc.measure`.
        classifier: As for `pfc.measure`.
        pool: As for `pfc.measure`.

    Returns:
        What will be measured.

    Raises:
        ValueError: If a layer is unknown, never runs, runs twice, or has no features to measure.
    """
    chosen, wants_input = choose(model, layers)
    head_names = _head_candidates(model, classifier)
    runs, result = _trial(model, {**head_names, **chosen}, batch)
    last = _classifier(runs, head_names, result, named=classifier is not None)
    end = None if layers is not None or last is None else runs.index(last)  # logits are no features
    taps = [run for run in runs[:end] if run.name in chosen]
    if layers is None:
        rows = _automatic(taps, pool, _tried(result, batch))
    else:
        rows = _named(taps, chosen, pool, model)
    if layers is None and not rows and (last is None or {*chosen} - {run.name for run in runs}):
        raise ValueError(
            f"no layer with features to measure was found; name some with layers= ({why_silent(model)})"
        )
    at_head = None if last is None else next((n for n in reversed(rows) if _feeds(rows[n], last)), None)
    shapes = {name: (*H.shape[1:],) for name, (_, H) in rows.items()}
    if wants_input and last is None and layers is not None:
        raise ValueError("no linear classifier was found, so 'classifier.input' names nothing")
    if wants_input and last is not None and (layers is not None or at_head != next(reversed(rows), "")):
        shapes[CLASSIFIER_INPUT] = (*last.input.shape[1:],)  # type: ignore[union-attr]
        at_head = CLASSIFIER_INPUT
    head = None if last is None else head_names[last.name]
    return Survey(
        model=unwrapped(model),
        modules={name: chosen[name] for name in rows},
        shapes=shapes,
        pool=pool,
        classifier=None if last is None else last.name,
        head=head,
        at_head=at_head,
        chosen=_how(model, layers, chosen),
    )


def agreed(found: Survey | None, model: nn.Module, pool: Pool, ranks: Processes) -> Survey:
    """What all processes measure, also those that have no batch to look at.

    Args:
        found: What this process found, or `None`.
        model: Its network.
        pool: As for `pfc.measure`.
        ranks: The processes.

    Returns:
        The survey of this process.

    Raises:
        ValueError: If none has a batch, or two measure different things.
    """
    told = ranks.meet("layers", found and _told(found))
    there = [rank for rank, each in enumerate(told) if each is not None]
    if not there:
        raise ValueError(EMPTY)
    for rank in there:
        if told[rank] != told[there[0]]:
            raise ValueError(
                f"process {rank} measures {_words(told[rank])}, process {there[0]} "
                f"{_words(told[there[0]])}: every process needs the same network and layers"
            )
    return found or _restored(told[there[0]], unwrapped(model), pool)


def _told(found: Survey) -> dict[str, Any]:
    parts = {name: getattr(found, name) for name in ("classifier", "at_head", "chosen")}
    return {"shapes": {name: list(shape) for name, shape in found.shapes.items()}, **parts}


def _words(told: dict[str, Any]) -> str:
    layers = ", ".join(f"{name} {tuple(shape)}" for name, shape in told["shapes"].items())
    return f"{layers} (classifier {told['classifier']})"


def _restored(told: dict[str, Any], model: nn.Module, pool: Pool) -> Survey:
    names = module_names(model)
    head = None if told["classifier"] is None else names[told["classifier"]]
    return Survey(
        model=model,
        modules={name: names[name] for name in told["shapes"] if name in names},
        shapes={name: tuple(shape) for name, shape in told["shapes"].items()},
        pool=pool,
        classifier=told["classifier"],
        head=head if isinstance(head, nn.Linear) else None,
        at_head=told["at_head"],
        chosen=told["chosen"],
    )


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


def _trial(model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch) -> tuple[list[Run], Any]:
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
    runs: list[Run], heads: Mapping[str, nn.Linear], result: Any, *, named: bool
) -> Run | None:
    """The run of the linear layer that gave the model's answer; one that ran twice is none."""
    names = [run.name for run in runs]
    linear = [
        run for run in runs if run.name in heads and run.output is not None and run.output.ndim == 2
    ]
    once = [run for run in linear if names.count(run.name) == 1]
    if named:
        if not once:
            raise ValueError(
                f"classifier {next(iter(heads))!r} did not run once, on one vector a sample"
            )
        return once[-1]
    tensors = all_tensors(result)
    logits = {name: t for name, t in tensors.items() if name.rpartition(".")[2] == "logits"}
    found = [run for run in once if any(_gave(run, t) for t in (logits or tensors).values())]
    if len(found) > 1:
        warn(
            f"the model returns what {' and '.join(r.name for r in found)} gave: name one as classifier="
        )
    return found[0] if len(found) == 1 else None


def _gave(run: Run, answer: Tensor) -> bool:
    """Whether a returned tensor is this layer's output, cast or not, or the probabilities made of it."""
    out = run.output
    if out is None or out.numel() != answer.numel() or not answer.is_floating_point():
        return False
    if answer.data_ptr() == out.data_ptr():
        return run.version == writes(out)
    out = out.to(answer.device, torch.promote_types(answer.dtype, torch.float32))
    made = (out, out.log_softmax(1), out.softmax(1), out.sigmoid())
    return any(torch.allclose(answer.to(p), p.view_as(answer), rtol=1e-2, atol=1e-5) for p in made)


def _automatic(taps: list[Run], pool: Pool, size: int) -> dict[str, tuple[Run, Tensor]]:
    """Rows of the layers that can be measured: they ran once and gave numbers for each sample."""
    names = [run.name for run in taps]
    fit = [
        run
        for run in taps
        if names.count(run.name) == 1
        and run.output is not None
        and run.output.is_floating_point()
        and run.output.ndim > 1
        and len(run.output) == size
    ]
    return {run.name: (run, pooled(run.output, pool)) for run in fit if run.output is not None}


def _named(
    taps: list[Run], chosen: Mapping[str, nn.Module], pool: Pool, model: nn.Module
) -> dict[str, tuple[Run, Tensor]]:
    names = [run.name for run in taps]
    for name in chosen:
        if name not in names:
            raise ValueError(f"layer {name!r} never ran: {why_silent(model)}")
        if names.count(name) > 1:
            raise ValueError(ran_twice(name))
    rows = {}
    for run in taps:
        if run.output is None or not run.output.is_floating_point() or not run.output.ndim:
            got = "no tensor" if run.output is None else f"{run.output.dtype}"
            raise ValueError(f"layer {run.name!r} gave {got}, not floating-point numbers of each sample")
        rows[run.name] = (run, pooled(run.output, pool))
    return rows


def _feeds(row: tuple[Run, Tensor], last: Run) -> bool:
    """Whether a row's features are what the classifier reads: the same memory, or the same pooling."""
    run, H = row
    x, H = last.input, H.reshape(len(H), -1)
    if x is None or run.output is None or x.shape != H.shape:
        return False
    if run.version == -1 or run.version != writes(run.output):  # written to since, so H says nothing
        return False
    if H.data_ptr() == run.output.data_ptr():
        return x.data_ptr() == H.data_ptr()
    return torch.equal(x, H)


def _how(model: nn.Module, layers: Layers, chosen: Mapping[str, nn.Module]) -> str:
    if layers is not None:
        return "named"
    if getattr(unwrapped(model), "taps", None) == tuple(chosen):
        return "the net's own tap points"
    known = all(type(module).__name__ in KNOWN_BLOCKS for module in chosen.values())
    return "residual blocks" if known else "direct children"
