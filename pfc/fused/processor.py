"""The loops on the processor, where numba is at hand (extra `fast`): where features lie, and threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, reduce
from glob import glob
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.folders import cache_folder
from pfc.labels import BatchLabels

TYPES = {  # of features, and what the loops read them as
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}
SHARE = 2**18  # numbers that are worth a thread of their own; ours
WIDTH = 2**12  # columns of a layer that are worked on at once; ours
AT_ONCE = 3  # directions that the loop projects on at once

Found = TypeVar("Found")


@cache
def loops() -> dict[str, Callable[..., None]]:
    """The loops by name, kept compiled in the user's cache folder; none without numba."""
    try:
        import numba

        from pfc.fused.kernels import compiled
    except ImportError:  # also of a numba that does not fit the numpy that is here
        return {}
    return {} if getattr(numba.config, "DISABLE_JIT", 0) else compiled(_kept())


def _kept() -> str:
    """The folder of compiled loops; empty for the one that numba chooses."""
    folder = cache_folder()
    return os.path.join(folder, "kernels") if folder else ""


def uncompiled() -> bool:
    """Whether the loops are to be compiled at their first call, which takes some seconds."""
    kept = _kept()
    return bool(loops()) and bool(kept) and not glob(os.path.join(kept, "*", "*.nbi"))


def absorb(
    H: Float[Tensor, "B D"],
    labels: BatchLabels,
    n: Float64[Tensor, " P"],
    means: Float64[Tensor, "K D"],
    errors: Float64[Tensor, "K D"],
    columns: slice,
    moves: bool,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "M C"], Float64[Tensor, "M C"]]:
    """As in `Loops`."""
    read = _Read.of([H])  # held until the loop is done with it
    where = tuple(part.numpy() for part in (labels.order, labels.present, labels.count))
    shape = len(n) if moves else 1, columns.stop - columns.start
    step, error = np.empty(shape), np.empty(shape)
    gained, kept = np.zeros(len(n)), (n.numpy(), means.numpy(), errors.numpy())
    loops()["absorb"](*read.first(), where, *kept, columns.start, step, error, gained)
    return torch.from_numpy(gained), torch.from_numpy(step), torch.from_numpy(error)


def relate(
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    shifts: Sequence[Float64[Tensor, "P C"]],
    columns: slice,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
    """As in `Loops`."""
    read, ends = _Read.of(batch), [S.contiguous().numpy() for S in shifts]
    cross, depth = np.zeros(len(labels.present)), len(batch) - 1
    steps = np.zeros((len(labels.place), depth, depth))
    place, start = labels.place.numpy(), columns.start
    loops()["relate"](*read.all(), place, *ends, start, cross, steps)
    return torch.from_numpy(cross), torch.from_numpy(steps)


def project(
    H: Float[Tensor, "B D"], centre: Float64[Tensor, " D"], flat: Float64[Tensor, "R D"]
) -> Float64[Tensor, "B R"]:
    """As in `Loops`."""
    read, (R, D), middle = _Read.of([H]), flat.shape, centre.numpy()
    directions = np.zeros((R + -R % AT_ONCE, D))
    directions[:R] = flat.numpy()
    z = np.zeros((len(H), len(directions)))

    def rows(part: slice) -> None:
        loops()["project"](*read.first(part.start), middle, directions, z[part])

    _on_threads(rows, len(H), H.numel(), 1)
    return torch.from_numpy(z)[:, :R]


def tally(
    z: Float64[Tensor, "B R"],
    points: Float64[Tensor, "P R"],
    place: Int64[Tensor, " B"],
    nearest: Int64[Tensor, " B"],
    sums: Sequence[Float64[Tensor, "..."]],
) -> None:
    """Add to `sums`, by class: counts, hits, residuals, their squares, confusion if it has room."""
    parts = (z.contiguous(), points.contiguous(), place, nearest, *sums)
    loops()["tally"](*(part.numpy() for part in parts))


def spread(run: Callable[[slice], Found], size: int, numbers: int) -> list[Found]:
    """As in `Loops`."""
    return _on_threads(run, size, numbers, -(-size // WIDTH))


def side_by_side(batch: Sequence[Float[Tensor, "B D"]]) -> list[Float[Tensor, "B D"]]:
    """Layers in the widest of their types, each row's numbers side by side; copied if need be."""
    dtype = reduce(torch.promote_types, (H.dtype for H in batch))
    layers = [H.to(dtype).resolve_neg() for H in batch]
    return [H if H.stride(1) == 1 else H.contiguous() for H in layers]


@dataclass(frozen=True, eq=False)
class _Read:
    """Where features lie: the address of the first row of each layer, and the distance of its rows.

    Args:
        layers: The features, which must outlive the loops.
        like: An empty array of the type that the loops read.
    """

    layers: Sequence[Tensor]
    like: np.ndarray
    addresses: np.ndarray
    strides: np.ndarray

    @classmethod
    def of(cls, batch: Sequence[Float[Tensor, "B C"]]) -> "_Read":
        """Where the layers of a batch lie, or copies of them that the loops can read."""
        layers = side_by_side(batch)
        like, addresses = np.empty(0, TYPES[layers[0].dtype]), np.array([H.data_ptr() for H in layers])
        return cls(layers, like, addresses, np.array([H.stride(0) for H in layers]))

    def all(self, row: int = 0) -> tuple[Any, ...]:
        """All layers from a row on, as the loops take them."""
        return self.like, self.addresses + row * self.strides * self.like.itemsize, self.strides

    def first(self, row: int = 0) -> tuple[Any, ...]:
        """The first layer from a row on, as the loops take it."""
        like, addresses, strides = self.all(row)
        return like, addresses[0], strides[0]


def _on_threads(run: Callable[[slice], Found], size: int, numbers: int, least: int) -> list[Found]:
    """What `run` gives of at least so many parts of a size."""
    threads = max(1, min(torch.get_num_threads(), numbers // SHARE, size))
    parts = max(threads, least)
    cuts = [size * i // parts for i in range(parts + 1)]
    slices = [slice(*cut) for cut in pairwise(cuts)]
    return [*map(run, slices)] if threads == 1 else [*_threads(threads).map(run, slices)]


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "pfc")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive it
