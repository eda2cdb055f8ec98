"""One door for samples and labels: arrays of every kind give the same answers and errors."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from pfc.labels import BatchLabels
from pfc.moments import ClassMoments
from pfc.samples import class_indices, labelled, samples
from pfc.theory import descent, mufm, transport
from pfc.theory.collapse import collapse
from pfc.theory.mufm import flow
from pfc.theory.mufm.cross_entropy import solve_cross_entropy

QUIET = {"progress": False}
X = torch.randint(0, 8, (12, 4), generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(12) % 3


class Array:
    """Speaks `__array__` alone."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


class Capsule:
    """Speaks DLPack alone."""

    def __init__(self, values):
        self.values = torch.as_tensor(values)

    def __dlpack__(self, **how):
        return self.values.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Fallback(Array):
    """Speaks both, but has no DLPack of its type."""

    def __dlpack__(self, **how):
        raise BufferError("no such type")

    def __dlpack_device__(self):
        raise BufferError("no such type")


def read_only(values):
    values = np.asarray(values).copy()
    values.flags.writeable = False
    return values


def values(*results):
    """All numbers and tensors of some results, in their order."""
    for result in results:
        for value in [result] if isinstance(result, torch.Tensor) else vars(result).values():
            if isinstance(value, (torch.Tensor, float)):
                yield torch.as_tensor(value)


def solved(**how):
    def solve(X, y):
        found = mufm.solve(X, y, lam=0.1, restarts=0, **how)
        return [found, found.features()]

    return solve


ENTRIES = {  # what is called, and its options of the door
    "solve": (solved(), {"flatten": True}),
    "solve, cross-entropy": (solved(loss="ce"), {"flatten": True}),
    "sweep": (lambda X, y: mufm.sweep(X, y, [0.1, 1.0], restarts=0), {"flatten": True}),
    "iterates": (lambda X, y: [mufm.iterates(X, y, lam=0.1, iterations=5)], {"flatten": True}),
    "gather": (lambda X, y: [mufm.gather([(X, y)])], {"flatten": True, "batch": 0}),
    "Statistics.of": (lambda X, y: [mufm.Statistics.of(X, y)], {"flatten": True}),
    "solve_layered": (
        lambda X, y: [mufm.solve_layered(X, y, layers=2, lam=0.1, restarts=0, **QUIET)],
        {},
    ),
    "solve_cross_entropy": (lambda X, y: [solve_cross_entropy(X, y, lam=0.1, restarts=0, **QUIET)], {}),
    "expansion": (lambda X, y: [mufm.expansion(X, y)], {}),
    "flow": (lambda X, y: [flow.flow(X, y, until=0.5, records=3, **QUIET)], {}),
    "ridge": (lambda X, y: [flow.ridge(X, y, weight_decay=0.1)], {}),
    "reduced_loss": (lambda X, y: [flow.reduced_loss(X, y, weight_decay=0.1)], {}),
    "reduced_gradient": (lambda X, y: [flow.reduced_gradient(X, y, weight_decay=0.1)], {}),
    "on_mufm": (lambda X, y: [descent.on_mufm(X, y, lam=0.1, steps=9, **QUIET)], {}),
    "collapse": (lambda X, y: [collapse(X, y)], {"name": "H"}),
    "ClassMoments.of": (lambda X, y: [ClassMoments.of(X, y)], {"name": "H", "gaps": "keep"}),
    "gap": (
        lambda start, y: [found := transport.gap(start, X**2, y, **QUIET), found.exact, found.atoms],
        {"name": "start", "gaps": "drop"},
    ),
}
KINDS = {
    "numpy": (X.numpy(), Y.numpy()),
    "lists": (X.tolist(), Y.tolist()),
    "tuples": (tuple(map(tuple, X.tolist())), tuple(Y.tolist())),
    "lists of tensors": ([*X], [*Y]),
    "DataFrame and Series": (pd.DataFrame(X.numpy()), pd.Series(Y.numpy())),
    "nullable DataFrame": (
        pd.DataFrame(X.numpy()).astype("Float64"),
        pd.Series(Y.numpy(), dtype="Int64"),
    ),
    "read-only": (read_only(X), read_only(Y)),
    "backwards": (X.numpy()[::-1].copy()[::-1], Y.numpy()[::-1].copy()[::-1]),
    "every other": (X.repeat_interleave(2, 0)[::2], Y.repeat_interleave(2)[::2]),
    "columns first": (X.T.contiguous().T, Y),
    "other byte order": (X.numpy().astype(">f8"), Y.numpy().astype(">i2")),
    "wider than float64": (X.numpy().astype(np.longdouble), Y.numpy().astype(np.uint64)),
    "__array__": (Array(X), Array(Y)),
    "DLPack": (Capsule(X), Capsule(Y)),
    "DLPack, in vain": (Fallback(X), Fallback(Y)),
    "with a gradient": (X.clone().requires_grad_(), Y.to(torch.uint8)),
    "unmasked": (np.ma.masked_array(X.numpy()), np.ma.masked_array(Y.numpy())),
    "memory": (memoryview(X.numpy()), bytearray(Y.tolist())),
}
EXACT = {"torch.float8_e5m2": X.to(torch.float8_e5m2).double()}  # the one type that rounds 7
TYPES = {
    **{str(t): X.to(t) for t in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)},
    **{str(t): X.to(t) for t in (torch.uint8, torch.int16, torch.int64, torch.uint16)},
    "numpy float16": X.numpy().astype(np.float16),
    "numpy uint8": X.numpy().astype(np.uint8),
    "list of int": X.long().tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_every_kind_of_array(entry, kind):
    call, _ = ENTRIES[entry]
    found, known = ([*values(*call(*pair))] for pair in (KINDS[kind], (X, Y)))
    assert known
    for a, b in zip(found, known, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), "the same numbers, bit for bit"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_every_type_at_its_values(entry, kind):
    call, _ = ENTRIES[entry]
    found, known = ([*values(*call(pixels, Y))] for pixels in (TYPES[kind], EXACT.get(kind, X)))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-9, atol=1e-9, equal_nan=True)


