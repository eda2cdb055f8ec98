"""Statistics of features by compiled loops: each number is read once, in its own type, where it lies.

Where the compiler is missing, or no loops are written for the device, the callers do the same in torch,
tile by tile.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pfc.fused import processor
from pfc.fused.processor import State
from pfc.labels import BatchLabels
from pfc.warning import warn

LEAST = 2**16  # numbers of a batch below which to load a compiler's loops is not worth it; ours

Found = TypeVar("Found")


@runtime_checkable
class Loops(Protocol):
    """What is compiled; every function has its slow twin beside its caller."""

    BEGINS: bool  # whether the mean of a class without samples is put at its first one here

    def absorb(
        self,
        H: Float[Tensor, "B D"],
        labels: BatchLabels,
        count: Float64[Tensor, " K"],
        means: Float64[Tensor, "K D"],
        errors: Float64[Tensor, "K D"],
        scatter: Float64[Tensor, " K"],
        columns: slice,
    ) -> None:
        """Add some columns of rows to the means, their errors and the scatter of their classes.

        These had `count` samples before; a class without samples has its first one for a mean, which the
        caller sees to where `BEGINS` is not so.
        """

    def absorb_ends(
        self,
        batch: Sequence[Float[Tensor, "B D"]],
        labels: BatchLabels,
        count: Float64[Tensor, " K"],
        ends: Sequence[State],
        columns: slice,
    ) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
        """As `absorb`, the first and the last of several layers; what relates the layers besides.

        Returns:
            What the cross scatter of each class gains, and each row's products of all increments.
        """

    def project(
        self,
        H: Float[Tensor, "B D"],
        centre: Float64[Tensor, " D"],
        flat: Float64[Tensor, "R D"],
        z: Float64[Tensor, "B R"] | None = None,
    ) -> Float64[Tensor, "B R"]:
        """Products of the centred rows with directions, added to `z` if it is given."""

    def spread(self, run: Callable[[slice], Found], layers: int, size: int, numbers: int) -> list[Found]:
        """What `run` gives of all columns of so many layers, in parts that may run side by side."""


def loops_for(batch: Sequence[Tensor]) -> Loops | None:
    """Compiled loops that read these features of layers of one shape, if there are any."""
    device, numbers = batch[0].device, len(batch) * batch[0].numel()
    for H in batch:
        if H.dtype not in processor.TYPES or H.device != device:
            return None
    if device.type == "cuda":
        return _on_cuda(len(batch)) if numbers >= LEAST else None
    return processor if on_processor(device, numbers) else None


def on_processor(device: torch.device, numbers: int) -> bool:
    """Whether compiled loops of the processor serve batches of so many numbers."""
    return device.type == "cpu" and numbers >= LEAST and bool(processor.loops())


def at_hand(device: torch.device, numbers: int) -> bool:
    """Whether they serve and are loaded: for what alone is not worth loading them."""
    return processor.loaded() and on_processor(device, numbers)


def compiles(numbers: int, device: torch.device) -> bool:
    """Whether loops for batches of so many numbers are to be compiled first."""
    return device.type == "cpu" and numbers >= LEAST and processor.uncompiled()


def _on_cuda(depth: int = 1) -> Loops | None:
    """The loops for CUDA devices, where they work, of not too many layers at once."""
    found = _tried()
    return found if found is not None and depth <= found.DEEPEST else None


@cache
def _tried() -> ModuleType | None:
    """The loops for CUDA devices, if they can be compiled and keep their digits there."""
    try:
        from pfc.fused import cuda
    except ImportError:  # triton comes with the CUDA wheels of torch
        return None
    try:
        cuda.check("cuda")
    except Exception as error:  # of a compiler and a device that nobody here has seen
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        warn(f"compiled loops do not work on this device, torch serves instead ({reason})", UserWarning)
        return None
    return cuda
