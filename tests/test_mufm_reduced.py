"""The reduced problem against the joint one, and its search: derivatives, proofs, ways out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfc.theory.mufm import search as module
from pfc.theory.mufm.reduced import Problem
from pfc.theory.mufm.search import Effort, relaxed, search, settle
from pfc.theory.mufm.source import Source, checked
from tests import mufm_twins as twins
from tests import problems

EFFORT = Effort(restarts=0, iterations=3000, tolerance=1e-12, seed=0)
cases = st.tuples(
    problems.seeds, st.integers(2, 4), st.integers(1, 7), st.floats(-5, 1).map(lambda p: 10**p)
)


def reduced(X, y, lam, weight_decay=twins.LW, *, centre=False, free=False):
    """The problem and the eigenvectors as an array, K x D <-> K x R."""
    source = Source.of(checked(X, y), centre=centre, free=free)
    problem, V = source.problem(lam=lam, weight_decay=weight_decay)
    return problem, V.numpy()


def lower_bound(point, effort):
    """Of the minimum, by the problem with K zero features more."""
    end = relaxed(point, effort)
    return end.value * (1 - end.gap)


def anywhere(problem, seed):
    """A random W of a sensible size."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=problem.Z.shape) * rng.uniform(0.01, 1)


def random_labels(seed, N=40, D=6, K=4):
    """Noise with labels that mean nothing, balanced: full of spurious minima."""
    X = torch.from_numpy(np.random.default_rng(seed).normal(size=(N, D)))
    return X, torch.arange(N) % K


@given(cases)
@settings(max_examples=30, deadline=None)
def test_value_gradient_and_hessian_are_those_of_the_joint_problem(case):
    seed, K, D, lam = case
    X, y = problems.features(seed, N=20, D=D, K=K)
    problem, V = reduced(X, y, lam)
    point = problem.at(anywhere(problem, seed))
    W = torch.from_numpy(point.W @ V.T).requires_grad_()
    direction = np.random.default_rng(seed + 1).normal(size=point.W.shape)
    value = twins.reduced(W, X, y, lam)
    (gradient,) = torch.autograd.grad(value, W, create_graph=True)
    (product,) = torch.autograd.grad(gradient, W, torch.from_numpy(direction @ V.T))
    known, slope = problem.value_and_gradient(point.W)
    H = twins.best_hidden(W.detach(), X, y, lam)
    assert float(twins.joint(W.detach(), H, X, y, lam)) == pytest.approx(value.item(), rel=1e-9)
    assert known == pytest.approx(value.item(), rel=1e-9)
    assert point.value == pytest.approx(known, rel=1e-12)
    size = 1 + np.linalg.norm(point.W) ** 2 / problem.beta  # condition of W W^T + beta I
    for found, twin, exact in (
        (slope, gradient, 1e-9),
        (point.gradient, gradient, 1e-9),
        (point.hessian(direction), product, 1e-9 + 2e-14 * size**2),
    ):
        twin = twin.detach().numpy() @ V
        assert np.abs(found - twin).max() <= exact * max(1e-3, np.abs(twin).max())


@given(cases)
@settings(max_examples=20, deadline=None)
def test_gradient_and_hessian_are_finite_differences(case):
    seed, K, D, lam = case
    lam = max(lam, 1e-3)  # below, round-off is larger; the test above is exact there
    X, y = problems.features(seed, N=20, D=D, K=K)
    problem, _ = reduced(X, y, lam)
    W = anywhere(problem, seed)
    V = np.random.default_rng(seed + 1).normal(size=W.shape)
    V *= np.sqrt(problem.beta) / np.linalg.norm(V)
    slopes, bends = [], []
    for h in (2e-3, 1e-3):
        (up, g_up), (down, g_down) = (problem.value_and_gradient(W + step * V) for step in (h, -h))
        slopes.append((up - down) / (2 * h))
        bends.append((g_up - g_down) / (2 * h))
    point = problem.at(W)
    slope, bend = ((4 * fine - coarse) / 3 for coarse, fine in (slopes, bends))  # error of h^4
    size = np.linalg.norm(point.gradient) * np.linalg.norm(V)
    assert slope == pytest.approx(np.vdot(point.gradient, V), abs=1e-7 * size + 1e-12)
    product = point.hessian(V)
    assert np.abs(bend - product).max() <= 1e-7 * np.abs(product).max() + 1e-11


