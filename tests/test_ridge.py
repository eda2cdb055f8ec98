"""The ridge classifier against the normal equations, and its laws."""

import numpy as np
import pytest
import torch

from pfc.theory.mufm import gather
from pfc.theory.ridge import Ridge


def normal_equations(X: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias from all samples at once, the bias as a column of ones that is not penalised."""
    N, D = X.shape
    ones, Y = np.ones((N, 1)), np.eye(y.max() + 1)[y]
    scale = np.linalg.eigvalsh(np.cov(X.T, bias=True).reshape(D, D)).mean()
    damping = np.diag([penalty * scale] * D + [0.0])
    A = np.hstack([X, ones])
    solution = np.linalg.solve(A.T @ A / N + damping, A.T @ Y / N).T
    return solution[:, :D], solution[:, D]


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_as_by_the_normal_equations(penalty: float, offset: float) -> None:
    rng = np.random.default_rng(3)
    y = np.array([0] * 5 + [1] * 9 + [2] * 6)
    X = rng.normal(size=(20, 4)) * [1, 2, 3, 4] + y[:, None] + offset
    W, b = Ridge(gather([(X[:7], y[:7]), (X[7:], y[7:])])).at(penalty)
    expected = normal_equations(X, y, penalty)
    assert np.allclose(W, expected[0], rtol=1e-8, atol=1e-10)
    assert np.allclose(X @ W.mT.numpy() + b.numpy(), X @ expected[0].T + expected[1], atol=1e-9)


def test_of_fewer_samples_than_features_it_is_the_smallest_that_fits() -> None:
    X, y = np.random.default_rng(0).normal(size=(4, 9)), np.array([0, 1, 1, 0])
    W, b = Ridge(gather([(X, y)])).at(0.0)
    assert np.allclose(X @ W.mT.numpy() + b.numpy(), np.eye(2)[y], atol=1e-10)
    centred = X - X.mean(0)
    assert np.allclose(W, np.eye(2)[y].T @ np.linalg.pinv(centred).T, atol=1e-10)


def test_units_and_offsets_do_not_change_the_answers() -> None:
    X, y = torch.randn(30, 5, dtype=torch.float64, generator=torch.manual_seed(1)), torch.arange(30) % 3
    answers = []
    for moved in (X, 1e3 * X - 7.0):
        W, b = Ridge(gather([(moved, y)])).at(0.3)
        answers.append(moved @ W.mT + b)
    assert torch.allclose(*answers, rtol=0, atol=1e-10)
    assert torch.allclose(answers[0].sum(1), torch.ones(30, dtype=torch.float64))


def test_features_that_never_differ_give_the_frequencies() -> None:
    W, b = Ridge(gather([(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))])).at(0.5)
    assert W.abs().max() == 0
    assert b.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 10.0])
def test_cross_validation_is_by_the_hat_matrix(penalty: float) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(25) % 4
    X = rng.normal(size=(25, 6)) + y[:, None] + 50
    W, b = normal_equations(X, y, penalty)
    error = ((X @ W.T + b - np.eye(4)[y]) ** 2).sum() / 25
    scale = np.linalg.eigvalsh(np.cov(X.T, bias=True)).mean()
    Z = X - X.mean(0)
    hat = np.ones((25, 25)) / 25 + Z @ np.linalg.solve(Z.T @ Z + 25 * penalty * scale * np.eye(6), Z.T)
    known = error / (1 - np.trace(hat) / 25) ** 2
    assert Ridge(gather([(X, y)])).gcv(penalty) == pytest.approx(known, rel=1e-9)


def test_cross_validation_of_all_parameters_free_is_undefined() -> None:
    X, y = np.random.default_rng(0).normal(size=(4, 9)), np.array([0, 1, 1, 0])
    assert np.isnan(Ridge(gather([(X, y)])).gcv(0.0))
    assert Ridge(gather([(X, y)])).gcv(0.1) > 0
    flat = Ridge(gather([(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))]))
    assert flat.gcv(0.5) == pytest.approx((1 - 10 / 16) / (1 - 1 / 4) ** 2)


@pytest.mark.parametrize("penalty", [-1.0, float("nan"), float("inf")])
def test_a_penalty_that_can_not_be_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty must be a number from 0 on"):
        Ridge(gather([([[0.0], [1.0]], [0, 1])])).at(penalty)
