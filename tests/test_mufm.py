"""Solutions of the MUFM with squared loss: known answers, laws, what they prove and say."""

import math
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfc.metrics import etf_distance, scatter_ratio
from pfc.moments import ClassMoments
from pfc.theory import mufm
from pfc.theory.mufm import SpuriousMinimaWarning, cross_entropy, gather, solve, sweep
from pfc.theory.mufm import solution as solution_module
from pfc.theory.mufm import statistics as statistics_module
from pfc.theory.mufm.source import Source, checked
from tests import mufm_twins as twins
from tests import oracles, problems

F64 = torch.float64
NAMES = (
    "objective",
    "pfc1",
    "pfc2",
    "cosine",
    "direction_distance",
    "relative_displacement",
    "norm_ratio",
)
lams = st.floats(-6, 1).map(lambda p: 10**p)

# Known answers O7: the toy data, seed 0, sigma 0.5; global minima by many starts of independent code.
O7 = """
1e-7 .000535190515 .152151 .021358 1.0000 .655872 2.0348 2.5455 +.08
1e-6 .001525446723 .447636 .040592 1.0000 .771439 1.0701 1.6318 +.09
1e-5 .004330341695 1.220969 .081634 1.0000 .873307 .5828 1.1932 -.01
1e-4 .014387580278 2.713737 .171629 1.0000 .930216 .3781 1.0209 -.74
1e-3 .067090563861 3.918182 .280573 .9950 .959872 .2809 .9768 -5.57
5e-3 .168608278206 4.219156 .288520 .9800 .990029 .1409 .9920 -13.02
1e-2 .200909275649 4.732501 .304832 .9550 .997137 .0756 .9978 -10.82
1e-1 .231879589388 5.704504 .356381 .8500 .999972 .0075 1.0000 -.65
1 .234937514216 5.834028 .362339 .8450 1.000000 .0008 1.0000 +.83
10 .235242419016 5.847332 .362935 .8450 1.000000 .0001 1.0000 +.98
"""
O7_ROWS = [[float(word) for word in line.split()] for line in O7.strip().splitlines()]


def quiet(*args, **options):
    """Solve from few starts, where a warning of spurious minima is no news."""
    options = {"restarts": 1, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpuriousMinimaWarning)
        return solve(*args, **options)


def close(a, b, rel=1e-8, names=NAMES, abs_=1e-10):
    for name in names:
        known = pytest.approx(getattr(b, name), rel=rel, abs=abs_, nan_ok=True)
        assert getattr(a, name) == known, name


def row(X, y):
    """PFC1-3 of features by their definitions."""
    found = oracles.naive_row(X, y)
    return found["pfc1"], found["pfc2"], found["pfc3"]


def test_the_toy_data_are_those_of_the_table():
    X, y = twins.toy()
    assert X[0, 0].item() == pytest.approx(0.126480769295247, abs=1e-15)
    assert X.norm().item() == pytest.approx(34.5764525015, abs=1e-10)
    assert row(X, y) == pytest.approx((5.8488142304, 0.3630010273, 0.8450), abs=5e-11)


@pytest.mark.parametrize("known", O7_ROWS)
def test_o7_table(known):
    lam, *values, cert = known
    found = solve(*twins.toy(), lam=lam)
    named = (*("objective", "pfc1", "pfc2", "pfc3"), *("cosine", "relative_displacement", "norm_ratio"))
    digits = (5.1e-13, 5.1e-7, 5.1e-7, 1e-12, 5.1e-7, 5.1e-5, 5.1e-5)
    for name, value, digit in zip(named, values, digits, strict=True):
        assert getattr(found, name) == pytest.approx(value, abs=digit), name
    assert found.certificate == pytest.approx(cert, abs=0.0051)
    assert found.gradient_norm < 1e-12
    assert found.proven.startswith("global minimum") == (cert > 0)


