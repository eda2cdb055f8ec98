"""Metrics against known answers, naive twins and their laws (F1 to F6)."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.datasets import load_digits

from pfc import metrics
from pfc.moments import ClassMoments
from pfc.nearest import NearestMean
from pfc.profile.columns import COLUMNS, Evidence
from pfc.span import MeansSpan
from tests import problems
from tests.oracles import covariances, naive_row

TIGHT = {"rtol": 1e-10, "atol": 1e-13}


def row(H, y, weighting="class", W=None, b=None):
    """All metrics of one layer by the table of columns, from the package's own statistics."""
    moments = ClassMoments.of(H, y)
    present, nearest = moments.present(), NearestMean.empty(MeansSpan.of(moments, weighting))
    decided = nearest.update(H, y)
    evidence = Evidence(present.count, present.scatter, nearest.span.points, weighting, nearest)
    if W is not None:
        seen = y.unique()
        off = ((H @ W.T + b).argmax(1) != seen[decided]).double().mean()
        evidence = replace(evidence, classifier=(W, present.mean), disagreement=float(off))
    return {name: column.of(evidence) for name, column in COLUMNS.items() if evidence.has(column.needs)}


def test_o1_known_answers():
    found = row(problems.O1_H, problems.O1_Y, W=problems.O1_W, b=torch.zeros(3, dtype=torch.float64))
    known = {
        "pfc1": 9 / 50,
        "pfc2": math.sqrt(2 - 300 / math.sqrt(23832)),
        "pfc3": 1.0,
        "nc1": 19 / 147,
        "fuzziness": 19 / 49,
        "cdnv": (1 / 13 + 1 / 17 + 1 / 20) / 3,
        "nc2_norm": 0.10558873541928951,
        "nc2_angle": 0.13418826449381882,
        "nc2_max_angle": 0.11677041608797911,
        "nc3": 0.20101792401041635,
        "nc4": 0.0,
    }
    for name, value in known.items():
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-14), name
    M = ClassMoments.of(problems.O1_H, problems.O1_Y).mean
    assert float(metrics.participation_ratio(M)) == pytest.approx(1.8882175226586104, rel=1e-13)
    assert float(metrics.equinorm(M, ddof=0)) == pytest.approx(0.08621284145433217, rel=1e-13)


@pytest.mark.parametrize("balanced", [False, True])
def test_o12_real_digits(balanced):
    digits = load_digits()
    H, y = torch.from_numpy(digits.data) / 16, torch.from_numpy(digits.target)
    if balanced:
        first = torch.cat([(y == k).nonzero().flatten()[:174] for k in range(10)]).sort().values
        H, y = H[first], y[first]
        known = {"pfc1": 1.379347281068, "pfc2": 0.666920723345, "pfc3": 0.904597701149}
    else:
        known = {"pfc1": 1.378530629317, "pfc2": 0.669619518706, "pfc3": 0.904841402337}
        known["nc1"] = 0.9260752776
        assert row(H, y, "sample")["pfc1"] == pytest.approx(1.377038433876, rel=1e-11)
    found = row(H, y)
    for name, value in known.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_every_metric_equals_its_naive_twin(seed):
    H, y = problems.features(seed, D=3 + seed % 6, K=3 + seed % 3)
    g = torch.Generator().manual_seed(seed + 1)
    W = torch.randn(int(y.max()) + 1, H.shape[1], generator=g, dtype=torch.float64)
    b = torch.randn(len(W), generator=g, dtype=torch.float64)
    for weighting in ("class", "sample"):
        found, known = row(H, y, weighting, W, b), naive_row(H, y, weighting, W, b)
        for name, value in known.items():
            np.testing.assert_allclose(found[name], value, **TIGHT, err_msg=f"{name} {weighting}")


@given(problems.seeds)
@settings(max_examples=20, deadline=None)
def test_total_scatter_is_within_plus_between(seed):
    H, y = problems.features(seed)
    for weighting in ("class", "sample"):
        within, between, total = covariances(H, y, weighting)
        moments = ClassMoments.of(H, y)
        w, b = metrics.within_trace(moments, weighting), metrics.between_trace(moments, weighting)
        np.testing.assert_allclose([float(w), float(b)], [np.trace(within), np.trace(between)], **TIGHT)
        np.testing.assert_allclose(float(w + b), np.trace(total), **TIGHT)


