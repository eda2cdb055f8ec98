"""Loops over features that numba compiles: each number is read once, float64 stays in registers.

Every loop has a slow twin in torch beside the place that calls it. What they read and write comes by the
address of its first number, as arrays take twice as long to compile; features besides by the bytes from
row to row and a number of their type: bfloat16 as uint16 and float16 as int16, which numba has no type
for. Sums may be reordered, nothing else is assumed of them. All stands in one file: what is kept
compiled is compiled anew when that file changes.
"""

from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import no_type_check

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, register_jitable

from pfc.fused.processor import uncollected

FASTMATH = {"reassoc", "contract", "nsz"}
PLAIN = {"no_cfunc_wrapper": True, "no_rewrites": True}  # no calls from C, no arrays to rewrite
called = register_jitable(**PLAIN)  # of functions that only loops call
exactly = register_jitable(**PLAIN, fastmath=False)  # where sums keep their order
LINE = 64  # bytes of a line of the cache
AHEAD = 64  # columns between which the next lines are fetched; measured
NINE, THREE = (0.0,) * 27, (0.0,) * 9  # sums of three rows with as many directions


@no_type_check
def compiled(cache):
    """The kernels, compiled on first use and kept in the folder `cache` from then on."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache or numba.config.CACHE_DIR
    try:
        return {
            loop.__name__: _kept(loop) for loop in (absorb, relate, increase, project, screen, relative)
        }
    finally:
        numba.config.CACHE_DIR = before


@no_type_check
def _kept(loop):
    """A loop that is compiled on first use; anew in this process where its folder does not serve."""
    how = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"} | PLAIN
    serving = anew = numba.njit(**how)(loop)
    with suppress(RuntimeError):  # there is no folder to write to
        serving = numba.njit(**how, cache=True)(loop)
    known = set()  # types of features, on which alone it depends what is compiled

    @no_type_check
    def run(*args):
        nonlocal serving
        kind = type(args[0])
        with nullcontext() if kind in known else _compiling():
            try:
                serving(*args)
            except Exception:  # of a full disk or a damaged file; what else is wrong comes again
                if serving is anew:
                    raise
                serving = anew
                anew(*args)
        known.add(kind)

    return run


@contextmanager
@no_type_check
def _compiling():
    """LLVM's first level, which makes of these loops what its third does; no garbage is collected."""
    with global_compiler_lock, uncollected():
        before = numba.config.OPT
        numba.config.OPT = type(before)(min(before, 1))
        try:
            yield
        finally:
            numba.config.OPT = before


@intrinsic
@no_type_check
def real(context, number):
    """A number of any type that features have, as float64."""

    @no_type_check
    def code(context, builder, signature, args):
        (number,), (kind,), wanted = args, signature.args, signature.return_type
        if kind == types.int16:
            return context.compile_internal(builder, _half, signature, args)
        if kind == types.uint16:  # the upper half of a float32
            bits = context.cast(builder, number, kind, types.uint32)
            bits = builder.shl(bits, context.get_constant(types.uint32, 16))
            number, kind = builder.bitcast(bits, context.get_value_type(types.float32)), types.float32
        return context.cast(builder, number, kind, wanted)

    return types.float64(number), code


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
def _at(context, like, address):
    """Numbers of the type of another, from an address on."""
    kind = types.CPointer(types.unliteral(like))

    @no_type_check
    def code(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(kind))

    return kind(like, address), code


@intrinsic
@no_type_check
def _fetch(context, address):
    """Begin to read the line of the cache with an address, which is soon to be used."""

    @no_type_check
    def code(context, builder, signature, args):
        place = builder.inttoptr(args[0], cgutils.voidptr_t)
        how = [context.get_constant(types.int32, n) for n in (0, 3, 1)]  # to read data, into all caches
        kind = cgutils.ir.FunctionType(
            cgutils.ir.VoidType(), [cgutils.voidptr_t, *(n.type for n in how)]
        )
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        builder.call(fetch, [place, *how])
        return context.get_dummy_value()

    return types.none(address), code


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


