"""Loops over features that numba compiles: each number is read once, float64 stays in registers.

Every loop has a slow twin in torch beside the place that calls it. What they read and write comes by the
address of its first number, as arrays take twice as long to compile; features besides by the bytes from
row to row and a number of their type: bfloat16 as uint16 and float16 as int16, which numba has no type
for. Sums may be reordered, nothing else is assumed of them. All stands in one file, but for the numbers
of `mix`, which never change: what is kept compiled is compiled anew when that file changes.
"""

from contextlib import contextmanager, suppress
from functools import partial, reduce
from typing import no_type_check

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_jitable

from pfc.fused.processor import ODD, SHIFTS, uncollected

ir = cgutils.ir  # type: ignore[attr-defined] # of LLVM
INT, FLOAT, DOUBLE = ir.IntType(32), ir.FloatType(), ir.DoubleType()
FASTMATH = {"reassoc", "contract", "nsz"}
PLAIN = {"no_cfunc_wrapper": True, "no_rewrites": True}  # no calls from C, no arrays to rewrite
called = register_jitable(**PLAIN)  # of functions that only loops call
exactly = register_jitable(**PLAIN, fastmath=False)  # where sums keep their order
SOON, THEN = 2**10, 8  # bytes of a row, and rows, after which what is fetched is used; measured
WIDEST = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
MANY, FEW, ONE = (0,) * (8 if WIDEST else 4), (0,) * 4, (0,)  # rows at once, as registers allow
LANES, MOST = (8, 9) if WIDEST else (4, 3)  # numbers of a vector, and directions that registers hold


