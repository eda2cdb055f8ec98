"""MUFM with all layers free: Theorem 3 seen, not used; and MUFM with cross-entropy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize

from pfc.theory.joint import Joint
from pfc.theory.minimum import Minimum, minimum
from pfc.theory.mufm.cross_entropy import solve_cross_entropy
from pfc.theory.mufm.layered import _Chain, _layered, solve_layered
from pfc.theory.toy import toy
from pfc.theory.ufm import optimum
from tests import problems
from tests.oracles import naive_row
from tests.test_joint import naive_gradient, naive_objective


def naive_layered(W, H, X, y, lW, lam):
    """Eq. 12 term by term; `H` holds the free layers."""
    zero = torch.zeros(len(W), dtype=torch.float64)
    f = naive_objective(W, zero, H[-1], H[-1], y, lW=lW, lam=0.0, lb=0.0, loss="mse")
    for before, after in zip([X, *H[:-1]], H, strict=True):
        f = f + lam / 2 * ((after - before) ** 2).sum()
    return f


def independent(X, y, lW, lam, seed, loss="mse"):
    """Eq. 13 by BFGS on the definition, in classifier and features together."""
    (N, D), K = X.shape, int(y.max()) + 1
    zero = torch.zeros(K, dtype=torch.float64)

    def value(theta):
        W, H = torch.from_numpy(theta[: K * D]).view(K, D), torch.from_numpy(theta[K * D :]).view(N, D)
        f, dW, _, dH = naive_gradient(W, zero, H, X, y, lW=lW, lam=lam, lb=0.0, loss=loss)
        return f, np.concatenate([dW.numpy().ravel(), dH.numpy().ravel()])

    start = np.concatenate([np.random.default_rng(seed).normal(size=K * D), X.numpy().ravel()])
    found = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 3000})
    return found.fun, found.x[K * D :].reshape(N, D)


def distances(found):
    return (found.increments - found.increments.mean(0)).abs().max().item()


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_theorem_3(layers):
    X, y = problems.features(2, N=9, D=4, K=3)
    found = solve_layered(X, y, layers=layers, lam=0.05 * layers, weight_decay=0.02, progress=False)
    f, H = independent(X, y, 0.02, 0.05, 0)
    assert found.H.shape == (layers + 1, 9, 4)
    assert torch.equal(found.H[0], X)
    assert distances(found) < 1e-12
    assert found.objective == pytest.approx(f, rel=1e-10)
    assert found.features().numpy() == pytest.approx(H, abs=1e-6)
    t = torch.linspace(0, 1, layers + 1, dtype=torch.float64)[:, None, None]
    assert found.H.numpy() == pytest.approx(((1 - t) * X + t * found.H[-1]).numpy(), abs=1e-12)


@given(problems.seeds)
@settings(max_examples=8, deadline=None)
def test_layered_is_mufm_with_the_coefficient_over_the_layers(seed):
    X, y = problems.features(seed, N=8, D=1 + seed % 5, K=3)
    lam, layers = 10.0 ** (-3 + seed % 4), 1 + seed % 7
    found = solve_layered(X, y, layers=layers, lam=layers * lam, restarts=3, progress=False)
    one = solve_layered(X, y, layers=1, lam=lam, restarts=3, progress=False)
    joint = Joint.of(X, y, pull=lam, weight_decay=0.005)
    there = minimum(joint, joint.join(found.W.numpy(), found.H[-1].T.numpy()))
    assert found.objective == pytest.approx(one.objective, rel=1e-9)
    assert found.objective == pytest.approx(there.value, rel=1e-9)
    assert distances(found) < 1e-8
    assert found.gradient_norm < 1e-10


def naive_pulls(W, H, X, y, lW, lams):
    """Eq. 12 with a coefficient for each layer, term by term."""
    zero = torch.zeros(len(W), dtype=torch.float64)
    f = naive_objective(W, zero, H[-1], H[-1], y, lW=lW, lam=0.0, lb=0.0, loss="mse")
    for lam, before, after in zip(lams, [X, *H[:-1]], H, strict=True):
        f = f + lam / 2 * ((after - before) ** 2).sum()
    return f


@given(problems.seeds)
@settings(max_examples=8, deadline=None)
def test_layers_of_different_coefficients_lie_where_theorem_3_puts_them(seed):
    rng = np.random.default_rng(seed)
    X, y = problems.features(seed, N=8, D=1 + seed % 5, K=3)
    lams = (10 ** rng.uniform(-2, 1, size=1 + seed % 4)).tolist()
    found = solve_layered(X, y, layers=len(lams), lam=lams, restarts=2, seed=seed, progress=False)
    t = np.concatenate([[0], np.cumsum([1 / lam for lam in lams]) / sum(1 / lam for lam in lams)])
    assert found.positions.numpy() == pytest.approx(t, abs=1e-14)
    line = X + found.positions[:, None, None] * (found.H[-1] - X)
    assert found.H.numpy() == pytest.approx(line.numpy(), abs=1e-9)
    assert found.lam == pytest.approx(1 / sum(1 / lam for lam in lams), rel=1e-14)
    W, H = found.W.clone().requires_grad_(), found.H[1:].clone().requires_grad_()
    f = naive_pulls(W, H, X, y, 0.005, lams)
    f.backward()
    assert found.objective == pytest.approx(f.item(), rel=1e-12)
    assert max(W.grad.abs().max(), H.grad.abs().max()) < 1e-9
    one = solve_layered(X, y, layers=1, lam=found.lam, restarts=2, seed=seed, progress=False)
    assert found.objective == pytest.approx(one.objective, rel=1e-9)


def test_one_coefficient_is_the_same_for_every_layer():
    X, y = problems.features(1, N=8, D=3, K=3)
    one, many = (
        solve_layered(X, y, layers=3, lam=lam, restarts=0, progress=False) for lam in (0.3, [0.3] * 3)
    )
    assert torch.equal(one.H, many.H)
    assert one.positions.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-15)
    assert one.lam == pytest.approx(0.1)


def test_coefficients_of_layers_are_checked():
    X, y = problems.features(1, N=8, D=3, K=3)
    with pytest.raises(ValueError, match="lam must be one number or one for each of 3 layers, got 2"):
        solve_layered(X, y, layers=3, lam=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"lam must be a positive number, got -0\.2"):
        solve_layered(X, y, layers=2, lam=[0.1, -0.2])


def test_the_solution_is_stationary_in_every_layer():
    X, y = problems.features(5, N=7, D=3, K=3)
    found = solve_layered(X, y, layers=4, lam=0.3, weight_decay=0.01, progress=False)
    W, H = found.W.clone().requires_grad_(), found.H[1:].clone().requires_grad_()
    f = naive_layered(W, H, X, y, 0.01, 0.3)
    f.backward()
    assert found.objective == pytest.approx(f.item(), rel=1e-13)
    assert W.grad.abs().max() < 1e-12
    assert H.grad.abs().max() < 1e-12


def test_gradients_of_the_chain_are_those_of_the_definition():
    X, y = problems.features(6, N=7, D=3, K=3)
    rng = np.random.default_rng(0)
    W, free = rng.normal(size=(3, 3)), rng.normal(size=(4, 7, 3))
    Y = np.eye(3)[y.numpy()].T
    chain = _Chain(X.numpy().T.copy(), Y, np.full(4, 0.3), 0.01)
    H = np.concatenate([X.numpy()[None], free]).transpose(0, 2, 1)
    f, dW, dH = chain.at(W, H)
    W_t, free_t = (torch.from_numpy(part).requires_grad_() for part in (W, free))
    known = naive_layered(W_t, free_t, X, y, 0.01, 0.3)
    known.backward()
    assert f == pytest.approx(known.item(), rel=1e-13)
    assert dW == pytest.approx(W_t.grad.numpy(), abs=1e-13)
    assert dH.transpose(0, 2, 1) == pytest.approx(free_t.grad.numpy(), abs=1e-13)
    assert np.abs(chain.at(W, chain.features(W))[2]).max() < 1e-13
    theta, direction, e = W.ravel(), rng.normal(size=9), 1e-5
    (up, g_up), (down, g_down) = (chain.value(theta + s * e * direction) for s in (1, -1))
    assert (up - down) / (2 * e) == pytest.approx(chain.value(theta)[1] @ direction, rel=1e-7)
    assert (g_up - g_down) / (2 * e) == pytest.approx(
        chain.curvature(theta)(direction), rel=1e-6, abs=1e-8
    )


def naive_solve(W, first, last, lams):
    """The linear system of the features, written out layer by layer and solved as it stands."""
    L, (D, N) = len(lams), first.shape
    M, force, same = np.zeros((L, D, L, D)), np.zeros((L, D, N)), np.eye(D)
    for k, lam in enumerate(lams):
        M[k, :, k] += lam * same
        if k > 0:
            M[k - 1, :, k - 1] += lam * same
            M[k, :, k - 1] -= lam * same
            M[k - 1, :, k] -= lam * same
    M[-1, :, -1] += W.T @ W / N
    force[0] += first
    force[-1] += last
    return np.linalg.solve(M.reshape(L * D, L * D), force.reshape(L * D, N)).reshape(L, D, N)


def soft(D, lams):
    """A chain with next to no pull beside that of a well-conditioned classifier, and that classifier."""
    rng, K, N = np.random.default_rng(0), 4, 12
    chain = _Chain(rng.normal(size=(D, N)), np.eye(K)[np.arange(N) % K].T, np.array(lams), 0.01)
    return chain, np.linalg.qr(rng.normal(size=(K, D)))[0] @ np.diag(rng.uniform(1, 2, size=D)), rng


@pytest.mark.parametrize("lams", [[1e-10], [1e-10] * 3, [1e-9, 1e-5, 1e-7], [1e-2, 1e-9]])
@pytest.mark.parametrize("D", [1, 3, 4])
def test_small_coefficients_cost_no_digits(D, lams):
    chain, W, rng = soft(D, lams)
    H, N = chain.features(W), 12
    known = naive_solve(W, lams[0] * chain.X, W.T @ chain.Y / N, lams)
    assert H[1:] == pytest.approx(known, rel=1e-12, abs=1e-13)
    V, R = rng.normal(size=W.shape), W @ H[-1] - chain.Y
    dH = naive_solve(W, 0 * chain.X, -(V.T @ R + W.T @ V @ H[-1]) / N, lams)[-1]
    dR = V @ H[-1] + W @ dH
    product = (dR @ H[-1].T + R @ dH.T) / N + chain.weight_decay * V
    assert chain.curvature(W.ravel())(V.ravel()) == pytest.approx(product.ravel(), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("lams", [[1e-10], [1e-10] * 3, [1e-9, 1e-5, 1e-7]])
@pytest.mark.parametrize("size", [1, 1e3])
def test_features_no_class_has_use_for_stay_those_of_the_data(size, lams):
    rng = np.random.default_rng(1)
    W, idle = np.split(np.linalg.qr(rng.normal(size=(9, 9)))[0], [4])
    chain = _Chain(size * rng.normal(size=(9, 12)), np.eye(4)[np.arange(12) % 4].T, np.array(lams), 0.01)
    H = chain.features(W)
    assert idle @ H[-1] == pytest.approx(idle @ chain.X, rel=1e-12, abs=1e-12 * size)
    assert np.abs(chain.at(W, H)[2]).max() < 1e-15 * max(size, 10)


def test_the_gradient_norm_is_that_of_the_definition():
    X, y = problems.features(6, N=7, D=3, K=3)
    chain = _Chain(X.numpy().T.copy(), np.eye(3)[y.numpy()].T, np.full(2, 0.3), 0.01)
    found = _layered(chain, [Minimum(np.ones(9), 2.0, 0.0), Minimum(np.ones(9), 5.0, 0.0)])
    W, H = found.W.clone().requires_grad_(), found.H[1:].clone().requires_grad_()
    naive_layered(W, H, X, y, 0.01, 0.3).backward()
    size = (W.grad.square().sum() + H.grad.square().sum()).sqrt().item()
    assert found.gradient_norm == pytest.approx(size, rel=1e-12)
    assert found.spread == 3


@pytest.mark.parametrize(
    ("sigma", "lam", "f"),
    [
        (0.5, 5e-3, 0.168608278206),
        (0.5, 1e-1, 0.231879589388),
        (0.5, 1e-4, 0.014387580278),
        (0.3, 5e-3, 0.0784857110),
        (0.1, 5e-3, 0.0201318539),
    ],
)
def test_o7_known_answers(sigma, lam, f):
    found = solve_layered(*toy(sigma=sigma), layers=2, lam=2 * lam, restarts=0, progress=False)
    assert found.objective == pytest.approx(f, abs=6e-11)


def test_the_spread_tells_of_other_minima():
    X, y = torch.tensor([[0.0, -1], [0, -2], [1, 0], [2, -2]]), torch.tensor([0, 0, 1, 1])
    found = solve_layered(X, y, layers=2, lam=0.2, restarts=12, progress=False)
    assert found.objective == pytest.approx(0.053866110957554586, rel=1e-12)
    assert found.spread == pytest.approx(0.26666185346903853 - 0.053866110957554586, rel=1e-9)


@pytest.mark.parametrize(
    ("lam", "f", "metrics"),
    [
        (1e-4, 0.06805423918940, (0.796794, 0.092219, 1)),
        (5e-3, 0.22134295379058, (3.474080, 0.266511, 1)),
        (1e-1, 0.39892198563166, (5.341898, 0.346934, 0.89)),
    ],
)
def test_o7_cross_entropy(lam, f, metrics):
    X, y = toy()
    found = solve_cross_entropy(X, y, lam=lam, restarts=0 if lam < 1e-3 else 1, progress=False)
    assert found.objective == pytest.approx(f, abs=1e-13)
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx(metrics, abs=5.1e-7)
    assert found.gradient_norm < 1e-12
    assert found.spread < 1e-13


def test_cross_entropy_equals_an_independent_minimum():
    X, y = problems.features(8, N=9, D=4, K=3)
    found = solve_cross_entropy(X, y, lam=0.05, weight_decay=0.02, progress=False)
    f, H = independent(X, y, 0.02, 0.05, 0, loss="ce")
    assert found.objective == pytest.approx(f, rel=1e-10)
    assert found.features().numpy() == pytest.approx(H, abs=1e-6)
    row = naive_row(found.H, y)
    assert (found.pfc1, found.pfc2, found.pfc3) == pytest.approx(
        (row["pfc1"], row["pfc2"], row["pfc3"]), rel=1e-10
    )
    cos = (found.H * X).sum() / (found.H.norm() * X.norm())
    assert found.cosine == pytest.approx(cos.item(), rel=1e-12)


def test_cross_entropy_scales_with_the_data():
    X, y = problems.features(9, N=9, D=4, K=3)
    one = solve_cross_entropy(X, y, lam=0.05, weight_decay=0.02, progress=False)
    s = 3.0
    other = solve_cross_entropy(s * X, y, lam=0.05 / s**2, weight_decay=0.02 * s**2, progress=False)
    assert other.objective == pytest.approx(one.objective, rel=1e-12)
    assert (other.W * s).numpy() == pytest.approx(one.W.numpy(), abs=1e-9)
    assert (other.H / s).numpy() == pytest.approx(one.H.numpy(), abs=1e-9)


def test_cross_entropy_without_data_is_ufm():
    y = torch.arange(3).repeat_interleave(3)
    found = solve_cross_entropy(torch.zeros(9, 4), y, lam=0.005, restarts=1, progress=False)
    assert found.objective == pytest.approx(optimum(3, 4, 3, loss="ce").objective, rel=1e-12)
    assert found.spread == pytest.approx(np.log(3) - found.objective, rel=1e-12)  # the first start is 0


def test_one_seed_one_answer():
    X, y = problems.features(9, N=9, D=4, K=3)
    for solve in (solve_cross_entropy, lambda *a, **k: solve_layered(*a, layers=2, **k)):
        a, b = (
            solve(X.float(), y.int(), lam=0.05, seed=3, restarts=1, progress=False) for _ in range(2)
        )
        assert torch.equal(a.W, b.W)
        assert a.features().dtype == torch.float64


@pytest.mark.parametrize(
    "solve", [solve_cross_entropy, lambda *a, **k: solve_layered(*a, layers=2, **k)]
)
def test_errors_name_what_was_given(solve):
    X, y = problems.features(9, N=9, D=4, K=3)
    with pytest.raises(ValueError, match="lam must be a positive number, got -1"):
        solve(X, y, lam=-1.0)
    with pytest.raises(ValueError, match="weight_decay must be a positive number, got 0"):
        solve(X, y, lam=1.0, weight_decay=0.0)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        solve(X, y * 0, lam=1.0)
    with pytest.raises(ValueError, match="restarts must be at least 0, got -1"):
        solve(X, y, lam=1.0, restarts=-1)


def test_layers_are_at_least_one():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        solve_layered(torch.ones(2, 2), torch.tensor([0, 1]), layers=0, lam=1.0)