def test_many_hessian_products_at_once():
    problem, _ = reduced(*problems.features(1, N=20, D=5, K=3), 0.01)
    point = problem.at(anywhere(problem, 2))
    V = np.random.default_rng(3).normal(size=(4, *point.W.shape))
    for product, v in zip(point.hessian(V), V, strict=True):
        assert product == pytest.approx(point.hessian(v), rel=1e-12)


@given(cases)
@settings(max_examples=30, deadline=None)
def test_the_best_hidden_features_are_best(case):
    seed, K, D, lam = case
    X, y = problems.features(seed, N=12, D=D, K=K)
    problem, V = reduced(X, y, lam)
    W = torch.from_numpy(anywhere(problem, seed) @ V.T)
    H = twins.best_hidden(W, X, y, lam).requires_grad_()
    (slope,) = torch.autograd.grad(twins.joint(W, H, X, y, lam), H)
    assert slope.abs().max() < 1e-11


def test_newton_reaches_what_lbfgs_cannot():
    X, y = twins.toy()
    for lam in (1e-4, 5e-3, 1e-1):
        problem, _ = reduced(X, y, lam)
        coarse = settle(problem, problem.ridge(), Effort(0, 3000, 1e-8, 0), balanced=True)
        fine = settle(problem, problem.ridge(), EFFORT, balanced=True)
        assert 1e-12 < coarse.gradient_norm < 1e-8
        assert fine.gradient_norm < 1e-12
        assert fine.value == pytest.approx(coarse.value, rel=1e-9)


def test_newton_by_products_is_newton():
    X, y = twins.toy()
    problem, _ = reduced(X, y, 5e-3)
    coarse = settle(problem, problem.ridge(), Effort(0, 3000, 1e-8, 0), balanced=True)
    D, twin = module._newton_by_products(coarse), module._newton(coarse)
    assert D == pytest.approx(twin, abs=1e-2 * np.abs(twin).max())
    assert problem.at(coarse.W + D).gradient_norm < 1e-2 * coarse.gradient_norm


def test_wide_problems_are_polished_by_products(monkeypatch):
    monkeypatch.setattr(module, "DENSE", 10)
    problem, _ = reduced(*twins.toy(), 5e-3)
    assert settle(problem, problem.ridge(), EFFORT, balanced=True).gradient_norm < 1e-12


@given(cases)
@settings(max_examples=25, deadline=None)
def test_what_is_certified_is_the_best_of_many_starts(case):
    seed, K, D, lam = case
    X, y = problems.features(seed, N=24, D=D, K=K)
    problem, _ = reduced(X, y, lam)
    found = search(problem, EFFORT, balanced=False).best
    starts = list(module._starts(problem, Effort(4, 1, 1.0, seed)))[1:]
    best = min(settle(problem, W, EFFORT, balanced=False).value for W in starts)
    if found.gap <= 1e-9:
        assert found.value <= best * (1 + 1e-9)
    bound = lower_bound(found, EFFORT)
    assert 0 <= bound <= min(found.value, best) * (1 + 1e-9)


@given(cases)
@settings(max_examples=25, deadline=None)
def test_the_gap_bounds_the_distance_at_any_point(case):
    seed, K, D, lam = case
    X, y = problems.features(seed, N=24, D=D, K=K)
    problem, _ = reduced(X, y, lam)
    best = search(problem, Effort(2, 3000, 1e-12, seed), balanced=False).best
    for size in (0.3, 0.1, 0.01, 0.001):
        point = problem.at(best.W * (1 + size) + size * 0.1 * anywhere(problem, seed))
        unbounded = 4 * max(0, -point.certificate) + point.residue
        assert (point.value - best.value) / point.value <= unbounded + 1e-12
        assert point.gap == min(1, unbounded)
    wanted = 2 * best.gradient_norm * math.sqrt(2 / (twins.LW * best.value))
    assert best.residue == pytest.approx(wanted, rel=1e-12)


