"""Streaming statistics: exact at any offset and any collapse, the same however the data are split."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pfc.fused
import pfc.labels
from pfc.labels import BatchLabels
from pfc.metrics import scatter_ratio
from pfc.moments import ClassMoments, SegmentMoments
from tests import problems
from tests.oracles import naive_moments

pytestmark = pytest.mark.usefixtures("engine")


def assert_same(found, known, rtol):
    for name in ("count", "mean", "scatter"):
        torch.testing.assert_close(
            getattr(found, name), getattr(known, name), rtol=rtol, atol=rtol * 1e-2, msg=name
        )


def stream(H, y, K, sizes):
    moments = ClassMoments.empty(K, H.shape[1])
    for rows, labels in zip(H.split(sizes), y.split(sizes), strict=True):
        if len(labels):
            moments.update(rows, BatchLabels.of(labels))
    return moments


@given(problems.seeds, st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_moments_equal_their_naive_twin(seed, batch):
    H, y = problems.features(seed)
    found = stream(H, y, 6, batch)
    count, mean, scatter = naive_moments(H, y, 6)
    np.testing.assert_array_equal(found.count, count)
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-12, atol=1e-14)


@given(problems.seeds, st.lists(st.integers(0, 25), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_merging_in_any_order_and_split_is_the_same(seed, sizes):
    sizes = [*sizes, max(0, 60 - sum(sizes))]
    H, y = problems.features(seed, N=sum(sizes))
    parts = [
        stream(h, k, 4, len(k)) if len(k) else ClassMoments.empty(4, 7)
        for h, k in zip(H.split(sizes), y.split(sizes), strict=True)
    ]
    whole = stream(H, y, 4, len(y))
    for order in (range(len(parts)), reversed(range(len(parts)))):
        merged = ClassMoments.empty(4, 7)
        for i in order:
            merged.merge(parts[i])
        assert_same(merged, whole, 1e-12)


OFFSETS = [0.0, 10.0, 1e2, 1e4, 1e6]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("batch", [7, 500, 5000])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_section_7_offsets_and_collapse_in_float32(offset, batch, spread):
    """The stored float32 numbers are the truth; PFC1 keeps 1e-13 of it."""
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, 5, (3000,), generator=g)
    means = torch.randn(5, 12, generator=g, dtype=torch.float64)
    noise = torch.randn(3000, 12, generator=g, dtype=torch.float64)
    H = (means[y] + spread * noise + offset).float()
    found = float(scatter_ratio(stream(H, y, 5, batch)))
    _, mean, scatter = naive_moments(H, y, 5)
    counts = np.bincount(y, minlength=5)
    between = ((mean - mean.mean(axis=0)) ** 2).sum() / 5
    known = float((scatter / counts).sum() / 5 / between)
    assert found == pytest.approx(known, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_floating_type_is_exact_on_its_own_numbers(dtype):
    H, y = problems.features(2)
    H = (H + 30).to(dtype)
    assert_same(ClassMoments.of(H, y), ClassMoments.of(H.double(), y), 1e-15)


def test_a_first_sample_far_away_does_not_spoil_the_shift():
    H, y = problems.features(4, N=400, spread=1e-4)
    H[0] += 1e6
    _, _, scatter = naive_moments(H, y, 4)
    found = stream(H, y, 4, 16)
    np.testing.assert_allclose(found.scatter, scatter.astype(float), rtol=1e-10)
    others = torch.arange(4) != y[0]
    np.testing.assert_allclose(found.scatter[others], scatter.astype(float)[others], rtol=1e-12)


@pytest.mark.parametrize("tile", [1, 5, 64, 10_000])
def test_tiles_change_nothing(monkeypatch, tile):
    H, y = problems.features(5, N=90, D=23)
    known = ClassMoments.of(H, y)
    monkeypatch.setitem(pfc.tiles.TILE, "cpu", tile)
    monkeypatch.setattr(pfc.fused.processor, "WIDTH", tile)
    assert_same(ClassMoments.of(H, y), known, 1e-13)


def test_a_device_takes_the_other_way_to_sum(monkeypatch):
    H, y = problems.features(6, N=300, D=9, K=80)
    known = ClassMoments.of(H, y)
    assert BatchLabels.of(y).one_hot is None
    monkeypatch.setattr(pfc.labels, "SYNCHRONOUS_DEVICES", set())
    assert BatchLabels.of(y).one_hot.shape == (80, 300)
    assert_same(ClassMoments.of(H, y), known, 1e-13)


@pytest.mark.parametrize("largest", [2**16 - 1, 2**16, 2**40])
def test_samples_come_class_by_class_whatever_the_numbers_of_the_classes(largest):
    y = torch.tensor([3, largest, 0, 3, largest - 1, 0, largest])
    labels = BatchLabels.of(y)
    assert labels.order.tolist() == [2, 5, 0, 3, 4, 1, 6]
    assert labels.numbers == (0, 3, largest - 1, largest)
    assert labels.present[labels.place].tolist() == y.tolist()
    assert labels.first.tolist() == [2, 0, 4, 1]
    assert labels.count.tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("merged", [True, False])
def test_a_class_that_is_new_to_one_part_keeps_the_mean_that_another_has(merged):
    H, y = problems.features(3, N=40, K=3)
    H, own = H + 1e6, y < 2  # the first part has never seen the last class
    first, rest = stream(H[own], y[own], 3, 7), stream(H[~own], y[~own], 3, 4)
    if merged:
        first.merge(rest)
    first.update(H, BatchLabels.of(y))
    twice = torch.cat([H[own], *[H[~own]] * merged, H])
    known = ClassMoments.of(twice, torch.cat([y[own], *[y[~own]] * merged, y]), 3)
    assert_same(first, known, 1e-12)


def test_after_a_batch_that_failed_a_class_begins_anew(engine, monkeypatch):
    H, y = problems.features(4, N=12, K=2)
    moments, labels = ClassMoments.empty(2, H.shape[1]), BatchLabels.of(y)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentMoments, "_absorb" if engine == "compiled" else "_add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            moments.update(H * float("nan"), labels)
    if engine == "compiled":  # whose loops may have been anywhere
        moments.mean.fill_(float("nan"))
        moments.mean_error.fill_(float("nan"))
    assert moments.mean.isnan().all()
    moments.update(H, labels)
    assert_same(moments, ClassMoments.of(H, y), 1e-14)


def naive_segment(batch, y, K):
    """Cross scatter and Gram matrices of increments, sample by sample."""
    first, last = batch[0], batch[-1]
    L = len(batch) - 1
    cross, steps = torch.zeros(K, dtype=torch.float64), torch.zeros(K, L, L, dtype=torch.float64)
    for k in range(K):
        r, q = first[y == k], last[y == k]
        cross[k] = ((r - r.mean(0)) * (q - q.mean(0))).sum() if len(r) else 0
        for i in (y == k).nonzero().flatten():
            D = torch.stack([b[i] - a[i] for a, b in pairwise(batch)])
            steps[k] += D @ D.T
    return cross, steps


@given(problems.seeds, st.integers(1, 60), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_segments_equal_their_naive_twin_and_merge(seed, batch, depth):
    H, y = problems.features(seed)
    g = torch.Generator().manual_seed(seed + 7)
    layers = [H]
    for _ in range(depth - 1):
        layers.append(layers[-1] + 0.3 * torch.randn(H.shape, generator=g, dtype=torch.float64) + 2)
    whole, halves = (SegmentMoments.empty(depth, 4, 7) for _ in range(2))
    for start in range(0, len(y), batch):
        rows = slice(start, start + batch)
        part = SegmentMoments.empty(depth, 4, 7)
        for moments in (whole, part):
            moments.update([h[rows] for h in layers], BatchLabels.of(y[rows]))
        halves.merge(part)
    cross, steps = naive_segment(layers, y, 4)
    for found in (whole, halves):
        torch.testing.assert_close(found.cross, cross, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.steps, steps, rtol=1e-12, atol=1e-12)
        for moments, h in zip(found.layers, layers, strict=True):
            assert_same(moments, ClassMoments.of(h, y), 1e-12)


def test_growing_makes_room_and_changes_nothing():
    H, y = problems.features(8)
    segment = SegmentMoments.empty(2, 4, 7)
    segment.update([H, 2 * H], BatchLabels.of(y))
    known = segment.steps.clone()
    segment.grow(6)
    segment.grow(3)
    assert segment.steps.shape == (6, 1, 1)
    assert segment.cross.shape == (6,)
    torch.testing.assert_close(segment.steps[:4], known, rtol=0, atol=0)
    segment.update([H, 2 * H], BatchLabels.of(y + 2))
    both = torch.cat([H, H]), torch.cat([y, y + 2])
    assert_same(segment.layers[0], ClassMoments.of(*both), 1e-12)
    assert ClassMoments.of(H, y + 1).present().count.shape == (4,)


def test_features_are_left_alone():
    H, y = problems.features(9)
    before = H.clone()
    ClassMoments.of(H, y)
    assert H.equal(before)


def test_errors_name_what_was_given():
    H, y = problems.features(1)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        ClassMoments.of(H, y, classes=3)
    with pytest.raises(ValueError, match="labels must not be negative, got -1"):
        ClassMoments.of(H, y - 1)
    with pytest.raises(ValueError, match="at least one sample"):
        BatchLabels.of(y[:0])
    with pytest.raises(ValueError, match=r"shape \(60, 7\), one row a label, got \(60, 6\)"):
        ClassMoments.empty(4, 7).update(H[:, :6], BatchLabels.of(y))
    with pytest.raises(ValueError, match=r"got \(59, 7\)"):
        ClassMoments.empty(4, 7).update(H[:59], BatchLabels.of(y))