@pytest.mark.parametrize(
    ("sigma", "data", "objective", "metrics", "cosine"),
    [
        (0.3, (2.241064, 0.364857, 0.98), 0.0784857110, (1.751979, 0.318477, 1.0), 0.987959),
        (0.1, (0.258220, 0.362390, 1.0), 0.0201318539, (0.213132, 0.331303, 1.0), None),
        (1.0, (18.436019, 0.345498, 0.61), 0.3344290575, (13.85661, 0.296106, 0.685), None),
    ],
)
def test_o7_other_noise(sigma, data, objective, metrics, cosine):
    X, y = twins.toy(sigma=sigma)
    assert row(X, y) == pytest.approx(data, abs=5.1e-7)
    found = quiet(X, y, lam=5e-3, restarts=8)
    assert found.objective == pytest.approx(objective, abs=5.1e-11)
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx(metrics, abs=5.1e-6)
    assert found.pfc2 == pytest.approx(metrics[1], abs=5.1e-7)
    assert cosine is None or found.cosine == pytest.approx(cosine, abs=5.1e-7)


@pytest.mark.parametrize(
    ("r", "beta", "h", "f"),
    [
        (1.0, 1.0, 1.0182343844837898, 0.009628763478754741),
        (1.0, 0.01, 1.539256739598298, 0.005639295589910068),
        (2.0, 10.0, 2.000247427393221, 0.0024872559746222196),
    ],
)
@pytest.mark.parametrize(("n", "D"), [(1, 4), (3, 6), (2, 40)])
def test_o6_collapsed_orthogonal_data(r, beta, h, f, n, D):
    y = torch.arange(4).repeat_interleave(n)
    found = solve(r * torch.eye(4, D, dtype=F64)[y], y, lam=beta / len(y))
    assert found.objective == pytest.approx(f, rel=1e-12)
    w = h / (h**2 + 4 * 0.005)
    assert found.W.numpy() == pytest.approx(w * np.eye(4, D), abs=1e-7)
    assert found.features().numpy() == pytest.approx(h * np.eye(4, D)[y.numpy()], abs=1e-7)
    assert found.pfc1 < 1e-25
    assert found.pfc2 < 1e-7
    assert found.norm_ratio == pytest.approx(h / r, rel=1e-7)
    assert found.cosine == pytest.approx(1, abs=1e-12)


def test_o12_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    X, y = torch.from_numpy(digits.data / 16), torch.from_numpy(digits.target)
    kept = torch.cat([(y == k).nonzero().flatten()[:174] for k in range(10)])
    X, y = X[kept], y[kept]
    assert row(X, y)[0] == pytest.approx(1.379347281068, abs=1e-11)
    for beta, f, metrics, cosine in (
        (0.1, 0.034432927256, (0.972323, 0.531922, 0.9891), 0.98967),
        (10, 0.159782051399, (1.340043, 0.656913, 0.9109), 0.99992),
    ):
        found = quiet(X, y, lam=beta / len(y), restarts=1)
        assert found.objective == pytest.approx(f, abs=5.1e-13)
        assert (found.pfc1, found.pfc2) == pytest.approx(metrics[:2], abs=5.1e-7)
        assert found.pfc3 == pytest.approx(metrics[2], abs=5.1e-5)
        assert found.cosine == pytest.approx(cosine, abs=5.1e-6)