BAD = {
    "complex": (X * 1j, Y),
    "NaN": (X.numpy() * np.where(X.numpy() == 2, np.nan, 1), Y),
    "infinity": (X.float() + torch.tensor([0, 0, 0, torch.inf]), Y),
    "one axis": (X[:, 0], Y),
    "no sample": (X[:0], Y[:0]),
    "no feature": (X[:, :0], Y),
    "ragged": ([[1.0, 2.0], [3.0]], [0, 1]),
    "words": ([["a"], ["b"]], [0, 1]),
    "sparse": (X.to_sparse(), Y),
    "a label less": (X, Y[1:]),
    "no label": (X, []),
    "floats": (X, Y.double()),
    "booleans": (X, Y > 0),
    "one-hot": (X, torch.eye(3)[Y]),
    "negative": (X, Y - 1),
    "names of classes": (X, [["a", "b", "c"][k] for k in Y]),
}
UNFIT = {"a gap": (X, 2 * Y), "one class": (X, 0 * Y)}  # which only those refuse that need all classes


@pytest.mark.parametrize("what", [*BAD, *UNFIT])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses_in_the_words_of_the_door(entry, what):
    call, options = ENTRIES[entry]
    bad = {**BAD, **UNFIT}[what]
    if what in UNFIT and "gaps" in options:
        labelled(*bad, **options)
        return
    with pytest.raises(ValueError, match=r"\w") as known:
        labelled(*bad, **options)
    with pytest.raises(ValueError, match=r"\w") as found:
        call(*bad)
    assert str(found.value) == str(known.value)


def test_images_are_flattened_where_samples_may_have_any_shape():
    images = X.reshape(12, 2, 2)
    for entry, (call, options) in ENTRIES.items():
        if "flatten" in options:
            found, known = ([*values(*call(x, Y))] for x in (images.numpy(), X))
            same = (torch.equal(*map(torch.nan_to_num, pair)) for pair in zip(found, known, strict=True))
            assert all(same), entry
        else:
            with pytest.raises(ValueError, match=r"flatten each sample, X\.reshape\(len\(X\), -1\)"):
                call(images.numpy(), Y)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("complex", "X must hold real numbers, got torch.complex128"),
        ("NaN", "X must be finite, got NaN or infinity; drop or repair those samples"),
        (
            "one axis",
            r"X must be of shape \(N, D\), .* of shape \(12,\); of one feature take X\[:, None\]",
        ),
        ("no sample", r"X must be of shape \(N, D\), .* at least one number, got .* \(0, 4\)"),
        ("ragged", "X must be an array of numbers, got list: setting an array element"),
        ("words", "X must be an array of numbers, got list: can't convert"),
        ("sparse", r"got Tensor: its layout is torch.sparse_coo; take its to_dense\(\)"),
        ("a label less", "need one label a row of X, got 12 rows and 11 labels"),
        ("no label", "y has no sample, need at least one sample"),
        (
            "floats",
            r"labels must be integer class indices of shape \(N,\), got torch.float64 of shape \(12,\); "
            r"of whole numbers and booleans take y.astype\(int\) or y.long\(\)",
        ),
        ("booleans", r"got torch.bool of shape \(12,\); of whole numbers and booleans take"),
        ("one-hot", r"got torch.float32 of shape \(12, 3\); of one-hot labels take y.argmax\(1\)"),
        ("negative", "labels must not be negative, got -1; count classes from 0"),
        ("names of classes", "labels must be an array of numbers, got list"),
        ("a gap", r"class 1 has no sample; number the classes 0\.\.K-1 without gaps"),
        ("one class", "need samples of at least 2 classes, got 1"),
    ],
)
def test_errors_name_what_was_given_and_what_would_do(bad, message):
    with pytest.raises(ValueError, match=message):
        labelled(*{**BAD, **UNFIT}[bad])


