"""The loops on CUDA devices, by Triton's compiler, which comes with the CUDA wheels of torch."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import triton
from jaxtyping import Float, Float64
from torch import Tensor

from pfc.fused import programs
from pfc.fused.processor import State, by_rows, side_by_side
from pfc.labels import BatchLabels

COLUMNS = 128  # that a program has at once; ours
DEEPEST = 33  # layers whose increments' products a program has at once; compiling more takes minutes
ROWS = 4  # that a program projects at once; ours
BEGINS = False

Found = TypeVar("Found")


def spread(run: Callable[[slice], Found], layers: int, size: int, numbers: int) -> list[Found]:
    """As in `Loops`: a device spreads the columns by itself."""
    return [run(slice(0, size))]


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
    _absorb(H, labels, count, (means, errors, scatter), columns)


def _absorb(
    H: Float[Tensor, "B D"],
    labels: BatchLabels,
    count: Float64[Tensor, " K"],
    state: State,
    columns: slice,
) -> Float64[Tensor, "2 P C"]:
    """As `absorb`; how far each class's mean moved, and what rounding had taken from it."""
    means, errors, scatter = state
    H, start, width = by_rows(H), columns.start, columns.stop - columns.start
    n, starts = count[labels.present], labels.count.cumsum(0) - labels.count
    P = len(n)
    gained = n.new_empty(P, triton.cdiv(width, COLUMNS))
    step, error = kept = n.new_empty(2, P, width)
    where = labels.order, starts.long(), labels.count, labels.present
    with torch.cuda.device_of(H):
        programs.absorb[(P, gained.shape[1])](
            H[:, start:],
            H.stride(0),
            *where,
            n,
            means[:, start:],
            errors[:, start:],
            means.stride(0),
            width,
            step,
            error,
            gained,
            COLUMNS=COLUMNS,
            enable_fp_fusion=True,
        )
    scatter.index_add_(0, labels.present, gained.sum(1))
    return kept


def absorb_ends(
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    count: Float64[Tensor, " K"],
    ends: Sequence[State],
    columns: slice,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
    """As in `Loops`."""
    cross, steps = _relate(batch, labels, [means for means, _, _ in ends], columns)
    pairs = zip((batch[0], batch[-1]), ends, strict=True)
    kept = [_absorb(H, labels, count, end, columns) for H, end in pairs]
    (moved, rounded), n = torch.einsum("epc,epc->ep", *kept), count[labels.present]
    return cross - (n + labels.count) * moved + n * rounded, steps


def _relate(
    batch: Sequence[Float[Tensor, "B D"]],
    labels: BatchLabels,
    means: Sequence[Float64[Tensor, "K D"]],
    columns: slice,
) -> tuple[Float64[Tensor, " P"], Float64[Tensor, "B L L"]]:
    """By class the product of the ends less their means; by row, those of all increments."""
    layers, depth, B = side_by_side(batch), len(batch) - 1, len(labels.place)
    (first, last), start, width = means, columns.start, columns.stop - columns.start
    addresses = [H[:, start:].data_ptr() for H in layers]
    where = torch.tensor([addresses, [H.stride(0) for H in layers]], device="cpu")
    where = where.to(first.device, non_blocking=True)  # waits for nothing
    cross, steps = labels.count.new_empty(B), labels.count.new_empty(B, depth, depth)
    side = max(2, triton.next_power_of_2(depth))
    with torch.cuda.device_of(first):
        programs.relate[(B,)](
            layers[0],
            *where,
            depth,
            labels.y,
            first[:, start:],
            last[:, start:],
            first.stride(0),
            width,
            cross,
            steps,
            SIDE=side,
            COLUMNS=max(16, COLUMNS // side),
            enable_fp_fusion=True,
        )
    by_class = labels.count.new_zeros(len(labels.present)).index_add_(0, labels.place, cross)
    return by_class, steps


def project(
    H: Float[Tensor, "B D"],
    centre: Float64[Tensor, " D"],
    flat: Float64[Tensor, "R D"],
    z: Float64[Tensor, "B R"] | None = None,
) -> Float64[Tensor, "B R"]:
    """As in `Loops`."""
    H, flat = by_rows(H), by_rows(flat)
    z = flat.new_zeros(len(H), len(flat)) if z is None else z
    side = max(2, triton.next_power_of_2(len(flat)))
    with torch.cuda.device_of(H):
        programs.project[(triton.cdiv(len(H), ROWS),)](
            H,
            len(H),
            H.stride(0),
            centre,
            flat,
            flat.stride(0),
            len(flat),
            H.shape[1],
            z,
            ROWS=ROWS,
            SIDE=side,
            COLUMNS=max(16, COLUMNS // side),
            enable_fp_fusion=True,
        )
    return z


def check(device: str) -> None:
    """Refuse a device on which a few numbers do not come out as they should.

    Raises:
        ArithmeticError: If they do not.
    """
    H = torch.arange(12.0, device=device).reshape(4, 3).sin() + 100
    labels = BatchLabels.of(torch.tensor([0, 1, 0, 0], device="cpu"), H.device)
    means, errors = H[:2].double(), torch.zeros(2, 3, dtype=torch.float64, device=device)
    absorb(H, labels, means.new_zeros(2), means, errors, means.new_zeros(2), slice(0, 3))
    layers = [H, H.cos(), H.sin(), H.tan()]
    grams = _relate(layers, labels, [means, means], slice(0, 3))[1]
    directions = torch.cat([means, means], 1)[:, :3]
    z = project(H, means[0], directions, means.new_ones(4, 2))
    X = H.double()
    known = torch.stack([X[[0, 2, 3]].mean(0), X[1]])
    steps = torch.stack([b.double() - a.double() for a, b in pairwise(layers)], 1)
    found, right = (
        torch.cat([part.flatten() for part in parts])
        for parts in (
            (means + errors, grams, z),
            (known, steps @ steps.mT, (X - known[0]) @ known.mT + 1),
        )
    )
    if not torch.allclose(found, right, rtol=1e-12, atol=1e-12):
        raise ArithmeticError(f"off by {float((found - right).abs().max()):.1e}")