@no_type_check
def compiled(cache):
    """The kernels, compiled on first use and kept in the folder `cache` from then on."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache or numba.config.CACHE_DIR
    try:
        return {
            loop.__name__: _kept(loop)
            for loop in (
                absorb,
                absorb_ends,
                increase,
                triangular,
                mix,
                project,
                gather,
                screen,
                relative,
            )
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
    entries = {}  # by the type of features, if any: of all else the types are ever the same

    @no_type_check
    def run(*args):
        nonlocal serving
        kind = type(args[0])
        if kind in entries:
            entries[kind](*args)
            return
        with _compiling():
            try:
                serving(*args)
            except Exception:  # of a full disk or a damaged file; what else is wrong comes again
                if serving is anew:
                    raise
                serving = anew
                anew(*args)
            entries[kind] = _entry(serving, args)

    return run


@no_type_check
def _entry(loop, args):
    """What numba calls with arguments of such types, once it has looked at each of them."""
    return loop.overloads[tuple(map(loop.typeof_pyval, args))].entry_point


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
        return _reals(builder, args[0], signature.args[0])

    return types.float64(number), code


@no_type_check
def _reals(builder, x, kind):
    """A number or a vector of numbers of any type that features have, as float64."""
    if kind == types.int16:
        return _halves(builder, x)
    if kind == types.uint16:  # the upper half of a float32
        bits = builder.zext(x, _as_many(x, INT))
        x = builder.bitcast(builder.shl(bits, _as_many(x, INT, 16)), _as_many(x, FLOAT))
    return x if kind == types.float64 else builder.fpext(x, _as_many(x, DOUBLE))


@no_type_check
def _halves(builder, x):
    """Those of float16: float32 with eight more exponents, but for zero, subnormals, inf and NaN."""
    bits, many = builder.zext(x, _as_many(x, INT)), partial(_as_many, x)
    size, exponent = builder.and_(bits, many(INT, 0x7FFF)), builder.and_(bits, many(INT, 0x7C00))
    extreme = builder.icmp_unsigned("==", exponent, many(INT, 0x7C00))
    more = builder.select(extreme, many(INT, 224 << 23), many(INT, 112 << 23))
    usual = builder.add(builder.shl(size, many(INT, 13)), more)
    usual = builder.fpext(builder.bitcast(usual, many(FLOAT)), many(DOUBLE))
    small = builder.fmul(builder.uitofp(size, many(DOUBLE)), many(DOUBLE, 2.0**-24))
    found = builder.select(builder.icmp_unsigned("==", exponent, many(INT, 0)), small, usual)
    return builder.select(builder.icmp_unsigned(">", bits, size), builder.fneg(found), found)


@no_type_check
def _as_many(x, kind, value=None):
    """A type, or a constant of it, in as many lanes as a vector has, or in none."""
    vector = isinstance(x.type, ir.VectorType)
    kind = ir.VectorType(kind, x.type.count) if vector else kind
    return kind if value is None else ir.Constant(kind, [value] * x.type.count if vector else value)


@intrinsic
@no_type_check
def _at(context, like, address):
    """Numbers of the type of another, from an address on."""
    kind = types.CPointer(types.unliteral(like))

    @no_type_check
    def code(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(kind))

    return kind(like, address), code


@no_type_check
def _prefetch(builder, place):
    """Begin to read a line of the cache that is soon to be used."""
    how = [INT(n) for n in (0, 3, 1)]  # to read data, into all caches
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, INT, INT, INT])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
    builder.call(fetch, [builder.bitcast(place, cgutils.voidptr_t), *how])


@intrinsic
@no_type_check
def _room(context, numbers):
    """Room for so many numbers until the calling function returns; where it begins."""

    @no_type_check
    def code(context, builder, signature, args):
        room = builder.alloca(DOUBLE, args[0])
        return builder.ptrtoint(room, context.get_value_type(types.int64))

    return types.int64(numbers), code


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
def absorb(like, itemsize, address, row, labels, state, columns):
    """Add some columns of rows to the means and the scatter of their classes.

    For the formula see `SegmentMoments.absorb`. In `labels` are the rows class by class, the classes of
    the batch with their counts, and how many these are; in `state` the samples of all classes so far,
    the means, their errors and the scatter; in `columns` how many rows there are, the first column, how
    many, and how many at once.
    """
    (rows, classes, counts, P), (samples, means, errors, scatters, D), stop = labels, state, 0
    (size, start, width, near), order, present = columns, _at(0, rows), _at(0, classes)
    count, before, scatter = _at(0.0, counts), _at(0.0, samples), _at(0.0, scatters)
    s, t = _at(0.0, _room(near)), _at(0.0, _room(near))
    for p in range(P):
        begin, stop = stop, stop + np.int64(count[p])
        n, m, gain = before[present[p]], count[p], 0.0
        for first in range(0, width, near):
            some = near if first + near < width else width - first
            place = (present[p] * D + start + first) * 8
            mean, rest, tile = _at(0.0, means + place), _at(0.0, errors + place), (first, near, width)
            where = row, order, begin, stop, size
            if n == 0:
                _begin(like, address + order[begin] * row + first * itemsize, mean, rest, some)
            gain += _absorb_class(like, itemsize, address, where, tile, mean, t)
            _move(n, m, mean, rest, t, s, some)
            gain -= _moved(n, m, (s, t), (s, t), some)
        scatter[present[p]] += gain


@no_type_check
def absorb_ends(like, itemsize, ends, labels, states, columns, cross, steps):
    """As `absorb` for two layers, with the products of their rows less the means, by class.

    Of a segment of two, squared steps from one layer to the other go to `steps`, row by row.
    """
    (first, before, last, after), (rows, classes, counts, P), stop = ends, labels, 0
    (samples, (M, E, S), (N, F, T), D), (size, start, width, near) = states, columns
    order, present, count, seen = _at(0, rows), _at(0, classes), _at(0.0, counts), _at(0.0, samples)
    own, other, found = _at(0.0, S), _at(0.0, T), _at(0.0, cross)
    s, t = _at(0.0, _room(near)), _at(0.0, _room(near))
    u, v = _at(0.0, _room(near)), _at(0.0, _room(near))
    for p in range(P):
        begin, stop = stop, stop + np.int64(count[p])
        n, m, gain, more = seen[present[p]], count[p], 0.0, 0.0
        for column in range(0, width, near):
            some = near if column + near < width else width - column
            place, tile = (present[p] * D + start + column) * 8, (column, near, width)
            a, e = _at(0.0, M + place), _at(0.0, E + place)
            b, f = _at(0.0, N + place), _at(0.0, F + place)
            where, there = (before, order, begin, stop, size), (after, order, begin, stop, size)
            if n == 0:
                _begin(like, first + order[begin] * before + column * itemsize, a, e, some)
                _begin(like, last + order[begin] * after + column * itemsize, b, f, some)
            gain += _absorb_class(like, itemsize, first, where, tile, a, t)
            more += _absorb_class(like, itemsize, last, there, tile, b, v)
            # rows that were just summed are near, if they are few
            at = first + column * itemsize, before, last + column * itemsize, after
            both = _relate_class(like, at, (order, begin, stop), a, b, some, steps)
            _move(n, m, a, e, t, s, some)
            _move(n, m, b, f, v, u, some)
            gain -= _moved(n, m, (s, t), (s, t), some)
            more -= _moved(n, m, (u, v), (u, v), some)
            found[p] += both - _moved(n, m, (s, t), (u, v), some)
        own[present[p]] += gain
        other[present[p]] += more


@called
@no_type_check
def _begin(like, address, mean, error, width):
    """Put the mean of a class without samples at its first one."""
    row = _at(like, address)
    for d in range(width):
        mean[d], error[d] = real(row[d]), 0.0


@called
@no_type_check
def _absorb_class(like, itemsize, address, where, tile, mean, total):
    """Sums of a class's rows less their mean so far, in some columns; the sum of their squares."""
    (row, order, begin, stop, size), (first, near, width) = where, tile
    some, at = near if first + near < width else width - first, address + first * itemsize
    jump = (begin - stop, at + near * itemsize) if first + near < width else (0, address)
    ahead, square, i = (row, order, stop, size, jump), 0.0, begin
    for d in range(some):
        total[d] = 0.0
    while i + len(MANY) <= stop:
        square += _absorb_rows(like, at, i, ahead, MANY, mean, total, some)
        i += len(MANY)
    while i + len(FEW) <= stop:
        square += _absorb_rows(like, at, i, ahead, FEW, mean, total, some)
        i += len(FEW)
    while i < stop:
        square += _absorb_rows(like, at, i, ahead, ONE, mean, total, some)
        i += 1
    return square


