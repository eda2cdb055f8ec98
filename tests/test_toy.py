"""The toy data of Figures 4 and 5, the metrics of a matrix, and what the models refuse."""

import math

import pytest
import torch
from hypothesis import given, settings

from pfc.theory.coefficients import at_least, positive
from pfc.theory.collapse import collapse, cosine
from pfc.theory.toy import toy
from tests import problems
from tests.oracles import covariances, naive_row

KNOWN = {  # sigma: PFC1, PFC2, PFC3 of the data of seed 0
    0.1: (0.258220, 0.362390, 1.0),
    0.3: (2.241064, 0.364857, 0.98),
    0.5: (5.8488142304, 0.3630010273, 0.8450),
    1.0: (18.436019, 0.345498, 0.61),
}


@pytest.mark.parametrize("sigma", KNOWN)
def test_known_answers(sigma):
    row = collapse(*toy(sigma=sigma))
    digits = 1e-10 if sigma == 0.5 else 5e-7
    assert (row.pfc1, row.pfc2, row.pfc3) == pytest.approx(KNOWN[sigma], abs=digits, rel=digits)


def test_the_generator_is_the_one_that_is_told():
    X, y = toy()
    assert X[0, 0].item() == pytest.approx(0.126480769295247, abs=1e-15)
    assert torch.linalg.norm(X).item() == pytest.approx(34.5764525015, abs=1e-9)
    assert y.tolist() == [k for k in range(4) for _ in range(50)]
    X, y = toy(3, 5, 2, sigma=1e-9, seed=4)
    assert X.shape == (6, 5)
    assert X.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-7)
    assert not torch.equal(toy(seed=1)[0], toy()[0])


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_collapse_equals_the_definitions(seed):
    H, y = problems.features(seed, N=25, D=1 + seed % 6, K=2 + seed % 4)
    for weighting in ("class", "sample"):
        row, naive = collapse(H, y, weighting), naive_row(H, y, weighting)
        for name in ("pfc1", "pfc2", "pfc3"):
            assert getattr(row, name) == pytest.approx(naive[name], rel=1e-10, abs=1e-12)
        within, between, _ = covariances(H, y, weighting)
        assert row.within == pytest.approx(within.trace(), rel=1e-12)
        assert row.between == pytest.approx(between.trace(), rel=1e-12)


def test_undefined_is_nan():
    row = collapse(torch.zeros(6, 2, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert math.isnan(row.pfc1)
    assert math.isnan(row.pfc2)
    assert row.pfc3 == pytest.approx(1 / 3)
    assert math.isnan(cosine(torch.zeros(2, 2).double(), torch.ones(2, 2).double()))


def test_cosine_by_hand():
    H, X = torch.tensor([[3.0, 0], [0, 4]]).double(), torch.tensor([[1.0, 1], [0, 1]]).double()
    assert cosine(H, X) == pytest.approx(7 / (5 * math.sqrt(3)), rel=1e-15)
    assert cosine(-2 * H, H) == pytest.approx(-1, rel=1e-15)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"lam must be a positive number, got -1\.0"):
        positive(weight_decay=1.0, lam=-1.0)
    for value in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"lam must be a positive number, got {value}"):
            positive(lam=value)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        at_least(1, layers=0)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        toy(1)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        toy(features=0)
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        toy(per_class=0)
    with pytest.raises(ValueError, match="sigma must be a positive number, got 0"):
        toy(sigma=0.0)