@no_type_check
def absorb(like, itemsize, address, row, labels, state, columns, kept, beside):
    """Add some columns of rows to the means and the scatter of their classes.

    For the formula see `SegmentMoments.update`. In `labels` are the rows class by class, the classes of
    the batch with their counts, and how many these are; in `state` the samples of all classes so far,
    the means, their errors and the scatter; in `columns` how many rows there are, the first column, how
    many, and how many at once. How far the means moved and what rounding had taken from them goes to
    `kept`, where classes lie so many numbers apart, or share a place if none; of another layer it is
    `beside`, with a place for the products of both.
    """
    (rows, classes, counts, P), (samples, means, errors, scatters, D), stop = labels, state, 0
    (size, start, width, near), (moved, rounded, apart), (other, products) = columns, kept, beside
    order, present, count = _at(0, rows), _at(0, classes), _at(0.0, counts)
    before, scatter, found = _at(0.0, samples), _at(0.0, scatters), _at(0.0, products)
    for p in range(P):
        begin, stop, gain = stop, stop + np.int64(count[p]), 0.0
        n, m, end = before[present[p]], count[p], size if width <= near else stop  # of fetching
        for first in range(0, width, near):
            at, i = address + first * itemsize, begin
            some = near if first + near < width else width - first
            own = (p * apart + first) * 8 if apart else 0
            s, t = _at(0.0, moved + own), _at(0.0, rounded + own)
            place = (present[p] * D + start + first) * 8
            mean, rest, square = _at(0.0, means + place), _at(0.0, errors + place), 0.0
            for d in range(some):
                t[d] = 0.0
            while i + 4 <= stop:
                square += _absorb_rows(like, itemsize, at, row, order, i, end, mean, t, some)
                i += 4
            while i < stop:
                A = _at(like, at + order[i] * row)
                for d in range(some):
                    x = real(A[d]) - mean[d]
                    t[d] += x
                    square += x * x
                i += 1
            _move(n, m, mean, rest, t, s, some)
            step, _, _, error = _products(s, t, s, t, some)
            gain += square - ((n + m) * step - n * error)
            if other != 0:
                u = _at(0.0, other + (p * width + first) * 8)
                v = _at(0.0, other + ((P + p) * width + first) * 8)
                step, _, _, error = _products(s, t, u, v, some)
                found[p] += step
                found[P + p] += error
        scatter[present[p]] += gain


@called
@no_type_check
def _absorb_rows(like, itemsize, address, row, order, i, end, mean, total, width):
    """Add four rows less the mean so far, and fetch those after them; the sum of their squares."""
    A, B = _at(like, address + order[i] * row), _at(like, address + order[i + 1] * row)
    C, E = _at(like, address + order[i + 2] * row), _at(like, address + order[i + 3] * row)
    square, end = 0.0, i + 8 if i + 8 < end else end
    for first in range(0, width, AHEAD):
        stop = first + AHEAD if first + AHEAD < width else width
        for j in range(i + 4, end):
            for place in range(first * itemsize, stop * itemsize, LINE):
                _fetch(address + order[j] * row + place)
        for d in range(first, stop):
            shift = mean[d]
            a, b, c, e = real(A[d]) - shift, real(B[d]) - shift, real(C[d]) - shift, real(E[d]) - shift
            total[d] += (a + b) + (c + e)
            square += (a * a + b * b) + (c * c + e * e)
    return square


@exactly
@no_type_check
def _move(n, m, mean, error, total, steps, width):
    """Move a class mean by its step; what rounding had taken from it comes in place of the total."""
    for d in range(width):
        shift, e = mean[d], error[d]
        step = (n * e + total[d]) / (n + m)
        moved = shift + step
        part = moved - shift
        mean[d] = moved
        error[d] = (shift - (moved - part)) + (step - part)
        steps[d] = step
        total[d] = e


@no_type_check
def relate(like, ends, labels, means, columns, cross, steps):
    """Products of the ends less their means, by class; of a segment of two, squared steps, by row."""
    _widest()
    (first, before, last, after), (rows, classes, counts, P) = ends, labels
    (M, N, D), (start, width) = means, columns
    order, present, count = _at(0, rows), _at(0, classes), _at(0.0, counts)
    found, gained, stop = _at(0.0, cross), _at(0.0, steps), 0
    for p in range(P):
        begin, stop = stop, stop + np.int64(count[p])
        place = (present[p] * D + start) * 8
        a, b = _at(0.0, M + place), _at(0.0, N + place)
        for n in range(begin, stop, 2):
            i, j = order[n], order[n + 1 if n + 1 < stop else n]
            A, B = _at(like, first + i * before), _at(like, last + i * after)
            C, E = _at(like, first + j * before), _at(like, last + j * after)
            product = more = step = other = 0.0
            for d in range(width):
                x, y, u, v = real(A[d]), real(B[d]), real(C[d]), real(E[d])
                product += (x - a[d]) * (y - b[d])
                more += (u - a[d]) * (v - b[d])
                step += (y - x) * (y - x)
                other += (v - u) * (v - u)
            found[p] += product + more if i != j else product
            if steps != 0:
                gained[i] += step
                if i != j:
                    gained[j] += other


