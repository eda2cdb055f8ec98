"""Loops over features that numba compiles: each number is read once, float64 stays in registers.

Every loop has a slow twin in torch beside the place that calls it. Features come by the address of
their first number, the distance between rows, and an empty array of their type: bfloat16 as uint16 and
float16 as int16, which numba has no type for. Sums may be reordered, nothing else is assumed of them.
"""

from contextlib import suppress
from typing import no_type_check

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

FASTMATH = {"reassoc", "contract", "nsz"}
called = register_jitable(no_cfunc_wrapper=True)  # of functions that only loops call
NINE, THREE = (0.0,) * 27, (0.0,) * 9  # sums of three rows with as many directions


@no_type_check
def compiled(cache):
    """The kernels, compiled on first use and kept in the folder `cache` from then on."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache or numba.config.CACHE_DIR
    try:
        return {
            loop.__name__: _kept(loop)
            for loop in (absorb, relate, increase, project, tally, screen, relative)
        }
    finally:
        numba.config.CACHE_DIR = before


@no_type_check
def _kept(loop):
    """A loop that is compiled on first use; anew in this process where its folder does not serve."""
    how = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "no_cfunc_wrapper": True}
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


@intrinsic
@no_type_check
def _widest(context):
    """Let the calling function use the widest vectors there are; by itself LLVM shuns some of them."""

    @no_type_check
    def code(context, builder, signature, args):
        with suppress(TypeError):  # without it the loops are but slower
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # add() knows few names
        return context.get_dummy_value()

    return types.none(), code


@called
@no_type_check
def _row(like, address, stride, i, width):
    return numba.carray(_pointer(address + i * stride * like.itemsize, like), (width,))


@no_type_check
def absorb(like, address, stride, labels, before, means, errors, start, kept, beside, gained):
    """Add some columns of rows to the means of their classes, and to what these classes' scatter gains.

    For the formula see `SegmentMoments.update`. In `labels` are the rows class by class, and the classes
    of the batch with their counts; in `before` their samples so far. How far the means moved and what
    rounding had taken from them goes to `kept`: of each class, or, where it has one row, of the last.
    Their products with those of another layer, if there are any, are gained, too.
    """
    order, present, count = labels
    S, total, others, lost = kept[0], kept[1], beside[0], beside[1]
    width, stop = S.shape[1], 0
    for p in range(len(present)):
        i, stop, s, t = stop, stop + int(count[p]), S[p % len(S)], total[p % len(S)]
        mean, error = means[present[p], start:], errors[present[p], start:]
        for d in range(width):
            s[d] = mean[d]
            t[d] = 0.0
        while i + 4 <= stop:
            gained[0, p] += _absorb_rows(like, address, stride, order[i : i + 4], s, t)
            i += 4
        while i < stop:
            gained[0, p] += _absorb_row(_row(like, address, stride, order[i], width), s, t)
            i += 1
        n, m = before[p], count[p]
        _move(n, m, s, t, mean, error)
        gained[0, p] -= (n + m) * _inner(s, s) - n * _inner(t, t)
        if len(others):
            gained[1, p] += _inner(s, others[p])
            gained[2, p] += _inner(t, lost[p])


@called
@no_type_check
def _inner(a, b):
    product = 0.0
    for d in range(len(a)):
        product += a[d] * b[d]
    return product


@called
@no_type_check
def _absorb_row(H, s, total):
    """Add a row less its shift; the sum of its squares."""
    square = 0.0
    for d in range(len(s)):
        x = real(H[d]) - s[d]
        total[d] += x
        square += x * x
    return square


@called
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
    """Move a class mean by its step from the shift `S`; the step and the error before come in place."""
    for d in range(len(S)):
        shift, e = S[d], error[d]
        step = (n * e + total[d]) / (n + m)
        mean[d] = shift + step
        part = mean[d] - shift
        error[d] = (shift - (mean[d] - part)) + (step - part)
        S[d], total[d] = step, e


@no_type_check
def relate(like, addresses, strides, labels, first, last, start, cross, steps):
    """Products of the ends less their means, by class; of a segment of two, squared steps, by row."""
    order, present, count, width = labels
    depth, stop = len(addresses) - 1, 0
    ends = addresses[0], strides[0], addresses[depth], strides[depth]
    for p in range(len(present)):
        begin, stop = stop, stop + int(count[p])
        a, b = first[present[p], start : start + width], last[present[p], start : start + width]
        for i in range(begin, stop, 2):
            rows = order[i], order[min(i + 1, stop - 1)]
            product, step, other = _relate_rows(like, ends, rows, a, b)
            cross[p] += product
            if depth == 1:
                steps[rows[0], 0, 0] += step
                if i + 1 < stop:
                    steps[rows[1], 0, 0] += other


@called
@no_type_check
def _relate_rows(like, ends, rows, a, b):
    """The product of two rows at the ends less their means, and each row's squared step; or of one."""
    _widest()
    (i, j), (first, before, last, after), width = rows, ends, len(a)
    A, B = _row(like, first, before, i, width), _row(like, last, after, i, width)
    C, D = _row(like, first, before, j, width), _row(like, last, after, j, width)
    product = more = step = other = 0.0
    for d in range(width):
        x, y, u, v = real(A[d]), real(B[d]), real(C[d]), real(D[d])
        product += (x - a[d]) * (y - b[d])
        more += (u - a[d]) * (v - b[d])
        step += (y - x) * (y - x)
        other += (v - u) * (v - u)
    return product + more if i != j else product, step, other


