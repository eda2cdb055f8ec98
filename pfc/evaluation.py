"""Run a network in evaluation mode and leave it as it was."""

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfc.foreign import attribute, told

Precision = Literal["bfloat16", "float16"]

CHECKPOINTS = "None of the inputs have requires_grad=True"  # which checkpointed layers warn of


def eager() -> AbstractContextManager[object]:
    """Compiled modules run as they were written, so that hooks see them."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def operations_of(run: Callable[[], object]) -> int:
    """Operations of what runs, as torch counts them: products of matrices, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


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
        ValueError: If there is no such precision, or the model takes no evaluation mode.
    """
    if precision not in {None, *get_args(Precision)}:
        raise ValueError(f"precision must be None, 'bfloat16' or 'float16', got {precision!r}")
    dtype = None if precision is None else getattr(torch, precision)
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(_random_state(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, dtype, enabled=dtype is not None))
        stack.enter_context(eager())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", CHECKPOINTS)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(_sharded_again(model))
        stack.enter_context(_tensors_kept(model))
        stack.enter_context(_moved(model, device))
        stack.enter_context(_evaluating(model))
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the model's own `train`, which may do more than that, puts the modes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        _evaluate(model)
        yield
    finally:
        for module, training in modes:  # parents first: their `train` sets the modes of all below
            if module.training != training:
                with told(f"train({training}) of {type(module).__name__} failed"):
                    module.train(training)
        for module, training in modes:
            module.training = training


def _evaluate(model: nn.Module) -> None:
    with told(f"eval() of {type(model).__name__} failed"):
        try:
            model.eval()
        except NotImplementedError as error:  # what torch.export makes
            raise ValueError(
                f"the model {type(model).__name__} has no evaluation mode ({error}): if torch.export "
                "made it, measure the original model"
            ) from error


@contextmanager
def _moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device; one spread over devices, or whose weights rest elsewhere, stays."""
    tensors = (*model.parameters(), *model.buffers())
    home = next((t.device for t in tensors), device)
    if device == home or any(t.is_meta for t in tensors):
        yield
        return
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds a part of the module's weights, as `fully_shard` makes it."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


@contextmanager
def _sharded_again(model: nn.Module) -> Iterator[None]:
    """What `fully_shard` made of modules is made again: a forward pass alone leaves the root whole."""
    parts = [module for module in model.modules() if is_sharded(module)] if is_sharded(model) else []
    try:
        yield
    finally:
        for reshard in filter(None, (attribute(module, "reshard") for module in parts)):
            reshard()


@contextmanager
def _tensors_kept(model: nn.Module) -> Iterator[None]:
    """Buffers, and parameters that a change of mode or a forward pass may write to, are put back."""
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    buffers = [(module, dict(module._buffers)) for module in modules]
    tensors = [*model.buffers()]
    tensors += [p for m in modules if _writes_its_weights(m) for p in _own_and_childrens(m)]
    distinct = {id(t): t for t in tensors if not (is_lazy(t) or t.is_meta)}.values()
    kept = [(t, t.detach().clone()) for t in distinct]
    try:
        yield
    finally:
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        for tensor, before in kept:
            if not _same_bits(tensor, before):
                tensor.data.copy_(before)


def _writes_its_weights(module: nn.Module) -> bool:
    """Whether its mode or its forward pass may change its weights, such as of merged adapters."""
    own_mode = type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
    return own_mode or attribute(module, "max_norm") is not None


def _own_and_childrens(module: nn.Module) -> Iterator[Tensor]:
    """Weights that a module's own `train` may write to: not a whole network's, which may be large."""
    for part in (module, *module.children()):
        yield from part.parameters(recurse=False)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # of a sharded tensor the own part: `torch.equal` of the whole waits for processes outside its mesh
    a, b = (x.to_local() if hasattr(x, "to_local") else x for x in (a.detach(), b))
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    plain, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)
