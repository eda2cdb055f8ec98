"""The paper's plain gradient descent: each step against the definition, and where it ends."""

import inspect

import numpy as np
import pytest
import torch

from pfc.theory import descent
from pfc.theory.collapse import cosine
from pfc.theory.joint import Joint
from pfc.theory.minimum import STARTS
from pfc.theory.toy import toy
from pfc.theory.ufm import optimum, solve
from tests import problems
from tests.oracles import naive_row
from tests.test_joint import naive_gradient, naive_objective


def naive_descent(W, b, H, X, y, steps, step, *, bias=False, **coefficients):
    """Step by step, with the gradient of the definition."""
    for _ in range(steps):
        _, dW, db, dH = naive_gradient(W, b, H, X, y, **coefficients)
        W, H = W - step * dW, H - step * dH
        b = b - step * db if bias else b
    return W, b, H


def normal_start(seed, K, D, N):
    rng = np.random.default_rng([seed, STARTS])
    return torch.from_numpy(rng.normal(size=(K, D))), torch.from_numpy(rng.normal(size=(D, N)).T.copy())


@pytest.mark.parametrize("start", ["normal", "data"])
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_mufm_takes_the_steps_of_the_definition(loss, start):
    X, y = problems.features(3, N=9, D=4, K=3)
    options = {"lam": 0.2, "weight_decay": 0.03, "loss": loss, "start": start, "step": 0.15}
    found = descent.on_mufm(X, y, **options, steps=25, seed=5, records=4, progress=False)
    W, H = normal_start(5, 3, 4, 9)
    b = torch.zeros(3, dtype=torch.float64)
    known = {"lW": 0.03, "lam": 0.2, "lb": 0.0, "loss": loss}
    H = X if start == "data" else H
    first = naive_objective(W, b, H, X, y, **known).item()
    assert found.cosine[0].item() == pytest.approx(cosine(H, X), rel=1e-12)
    W, b, H = naive_descent(W, b, H, X, y, 25, 0.15, **known)
    assert found.W.numpy() == pytest.approx(W.numpy(), abs=1e-13)
    assert found.H.numpy() == pytest.approx(H.numpy(), abs=1e-13)
    f, dW, _, dH = naive_gradient(W, b, H, X, y, **known)
    assert found.objective[[0, -1]].tolist() == pytest.approx([first, f], rel=1e-12)
    size = (dW.square().sum() + dH.square().sum()).sqrt().item()
    assert found.gradient_norm[-1].item() == pytest.approx(size, rel=1e-10)
    row = naive_row(H, y)
    for name in ("pfc1", "pfc2", "pfc3"):
        assert getattr(found, name)[-1].item() == pytest.approx(row[name], rel=1e-10)
    assert found.cosine[-1].item() == pytest.approx(cosine(H, X), rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_ufm_takes_the_steps_of_the_definition(loss):
    options = {"weight_decay": 0.03, "feature_decay": 0.01, "loss": loss, "step": 0.3}
    found = descent.on_ufm(3, 4, 2, **options, steps=20, seed=7, progress=False)
    W, H = normal_start(7, 3, 4, 6)
    b, y = torch.zeros(3, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    known = {"lW": 0.03, "lam": 0.01, "lb": 0.0, "loss": loss}
    W, _, H = naive_descent(W, b, H, torch.zeros_like(H), y, 20, 0.3, **known)
    assert found.W.numpy() == pytest.approx(W.numpy(), abs=1e-13)
    assert found.H.numpy() == pytest.approx(H.numpy(), abs=1e-13)
    assert found.cosine.isnan().all()
    assert torch.equal(found.b, b)


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_bias_takes_its_steps_too(loss, bias):
    X, y = problems.features(4, N=8, D=3, K=3)
    joint = Joint.of(X, y, pull=0.1, weight_decay=0.05, loss=loss, bias=bias)
    theta = joint.normal_start(np.random.default_rng([1, STARTS]))
    found = descent.run(joint, theta, step=0.2, steps=15, records=3, progress=False)
    W, H = normal_start(1, 3, 3, 8)
    known = {"lW": 0.05, "lam": 0.1, "lb": bias, "loss": loss}
    W, b, H = naive_descent(W, torch.zeros(3).double(), H, X, y, 15, 0.2, bias=True, **known)
    assert found.b.numpy() == pytest.approx(b.numpy(), abs=1e-13)
    assert found.H.numpy() == pytest.approx(H.numpy(), abs=1e-13)


def test_cross_entropy_stands_large_logits():
    X, y = problems.features(4, N=8, D=3, K=3)
    options = {"lam": 0.1, "loss": "ce", "start": "data", "step": 1e-6, "steps": 3, "records": 2}
    found = descent.on_mufm(2000 * X, y, **options, progress=False)
    W, H = normal_start(0, 3, 3, 8)[0], 2000 * X
    known = {"lW": 0.005, "lam": 0.1, "lb": 0.0, "loss": "ce"}
    assert (H @ W.T).abs().max() > 710  # its exponential overflows
    W, _, H = naive_descent(W, torch.zeros(3).double(), H, H, y, 3, 1e-6, **known)
    assert found.W.numpy() == pytest.approx(W.numpy(), abs=1e-12)


def test_what_is_recorded_and_when():
    X, y = problems.features(3, N=9, D=4, K=3)
    found = descent.on_mufm(X, y, lam=0.1, steps=2500, records=7, progress=False)
    assert found.steps.tolist() == [0, 1, 4, 14, 50, 184, 679, 2500]
    one = descent.on_mufm(X, y, lam=0.1, steps=1, records=2, progress=False)
    assert one.steps.tolist() == [0, 1]
    middle = descent.on_mufm(X, y, lam=0.1, steps=184, records=2, progress=False)
    for name in ("objective", "gradient_norm", "pfc1", "pfc2", "pfc3", "cosine"):
        assert getattr(middle, name)[-1] == getattr(found, name)[5]
    assert (found.objective.diff() < 0).all()


def test_descent_and_solver_agree_in_the_end():
    found = descent.on_ufm(
        3, 5, 4, weight_decay=0.03, feature_decay=0.03, step=0.8, steps=3000, progress=False
    )
    known = optimum(3, 5, 4, weight_decay=0.03, feature_decay=0.03)
    assert found.objective[-1].item() == pytest.approx(known.objective, rel=1e-12)
    assert found.pfc1[-1] < 1e-20
    assert found.pfc2[-1] < 1e-10
    assert found.pfc3[-1] == 1
    assert found.pfc1[-1] < found.pfc1[0]
    best = solve(3, 5, 4, weight_decay=0.03, feature_decay=0.03, restarts=1, progress=False)
    assert (found.H @ found.W.T).numpy() == pytest.approx((best.H @ best.W.T).numpy(), abs=1e-9)


@pytest.mark.slow
def test_ufm_at_the_papers_size():
    found = descent.on_ufm(4, 20, 50, progress=False)
    assert found.pfc1[-1] < 1e-24
    assert found.pfc2[-1] < 1e-13
    assert found.objective[-1].item() == pytest.approx(0.1314213562373095, rel=1e-12)


@pytest.mark.slow
def test_mufm_at_the_papers_size():
    X, y = toy()
    found = descent.on_mufm(X, y, lam=5e-3, progress=False)
    known = [0.168608278206, 4.219156, 0.288520, 0.9800, 0.990029]
    names = ("objective", "pfc1", "pfc2", "pfc3", "cosine")
    assert [getattr(found, name)[-1].item() for name in names] == pytest.approx(known, abs=1e-5)
    assert found.gradient_norm[-1] < 1e-6
    early = descent.on_mufm(X, y, lam=1e-4, progress=False)
    assert early.objective[-1] > 1.5 * 0.014387580278  # not converged
    assert early.pfc1[-1] > 1.2 * 2.713737


def test_errors_name_what_was_given():
    X, y = problems.features(3, N=9, D=4, K=3)
    with pytest.raises(ValueError, match="lam must be a positive number, got -1"):
        descent.on_mufm(X, y, lam=-1.0)
    with pytest.raises(ValueError, match="one label a row"):
        inspect.unwrap(descent.on_mufm)(X, y[1:], lam=1.0)
    with pytest.raises(ValueError, match="step must be a positive number, got 0"):
        descent.on_mufm(X, y, lam=1.0, step=0.0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        descent.on_mufm(X, y, lam=1.0, steps=0)
    with pytest.raises(ValueError, match="records must be at least 2, got 1"):
        descent.on_ufm(3, 4, 5, records=1)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        descent.on_ufm(1, 4, 5)
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        descent.on_ufm(2, 4, 0)
    with pytest.raises(ValueError, match="feature_decay must be a positive number, got 0"):
        descent.on_ufm(2, 4, 5, feature_decay=0.0)
    with pytest.raises(ValueError, match=r"overflowed within \d+ steps; take a step below 50"):
        descent.on_mufm(X, y, lam=1.0, step=50.0, progress=False)
    for records in (2, 60):  # where nothing finite is left, and where only squares overflow
        with pytest.raises(ValueError, match="overflowed within"):
            descent.on_mufm(X, y, lam=1.0, step=1e6, steps=60, records=records, progress=False)


def test_the_start_is_not_the_noise_of_toy_data_of_the_same_seed():
    """One generator would give both the same numbers, in the same order and shapes."""
    for seed in range(3):
        X, y = toy(sigma=1.0, seed=seed)
        found = descent.on_mufm(X, y, lam=0.1, steps=2, records=2, seed=seed, progress=False)
        assert abs(found.cosine[0]) < 0.1


def test_the_names_of_version_0_1_0_still_answer_and_warn():
    X, y = problems.features(3, N=9, D=4, K=3)
    how = {"steps": 5, "progress": False}
    for old, new, given_ in (("ufm", "on_ufm", (3, 4, 5)), ("mufm", "on_mufm", (X, y))):
        how = {**how, "lam": 0.1} if old == "mufm" else how
        with pytest.warns(DeprecationWarning, match=rf"descent\.{old} is .*\.{new} now"):
            before = getattr(descent, old)(*given_, **how)
        after = getattr(descent, new)(*given_, **how)
        assert torch.equal(before.objective, after.objective)
        assert torch.equal(before.features(), before.H)
