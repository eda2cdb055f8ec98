"""The loops of `kernels` as Triton's programs for a device; each has some columns or some rows.

A program of `absorb` has one class, whose rows it visits, so that no two write to one place.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def absorb(
    H,
    stride,
    order,
    starts,
    count,
    present,
    before,
    means,
    errors,
    apart,
    width,
    step,
    error,
    gained,
    COLUMNS: tl.constexpr,
):
    """Some columns of a class: its mean moves, its scatter gains. See `SegmentMoments.absorb`."""
    p, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = d < width
    n, m = tl.load(before + p), tl.load(count + p)
    mean = means + tl.load(present + p) * apart + d
    rounded = errors + tl.load(present + p) * apart + d
    S = tl.load(mean, mask=inside, other=0)
    total, square = tl.zeros_like(S), tl.zeros_like(S)
    begin = tl.load(starts + p)
    for i in range(begin, begin + m.to(tl.int64)):
        row = tl.load(order + i)
        x = tl.load(H + row * stride + d, mask=inside, other=0).to(tl.float64)
        x = tl.where(inside, x - S, 0.0)
        total += x
        square += x * x
    e = tl.load(rounded, mask=inside, other=0)
    s = (n * e + total) / (n + m)
    new = S + s
    part = new - S
    tl.store(mean, new, mask=inside)
    tl.store(rounded, (S - (new - part)) + (s - part), mask=inside)
    tl.store(step + p * width + d, s, mask=inside)
    tl.store(error + p * width + d, e, mask=inside)
    tl.store(gained + p * tl.num_programs(1) + block, tl.sum(square - (n + m) * (s * s) + n * (e * e)))


@triton.jit
@no_type_check
def relate(
    like,
    addresses,
    strides,
    depth,
    classes,
    first,
    last,
    apart,
    width,
    cross,
    steps,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A row: the product of the ends less their means, and those of all increments."""
    i = tl.program_id(0).to(tl.int64)
    k = tl.load(classes + i)
    l = tl.arange(0, SIDE)
    real = l < depth
    low = tl.load(addresses + l, mask=real, other=0).to(like.dtype)
    low += i * tl.load(strides + l, mask=real, other=0)
    high = tl.load(addresses + l + 1, mask=real, other=0).to(like.dtype)
    high += i * tl.load(strides + l + 1, mask=real, other=0)
    A = tl.load(addresses).to(like.dtype) + i * tl.load(strides)
    B = tl.load(addresses + depth).to(like.dtype) + i * tl.load(strides + depth)
    gram = tl.zeros((SIDE, SIDE), tl.float64)
    product = tl.zeros((COLUMNS,), tl.float64)
    for start in range(0, width, COLUMNS):
        d = start + tl.arange(0, COLUMNS)
        inside = d < width
        both = real[:, None] & inside[None, :]
        D = tl.load(high[:, None] + d[None, :], mask=both, other=0).to(tl.float64)
        D -= tl.load(low[:, None] + d[None, :], mask=both, other=0).to(tl.float64)
        gram += tl.sum(D[:, None, :] * D[None, :, :], axis=2)
        a = tl.load(A + d, mask=inside, other=0).to(tl.float64)
        b = tl.load(B + d, mask=inside, other=0).to(tl.float64)
        a -= tl.load(first + k * apart + d, mask=inside, other=0)
        b -= tl.load(last + k * apart + d, mask=inside, other=0)
        product += a * b
    tl.store(cross + i, tl.sum(product))
    at = steps + i * depth * depth + l[:, None] * depth + l[None, :]
    tl.store(at, gram, mask=real[:, None] & real[None, :])


@triton.jit
@no_type_check
def project(
    H,
    size,
    stride,
    centre,
    flat,
    apart,
    directions,
    width,
    z,
    ROWS: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the products of some centred rows with all directions."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, SIDE)
    kept = (i < size)[:, None] & (r < directions)[None, :]
    to = z + i[:, None] * directions + r[None, :]
    found = tl.load(to, mask=kept, other=0)
    for start in range(0, width, COLUMNS):
        d = start + tl.arange(0, COLUMNS)
        rows = (i < size)[:, None] & (d < width)[None, :]
        x = tl.load(H + i[:, None] * stride + d[None, :], mask=rows, other=0).to(tl.float64)
        x -= tl.load(centre + d, mask=d < width, other=0)[None, :]
        ways = (r < directions)[:, None] & (d < width)[None, :]
        v = tl.load(flat + r[:, None] * apart + d[None, :], mask=ways, other=0)
        found += tl.sum(x[:, None, :] * v[None, :, :], axis=2)
    tl.store(to, found, mask=kept)
