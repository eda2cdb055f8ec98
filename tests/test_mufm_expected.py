"""MUFM in closed form for orthogonal means and isotropic noise, against solver and definition."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

from pfc.theory import mufm
from tests import mufm_twins as twins

F64 = torch.float64
CASES = [(4, 10, 25, 1.0, 0.5, 5e-3), (3, 3, 5, 2.0, 0.3, 1e-2), (5, 12, 8, 0.7, 1.5, 1e-4)]


def moments(K, D, n, r, sigma):
    """Statistics that equal the expectations, which no few samples have."""
    within = K * n * sigma**2 * torch.eye(D, dtype=F64)
    return mufm.Statistics(
        torch.full((K,), float(n), dtype=F64), r * torch.eye(K, D, dtype=F64), within[None]
    )


@pytest.mark.filterwarnings("ignore:a problem with as many features as classes")
@pytest.mark.parametrize("lam", [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
@pytest.mark.parametrize(("K", "D", "n", "r", "sigma", "decay"), CASES)
def test_the_closed_form_is_what_the_solver_finds(K, D, n, r, sigma, decay, lam):
    known = mufm.optimum(K, D, n, lam=lam, weight_decay=decay, norm=r, sigma=sigma)
    found = mufm.solve(moments(K, D, n, r, sigma), lam=lam, weight_decay=decay, restarts=2)
    assert known.objective == pytest.approx(found.objective, rel=2e-15)
    assert known.certificate == pytest.approx(found.certificate, rel=1e-9, abs=1e-9)
    assert known.pfc1 == pytest.approx(found.pfc1, rel=1e-8)
    assert found.pfc2 < 1e-7
    for name in ("cosine", "direction_distance", "relative_displacement", "norm_ratio"):
        assert getattr(known, name) == pytest.approx(getattr(found, name), rel=1e-8, abs=1e-12), name


def test_the_closed_form_is_that_of_data_with_these_moments():
    K, D, n, lam = 3, 4, 8, 1e-2
    H = torch.tensor(np.array([[1.0]]))
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])  # orthogonal, of zero mean but one
    y = torch.arange(K).repeat_interleave(n)
    X = 2.0 * torch.eye(K, D, dtype=F64)[y] + 0.5 * H[:, 1 : D + 1].repeat(K, 1)
    known = mufm.optimum(K, D, n, lam=lam, norm=2.0, sigma=0.5)
    W = known.w * torch.eye(K, D, dtype=F64)
    hidden = twins.best_hidden(W, X, y, lam)
    assert float(twins.joint(W, hidden, X, y, lam)) == pytest.approx(known.objective, rel=1e-13)
    means = torch.stack([hidden[y == k].mean(0) for k in range(K)])
    assert means.numpy() == pytest.approx(known.h * np.eye(K, D), abs=1e-13)
    (slope,) = torch.autograd.grad(twins.reduced(W.requires_grad_(), X, y, lam), W)
    assert float(slope.abs().max()) < 1e-14


def test_noise_outside_the_classifiers_sight_leaves_only_like_the_root_of_lam():
    values = [mufm.optimum(4, 10, 25, lam=lam).pfc1 for lam in (1e-12, 1e-10, 1e-8)]
    assert values[1] / values[0] == pytest.approx(10, rel=0.01)
    assert values[2] / values[1] == pytest.approx(10, rel=0.1)
    assert mufm.optimum(4, 4, 25, lam=1e-10).pfc1 < 1e-9, "no feature is out of sight"


def test_coefficients_of_any_size_have_a_closed_form():
    small, large = (mufm.optimum(4, 10, 25, lam=lam) for lam in (1e-300, 1e300))
    assert small.w == pytest.approx((100 * 1e-300 / 4 / 0.005) ** 0.25, rel=1e-9, abs=0)
    assert small.pfc1 == pytest.approx(0.25 * 6 * 4 / 3 * small.w**2, rel=1e-9, abs=0)
    assert (large.certificate, large.norm_ratio) == (1, 1)


@pytest.mark.parametrize(
    ("K", "D", "n", "lam", "decay", "r", "sigma"),
    [
        (2, 2, 10**6, 143.0, 4e-6, 2777.0, 8e-5),
        (10, 10, 10**6, 4e-3, 5e3, 1.0, 6.5e-5),
        (10, 16, 1, 3e-8, 670.0, 2.3e-4, 7.6e-5),
        (3, 5, 4, 1e4, 1e-8, 1.0, 1e-6),
    ],
)
def test_no_digit_of_the_alignment_cancels(K, D, n, lam, decay, r, sigma):
    found = mufm.optimum(K, D, n, lam=lam, weight_decay=decay, norm=r, sigma=sigma)
    known = alignment(found.w, K, D, n, *map(Fraction, (lam, decay, r, sigma)))
    for name, value in known.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-13, abs=0), name


def alignment(w, K, D, n, lam, decay, r, sigma):
    """The numbers by their definitions, at a root refined to 100 digits."""
    with localcontext() as context:
        context.prec = 100
        lam, decay, r, sigma = (
            Decimal(x.numerator) / Decimal(x.denominator) for x in (lam, decay, r, sigma)
        )
        beta, noise, w = K * n * lam, sigma**2, Decimal(w)
        for _ in range(4):  # Newton steps
            size, b = w**2 + beta, r / K
            f = (
                b * w**2
                + ((noise + r * b) * beta - Decimal(1) / K) * w
                - b * beta
                + decay * w * size**2 / beta
            )
            slope = 2 * b * w + (noise + r * b) * beta - Decimal(1) / K
            w -= f / (slope + decay * size * (size + 4 * w**2) / beta)
        size = w**2 + beta
        kept, h, seen, idle = beta / size, (beta * r + w) / size, K * noise, (D - K) * noise
        X, H = r**2 + seen + idle, h**2 + kept**2 * seen + idle
        cosine = (r * h + kept * seen + idle) / (X * H).sqrt()
        return {
            "cosine": cosine,
            "direction_distance": (2 - 2 * cosine).sqrt(),
            "relative_displacement": (((h - r) ** 2 + (1 - kept) ** 2 * seen) / X).sqrt(),
            "norm_ratio": (H / X).sqrt(),
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"features": 3}, "features must be at least 4, got 3"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"lam": 0.0}, "lam must be a positive number, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a positive number, got -1.0"),
        ({"norm": 0.0}, "norm must be a positive number, got 0.0"),
        ({"sigma": 0.0}, "sigma must be a positive number, got 0.0"),
    ],
)
def test_errors_name_what_was_given(change, message):
    given = {"classes": 4, "features": 10, "per_class": 5, "lam": 0.1} | change
    with pytest.raises(ValueError, match=message):
        mufm.optimum(**given)
