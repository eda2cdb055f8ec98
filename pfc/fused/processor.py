"""The loops on the processor, where numba is at hand (extra `fast`): where features lie, and threads."""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, reduce
from glob import iglob
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from pfc.folders import cache_folder
from pfc.labels import BatchLabels

TYPES: dict[torch.dtype, np.generic] = {  # of features, and a number of what the loops read them as
    torch.float64: np.float64(0),
    torch.float32: np.float32(0),
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
}
WHOLE = {size: np.dtype(f"i{size}").type(0) for size in (1, 2, 4, 8)}  # of so many bytes
ODD = -7046029254386353131  # 2^64 over the golden ratio; files keep what is mixed by this and these
SHIFTS = (31, 29, 32)
SHARE = 2**18  # numbers that are worth a thread of their own; ours
WIDE = 2**12  # columns that are projected at once, so that few rows stay near; measured
MANY = 32  # directions of which so many columns stay near, too; of more only half; measured
NEAR = 2**10  # columns of a row that are summed at once: sums stay in the nearest cache; measured
WIDTH = 2**16  # columns of several layers that are worked on at once; measured
STRIP = 2**7  # columns of class means that are made triangular at once; measured
TALL = 2**12  # columns of one triangular factor, so that rounding does not add up; ours
BEGINS = True

Found = TypeVar("Found")
State = tuple[Float64[Tensor, "K D"], Float64[Tensor, "K D"], Float64[Tensor, " K"]]  # as of `absorb`


@cache
def loops() -> dict[str, Callable[..., None]]:
    """The loops by name, kept compiled in the user's cache folder; none without numba."""
    try:
        with uncollected():
            import numba

            from pfc.fused.kernels import compiled
    except ImportError:  # also of a numba that does not fit the numpy that is here
        return {}
    return {} if getattr(numba.config, "DISABLE_JIT", 0) else compiled(_kept())


def loaded() -> bool:
    """Whether something had the loops loaded already."""
    return "pfc.fused.kernels" in sys.modules


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected: to look for it takes a sixth of the time of compiling."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _kept() -> str:
    """The folder of compiled loops; empty for the one that numba chooses."""
    folder = cache_folder()
    return os.path.join(folder, "kernels") if folder else ""


def uncompiled() -> bool:
    """Whether the loops are to be compiled at their first call, which takes some seconds."""
    kept = _kept()
    return bool(loops()) and bool(kept) and next(iglob(os.path.join(kept, "*", "*.nbi")), None) is None


def absorb(
    H: Float[Tensor, "B D"],
    labels: BatchLabels,
    count: Float64[Tensor, " K"],
    means: Float64[Tensor, "K D"],
    errors: Float64[Tensor, "K D"],
    scatter: Float64[Tensor, " K"],
    columns: slice,
) -> None:
    """As in `Loops`."""
    H, start, width = by_rows(H), columns.start, columns.stop - columns.start
    like, *where = _place(H, column=start)
    state = (*_addresses(count, means, errors, scatter), means.shape[1])
    loops()["absorb"](
        like, like.itemsize, *where, labels.addresses, state, (H.shape[0], start, width, NEAR)
    )


