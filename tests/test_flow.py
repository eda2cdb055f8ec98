"""Theorem 4: the reduced loss, its expansion and its flow, and where the theorem's statement fails."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pfc.theory.collapse import collapse
from pfc.theory.joint import Joint, best, tensors
from pfc.theory.minimum import minimum
from pfc.theory.mufm import flow as module
from pfc.theory.mufm.flow import expansion, flow, one_hot, reduced_gradient, reduced_loss, ridge
from pfc.theory.toy import toy
from tests import problems
from tests.oracles import covariances

BAD_X = torch.tensor([[0.0, -1], [0, -2], [1, 0], [2, -2]], dtype=torch.float64)
BAD_Y = torch.tensor([0, 0, 1, 1])


def balanced(seed, K=3, D=4, n=4):
    y = torch.arange(K).repeat_interleave(n)
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(K, D, generator=g, dtype=torch.float64)
    return means[y] + 0.6 * torch.randn(K * n, D, generator=g, dtype=torch.float64), y


def solution(X, y, lam, weight_decay=0.005, starts=4):
    """The best MUFM solution of some starts, jointly."""
    joint = Joint.of(X, y, pull=lam, weight_decay=weight_decay)
    first = joint.join(ridge(X, y, weight_decay=weight_decay).numpy(), joint.X)
    rest = [joint.normal_start(np.random.default_rng(s)) for s in range(starts - 1)]
    return best(joint, iter([first, *rest]), starts, progress=False)


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_reduced_loss_and_its_gradient(seed):
    N, D = 6 + seed % 5, 1 + seed % 12  # also more features than samples
    H, y = problems.features(seed, N=N, D=D, K=3)
    lW, Y = 0.02, one_hot(y).numpy()
    W = ridge(H, y, weight_decay=lW)
    paper = Y.T @ H.numpy() @ np.linalg.inv(H.numpy().T @ H.numpy() + N * lW * np.eye(D))
    assert W.numpy() == pytest.approx(paper, rel=1e-9, abs=1e-10)
    closed = lW / 2 * np.trace(Y.T @ np.linalg.inv(H.numpy() @ H.numpy().T + N * lW * np.eye(N)) @ Y)
    assert reduced_loss(H, y, weight_decay=lW).item() == pytest.approx(closed, rel=1e-10)
    free = H.clone().requires_grad_()
    reduced_loss(free, y, weight_decay=lW).backward()  # differentiates W*, too
    gradient = reduced_gradient(H, y, weight_decay=lW)
    assert gradient.numpy() == pytest.approx(free.grad.numpy(), rel=1e-9, abs=1e-12)
    U = torch.randn(H.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    up, down = (reduced_loss(H + e * U, y, weight_decay=lW).item() for e in (1e-5, -1e-5))
    assert (up - down) / 2e-5 == pytest.approx((gradient * U).sum().item(), rel=1e-5, abs=1e-8)
    assert 0 < closed <= 0.5


def test_mufm_solves_a_backward_euler_step():
    for seed, lam in ((0, 0.01), (1, 1.0)):
        X, y = balanced(seed)
        found = solution(X, y, lam)
        step = reduced_gradient(found.H, y, weight_decay=0.005) / lam
        assert (found.H + step - X).abs().max() < 1e-11
        assert ridge(found.H, y, weight_decay=0.005).numpy() == pytest.approx(found.W.numpy(), abs=1e-10)


def test_noise_keeps_its_rank():
    X, y = balanced(3, K=3, D=9, n=3)  # six directions of noise
    before, after = (covariances(H, y)[0] for H in (X, solution(X, y, 1e-3).H))
    assert [np.linalg.matrix_rank(S, tol=1e-9) for S in (before, after)] == [6, 6]


def test_kappa_of_the_toy_data():
    found = expansion(*toy())
    assert found.kappa == pytest.approx(-0.0148258765, abs=6e-11)
    assert found.pfc1 == pytest.approx(5.8488142304, abs=6e-11)
    assert found.predict(10.0) == pytest.approx(5.847332, abs=1e-6)


@given(problems.seeds)
@settings(max_examples=30, deadline=None)
def test_kappa_is_the_slope_of_pfc1(seed):
    X, y = problems.features(seed, N=14, D=4, K=3)
    for weighting in ("class", "sample"):
        found, e = expansion(X, y, weighting=weighting, weight_decay=0.02), 1e-4
        V = -reduced_gradient(X, y, weight_decay=0.02)
        up, down = (collapse(X + s * e * V, y, weighting) for s in (1, -1))
        for slope, name in (("kappa", "pfc1"), ("d_within", "within"), ("d_between", "between")):
            seen = (getattr(up, name) - getattr(down, name)) / (2 * e)
            assert getattr(found, slope) == pytest.approx(seen, rel=1e-5, abs=1e-7)
        row = collapse(X, y, weighting)
        assert (found.pfc1, found.within, found.between) == pytest.approx(
            (row.pfc1, row.within, row.between), rel=1e-12
        )


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_solutions_follow_the_expansion(weighting):
    X, y = problems.features(4, N=14, D=4, K=3)
    data, left = expansion(X, y, weighting=weighting), []
    for lam in (10.0, 100.0):
        seen = collapse(solution(X, y, lam, starts=1).H, y, weighting).pfc1
        assert (seen - data.pfc1) * lam == pytest.approx(data.kappa, rel=0.3 / lam)
        left.append((seen - data.predict(lam)) * lam**2)
    assert left[0] == pytest.approx(left[1], rel=0.05)  # what is left is of second order


@given(problems.seeds)
@settings(max_examples=60, deadline=None)
def test_kappa_is_negative_for_balanced_data(seed):
    K, D, n = 2 + seed % 3, 1 + seed // 3 % 6, 2 + seed // 18 % 4
    X, y = balanced(seed, K, D, n)
    found = expansion(X + 3 * (seed % 2), y)
    assert found.kappa < 0
    assert found.d_within < 0
    assert found.d_between > 0


def test_collapsed_data_stay():
    y = torch.tensor([0, 0, 1, 1])
    assert expansion(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), y).kappa == 0
    assert math.isnan(expansion(torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]]), y).kappa)


def rk4(X, y, until, steps, weight_decay):
    """Classical Runge-Kutta with a fixed step."""
    H, h = X.numpy().copy(), until / steps
    Y = one_hot(y).numpy()

    def slope(H):
        W = Y.T @ H @ np.linalg.inv(H.T @ H + len(H) * weight_decay * np.eye(H.shape[1]))
        return -(H @ W.T - Y) @ W / len(H)

    path = [H]
    for _ in range(steps):
        k1 = slope(H)
        k2 = slope(H + h / 2 * k1)
        k3 = slope(H + h / 2 * k2)
        k4 = slope(H + h * k3)
        H = H + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(H)
    return path


def test_the_flow_equals_runge_kutta_with_a_fixed_step():
    X, y = balanced(7)
    found = flow(X, y, until=40.0, weight_decay=0.02, records=5, progress=False)
    path = rk4(X, y, 40.0, 4000, 0.02)
    assert found.H.numpy() == pytest.approx(path[-1], abs=1e-8)
    assert found.times.tolist() == pytest.approx([0, 0.004, 0.04, 0.4, 4, 40], rel=1e-12)
    for i, step in ((0, 0), (3, 40), (4, 400), (5, 4000)):
        H = torch.from_numpy(path[step])
        row = collapse(H, y)
        for name in ("within", "between", "pfc1", "pfc2", "pfc3"):
            assert getattr(found, name)[i].item() == pytest.approx(getattr(row, name), rel=1e-7)
        assert found.loss[i].item() == pytest.approx(
            reduced_loss(H, y, weight_decay=0.02).item(), rel=1e-8
        )


def test_the_flow_scales_with_the_data():
    X, y = balanced(7)
    s = 30.0
    one = flow(X, y, until=40.0, weight_decay=0.02, records=9, progress=False)
    other = flow(X / s, y, until=40.0 / s**2, weight_decay=0.02 / s**2, records=9, progress=False)
    assert (other.H * s).numpy() == pytest.approx(one.H.numpy(), rel=1e-7, abs=1e-8)
    for name in ("loss", "pfc1", "pfc2", "pfc3"):
        assert getattr(other, name).numpy() == pytest.approx(getattr(one, name).numpy(), rel=1e-7)


@given(problems.seeds)
@settings(max_examples=10, deadline=None)
def test_lemma_1_for_balanced_data(seed):
    X, y = balanced(seed, 2 + seed % 3, 1 + seed // 3 % 5, 3)
    found = flow(X, y, until=100.0, records=12, progress=False)
    assert (found.within.diff() < 0).all()
    assert (found.between.diff() > 0).all()
    assert (found.pfc1.diff() < 0).all()
    assert (found.loss.diff() < 0).all()
    naive = [covariances(H, y) for H in rk4(X, y, 20.0, 60, 0.005)]
    within, between = ([c[i].trace() for c in naive] for i in (0, 1))
    assert (np.diff(within) < 0).all()
    assert (np.diff(between) > 0).all()


def test_the_flow_begins_as_the_solutions_do():
    X, y = balanced(8)
    gaps = []
    for lam in (20.0, 40.0):
        end = flow(X, y, until=1 / lam, records=2, progress=False).H
        gaps.append((solution(X, y, lam, starts=1).H - end).norm().item())
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)  # they part in second order


def test_theorem_4_fails_for_unbalanced_classes():
    X, y = torch.tensor([[0.0], [1], [1], [0], [1]]).double(), torch.tensor([0, 0, 0, 0, 1])
    found = expansion(X, y)
    assert found.pfc1 == pytest.approx(2, rel=1e-14)
    assert found.kappa == pytest.approx(64 / 121, rel=1e-12)
    assert found.d_between < 0
    assert expansion(X, y, weighting="sample").kappa == pytest.approx(160 / 121, rel=1e-12)
    for lam in (1.0, 10.0, 1000.0):
        there = solution(X, y, lam)
        assert there.spread < 1e-12
        assert there.pfc1 > 2
    assert flow(X, y, until=0.5, records=5, progress=False).pfc1.diff().min() > 0


def test_theorem_4_fails_at_a_spurious_minimum():
    joint = Joint.of(BAD_X, BAD_Y, pull=0.1, weight_decay=0.005)
    found = [minimum(joint, joint.normal_start(np.random.default_rng(s))) for s in range(12)]
    good, bad = (pick(found, key=lambda one: one.value) for pick in (min, max))
    assert bad.value == pytest.approx(0.26666185346903853, rel=1e-12)
    assert good.value == pytest.approx(0.053866110957554586, rel=1e-12)
    basis = np.eye(len(bad.theta))
    curvature = np.stack([joint.curvature(bad.theta)(e) for e in basis])
    assert bad.gradient_norm < 1e-12
    assert np.linalg.eigvalsh(curvature)[0] > 0.014  # a strict minimum
    rows = [collapse(tensors(joint, one.theta)[1], BAD_Y).pfc1 for one in (good, bad)]
    data = expansion(BAD_X, BAD_Y).pfc1
    assert data == pytest.approx(1.2, rel=1e-14)
    assert rows[0] / data == pytest.approx(0.477494123617721, rel=1e-9)
    assert rows[1] / data == pytest.approx(4.062714287753733, rel=1e-9)


def test_errors_name_what_was_given(monkeypatch):
    X, y = balanced(0)
    with pytest.raises(ValueError, match="until must be a positive number, got 0"):
        flow(X, y, until=0.0)
    with pytest.raises(ValueError, match="records must be at least 2, got 1"):
        flow(X, y, until=1.0, records=1)
    with pytest.raises(ValueError, match="X must be finite"):
        flow(X / 0, y, until=1.0)
    with pytest.raises(ValueError, match="weight_decay must be a positive number, got -1"):
        expansion(X, y, weight_decay=-1.0)
    with pytest.raises(ValueError, match="one label a row"):
        inspect.unwrap(expansion)(X, y[1:])
    monkeypatch.setattr(module, "_gradient", lambda H, Y, weight_decay: H * math.nan)
    with pytest.raises(ValueError, match="slope is not finite; scale the data down"):
        flow(X, y, until=1.0, progress=False)
    monkeypatch.setattr(module, "_gradient", lambda H, Y, weight_decay: -(H**3))
    with pytest.raises(ValueError, match=r"the flow cannot be followed beyond 0\.\d+; lessen until"):
        flow(X, y, until=1e3, progress=False)  # a slope that blows up before
