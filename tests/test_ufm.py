"""UFM: its closed forms against known answers, evaluation where they are attained, and random starts."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfc.theory import descent, ufm
from pfc.theory.collapse import collapse
from pfc.theory.joint import Joint
from pfc.theory.minimum import least, minima
from tests.test_joint import naive_gradient

DEFAULT = (4, 20, 50)


def penalty(bias):
    return 0.0 if bias in {False, "free"} else bias


def evaluated(found, H, y, *, loss="mse", bias=False, weight_decay=0.005, feature_decay=0.005):
    """The objective and the largest entry of its gradient, by the naive twin."""
    coefficients = {"lW": weight_decay, "lam": feature_decay, "lb": penalty(bias), "loss": loss}
    f, dW, db, dH = naive_gradient(found.W, found.b, H, torch.zeros_like(H), y, **coefficients)
    parts = [dW, dH] if bias is False else [dW, dH, db]
    return f, max(float(part.abs().max()) for part in parts)


def test_o5_known_answers():
    mse, ce = ufm.optimum(*DEFAULT), ufm.optimum(*DEFAULT, loss="ce")
    assert mse.c == ce.c == pytest.approx(0.1414213562373095, rel=1e-14)
    assert mse.objective == pytest.approx(0.1314213562373095, rel=1e-14)
    assert mse.feature_norm2 == pytest.approx(0.12142135623730951, rel=1e-13)
    assert mse.weight_norm2 == pytest.approx((1 - mse.c) * math.sqrt(50), rel=1e-13)
    assert mse.scale == pytest.approx(0.8585786437626906, rel=1e-14)
    assert ufm.optimum(*DEFAULT, bias="free").objective == pytest.approx(0.09856601717798212, rel=1e-14)
    assert ce.scale == pytest.approx(3.2301825125805848, rel=1e-13)
    assert ce.objective == pytest.approx(0.4547359451207689, rel=1e-14)
    assert ce.feature_norm2 == pytest.approx(0.34261259386738974, rel=1e-13)
    assert ce.weight_norm2 == pytest.approx(17.13062969336949, rel=1e-13)


def test_the_bias_by_hand():
    free, penalised = ufm.optimum(*DEFAULT, bias="free"), ufm.optimum(*DEFAULT, bias=0.3)
    assert free.b.tolist() == pytest.approx([0.25] * 4, rel=1e-14)
    g, c = 0.3 / 1.3, free.c
    known = 3 / 4 * (c - c**2 / 2) + (c - c**2 / (2 * g)) / 4
    assert penalised.objective == pytest.approx(known, rel=1e-13)
    assert penalised.b.tolist() == pytest.approx([c / g / 4 * (1 - g)] * 4, rel=1e-12)
    assert free.means.sum(0).abs().max() < 1e-14
    weak = ufm.optimum(*DEFAULT, bias=0.1)  # c is above its 1/11: the mean has no part in the features
    assert weak.objective == pytest.approx(3 / 4 * (c - c**2 / 2) + 1 / 88, rel=1e-13)
    assert weak.b.tolist() == pytest.approx([0.25 / 1.1] * 4, rel=1e-13)
    assert torch.equal(ufm.optimum(*DEFAULT, loss="ce", bias=0.3).b, torch.zeros(4).double())


cases = st.fixed_dictionaries({
    "classes": st.integers(2, 5),
    "features": st.integers(1, 7),
    "per_class": st.integers(1, 3),
    "weight_decay": st.floats(0.002, 0.3),
    "feature_decay": st.floats(0.002, 0.3),
    "loss": st.sampled_from(["mse", "ce"]),
    "bias": st.sampled_from([False, "free", 0.05, 0.5, 40.0]),
})


def has_closed_form(case):
    return case["loss"] == "mse" or case["features"] >= case["classes"] - 1


@given(cases.filter(has_closed_form))
@settings(max_examples=150, deadline=None)
def test_the_optimum_is_attained_and_stationary(case):
    found = ufm.optimum(**case)
    K, n = case["classes"], case["per_class"]
    lW, lH = case["weight_decay"], case["feature_decay"]
    names = ("loss", "bias", "weight_decay", "feature_decay")
    H, y = found.features(), found.labels()
    assert H.shape == (K * n, case["features"])
    assert y.tolist() == [k for k in range(K) for _ in range(n)]
    f, slope = evaluated(found, H, y, **{name: case[name] for name in names})
    assert found.objective == pytest.approx(f, rel=1e-12)
    assert slope < 1e-12
    assert found.feature_norm2 == pytest.approx(H.square().sum(1).mean().item(), rel=1e-11, abs=1e-15)
    assert found.weight_norm2 == pytest.approx(
        found.W.square().sum(1).mean().item(), rel=1e-11, abs=1e-15
    )
    decays = [lW * found.W.square().sum().item(), lH * H.square().sum().item()]
    assert decays[0] == pytest.approx(decays[1], rel=1e-11, abs=1e-15)
    assert found.zero == (K * math.sqrt(n * lW * lH) >= 1) == (not H.any())


@given(cases.filter(has_closed_form))
@settings(max_examples=100, deadline=None)
def test_metrics_are_those_of_the_features_where_they_are_told(case):
    found = ufm.optimum(**case)
    row = collapse(found.features(), found.labels())
    if found.zero:
        assert math.isnan(found.pfc1)
        assert math.isnan(found.pfc2)
        assert found.pfc3 == 1 / case["classes"]
    elif case["features"] >= case["classes"]:
        assert [found.pfc1, found.pfc2, found.pfc3] == [0, 0, 1]
    for name in ("pfc1", "pfc2", "pfc3"):
        value, known = getattr(found, name), getattr(row, name)
        assert math.isnan(value) or value == pytest.approx(known, abs=1e-12)
    K = case["classes"]
    if not found.zero and case["features"] >= K - 1:
        Z = found.W @ found.means.T
        share = Z - Z.mean(0)
        unique = case["features"] >= K or case["loss"] == "ce" or case["bias"] is not False
        if unique or found.pfc2 == 0:
            E = torch.eye(K).double() - 1 / K
            assert share.numpy() == pytest.approx((found.scale * E).numpy(), abs=1e-12)


def test_metrics_that_differ_between_minima_are_not_told():
    short = ufm.optimum(4, 3, 2)  # any three of four orthogonal directions
    assert (short.pfc1, math.isnan(short.pfc2), math.isnan(short.pfc3)) == (0, True, True)
    line = ufm.optimum(2, 1, 2)  # perhaps the direction of the mean, along which the classes coincide
    assert math.isnan(line.pfc1)
    centred = ufm.optimum(2, 1, 2, bias="free")
    assert (centred.pfc1, centred.pfc2, centred.pfc3) == (0, 0, 1)
    flat = ufm.optimum(4, 2, 2, bias="free")
    assert (flat.pfc1, math.isnan(flat.pfc2)) == (0, True)
    assert ufm.optimum(4, 3, 2, loss="ce").pfc2 == 0
    assert ufm.optimum(4, 3, 2, bias=0.5).pfc2 == 0


def test_rank_short_by_hand():
    c = 4 * math.sqrt(2) * 0.02
    found = ufm.optimum(4, 3, 2, weight_decay=0.02, feature_decay=0.02)
    assert found.objective == pytest.approx(3 / 4 * (c - c**2 / 2) + 1 / 8, rel=1e-13)


@given(cases.filter(has_closed_form), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_random_starts_reach_the_optimum_and_never_go_below(case, seed):
    known = ufm.optimum(**case)
    found = ufm.solve(**case, restarts=2, seed=seed, progress=False)
    assert known.objective <= found.objective + 1e-12
    assert found.objective == pytest.approx(known.objective, abs=1e-10)
    assert found.spread < 1e-10
    if abs(known.c - 1) > 0.05:
        assert found.gradient_norm < 1e-9


def test_random_starts_reach_the_whole_solution():
    for loss in ("mse", "ce"):
        for bias in (False, 0.3):
            known = ufm.optimum(4, 6, 3, loss=loss, bias=bias)
            found = ufm.solve(4, 6, 3, loss=loss, bias=bias, restarts=1, progress=False)
            assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx((0, 0, 1), abs=1e-10)
            assert found.b.tolist() == pytest.approx(known.b.tolist(), abs=1e-10)
            Z, Z_known = found.H @ found.W.T, known.features() @ known.W.T
            assert Z.numpy() == pytest.approx(Z_known.numpy(), abs=1e-10)
            assert found.gradient_norm < 1e-12
            assert math.isnan(found.cosine)
            f, slope = evaluated(found, found.H, known.labels(), loss=loss, bias=bias)
            assert found.objective == pytest.approx(f, rel=1e-13)
            assert slope < 1e-12


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_the_zero_regime_begins_without_a_jump(loss):
    at = 1 / (4 * math.sqrt(50))  # the decay at which c = 1
    assert at == pytest.approx(0.03535534, abs=1e-8)
    floor = {"mse": 0.5, "ce": math.log(4)}[loss]
    for size in (1 - 1e-7, 1 - 1e-12, 1 + 1e-12, 2):
        found = ufm.optimum(*DEFAULT, weight_decay=size * at, feature_decay=size * at, loss=loss)
        assert found.zero == (size > 1)
        assert found.objective == pytest.approx(floor, abs=1e-12)
        assert found.feature_norm2 == pytest.approx(0, abs=1e-6)
        assert found.scale >= 0
    assert ufm.optimum(*DEFAULT, weight_decay=0.03, feature_decay=0.03, loss=loss).objective < floor


def test_the_share_of_the_mean_vanishes_without_a_jump():
    c = ufm.optimum(*DEFAULT).c
    lb = c / (1 - c)  # its weight lb/(1+lb) is c then
    below, above = (ufm.optimum(*DEFAULT, bias=lb * (1 + e)) for e in (-1e-9, 1e-9))
    assert below.objective == pytest.approx(above.objective, rel=1e-8)
    assert below.b.tolist() == pytest.approx(above.b.tolist(), rel=1e-8)
    stiff = ufm.optimum(*DEFAULT, bias=1e9)
    assert stiff.objective == pytest.approx(ufm.optimum(*DEFAULT).objective, rel=1e-8)
    loose = ufm.optimum(*DEFAULT, bias=1e-9)
    assert loose.objective == pytest.approx(ufm.optimum(*DEFAULT, bias="free").objective, rel=1e-8)


def test_solve_by_descent_is_the_papers_way():
    size = {"weight_decay": 0.03, "feature_decay": 0.03}
    found = ufm.solve(3, 4, 5, **size, method="descent", restarts=2, steps=300, seed=3, progress=False)
    one = descent.on_ufm(3, 4, 5, **size, steps=300, seed=3, progress=False)
    single = ufm.solve(3, 4, 5, **size, method="descent", restarts=1, steps=300, seed=3, progress=False)
    assert torch.equal(single.W, one.W)
    assert torch.equal(single.H, one.H)
    assert single.objective == one.objective[-1].item()
    assert single.gradient_norm == one.gradient_norm[-1].item()
    assert single.spread == 0
    assert found.objective <= single.objective
    assert found.spread > 0
    free = ufm.solve(
        3, 4, 5, **size, bias="free", method="descent", restarts=1, progress=False, steps=3000
    )
    assert free.objective == pytest.approx(ufm.optimum(3, 4, 5, **size, bias="free").objective, rel=1e-6)


def test_errors_name_what_was_given():
    for call in (ufm.optimum, ufm.solve):
        with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
            call(1, 2, 3)
        with pytest.raises(ValueError, match="features must be at least 1, got 0"):
            call(2, 0, 3)
        with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
            call(2, 2, 0)
        with pytest.raises(ValueError, match="weight_decay must be a positive number, got 0"):
            call(2, 2, 3, weight_decay=0.0)
        with pytest.raises(ValueError, match="feature_decay must be a positive number, got -1"):
            call(2, 2, 3, feature_decay=-1.0)
    for bias in (True, 0.0, -1.0, math.nan):
        with pytest.raises(
            ValueError, match=f"bias must be False, 'free' or a decay above 0, got {bias}"
        ):
            ufm.optimum(2, 2, 3, bias=bias)
    with pytest.raises(ValueError, match=r"from classes - 1 = 3 features on, got 2; use solve"):
        ufm.optimum(4, 2, 3, loss="ce")
    with pytest.raises(ValueError, match="restarts must be at least 1, got 0"):
        ufm.solve(2, 2, 3, restarts=0)


def test_solve_where_no_closed_form_is_known():
    found = ufm.solve(4, 2, 3, loss="ce", restarts=3, progress=False)
    assert found.gradient_norm < 1e-10
    assert found.objective > ufm.optimum(4, 3, 3, loss="ce").objective
    assert collapse(found.H, torch.arange(4).repeat_interleave(3)).pfc1 < 1e-12


unbalanced = st.fixed_dictionaries({
    "counts": st.lists(st.integers(1, 9), min_size=2, max_size=4),
    "weight_decay": st.floats(0.002, 0.4),
    "feature_decay": st.floats(0.002, 0.4),
    "bias": st.sampled_from([False, "free"]),
})


@given(unbalanced, st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_unbalanced_classes_reach_what_random_starts_find(case, more):
    K, free = len(case["counts"]), case["bias"] == "free"
    features = K - free + more
    found = ufm.unbalanced(features=features, **case)
    H, y = found.features(), found.labels()
    assert torch.bincount(y).tolist() == case["counts"]
    names = ("weight_decay", "feature_decay", "bias")
    f, slope = evaluated(found, H, y, **{name: case[name] for name in names})
    assert found.objective == pytest.approx(f, rel=1e-12)
    assert slope < 1e-12
    zero = torch.zeros_like(H)
    known = {"pull": case["feature_decay"], "weight_decay": case["weight_decay"]}
    problem = Joint.of(zero, y, **known, bias=0.0 if free else None)
    rng = np.random.default_rng(0)
    starts = (problem.normal_start(rng) for _ in range(2))
    ends = minima(problem, starts, 2, size=1, progress=False)
    assert found.objective == pytest.approx(least(ends)[0].value, abs=1e-11)


@given(unbalanced)
@settings(max_examples=100, deadline=None)
def test_a_class_vanishes_if_it_has_few_samples(case):
    counts = case["counts"]
    found = ufm.unbalanced(features=len(counts), **case)
    N, lW, lH = (Fraction(v) for v in (sum(counts), case["weight_decay"], case["feature_decay"]))
    if case["bias"] is False:
        few = tuple(k for k, n in enumerate(counts) if n <= N**2 * lW * lH)
        assert found.vanished == few
        assert str(found).startswith(
            "No class vanishes"
            if not few
            else f"All {len(counts)} classes vanish"
            if len(few) == len(counts)
            else f"Classes that vanish, of no more than N^2 lW lH = {found.threshold:.6g} samples: "
        )
    rows = torch.cat([found.W, found.means], 1).norm(dim=1)
    assert all((rows[k] < 1e-8) == (k in found.vanished) for k in range(len(counts)))
    apart = torch.cdist(found.means, found.means, compute_mode="donot_use_mm_for_euclid_dist")
    together = {(j, k) for j in range(len(counts)) for k in range(j) if apart[j, k] < 1e-8}
    told = {(j, k) for group in found.merged for j in group for k in group if k < j}
    assert together == told


def test_minorities_of_one_size_coincide_before_they_vanish():
    few = {"weight_decay": 0.02, "feature_decay": 0.03}
    found = ufm.unbalanced([100, 5, 5, 5], 3, **few, bias="free")
    assert (found.vanished, found.merged) == ((), ((1, 2, 3),))
    assert str(found) == "Classes whose features coincide: 1 and 2 and 3."
    two = ufm.unbalanced([100, 100, 5, 5], 3, weight_decay=0.01, feature_decay=0.02, bias="free")
    assert two.merged == ((2, 3),)
    assert found.b.tolist() == pytest.approx([100 / 115, *[5 / 115] * 3])
    plain = ufm.unbalanced([100, 5, 5], 3, **few)
    assert plain.vanished == (1, 2)
    assert str(plain).endswith("samples: 1, 2.")
    odd = ufm.unbalanced([50, 50, 2], 2, **few, bias="free")
    assert str(odd) == "Classes that vanish: 2."
    assert str(ufm.unbalanced([2, 3], 2, weight_decay=1.0, feature_decay=1.0)) == (
        "All 2 classes vanish: the decays are too strong."
    )


@pytest.mark.parametrize("n", [2, 3, 5, 7, 11, 13])
def test_a_tie_vanishes(n):
    decay = math.sqrt(n) / (n + 40)  # N^2 lW lH = n but for rounding
    found = ufm.unbalanced([40, n], 2, weight_decay=decay, feature_decay=decay)
    assert found.vanished == (1,)


def test_classes_of_one_size_coincide_however_near_the_others_are():
    counts = [1000000, 1000002, 1000000, 1000000, 1000001, 1000000, 1000002, 1000000]
    decays = {"weight_decay": 9.989600641007796e-05, "feature_decay": 0.00015641246363933215}
    found = ufm.unbalanced(counts, 8, **decays, bias="free")  # N^2 lW lH is above 1,000,000
    assert (found.vanished, found.merged) == ((), ((0, 2, 3, 5, 7),))
    assert len(found.means[list(found.merged[0])].unique(dim=0)) == 1
    far = ufm.unbalanced([10**9, 10**9, 1, 2], 3, weight_decay=1e-10, feature_decay=1e-10, bias="free")
    assert str(far) == "No class vanishes and no two coincide."


def test_the_threshold_is_printed_with_the_digits_that_part_the_classes():
    decay = math.sqrt(7 * (1 - 1e-10)) / 52
    found = ufm.unbalanced([6, 7, 3, 9, 1, 10, 9, 7], 8, weight_decay=decay, feature_decay=decay)
    assert (
        str(found) == "Classes that vanish, of no more than N^2 lW lH = 6.9999999993 samples: 0, 2, 4."
    )


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 10, 11, 12, 13])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_balanced_classes_vanish_at_a_tie_as_well(K, n, loss):
    decay = 1 / (K * math.sqrt(n))  # c = 1 but for rounding
    found = ufm.optimum(K, K, n, weight_decay=decay, feature_decay=decay, loss=loss)
    assert found.zero
    assert not found.means.any()
    assert math.isnan(found.pfc1)


def test_the_scale_of_cross_entropy_has_all_digits_near_the_threshold():
    decay = (1 - 1e-9) / (2 * math.sqrt(2))
    found = ufm.optimum(2, 2, 2, weight_decay=decay, feature_decay=decay, loss="ce")
    assert found.scale == pytest.approx(2 * (1 - found.c) / found.c, rel=1e-8, abs=0)


@pytest.mark.parametrize("bias", [False, "free"])
def test_unbalanced_with_equal_counts_is_the_balanced_optimum(bias):
    one, other = ufm.unbalanced([50] * 4, 20, bias=bias), ufm.optimum(*DEFAULT, bias=bias)
    assert one.objective == pytest.approx(other.objective, rel=1e-13)
    Z, known = one.means @ one.W.mT, other.means @ other.W.mT
    assert Z.numpy() == pytest.approx(known.numpy(), abs=1e-12)


def test_errors_of_unbalanced_name_what_was_given():
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        ufm.unbalanced([3], 2)
    with pytest.raises(ValueError, match="counts must be at least 1, got 0"):
        ufm.unbalanced([3, 0], 2)
    with pytest.raises(
        ValueError, match="unbalanced classes have a closed form from 3 features on, got 2"
    ):
        ufm.unbalanced([3, 2, 1], 2)
    assert ufm.unbalanced([3, 2, 1], 2, bias="free").W.shape == (3, 2)
    with pytest.raises(ValueError, match="bias must be False or 'free', got True"):
        ufm.unbalanced([3, 2], 2, bias=True)
    with pytest.raises(ValueError, match=r"weight_decay must be a positive number, got 0\.0"):
        ufm.unbalanced([3, 2], 2, weight_decay=0.0)
