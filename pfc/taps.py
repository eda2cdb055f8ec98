"""Choose layers by name, watch their outputs during a forward pass, leave nothing behind."""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

Pool = str | Callable[[Tensor], Tensor]
Precision = Literal["bfloat16", "float16"]
Layers = str | nn.Module | Sequence[str | nn.Module] | None

CLASSIFIER_INPUT = "classifier.input"

# Residual blocks of nets in wide use, by the name of their class: torchvision, timm, transformers.
KNOWN_BLOCKS = frozenset({
    *("BasicBlock", "Bottleneck", "CNBlock", "EncoderBlock", "InvertedResidual", "MBConv"),
    *("Block", "ConvNeXtBlock", "ResNetBasicLayer", "ResNetBottleNeckLayer", "ViTLayer"),
    *("ConvNextLayer", "ConvNextV2Layer", "BeitLayer", "DeiTLayer", "Dinov2Layer"),
    *("SwinTransformerBlock", "SwinLayer", "TransformerEncoderLayer"),
})


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := dict(model.named_children()).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """Every module below the unwrapped model by its name, without the wrappers' own parts."""
    names = {}
    for name, module in unwrapped(model).named_modules():
        clean = ".".join(part for part in name.split(".") if part != "_orig_mod")
        if clean:
            names[clean] = module  # of a compiled child the inner module: its hooks run eagerly
    return names


def choose(model: nn.Module, layers: Layers) -> tuple[dict[str, nn.Module], bool]:
    """Modules to be tapped, and whether the classifier's input is asked for.

    Args:
        model: The network, wrapped or not.
        layers: Names, globs such as `"blocks.*"`, or modules of the network; `None` chooses by
            itself: the net's own `taps`, else the residual blocks of known nets, else every direct
            child.

    Returns:
        Names and modules in the order of their definition; true if the classifier's input is wanted.

    Raises:
        ValueError: If a name, glob or module matches nothing, or the model is scripted.
    """
    names = module_names(model)
    if isinstance(unwrapped(model), torch.jit.ScriptModule):
        raise ValueError("the model is a ScriptModule, which takes no hooks: measure the original model")
    if layers is None:
        return _by_default(unwrapped(model), names), True
    wanted = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    chosen: set[str] = set()
    for layer in wanted:
        if not isinstance(layer, str) or layer != CLASSIFIER_INPUT:
            chosen.update(_matches(layer, names))
    if not wanted:
        raise ValueError("layers is empty; name at least one layer, or leave it out")
    return {n: m for n, m in names.items() if n in chosen}, CLASSIFIER_INPUT in wanted


def _matches(layer: str | nn.Module, names: Mapping[str, nn.Module]) -> list[str]:
    if isinstance(layer, nn.Module):
        inner = unwrapped(layer)
        found = [name for name, module in names.items() if module is inner]
        if not found:
            raise ValueError(f"module {type(layer).__name__} is not a part of the model")
        return found
    if layer in names:
        return [layer]
    found = [name for name in names if fnmatchcase(name, layer) and _same_depth(name, layer)]
    if not found:
        some = list(names)[:40]
        more = f" and {len(names) - 40} more" if len(names) > 40 else ""
        raise ValueError(f"no layer matches {layer!r}; the model has {', '.join(some)}{more}")
    return found


def _same_depth(name: str, glob: str) -> bool:
    """A star stands for one part of a name, as in a path: `blocks.*` is not `blocks.0.f`."""
    return "**" in glob or name.count(".") == glob.count(".")


