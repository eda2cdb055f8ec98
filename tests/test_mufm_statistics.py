"""Statistics gathered in one pass: exact at any offset, the same in any order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pfc.theory.mufm import Statistics, gather
from pfc.theory.mufm import statistics as module
from tests import oracles, problems

F64 = torch.float64


def close(a, b, tolerance=1e-12):
    scale = b.abs().max().clamp(min=1e-300)
    return float(((a - b).abs() / scale).max()) <= tolerance


def naive(X, y):
    """Class means, class scatters, X^T X in extended precision."""
    X, y = X.numpy().astype(np.longdouble), y.numpy()
    K = y.max() + 1
    means = np.stack([X[y == k].mean(axis=0) for k in range(K)])
    scatter = np.stack([(X[y == k] - means[k]).T @ (X[y == k] - means[k]) for k in range(K)])
    return tuple(torch.from_numpy(a.astype(float)) for a in (means, scatter, X.T @ X))


def batches(X, y, sizes):
    return zip(X.split(sizes), y.split(sizes), strict=True)


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_any_batches_in_any_order_give_the_same(seed):
    X, y = problems.features(seed, N=40 + seed % 20, D=5, K=3)
    means, scatter, second = naive(X, y)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    for found in (gather(batches(X, y, 7)), gather(batches(X[order], y[order], 11)), gather([(X, y)])):
        assert found.count.tolist() == torch.bincount(y).tolist()
        assert close(found.mean, means)
        assert close(found.within, scatter)
        assert close(found.second, second)
        assert close(found.centre, X.mean(0))


def test_classes_may_come_one_after_the_other():
    X, y = problems.features(1, N=60, D=5, K=4)
    order = torch.argsort(y)
    means, scatter, _ = naive(X, y)
    found = gather(batches(X[order], y[order], 4))
    assert close(found.mean, means)
    assert close(found.within, scatter)


@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_neither_offset_nor_collapse_costs_digits(offset, spread):
    X, y = problems.features(2, N=300, D=4, K=3, spread=spread)
    X = X + offset
    means, scatter, _ = naive(X, y)
    found = gather(batches(X, y, 17))
    tolerance = max(1e-12, 1e-15 * offset / spread)
    assert close(found.within, scatter, tolerance)
    assert close(found.centred.mean, means - X.mean(0), max(1e-12, 1e-15 * offset))
    assert close(found.centred.second, (X - X.mean(0)).mT @ (X - X.mean(0)), max(1e-12, 1e-15 * offset))


def test_pooled_classes_give_the_same_sums(monkeypatch):
    X, y = problems.features(3, N=90, D=6, K=4)
    each = gather(batches(X, y, 13))
    for limit in (0, 2 * 36):  # pooled from the start, and when the third class comes
        monkeypatch.setattr(module, "EACH", limit)
        monkeypatch.setattr(module, "TILE", 30)
        pooled = gather(batches(X[torch.argsort(y)], y.sort().values, 13))
        assert len(pooled.within) == 1
        assert close(pooled.second, each.second)
        assert close(pooled.covariance("sample"), each.covariance("sample"))
    with pytest.raises(ValueError, match=r"4 classes of 6 features were pooled .* weighting='sample'"):
        pooled.covariance("class")


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_covariance_is_the_naive_one(weighting):
    X, y = problems.features(4, N=50, D=5, K=3)
    within, _, _ = oracles.covariances(X, y, weighting)
    assert close(Statistics.of(X, y).covariance(weighting), torch.from_numpy(within))


def test_balanced_and_pooled_needs_no_class_of_its_own(monkeypatch):
    X, _ = problems.features(5, N=30, D=5, K=3)
    y = torch.arange(3).repeat(10)
    each = Statistics.of(X, y)
    monkeypatch.setattr(module, "EACH", 0)
    pooled = Statistics.of(X, y)
    assert pooled.balanced
    assert close(pooled.covariance("class"), each.covariance("class"))


@pytest.mark.parametrize("limit", [0, module.EACH])
def test_merge_is_the_sum(monkeypatch, limit):
    monkeypatch.setattr(module, "EACH", limit)
    X, y = problems.features(6, N=60, D=5, K=3)
    y[:3], y[30:33] = torch.arange(3), torch.arange(3)
    whole = Statistics.of(X, y)
    a, b = Statistics.of(X[:30], y[:30]), Statistics.of(X[30:], y[30:])
    for merged in (a.merge(b), b.merge(a)):
        for name in ("count", "mean", "within"):
            assert close(getattr(merged, name), getattr(whole, name))
    assert a.count.sum() == 30
    with pytest.raises(ValueError, match=r"same classes and width, \(3, 5\), got \(2, 5\)"):
        a.merge(Statistics.of(X[:4], torch.tensor([0, 1, 0, 1])))


def test_the_spectrum_knows_what_is_zero():
    X, y = problems.features(7, N=40, D=3, K=2)
    wide = X @ torch.randn(3, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = Statistics.of(wide, y)
    e, V = found.spectrum.values, found.spectrum.vectors
    assert (e == 0).sum() == 9
    assert close((V * e) @ V.mT, wide.mT @ wide)
    assert found.spectrum is found.spectrum
    assert found.centred.spectrum is found.centred.spectrum


def test_images_halves_and_integers_are_taken_at_their_values():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (12, 3, 2, 2), generator=g, dtype=torch.uint8)
    y = torch.arange(12) % 3
    known = gather([(images.double().flatten(1), y)])
    for x in (images, images.half(), images.float()):
        assert torch.equal(gather([(x, y.int())]).second, known.second)


def test_errors_name_what_was_given():
    X, y = problems.features(8, N=12, D=3, K=2)
    with pytest.raises(ValueError, match="no batch at all"):
        gather([])
    with pytest.raises(ValueError, match=r"batch 0 must be a pair \(x, y\), got dict"):
        gather([{"x": X}])
    with pytest.raises(
        ValueError,
        match=r"X of batch 0 must be of shape \(N, ...\), one sample a row .* of shape \(1,\)",
    ):
        gather([([1], y)])
    with pytest.raises(
        ValueError,
        match=r"labels of batch 0 must be integer class indices of shape \(B,\), got torch.float64",
    ):
        gather([(X, y.double())])
    with pytest.raises(ValueError, match=r"one label a row of X of batch 0, got 5 rows and 12 labels"):
        gather([(X[:5], y)])
    with pytest.raises(ValueError, match="labels of batch 0 must not be negative, got -1"):
        gather([(X, y - 1)])
    with pytest.raises(ValueError, match="batch 1 has 2 features, those before 3"):
        gather([(X, y), (X[:, :2], y)])
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        gather([(X, 0 * y)])
    with pytest.raises(ValueError, match=r"class 1 has no sample; number the classes"):
        gather([(X, 2 * y)])
    with pytest.raises(ValueError, match="X of batch 1 must be finite"):
        gather([(X, y), (X / 0, y)])
