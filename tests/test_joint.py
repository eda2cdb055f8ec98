"""The objective that UFM and MUFM share, and the way to its minima."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import rosen, rosen_der, rosen_hess_prod

from pfc.theory.joint import Joint, best
from pfc.theory.minimum import _polish, minimum
from tests import problems
from tests.oracles import naive_row

LOSSES = ("mse", "ce")
BIASES = (None, 0.0, 0.3)


def naive_objective(W, b, H, X, y, *, lW, lam, lb, loss):
    """Eqs. 2 and 13, sample by sample; a tensor that can be differentiated."""
    total = 0.0
    for h, k in zip(H, y, strict=True):
        z = W @ h + b
        if loss == "mse":
            target = torch.zeros_like(z)
            target[k] = 1
            total = total + ((z - target) ** 2).sum() / 2
        else:
            total = total + torch.logsumexp(z, 0) - z[k]
    decay = lW * (W**2).sum() + lam * ((H - X) ** 2).sum() + lb * (b**2).sum()
    return total / len(H) + decay / 2


def naive_gradient(W, b, H, X, y, **coefficients):
    """The objective and its gradients in W, b and H, by automatic differentiation."""
    W, b, H = (part.clone().requires_grad_() for part in (W, b, H))
    f = naive_objective(W, b, H, X, y, **coefficients)
    f.backward()
    return f.item(), W.grad, b.grad, H.grad


def problem(seed, loss, bias, N=11, D=3, K=3):
    X, y = problems.features(seed, N=N, D=D, K=K)
    joint = Joint.of(X, y, pull=0.07, weight_decay=0.02, loss=loss, bias=bias)
    return joint, joint.normal_start(np.random.default_rng(seed)), X, y


cases = st.tuples(problems.seeds, st.sampled_from(LOSSES), st.sampled_from(BIASES))


@given(cases)
@settings(max_examples=30, deadline=None)
def test_value_and_gradient_equal_the_definition(case):
    seed, loss, bias = case
    joint, theta, X, y = problem(*case)
    theta += np.random.default_rng(seed + 1).normal(size=theta.shape)
    W, H, b = (torch.from_numpy(part.copy()) for part in joint.split(theta))
    b = b if len(b) else torch.zeros(3, dtype=torch.float64)
    known = {"lW": 0.02, "lam": 0.07, "lb": bias or 0.0, "loss": loss}
    f, dW, db, dH = naive_gradient(W, b, H.T, X, y, **known)
    value, gradient = joint.value(theta)
    gW, gH, gb = joint.split(gradient)
    assert value == pytest.approx(f, rel=1e-12)
    assert gW == pytest.approx(dW.numpy(), rel=1e-12, abs=1e-14)
    assert gH.T == pytest.approx(dH.numpy(), rel=1e-12, abs=1e-14)
    assert len(gb) == (0 if bias is None else 3)
    if bias is not None:
        assert gb == pytest.approx(db.numpy(), rel=1e-12, abs=1e-14)


@given(cases)
@settings(max_examples=20, deadline=None)
def test_gradient_and_curvature_are_the_slopes_of_what_they_belong_to(case):
    joint, theta, _, _ = problem(*case)
    rng = np.random.default_rng(case[0])
    for _ in range(2):
        direction, e = rng.normal(size=theta.shape), 1e-5
        (up, g_up), (down, g_down) = (joint.value(theta + s * e * direction) for s in (1, -1))
        slope = joint.value(theta)[1] @ direction
        assert (up - down) / (2 * e) == pytest.approx(slope, rel=1e-6, abs=1e-8)
        assert (g_up - g_down) / (2 * e) == pytest.approx(
            joint.curvature(theta)(direction), rel=1e-6, abs=1e-7
        )


def test_cross_entropy_stands_large_logits():
    joint, theta, _, _ = problem(0, "ce", None)
    value, gradient = joint.value(1e3 * theta)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


class Rosenbrock:
    """A curved valley with its minimum at ones."""

    def value(self, theta):
        return float(rosen(theta)), rosen_der(theta)

    def curvature(self, theta):
        return lambda direction: rosen_hess_prod(theta, direction)


class Hill:
    """-x^2/2 + x^4/4: a maximum at 0 and minima at 1 and -1."""

    def value(self, theta):
        return float((-(theta**2) / 2 + theta**4 / 4).sum()), theta**3 - theta

    def curvature(self, theta):
        return lambda direction: (3 * theta**2 - 1) * direction


def test_minimum_reaches_known_minima_to_the_last_digits():
    found = minimum(Rosenbrock(), np.array([1.5, 1.0, 0.3, 2.0]))
    assert found.theta == pytest.approx(np.ones(4), abs=1e-13)
    assert found.gradient_norm < 1e-12
    assert found.value < 1e-25
    assert minimum(Hill(), np.array([0.1, -2.0])).theta == pytest.approx([1, -1], abs=1e-15)


def test_the_polish_sharpens_and_never_climbs():
    near = _polish(Hill(), np.array([1 + 1e-4]))
    assert near.theta == pytest.approx([1], abs=1e-15)
    assert near.value == pytest.approx(-0.25)
    kept = _polish(Hill(), np.array([0.1]))  # Newton would go to the maximum
    assert kept.theta.tolist() == [0.1]
    assert kept.gradient_norm == pytest.approx(0.099)


def test_best_is_the_least_of_the_starts_and_tells_the_spread():
    X, y = torch.tensor([[0.0, -1], [0, -2], [1, 0], [2, -2]]), torch.tensor([0, 0, 1, 1])
    joint = Joint.of(X, y, pull=0.1, weight_decay=0.005)
    starts = [joint.normal_start(np.random.default_rng(s)) for s in (1, 0, 2)]
    values = [minimum(joint, start).value for start in starts]
    found = best(joint, iter(starts), 3, progress=False)
    assert found.objective == min(values) == pytest.approx(0.053866110957554586, rel=1e-12)
    assert found.spread == max(values) - min(values)
    assert found.spread == pytest.approx(0.26666185346903853 - 0.053866110957554586, rel=1e-10)
    row = naive_row(found.features(), y)
    assert [found.pfc1, found.pfc2, found.pfc3] == pytest.approx(
        [row[f"pfc{i}"] for i in (1, 2, 3)], abs=1e-12
    )
    known = naive_gradient(
        found.W, found.b, found.H, X.double(), y, lW=0.005, lam=0.1, lb=0.0, loss="mse"
    )
    assert found.objective == pytest.approx(known[0], rel=1e-13)
    assert max(known[1].abs().max(), known[3].abs().max()) < 1e-12
    assert found.gradient_norm < 1e-12


def test_unknown_loss():
    with pytest.raises(ValueError, match="loss must be one of mse, ce, got 'hinge'"):
        inspect.unwrap(Joint.of.__func__)(
            Joint, torch.ones(2, 2), torch.tensor([0, 1]), pull=1.0, weight_decay=1.0, loss="hinge"
        )