@no_type_check
def increase(like, itemsize, layers, strides, shape, room, steps):
    """Products of all increments, row by row; there is room for an even number of them."""
    (size, depth, width, near), even = shape, shape[1] + shape[1] % 2
    address, row = _at(0, layers), _at(0, strides)
    for i in range(size):
        gram = _at(0.0, steps + i * even * even * 8)
        for first in range(0, width, near):
            some = near if first + near < width else width - first
            for l in range(depth):
                at, then = i * row[l] + first * itemsize, i * row[l + 1] + first * itemsize
                A, B = _at(like, address[l] + at), _at(like, address[l + 1] + then)
                D = _at(0.0, room + l * near * 8)
                for d in range(some):
                    D[d] = real(B[d]) - real(A[d])
            for l in range(0, depth, 2):
                p, q = _at(0.0, room + l * near * 8), _at(0.0, room + (l + 1) * near * 8)
                for m in range(0, l + 1, 2):
                    u, v = _at(0.0, room + m * near * 8), _at(0.0, room + (m + 1) * near * 8)
                    pu, pv, qu, qv = _products(p, q, u, v, some)
                    g, h = l * even + m, m * even + l
                    gram[g] += pu
                    gram[g + 1] += pv
                    gram[g + even] += qu
                    gram[g + even + 1] += qv
                    if m < l:
                        gram[h] += pu
                        gram[h + 1] += qu
                        gram[h + even] += pv
                        gram[h + even + 1] += qv


@called
@no_type_check
def _products(p, q, u, v, width):
    """The inner products of two rows with two others."""
    pu = pv = qu = qv = 0.0
    for d in range(width):
        pu += p[d] * u[d]
        pv += p[d] * v[d]
        qu += q[d] * u[d]
        qv += q[d] * v[d]
    return pu, pv, qu, qv


@no_type_check
def screen(like, itemsize, shape, values, owns, each, parts, classes, sure, undecided):
    """Whether bounds of a quadratic leave open that it falls below 0 in part of [0, 1], pair by pair.

    Of its coefficients come bounds of each class and what they are to be above, that of the own class;
    the last ones by the sample's place `each`. Of a sample with `u` below 0 nothing is asked.
    """
    (B, K), (first, over, back, last) = shape, values
    own_first, own_over = _at(like, owns[0]), _at(like, owns[1])
    own_back, own_last = _at(like, owns[2]), _at(like, owns[3])
    place, own, e, u = _at(0, each), _at(0, classes), _at(like, parts[0]), _at(like, parts[1])
    for i in range(B):
        open_now = _at(np.uint8(0), undecided + i * K)
        if u[i] < 0:
            for j in range(K):
                open_now[j] = 0
            continue
        n, here, there = place[i], i * K * itemsize, place[i] * K * itemsize
        least = real(own_first[i]), real(own_over[i]) + real(own_back[n]), real(own_last[n])
        starts = _at(like, first + here), _at(like, over + here)
        stops = _at(like, back + there), _at(like, last + there)
        _screen_row(starts, stops, least, real(e[i]), real(u[i]), sure, open_now, K)
        open_now[own[i]] = 0


@called
@no_type_check
def _screen_row(starts, stops, least, e, u, sure, undecided, K):
    _widest()
    (first, over), (back, last), (low, middle, high) = starts, stops, least
    for j in range(K):
        a, c = real(first[j]) - low, real(last[j]) - high
        b = real(over[j]) + real(back[j]) - middle
        p, b = a + e * (b - a), b + e * (c - b)  # beyond e (de Casteljau)
        a = p + e * (b - p)
        p, b = c + u * (b - c), b + u * (a - b)  # and before the last part u
        c = p + u * (b - p)
        undecided[j] = not (a > 0 and c > 0 and (b > 0 or b * b < a * c * sure))


@no_type_check
def relative(shape, samples, means, pairs, split, found):
    """Of pairs of a sample and a class, coefficients about the own class and squared residuals.

    In `pairs` the row of each in `x` and in `y`, its own class and the other; the axes are of the first
    basis up to `split`, and then of the last.
    """
    (N, S), (x, y), (a, b), wide = shape, samples, means, shape[1] * 8
    rows, to = _at(0, pairs), _at(0.0, found)
    for n in range(N):
        i, l, k, j = rows[n] * wide, rows[N + n] * wide, rows[2 * N + n] * wide, rows[3 * N + n] * wide
        sample, own = (_at(0.0, x + i), _at(0.0, y + l)), (_at(0.0, a + k), _at(0.0, b + k))
        other = _at(0.0, a + j), _at(0.0, b + j)
        first, across, last, before, after = _relative_pair(sample, own, other, split, S)
        to[n], to[N + n], to[2 * N + n] = first, across, last
        to[3 * N + n], to[4 * N + n] = before, after


