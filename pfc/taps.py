"""Watch the outputs of layers during a forward pass, leave nothing behind."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pfc.foreign import attribute, told

Pool = str | Callable[[Tensor], Tensor]
Side = Literal["input", "output"]
Edge = tuple[nn.Module, Side, Callable[[Any], None]]


class NoTokensError(ValueError):
    """A layer's output does not keep the tokens of its input apart."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := dict(model.named_children()).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


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
        parts = ((field.name, attribute(output, field.name)) for field in fields(output))
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
        with told(f"pool failed on an output of shape {(*H.shape,)}"):
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
    if mask is None:
        wide = torch.promote_types(H.dtype, torch.float32)
        return H.mean(1, dtype=wide) if pool == "mean" else H[:, 0 if pool == "cls" else -1]
    return _of_tokens(H, pool, _tokens_of(H, mask))


def _of_tokens(H: Tensor, pool: str, mask: Tensor) -> Tensor:
    """The mean of the tokens that are no padding, the first or the last of them."""
    if pool == "mean":
        wide = torch.promote_types(H.dtype, torch.float32)
        sums = H.masked_fill(~mask[..., None], 0).sum(1, dtype=wide)
        return sums / mask.sum(1, keepdim=True)
    place = mask.int().argmax(1) if pool == "cls" else H.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return H[torch.arange(len(H), device=H.device), place]


def _tokens_of(H: Tensor, mask: Tensor) -> Tensor:
    """Which tokens of an output are no padding."""
    if mask.shape != H.shape[:2]:
        raise NoTokensError(
            f"the attention_mask is of shape {(*mask.shape,)}, which is not that of the tokens "
            f"(B, T, D) {(*H.shape,)}; name layers that keep the tokens, or take a callable as pool="
        )
    return mask.to(H.device)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds a part, as of FSDP; else the tensor itself."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


class Watch:
    """Hooks on chosen modules, each of which must run once in a forward pass.

    What runs again inside a backward pass, as checkpointed layers do, is not seen.

    Args:
        modules: What is watched, by name.
        see: Is given a module's name and the first tensor of its output, inside the hook: a tensor
            kept for later may be overwritten by in-place operations.
        edges: Modules whose input or output is handed over besides, as a whole.
        detach: Whether what is seen is cut from the graph of gradients.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        see: Callable[[str, Tensor], None],
        edges: Sequence[Edge] = (),
        *,
        detach: bool = True,
    ) -> None:
        self.modules = modules
        self.fired: list[str] = []
        self._see, self._edges, self._detach = see, edges, detach
        self._handles: list[Any] = []

    def __enter__(self) -> "Watch":
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(partial(self._seen, name)))
        for module, side, see in self._edges:
            if side == "input":
                handle = module.register_forward_pre_hook(partial(_before, see), with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(_after, see))
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _seen(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if _in_backward():
            return
        if name in self.fired:
            raise ValueError(ran_twice(name))
        self.fired.append(name)
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            got = type(output).__name__ if tensor is None else str(tensor.dtype)
            raise ValueError(f"layer {name!r} gave no tensor of floating-point numbers but {got}")
        self._see(name, tensor.detach() if self._detach and tensor.requires_grad else tensor)

    def finish(self, batch: int) -> None:
        """Check after a forward pass that every module ran.

        Raises:
            ValueError: If one did not.
        """
        missing = [name for name in self.modules if name not in self.fired]
        if missing:
            raise ValueError(f"layer {missing[0]!r} did not run on batch {batch}; tap layers that do")


def _before(see: Callable[[Any], None], _module: nn.Module, args: Any, kwargs: Any) -> None:
    if not _in_backward():
        see((args, kwargs))


def _after(see: Callable[[Any], None], _module: nn.Module, _args: Any, output: Any) -> None:
    if not _in_backward():
        see(output)


def _in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return torch._C._current_graph_task_id() != -1


def writes(tensor: Tensor | None) -> int:
    """How often a tensor was written to; -1 where nobody counts (none, lazy, made in inference mode)."""
    return -1 if tensor is None or is_lazy(tensor) or tensor.is_inference() else tensor._version


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
