"""Float64 arithmetic on tiles of a matrix that stay in the processor's cache."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

TILE = {"cpu": 2**18, "cuda": 2**22}  # float64 numbers worked on at once: near the cache, few calls
TALL = 2**9  # columns of few wide rows that are made triangular at once, in the cache; measured
NEAR = 2**15  # float64 numbers of few wide rows that are worked on at once, in a nearer cache; ours
SPARED = 1.5  # times fewer numbers of some rows, for which a basis is worth it; ours
FEWEST = 256  # rows of a product, so that reading the other factor does not cost the most; measured


def column_tiles(H: Shaped[Tensor, "B D"]) -> Iterator[slice]:
    """Columns to be worked on at once: as many as fit in a tile with up to 128 rows."""
    width = max(1, TILE.get(H.device.type, TILE["cpu"]) // min(len(H), 128))
    return (slice(start, min(start + width, H.shape[1])) for start in range(0, H.shape[1], width))


def row_tiles(H: Shaped[Tensor, "B D"], columns: slice) -> Iterator[slice]:
    """Rows that fill a tile of these columns."""
    width = columns.stop - columns.start
    height = max(1, TILE.get(H.device.type, TILE["cpu"]) // width)
    return (slice(start, min(start + height, len(H))) for start in range(0, len(H), height))


def rows_at_once(width: int, like: Tensor) -> int:
    """Rows of so many numbers that are worked on at once; never so few that a product gets slow."""
    return max(FEWEST, TILE.get(like.device.type, TILE["cpu"]) // max(1, width))


class _Kept(threading.local):
    """Work arrays of each thread, by use and device."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, torch.device], Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Float64[Tensor, "..."]:
    """A float64 work array that keeps its memory from call to call; its content is arbitrary."""
    key, size = (name, like.device), prod(shape)
    buffer = _kept.arrays.get(key)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # it is to serve outside, too
            buffer = _kept.arrays[key] = torch.empty(size, dtype=torch.float64, device=like.device)
    return buffer[:size].view(*shape)


def upcast(H: Shaped[Tensor, "B C"], name: str) -> Float64[Tensor, "B C"]:
    """A float64 copy of `H` in the work array `name`."""
    return scratch(name, H.shape, H).copy_(H)


def exact_sum(
    a: Float64[Tensor, "*n"], b: Float64[Tensor, "*n"]
) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
    """The rounded sum and what rounding took from it (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def coarse(H: Float64[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """In single precision on the processor, where it is twice as fast."""
    return H.float() if H.device.type == "cpu" else H


def inner(A: Float[Tensor, "a R"], B: Float[Tensor, "b R"]) -> Float[Tensor, "a b"]:
    """Inner products of rows; by numpy, as torch can be told to compute them more coarsely."""
    if A.device.type != "cpu":
        return A @ B.mT
    with np.errstate(all="ignore"):  # infinity and NaN are told elsewhere, if they are to be told
        return torch.from_numpy(np.matmul(A.numpy(), B.numpy().T))


def coordinates(M: Float64[Tensor, "P D"]) -> Float64[Tensor, "P R"]:
    """Rows in an orthonormal basis of their span, or as they are where that is hardly fewer numbers."""
    return M if M.shape[1] <= SPARED * len(M) else coordinates_of([M])


def coordinates_of(tiles: Iterable[Float64[Tensor, "P _"]]) -> Float64[Tensor, "P R"]:
    """As `coordinates`, of columns that come tile after tile, as `wide_tiles` cuts them."""
    # the triangular factor of all columns is that of their parts' factors; nothing is squared
    factors = []
    for M in tiles:
        height = _height(len(M))
        count = M.shape[1] // height
        parts = M[:, : count * height].unflatten(1, (count, height)).permute(1, 2, 0)
        factors += [torch.linalg.qr(parts, mode="r").R.flatten(0, 1), M[:, count * height :].mT]
    return torch.linalg.qr(torch.cat(factors), mode="r").R.mT


def wide_tiles(M: Shaped[Tensor, "P D"]) -> Iterator[slice]:
    """Columns of few wide rows that are worked on at once, of whole parts of `coordinates`."""
    (P, D), height = M.shape, _height(len(M))
    width = height * max(1, NEAR // (P * height)) if M.device.type == "cpu" else D
    return (slice(start, min(start + width, D)) for start in range(0, max(D, 1), width))


def _height(P: int) -> int:
    """Columns of P rows that are made triangular at once."""
    return max(TALL, 4 * P)
