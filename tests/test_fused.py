"""Compiled loops: exact on every type, wherever rows lie, on any number of threads, and dispensable."""

import gc
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pfc
from pfc import fused, screening
from pfc.bounds import Form
from pfc.crossings import SURE
from pfc.fused import processor
from pfc.labels import BatchLabels
from pfc.moments import SegmentMoments
from pfc.prototypes import Prototypes
from tests import problems

F64 = torch.float64
TYPES = [*processor.TYPES]
ZEROS = torch.zeros(12, dtype=torch.float64)
needs_numba = pytest.mark.skipif(not processor.loops(), reason="no numba here")


def one(H):
    """The numbers of a column, as the loops read them."""
    zero, unit = torch.zeros(1, dtype=F64), torch.ones(1, 1, dtype=F64)
    return processor.project(H[:, None], zero, unit)[:, 0]


@needs_numba
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_sixteen_bits_is_read_exactly(dtype):
    H = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    torch.testing.assert_close(one(H), H.double(), rtol=0, atol=0, equal_nan=True)


@needs_numba
@pytest.mark.parametrize("number", [5e-324, -1e-310, 1e308, float("inf"), float("nan")])
def test_extremes_of_float64_are_read_exactly(number):
    H = torch.tensor([number], dtype=F64)
    torch.testing.assert_close(one(H), H, rtol=0, atol=0, equal_nan=True)


def both(layers, y, K, sizes, *, compiled):
    """Moments and grams of a stream of batches."""
    moments, grams = SegmentMoments.empty(len(layers), K, layers[0].shape[1]), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "LEAST", 0)
        if not compiled:
            patch.setattr(processor, "loops", dict)
        for rows in torch.arange(len(y)).split(sizes):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            gram = moments.update([H[part] for H in layers], BatchLabels.of(y[part]))
            assert (gram is None) == (len(layers) == 1)
            grams += [] if gram is None else [gram]
    return moments, torch.cat([moments.steps[:0], *grams])


def assert_same(a, b, rtol=1e-12):
    (found, grams), (known, others) = a, b
    pairs = [(grams, others), (found.cross, known.cross), (found.steps, known.steps)]
    for x, z in zip(found.layers, known.layers, strict=True):
        pairs += [(x.count, z.count), (x.mean + x.mean_error, z.mean + z.mean_error)]
        pairs += [(x.scatter, z.scatter)]
    for x, z in pairs:
        torch.testing.assert_close(x, z, rtol=rtol, atol=rtol * float(z.abs().max()) if z.numel() else 0)


@needs_numba
@given(
    problems.seeds,
    st.sampled_from(TYPES),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([1, 3, 7, 50, 1_030, 2_500]),
    st.sampled_from([0.0, 100.0, 1e12]),
)
@settings(max_examples=40, deadline=None)
def test_the_loops_and_their_twin_agree(seed, dtype, depth, batch, D, offset):
    offset = offset if dtype == F64 else min(offset, 100)  # what rounding took from means counts at 1e12
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (60,), generator=g)
    layers = [(torch.randn(60, D, generator=g).to(dtype) + offset).to(dtype) for _ in range(depth)]
    assert_same(both(layers, y, 4, batch, compiled=True), both(layers, y, 4, batch, compiled=False))


