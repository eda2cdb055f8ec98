"""What a forward pass costs: operations as torch counts them, and time as the clock says."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import nn

from pfc.device import wait_for
from pfc.evaluation import operations_of
from pfc.measuring.calling import Form, call
from pfc.measuring.loader import Batch, cut

REPEATS = 21  # forward passes whose median is told; ours
WARM = 3  # forward passes before; ours
LARGER = 64  # samples of the larger batch; ours


def first_of(batch: Batch, size: int) -> Batch:
    """The first samples of a batch."""
    args, kwargs = cut((batch.args, batch.kwargs), size, len(batch))
    return replace(batch, args=args, kwargs=kwargs, y=batch.y[:size])


def operations(net: nn.Module, batch: Batch, form: Form) -> int:
    """Operations of one sample's forward pass."""
    return operations_of(partial(call, net, first_of(batch, 1), form))


def latencies(
    nets: Sequence[nn.Module], batch: Batch, form: Form, device: torch.device
) -> dict[int, tuple[float, ...]]:
    """Median seconds of a forward pass of each network, by turns, by the size of the batch."""
    found = {}
    for size in sorted({1, min(LARGER, len(batch))}):
        part, seconds = first_of(batch, size), [list[float]() for _ in nets]
        for turn in range(WARM + REPEATS):
            for net, own in zip(nets, seconds, strict=True):
                took = _seconds(net, part, form, device)
                own += [took] * (turn >= WARM)
        found[size] = tuple(map(median, seconds))
    return found


def _seconds(net: nn.Module, batch: Batch, form: Form, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    call(net, batch, form)
    wait_for(device)
    return time.perf_counter() - start
