"""A forward pass of few samples, and how each tensor in it was made.

torch's functions are followed by a `TorchFunctionMode`: a tensor is known by the call that made it and
by the tensors that went in. No tensor is kept but parameters, inputs, and what meets a weight.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pfc.layers import module_names
from pfc.measuring.nested import changed, found
from pfc.taps import Pool, first_tensor, unwrapped, writes


@dataclass(frozen=True, eq=False)
class Product:
    """A product of features with a resting weight.

    Args:
        x: The features.
        out: What came out.
        reads: How the features were made.
        weight: How the weight K x D was made.
        module: Name of the innermost module that was running; empty in the network itself.
    """

    x: Tensor
    out: Tensor
    reads: "Made"
    weight: "Made"
    module: str


@dataclass(eq=False, repr=False)
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
    def first(self) -> "Made | None":
        """How the first argument was made, if it is a tensor."""
        return self.args[0] if self.args and isinstance(self.args[0], Made) else None

    @property
    def parts(self) -> list["Made"]:
        """What went in."""
        return [*found(Made, (self.args, self.kwargs))]

    def value(self) -> Any:
        """The tensor, made again from what it was made of."""
        if self.func is None:
            return self.leaf
        args, kwargs = changed(Made, Made.value, (self.args, self.kwargs))
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
    """

    name: str
    start: int
    reads: Made | None
    input: Tensor | None
    end: int = -1
    gives: Made | None = None
    output: Tensor | None = None

    @property
    def unwritten(self) -> bool:
        """Whether the output that was kept is still as the module gave it."""
        known = -1 if self.gives is None else self.gives.version
        return known >= 0 and known == writes(self.output)


@dataclass(frozen=True, eq=False)
class Trial:
    """What a forward pass did.

    Args:
        model: The network.
        calls: Every call of a module, in the order of their ends.
        result: What the network returned.
        recorder: How its tensors were made.
        size: Samples that were run.
        input: The network's first input.
        pool: How outputs of several tokens or pixels are reduced.
        reduce: Makes of an output a row for each sample, or token, as `pool` says.
    """

    model: nn.Module
    calls: list[ModuleCall]
    result: Any
    recorder: "Recorder"
    size: int
    input: Tensor | None
    pool: Pool = "flatten"
    reduce: Callable[[Tensor], Tensor] = lambda output: output

    def of(self, name: str) -> list[ModuleCall]:
        """The calls of a module."""
        return [call for call in self.calls if call.name == name]

    def once(self, name: str) -> ModuleCall | None:
        """The call of a module that ran once."""
        calls = self.of(name)
        return calls[0] if len(calls) == 1 else None


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    size: int,
    whole: int,
    kept: set[str],
) -> Trial:
    """Run `size` samples, or all where inputs could not be cut; keep what some modules read and gave."""
    recorder = Recorder(model)
    notes = _Notes(recorder, kept)
    with ExitStack() as stack:
        for name, module in module_names(model).items():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(notes.of(name, module))
        stack.enter_context(recorder)
        result = unwrapped(model)(*args, **kwargs)
    x = first_tensor((args, kwargs))
    tried = _tried(x, first_tensor(result), size, whole)
    return Trial(model, notes.calls, result, recorder, tried, x)