@given(problems.seeds)
@settings(max_examples=30, deadline=None)
def test_f1_f2_participation_ratio_and_range(seed):
    K, D = 3 + seed % 5, 1 + seed % 7
    g = torch.Generator().manual_seed(seed)
    M = torch.randn(K, D, generator=g, dtype=torch.float64)
    pfc2, ratio = float(metrics.etf_distance(M)), float(metrics.participation_ratio(M))
    assert pfc2**2 == pytest.approx(2 - 2 * math.sqrt(ratio / (K - 1)), abs=1e-12)
    r = min(K - 1, D)
    assert math.sqrt(2 - 2 * math.sqrt(r / (K - 1))) - 1e-9 <= pfc2
    assert pfc2 <= math.sqrt(2 - 2 / math.sqrt(K - 1)) + 1e-9


@pytest.mark.parametrize(
    ("K", "known"),
    [(3, 0.765366864730), (4, 0.919401686762), (10, 1.154700538379), (100, 1.341265237359)],
)
def test_f2_means_on_a_line_are_the_farthest(K, known):
    M = torch.zeros(K, 2, dtype=torch.float64)
    M[:, 0] = torch.randn(K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    assert float(metrics.etf_distance(M)) == pytest.approx(known, rel=1e-11)


def test_f2_a_square_can_not_be_a_tetrahedron():
    M = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    assert float(metrics.etf_distance(M)) == pytest.approx(0.605810893055, rel=1e-11)


def test_f3_two_classes_are_always_a_frame():
    M = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(metrics.etf_distance(M)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("K", [3, 10, 50])
def test_a_simplex_frame_is_perfect(K):
    M = 7 * problems.simplex(K, K + 2) @ problems.orthogonal(K + 2, K) + 100
    assert float(metrics.etf_distance(M)) < 1e-12
    assert float(metrics.equinorm(M)) < 1e-12
    assert float(metrics.equiangle(M)) < 1e-12
    assert float(metrics.maximal_angle_distance(M)) < 1e-12
    assert float(metrics.participation_ratio(M)) == pytest.approx(K - 1, rel=1e-12)
    assert float(metrics.self_duality(M=M, W=3 * (M - M.mean(0)))) < 1e-12


def test_pfc2_is_centred_without_weights():
    M = problems.simplex(3, 3)
    H = torch.cat([M[k].expand(n, 3) for k, n in enumerate((10, 2, 1))])
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 2, 1]))
    for weighting in ("class", "sample"):
        assert row(H, y, weighting)["pfc2"] < 1e-12  # 0.8141 with the sample-weighted mean
    span = MeansSpan.of(ClassMoments.of(H, y), "sample")
    assert float(metrics.etf_distance(span.points)) < 1e-12


def test_f5_accuracy_below_chance():
    H = torch.tensor([[-0.1]] * 9 + [[5.9]] + [[0.1]] * 9 + [[-5.9]], dtype=torch.float64)
    y = torch.tensor([0] * 10 + [1] * 10)
    assert row(H, y)["pfc3"] == 0.1


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_f6_error_is_bounded_by_scatter_and_distance(seed):
    H, y = problems.features(seed, N=80, D=5, K=4, spread=0.2 + seed % 5)
    moments = ClassMoments.of(H, y).present()
    distance = torch.cdist(moments.mean, moments.mean)
    distance.fill_diagonal_(float("inf"))
    bound = 4 * float(metrics.within_trace(moments, "sample")) / float(distance.min()) ** 2
    assert 1 - row(H, y)["pfc3"] <= bound + 1e-12


@given(problems.seeds)
@settings(max_examples=20, deadline=None)
def test_f6_at_a_frame_pfc1_alone_bounds_the_error(seed):
    K, n = 4, 15
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(K, n, 6, generator=g, dtype=torch.float64) * (0.05 + seed % 4 / 4)
    H = (problems.simplex(K, 6)[:, None] + noise - noise.mean(1, keepdim=True)).reshape(-1, 6)
    found = row(H, torch.arange(K).repeat_interleave(n))
    assert found["pfc2"] < 1e-12
    assert 1 - found["pfc3"] <= 2 * (K - 1) / K * found["pfc1"] + 1e-12