@no_type_check
def increase(like, addresses, strides, D, steps):
    """Products of all increments, row by row, of which `D` has room for an even number."""
    (size, depth, _), width = steps.shape, D.shape[1]
    for i in range(size):
        for l in range(depth):
            A = _row(like, addresses[l], strides[l], i, width)
            B = _row(like, addresses[l + 1], strides[l + 1], i, width)
            for d in range(width):
                D[l, d] = real(B[d]) - real(A[d])
        for l in range(0, depth, 2):
            for m in range(0, l + 1, 2):
                _products(D[l], D[l + 1], D[m], D[m + 1], steps[i], l, m)


@called
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
def tally(like, address, stride, points, place, nearest, count, hits, sums, squares, confusion):
    """Add up by class: samples, those nearest to their own point, residuals and their squares."""
    for i in range(len(place)):
        p, n, z = place[i], nearest[i], _row(like, address, stride, i, points.shape[1])
        own, total, square = points[p], sums[p], squares[p]
        count[p] += 1
        hits[p] += n == p
        if len(confusion):
            confusion[p, n] += 1
        for r in range(points.shape[1]):
            x = z[r] - own[r]
            total[r] += x
            square[r] += x * x


@no_type_check
def screen(first, over, back, last, each, e, u, own, sure, undecided):
    """Whether bounds of a quadratic leave open that it falls below 0 in part of [0, 1], pair by pair.

    Of its coefficients come bounds of each class and what they are to be above, that of the own class;
    the last ones by the sample's place `each`. Of a sample with `u` below 0 nothing is asked.
    """
    for i in range(len(own)):
        n, open_now = each[i], undecided[i]
        if u[i] < 0:
            open_now[:] = False
            continue
        parts = first[0][i], over[0][i], back[0][n], last[0][n]
        least = real(first[1][i]), real(over[1][i]) + real(back[1][n]), real(last[1][n])
        _screen_row(parts, least, e[i], u[i], sure, open_now)
        open_now[own[i]] = False


@called
@no_type_check
def _screen_row(parts, least, e, u, sure, undecided):
    _widest()
    (first, over, back, last), (low, middle, high) = parts, least
    for j in range(len(undecided)):
        a, c = real(first[j]) - low, real(last[j]) - high
        b = real(over[j]) + real(back[j]) - middle
        p, b = a + e * (b - a), b + e * (c - b)  # beyond e (de Casteljau)
        a = p + e * (b - p)
        p, b = c + u * (b - c), b + u * (a - b)  # and before the last part u
        c = p + u * (b - p)
        undecided[j] = not (a > 0 and c > 0 and (b > 0 or b * b < a * c * sure))


