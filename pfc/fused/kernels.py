"""Loops over features that numba compiles: each number is read once, float64 stays in registers.

Every loop has a slow twin in torch beside the place that calls it. Features come by the address of
their first number, the distance between rows, and an empty array of their type: bfloat16 as uint16 and
float16 as int16, which numba has no type for. Sums may be reordered, nothing else is assumed of them.
"""

from typing import no_type_check

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

FASTMATH = {"reassoc", "contract", "nsz"}
WIDE = 4096  # columns that are projected at once, so that few rows and directions stay in the cache


@no_type_check
def compiled(cache):
    """The kernels, compiled on first use and kept in the folder `cache` from then on."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache or numba.config.CACHE_DIR
    try:
        return {loop.__name__: _kept(loop) for loop in (absorb, relate, project, tally)}
    finally:
        numba.config.CACHE_DIR = before


@no_type_check
def _kept(loop):
    """A loop that is compiled on first use; anew in this process where its folder does not serve."""
    how = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
    anew = numba.njit(**how)(loop)
    try:
        serving = numba.njit(**how, cache=True)(loop)
    except RuntimeError:  # there is no folder to write to
        return anew

    @no_type_check
    def run(*args):
        nonlocal serving
        try:
            return serving(*args)
        except Exception:  # of a full disk or a damaged file; what is wrong with the loop comes again
            if serving is anew:
                raise
            serving = anew
            return anew(*args)

    return run


@no_type_check
def real(number):
    """A number of any type that features have, as float64."""
    raise NotImplementedError


@overload(real)
@no_type_check
def _real(number):
    if number == types.uint16:
        return lambda number: np.float64(np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32))
    if number == types.int16:
        return _half
    return lambda number: np.float64(number)


@no_type_check
def _half(number):
    """A float16 number: a float32 with eight more exponents, but for zero, subnormals, inf and NaN."""
    exponent, size = np.uint32(number) & np.uint32(0x7C00), np.uint32(number) & np.uint32(0x7FFF)
    if exponent == np.uint32(0):
        return np.copysign(np.float64(size) * 2.0**-24, np.float64(number))
    more = np.uint32(224 << 23) if exponent == np.uint32(0x7C00) else np.uint32(112 << 23)
    bits = np.uint32((size << np.uint32(13)) + more)
    return np.copysign(np.float64(bits.view(np.float32)), np.float64(number))


@intrinsic
@no_type_check
def _pointer(context, address, like):
    kind = types.CPointer(like.dtype)

    @no_type_check
    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(address, like), code


@register_jitable
@no_type_check
def _row(like, address, stride, i, width):
    return numba.carray(_pointer(address + i * stride * like.itemsize, like), (width,))


@no_type_check
def absorb(like, address, stride, labels, before, means, errors, start, S, total, gained):
    """Add some columns of rows to the means of their classes, and to what these classes' scatter gains.

    For the formula see `SegmentMoments.update`. In `labels` are the rows class by class, and the classes
    of the batch with their counts; in `before` their samples so far. How far the means moved from the
    shifts goes to `S`, what rounding had taken from them to `total`: of each class, or, where both have
    one row, of the last one.
    """
    order, present, count = labels
    width, address, stop = S.shape[1], address + start * like.itemsize, 0
    for p in range(len(present)):
        i, stop, s, t = stop, stop + int(count[p]), S[p % len(S)], total[p % len(S)]
        H, mean, error = (
            _row(like, address, stride, order[i], width),
            means[present[p], start:],
            errors[present[p], start:],
        )
        for d in range(width):
            s[d] = mean[d] if before[p] else real(H[d])
            t[d] = 0.0
        while i + 4 <= stop:
            gained[p] += _absorb_rows(like, address, stride, order[i : i + 4], s, t)
            i += 4
        while i < stop:
            gained[p] += _absorb_row(_row(like, address, stride, order[i], width), s, t)
            i += 1
        gained[p] -= _move(before[p], count[p], s, t, mean, error)


@register_jitable
@no_type_check
def _absorb_row(H, s, total):
    """Add a row less its shift; the sum of its squares."""
    square = 0.0
    for d in range(len(s)):
        x = real(H[d]) - s[d]
        total[d] += x
        square += x * x
    return square


@register_jitable
@no_type_check
def _absorb_rows(like, address, stride, rows, s, total):
    """The same of four rows of a class, whose sums are written once."""
    A, B = _row(like, address, stride, rows[0], len(s)), _row(like, address, stride, rows[1], len(s))
    C, D = _row(like, address, stride, rows[2], len(s)), _row(like, address, stride, rows[3], len(s))
    square = 0.0
    for d in range(len(s)):
        a, b, c, e = real(A[d]) - s[d], real(B[d]) - s[d], real(C[d]) - s[d], real(D[d]) - s[d]
        total[d] += (a + b) + (c + e)
        square += (a * a + b * b) + (c * c + e * e)
    return square


@numba.njit(error_model="numpy", fastmath=False)  # else the caller's: here no sum may be reordered
@no_type_check
def _move(n, m, S, total, mean, error):
    """Move a class mean by its step from the shift; the squares that its scatter loses."""
    lost = 0.0
    for d in range(len(S)):
        shift, e = S[d], error[d]
        step = (n * e + total[d]) / (n + m)
        lost += (n + m) * (step * step) - n * (e * e)
        mean[d] = shift + step
        part = mean[d] - shift
        error[d] = (shift - (mean[d] - part)) + (step - part)
        S[d], total[d] = step, e
    return lost


@no_type_check
def relate(like, addresses, strides, place, first, last, start, cross, steps):
    """Products of the ends less their shifts, added up by class, and those of increments, row by row."""
    depth, width, addresses = len(addresses) - 1, first.shape[1], addresses + start * like.itemsize
    D = np.zeros((depth + depth % 2, width))
    for i in range(len(place)):
        A, a = _row(like, addresses[0], strides[0], i, width), first[place[i]]
        B, b = _row(like, addresses[depth], strides[depth], i, width), last[place[i]]
        product = step = 0.0
        for d in range(width):
            x, y = real(A[d]), real(B[d])
            product += (x - a[d]) * (y - b[d])
            step += (y - x) * (y - x)
        cross[place[i]] += product
        if depth == 1:
            steps[i, 0, 0] += step
            continue
        for l in range(depth):
            A = _row(like, addresses[l], strides[l], i, width)
            B = _row(like, addresses[l + 1], strides[l + 1], i, width)
            for d in range(width):
                D[l, d] = real(B[d]) - real(A[d])
        for l in range(0, depth, 2):
            for m in range(0, l + 1, 2):
                _products(D[l], D[l + 1], D[m], D[m + 1], steps[i], l, m)


@register_jitable
@no_type_check
def _products(p, q, u, v, gram, l, m):
    """Add the inner products of two rows with two others to both sides of a symmetric matrix."""
    pu = pv = qu = qv = 0.0
    for d in range(len(p)):
        pu += p[d] * u[d]
        pv += p[d] * v[d]
        qu += q[d] * u[d]
        qv += q[d] * v[d]
    for a, b, product in ((l, m, pu), (l, m + 1, pv), (l + 1, m, qu), (l + 1, m + 1, qv)):
        if a < len(gram) and b <= a:
            gram[a, b] += product
            if a != b:
                gram[b, a] += product


@no_type_check
def tally(z, points, place, nearest, count, hits, sums, squares, confusion):
    """Add up by class: samples, those nearest to their own point, residuals and their squares."""
    for i in range(len(place)):
        p, n = place[i], nearest[i]
        own, total, square = points[p], sums[p], squares[p]
        count[p] += 1
        hits[p] += n == p
        if len(confusion):
            confusion[p, n] += 1
        for r in range(points.shape[1]):
            x = z[i, r] - own[r]
            total[r] += x
            square[r] += x * x


@no_type_check
def project(like, address, stride, centre, flat, z):
    """Add the products of centred rows with directions, of which there are a multiple of three."""
    for start in range(0, len(centre), WIDE):
        stop = min(start + WIDE, len(centre))
        for i in range(0, len(z), 4):
            rows = (i, min(i + 1, len(z) - 1), min(i + 2, len(z) - 1), min(i + 3, len(z) - 1))
            _project_rows(like, address, stride, rows, centre, flat, z, start, stop)


@register_jitable
@no_type_check
def _project_rows(like, address, stride, rows, centre, flat, z, start, stop):
    """Project four rows, by three directions at once; at the end of a batch some are one."""
    i, j, k, l = rows
    at, width, m = address + start * like.itemsize, stop - start, centre[start:stop]
    A, B = _row(like, at, stride, i, width), _row(like, at, stride, j, width)
    C, D = _row(like, at, stride, k, width), _row(like, at, stride, l, width)
    for r in range(0, len(flat), 3):
        u, v, w = flat[r, start:stop], flat[r + 1, start:stop], flat[r + 2, start:stop]
        a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = 0.0
        for n in range(width):
            a, b, c, d = real(A[n]) - m[n], real(B[n]) - m[n], real(C[n]) - m[n], real(D[n]) - m[n]
            x, y, t = u[n], v[n], w[n]
            a0 += a * x
            a1 += a * y
            a2 += a * t
            b0 += b * x
            b1 += b * y
            b2 += b * t
            c0 += c * x
            c1 += c * y
            c2 += c * t
            d0 += d * x
            d1 += d * y
            d2 += d * t
        _add(z[i], r, a0, a1, a2)
        if j > i:
            _add(z[j], r, b0, b1, b2)
        if k > j:
            _add(z[k], r, c0, c1, c2)
        if l > k:
            _add(z[l], r, d0, d1, d2)


@register_jitable
@no_type_check
def _add(z, r, x, y, t):
    z[r] += x
    z[r + 1] += y
    z[r + 2] += t