def absorb_ends(
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    count: Float64[Tensor, " K"],
    ends: Sequence[State],
    columns: slice,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
    """As in `Loops`."""
    layers, start, width = side_by_side(batch), columns.start, columns.stop - columns.start
    depth, size = len(batch) - 1, len(labels.place)
    even = depth if depth < 2 else depth + depth % 2
    cross = torch.zeros_like(labels.count)
    steps = cross.new_zeros(size, even, even)
    (like, *first), *_, (_, *last) = places = [_place(H, column=start) for H in layers]
    states = *_addresses(count), *(_addresses(*end) for end in ends), ends[0][0].shape[1]
    found = cross.data_ptr(), steps.data_ptr() if depth == 1 else 0
    where = (*first, *last), labels.addresses, states, (size, start, width, NEAR)
    loops()["absorb_ends"](like, like.itemsize, *where, *found)
    if depth > 1:
        lie = torch.tensor([place[1:] for place in places], device="cpu").T.contiguous()
        room, shape = cross.new_zeros(even, NEAR), (size, depth, width, NEAR)
        loops()["increase"](like, like.itemsize, *_addresses(*lie), shape, *_addresses(room, steps))
    return cross, steps if even == depth else steps[:, :depth, :depth]


def project(
    H: Float[Tensor, "B D"],
    centre: Float64[Tensor, " D"],
    flat: Float64[Tensor, "R D"],
    z: Float64[Tensor, "B R"] | None = None,
) -> Float64[Tensor, "B R"]:
    """As in `Loops`."""
    H, flat = by_rows(H), by_rows(flat)
    (size, D), R = H.shape, flat.shape[0]
    z = flat.new_zeros(size, R) if z is None else z
    _refuse(z=(z, (size, R)), centre=(centre, (D,)), flat=(flat, (R, D)))
    directions, (middle, found) = _place(flat)[1:], _addresses(centre, z)
    wide = WIDE if R <= MANY else WIDE // 2

    def rows(part: slice) -> None:
        (like, *where), to = _place(H, part.start), found + part.start * R * 8
        shape = part.stop - part.start, R, D
        loops()["project"](like, like.itemsize, *where, middle, directions, shape, wide, to)

    _on_threads(rows, size, H.numel(), 1)
    return z


def gather(
    z: Float64[Tensor, "B R"],
    places: Int64[Tensor, " B"],
    nearest: Int64[Tensor, " B"],
    points: Float64[Tensor, "P R"],
    state: Sequence[Float64[Tensor, "P ..."]],
    pairs: Float64[Tensor, "Q P"],
) -> None:
    """Add samples to what is gathered by class, and to numbers of pairs if kept; see `NearestMean`."""
    z, size, (P, R) = by_rows(z), places.shape[0], points.shape
    _refuse(z=(z, (size, R)), nearest=(nearest, (size,)))
    if size and int(places.min()) < 0:
        raise ValueError("labels must be of classes that the span knows")
    shape, where = (size, R, P), _addresses(places, nearest, points)
    kept = _addresses(pairs) if len(pairs) else (0,)
    loops()["gather"](shape, _place(z)[1:], *where, (*_addresses(*state), *kept))


def triangular(
    layers: Sequence[tuple[Float64[Tensor, "K D"], Float64[Tensor, "K D"]]],
    weights: Float64[Tensor, " K"],
    kept: Sequence[Float64[Tensor, "..."]] = (),
) -> tuple[Float64[Tensor, "P P"], Float64[Tensor, " P"]]:
    """The triangular factor of class means about their centres, and the squared sizes of the means.

    Args:
        layers: Means of each layer, and what rounding took from them.
        weights: What a class counts in the centre.
        kept: Room for the centre, what rounding took from it and the means about it, of one layer.

    Returns:
        What has the inner products of the means of all layers for those of its columns; their sizes.

    Raises:
        ValueError: If what is given does not fit, or the centres of several layers are to be kept.
    """
    (K, D), P = layers[0][0].shape, len(layers) * len(weights)
    if kept and len(layers) > 1:
        raise ValueError(f"compiled loops keep the centre of one layer, got {len(layers)}")
    _refuse(weights=(weights, (K,)))
    for means, errors in layers:
        _refuse(means=(means, (K, D)), errors=(errors, (K, D)))
    for room, shape in zip(kept, ((D,), (D,), (K, D)), strict=bool(kept)):
        _refuse(kept=(room, shape))
    lie = torch.tensor([_addresses(*layer) for layer in layers], device="cpu")
    given, to = _addresses(lie, weights), _addresses(*kept) or (0, 0, 0)

    def columns(part: slice) -> tuple[Tensor, Tensor]:
        width = part.stop - part.start
        room, found = weights.new_empty(P + 2, STRIP), weights.new_zeros(-(-width // TALL) * P + 1, P)
        shape, near = (len(layers), K, D, part.start, part.stop, STRIP, TALL), (*room[-2:], found[-1])
        centre, error, sizes = _addresses(*near)
        loops()["triangular"](
            *given, shape, (room.data_ptr(), centre, error), to, (found.data_ptr(), sizes)
        )
        return found[:-1], found[-1]

    factors, sizes = zip(*_on_threads(columns, D, P * D, 1), strict=True)
    return torch.linalg.qr(torch.cat(factors), mode="r").R, torch.stack(sizes).sum(0)


def mix(bits: Shaped[Tensor, "B C"]) -> Int64[Tensor, " B"]:
    """Hashes of rows by the bits and the place of each number; its twin is in `measuring.subset`."""
    bits = bits if bits.stride(1) == 1 else bits.contiguous()
    like, found = WHOLE[bits.element_size()], bits.new_empty(len(bits), dtype=torch.int64)
    row = bits.stride(0) * like.itemsize

    def rows(part: slice) -> None:
        at, to = bits.data_ptr() + part.start * row, found.data_ptr() + part.start * found.itemsize
        loops()["mix"](like, at, row, (part.stop - part.start, bits.shape[1]), to)

    _on_threads(rows, len(bits), bits.numel(), 1)
    return found


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
    values, owns = zip(first, over, back, last, strict=True)
    single, shape = TYPES[e.dtype], (len(own), values[0].shape[1])
    bounds = (_addresses(*parts, size=single.itemsize) for parts in (values, owns))
    among, undecided = _addresses(e, u, size=single.itemsize), np.empty(shape, np.bool_)
    given = *bounds, *_addresses(each), among, *_addresses(own), sure
    loops()["screen"](single, single.itemsize, shape, *given, undecided.ctypes.data)
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
    found, shape = x.new_empty(5, pairs.shape[1]), (pairs.shape[1], x.shape[1])
    given = _addresses(x, y), _addresses(a, b), *_addresses(pairs)
    loops()["relative"](shape, *given, split, *_addresses(found))
    return found


def spread(run: Callable[[slice], Found], layers: int, size: int, numbers: int) -> list[Found]:
    """As in `Loops`."""
    return _on_threads(run, size, numbers, -(-size // WIDTH) if layers > 1 else 1)


def side_by_side(batch: Sequence[Float[Tensor, "B D"]]) -> list[Float[Tensor, "B D"]]:
    """Layers in the widest of their types, each row's numbers side by side; copied if need be."""
    if len({H.dtype for H in batch}) > 1:
        widest = reduce(torch.promote_types, (H.dtype for H in batch))
        batch = [H.to(widest) for H in batch]
    return [*map(by_rows, batch)]


def by_rows(H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """A layer with each row's numbers side by side; copied if need be."""
    H = H if H.stride(1) == 1 else H.contiguous()
    return H.resolve_neg() if H.is_neg() else H


def _place(H: Float[Tensor, "B D"], row: int = 0, column: int = 0) -> tuple[np.generic, int, int]:
    """A number of a layer's type, its address from some row and column on, bytes from row to row."""
    like, stride = TYPES[H.dtype], H.stride(0)
    return like, H.data_ptr() + (row * stride + column) * like.itemsize, stride * like.itemsize


def _addresses(*tensors: Tensor, size: int = 8) -> tuple[int, ...]:
    """Where tensors of numbers of so many bytes begin, each of which is one piece of memory."""
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.element_size() != size:
            raise ValueError(f"compiled loops take only contiguous numbers of {size} bytes here")
    return tuple([tensor.data_ptr() for tensor in tensors])


def _refuse(**given: tuple[Tensor, tuple[int, ...]]) -> None:
    """Refuse tensors of another shape than these, or of numbers that loops would misread."""
    for name, (tensor, shape) in given.items():
        if tensor.shape != shape or tensor.element_size() != 8:
            got = f"{tensor.dtype} of shape {(*tensor.shape,)}"
            raise ValueError(f"compiled loops need {name} of 8 bytes and of shape {shape}, got {got}")


def _on_threads(run: Callable[[slice], Found], size: int, numbers: int, least: int) -> list[Found]:
    """What `run` gives of at least so many parts of a size."""
    threads = max(1, min(torch.get_num_threads(), numbers // SHARE, size))
    parts = max(threads, least)
    if parts == 1:
        return [run(slice(0, size))]
    cuts = [size * i // parts for i in range(parts + 1)]
    slices = [slice(*cut) for cut in pairwise(cuts)]
    return [*map(run, slices)] if threads == 1 else [*_threads(threads).map(run, slices)]


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "pfc")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive it
