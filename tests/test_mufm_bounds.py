"""What is proven of the MUFM holds in exact arithmetic: offsets, columns of any size, both losses."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfc.theory.mufm import SpuriousMinimaWarning, bounds, gather, solve
from pfc.theory.mufm.bounds import Dual, entropy_bounds, squared_lower, squared_upper
from pfc.theory.mufm.proof import Proof
from pfc.theory.mufm.source import Source, checked
from pfc.theory.toy import toy
from tests import mufm_twins as twins
from tests import problems

POWERS = [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2]
OFFSETS = [0.0, 1.0, 1e2, 1e4, 1e6, 1e8]


def instance(seed):
    """Samples with an offset and a column of another size, coefficients, and options of `solve`."""
    rng = np.random.default_rng(seed)
    K, n, D = rng.integers(2, 4), rng.integers(1, 4), rng.integers(1, 6)
    D = K * n + K + 2 if seed % 8 == 7 else D  # so many that they are solved in their row space
    y = np.repeat(np.arange(K), n)
    y = np.concatenate([y, np.zeros(seed % 3, dtype=int)])
    X = 2 * rng.normal(size=(K, D))[y] + 10 ** rng.uniform(-3, 0) * rng.normal(size=(len(y), D))
    X += rng.choice(OFFSETS) * (1 if seed % 2 else rng.normal(size=D))
    X[:, -1] *= rng.choice([1.0, 1e8, 1e-8])
    lam, weight_decay = rng.choice(POWERS, size=2)
    options = [{}, {}, {"centre": True}, {"bias": "free"}][rng.integers(4)]
    return torch.from_numpy(X), torch.from_numpy(y), float(lam), float(weight_decay), options


def quiet(*data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpuriousMinimaWarning)
        return solve(*data, **options)


def held(seed):
    """Whether a proof was given, once what is told of an instance was found to be true."""
    X, y, lam, weight_decay, options = instance(seed)
    how = {"lam": lam, "weight_decay": weight_decay, **options}
    data = (gather([(X, y)]),) if seed % 4 == 3 else (X, y)
    found = quiet(*data, **how, restarts=1, relax=seed % 5 == 4)
    exactly = {"centre": bool(options.get("centre")), "free": "bias" in options}

    def value(W):
        return twins.exact(W, X, y, lam, weight_decay, **exactly)

    at = value(found.W)
    other = quiet(X, y, **how, restarts=2, seed=1).W
    least = min(at, value(other), value(torch.zeros_like(found.W)))
    told = float((at - least) / at)
    assert told <= found.gap, (seed, found.proven)
    size = max(float(at), found.objective)
    assert abs(float(at) - found.objective) <= found.gap * size, (seed, found.proven)
    if proven := found.proven.startswith("global minimum to a relative 1e-09"):
        assert told <= 1e-9, (seed, found.proven)
    return proven


def test_nothing_is_proven_that_is_false():
    assert sum(held(seed) for seed in range(40)) >= 12


@pytest.mark.slow
def test_nothing_is_proven_that_is_false_of_many():
    assert sum(held(seed) for seed in range(64, 2064)) >= 600


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_an_offset_costs_the_solver_no_more_than_its_rounding(offset):
    X, y = problems.features(3, N=12, D=4, K=3, spread=0.3)
    plain = quiet(X, y, lam=1.0, bias="free")
    moved = quiet(X + offset, y, lam=1.0, bias="free")
    assert moved.objective == pytest.approx(plain.objective, rel=1e-14 * offset + 1e-12)
    assert moved.gap <= 1e-9 + 1e-12 * offset
    far = quiet(X + offset, y, lam=1.0)
    assert float(twins.exact(far.W, X + offset, y, 1.0)) == pytest.approx(
        far.objective, rel=1e-14 * offset
    )


@given(problems.seeds, st.floats(-4, 1).map(lambda p: 10**p))
@settings(max_examples=30, deadline=None)
def test_any_point_of_the_dual_is_a_bound(seed, lam):
    X, y = problems.features(seed, N=20, D=4, K=3)
    best = quiet(X, y, lam=lam, restarts=2)
    data, rng = Source.of(checked(X, y)).data, np.random.default_rng(seed)
    size = math.sqrt(lam * twins.LW / len(X)) * 10 ** rng.uniform(-2, 0.5)
    V, some = (size * rng.normal(size=shape) for shape in ((3, 4), (3, 3)))
    for T in (some, -np.abs(np.diag(np.diag(some)))):
        lower, certificate = squared_lower(data, V, T, lam=lam, weight_decay=twins.LW)
        assert 0 <= lower <= best.objective * (1 + 1e-12)
        # U itself, sample by sample
        centred = X.numpy() - data.mean[y.numpy()]
        U = V @ centred.T + T[:, y.numpy()]
        wanted = 1 - np.linalg.norm(U, 2) ** 2 / (lam * twins.LW)
        assert certificate == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    W = rng.normal(size=(3, 4))
    value, upper = squared_upper(data, W, V, T, lam=lam, weight_decay=twins.LW)
    H = X - torch.from_numpy(U.T @ W) / lam
    assert value == pytest.approx(float(twins.joint(torch.from_numpy(W), H, X, y, lam)), rel=1e-9)
    assert value < upper < value * (1 + 1e-8)


@pytest.mark.parametrize("shorter", [1.0, 0.5])
def test_the_dual_is_that_of_the_definition(shorter):
    X, y = problems.features(1, N=20, D=4, K=3)
    lam, data, N = 10.0, Source.of(checked(X, y)).data, len(X)
    found, Y = solve(X, y, lam=lam), torch.eye(3, dtype=torch.float64)[y]
    U = shorter * (found.features() @ found.W.mT - Y).mT / N
    left = twins.LW * torch.eye(3, dtype=torch.float64) - U @ U.mT / lam
    known = -(U * Y.mT).sum() - N / 2 * U.square().sum()
    known -= (U @ X * torch.linalg.solve(left, U @ X)).sum() / 2
    T = torch.stack([U[:, y == k].mean(1) for k in range(3)], 1).numpy()
    residuals = X.numpy() - data.mean[y.numpy()]
    V = np.linalg.lstsq(residuals, (U.numpy() - T[:, y.numpy()]).T)[0].T
    lower, _ = squared_lower(data, V, T, lam=lam, weight_decay=twins.LW)
    assert lower == pytest.approx(float(known), rel=1e-10)
    assert lower <= found.objective
    assert lower >= found.objective * (1 - 1e-10) or shorter < 1


@given(problems.seeds)
@settings(max_examples=30, deadline=None)
def test_the_penalty_allows_for_the_errors_that_it_is_told(seed):
    rng = np.random.default_rng(seed)
    U = 0.01 * rng.normal(size=(3, 20))
    pulled, size, error = U @ rng.normal(size=(20, 4)), 10 ** rng.uniform(-2, 2, size=4), 1e-4
    length = float(np.linalg.norm(U))
    lam, weight_decay = 1.0, 1.5 * float(np.linalg.norm(U, 2)) ** 2
    slack = 0.1 * weight_decay * lam
    dual = Dual(U @ U.T, pulled, length, slack, size, error, lam, weight_decay)
    lengths, told = dual.penalties()
    shift = rng.normal(size=(3, 3))
    shift = slack * shift @ shift.T / np.linalg.norm(shift @ shift.T, 2)
    W = np.linalg.solve(weight_decay * np.eye(3) - (U @ U.T + shift) / lam, pulled)
    wrong = error * length * size * W / np.linalg.norm(W, axis=0)  # the worst of this size
    for a, penalty in zip(lengths, told, strict=True):
        left = weight_decay * np.eye(3) - a**2 * (U @ U.T + shift) / lam
        B = a * (pulled + wrong)
        assert np.vdot(B, np.linalg.solve(left, B)) / 2 <= penalty * (1 + 1e-12)
    assert lengths[0] == 1
    assert dual.certificate <= 1 - np.linalg.norm(U @ U.T + shift, 2) / (lam * weight_decay) + 1e-12


@given(problems.seeds)
@settings(max_examples=30, deadline=None)
def test_the_upper_bound_allows_for_inexact_means(seed):
    X, y = problems.features(seed, N=20, D=4, K=3)
    X[:, 2:] = 1e3  # an offset that cancels in the logits
    rng, how = np.random.default_rng(seed), {"lam": 0.1, "weight_decay": 0.005}
    W, V, T = (rng.normal(size=shape) for shape in ((3, 4), (3, 4), (3, 3)))
    W[:, 3] = -W[:, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "ROUNDING", 1e-6)
        data = Source.of(checked(X, y)).data
        rest = W @ data.mean.T - data.target - W @ W.T @ T / how["lam"]
        wrong = data.error * data.size * np.sign(rest.T @ W) / math.sqrt(len(X))
        moved = replace(data, mean=data.mean + wrong)
        value, upper = squared_upper(data, W, V, T, **how)
        known = squared_upper(moved, W, V, T, **how)[0]
    assert value < known <= upper


def entropy(seed):
    X, y, lam, weight_decay, _ = instance(seed)
    how = {"lam": lam, "weight_decay": weight_decay, "loss": "ce"}
    found, other = quiet(X, y, **how, restarts=1), quiet(X, y, **how, restarts=2, seed=1)

    def value(one):
        return twins.exact_entropy(one.W, one.features(), X, y, lam, weight_decay)

    at, least = value(found), min(value(found), value(other))
    told = float((at - least) / at)
    assert told <= found.gap, (seed, found.proven)
    assert abs(float(at) - found.objective) <= found.gap * float(at), (seed, found.proven)
    if proven := found.proven.startswith("global minimum"):
        assert told <= 1e-9, (seed, found.proven)
    return proven


def test_nothing_is_proven_of_cross_entropy_that_is_false():
    assert sum(entropy(seed) for seed in range(105, 109)) >= 1


@pytest.mark.slow
def test_nothing_is_proven_of_cross_entropy_that_is_false_of_many():
    assert sum(entropy(seed) for seed in range(200, 700)) >= 150


@pytest.mark.parametrize("lam", [1e-6, 1e-4, 5e-3, 1e-1, 10.0])
def test_cross_entropy_on_the_toy_data_is_proven_from_one_start(lam):
    X, y = toy()
    found = solve(X, y, lam=lam, loss="ce")
    assert found.starts == 1
    assert 0 < found.gap < 1e-11
    U = torch.softmax(found.features() @ found.W.mT, 1) - torch.eye(4, dtype=torch.float64)[y]
    top = float(torch.linalg.matrix_norm(U / len(X), 2)) ** 2
    assert found.certificate == pytest.approx(1 - top / (lam * 0.005), rel=1e-9)
    assert found.proven == f"global minimum to a relative 1e-09 (certificate {found.certificate:+.2g})"


@given(problems.seeds, st.floats(-3, 1).map(lambda p: 10**p))
@settings(max_examples=20, deadline=None)
def test_cross_entropy_is_bounded_anywhere(seed, lam):
    X, y = problems.features(seed, N=12, D=3, K=3)
    best = quiet(X, y, lam=lam, loss="ce", restarts=1)
    W, H = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 3), (12, 3)))
    how = {"lam": lam, "weight_decay": 0.005}
    upper, lower, _ = entropy_bounds(X.numpy(), y.numpy(), W.numpy(), H.numpy(), **how)
    loss = torch.nn.functional.cross_entropy(H @ W.mT, y)
    value = loss + 0.0025 * W.square().sum() + lam / 2 * (H - X).square().sum()
    assert float(value) == pytest.approx(upper, rel=1e-10)
    assert 0 <= lower <= best.objective * (1 + 1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e6, 1e8])
def test_a_proof_of_cross_entropy_is_of_the_centred_data_as_they_are_solved(offset):
    X, y = problems.features(3, N=12, D=4, K=3, spread=0.3)
    X = X + offset
    found = quiet(X, y, lam=0.3, weight_decay=0.1, loss="ce", centre=True)
    own = quiet(X - X.mean(0), y, lam=0.3, weight_decay=0.1, loss="ce")
    assert (found.gap, found.certificate, found.proven) == (own.gap, own.certificate, own.proven)
    assert found.starts == 1
    assert found.proven.startswith("global minimum to a relative 1e-09"), "the search ended on that"
    assert float(
        twins.exact_entropy(found.W, found.features(), X - X.mean(0), y, 0.3, 0.1)
    ) == pytest.approx(found.objective, rel=1e-11)


def test_features_turned_towards_the_data_leave_spurious_minima():
    rng = np.random.default_rng(3)
    y = torch.arange(4).repeat_interleave(2)
    X = torch.from_numpy(rng.normal(size=(4, 2))[y.numpy()] + 0.2 * rng.normal(size=(8, 2)))
    with pytest.warns(SpuriousMinimaWarning, match="starts that end in different minima"):
        found = solve(X, y, lam=5e-3, weight_decay=8e-3, loss="ce")
    assert found.objective == pytest.approx(0.13035176124870207, rel=1e-9)  # of 60 starts without
    assert found.spread > 1e-3
    assert f"best of 5 starts, which disagree: spread {found.spread:.1e}" in found.proven


def test_large_features_do_not_hide_the_decay_of_the_first_start():
    X, y = problems.features(0, N=9, D=3, K=3)
    X[:, 2] *= 1e8
    found = quiet(X + 1e8, y, lam=1.0, weight_decay=1e-8, loss="ce", restarts=0)
    assert math.isfinite(found.objective)


def test_a_spread_is_told_whatever_is_proven():
    known = {"certificate": 0.5, "gradient_norm": 1e-9, "residue": 1e-9, "starts": 3}
    for gap, start in (
        (1e-12, "global minimum to a relative 1e-09 (certificate +0.5; best of 3 starts"),
        (1e-3, "within a relative 1.0e-03 of the global minimum (certificate +0.5; best of 3 starts"),
        (0.9, "stationary point; not certified: certificate +0.5, gap 0.9, best of 3 starts"),
    ):
        assert Proof(gap=gap, spread=0.1, **known).words.startswith(f"{start}, which disagree: spread")
        assert "disagree" not in Proof(gap=gap, spread=1e-9, **known).words
    far = Proof(gap=0.9, spread=0.1, **{**known, "residue": 1.0}).words
    assert far.startswith(
        "not converged: gradient norm 1.0e-09; certificate +0.5, best of 3 starts, which"
    )