@given(problems.seeds, lams, st.sampled_from([(3, 2), (3, 3), (3, 6), (2, 5), (3, 40)]))
@settings(max_examples=20, deadline=None)
def test_numbers_from_statistics_are_those_of_the_features(seed, lam, shape):
    K, D = shape
    X, y = problems.features(seed, N=24, D=D, K=K)
    for weighting in ("class", "sample"):
        found = quiet(X, y, lam=lam, restarts=0, weighting=weighting)
        H = found.features()
        assert H.numpy() == pytest.approx(twins.best_hidden(found.W, X, y, lam).numpy(), abs=1e-8)
        assert found.objective == pytest.approx(float(twins.joint(found.W, H, X, y, lam)), rel=1e-9)
        moments = ClassMoments.of(H, y)
        assert found.pfc1 == pytest.approx(float(scatter_ratio(moments, weighting)), rel=1e-7, abs=1e-14)
        assert found.pfc2 == pytest.approx(float(etf_distance(moments.mean)), rel=1e-7, abs=1e-9)
        assert found.pfc3 == row(H, y)[2]
        assert found.cosine == pytest.approx(float((H * X).sum() / (H.norm() * X.norm())), abs=1e-9)
        assert found.direction_distance == pytest.approx(
            float((H / H.norm() - X / X.norm()).norm()), abs=1e-7
        )
        assert found.relative_displacement == pytest.approx(float((H - X).norm() / X.norm()), abs=1e-9)
        assert found.norm_ratio == pytest.approx(float(H.norm() / X.norm()), abs=1e-9)


@given(problems.seeds, lams)
@settings(max_examples=12, deadline=None)
def test_statistics_serve_as_well_as_samples(seed, lam):
    X, y = problems.features(seed, N=30, D=6, K=3)
    whole = quiet(X, y, lam=lam, restarts=0)
    statistics = gather(zip(X.split(7), y.split(7), strict=True))
    found = quiet(statistics, lam=lam, restarts=0)
    close(found, whole, 1e-7)
    assert found.W.numpy() == pytest.approx(whole.W.numpy(), abs=1e-6)
    assert math.isnan(found.pfc3)
    assert found.accuracy(zip(X.split(7), y.split(7), strict=True)) == whole.pfc3
    assert whole.accuracy([(X, y)]) == whole.pfc3
    with pytest.raises(ValueError, match="features need the samples, and statistics were given"):
        found.features()


@given(problems.seeds, lams)
@settings(max_examples=8, deadline=None)
def test_few_wide_samples_agree_with_their_full_second_moments(seed, lam):
    X, y = problems.features(seed, N=8, D=14, K=3)
    thin, full = quiet(X, y, lam=lam), quiet(gather([(X, y)]), lam=lam)
    close(thin, full, 1e-6, abs_=1e-7)
    assert thin.gap <= 1e-8  # with K directions to spare there are no spurious minima
    assert thin.W.shape == (3, 14)
    assert full.accuracy([(X, y)]) == thin.pfc3


def test_wide_samples_are_solved_in_their_row_space_and_k_directions_more():
    X, y = problems.features(0, N=8, D=14, K=3)
    basis = Source.of(checked(X, y)).basis
    assert basis is not None
    assert basis.shape == (14, 11)
    assert (basis.mT @ basis).numpy() == pytest.approx(np.eye(11), abs=1e-12)
    assert (X @ basis @ basis.mT).numpy() == pytest.approx(X.numpy(), abs=1e-12)
    assert Source.of(checked(X[:, :11], y)).basis is None
    assert Source.of(checked(torch.zeros(8, 12), y)).basis.shape == (12, 11)


@given(problems.seeds, lams)
@settings(max_examples=8, deadline=None)
def test_zero_features_only_make_room(seed, lam):
    X, y = problems.features(seed, N=24, D=4, K=3)
    room = [quiet(torch.cat([X, torch.zeros(24, more, dtype=F64)], 1), y, lam=lam) for more in (0, 3, 5)]
    assert room[1].objective <= room[0].objective * (1 + 1e-9)
    close(room[2], room[1], 1e-6, abs_=1e-7)
    assert room[1].gap <= 1e-8
    relaxed = quiet(X, y, lam=lam, relax=True)
    assert relaxed.objective * (1 - relaxed.gap) <= room[1].objective * (1 + 1e-12)
    assert 1 - room[1].objective / relaxed.objective <= relaxed.gap + 1e-12
    assert relaxed.gap <= 1 - room[1].objective / relaxed.objective + 1e-7


