"""A forward pass of few samples, and how each tensor in it was made.

torch's functions are followed by a `TorchFunctionMode`: a tensor is known by the call that made it and
by the tensors that went in. No tensor is kept but parameters, inputs, and what meets a weight.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pfc.layers import module_names
from pfc.taps import Pool, first_tensor, pooled, unwrapped, writes


@dataclass(frozen=True, eq=False)
class Product:
    """A product of features with a resting weight.

    Args:
        x: The features.
        out: What came out.
        weight: How the weight came about.
        turn: Makes of it a matrix K x D.
        module: Name of the innermost module that was running; empty in the network itself.
    """

    x: Tensor
    out: Tensor
    reads: "Made"
    weight: "Made"
    turn: Callable[[Tensor], Tensor]
    module: str

    @property
    def D(self) -> int:
        """Numbers that meet a row of the weight."""
        return self.turn(torch.empty(self.weight.shape, device="meta")).shape[1]

    @property
    def W(self) -> Tensor:
        """The weight K x D as it is now."""
        return self.turn(self.weight.value())


@dataclass(eq=False)
class Made:
    """How a tensor was made: a call of a function, or something that was there before.

    Args:
        time: When.
        shape: The tensor's.
        op: Name of the function; empty of what was there before.
        func: The function.
        args: What it was called with, tensors replaced by how they were made.
        kwargs: The same of named arguments.
        leaf: What was there before.
        rests: Whether no input of the network went in.
        version: How often the tensor had been written to by then.
        product: The product with a weight that it is, if it is one.
    """

    time: int
    shape: tuple[int, ...]
    op: str = ""
    func: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    leaf: Tensor | None = None
    rests: bool = False
    version: int = -1
    product: Product | None = None

    @property
    def parts(self) -> list["Made"]:
        """What went in."""
        return [*_found(Made, (self.args, self.kwargs))]

    def value(self) -> Any:
        """The tensor, made again from what it was made of."""
        if self.func is None:
            return self.leaf
        args, kwargs = _swapped(Made, Made.value, (self.args, self.kwargs))
        return self.func(*args, **kwargs)

    def ancestors(self, since: int = 0) -> Iterator["Made"]:
        """This one and what went into it at any distance, that was made since a moment."""
        waiting, seen = [self], {id(self)}
        while waiting:
            yield (each := waiting.pop())
            fresh = [part for part in each.parts if id(part) not in seen and part.time >= since]
            seen.update(map(id, fresh))
            waiting += fresh

    def comes_from(self, other: "Made") -> bool:
        """Whether the other tensor went into this one, at any distance, or is this one."""
        return any(each is other for each in self.ancestors(other.time))


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Args:
        name: The module's name.
        start: When it began.
        reads: How its first input was made.
        input: Its first input, of modules that are kept.
        end: When it ended.
        gives: How its first output was made.
        output: Its first output, of modules that are kept.
        version: How often the output had been written to when the module returned; -1 if unknown.
    """

    name: str
    start: int
    reads: Made | None
    input: Tensor | None
    end: int = -1
    gives: Made | None = None
    output: Tensor | None = None
    version: int = -1


