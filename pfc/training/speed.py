"""What makes a step fast on a machine: precision of the forward pass, memory format, compilation."""

import platform
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

ForwardPrecision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
UNITS = ("amx_bf16", "avx512_bf16")  # the flags of x86 processors that multiply bfloat16 by themselves


def fast_precision(device: torch.device) -> ForwardPrecision:
    """`"bfloat16"` on a processor that multiplies it by itself; steps of a GPU wait for launches."""
    own = device.type == "cpu" and any(unit in _flags() for unit in UNITS)
    return "bfloat16" if own else "float32"


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