@given(problems.seeds, lams, st.floats(-3, 3).map(lambda p: 10**p))
@settings(max_examples=10, deadline=None)
def test_scale_changes_nothing_but_the_size_of_w(seed, lam, s):
    X, y = problems.features(seed, N=24, D=4, K=3)
    one = quiet(X, y, lam=lam)
    other = quiet(s * X, y, lam=lam / s**2, weight_decay=0.005 * s**2)
    close(other, one, 1e-7, abs_=1e-8)
    assert (other.W * s).numpy() == pytest.approx(one.W.numpy(), abs=1e-6)
    assert other.features().numpy() == pytest.approx(s * one.features().numpy(), abs=1e-5 * s)


@given(problems.seeds, lams)
@settings(max_examples=10, deadline=None)
def test_free_bias_is_the_best_bias_and_sees_no_offset(seed, lam):
    X, y = problems.features(seed, N=24, D=4, K=3)
    X = X + torch.arange(4)
    found = quiet(X, y, lam=lam, bias="free")
    H = found.features()
    Y = torch.eye(3, dtype=F64)[y]
    assert found.objective == pytest.approx(
        float(twins.joint(found.W, H, X, y, lam, b=found.bias)), rel=1e-8
    )
    assert found.bias.numpy() == pytest.approx((Y - H @ found.W.mT).mean(0).numpy(), abs=1e-9)
    W, H_, b = (t.clone().requires_grad_() for t in (found.W, H, found.bias))
    slopes = torch.autograd.grad(twins.joint(W, H_, X, y, lam, b=b), (W, H_, b))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-9
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx(row(H, y), rel=1e-7, abs=1e-9)
    assert found.cosine == pytest.approx(float((H * X).sum() / (H.norm() * X.norm())), abs=1e-9)
    assert found.relative_displacement == pytest.approx(float((H - X).norm() / X.norm()), abs=1e-9)
    shifted = quiet(X + 100, y, lam=lam, bias="free")
    close(shifted, found, 1e-6, ("objective", "pfc1", "pfc2"), 1e-8)
    assert quiet(X, y, lam=lam).bias is None


def test_centring_is_a_choice():
    X, y = problems.features(0, N=24, D=5, K=3)
    X = X + 2
    centred, plain = quiet(X, y, lam=1e-3, centre=True), quiet(X, y, lam=1e-3)
    close(centred, quiet(X - X.mean(0), y, lam=1e-3), 1e-9)
    assert abs(plain.objective - centred.objective) > 1e-3 * plain.objective
    assert centred.features().numpy() == pytest.approx(
        quiet(X - X.mean(0), y, lam=1e-3).features().numpy(), abs=1e-9
    )
    assert centred.accuracy([(X, y)]) == centred.pfc3


@given(problems.seeds, lams)
@settings(max_examples=10, deadline=None)
def test_the_solution_is_an_implicit_euler_step(seed, lam):
    X, y = problems.features(seed, N=20, D=4, K=3)
    H = quiet(X, y, lam=lam).features().requires_grad_()
    (slope,) = torch.autograd.grad(twins.best_classifier_value(H, y, 3), H)
    H = H.detach()
    assert float((H + slope / lam - X).abs().max()) < 1e-6 * float(X.abs().max())


@given(problems.seeds, lams)
@settings(max_examples=10, deadline=None)
def test_the_noise_keeps_its_rank(seed, lam):
    X, y = problems.features(seed, N=20, D=5, K=3)
    X[:, 3:] = X[:, :2] * 2
    H = quiet(X, y, lam=lam, restarts=0).features()
    ranks = [np.linalg.matrix_rank(oracles.covariances(F, y)[0], rtol=1e-12) for F in (X, H)]
    assert ranks == [3, 3]