@called
@no_type_check
def _relate_class(like, ends, rows, a, b, width, steps):
    """The sum of products of a class's rows in two layers, less `a` and `b`; squared steps by row."""
    _widest()
    (first, before, last, after), (order, begin, stop), found = ends, rows, 0.0
    gained = _at(0.0, steps)
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
        found += product + more if i != j else product
        if steps != 0:
            gained[i] += step
            if i != j:
                gained[j] += other
    return found


@called
@no_type_check
def _moved(n, m, one, other, width):
    """How much products of two layers' rows are too large, as their means move."""
    step, _, _, error = _products(one[0], one[1], other[0], other[1], width)
    return (n + m) * step - n * error


@intrinsic
@no_type_check
def _absorb_rows(context, like, address, i, where, some, mean, total, width):
    """Add some rows from place i on, less the mean so far; the sum of their squares.

    What comes soon is fetched: after the last column those of the rows of this layer that are read after
    `THEN`.
    """

    @no_type_check
    def code(context, builder, signature, args):
        _, address, i, where, _, mean, total, width = args
        row, order, *ends = cgutils.unpack_tuple(builder, where)
        pointer, far = context.get_value_type(types.CPointer(like)), _far(context, like)

        @no_type_check
        def at(place, address):
            number = builder.load(builder.gep(order, [place]))
            return builder.inttoptr(builder.add(address, builder.mul(number, row)), pointer)

        places = [builder.add(i, i.type(n)) for n in range(len(some))]
        now = [at(place, address) for place in places]
        then = [at(*_later(builder, place, address, *ends)) for place in places]

        @no_type_check
        def squares(d, read):
            soon, inside = _soon(builder, d, width, far)
            for one, other in zip(now, then, strict=True):
                _prefetch(builder, builder.gep(builder.select(inside, one, other), [soon]))
            shift = read(mean)
            found = [builder.fsub(read(one, like), shift) for one in now]
            more = reduce(builder.fadd, found, read(total))
            builder.store(
                more, builder.bitcast(builder.gep(total, [d]), more.type.as_pointer()), align=8
            )
            return [builder.fmul(x, x, flags=[*FASTMATH]) for x in found]

        return reduce(builder.fadd, _sums(context, builder, width, len(some), squares))

    return types.float64(like, address, i, where, some, mean, total, width), code


