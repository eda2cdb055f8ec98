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
WIDE = 2**12  # columns that are projected at once, so that few rows and directions stay near; measured
WIDTH = 2**14  # columns of a layer that are worked on at once; ours

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
    kept: Float64[Tensor, "2 P C"] | None = None,
    beside: Float64[Tensor, "2 P C"] | None = None,
) -> Float64[Tensor, "3 P"]:
    """As in `Loops`."""
    read = _Read.of([H])  # held until the loop is done with it
    width = columns.stop - columns.start
    room = np.empty((2, 1, width)) if kept is None else kept.numpy()
    other = np.empty((2, 0, width)) if beside is None else beside.numpy()
    gained, before = np.zeros((3, len(n))), (n.numpy(), means.numpy(), errors.numpy())
    rest = (*before, columns.start, room, other, gained)
    loops()["absorb"](*read.first(column=columns.start), _by_class(labels), *rest)
    return torch.from_numpy(gained)


def relate(
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    means: Sequence[Float64[Tensor, "K D"]],
    columns: slice,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
    """As in `Loops`."""
    read, ends, width = _Read.of(batch), [M.numpy() for M in means], columns.stop - columns.start
    cross, depth = np.zeros(len(labels.present)), len(batch) - 1
    steps = np.zeros((len(labels.place), depth, depth))
    where, layers = (*_by_class(labels), width), read.all(column=columns.start)
    loops()["relate"](*layers, where, *ends, columns.start, cross, steps)
    if depth > 1:
        loops()["increase"](*layers, np.zeros((depth + depth % 2, width)), steps)
    return torch.from_numpy(cross), torch.from_numpy(steps)


def _by_class(labels: BatchLabels) -> tuple[np.ndarray, ...]:
    """The rows class by class, and the classes with their counts."""
    return labels.order.numpy(), labels.present.numpy(), labels.count.numpy()


def project(
    H: Float[Tensor, "B D"], centre: Float64[Tensor, " D"], flat: Float64[Tensor, "R D"]
) -> Float64[Tensor, "B R"]:
    """As in `Loops`."""
    read, (R, D), z = _Read.of([H]), flat.shape, np.zeros((len(H), len(flat)))
    middle, directions = centre.numpy(), flat.numpy()

    def rows(part: slice) -> None:
        ways = _apart(R + (-R % 9 if R % 9 > 3 else -R % 3), min(WIDE, D))
        loops()["project"](*read.first(part.start), middle, directions, ways, WIDE, z[part])

    _on_threads(rows, len(H), H.numel(), 1)
    return torch.from_numpy(z)


def _apart(rows: int, width: int) -> np.ndarray:
    """Zeros whose rows begin each on another line of the processor's cache."""
    width = 8 * (-(-width // 8) | 1)
    room = np.zeros(rows * width + 8)
    lost = -room.ctypes.data // 8 % 8
    return room[lost : lost + rows * width].reshape(rows, width)


def tally(
    z: Float64[Tensor, "B R"],
    points: Float64[Tensor, "P R"],
    place: Int64[Tensor, " B"],
    nearest: Int64[Tensor, " B"],
    sums: Sequence[Float64[Tensor, "..."]],
) -> None:
    """Add to `sums`, by class: counts, hits, residuals, their squares, confusion if it has room."""
    read, parts = _Read.of([z]), (points.contiguous(), place, nearest, *sums)
    loops()["tally"](*read.first(), *(part.numpy() for part in parts))


def screen(
    first: tuple[Float[Tensor, "B K"], Float[Tensor, " B"]],
    over: tuple[Float[Tensor, "B K"], Float[Tensor, " B"]],
    back: tuple[Float[Tensor, "P K"], Float[Tensor, " P"]],
    last: tuple[Float[Tensor, "P K"], Float[Tensor, " P"]],
    each: Int64[Tensor, " B"] | None,
    e: Float[Tensor, " B"],
    u: Float[Tensor, " B"],
    own: Int64[Tensor, " B"],
    sure: float,
) -> Int64[Tensor, " n"]:
    """Numbers of the pairs that lower bounds of a quadratic leave open; its twin is in `screening`."""
    each = torch.arange(len(own), device="cpu") if each is None else each
    bounds = [tuple(part.numpy() for part in bound) for bound in (first, over, back, last)]
    undecided = np.empty(first[0].shape, np.bool_)
    loops()["screen"](*bounds, *(part.numpy() for part in (each, e, u, own)), sure, undecided)
    return torch.from_numpy(np.flatnonzero(undecided))


def relative(
    x: Float64[Tensor, "B S"],
    y: Float64[Tensor, "P S"],
    a: Float64[Tensor, "K S"],
    b: Float64[Tensor, "K S"],
    pairs: Int64[Tensor, "4 n"],
    split: int,
) -> Float64[Tensor, "5 n"]:
    """Coefficients of pairs about the own class, squared residuals; its twin is in `screening`."""
    found = torch.empty(5, pairs.shape[1], dtype=torch.float64, device="cpu")
    loops()["relative"](*(part.numpy() for part in (x, y, a, b, pairs)), split, found.numpy())
    return found


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

    def all(self, row: int = 0, column: int = 0) -> tuple[Any, ...]:
        """All layers from a number of their rows on, as the loops take them."""
        numbers = row * self.strides + column
        return self.like, self.addresses + numbers * self.like.itemsize, self.strides

    def first(self, row: int = 0, column: int = 0) -> tuple[Any, ...]:
        """The first layer from a number of its rows on, as the loops take it."""
        like, addresses, strides = self.all(row, column)
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