def test_errors_name_the_batch():
    for y, message in (
        (np.eye(3), r"labels of batch 3 must be integer class indices of shape \(B,\), got .* y.argmax"),
        ([], "batch 3 has no sample"),
        ([-1], "labels of batch 3 must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            class_indices(y, batch=3)
    with pytest.raises(ValueError, match="X of batch 3 must be finite"):
        labelled(X / 0, Y, batch=3)
    with pytest.raises(ValueError, match="one label a row of end of batch 3, got 12 rows and 11 labels"):
        labelled(X, Y[1:], batch=3, name="end")
    with pytest.raises(ValueError, match="at least one sample"):
        BatchLabels.of(Y[:0])


def test_no_array_is_refused_by_its_type():
    for nothing in (None, object(), 3.0, {"x": 1}, (row for row in X)):
        with pytest.raises(ValueError, match="X must be"):
            samples(nothing)
    with pytest.raises(
        ValueError, match="labels must be an array of numbers, got NoneType: it is no array"
    ):
        labelled(X, None)
    with pytest.raises(ValueError, match="some of its entries are masked; fill or drop them"):
        samples(np.ma.masked_array(X.numpy(), X.numpy() > 3))
    broken = Capsule(X)
    broken.values = None
    with pytest.raises(ValueError, match="got Capsule: "):
        samples(broken)


def test_the_type_of_floats_is_kept_and_integers_become_floats():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert samples(X.to(dtype)).dtype == dtype
        assert samples([*X.to(dtype)]).dtype == dtype
        assert samples(Capsule(X.to(dtype))).dtype == dtype
    for dtype in (np.float16, np.float32, np.float64):
        assert samples(X.numpy().astype(dtype)).numpy().dtype == dtype
    for narrow in (torch.uint8, torch.int8, torch.int16, torch.bool, torch.float8_e4m3fn):
        assert samples(X.to(narrow)).dtype == torch.float32
    for wide in (torch.int32, torch.int64):
        assert samples(X.to(wide) + 2**30).tolist() == (X + 2**30).tolist()
    assert not samples(X.clone().requires_grad_()).requires_grad


def test_memory_is_shared():
    given = np.asarray(X).copy()
    address = given.__array_interface__["data"][0]
    for array in (given, given[:, ::2], given.T, Array(given), torch.from_numpy(given), Capsule(given)):
        assert samples(array).data_ptr() == address


def test_a_memory_mapped_file_is_read_in_place_without_a_warning(tmp_path):
    np.save(tmp_path / "X.npy", X.numpy().astype(np.float32))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = samples(mapped)
    assert found.data_ptr() == mapped.__array_interface__["data"][0]
    assert torch.equal(found.double(), X)


def test_what_is_not_finite_is_left_to_those_who_look_themselves(monkeypatch):
    assert samples(X / 0, finite=False).isinf().any()
    monkeypatch.setattr("pfc.samples.BLOCK", 8)
    for row in (0, 5, 11):
        bad = X.clone()
        bad[row, 1] = torch.nan
        with pytest.raises(ValueError, match="X must be finite"):
            samples(bad)
    assert torch.equal(samples(X), X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_whose_sum_overflows_are_finite_and_no_infinities_cancel(dtype):
    X = torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype)
    assert samples(X).equal(X)
    for bad in ([torch.nan], [torch.inf], [-torch.inf], [torch.inf, -torch.inf]):
        X = torch.zeros(40, 50, dtype=dtype)
        X[7, : len(bad)] = torch.tensor(bad, dtype=dtype)
        with pytest.raises(ValueError, match="X must be finite"):
            samples(X)


def test_gaps_are_refused_dropped_or_kept():
    _, y = labelled(X, 5 * Y + 2, gaps="drop")
    assert torch.equal(y, Y)
    _, y = labelled(X, 5 * Y + 2, gaps="keep")
    assert torch.equal(y, 5 * Y + 2)
    for gap, empty in ((Y + 1, 0), (Y + (Y == 2), 2), (Y + 10**12 * (Y == 2), 2)):
        with pytest.raises(ValueError, match=f"class {empty} has no sample"):
            labelled(X, gap)
    with pytest.raises(ValueError, match="class 2 has no sample"):
        mufm.solve(mufm.Statistics(*_with_an_empty_class()), lam=1.0)


def _with_an_empty_class():
    known = mufm.gather([(X, Y)])
    return torch.tensor([4.0, 4.0, 0.0]).double(), known.mean, known.within


def test_what_was_given_is_left_alone():
    x, y = X.numpy().copy(), Y.numpy().copy()
    for call, _ in ENTRIES.values():
        call(x, y)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


@pytest.mark.parametrize(
    "column", [Y[:, None], Y[:, None].numpy(), [[int(k)] for k in Y]], ids=["tensor", "array", "list"]
)
def test_labels_in_a_column_are_labels(column):
    assert class_indices(column).equal(class_indices(Y))
    assert class_indices(column, batch=3).equal(class_indices(Y))


@pytest.mark.parametrize(
    "words", [["b", "a"], ("b", "a"), np.array(["b", "a"])], ids=["list", "tuple", "array"]
)
def test_words_are_no_labels_and_the_message_numbers_them(words):
    match = (
        r"labels of batch 2 must be an array of numbers, got \w+ of text such as 'b'; number the classes"
    )
    with pytest.raises(ValueError, match=match):
        class_indices(words, batch=2)