@no_type_check
def relative(x, y, a, b, pairs, split, found):
    """Of pairs of a sample and a class, coefficients about the own class and squared residuals.

    In `pairs` the row of each in `x` and in `y`, its own class and the other; the axes are of the first
    basis up to `split`, and then of the last.
    """
    for n in range(pairs.shape[1]):
        i, l, k, j = pairs[:, n]
        _relative_pair(x[i], y[l], a[k], b[k], a[j], b[j], split, found[:, n])


@called
@no_type_check
def _relative_pair(x, y, a, b, c, e, split, found):
    first = across = last = before = after = 0.0
    for d in range(split):
        p, u, v = c[d] - a[d], x[d] - a[d], y[d] - b[d]
        first += p * (p - 2 * u)
        across -= p * v
        before += u * u
    for d in range(split, len(x)):
        p, q, u, v = c[d] - a[d], e[d] - b[d], x[d] - a[d], y[d] - b[d]
        across += q * (p - u)
        last += q * (q - 2 * v)
        after += v * v
    found[0], found[1], found[2], found[3], found[4] = first, across, last, before, after


@no_type_check
def project(like, address, stride, centre, flat, ways, wide, z):
    """Add the products of centred rows with directions, of three rows with nine or three at once.

    In `ways` so many columns of the directions, and zeros that make them up to threes or nines.
    """
    (R, D), size = flat.shape, len(z)
    nine, far = len(ways) - len(ways) % 9, (size + 2) // 3
    for start in range(0, D, wide):
        stop = min(start + wide, D)
        at, middle = address + start * like.itemsize, centre[start:stop]
        for r in range(R):
            way, direction = ways[r], flat[r, start:stop]
            for d in range(len(direction)):
                way[d] = direction[d]
        for i in range(far):  # three streams of rows that lie one after the other, as caches expect
            rows = i, i + far if i + far < size else i, i + 2 * far if i + 2 * far < size else i
            for r in range(0, nine, 9):
                _multiply(like, at, stride, rows, middle, ways[r:], NINE, z[:, r:])
            if nine < R:
                _multiply(like, at, stride, rows, middle, ways[nine:], THREE, z[:, nine:])


@called
@no_type_check
def _multiply(like, address, stride, rows, middle, ways, none, z):
    """Add the products of three rows with some directions to as many of them as there is room for."""
    _widest()
    (i, j, k), width, sums = rows, len(middle), none
    A, B = _row(like, address, stride, i, width), _row(like, address, stride, j, width)
    C = _row(like, address, stride, k, width)
    for d in range(width):
        numbers = real(A[d]) - middle[d], real(B[d]) - middle[d], real(C[d]) - middle[d]
        sums = _plus(sums, numbers, ways, d)
    for r in range(min(len(none) // 3, z.shape[1])):
        z[i, r] += sums[3 * r]
        if j > i:
            z[j, r] += sums[3 * r + 1]
        if k > j:
            z[k, r] += sums[3 * r + 2]


@intrinsic
@no_type_check
def _plus(context, sums, numbers, ways, d):
    """Add the products of three numbers with column d of some rows to these sums, row by row."""

    @no_type_check
    def code(context, builder, signature, args):
        sums, numbers, ways, d = args
        matrix = context.make_array(signature.args[2])(context, builder, ways)
        width = builder.extract_value(matrix.shape, 1)
        for s in range(len(signature.args[0])):
            if s % 3 == 0:
                start = builder.mul(width, context.get_constant(types.intp, s // 3))
                y = builder.load(builder.gep(builder.gep(matrix.data, [start]), [d]))
            product = builder.fmul(builder.extract_value(numbers, s % 3), y, flags=[*FASTMATH])
            total = builder.fadd(builder.extract_value(sums, s), product, flags=[*FASTMATH])
            sums = builder.insert_value(sums, total, s)
        return sums

    return sums(sums, numbers, ways, d), code
