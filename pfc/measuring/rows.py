"""Which layers become rows: those that are named, or those that a look at the model finds fit."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pfc.layers import Choice, Layers, by_name, choose, defaults
from pfc.measuring.head import Head
from pfc.measuring.trial import ModuleCall, Trial
from pfc.schema import some
from pfc.taps import NoTokensError, ran_twice, unwrapped, why_silent

SHOWN = 3  # layers that are named where some are left out; ours


@dataclass(frozen=True, eq=False)
class Row:
    """A layer that is measured.

    Args:
        call: Its call in the trial.
        H: What it gave, a vector a sample.
        sequence_first: Whether it gives tokens first, samples second.
    """

    call: ModuleCall
    H: Tensor
    sequence_first: bool

    @classmethod
    def of(cls, call: ModuleCall, output: Tensor, trial: Trial) -> "Row":
        """The row of a call that gave this output."""
        turned = output.ndim == 3 and len(output) != trial.size and output.shape[1] == trial.size
        return cls(call, trial.reduce(output.transpose(0, 1) if turned else output), turned)

    @property
    def channels_last(self) -> bool:
        """Whether the channels of maps lie last, where rows in the order of their shape are copies."""
        H = self.H
        return H.ndim > 3 and not H.is_contiguous() and H.movedim(1, -1).is_contiguous()

    def feeds(self, head: Head) -> bool:
        """Whether these features are what the classifier reads: the same memory, or the same numbers."""
        call, H = self.call, self.H.reshape(len(self.H), -1)
        if not head.reads:
            return False
        if head.x is None:  # a given weight is for whatever row it fits
            W = head.weight()
            return W is not None and H.shape[1] == W.shape[1]
        x = head.x.reshape(len(head.x), -1)
        if x.shape[1] != H.shape[1]:
            return False
        if any(made is call.gives for made in head.sources):
            return True
        if call.output is None or not call.unwritten or len(x) != len(H):
            return False
        same = x.data_ptr() == H.data_ptr()
        return same if H.data_ptr() == call.output.data_ptr() else x.equal(H)


def kept_names(model: nn.Module, layers: Layers) -> set[str]:
    """Layers of which a trial must keep what they read and gave."""
    if layers is not None or isinstance(unwrapped(model), torch.jit.ScriptModule):
        return {*choose(model, layers)[0]}
    return {name for choice in defaults(model) for name in choice.modules}


def found_rows(trial: Trial, layers: Layers, head: Head | None) -> tuple[dict[str, Row], str]:
    """The rows in the order of the forward pass, and how they were chosen, in words."""
    if layers is not None:
        return _named(trial, layers, head), "named"
    choice = _fitting(trial, head)
    rows = _automatic(trial, choice.modules, head)
    if not rows and (head is None or {*choice.modules} - {call.name for call in trial.calls}):
        why = why_silent(trial.model)
        raise ValueError(f"no layer with features to measure was found; name some with layers= ({why})")
    return _embedding(trial, choice) | rows, choice.how + _left_out(trial, choice, rows, head)


def _named(trial: Trial, layers: Layers, head: Head | None) -> dict[str, Row]:
    chosen, outright = choose(trial.model, layers)[0], by_name(trial.model, layers)
    for name in chosen:
        if not (calls := trial.of(name)):
            raise ValueError(f"layer {name!r} never ran: {why_silent(trial.model)}")
        if len(calls) > 1:
            raise ValueError(ran_twice(name))
    calls = [call for call in trial.calls if call.name in chosen]
    answers = {call.name for call in calls if _is_answer(call, head)}
    if wrong := next((call.name for call in calls if call.name in answers & outright), None):
        raise ValueError(
            f"layer {wrong!r} gives the logits, or what follows from them: they are no features; name "
            "layers before it"
        )
    return {c.name: Row.of(c, _features(c), trial) for c in calls if c.name not in answers}


def _is_answer(call: ModuleCall, head: Head | None) -> bool:
    made = None if head is None else head.made
    return made is not None and call.gives is not None and call.gives.comes_from(made)


def _features(call: ModuleCall) -> Tensor:
    """What a layer gave, if it is features."""
    if call.output is None or not call.output.is_floating_point() or not call.output.ndim:
        got = "no tensor" if call.output is None else f"{call.output.dtype}"
        raise ValueError(f"layer {call.name!r} gave {got}, not floating-point numbers of each sample")
    return call.output


def _automatic(trial: Trial, modules: Iterable[str], head: Head | None) -> dict[str, Row]:
    """Rows of the layers that ran once, before the logits, and gave numbers for each sample."""
    found = {}
    for call in trial.calls:
        if call.name in modules and _before(call, head) and _fits(call, trial):
            with suppress(NoTokensError):
                found[call.name] = Row.of(call, _features(call), trial)
    return found


def _before(call: ModuleCall, head: Head | None) -> bool:
    return head is None or call.end < head.start


def _fits(call: ModuleCall, trial: Trial) -> bool:
    out = call.output
    if out is None or not out.is_floating_point() or out.ndim < 2 or trial.once(call.name) is None:
        return False
    return len(out) == trial.size or (out.ndim == 3 and out.shape[1] == trial.size)


def _fitting(trial: Trial, head: Head | None) -> Choice:
    """The first choice that fits: lists whose modules feed each other, or a level of children."""
    choices = defaults(trial.model)
    chains = [choice for choice in choices if choice.chain and _is_chain(trial, choice.modules)]
    if chains:
        how = "modules of " + " and ".join(choice.chain for choice in chains)
        return Choice(how, {n: m for choice in chains for n, m in choice.modules.items()})
    levels = [choice for choice in choices if not choice.chain]
    return next((level for level in levels if not _is_wrapper(trial, level, head)), levels[-1])


def _is_chain(trial: Trial, modules: Mapping[str, nn.Module]) -> bool:
    """Whether each module ran once and read what the one before gave."""
    calls = [trial.of(name) for name in modules]
    return all(len(each) == 1 and _fits(each[0], trial) for each in calls) and all(
        a.gives is b.reads for (a,), (b,) in pairwise(calls)
    )


def _is_wrapper(trial: Trial, level: Choice, head: Head | None) -> bool:
    """Whether all that runs beside one module and before the logits has no parameters."""
    beside = [
        module
        for name, module in level.modules.items()
        if name != level.wraps and (calls := trial.of(name)) and _before(calls[0], head)
    ]
    return level.wraps is not None and not any([*module.parameters()] for module in beside)


def _embedding(trial: Trial, choice: Choice) -> dict[str, Row]:
    """The start of a residual stream: what makes tokens of ids or pixels; the first is constant."""
    x = trial.input
    raw = x is not None and (not x.is_floating_point() or x.ndim == 4)
    first = next((call for call in trial.calls if call.name in choice.modules), None)
    if (
        not raw
        or first is None
        or first.input is None
        or trial.pool == "cls"
        or choice.wraps is not None
    ):
        return {}
    gave = [c for c in trial.calls if c.gives is first.reads and c.end < first.start]
    outermost = min(gave, key=lambda call: call.start, default=None)
    tokens = first.input.ndim == 3 and first.input.is_floating_point()
    if not tokens or outermost is None or outermost.name in choice.modules:
        return {}
    return (
        {}
        if trial.once(outermost.name) is None
        else {outermost.name: Row.of(outermost, first.input, trial)}
    )


def _left_out(trial: Trial, choice: Choice, rows: Mapping[str, Row], head: Head | None) -> str:
    """Which of the layers that were looked at give no row, and why."""
    reasons = {
        name: reason
        for name in choice.modules
        if name not in rows and (reason := _reason(trial.of(name), head))
    }
    if not reasons:
        return ""
    shown = some((f"{name} {reason}" for name, reason in reasons.items()), SHOWN)
    return f" ({len(rows)} of {len(rows) + len(reasons)}: {shown})"


def _reason(calls: list[ModuleCall], head: Head | None) -> str:
    """Why a layer gives no row; empty if it gives the logits or comes after them."""
    if not calls:
        return "is not seen"
    if not _before(calls[0], head):
        return ""
    return "ran twice" if len(calls) > 1 else "gave no vector a sample"
