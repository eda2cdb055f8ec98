"""Pairs of points, tile by tile: no matrix of all of them is in memory at once.

A squared distance is one product of matrices; where points are so near that its terms cancel, the
distance is taken from their difference, to all digits.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.bounds import Form
from pfc.tiles import rows_at_once

EPS = torch.finfo(torch.float64).eps
ROUNDING = 16 * EPS  # of a squared distance about the origin, over its terms; ours
NEAR = 0.01  # of the terms of a squared distance: below it they cost digits; ours
FEW = 200  # points below which bounds are not worth it; measured
OFTEN = 0.05  # share of near pairs above which all of a tile are taken from differences; ours


def blocks(M: Float[Tensor, "P R"]) -> Iterator[tuple[slice, slice]]:
    """Rows of a matrix, and those from the first of them on: each pair once, and some twice over."""
    height = rows_at_once(len(M), M)
    for start in range(0, len(M), height):
        yield slice(start, start + height), slice(start, None)


def squared_distances(
    M: Float[Tensor, "P R"],
) -> Iterator[tuple[slice, slice, Float[Tensor, "a b"]]]:
    """Squared distances of some points to those from the first of them on, to all digits."""
    squares = M.square().sum(1)
    for rows, rest in blocks(M):
        yield rows, rest, _to_all_digits(M[rows], M[rest], squares[rows, None], squares[rest])


def _to_all_digits(
    A: Float[Tensor, "a R"], B: Float[Tensor, "b R"], a: Float[Tensor, "a 1"], b: Float[Tensor, " b"]
) -> Float[Tensor, "a b"]:
    """Squared distances of few rows to rows, whose squares are known."""
    found = torch.addmm(b, A, B.mT, alpha=-2).add_(a)
    near = found <= NEAR * (a + b)
    i, j = near.nonzero().unbind(1)
    if len(i) > OFTEN * found.numel():
        return torch.cdist(A, B, compute_mode="donot_use_mm_for_euclid_dist").square()
    for part in torch.arange(len(i), device=i.device).split(rows_at_once(A.shape[1], A)):
        found[i[part], j[part]] = (A[i[part]] - B[j[part]]).square().sum(1)
    return found


def nearest_others(M: Float64[Tensor, "P R"]) -> Int64[Tensor, " P"]:
    """The other point that is the nearest to each, the lowest of those at one distance."""
    norms, squares = M.norm(dim=1), M.square().sum(1)
    largest = norms.max()
    tie = 2 * ROUNDING * (2 * largest) ** 2  # both what a product rounds and what counts as one
    every = torch.arange(len(M), device=M.device)
    place, left = (every.clone(), every) if len(M) <= FEW else _screened(M, norms, every, tie)
    for rows in left.split(rows_at_once(len(M), M)):  # in double precision
        square = _to_all_digits(M[rows], M, squares[rows, None], squares)
        square.scatter_(1, rows[:, None], torch.inf)
        place[rows] = square.argmin(1)
        tied = rows[(square <= square.amin(1, keepdim=True) + tie).sum(1) > 1]
        if len(tied):
            place[tied] = _first_nearest(M, tied, ROUNDING * largest)
    return place


def _screened(
    M: Float64[Tensor, "P R"], norms: Float64[Tensor, " P"], every: Int64[Tensor, " P"], tie: Tensor
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " n"]]:
    """The nearest others as far as bounds tell, and the points of which they do not."""
    form, found, left = Form.gaps(M), [], []
    for rows in every.split(rows_at_once(len(M), M)):
        gaps = form.bounds(M[rows], norms[rows])
        gaps.values.scatter_(1, rows[:, None], torch.inf)
        nearest, others = gaps.least()
        found.append(nearest)
        left.append(rows[gaps.reached(others, gaps.above(nearest), tie)])
    return torch.cat(found), torch.cat(left)


def _first_nearest(
    M: Float[Tensor, "P R"], rows: Int64[Tensor, " b"], one: Float[Tensor, ""]
) -> Int64[Tensor, " b"]:
    """The first of the other points whose distance is the least, but for so much."""
    apart = torch.cdist(M[rows], M, compute_mode="donot_use_mm_for_euclid_dist")
    least = apart.scatter_(1, rows[:, None], torch.inf).amin(1, keepdim=True)
    return (apart <= least + one).byte().argmax(1)
