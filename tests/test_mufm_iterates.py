"""What the MUFM's solver passes through: each point by the definitions, the end that `solve` finds."""

import inspect
import math

import numpy as np
import pytest
import torch

from pfc.theory import mufm, ufm
from pfc.theory.collapse import collapse, cosine
from pfc.theory.toy import toy
from tests import problems

F64 = torch.float64


def joint(X, y, W, lam, decay):
    """The objective and the features that are best for W, by the definitions (MATH 5.3)."""
    N, D = X.shape
    Y = torch.nn.functional.one_hot(y).double()
    beta = N * lam
    H = torch.linalg.solve(W.mT @ W + beta * torch.eye(D, dtype=F64), (Y @ W + beta * X).mT).mT
    f = ((H @ W.mT - Y).square().sum() + beta * (H - X).square().sum()) / (2 * N)
    return float(f + decay / 2 * W.square().sum()), H


def test_the_ridge_start_has_its_own_numbers():
    X, y = problems.features(2, N=40, D=6, K=3)
    found = mufm.iterates(X, y, lam=0.01, start="ridge")
    Y = torch.nn.functional.one_hot(y).double()
    W = torch.linalg.solve(X.mT @ X + 40 * 0.005 * torch.eye(6, dtype=F64), X.mT @ Y).mT
    f, H = joint(X, y, W, 0.01, 0.005)
    row = collapse(H, y)
    assert found.steps[0] == 0
    assert float(found.objective[0]) == pytest.approx(f, rel=1e-10)
    assert float(found.pfc1[0]) == pytest.approx(row.pfc1, rel=1e-10)
    assert float(found.pfc2[0]) == pytest.approx(row.pfc2, rel=1e-9)
    assert float(found.pfc3[0]) == row.pfc3
    assert float(found.cosine[0]) == pytest.approx(cosine(H, X), rel=1e-10)


@pytest.mark.parametrize("start", ["normal", "ridge"])
def test_the_way_goes_down_to_what_solve_finds(start):
    X, y = toy()
    found = mufm.iterates(X, y, lam=5e-3, start=start)
    solution = mufm.solve(X, y, lam=5e-3)
    assert (found.objective.diff() <= 1e-12).all()
    assert float(found.gradient_norm[-1]) < 1e-12
    for name in ("objective", "pfc1", "pfc2", "pfc3", "cosine"):
        assert float(getattr(found, name)[-1]) == pytest.approx(getattr(solution, name), rel=1e-8)
    assert found.steps.tolist() == sorted(set(found.steps.tolist()))


def test_zero_data_make_the_ufm():
    y = torch.arange(4).repeat_interleave(50)
    found = mufm.iterates(torch.zeros(200, 20, dtype=F64), y, lam=0.005)
    assert float(found.objective[-1]) == pytest.approx(ufm.optimum(4, 20, 50).objective, rel=1e-12)
    assert float(found.pfc1[-1]) == 0
    assert float(found.pfc2[-1]) < 1e-12
    assert float(found.pfc3[-1]) == 1
    assert math.isnan(found.cosine[-1])


def test_a_start_that_is_the_optimum_is_the_only_point():
    y = torch.arange(4).repeat_interleave(5)
    found = mufm.iterates(torch.zeros(20, 6, dtype=F64), y, lam=1.0, weight_decay=1.0, start="ridge")
    assert found.steps.tolist() == [0]
    assert found.objective.tolist() == [0.5]
    assert found.pfc1.isnan().all()


def test_statistics_serve_and_records_are_thinned():
    X, y = toy()
    all_of = mufm.iterates(X, y, lam=1e-4, records=10_000)
    few = mufm.iterates(mufm.gather([(X, y)]), lam=1e-4, records=5)
    assert all_of.steps.tolist() == list(range(len(all_of.steps)))
    assert len(few.steps) <= 6
    assert few.pfc3.isnan().all()
    at = few.steps[1]
    assert float(few.objective[1]) == pytest.approx(float(all_of.objective[at]), rel=1e-9)
    assert int(mufm.iterates(X, y, lam=1e-4, iterations=3, tolerance=1.0).steps[-1]) <= 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lam": 0.0}, "lam must be .*0.0"),
        ({"lam": 1.0, "weight_decay": -1.0}, "weight_decay must be .*-1.0"),
        ({"lam": 1.0, "tolerance": math.nan}, "tolerance must be .*nan"),
        ({"lam": 1.0, "records": 0}, "records must be at least 1, got 0"),
        ({"lam": 1.0, "iterations": 0}, "iterations must be at least 1, got 0"),
        ({"lam": 1.0, "start": "data"}, "start must be 'normal' or 'ridge', got 'data'"),
    ],
)
def test_errors_name_what_was_given(how, message):
    X, y = problems.features(2, N=40, D=6, K=3)
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(mufm.iterates)(X, y, **how)  # past the checks of types that tests have


def test_the_seed_chooses_the_start():
    X, y = toy(per_class=5)
    ways = [mufm.iterates(X, y, lam=0.1, seed=seed).objective[0] for seed in (0, 0, 1)]
    assert ways[0] == ways[1] != ways[2]
    assert np.isfinite(ways).all()


def test_the_end_has_its_classifier_and_says_that_features_are_not_formed():
    X, y = toy(per_class=5)
    found, known = mufm.iterates(X, y, lam=1.0, start="ridge"), mufm.solve(X, y, lam=1.0)
    assert isinstance(found, mufm.Trace)
    assert found.W.numpy() == pytest.approx(known.W.numpy(), abs=1e-9)
    assert found.b.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"features at the end were not formed; take mufm\.solve"):
        found.features()