def test_undefined_is_nan_and_infinite_is_infinite():
    same = torch.zeros(4, 3, dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    assert math.isnan(float(metrics.scatter_ratio(ClassMoments.of(same, y))))
    assert math.isnan(float(metrics.etf_distance(same)))
    H = torch.tensor([[1.0], [-1], [2], [-2]], dtype=torch.float64)
    moments = ClassMoments.of(H, y)
    assert float(metrics.scatter_ratio(moments)) == math.inf
    span = MeansSpan.of(moments)
    assert span.basis.shape == (1, 0)
    nearest = NearestMean.empty(span)
    nearest.update(H, y)
    assert math.isnan(float(metrics.collapse_trace(nearest.squares, moments.count, span.values)))
    assert nearest.hits.tolist() == [2, 0]  # all tie, and ties go to the lowest class


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-13, 1e13, 1e160, 1e300])
def test_metrics_of_the_means_are_the_same_at_any_size(size):
    M = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shapes = (metrics.etf_distance, metrics.participation_ratio, metrics.equiangle, metrics.equinorm)
    for metric in (*shapes, metrics.maximal_angle_distance):
        assert float(metric(size * M)) == pytest.approx(float(metric(M)), rel=1e-12)
    W, none = M.flip(0), torch.zeros(4, dtype=torch.float64)
    known = float(metrics.self_duality(M=M, W=W))
    assert float(metrics.self_duality(M=size * M, W=W)) == pytest.approx(known, rel=1e-12)
    assert float(metrics.self_duality(M=M, W=size * W)) == pytest.approx(known, rel=1e-12)
    assert float(metrics.class_distance_variance(size * M, none)) == 0
    one = torch.ones(4, dtype=torch.float64)
    if 1e-150 < size < 1e150:
        known = float(metrics.class_distance_variance(M, one))
        found = metrics.class_distance_variance(size * M, size * size * one)
        assert float(found) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sizes_are_changed_by_powers_of_two_alone(dtype):
    for size in (1e-300, 1e-40, 1e-7, 0.3, 1.0, 7e4, 1e38, 1.7e308):
        M = (torch.tensor([[0.3, -1], [0.7, 0.1]], dtype=torch.float64) * size).to(dtype)
        if not M.isfinite().all() or not M.any():
            continue
        over = float(metrics._over(M))
        assert math.frexp(over)[0] == 0.5
        if float(M.abs().max()) > 4 * torch.finfo(dtype).tiny:
            assert 0.5 <= over * float(M.abs().max()) < 4


def test_means_whose_sum_overflows():
    M = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    huge = M / M.abs().max() * 1.7e308
    assert float(metrics.etf_distance(huge)) == pytest.approx(float(metrics.etf_distance(M)), rel=1e-12)


def test_a_power_of_two_changes_no_bit():
    M = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for metric in (metrics.etf_distance, metrics.equinorm, metrics.maximal_angle_distance):
        for exponent in (-900, -53, 1, 700):
            assert float(metric(M * 2.0**exponent)) == float(metric(M))
    for exponent in (-100, 100):
        assert float(metrics.etf_distance(M.float() * 2.0**exponent)) == float(
            metrics.etf_distance(M.float())
        )


def test_a_mean_at_the_mean_of_all_has_no_angle():
    M = torch.tensor([[0.1, 0], [0.2, 0], [0.3, 0]], dtype=torch.float64)
    assert math.isnan(float(metrics.equiangle(M)))
    assert math.isnan(float(metrics.maximal_angle_distance(M)))


def test_effective_depth():
    assert metrics.effective_depth([0.2, 0.005, 0.02, 0.01, 0.0]) == 3
    assert metrics.effective_depth([0.0, 0.0]) == 0
    assert metrics.effective_depth([0.2, 0.1]) is None
    assert metrics.effective_depth([0.2, 0.1], eps=0.1) == 1
    assert metrics.effective_depth([1 - 0.98, 1 - 0.99]) == 1, (
        "0.99 is good enough, whatever 1 - 0.99 is"
    )
    assert metrics.effective_depth([math.nan, 0.0]) == 1
    with pytest.raises(ValueError, match=r"eps must lie in \[0, 1\], got 2.0"):
        metrics.effective_depth([0.0], eps=2.0)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        metrics.etf_distance(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        metrics.scatter_ratio(ClassMoments.of(torch.zeros(2, 3), torch.tensor([1, 1])))
    with pytest.raises(ValueError, match="'class' or 'sample', got 'classes'"):
        inspect.unwrap(metrics.class_weights)(torch.ones(2, dtype=torch.float64), "classes")