@dataclass(eq=False)
class _Notes:
    """The calls of modules in a forward pass, noted before and after each."""

    recorder: "Recorder"
    kept: set[str]
    calls: list[ModuleCall] = field(default_factory=list)
    _running: list[ModuleCall] = field(default_factory=list)

    @contextmanager
    def of(self, name: str, module: nn.Module) -> Iterator[None]:
        """Note the calls of a module while a block runs."""
        first = module.register_forward_pre_hook(
            lambda _module, args, kwargs: self._before(name, (args, kwargs)), with_kwargs=True
        )
        last = module.register_forward_hook(lambda _module, _args, output: self._after(name, output))
        try:
            yield
        finally:
            first.remove()
            last.remove()

    def _before(self, name: str, given: Any) -> None:
        x = first_tensor(given)
        kept = x if name in self.kept else None
        self._running.append(ModuleCall(name, self.recorder.tick(), self.recorder.made(x), kept))
        self.recorder.running.append(name)

    def _after(self, name: str, output: Any) -> None:
        call, out = self._running.pop(), first_tensor(output)
        self.recorder.running.pop()
        call.end, call.gives = self.recorder.tick(), self.recorder.made(out)
        call.output = out if name in self.kept else None
        self.calls.append(call)


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
        plain = vars(nn.Module()).keys()
        own = [vars(module)[name] for module in model.modules() for name in vars(module).keys() - plain]
        resting = [*model.parameters(), *model.buffers(), *found(Tensor, tuple(own))]
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
        made = Made(self.tick(), _shape(tensor), leaf=tensor, rests=rests, version=writes(tensor))
        self._made[tensor] = made
        return made

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "__name__", "").partition(".")[0]
        told = func(*args, **kwargs) if op in ASKS else None
        if told is not None and not isinstance(told, Tensor):
            return told
        arguments = changed(Tensor, self.made, (args, kwargs))  # before in-place operations change it
        out = func(*args, **kwargs) if told is None else told
        result = args[0] if op == "__setitem__" else out
        for tensor in found(Tensor, result):
            if self._is_new(tensor, op):
                made = self._noted(tensor, op, func if tensor is result else None, *arguments)
                if tensor is out and not made.rests:
                    made.product = self._product(op, [*args, *kwargs.values()], out)
        return out

    def _is_new(self, tensor: Tensor, op: str) -> bool:
        """Whether a function made a tensor, or wrote to it, and did not give back what it was given."""
        known = self._made.get(tensor)
        same = known is not None and known.version == writes(tensor)
        return not same or (known.version < 0 and op not in ALIKE)

    def _noted(self, tensor: Tensor, op: str, func: Any, args: Any, kwargs: Any) -> Made:
        """Note how a tensor was made: of nothing but what rests, it rests."""
        made = Made(self.tick(), _shape(tensor), op, func, args, kwargs, version=writes(tensor))
        made.rests = all(part.rests for part in made.parts)
        self._made[tensor] = made
        return made

    def _product(self, op: str, values: list[Any], out: Tensor) -> Product | None:
        """The product with a resting weight that a call is, if it is one."""
        operands = _operands(op, values)
        if operands is None:
            return None
        x, W, rows = operands
        reads, weight = self.made(x), self.made(W)
        if reads is None or weight is None or not weight.rests or reads.rests:
            return None
        matrix = Made(weight.time, (*rows(W).shape,), "", rows, (weight,), rests=True)
        return Product(x, out, reads, matrix, self.running[-1] if self.running else "")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else (*tensor.shape,)


ASKS = frozenset({"__get__", "is_inference"})  # what writes nothing; the hooks here ask most often
ALIKE = frozenset({  # what leaves numbers as they are, but for their type and arrangement
    *("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach"),
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "alias", "cpu", "cuda"),
})
Operands = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]


def _operands(op: str, values: list[Any]) -> Operands | None:
    """Features, weight, and what makes the weight K x D, of a product of two tensors."""
    if op == "einsum":
        return _of_einsum(*values)
    values = values[1:] if op == "addmm" else values
    x, W = [*values, None, None][:2]
    if not isinstance(x, Tensor) or not isinstance(W, Tensor):
        return None
    if op == "linear" and W.ndim == 2:
        return x, W, rows_of
    if op in {"matmul", "addmm", "mm", "mv", "__matmul__"} and W.ndim <= 2:
        return x, W, columns_of
    if op in {"conv1d", "conv2d", "conv3d"} and W[0].numel() == W.shape[1] == x.shape[1 - W.ndim]:
        return x, W, rows_of  # pixels one by one, channels in one group
    return None


def _of_einsum(equation: Any, *tensors: Any) -> Operands | None:
    tensors = (*found(Tensor, tensors),)  # which may be given as a list
    if len(tensors) != 2 or not isinstance(equation, str) or tensors[1].ndim != 2:
        return None
    terms, _, out = equation.replace(" ", "").partition("->")
    letters = terms.partition(",")[2]
    return (*tensors, rows_of if letters[0] in out else columns_of) if len(letters) == 2 else None


def rows_of(W: Tensor) -> Tensor:
    """The matrix K x D of a weight whose first axis are the classes."""
    return W.flatten(1)


def columns_of(W: Tensor) -> Tensor:
    """The matrix K x D of a weight whose last axis are the classes, or of one class."""
    return W.reshape(len(W), -1).mT
