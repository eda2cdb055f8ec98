"""How a model is called with a batch, and what is said when it fails."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from pfc.device import device_of
from pfc.foreign import in_words, is_ours, of_worker
from pfc.layers import module_names
from pfc.measuring.loader import Batch

Form = Literal["given", "spread", "one"]  # as they are; a list spread; a dict as one argument
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def check_model(model: Any) -> None:
    """Refuse what is no model, and one whose modules do not hold their own weights.

    Args:
        model: What was given for one.

    Raises:
        ValueError: If it is no `nn.Module`, or is wrapped by the first FSDP.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any("_fsdp_wrapped_module" in module._modules for module in model.modules()):
        raise ValueError(
            "the model is wrapped in FullyShardedDataParallel, whose modules hold no weights of their "
            "own: on every process load torch.distributed.checkpoint.state_dict.get_model_state_dict("
            "model, options=StateDictOptions(full_state_dict=True)) into a network that is not wrapped, "
            "and measure that; what fully_shard has sharded is measured as it is"
        )


def place_of(model: Any, device: str | torch.device | None) -> torch.device:
    """Where to run what is a model."""
    check_model(model)
    return device_of(device, model)


def arguments(batch: Batch, form: Form) -> Arguments:
    """What the model is called with."""
    if form == "spread":
        return tuple(batch.args[0]), batch.kwargs
    return ((batch.kwargs,), {}) if form == "one" else (batch.args, batch.kwargs)


def forms(net: nn.Module, batch: Batch) -> list[Form]:
    """How a model may be called with a batch: those that its signature takes first."""
    known: list[Form] = ["given"]
    if len(batch.args) == 1 and type(batch.args[0]) in {tuple, list} and not batch.kwargs:
        known = ["spread", "given"]
    elif batch.kwargs and not batch.args:
        known = ["given", "one"]
    return sorted(known, key=lambda form: not _takes(net, *arguments(batch, form)))


def _takes(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(net.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def call(net: nn.Module, batch: Batch, form: Form) -> Any:
    """What the model returns; what it raises is told with the batch and the layer."""
    args, kwargs = arguments(batch, form)
    with failures_told(net, batch):
        return net(*args, **kwargs)


@contextmanager
def failures_told(net: nn.Module, batch: Batch) -> Iterator[None]:
    """What a model raises in the block is told with the batch and the layer."""
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        raise failed(net, batch, error) from error


def failed(net: nn.Module, batch: Batch, error: Exception) -> ValueError:
    """The error that says on which batch and in which layer a model failed, and why."""
    if of_worker(error):
        return ValueError(f"the data failed: {in_words(error)}")
    names = {id(module): name for name, module in module_names(net).items()}
    layer, trace = "", error.__traceback__
    while trace is not None:
        layer = names.get(id(trace.tb_frame.f_locals.get("self")), layer)
        trace = trace.tb_next
    where = f" in layer {layer!r}" if layer else ""
    size = "1 sample" if len(batch) == 1 else f"{len(batch)} samples"
    told = f"{type(net).__name__} failed{where} on batch {batch.number} of {size}: {in_words(error)}"
    return ValueError(told)