def test_certificate_is_that_of_the_fit():
    X, y = twins.toy(sigma=0.3, n=10)
    lam = 1e-3
    problem, V = reduced(X, y, lam)
    point = settle(problem, problem.ridge(), EFFORT, balanced=True)
    W = torch.from_numpy(point.W @ V.T)
    R = twins.best_hidden(W, X, y, lam) @ W.mT - torch.eye(4, dtype=torch.float64)[y]
    N, norm = len(X), torch.linalg.matrix_norm(R, 2)
    assert point.certificate == pytest.approx(float(1 - (norm / N) ** 2 / (lam * twins.LW)), rel=1e-8)
    low = np.linalg.eigvalsh(point.multiplier)[0] / twins.LW
    assert point.certificate == pytest.approx(low, rel=1e-12)


@given(problems.seeds, st.floats(-6, 0).map(lambda p: 10**p))
@settings(max_examples=25, deadline=None)
def test_padded_problems_have_no_spurious_minima(seed, lam):
    X, y = random_labels(seed % 1000, N=24)
    problem = reduced(X, y, lam)[0].padded()
    assert problem.Z.shape == (4, 10)
    ends = [
        settle(problem, W, EFFORT, balanced=True)
        for W in module._starts(problem, Effort(3, 1, 1.0, seed))
    ]
    values = [end.value for end in ends]
    assert max(values) - min(values) <= 1e-8 * min(values)
    assert min(end.certificate for end in ends) > -1e-6


def stuck_and_freed(seed, monkeypatch):
    """Relative spread over random starts of a square problem, without and with escapes."""
    X, y = twins.toy(seed, sigma=0.3, D=4, n=10)
    problem, _ = reduced(X, y, 1e-2)
    starts = list(module._starts(problem, Effort(8, 1, 1.0, seed)))
    values = []
    for rounds in (1, module.ROUNDS):
        monkeypatch.setattr(module, "ROUNDS", rounds)
        ends = [settle(problem, W, EFFORT, balanced=True).value for W in starts]
        values.append((max(ends) - min(ends)) / min(ends))
    monkeypatch.undo()
    return values


def test_square_problems_have_spurious_minima_and_the_escapes_leave_them(monkeypatch):
    found = [stuck_and_freed(seed, monkeypatch) for seed in range(6)]
    assert sum(stuck > 1e-3 for stuck, _ in found) >= 3
    assert max(freed for _, freed in found) < 1e-8


@pytest.mark.slow
def test_square_problems_of_many_kinds_are_freed(monkeypatch):
    for seed in range(60):
        _, freed = stuck_and_freed(seed, monkeypatch)
        assert freed < 1e-8, seed


def test_each_escape_by_itself():
    X, y = twins.toy(0, sigma=0.3, D=4, n=10)
    problem, _ = reduced(X, y, 1e-2)
    best = settle(problem, problem.ridge(), EFFORT, balanced=True)
    swapped = problem.at(best.W[[1, 0, 2, 3]])
    (W,) = module._exchanged(swapped)
    assert problem.at(W).value < swapped.value
    axis = np.linalg.svd(best.W)[2][0]
    mirrored = problem.at(best.W - 2 * np.outer(best.W @ axis, axis))
    (W,) = module._turned(mirrored)
    assert problem.at(W).value < mirrored.value
    V = module._most_negative(problem.e, mirrored.W, mirrored.multiplier / problem.lam)
    whole = np.diag(problem.e) + mirrored.W.T @ mirrored.multiplier @ mirrored.W / problem.lam
    assert V[:, 0] @ whole @ V[:, 0] == pytest.approx(np.linalg.eigvalsh(whole)[0])
    noisy, _ = reduced(*random_labels(3), 1e-2)
    low = settle(noisy, noisy.ridge(), EFFORT, balanced=False)
    assert low.certificate < 0
    wide = noisy.padded().at(np.pad(low.W, ((0, 0), (0, 4))))
    ways = module._into_zero_features(wide)
    assert min(noisy.padded().at(W).value for W in ways) < low.value
    assert module._into_zero_features(low) == []
    zero = noisy.at(np.zeros_like(low.W))
    bent = np.linalg.eigvalsh(zero.hessian(np.eye(24).reshape(24, 4, 6)).reshape(24, 24))[0]
    ways = module._along_curvature(zero)
    assert bent < 0
    assert min(noisy.at(W).value for W in ways) < zero.value
    assert module._along_curvature(best) == []