@pytest.mark.parametrize("lam", [1e-7, 1e-5, 1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("D", [4, 20])
def test_at_a_global_minimum_the_alignments_are_symmetric_and_positive(lam, D):
    X, y = twins.toy(3, sigma=0.3, D=D, n=10)
    H = quiet(X, y, lam=lam, restarts=8).features()
    means = [torch.stack([F[y == k].mean(0) for k in range(4)]) for F in (H, X)]
    for M in (means[0] @ means[1].mT, X.mT @ H):
        assert float((M - M.mT).abs().max()) < 1e-6 * float(M.abs().max())
        assert float(torch.linalg.eigvalsh((M + M.mT) / 2)[0]) > -1e-9 * float(M.abs().max())


@pytest.mark.parametrize("seed", range(5))
def test_pfc1_of_balanced_data_falls(seed):
    X, y = twins.toy(seed, n=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpuriousMinimaWarning)  # a second start may end in one
        for found in sweep(X, y, np.logspace(-6, 1, 8).tolist(), restarts=1):
            assert found.pfc1 < row(X, y)[0]


def test_collapse_keeps_its_digits():
    X, y = twins.toy(sigma=1e-9, n=10)
    found = solve(X, y, lam=1e-3)
    centred = X - torch.stack([X[y == k].mean(0) for k in range(4)])[y]
    beta = len(X) * 1e-3
    A = torch.linalg.inv(torch.eye(20, dtype=F64) + found.W.mT @ found.W / beta)
    within = float((centred @ A).square().sum() / len(X))
    H = found.features()
    M = torch.stack([H[y == k].mean(0) for k in range(4)])
    between = float((M - M.mean(0)).square().sum() / 4)
    assert found.pfc1 == pytest.approx(within / between, rel=1e-6)
    assert found.pfc1 < 1e-16


def test_wide_within_trace_is_the_narrow_one(monkeypatch):
    X, y = twins.toy()
    narrow = solve(X, y, lam=1e-4, restarts=0)
    monkeypatch.setattr(solution_module, "COMPLETE", 2)
    close(solve(X, y, lam=1e-4, restarts=0), narrow, 1e-12)


def test_restarts_stop_where_a_proof_is_found():
    X, y = twins.toy(n=10)
    proven, open_ = solve(X, y, lam=1.0, restarts=3), quiet(X, y, lam=1e-3, restarts=3)
    assert (proven.starts, proven.spread) == (1, 0)
    assert proven.proven.startswith("global minimum to a relative 1e-09 (certificate +0.")
    assert open_.starts == 4
    assert open_.proven.startswith("stationary point; not certified: certificate -")
    assert open_.proven.endswith(f"best of 4 starts, spread {open_.spread:.1e}")
    one = quiet(X, y, lam=1e-3, restarts=0)
    assert one.proven.endswith("one start")
    rough = quiet(X, y, lam=1e-3, restarts=0, iterations=1)
    assert rough.proven.startswith("not converged: gradient norm ")
    near = quiet(*twins.toy(), lam=1e-5, restarts=0)
    assert near.proven.startswith("within a relative 1.0e-02 of the global minimum (certificate -0.0")
    assert quiet(X, y, lam=1e-3, seed=1).objective == pytest.approx(open_.objective, rel=1e-9)


def test_a_warning_where_spurious_minima_are_known():
    X, y = twins.toy(sigma=1, D=4, n=10)
    with pytest.warns(SpuriousMinimaWarning, match="as many features as classes, and the best of 3"):
        solve(X, y, lam=1e-2, restarts=2)
    X, y = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 6))), torch.arange(40) % 4
    with pytest.warns(SpuriousMinimaWarning, match="starts that end in different minima"):
        found = solve(X, y, lam=1e-3, restarts=8)
    assert found.spread > 1e-6


def test_a_sweep_is_one_solution_a_lam(capsys):
    X, y = problems.features(2, N=24, D=30, K=3)
    solutions = sweep(X, y, [1.0, 0.01], progress=True, restarts=1)
    assert [s.lam for s in solutions] == [0.01, 1.0]
    for found in solutions:
        close(found, quiet(X, y, lam=found.lam, restarts=1), 1e-12)
    statistics = gather([(X, y)])
    assert sweep(statistics, None, [1.0])[0].objective == pytest.approx(solutions[1].objective)
    with pytest.raises(ValueError, match="lams must hold at least one"):
        sweep(X, y, [])