@called
@no_type_check
def _relative_pair(sample, own, other, split, width):
    first = across = last = before = after = 0.0
    (x, y), (a, b), (c, e) = sample, own, other
    for d in range(split):
        p, u, v = c[d] - a[d], x[d] - a[d], y[d] - b[d]
        first += p * (p - 2 * u)
        across -= p * v
        before += u * u
    for d in range(split, width):
        p, q, u, v = c[d] - a[d], e[d] - b[d], x[d] - a[d], y[d] - b[d]
        across += q * (p - u)
        last += q * (q - 2 * v)
        after += v * v
    return first, across, last, before, after


@no_type_check
def project(like, address, row, itemsize, centre, flat, shape, ways, wide, z):
    """Add the products of centred rows with directions, of three rows with nine or three at once.

    In `ways` is room for so many columns of the directions, which zeros make up to threes or nines: its
    address, its rows, and their length. `z` has as many columns, and rows to make up threes.
    """
    (size, R, D), (room, rows, length), far = shape, ways, (shape[0] + 2) // 3
    nine = rows - rows % 9
    for start in range(0, D, wide):
        width = wide if start + wide < D else D - start
        middle, at = _at(0.0, centre + start * 8), address + start * itemsize
        for r in range(rows):
            way, direction = _at(0.0, room + r * length * 8), _at(0.0, flat + (r * D + start) * 8)
            for d in range(width):
                way[d] = direction[d] if r < R else 0.0
        for i in range(far):  # three streams of rows that lie one after the other, as caches expect
            j, k = i + far, i + 2 * far
            A = _at(like, at + i * row)
            B = _at(like, at + j * row) if j < size else A
            C = _at(like, at + k * row) if k < size else A
            for r in range(0, nine, 9):
                found = _at(0.0, z + (i * rows + r) * 8)
                way = _at(0.0, room + r * length * 8)
                _multiply(A, B, C, middle, way, length, width, NINE, found, far * rows)
            if nine < rows:
                found = _at(0.0, z + (i * rows + nine) * 8)
                way = _at(0.0, room + nine * length * 8)
                _multiply(A, B, C, middle, way, length, width, THREE, found, far * rows)


@called
@no_type_check
def _multiply(A, B, C, middle, ways, length, width, none, found, apart):
    """Add the products of three rows with some directions, row by row so far apart."""
    _widest()
    sums = none
    for d in range(width):
        numbers = real(A[d]) - middle[d], real(B[d]) - middle[d], real(C[d]) - middle[d]
        sums = _plus(sums, numbers, ways, length, d)
    _add(sums, found, apart)


@intrinsic
@no_type_check
def _add(context, sums, found, apart):
    """Add sums of three rows by turns to what was found of each."""

    @no_type_check
    def code(context, builder, signature, args):
        sums, found, apart = args
        number = partial(context.get_constant, types.intp)
        rows = [builder.gep(found, [builder.mul(apart, number(n))]) for n in range(3)]
        places = [builder.gep(rows[s % 3], [number(s // 3)]) for s in range(len(signature.args[0]))]
        before = [builder.load(place) for place in places]
        for s, place in enumerate(places):
            builder.store(builder.fadd(before[s], builder.extract_value(sums, s)), place)
        return context.get_dummy_value()

    return types.none(sums, found, apart), code


@intrinsic
@no_type_check
def _plus(context, sums, numbers, ways, length, d):
    """Add the products of three numbers with column d of some rows to these sums, row by row."""

    @no_type_check
    def code(context, builder, signature, args):
        sums, numbers, ways, length, d = args
        for s in range(len(signature.args[0])):
            if s % 3 == 0:
                start = builder.mul(length, context.get_constant(types.intp, s // 3))
                y = builder.load(builder.gep(builder.gep(ways, [start]), [d]))
            product = builder.fmul(builder.extract_value(numbers, s % 3), y, flags=[*FASTMATH])
            total = builder.fadd(builder.extract_value(sums, s), product, flags=[*FASTMATH])
            sums = builder.insert_value(sums, total, s)
        return sums

    return sums(sums, numbers, ways, length, d), code