def test_every_escape_is_tried(monkeypatch):
    X, y = twins.toy(0, sigma=0.3, D=4, n=10)
    problem, _ = reduced(X, y, 1e-2)
    best = settle(problem, problem.ridge(), EFFORT, balanced=True)

    def value(point, *, balanced):
        return problem.at(module._escaped(point, balanced=balanced)).value

    swapped = problem.at(best.W[[1, 0, 2, 3]])
    assert value(swapped, balanced=True) < value(swapped, balanced=False) - 1e-6
    noisy, _ = reduced(*random_labels(3), 1e-2)
    zero = noisy.at(np.zeros_like(noisy.Z))
    assert module._escaped(zero, balanced=False) is not zero.W  # along its curvature alone
    low = settle(noisy, noisy.ridge(), EFFORT, balanced=False)
    wide = noisy.padded().at(np.pad(low.W, ((0, 0), (0, 4))))
    monkeypatch.setattr(module, "DENSE", 1)
    assert module._escaped(zero, balanced=False) is zero.W
    mirror = np.eye(4) - 2 * np.outer(axis := np.linalg.svd(best.W)[2][0], axis)
    mirrored = problem.at(best.W @ mirror)
    assert module._escaped(mirrored, balanced=False) is not mirrored.W  # turned alone
    assert module._escaped(wide, balanced=False) is not wide.W  # into its zero features alone


def test_newton_never_makes_the_gradient_larger():
    for seed in range(20):
        problem, _ = reduced(*random_labels(seed), 10.0 ** -(seed % 5))
        far = problem.at(anywhere(problem, seed))
        for steps in (1, 3):
            assert module._polished(far, 1e-12, steps).gradient_norm <= far.gradient_norm


def test_the_bound_is_one_however_little_was_done():
    for seed in range(5):
        problem, _ = reduced(*random_labels(seed), 1e-5)
        best = search(problem, Effort(2, 3000, 1e-12, 0), balanced=True).best
        for iterations in (1, 3, 10, 30):
            bound = lower_bound(problem.at(problem.ridge()), Effort(0, iterations, 1e-12, 0))
            assert 0 <= bound <= best.value * (1 + 1e-12)


def test_the_best_start_is_kept():
    values = []
    for seed in range(4):
        problem, _ = reduced(*random_labels(seed), 1e-3)
        found = search(problem, Effort(4, 3000, 1e-12, seed), balanced=False)
        assert found.best.value == min(found.values)
        assert found.spread == (max(found.values) - min(found.values)) / min(found.values)
        values.append(found.values[-1] > min(found.values) * (1 + 1e-6))
    assert any(values)


def test_at_a_minimum_no_escape_is_left():
    X, y = twins.toy(1, n=10)
    for lam in (1e-5, 1e-3, 1e-1):
        problem, _ = reduced(X, y, lam)
        point = settle(problem, problem.ridge(), EFFORT, balanced=True)
        assert module._escaped(point, balanced=True) is point.W


def test_a_coefficient_lost_to_rounding_beside_w_is_not_singular():
    problem, _ = reduced(*problems.features(1, N=12, D=3, K=3), 1e-8)
    W = np.zeros_like(problem.Z)
    W[0] = 1e9 * np.array([3.0, 0.0, 4.0])
    W[1] = W[0]
    assert np.isfinite(problem.value_and_gradient(W)[0])
    assert problem.at(W).value > 0


def test_what_rounding_makes_negative_bounds_nothing():
    problem, _ = reduced(*problems.features(1, N=12, D=3, K=3), 1e-3)
    point = replace(problem.at(problem.ridge()), Q=-np.eye(3))
    assert point.value < 0
    assert (point.residue, point.gap) == (math.inf, 1.0)


def test_the_budget_is_kept():
    problem, _ = reduced(*twins.toy(), 1e-4)
    counted = Problem(problem.root, problem.Z, problem.rest, problem.samples, 1e-4, twins.LW)
    calls = []
    inner = counted.value_and_gradient
    object.__setattr__(counted, "value_and_gradient", lambda W: calls.append(1) or inner(W))
    settle(counted, counted.ridge(), Effort(0, 5, 1e-12, 0), balanced=True)
    assert 5 <= len(calls) <= 12