def test_cross_entropy_is_solved_by_its_module_and_measured(monkeypatch):
    X, y = problems.features(1, N=24, D=5, K=3)
    seen = {}

    def solve_cross_entropy(X, y, *, lam, weight_decay, restarts, seed, progress):
        seen.update(X=X, lam=lam, weight_decay=weight_decay, restarts=restarts, seed=seed)
        assert not progress
        W, H = torch.ones(3, 5, dtype=F64), X + 0.5 * torch.eye(3, 5, dtype=F64)[y]
        numbers = {"objective": 0.5, "gradient_norm": 1e-9, "spread": 0.125, "starts": 3}
        return types.SimpleNamespace(W=W, H=H, **numbers)

    monkeypatch.setattr(cross_entropy, "solve_cross_entropy", solve_cross_entropy)
    how = {"restarts": 2, "seed": 5, "weight_decay": 0.01, "centre": True}
    with pytest.warns(SpuriousMinimaWarning, match="starts that end in different minima"):
        found = solve(X.float(), y, lam=0.1, loss="ce", **how)
    assert {**seen, "X": None} == {"X": None, "lam": 0.1, "weight_decay": 0.01, "restarts": 2, "seed": 5}
    X = X.float().double()
    X = X - X.mean(0)
    assert torch.equal(seen["X"], X)
    H = found.features()
    assert torch.equal(H, X + 0.5 * torch.eye(3, 5, dtype=F64)[y])
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx(row(H, y), rel=1e-10)
    assert found.cosine == pytest.approx(float((H * X).sum() / (H.norm() * X.norm())), rel=1e-12)
    assert found.relative_displacement == pytest.approx(float((H - X).norm() / X.norm()), rel=1e-12)
    assert (found.objective, found.gradient_norm, found.spread, found.starts) == (0.5, 1e-9, 0.25, 3)
    assert found.certificate < 0, "it is no minimum"
    assert found.gap > 0.1
    assert found.proven.endswith("best of 3 starts, which disagree: spread 2.5e-01")
    with pytest.warns(SpuriousMinimaWarning):
        assert sweep(X, y, [0.1], loss="ce")[0].loss == "ce"
    with pytest.raises(ValueError, match="H is known for its own samples only"):
        found.accuracy([(X, y)])


def test_o5_without_data_it_is_the_model_without_data():
    y = torch.arange(4).repeat_interleave(50)
    found = solve(torch.zeros(200, 20), y, lam=0.005)
    assert found.objective == pytest.approx(0.1314213562373095, rel=1e-12)
    assert found.gap < 1e-9
    H = found.features()
    assert float(H[0].square().sum()) == pytest.approx(0.12142135623730951, rel=1e-8)
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx((0, 0, 1), abs=1e-7)
    assert all(
        math.isnan(v)
        for v in (found.cosine, found.direction_distance, found.relative_displacement, found.norm_ratio)
    )


def test_coinciding_means_are_undefined_not_wrong():
    X = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    same = quiet(X, torch.tensor([0, 1, 0, 1]), lam=30.0)  # 1/(N K lW) = 25 and more: W = 0 is best
    assert same.objective == pytest.approx(0.5, rel=1e-12)
    assert same.proven.startswith("global minimum")
    assert same.pfc1 == math.inf
    assert math.isnan(same.pfc2)
    assert (same.cosine, same.relative_displacement, same.norm_ratio) == (1, 0, 1)


def test_distances_are_real_where_rounding_makes_their_squares_negative():
    told = solution_module._distances(4.0, -1e-60, 0.0)
    assert (told["relative_displacement"], told["norm_ratio"], told["cosine"]) == (0.0, 1.0, 1.0)


