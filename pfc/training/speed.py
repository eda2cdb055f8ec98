"""What makes a step fast on a machine: precision, memory format, compilation, a single launch."""

import platform
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from pfc.nets import ConvResNet, FCResNet

ForwardPrecision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
UNITS = ("amx_bf16", "avx512_bf16")  # the flags of x86 processors that multiply bfloat16 by themselves

MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
PLAIN = (bool, int, float, str, tuple, type(None))  # settings of modules
WARM = 3  # steps of a size before it is recorded: libraries choose their kernels in them


def fast_precision(net: nn.Module, device: torch.device) -> ForwardPrecision:
    """`"bfloat16"` where it is faster: processors that multiply it, recorded steps on a GPU."""
    own = device.type == "cpu" and any(unit in _flags() for unit in UNITS)
    return "bfloat16" if own or RecordedSteps.may(net, device) else "float32"


def _flags() -> set[str]:
    """What the processor can do, as Linux tells it."""
    with suppress(OSError):
        if platform.system() == "Linux":
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            return {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return set()


def arranged(net: nn.Module) -> nn.Module:
    """The network, in place: convolutions run faster with the channels last in memory."""
    if any(p.dim() == 4 for p in net.parameters()):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def compiled(net: nn.Module) -> nn.Module:
    """The network as torch.compile makes it, with the same parameters."""
    return cast(nn.Module, torch.compile(net))


class RecordedSteps:
    """A training step on a GPU, recorded once for each size of a batch, then launched as a whole.

    Kernel by kernel a step of a small network waits for its launches. What Python does in a step is
    done while it is recorded alone, so that this is for networks of ours without hooks.

    Args:
        step: Takes a batch, leaves the network a step further, and gives a tensor.
    """

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        self.step = step
        self.seen: Counter[int] = Counter()
        self.kept: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    @staticmethod
    def may(net: nn.Module, device: torch.device) -> bool:
        """Whether all that a step does is known: a network of ours, on a GPU, that nobody listens to."""
        return device.type == "cuda" and is_plain(net)

    def forget(self) -> None:
        """Record again, as the rate is another, which is a constant of what was recorded."""
        self.kept.clear()

    def renew(self) -> None:
        """Begin anew, as the network is another: its first steps may differ from those that follow."""
        self.kept.clear()
        self.seen.clear()

    def __call__(self, batch: Tensor) -> Tensor:
        """Make a step."""
        size = len(batch)
        if size not in self.kept:
            self.seen[size] += 1
            if self.seen[size] <= WARM:
                return self.step(batch)
            self.kept[size] = self._record(batch)
        graph, given, told = self.kept[size]
        given.copy_(batch)
        graph.replay()
        return told

    def _record(self, batch: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        graph, given = torch.cuda.CUDAGraph(), batch.clone()
        with torch.cuda.graph(graph):
            told = self.step(given)
        return graph, given, told


def is_plain(net: nn.Module) -> bool:
    """Whether a network is one of ours as it was written, and nobody listens to its steps."""
    if type(net) not in {FCResNet, ConvResNet} or module._has_any_global_hook():
        return False
    parts: list[nn.Module | Tensor] = [*net.modules(), *net.parameters()]
    return all(map(_known, net.modules())) and not any(map(_heard, parts))


def made_of(net: nn.Module) -> tuple[object, ...]:
    """What a recorded step holds of a network besides the values of its tensors."""
    tensors = [
        (id(t), t.data_ptr(), t.stride(), t.dtype, t.requires_grad)
        for t in (*net.parameters(), *net.buffers())
    ]
    parts = [
        (type(part), id(part), *(value for value in vars(part).values() if isinstance(value, PLAIN)))
        for part in net.modules()
    ]
    return *tensors, *parts


def _known(part: nn.Module) -> bool:
    """Whether a module is one of torch's or of ours, as it was written."""
    return type(part).__module__.partition(".")[0] in {"torch", "pfc"} and "forward" not in vars(part)


def _heard(part: nn.Module | Tensor) -> bool:
    """Whether a hook of a module or a parameter would be called in a step."""
    for hooks in MODULE_HOOKS if isinstance(part, nn.Module) else TENSOR_HOOKS:
        if getattr(part, hooks):
            return True
    return False