@needs_numba
@pytest.mark.parametrize(
    ("width", "near"), [(20, 32), (300, 512), (40, 16)], ids=["narrow", "wide", "in blocks"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_fetched_is_what_is_read_soon(monkeypatch, width, near, dtype):
    """Loops are compiled that note the addresses they fetch; `SOON` bytes or `THEN` rows on."""
    import numba
    from numba.core import cgutils

    from pfc.fused import kernels

    log = np.zeros(100_000, np.int64)

    def note(builder, place):
        whole = cgutils.ir.IntType(64)
        start = builder.inttoptr(whole(log.ctypes.data), whole.as_pointer())
        number = builder.add(builder.load(start), whole(1))
        builder.store(number, start)
        builder.store(builder.ptrtoint(place, whole), builder.gep(start, [number]))

    monkeypatch.setattr(kernels, "_prefetch", note)
    monkeypatch.setattr(processor, "NEAR", near)
    loop = numba.njit(fastmath=kernels.FASTMATH, error_model="numpy")(kernels.absorb)
    monkeypatch.setattr(processor, "loops", lambda: {"absorb": loop})
    y = torch.randint(0, 4, (57,), generator=torch.Generator().manual_seed(0))
    H, labels, zeros = torch.randn(57, width).to(dtype), BatchLabels.of(y), torch.zeros(4, dtype=F64)
    means, errors = torch.zeros(2, 4, width, dtype=F64)
    processor.absorb(H, labels, zeros, means, errors, zeros.clone(), slice(0, width))

    places = [
        (row, start)
        for rows in labels.order.split(labels.count.int().tolist())
        for start in range(0, width, near)
        for row in rows.tolist()
    ]
    soon = Counter[int]()
    assert min(labels.count) >= kernels.THEN
    for (row, start), later in zip(places, places[kernels.THEN :], strict=False):
        stop = min(start + near, width) - start
        even = stop - stop % kernels.LANES
        for d in (*range(0, even, kernels.LANES), *range(even, stop)):
            after = d + min(kernels.SOON // H.itemsize, stop)
            at, column = ((row, start), after) if after < stop else (later, after - stop)
            soon[H.data_ptr() + H.itemsize * (at[0] * width + at[1] + column)] += 1
    fetched = Counter(log[1 : log[0] + 1].tolist())
    assert not soon - fetched  # beside it there is only what would come after the last rows
    assert fetched.total() - soon.total() <= kernels.THEN * width


@needs_numba
@given(
    problems.seeds, st.sampled_from(TYPES), *(st.integers(1, most) for most in (7, 40)), st.booleans()
)
@example(seed=0, dtype=torch.float32, rows=5, R=40, wide=True)
@settings(max_examples=60, deadline=None)
def test_products_with_any_number_of_directions(seed, dtype, rows, R, wide):
    g = torch.Generator().manual_seed(seed)
    D = int(torch.randint(1, 9, (), generator=g)) + (processor.WIDE - 4 if wide else 0)
    H = torch.randn(rows, D, generator=g).to(dtype)
    centre, flat = (torch.randn(*shape, D, generator=g, dtype=F64) for shape in ((), (R,)))
    known = ((H.double() - centre)[:, None] * flat).sum(2)
    torch.testing.assert_close(processor.project(H, centre, flat), known, rtol=1e-12, atol=1e-11)


@needs_numba
@pytest.mark.parametrize("rows", range(1, 8))
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_added_to_what_is_there_and_nowhere_else(monkeypatch, rows, threads):
    """Of any number of rows, though three are taken at once; of directions that lie apart."""
    monkeypatch.setattr(processor, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    g = torch.Generator().manual_seed(rows)
    H, centre = torch.randn(rows, 21, generator=g), torch.randn(21, generator=g, dtype=F64)
    flat = torch.randn(13, 40, generator=g, dtype=F64)[:, :21]
    around = torch.full((rows + 6, 13), torch.pi, dtype=F64)
    z = processor.project(H, centre, flat, around[3:-3])
    torch.testing.assert_close(z, torch.pi + (H - centre) @ flat.mT, rtol=1e-13, atol=1e-13)
    assert z.data_ptr() == around[3:].data_ptr()
    assert (torch.cat([around[:3], around[-3:]]) == torch.pi).all()


@needs_numba
@pytest.mark.parametrize("width", [1, 5, 16])
@pytest.mark.parametrize("near", [2, 2**10])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_and_threads_change_nothing(monkeypatch, width, near, threads):
    H, y = problems.features(3, N=80, D=33, K=4)
    layers = [H, H.sin(), H.cos().exp()]
    known, alone = (both(some, y, 4, 80, compiled=False) for some in (layers, [H]))
    sorted_y = y.sort().values  # whose later batches bring new classes
    later = both(layers[:2], sorted_y, 4, 15, compiled=False)
    flat, centre = torch.randn(5, 33, dtype=F64), torch.randn(33, dtype=F64)
    monkeypatch.setattr(processor, "WIDTH", width)
    monkeypatch.setattr(processor, "NEAR", near)
    monkeypatch.setattr(processor, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_same(both(layers, y, 4, 80, compiled=True), known)
    assert_same(both([H], y, 4, 80, compiled=True), alone)
    assert_same(both(layers[:2], sorted_y, 4, 15, compiled=True), later)
    torch.testing.assert_close(
        processor.project(H, centre, flat), (H - centre) @ flat.mT, rtol=1e-12, atol=1e-12
    )


@needs_numba
@pytest.mark.parametrize(
    "lay",
    [
        lambda H: H.mT.contiguous().mT,
        lambda H: torch.cat([H, H], 1)[:, : H.shape[1]],
        lambda H: H.repeat_interleave(2, 0)[::2],
        lambda H: torch.stack([H, H], 2)[:, :, 1],
    ],
    ids=["columns", "of wider rows", "every second row", "every second number"],
)
def test_rows_are_read_where_they_lie(lay):
    H, y = problems.features(4, N=30, D=11)
    flat, zero = torch.randn(4, 11, dtype=F64), torch.zeros(11, dtype=F64)
    lain = lay(H)
    assert lain.equal(H)
    torch.testing.assert_close(processor.project(lain, zero, flat), H @ flat.mT, rtol=1e-12, atol=1e-12)
    known = both([H, H.exp()], y, 6, 30, compiled=False)
    assert_same(both([lain, lay(H.exp())], y, 6, 30, compiled=True), known)
    same_row = H[:1].expand(5, 11)
    torch.testing.assert_close(processor.project(same_row, zero, flat), same_row @ flat.mT)


@needs_numba
def test_layers_of_several_types_are_read_in_the_widest():
    H, y = problems.features(5, N=30, D=9)
    layers = [H.half(), H.bfloat16(), H.float(), H]
    wide = [layer.double() for layer in layers]
    assert_same(both(layers, y, 6, 11, compiled=True), both(wide, y, 6, 11, compiled=False))


@needs_numba
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen(monkeypatch, bad):
    monkeypatch.setattr(fused, "LEAST", 0)
    H = torch.ones(8, 3)
    H[5, 1] = bad
    data = [(H[:4], torch.arange(4) % 2), (H[4:], torch.arange(4) % 2)]
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="gave NaN or infinite features on batch 1"):
        pfc.measure(net, data, layers=["0"], progress=False)


WITHOUT = """
import sys
sys.modules["numba"] = None
import torch, pfc
from pfc import fused
from pfc.fused import processor
fused.LEAST = 0
H = torch.arange(24.0).reshape(8, 3).sin()
found = pfc.measure_features({"a": H, "b": H.cos()}, torch.arange(8) % 2, progress=False)
assert not processor.loops() and not processor.uncompiled()
print(repr(float(found.table().pfc1.iloc[1])))
"""


def test_without_numba_the_numbers_are_the_same(monkeypatch):
    monkeypatch.setattr(fused, "LEAST", 0)
    H = torch.arange(24.0).reshape(8, 3).sin()
    found = pfc.measure_features({"a": H, "b": H.cos()}, torch.arange(8) % 2, progress=False)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(found.table().pfc1.iloc[1]), rel=1e-13)


MISFIT = """
import torch
from pfc.fused import processor
def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)
H, rows = zeros(4, 5, dtype=torch.float32), torch.tensor([0, 1, 1, 0])
for given in [
    (zeros(5), zeros(2, 5), zeros(3, 2)),
    (zeros(5), zeros(2, 5), zeros(4, 2, dtype=torch.float32)),
    (zeros(4), zeros(2, 5), zeros(4, 2)),
    (zeros(5), zeros(2, 4), zeros(4, 2)),
    (zeros(5), zeros(2, 5, dtype=torch.float32), zeros(4, 2)),
]:
    try:
        processor.project(H, *given)
    except ValueError as error:
        print(error)
state = zeros(2), zeros(2), zeros(2, 3), zeros(2, 3)
for z, places, nearest in [
    (zeros(4, 2), rows, rows),
    (zeros(4, 3, dtype=torch.float32), rows, rows),
    (zeros(5, 3), rows, rows),
    (zeros(4, 3), rows, rows[:3]),
    (zeros(4, 3), rows - 1, rows),
]:
    try:
        processor.gather(z, places, nearest, zeros(2, 3), state, zeros(2, 2))
    except ValueError as error:
        print(error)
for errors, weights, kept in [
    (zeros(2, 2), zeros(2), ()),
    (zeros(2, 3), zeros(3), ()),
    (zeros(2, 3), zeros(2), (zeros(3), zeros(3), zeros(2, 2))),
    (zeros(2, 3), zeros(2), (zeros(3), zeros(3))),
]:
    try:
        processor.triangular([(zeros(2, 3), errors)], weights, kept)
    except ValueError as error:
        print(error)
try:
    processor.triangular([(zeros(2, 3), zeros(2, 3))] * 2, zeros(2), (zeros(3), zeros(3), zeros(2, 3)))
except ValueError as error:
    print(error)
"""


@needs_numba
def test_what_does_not_fit_is_refused_before_memory_is_written():
    """Where types are not checked, as users run it."""
    done = subprocess.run([sys.executable, "-c", MISFIT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line.removeprefix("compiled loops need ") for line in done.stdout.splitlines()]
    assert said == [
        "z of 8 bytes and of shape (4, 2), got torch.float64 of shape (3, 2)",
        "z of 8 bytes and of shape (4, 2), got torch.float32 of shape (4, 2)",
        "centre of 8 bytes and of shape (5,), got torch.float64 of shape (4,)",
        "flat of 8 bytes and of shape (2, 5), got torch.float64 of shape (2, 4)",
        "flat of 8 bytes and of shape (2, 5), got torch.float32 of shape (2, 5)",
        "z of 8 bytes and of shape (4, 3), got torch.float64 of shape (4, 2)",
        "z of 8 bytes and of shape (4, 3), got torch.float32 of shape (4, 3)",
        "z of 8 bytes and of shape (4, 3), got torch.float64 of shape (5, 3)",
        "nearest of 8 bytes and of shape (4,), got torch.int64 of shape (3,)",
        "labels must be of classes that the span knows",
        "errors of 8 bytes and of shape (2, 3), got torch.float64 of shape (2, 2)",
        "weights of 8 bytes and of shape (2,), got torch.float64 of shape (3,)",
        "kept of 8 bytes and of shape (2, 3), got torch.float64 of shape (2, 2)",
        "zip() argument 2 is longer than argument 1",
        "compiled loops keep the centre of one layer, got 2",
    ]


@needs_numba
@pytest.mark.parametrize("seed", range(40))
def test_class_means_are_made_triangular_about_their_centres(seed, monkeypatch):
    """Of sizes 1e-8 to 1e8 about an offset, in whatever parts, on any number of threads."""
    rng = np.random.default_rng(seed)
    K, D, depth = int(rng.integers(1, 9)), int(rng.integers(1, 300)), int(rng.integers(1, 4))
    monkeypatch.setattr(processor, "STRIP", int(rng.integers(1, 50)))
    monkeypatch.setattr(processor, "TALL", int(rng.integers(1, 200)))
    monkeypatch.setattr(processor, "SHARE", int(rng.integers(1, 1000)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: seed % 4 + 1)
    sizes = 10.0 ** rng.integers(-8, 9, size=(depth, K, 1))
    rows = rng.standard_normal((depth, K, D)) * sizes
    means = torch.from_numpy(rows + rng.choice([0, 1e3]))
    errors = torch.from_numpy(rng.standard_normal((depth, K, D)) * 1e-9 * sizes)
    pi = torch.from_numpy(rng.uniform(0.1, 1, K))
    pi /= pi.sum()
    kept = [torch.empty(n, dtype=F64) for n in ((D,), (D,), (K, D))] if depth == 1 else []
    factor, squares = processor.triangular([*zip(means, errors, strict=True)], pi, kept)
    assert factor.shape == (depth * K, depth * K)

    exact = means.numpy().astype(np.longdouble) + errors.numpy()
    weights = pi.numpy().astype(np.longdouble)
    known = exact - np.einsum("k,lkd->ld", weights, exact)[:, None]
    flat = known.reshape(depth * K, D)
    gram = flat @ flat.T
    norms = np.linalg.norm(known, axis=2).flatten()
    lost = 1e-15 * norms.max()  # a mean of small size loses digits beside a large one, by the centre
    missed = np.abs((factor.mT @ factor).numpy() - gram)
    assert (missed <= 1e-14 * np.outer(norms, norms) + lost * np.add.outer(norms, norms)).all()
    np.testing.assert_allclose(squares, (means**2).sum(2).flatten(), rtol=1e-13)
    if kept:
        centre, error, M = kept
        np.testing.assert_allclose(M, known[0], atol=1e-15 * np.abs(known).max(), rtol=0)
        far = np.abs((centre.numpy().astype(np.longdouble) + error.numpy()) - weights @ exact[0])
        assert (far <= 1e-15 * np.abs(known).max()).all()


@needs_numba
def test_rounding_of_a_triangular_factor_does_not_add_up():
    """Over 512 parts; it would to 6e-15 if one factor were made of them, part after part."""
    M = torch.randn(10, 2**16, generator=torch.Generator().manual_seed(0), dtype=F64)
    M -= M.mean(0)
    factor, _ = processor.triangular([(M, torch.zeros_like(M))], torch.full((10,), 0.1, dtype=F64))
    torch.testing.assert_close((factor.mT @ factor) / 2**16, M @ M.mT / 2**16, rtol=0, atol=2e-15)


NARROW = """
import torch
from pfc import fused
from pfc.fused import kernels, processor
from pfc.moments import ClassMoments
assert (kernels.LANES, kernels.MOST) == (4, 3)
fused.LEAST, g = 0, torch.Generator().manual_seed(0)
for dtype in processor.TYPES:
    H, y = torch.randn(26, 29, generator=g).to(dtype), torch.arange(26) % 2
    centre, flat = (torch.randn(*n, 29, generator=g, dtype=torch.float64) for n in ((), (7,)))
    found, X = ClassMoments.of(H, y), H.double()
    torch.testing.assert_close(processor.project(H, centre, flat), (X - centre) @ flat.mT)
    means = torch.stack([X[::2].mean(0), X[1::2].mean(0)])
    torch.testing.assert_close(found.mean, means)
    torch.testing.assert_close(found.scatter.sum(), (X - means[y]).square().sum())
"""


@needs_numba
def test_a_processor_of_narrower_vectors_finds_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    monkeypatch.setenv("PFC_CACHE", str(tmp_path))
    narrow = [sys.executable, "-W", "ignore", "-c", NARROW]
    done = subprocess.run(narrow, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_numba
def test_few_numbers_need_no_compiler(monkeypatch):
    monkeypatch.setattr(processor, "loops", lambda: pytest.fail("loaded"))
    H = torch.zeros(64, fused.LEAST // 64 - 1)
    assert fused.loops_for([H]) is None
    monkeypatch.undo()
    assert fused.loops_for([H, H]) is processor


@needs_numba
@pytest.mark.parametrize("loaded", [True, False])
def test_for_little_things_loops_are_not_loaded(monkeypatch, loaded):
    monkeypatch.setattr(fused, "LEAST", 10)
    processor.loops()
    if not loaded:
        monkeypatch.delitem(sys.modules, "pfc.fused.kernels")
        monkeypatch.setattr(processor, "loops", lambda: pytest.fail("loaded"))
    assert fused.at_hand(torch.device("cpu"), 10) == loaded
    assert not fused.at_hand(torch.device("cpu"), 9)
    assert not fused.at_hand(torch.device("meta"), 10)


@needs_numba
@pytest.mark.parametrize(
    "means", [ZEROS[:6].view(3, 2).mT, ZEROS.view(2, 6)[:, :3]], ids=["turned", "part"]
)
def test_memory_that_the_loops_would_misread_is_refused(means):
    labels = BatchLabels.of(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="compiled loops take only contiguous numbers of 8 bytes here"):
        processor.absorb(
            torch.zeros(2, 3), labels, labels.count, means, means, labels.count, slice(0, 3)
        )
    fine, ends = ZEROS[:6].view(2, 3).clone(), [torch.zeros(2, 3)] * 2
    for first, last in ((means, fine), (fine, means)):
        states = [(each, fine, labels.count) for each in (first, last)]
        with pytest.raises(ValueError, match="take only contiguous numbers of 8 bytes here"):
            processor.absorb_ends(ends, labels, labels.count, states, slice(0, 3))
        with pytest.raises(ValueError, match="take only contiguous numbers of 8 bytes here"):
            processor.triangular([(first, last)], labels.count)


@needs_numba
def test_compiled_loops_are_kept_in_the_cache_folder(monkeypatch, tmp_path):
    from pfc.fused.kernels import compiled

    monkeypatch.setenv("PFC_CACHE", str(tmp_path))
    assert processor.uncompiled()
    loops = compiled(processor._kept())
    monkeypatch.setattr(processor, "loops", lambda: loops)
    row, zero = torch.arange(2.0)[None], torch.zeros(2, dtype=torch.float64)
    assert processor.project(row, zero, torch.ones(3, 2, dtype=torch.float64)).tolist() == [[1, 1, 1]]
    assert not processor.uncompiled()


@needs_numba
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), EOFError("Ran out of input")])
def test_a_full_disk_or_a_damaged_file_costs_time_only(monkeypatch, tmp_path, error):
    from numba.core.caching import FunctionCache

    from pfc.fused import kernels

    def fails(*_):
        raise error

    name = "save_overload" if isinstance(error, OSError) else "load_overload"
    monkeypatch.setattr(FunctionCache, name, fails)
    loops = kernels.compiled(str(tmp_path))
    monkeypatch.setattr(processor, "loops", lambda: loops)
    one = torch.ones(1, 1, dtype=torch.float64)
    for n in (1, 2):
        assert processor.project(n * one, ZEROS[:1], one).tolist() == [[n]]


def test_with_numbas_compiler_turned_off_torch_serves(monkeypatch):
    numba = pytest.importorskip("numba", reason="no numba here")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert processor.loops.__wrapped__() == {}


@needs_numba
@pytest.mark.parametrize("error", [None, ValueError])
def test_how_numba_and_python_were_set_is_put_back_after_compiling(monkeypatch, error):
    import numba
    from numba.core.dispatcher import Dispatcher

    from pfc.fused import kernels

    seen, (compile_all, before) = [], (Dispatcher.compile, numba.config.OPT)

    def noted(*args):
        seen.append((int(numba.config.OPT), gc.isenabled()))
        if error:
            raise error
        return compile_all(*args)

    monkeypatch.setattr(Dispatcher, "compile", noted)
    loops = kernels.compiled("")
    monkeypatch.setattr(processor, "loops", lambda: loops)
    one = torch.ones(1, 1, dtype=torch.float64)
    for kind in (torch.float64, torch.float32):
        with pytest.raises(error) if error else nullcontext():
            processor.project(one.to(kind), ZEROS[:1], one)
    assert len(seen) >= 2
    assert {*seen} == {(1, False)}
    assert numba.config.OPT is before
    assert gc.isenabled()


@needs_numba
def test_where_nothing_can_be_kept_loops_are_compiled_anew(monkeypatch):
    import numba

    from pfc.fused import kernels

    real = numba.njit

    def unkept(*args, cache=False, **how):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **how)

    monkeypatch.setattr(numba, "njit", unkept)
    loops = {"absorb", "absorb_ends", "increase", "triangular"}
    loops |= {"mix", "project", "gather", "screen", "relative"}
    assert {*kernels.compiled("")} == loops


@needs_numba
def test_increments_of_many_layers():
    H, y = problems.features(8, N=12, D=6)
    layers = [H * (l + 1) ** 0.5 + l for l in range(8)]
    grams = both(layers, y, 6, 12, compiled=True)[1]
    for i in range(12):
        D = torch.stack([b[i] - a[i] for a, b in pairwise(layers)])
        torch.testing.assert_close(grams[i], D @ D.mT, rtol=1e-13, atol=1e-13)


@needs_numba
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.7), (0.4, 0.7)])
def test_the_loop_that_screens_a_line_and_its_twin_agree(before, after):
    g = torch.Generator().manual_seed(0)
    first, over = torch.randn(2, 25, 30, generator=g) + 1
    back, last = torch.randn(2, 7, 30, generator=g) + 1
    levels = [torch.randn(len(values), generator=g) for values in (first, over, back, last)]
    each = torch.randint(0, 7, (25,), generator=g)
    own, some = torch.randint(0, 30, (25,), generator=g), torch.rand(25, generator=g) < 0.8
    parts = [
        values + level[:, None] for values, level in zip((first, over, back, last), levels, strict=True)
    ]
    bounds = screening._Bounds(*map(screening.Above, parts, levels))
    e, u = before * some, after * some.roll(1)
    asked = torch.rand(25, generator=g) < 0.9
    found = processor.screen(*bounds, each, e, torch.where(asked, u, -1), own, SURE)
    assert found.equal(screening._undecided(bounds, each, e, torch.where(asked, u, -1), own))
    c = torch.stack([first, over + back[each], last[each]]).double()
    t = torch.linspace(0, 1, 501).double()[:, None, None] * (1 - u - e + e * u)[:, None] + e[:, None]
    low = (c[0] * (1 - t) ** 2 + 2 * c[1] * t * (1 - t) + c[2] * t**2).amin(0)
    low[torch.arange(25), own], low[~asked] = 1, 1
    assert set((low < -1e-6).flatten().nonzero()[:, 0].tolist()) <= set(found.tolist())
    assert len(found) < (low < 1e-2).sum() * 1.1


@needs_numba
@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_loop_of_pairs_and_its_twin_agree(collapsed, offset, monkeypatch):
    g = torch.Generator().manual_seed(0)
    new = partial(torch.randn, generator=g, dtype=torch.float64)
    A, B = Prototypes(new(6, 3) + offset, new(()).abs()), Prototypes(new(6, 4), new(()).abs())
    ends = screening.Ends(A, B, new(6, 7) + offset, new(6, 7) + offset, Form.gaps(A.points))
    own, j = torch.randint(0, 6, (2, 50), generator=g)
    i = torch.randint(0, 50, (50,), generator=g)
    own = own.sort().values
    start = screening.Places(ends.a[own] + new(50, 7), own)
    stop = ends.collapsed(own) if collapsed else screening.Places(ends.b[own] + new(50, 7), own)
    tile = screening.Tile(ends, start, stop, (own, own))
    monkeypatch.setattr(fused, "LEAST", 0)
    found, twin = tile._exact(i, j), tile._about_own(i, j)
    torch.testing.assert_close(found.coefficients, twin[:3], rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(found.distance, twin[3:].sqrt(), rtol=1e-13, atol=0)