def test_the_public_names():
    names = {name for name in vars(mufm) if not name.startswith("_")}
    assert {"Solution", "Statistics", "gather", "solve", "sweep"} <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.0}, "lam must be a positive number, got 0"),
        ({"lam": -1.0}, "lam must be a positive number, got -1"),
        ({"lam": math.nan}, "lam must be a positive number, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be a positive number, got -0.1"),
        ({"tolerance": 0.0}, "tolerance must be a positive number, got 0"),
        ({"loss": "l1"}, "loss must be 'mse' or 'ce', got 'l1'"),
        ({"bias": True}, "bias must be False or 'free', got True"),
        ({"loss": "ce", "bias": "free"}, "loss='ce' has no bias"),
        ({"weighting": "equal"}, "weighting must be 'class' or 'sample', got 'equal'"),
        ({"restarts": -1}, "restarts must be at least 0, got -1"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    X, y = problems.features(0, N=12, D=3, K=2)
    with pytest.raises(ValueError, match=message):
        solve(X, y, **{"lam": 1.0, **options})


def test_data_are_checked(monkeypatch):
    X, y = problems.features(0, N=12, D=3, K=2)
    for bad, labels, message in (
        (X, None, "labels must be an array of numbers, got NoneType"),
        (X, y.double(), "labels must be integer class indices"),
        (X, y[:5], "need one label a row of X, got 12 rows and 5 labels"),
        (X[:, 0], y, r"X must be of shape \(N, ...\), one sample a row .*, got .* \(12,\)"),
        (X, 0 * y, "at least 2 classes, got 1"),
        (X, 2 * y, "class 1 has no sample"),
        (X / 0, y, "X must be finite"),
        (gather([(X, y)]), y, "statistics know their labels; leave y out"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(bad, labels, lam=1.0)
    statistics = gather([(X, y)])
    with pytest.raises(ValueError, match="loss='ce' needs samples X and y"):
        solve(statistics, lam=1.0, loss="ce")
    found = quiet(statistics, lam=1.0)
    with pytest.raises(ValueError, match="need samples of 3 features in 2 classes"):
        found.accuracy([(X[:, :2], y)])
    with pytest.raises(ValueError, match="no batch at all"):
        found.accuracy([])
    monkeypatch.setattr(statistics_module, "EACH", 0)
    X, y = X[:11], torch.tensor([0, 1] * 5 + [1])
    with pytest.raises(ValueError, match="were pooled to spare memory; take weighting='sample'"):
        quiet(X, y, lam=1.0)
    assert quiet(X, y, lam=1.0, weighting="sample").pfc1 > 0


def test_small_problems_run_on_one_thread_and_leave_the_threads_as_they_were(monkeypatch):
    import scipy.optimize  # noqa: F401  # brings a pool of its own
    from threadpoolctl import threadpool_info

    from pfc.device import SMALL, one_thread
    from pfc.theory.mufm import solving

    def threads():
        pools = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
        return torch.get_num_threads(), *pools

    before, seen = threads(), []
    real = solving.search
    monkeypatch.setattr(solving, "search", lambda *a, **k: (seen.append(threads()), real(*a, **k))[1])
    X, y = problems.features(2, N=40, D=6, K=3)
    mufm.solve(X, y, lam=0.1, restarts=0)
    assert set(seen[0]) == {1}
    assert threads() == before
    with one_thread(SMALL + 1):
        assert threads() == before, "large arrays keep their threads"
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert threads() == before


def test_the_names_of_version_0_1_0_still_answer_and_warn():
    X, y = problems.features(0, N=12, D=3, K=2)
    found = quiet(X, y, lam=1.0)
    for old, new in (
        ("moved", "relative_displacement"),
        ("size", "norm_ratio"),
        ("distance", "direction_distance"),
    ):
        with pytest.warns(DeprecationWarning, match=rf"Solution\.{old} is Solution\.{new} now"):
            assert getattr(found, old) == getattr(found, new)
