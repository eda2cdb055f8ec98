"""Float64 arithmetic on tiles of a matrix that stay in the processor's cache."""

import threading
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

TILE = {"cpu": 2**18, "cuda": 2**22}  # float64 numbers worked on at once: near the cache, few calls
TALL = 2**9  # columns of few wide rows that are made triangular at once, in the cache; measured
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


def spares(rows: int, columns: int) -> bool:
    """Whether in a basis of their span rows are of far fewer numbers."""
    return columns > SPARED * rows


def coordinates(M: Float64[Tensor, "P D"]) -> Float64[Tensor, "P R"]:
    """Rows in an orthonormal basis of their span, or as they are where that is hardly fewer numbers."""
    if not spares(*M.shape):
        return M
    # the triangular factor of all columns is that of their parts' factors; nothing is squared
    height = max(TALL, 4 * len(M))
    count = M.shape[1] // height
    parts = M[:, : count * height].unflatten(1, (count, height)).permute(1, 2, 0)
    factors = [torch.linalg.qr(parts, mode="r").R.flatten(0, 1), M[:, count * height :].mT]
    return torch.linalg.qr(torch.cat(factors), mode="r").R.mT