@no_type_check
def _later(builder, place, address, stop, size, jump):
    """Place and address of the row that is read `THEN` rows after one; of that one, if there is none."""
    shift, there = cgutils.unpack_tuple(builder, jump)
    after = builder.add(place, place.type(THEN))
    inside = builder.icmp_signed("<", after, stop)
    after = builder.select(inside, after, builder.add(after, shift))
    known = builder.icmp_signed("<", after, size)
    return builder.select(known, after, place), builder.select(inside, address, there)


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


@no_type_check
def triangular(layers, weights, shape, room, kept, found):
    """Triangular factors of the class means of some layers, about their centres, side by side.

    Columns are taken in parts that stay near; of each and of the factor so far Householder's reflections
    make the next, and after `each` columns another one is begun. For the centres see
    `ClassMoments.about_centre`: they, what rounding took from them and the means about them are kept if
    there is room. In `found` are the factors and the means' squares.
    """
    (depth, K, D, start, stop, near, each), (centres, errors, about) = shape, kept
    (x, c, r), (factor, sizes), layer = room, found, _at(0, layers)
    size, P = _at(0.0, sizes), depth * K
    for first in range(start, stop, near):
        some = near if first + near < stop else stop - first
        if about != 0:
            c, r = centres + first * 8, errors + first * 8
        for l in range(depth):
            means, rest = layer[2 * l] + first * 8, layer[2 * l + 1] + first * 8
            for k in range(K):
                size[l * K + k] += _square(means + k * D * 8, some)
            to = x + l * K * near * 8, near
            _about((means, rest, D), weights, (_at(0.0, c), _at(0.0, r)), to, K, some)
        for k in range(K if about != 0 else 0):
            one, to = _at(0.0, x + k * near * 8), _at(0.0, about + (k * D + first) * 8)
            for d in range(some):
                to[d] = one[d]
        _reflect(x, near, factor + (first - start) // each * P * P * 8, P, some)


@called
@no_type_check
def _square(address, width):
    _widest()
    x, s = _at(0.0, address), 0.0
    for d in range(width):
        s += x[d] * x[d]
    return s


@exactly
@no_type_check
def _about(state, weights, centre, room, K, width):
    """Some columns of class means less their centre, which is kept with what rounding took from it."""
    _widest()
    (means, errors, apart), (c, r), (to, near), weight = state, centre, room, _at(0.0, weights)
    for d in range(width):
        c[d] = r[d] = 0.0
    for k in range(K):
        m, w = _at(0.0, means + k * apart * 8), weight[k]
        for d in range(width):
            c[d] += w * m[d]
    for k in range(K):
        m, e, w = _at(0.0, means + k * apart * 8), _at(0.0, errors + k * apart * 8), weight[k]
        x = _at(0.0, to + k * near * 8)
        for d in range(width):
            x[d] = (m[d] - c[d]) + e[d]
            r[d] += w * x[d]
    for k in range(K):
        x = _at(0.0, to + k * near * 8)
        for d in range(width):
            x[d] -= r[d]


@called
@no_type_check
def _reflect(rows, near, factor, P, width):
    """Make some columns of rows part of the triangular factor of those before."""
    _widest()
    for j in range(P):
        x, row = _at(0.0, rows + j * near * 8), _at(0.0, factor + j * P * 8)
        s = _square(rows + j * near * 8, width)
        if s == 0:
            continue
        size = np.sqrt(row[j] * row[j] + s)
        end = -size if row[j] > 0 else size
        step, over = row[j] - end, 1 / (end * (end - row[j]))
        row[j] = end
        for l in range(j + 1, P):
            y, t = _at(0.0, rows + l * near * 8), 0.0
            for d in range(width):
                t += x[d] * y[d]
            t = (step * row[l] + t) * over
            row[l] -= step * t
            for d in range(width):
                y[d] -= t * x[d]


@no_type_check
def mix(like, address, row, shape, found):
    """Sums of each row's whole numbers, to which their places are added and all whose bits are mixed."""
    _widest()
    (size, width), sums = shape, _at(0, found)
    for i in range(size):
        A, total = _at(like, address + i * row), 0
        for d in range(width):
            x = np.int64(A[d]) + (d + 1) * ODD
            for shift in SHIFTS:
                x = (x ^ (x >> shift)) * ODD
            total += x
        sums[i] = total


@intrinsic
@no_type_check
def _products(context, p, q, u, v, width):
    """The inner products of two rows with two others."""

    @no_type_check
    def code(context, builder, signature, args):
        *rows, width = args

        @no_type_check
        def products(d, read):
            p, q, u, v = map(read, rows)
            return [builder.fmul(*pair, flags=[*FASTMATH]) for pair in ((p, u), (p, v), (q, u), (q, v))]

        return cgutils.pack_array(builder, _sums(context, builder, width, 4, products, 2 * LANES))

    return types.UniTuple(types.float64, 4)(p, q, u, v, width), code


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
def gather(shape, rows, places, nearest, points, state):
    """Add to what is known of each point, by rows that are of it.

    In `rows` are the address of the first and the bytes from one to the next, in `places` the point that
    each is of, in `nearest` that which is nearest; in `state` how many rows there were, how many of them
    were nearest to their own point, sums of residuals, of their squares, and numbers of pairs if kept.
    """
    (N, R, P), (z, apart), (counts, hits, sums, squares, pairs) = shape, rows, state
    count, hit, place, near = _at(0.0, counts), _at(0.0, hits), _at(0, places), _at(0, nearest)
    found = _at(0.0, pairs)
    for n in range(N):
        k, j = place[n], near[n]
        x, p = _at(0.0, z + n * apart), _at(0.0, points + k * R * 8)
        total, square = _at(0.0, sums + k * R * 8), _at(0.0, squares + k * R * 8)
        for r in range(R):
            residual = x[r] - p[r]
            total[r] += residual
            square[r] += residual * residual
        count[k] += 1
        hit[k] += j == k
        if pairs != 0:
            found[k * P + j] += 1


@no_type_check
def project(like, itemsize, address, row, centre, directions, shape, wide, z):
    """Add the products of centred rows with directions to `z`, of three rows at once.

    In `directions` are the address of the first and the bytes from one to the next.
    """
    (flat, apart), (size, R, D), far = directions, shape, (shape[0] + 2) // 3
    spare = _room(R)  # for what comes of rows that are missing to threes
    for start in range(0, D, wide):
        width, at = wide if start + wide < D else D - start, address + start * itemsize
        middle, ways = _at(0.0, centre + start * 8), _at(0.0, flat + start * 8)
        for i in range(far):  # three streams of rows that lie one after the other, as caches expect
            j, k, u = i + far, i + 2 * far, _at(0.0, z + i * R * 8)
            v = _at(0.0, z + j * R * 8 if j < size else spare)
            w = _at(0.0, z + k * R * 8 if k < size else spare)
            A = _at(like, at + i * row)
            B = _at(like, at + j * row) if j < size else A
            C = _at(like, at + k * row) if k < size else A
            _multiply((A, B, C), row // itemsize, middle, width, ways, apart // 8, R, (u, v, w))


@intrinsic
@no_type_check
def _multiply(context, rows, ahead, middle, width, ways, apart, directions, z):
    """Add the products of three rows with directions, with as many at once as there are registers for.

    What comes soon is fetched: after the last of `width` columns those of rows so many numbers ahead.
    Directions lie so many numbers apart.
    """

    @no_type_check
    def code(context, builder, signature, args):
        rows, ahead, middle, width, ways, apart, directions, z = args
        rows, z = (cgutils.unpack_tuple(builder, three) for three in (rows, z))
        number = partial(context.get_constant, types.intp)
        kind, first = signature.args[0].dtype.dtype, number(0)
        far = _far(context, kind)

        @no_type_check
        def products(near, d, read):
            soon, inside = _soon(builder, d, width, far)
            soon = builder.select(inside, soon, builder.add(soon, ahead))
            for row in rows:
                _prefetch(builder, builder.gep(row, [soon]))
            numbers = [builder.fsub(read(row, kind), read(middle)) for row in rows]
            those = [read(way) for way in near]
            return [builder.fmul(x, y, flags=[*FASTMATH]) for y in those for x in numbers]

        for most in sorted({MOST, 3, 1}, reverse=True):
            stop = builder.sub(directions, builder.srem(builder.sub(directions, first), number(most)))
            with cgutils.for_range_slice(builder, first, stop, number(most)) as (r, _):
                places = [builder.add(r, number(n)) for n in range(most)]
                near = [builder.gep(ways, [builder.mul(place, apart)]) for place in places]
                sums = _sums(context, builder, width, 3 * most, partial(products, near))
                for s, total in enumerate(sums):
                    place = builder.gep(z[s % 3], [places[s // 3]])
                    builder.store(builder.fadd(builder.load(place), total), place)
            first = stop
        return context.get_dummy_value()

    return types.none(rows, ahead, middle, width, ways, apart, directions, z), code


@no_type_check
def _far(context, kind):
    """Columns of a type after which what is fetched is used."""
    return SOON // context.get_abi_sizeof(context.get_value_type(kind))


@no_type_check
def _soon(builder, d, width, far):
    """The column so far after one, of another row if none; whether it is of the same row."""
    few = builder.icmp_signed("<", width, width.type(far))
    soon = builder.add(d, builder.select(few, width, width.type(far)))
    inside = builder.icmp_signed("<", soon, width)
    return builder.select(inside, soon, builder.sub(soon, width)), inside


@no_type_check
def _sums(context, builder, width, number, terms, lanes=LANES):
    """Sums over columns of some terms, by vectors of them, and one by one of what is left."""
    even = builder.sub(width, builder.srem(width, width.type(lanes)))
    sums = [DOUBLE(0.0)] * number
    for start, stop, several in ((width.type(0), even, lanes), (even, width, 1)):
        zeros = ir.VectorType(DOUBLE, several)(None)
        sums = [builder.insert_element(zeros, each, INT(0)) for each in sums]
        places = [cgutils.alloca_once_value(builder, each) for each in sums]
        with cgutils.for_range_slice(builder, start, stop, width.type(several)) as (d, _):
            read = partial(_read, context, builder, d, several)
            for place, term in zip(places, terms(d, read), strict=True):
                builder.store(builder.fadd(builder.load(place), term, flags=[*FASTMATH]), place)
        sums = [_total(builder, builder.load(place)) for place in places]
    return sums


@no_type_check
def _read(context, builder, d, lanes, numbers, kind=types.float64):
    """A vector of numbers of a type that features have, from number d on, as float64."""
    number = context.get_value_type(kind)
    place = builder.bitcast(builder.gep(numbers, [d]), ir.VectorType(number, lanes).as_pointer())
    return _reals(builder, builder.load(place, align=context.get_abi_sizeof(number)), kind)


@no_type_check
def _total(builder, vector):
    """The sum of a vector's numbers, half by half."""
    while (half := vector.type.count // 2) > 0:
        parts = [[INT(n + side) for n in range(half)] for side in (0, half)]
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT, half), part))
            for part in parts
        ]
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, INT(0))