@dataclass(frozen=True, eq=False)
class Trial:
    """What a forward pass did.

    Args:
        calls: Every call of a module, in the order of their ends.
        result: What the network returned.
        recorder: How its tensors were made.
        size: Samples that were run.
        input: The network's first input.
        reduce: Makes of an output a row for each sample, or token, as a `pool` says.
    """

    calls: list[ModuleCall]
    result: Any
    recorder: "Recorder"
    size: int
    input: Tensor | None
    reduce: Callable[[Tensor, Pool], Tensor] = pooled

    def of(self, name: str) -> list[ModuleCall]:
        """The calls of a module."""
        return [call for call in self.calls if call.name == name]


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    size: int,
    whole: int,
    kept: set[str],
) -> Trial:
    """Run `size` samples, or all where inputs could not be cut; keep what some modules read and gave."""
    net, recorder, calls = unwrapped(model), Recorder(model), list[ModuleCall]()
    running: list[ModuleCall] = []

    def before(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_tensor((args, kwargs))
            call = ModuleCall(name, recorder.tick(), recorder.made(x), x if name in kept else None)
            running.append(call)
            recorder.running.append(name)

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            call, out = running.pop(), first_tensor(output)
            recorder.running.pop()
            call.end, call.gives = recorder.tick(), recorder.made(out)
            call.output, call.version = (out if name in kept else None), writes(out)
            calls.append(call)

        return note

    with ExitStack() as stack:
        for name, module in module_names(model).items():
            if not isinstance(module, torch.jit.ScriptModule):
                first = module.register_forward_pre_hook(before(name), with_kwargs=True)
                last = module.register_forward_hook(after(name))
                stack.callback(first.remove)
                stack.callback(last.remove)
        stack.enter_context(recorder)
        result = net(*args, **kwargs)
    x = first_tensor((args, kwargs))
    return Trial(calls, result, recorder, _tried(x, first_tensor(result), size, whole), x)


def _tried(x: Tensor | None, out: Tensor | None, size: int, whole: int) -> int:
    """How many samples a trial ran: all where inputs could not be cut."""
    if out is None or not out.ndim:
        return size
    uncut = len(out) == whole or (x is not None and x.ndim and len(x) == len(out))
    return len(out) if uncut else size


class Recorder(TorchFunctionMode):
    """Follows torch's functions while it is entered.

    Args:
        model: The network, whose parameters, buffers and other tensors rest.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = [value for module in model.modules() for value in vars(module).values()]
        resting = [*model.parameters(), *model.buffers(), *_found(Tensor, tuple(own))]
        self.running: list[str] = []
        self._resting = {id(tensor) for tensor in resting}
        self._made: Any = WeakTensorKeyDictionary()
        self._time = 0

    def tick(self) -> int:
        """The next moment."""
        self._time += 1
        return self._time

    def made(self, tensor: Tensor | None) -> Made | None:
        """How a tensor was made."""
        if tensor is None:
            return None
        known: Made | None = self._made.get(tensor)
        if known is not None and known.version == writes(tensor):
            return known
        rests = id(tensor) in self._resting or isinstance(tensor, nn.Parameter)
        found = Made(self.tick(), (*tensor.shape,), leaf=tensor, rests=rests, version=writes(tensor))
        self._made[tensor] = found
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "__name__", "").partition(".")[0]
        went_in = _swapped(Tensor, self.made, (args, kwargs))  # before in-place operations change it
        out = func(*args, **kwargs)
        changed = args[0] if op == "__setitem__" else out
        for tensor in _found(Tensor, changed):
            self._note(tensor, op, func, went_in, (args, kwargs), alone=tensor is changed)
        return out

    def _note(
        self,
        out: Tensor,
        op: str,
        func: Any,
        went_in: tuple[Any, Any],
        given: tuple[Any, Any],
        *,
        alone: bool,
    ) -> None:
        known = self._made.get(out)
        if known is not None and known.version == writes(out) and (known.version >= 0 or op in ALIKE):
            return  # a function that gives back what it was given
        args, kwargs = went_in
        parts = [*_found(Made, went_in)]
        found = Made(
            *(self.tick(), (*out.shape,), op, func if alone else None, args, kwargs),
            rests=all(part.rests for part in parts),
            version=writes(out),
        )
        if alone and not found.rests:
            found.product = self._product(op, given, out)
        self._made[out] = found

    def _product(
        self, op: str, given: tuple[tuple[Any, ...], Mapping[str, Any]], out: Tensor
    ) -> Product | None:
        """The product with a resting weight that a call is, if it is one."""
        operands = _operands(op, [*given[0], *given[1].values()])
        if operands is None:
            return None
        x, W, turn = operands
        weight, reads = self.made(W), self.made(x)
        if weight is None or reads is None or not weight.rests or reads.rests:
            return None
        module = self.running[-1] if self.running else ""
        return Product(x, out, reads, weight, turn, module)


ALIKE = frozenset({  # what leaves numbers as they are, but for their type and arrangement
    *("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach"),
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "alias", "cpu", "cuda"),
})
Operands = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]


def _operands(op: str, values: list[Any]) -> Operands | None:
    """Features, weight, and what makes the weight K x D, of a product of two tensors."""
    if op == "addmm":
        op, values = "matmul", values[1:]
    if op == "einsum":
        return _of_einsum(values)
    if len(values) < 2 or not (isinstance(values[0], Tensor) and isinstance(values[1], Tensor)):
        return None
    x, W = values[:2]
    if op == "linear" and W.ndim == 2:
        return x, W, _as_it_is
    if op in {"matmul", "mm", "__matmul__"} and W.ndim == 2:
        return x, W, _transposed
    if op in {"matmul", "mv"} and W.ndim == 1:
        return x, W, _row
    if op.startswith("conv") and op[4:] in {"1d", "2d", "3d"} and W[0, 0].numel() == 1:
        groups = values[6] if len(values) > 6 else 1
        return (x, W, _flat) if groups == 1 else None
    return None


def _of_einsum(values: list[Any]) -> Operands | None:
    equation, *tensors = values
    tensors = [*tensors[0]] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    if len(tensors) != 2 or not isinstance(equation, str) or tensors[1].ndim != 2:
        return None
    terms, _, out = equation.replace(" ", "").partition("->")
    letters = terms.partition(",")[2]
    return (*tensors, _as_it_is if letters[0] in out else _transposed) if len(letters) == 2 else None


def _as_it_is(W: Tensor) -> Tensor:
    return W


def _transposed(W: Tensor) -> Tensor:
    return W.mT


def _row(W: Tensor) -> Tensor:
    return W[None]


def _flat(W: Tensor) -> Tensor:
    return W.flatten(1)


def _found(kind: type, item: Any) -> Iterator[Any]:
    """Everything of a type in tuples, lists and dicts."""
    if isinstance(item, kind):
        yield item
    elif isinstance(item, Mapping):
        yield from _found(kind, tuple(item.values()))
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _found(kind, part)


def _swapped(kind: type, change: Callable[[Any], Any], item: Any) -> Any:
    """The same with everything of a type in tuples, lists and dicts changed."""
    if isinstance(item, kind):
        return change(item)
    if isinstance(item, Mapping):
        return {key: _swapped(kind, change, value) for key, value in item.items()}
    if isinstance(item, list):
        return [_swapped(kind, change, part) for part in item]
    return tuple(_swapped(kind, change, part) for part in item) if isinstance(item, tuple) else item