def _by_default(model: nn.Module, names: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    own = getattr(model, "taps", None)
    if isinstance(own, tuple) and own and all(name in names for name in own):
        return {name: names[name] for name in own}
    blocks = {n: m for n, m in names.items() if type(m).__name__ in KNOWN_BLOCKS}
    outer = {n: m for n, m in blocks.items() if not any(n.startswith(f"{b}.") for b in blocks)}
    if outer:
        return outer
    children = {n: m for n, m in names.items() if "." not in n}
    while len(children) == 1:
        (prefix,) = children
        inner = {n: m for n, m in names.items() if n.rpartition(".")[0] == prefix}
        if not inner:
            break
        children = inner
    if not children:
        raise ValueError(f"the model {type(model).__name__} has no modules to tap")
    return children


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of a module's output: itself, or the first in a tuple, list or dict."""
    if isinstance(output, Tensor):
        return output
    return next(iter(all_tensors(output).values()), None)


def all_tensors(output: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of an output by its place: keys of dicts and fields, numbers in tuples and lists."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Tensor):
        return {name: output}
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, tuple | list):
        parts = enumerate(output)
    elif is_dataclass(output):
        parts = vars(output).items()
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= all_tensors(part, f"{name}.{key}" if name else str(key))
    return found


def pooled(H: Tensor, pool: Pool, mask: Tensor | None = None) -> Tensor:
    """One row of numbers a sample, in the shape that decides which layers form a segment.

    Args:
        H: A layer's output, samples first.
        pool: `"flatten"` keeps all numbers; `"mean"` averages over tokens (B, T, D) or pixels
            (B, C, H, W); `"cls"` takes the first token of (B, T, D), `"last"` the last one; a callable
            does as it likes.
        mask: True for each token (B, T) that is no padding; all of them if `None`.

    Returns:
        The pooled output, samples first.

    Raises:
        ValueError: If `pool` is unknown or does not fit the output's shape.
    """
    if callable(pool):
        rows = pool(H)
        if not isinstance(rows, Tensor) or not rows.ndim or len(rows) != len(H):
            got = f"shape {(*rows.shape,)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"pool must give one row a sample, got {got} for shape {(*H.shape,)}")
        return rows
    if pool == "flatten" or (H.ndim <= 2 and pool in {"mean", "cls", "last"}):
        return H
    if pool == "mean" and H.ndim > 3:
        return H.mean(tuple(range(2, H.ndim)), dtype=torch.promote_types(H.dtype, torch.float32))
    if pool not in {"mean", "cls", "last"}:
        raise ValueError(
            f"pool must be 'flatten', 'mean', 'cls', 'last', 'tokens' or a callable, got {pool!r}"
        )
    if H.ndim != 3:
        raise ValueError(f"pool={pool!r} needs tokens (B, T, D), got {(*H.shape,)}")
    return _of_tokens(H, pool, _tokens_of(H, mask))


def _of_tokens(H: Tensor, pool: str, mask: Tensor) -> Tensor:
    """The mean of the tokens that are no padding, the first or the last of them."""
    if pool == "mean":
        wide = torch.promote_types(H.dtype, torch.float32)
        sums = H.masked_fill(~mask[..., None], 0).sum(1, dtype=wide)
        return sums / mask.sum(1, keepdim=True)
    place = mask.int().argmax(1) if pool == "cls" else H.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return H[torch.arange(len(H), device=H.device), place]


def _tokens_of(H: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens of an output are no padding."""
    if mask is None:
        return H.new_ones(H.shape[:2], dtype=torch.bool)
    if mask.shape != H.shape[:2]:
        raise ValueError(
            f"the attention_mask is of shape {(*mask.shape,)}, which is not that of the tokens "
            f"(B, T, D) {(*H.shape,)}; name layers that keep the tokens, or take a callable as pool="
        )
    return mask.to(H.device)


class Watch:
    """Hooks on chosen modules, each of which must run once in a forward pass.

    Args:
        modules: What is watched, by name.
        see: Is given a module's name and the first tensor of its output, inside the hook: a tensor
            kept for later may be overwritten by in-place operations.
        edge: A module whose input and output are handed over besides, or `None`.
        see_edge: Is given the first tensor of that input, and after the module ran of its output.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        see: Callable[[str, Tensor], None],
        edge: nn.Module | None = None,
        see_edge: tuple[Callable[[Tensor], None], Callable[[Tensor], None]] | None = None,
    ) -> None:
        self.modules = modules
        self.fired: list[str] = []
        self._see, self._edge, self._see_edge = see, edge, see_edge
        self._handles: list[Any] = []

    def __enter__(self) -> "Watch":
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        if self._edge is not None and self._see_edge is not None:
            before, after = map(_edge_hook, self._see_edge)
            self._handles.append(self._edge.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(self._edge.register_forward_hook(after))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if name in self.fired:
                raise ValueError(ran_twice(name))
            self.fired.append(name)
            tensor = first_tensor(output)
            if tensor is None or not tensor.is_floating_point():
                got = type(output).__name__ if tensor is None else str(tensor.dtype)
                raise ValueError(f"layer {name!r} gave no tensor of floating-point numbers but {got}")
            self._see(name, tensor.detach())

        return hook

    def finish(self, batch: int) -> None:
        """Check after a forward pass that every module ran.

        Raises:
            ValueError: If one did not.
        """
        missing = [name for name in self.modules if name not in self.fired]
        if missing:
            raise ValueError(f"layer {missing[0]!r} did not run on batch {batch}; tap layers that do")


def _edge_hook(see: Callable[[Tensor], None]) -> Callable[..., None]:
    """Serves before a module, with (module, args, kwargs), and after it, with (module, args, output)."""

    def hook(_module: nn.Module, args: Any, more: Any) -> None:
        tensor = first_tensor((args, more) if isinstance(more, dict) else more)
        if tensor is not None:
            see(tensor.detach())

    return hook


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module: its name, the first tensors of its input and output, and their versions.

    Args:
        name: The module's name.
        input: First tensor of its input.
        output: First tensor of its output.
        version: How often the output had been written to when the module returned; -1 if unknown.
    """

    name: str
    input: Tensor | None
    output: Tensor | None
    version: int


def trace(modules: Mapping[str, nn.Module], forward: Callable[[], Any]) -> tuple[list[ModuleCall], Any]:
    """Every run of the modules in one forward pass, in the order of their ends, and the result."""
    runs: list[ModuleCall] = []

    def hook(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            out = first_tensor(output)
            runs.append(ModuleCall(name, first_tensor((args, kwargs)), out, writes(out)))

        return note

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        return runs, forward()


def writes(tensor: Tensor | None) -> int:
    """How often a tensor was written to; -1 where nobody counts (none, or made in inference mode)."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def ran_twice(name: str) -> str:
    """What to do about a module that ran more than once in a forward pass."""
    return (
        f"layer {name!r} ran twice in one forward pass, so its output is not one layer's; "
        "tap the modules around it"
    )


def why_silent(model: nn.Module) -> str:
    """What to do about a module of this model that never ran."""
    if isinstance(unwrapped(model), torch.fx.GraphModule):
        return (
            "the model is an extracted torch.fx graph, which calls only the innermost modules: "
            "measure the original model, or tap a module that the graph calls"
        )
    return "tap a layer that the forward pass uses"


def eager() -> AbstractContextManager[object]:
    """Compiled modules run as they were written, so that hooks see them."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def undisturbed(
    model: nn.Module, device: torch.device, precision: Precision | None = None
) -> Iterator[None]:
    """Evaluation mode on `device`, no gradients, eager; all is put back at the end.

    Args:
        model: The network without wrappers.
        device: Where it will run.
        precision: Type of the autocast in which it will run; in none if `None`, whatever is around.

    Yields:
        Nothing.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in {None, *get_args(Precision)}:
        raise ValueError(f"precision must be None, 'bfloat16' or 'float16', got {precision!r}")
    dtype = None if precision is None else getattr(torch, precision)
    modes = [(module, module.training) for module in model.modules()]
    home = next((t.device for t in (*model.parameters(), *model.buffers())), device)
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(_random_state(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, dtype, enabled=dtype is not None))
        stack.enter_context(eager())
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            if device != home:  # a model spread over devices stays as it is
                model.to(device)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, training in modes:
                module.training = training
            if device != home:
                model.to(home)


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    plain, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)
