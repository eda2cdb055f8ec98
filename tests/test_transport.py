"""Optimal transport: exact results and certificates against brute force, POT, laws and known answers."""

import inspect
import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from pfc.files import write_json
from pfc.schema import rounded
from pfc.theory.transport import Gelbrich, SemiDiscrete, gap, restored, verdict
from pfc.theory.transport import clouds as reading
from pfc.theory.transport import cycles as cycling
from pfc.theory.transport import exact as assigning
from pfc.theory.transport import gelbrich as bounding
from pfc.theory.transport import semidiscrete as solving
from pfc.theory.transport.clouds import Clouds, ratio, times
from tests import problems
from tests.oracles import weights

F64 = torch.float64


@pytest.fixture(scope="module")
def emd2():
    """POT's transport cost, the oracle; what it says while it is imported is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot
    return lambda p, q, C: float(ot.emd2(p, q, C, numItermax=10**6))


def pair(seed, N=12, D=3, K=3, noise=1.0):
    """Labelled features and what a crude network makes of them."""
    A, y = problems.features(seed, N=N, D=D, K=K)
    g = torch.Generator().manual_seed(seed + 1)
    return A + 2, A.relu() + noise * torch.randn(N, D, generator=g, dtype=F64) - 5, y


def quick(start, end, y=None, **options):
    return gap(start, end, y, progress=False, **options)


def squares(A, B):
    """All squared distances, one by one."""
    return np.array([[((a - b) ** 2).sum() for b in np.asarray(B)] for a in np.asarray(A)])


def centred(x, w):
    x = np.asarray(x, np.float64)
    return x - w @ x


def naive_gelbrich(A, B, w):
    """By matrix roots, as Gelbrich wrote it, of centred clouds."""
    S, T = ((x * w[:, None]).T @ x for x in (A, B))
    root = np.real(sqrtm(S))
    return np.trace(S) + np.trace(T) - 2 * np.real(np.trace(sqrtm(root @ T @ root)))


def positive(D, seed):
    """A random positive definite matrix."""
    Q = problems.orthogonal(D, seed)
    return Q * torch.linspace(0.1, 2, D, dtype=F64) @ Q.mT


# --- exact


@pytest.mark.parametrize("noise", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("N", [3, 70, 150])  # in one block of rows and in several
def test_partners_are_those_of_a_plain_assignment(N, noise):
    A, B, _ = pair(N, N=N, D=5, noise=noise)
    A, B = A - A.mean(0), B - B.mean(0)
    G = A @ B.mT
    want = linear_sum_assignment(G.numpy(), maximize=True)[1]
    found = assigning._partners(G, A.norm(dim=1), B.norm(dim=1), 5)
    assert found.tolist() == want.tolist()


def test_nothing_gains_where_no_cycle_does():
    three = np.array([[0, 0.1, -9], [-9, 0, 0.1], [0.1, -9, 0]])  # only all of them together
    assert not assigning._nothing_gains(three)
    assert not assigning._some_pair_gains(three, np.diagonal(three))
    assert assigning._nothing_gains(three + 0.2 * np.eye(3))
    A, _, _ = pair(0, N=200, D=4)
    A -= A.mean(0)
    assert assigning._nothing_gains((A @ A.mT).numpy()), "a scaling is a gradient"
    assert assigning._some_pair_gains(-(A @ A.mT).numpy(), -A.square().sum(1).numpy())
    C = assigning._reduced((A @ A.mT).numpy())
    assert C.min(0).tolist() == C.min(1).tolist() == [0.0] * 200


@pytest.mark.parametrize("pair", [(3, 7), (3, 140), (70, 100), (64, 128), (140, 145)])
def test_any_pair_that_gains_is_seen(pair):
    """Within a block of rows, across blocks, and in the last."""
    G = np.eye(150)
    G[pair] = G[pair[::-1]] = 1
    assert not assigning._some_pair_gains(G, np.diagonal(G)), "an even exchange gains nothing"
    G[pair] += 1e-12
    assert assigning._some_pair_gains(G, np.diagonal(G))


def test_o10_known_answer():
    found = quick(torch.tensor([[0.0], [1]]), torch.tensor([[3.0], [1]]))
    shift = found.shift**2  # the known 4.5 and 2.5 hold it still
    assert found.shift == 1.5
    assert (found.cost, found.w2, found.gap, found.ratio) == (4.5 - shift, 2.5 - shift, 2, 9)
    assert found.exact.moved == 1
    assert found.bounds == (0.25, 0.25)


@given(problems.seeds)
@settings(max_examples=30, deadline=None)
def test_exact_equals_all_permutations(seed):
    N = 2 + seed % 6
    A, B, _ = pair(seed, N=N, D=1 + seed % 4, K=2)
    found = quick(A, B, certificates=False)
    C = squares(centred(A, np.full(N, 1 / N)), centred(B, np.full(N, 1 / N)))
    best = min(itertools.permutations(range(N)), key=lambda p: C[range(N), p].mean())
    assert found.cost == pytest.approx(C.diagonal().mean(), rel=1e-12)
    assert found.w2 == pytest.approx(C[range(N), best].mean(), rel=1e-12)
    assert found.gap == pytest.approx(found.cost - found.w2, abs=1e-12)
    assert found.ratio == pytest.approx(found.cost / found.w2, rel=1e-12)
    assert found.exact.moved == pytest.approx(np.mean(np.arange(N) != best))


@given(problems.seeds)
@settings(max_examples=12, deadline=None)
def test_cost_w2_and_gelbrich_are_in_order_weighted_or_not(emd2, seed):
    A, B, y = pair(seed, N=30, D=1 + seed % 40)
    for weighting in ("class", "sample"):
        w = weights(y, weighting)
        found = quick(A, B, y, weighting=weighting)
        W2 = emd2(w, w, squares(centred(A, w), centred(B, w)))
        assert found.cost >= W2 * (1 - 1e-12)
        assert found.gelbrich.bound <= W2 * (1 + 1e-12)
        assert found.bounds[0] <= W2 * (1 + 1e-12)
        assert found.cost / W2 <= found.gelbrich.ratio * (1 + 1e-12)
        if weighting == "sample":
            assert found.w2 == pytest.approx(W2, rel=1e-10)


@given(problems.seeds)
@settings(max_examples=8, deadline=None)
def test_invariances(seed):
    A, B, y = pair(seed, N=30, D=4)
    Q = problems.orthogonal(4, seed)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    shift = torch.tensor([10.0, -20, 30, 0])
    changes = {
        1.0: (A + shift, B - 3 * shift, y),
        1.0 + 1e-15: (A @ Q, B @ Q, y),
        1.0 - 1e-15: (A[order], B[order], y[order]),
        9.0: (3 * A, 3 * B, y),
    }
    before = quick(A, B, y)
    for factor, (start, end, labels) in changes.items():
        after = quick(start, end, labels)
        for name in ("cost", "w2", "gap"):
            expected = factor * getattr(before, name)
            assert getattr(after, name) == pytest.approx(expected, rel=1e-10, abs=1e-10)
        assert after.gelbrich.bound == pytest.approx(factor * before.gelbrich.bound, rel=1e-9)
        assert after.atoms.cost == pytest.approx(factor * before.atoms.cost, rel=1e-10)
        assert after.atoms.bound == pytest.approx(factor * before.atoms.bound, rel=1e-9)


GRADIENTS = {
    "identity": lambda x, seed: x,
    "linear": lambda x, seed: x + x @ positive(x.shape[1], seed),
    "rank one": lambda x, seed: x[:, :1] * torch.eye(x.shape[1], dtype=F64)[0],
    "softmax": lambda x, seed: x.softmax(1),
    "relu": lambda x, seed: x.relu(),
    "constant": lambda x, seed: torch.ones_like(x),
}


@pytest.mark.parametrize("name", GRADIENTS)
@given(problems.seeds)
@settings(max_examples=5, deadline=None)
def test_gradients_of_convex_functions_are_optimal(name, seed):
    A, _ = problems.features(seed, N=60, D=5)
    A = torch.cat([A, A[:20]])  # doubles, whose partners may be exchanged for nothing
    found = quick(A, GRADIENTS[name](A, seed))
    assert found.gap == 0
    assert found.exact.moved == 0
    assert (found.ratio == 1) if found.cost else math.isnan(found.ratio)
    assert [c.negative for c in found.cycles] == [0, 0, 0, 0]
    assert all(s.gap == 0 and s.error == 0 for s in found.subsets)


def skew(D, seed):
    """A matrix S with <x, S x> = 0."""
    S = positive(D, seed) @ problems.orthogonal(D, seed + 1)
    return S - S.mT


def test_exchanges_that_gain_only_rounding_are_none():
    for seed in range(40):
        A, _ = problems.features(seed, N=2, D=4, K=2)
        tie = quick(A, A @ skew(4, seed), certificates=False)
        assert (tie.gap, tie.ratio, tie.exact.moved) == (0, 1, 0)
        crossing = quick(A, A @ skew(4, seed) - 1e-11 * A, certificates=False)
        assert crossing.exact.moved == 1


def test_a_rearranged_cloud_costs_infinitely_more_than_nothing():
    A = torch.arange(4.0)[:, None]
    found = quick(A, A.flip(0))
    assert (found.w2, found.ratio, found.exact.moved) == (0, math.inf, 1)
    assert found.to_dict()["exact"]["ratio"] == math.inf


@pytest.mark.parametrize("size", [1e-17, 1e-60, 1e-130])
def test_a_gap_far_below_the_cost_is_no_optimal_map(size):
    A = torch.tensor([[0.0], [1], [3]], dtype=F64)
    found = quick(size * A, 2 - A, certificates=False)
    assert found.gap == pytest.approx(size * 6, rel=1e-12, abs=0)
    assert "optimal transport map" not in str(found)
    assert f"costs 1 + {found.gap / found.w2:.1e} times the optimal transport" in str(found)


@pytest.mark.parametrize("size", [1e-200, 1e160])
def test_a_cloud_whose_squares_leave_float64_is_refused(size):
    A, B, _ = pair(2, N=6, D=3)
    with pytest.raises(ValueError, match=r"^start has features of 1e.* at most: float64 cannot"):
        quick(size * (A / A.abs().max()), B)
    far = torch.cat([torch.ones(6, 1, dtype=F64), 1e-200 * A], 1)
    with pytest.raises(ValueError, match=r"^end has differences of .*e-200 at most: float64 cannot"):
        quick(torch.cat([A, B[:, :1]], 1), far)


def test_near_doubles_whose_squares_underflow_prove_nothing():
    A = torch.tensor([[1.0, 0, 0], [1, 1e-170, 1e-170], [1, 3e-170, -1e-170], [0, 0, 0]], dtype=F64)
    B, _, _ = pair(5, N=4, D=3)
    cycles = torch.tensor([[0, 1, 2], [1, 2, 0], [0, 2, 1]])
    sums, rounding = cycling.cycle_sums(Clouds.of(A, B, None, "sample"), cycles)
    assert (rounding > 0).all()
    assert (rounding < 1e-13 * sums.abs()).all()


def test_bounds_are_rounded_outwards():
    assert [rounded(1.23456, 4, up=up) for up in (False, True)] == ["1.234", "1.235"]
    assert [rounded(99.96, 2, up=up) for up in (False, True)] == ["99", "100"]
    assert (rounded(10.0, 4, up=True), rounded(math.inf, 4, up=True)) == ("10", "inf")
    assert times(1.18041, up=True) == "1.181 times"
    assert times(1 + 2.01e-6, up=True) == "1 + 2.1e-06 times"
    bound = Gelbrich(1.56097, 1.18046, None)
    assert "W2^2 is at least 1.56, the map costs at most 1.181 times" in str(bound)
    part = SemiDiscrete(1.0, 0.8, 1.25001, optimal=False, other=3, potential=(0.0, 1.0))
    assert "costs at most 1.251 times" in str(part)
    assert "costs 1.25 times" in str(replace(part, optimal=True))


def test_the_rate_of_negative_cycles_is_printed_as_a_number():
    A = torch.tensor([[0.0], [1], [3]])
    told = str(quick(A, -A).cycles[0])
    assert told.endswith("of all, 99 to 100 % are (sampled, 95 %).")


def test_the_ratio_of_a_cost():
    assert (ratio(3.0, 2.0), ratio(1.0, 0.0)) == (1.5, math.inf)
    assert math.isnan(ratio(0.0, 0.0))
    assert (times(1.0), times(1.32456), times(1 + 2e-6)) == (
        "1 times",
        "1.325 times",
        "1 + 2.0e-06 times",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_float_type_is_summed_in_float64(dtype):
    A, B, y = (x.to(dtype) if x.is_floating_point() else x for x in pair(3, N=40))
    assert quick(A, B, y) == quick(A.double(), B.double(), y)


def test_blocks_do_not_matter(monkeypatch):
    A, B, y = pair(5, N=40, D=6)
    for start, end in ((A, B), (A.repeat(1, 9), B.repeat(1, 9))):
        whole = quick(start, end, y, weighting="class")
        monkeypatch.setattr(reading, "BLOCK", 85)
        monkeypatch.setattr(cycling, "BLOCK", 9999)
        parts = quick(start, end, y, weighting="class")
        monkeypatch.undo()
        assert parts.cost == pytest.approx(whole.cost, rel=1e-13)
        assert parts.exact.w2 == pytest.approx(whole.exact.w2, rel=1e-12)
        assert parts.gelbrich.bound == pytest.approx(whole.gelbrich.bound, rel=1e-11)
        assert parts.atoms.bound == pytest.approx(whole.atoms.bound, rel=1e-11)
        assert parts.cycles == whole.cycles


# --- subsets


def test_the_whole_set_is_assigned_if_it_may():
    A, B, y = pair(1, N=12)
    even = torch.arange(12) % 3
    assert not quick(A, B, exact=12).exact.sampled
    assert not quick(A, B, even, weighting="class").exact.sampled
    assert quick(A, B, exact=11).exact.samples == 11
    assert quick(A, B, even, weighting="class", exact=11).exact.samples == 9
    assert quick(A, B, y, weighting="class").exact.samples == 3 * int(y.bincount().min())
    assert quick(A, B, exact=11).exact.of == 12


def test_a_subset_is_never_passed_off_as_the_whole():
    A, B, _ = pair(1, N=12)
    found = quick(A, B, exact=10)
    assert all(math.isnan(x) for x in (found.w2, found.gap, found.ratio))
    assert found.bounds == (found.gelbrich.bound, found.cost)
    assert found.exact.gap == pytest.approx(found.exact.cost - found.exact.w2)
    assert "sampled, 10 of 12 samples" in str(found)


def test_subsets_by_class_are_balanced():
    A, B, y = pair(2, N=60, K=4)
    cloud = Clouds.of(A, B, y * 10, "class")
    chosen = cloud.subset(22, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == len(chosen)
    assert y[chosen].bincount().tolist() == [min(5, int(y.bincount().min()))] * 4
    free = Clouds.of(A, B, y, "sample").subset(22, np.random.default_rng(0))
    assert len(set(free.tolist())) == 22


@given(problems.seeds)
@settings(max_examples=8, deadline=None)
def test_the_expected_gap_of_subsets_never_falls_with_their_size(seed):
    A, B, _ = pair(seed, N=7, D=2, K=2)
    cloud = Clouds.of(A, B, None, "sample")
    mean = [
        np.mean([
            assigning.assign(cloud, torch.tensor(s)).gap for s in itertools.combinations(range(7), size)
        ])
        for size in range(1, 8)
    ]
    assert mean[0] == 0
    assert (np.diff(mean) >= -1e-12).all()
    assert mean[-1] == pytest.approx(quick(A, B).gap, abs=1e-12)


@given(problems.seeds)
@settings(max_examples=8, deadline=None)
def test_the_expected_gap_of_balanced_subsets_is_at_most_the_weighted_gap(emd2, seed):
    A, B, y = pair(seed, N=9, D=2, K=3)
    cloud = Clouds.of(A, B, y, "class")
    w = cloud.w.numpy()
    whole = cloud.cost() - emd2(w, w, squares(centred(A, w), centred(B, w)))
    groups = [np.flatnonzero(y == k) for k in range(3)]
    found = [assigning.assign(cloud, torch.tensor(s)) for s in itertools.product(*groups)]
    assert np.mean([exact.cost for exact in found]) == pytest.approx(cloud.cost(), rel=1e-12)
    assert np.mean([exact.gap for exact in found]) <= whole + 1e-12


def test_subsets_of_one_size():
    A, B, y = pair(4, N=120, D=3)
    cloud = Clouds.of(A, B, y, "sample")
    found = assigning.draw_subsets(cloud, 50, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    gaps = [assigning.assign(cloud, cloud.subset(50, rng)).gap for _ in range(8)]
    assert (found.size, found.draws) == (50, 8)
    assert found.gap == pytest.approx(np.mean(gaps))
    assert found.error == pytest.approx(np.std(gaps, ddof=1) / np.sqrt(8))
    assert len(set(gaps)) == 8


def test_sizes_of_subsets_double_below_the_exact_part():
    A, B, y = torch.zeros(900, 1), torch.zeros(900, 1), torch.arange(900) % 60
    by_sample, by_class = (Clouds.of(A, B, y, w) for w in ("sample", "class"))
    assert assigning.subset_sizes(by_sample, 2000) == [50, 100, 200, 400, 800]
    assert assigning.subset_sizes(by_sample, 400) == [50, 100, 200]
    assert assigning.subset_sizes(by_class, 2000) == [100, 200, 400, 800]
    uneven = Clouds.of(A, B, (torch.arange(900) < 30).long(), "class")
    assert assigning.subset_sizes(uneven, 2000) == [50]


def test_chance_is_seeded():
    A, B, y = pair(6, N=120)
    one, same, other = (quick(A, B, y, exact=60, seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.exact != other.exact
    assert one.cycles != other.cycles
    assert (one.gelbrich, one.atoms) == (other.gelbrich, other.atoms)


# --- Gelbrich


@pytest.mark.parametrize(("N", "D"), [(40, 6), (6, 40), (20, 20), (21, 20)])
@pytest.mark.parametrize("weighting", ["sample", "class"])
def test_gelbrich_equals_matrix_roots_and_is_tight_for_positive_affine_maps(N, D, weighting):
    A, B, y = pair(7, N=N, D=D)
    w = weights(y, weighting)
    found = quick(A, B, y, weighting=weighting).gelbrich
    naive = naive_gelbrich(centred(A, w), centred(B, w), w)
    assert found.bound == pytest.approx(naive, rel=1e-6 if N <= D else 1e-10)  # roots of singular ones
    assert found.projected is None
    tight = quick(A, A @ positive(D, 3) + 7, y, weighting=weighting)
    assert tight.gelbrich.bound == pytest.approx(tight.cost, rel=1e-12)
    assert tight.gelbrich.ratio == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("D", [5, 40])
def test_gelbrich_never_exceeds_the_cost(D):
    for seed in range(20):
        A, y = problems.features(seed, N=20, D=D)
        cloud = Clouds.of(A, A @ positive(D, seed), y, "class")
        found = bounding.gelbrich(cloud, cloud.cost(), 4096, np.random.default_rng(0))
        assert found.bound <= cloud.cost()
        assert found.ratio >= 1


@pytest.mark.parametrize("D", [5, 80])
def test_gelbrich_keeps_its_digits_where_the_traces_cancel(D):
    A, _ = problems.features(8, N=60, D=D)
    A[:, 0] *= 1e-7
    A[:, 1] = A[:, 2]
    S = positive(D, 4)
    found = quick(A, A + 1e-4 * A @ S)
    assert found.gelbrich.bound == pytest.approx(found.cost, rel=1e-10)
    B = A.clone()
    B[:, 0] = 1e-7  # a direction that only the start has, of 1e-14 of the variance
    assert quick(A, B).gelbrich.bound == pytest.approx(1e-14 * quick(A * 1e7, B * 1e7).cost, rel=1e-6)


@given(problems.seeds)
@settings(max_examples=15, deadline=None)
def test_a_projection_gives_a_lower_bound_still(seed):
    A, B, y = pair(seed, N=40, D=12)
    cloud = Clouds.of(A, B, y, "class")
    rng = np.random.default_rng(seed)
    whole = bounding.gelbrich(cloud, cloud.cost(), 4096, rng)
    for directions in (1, 5, 11):
        found = bounding.gelbrich(cloud, cloud.cost(), directions, rng)
        assert found.projected == directions
        assert 0 <= found.bound <= whole.bound * (1 + 1e-12)
        assert found.ratio >= whole.ratio * (1 - 1e-12)
    assert bounding.gelbrich(cloud, cloud.cost(), 12, rng) == whole
    assert quick(A[:11], B[:11], exact=0, directions=11).gelbrich.projected is None
    assert quick(A, B, exact=0, directions=11).gelbrich.projected == 11


def test_a_projection_is_the_bound_of_the_projected_clouds():
    A, B, y = pair(9, N=40, D=12)
    cloud, w = Clouds.of(A, B, y, "class"), weights(y, "class")
    basis = bounding._basis(cloud, 5, np.random.default_rng(0)).numpy()
    assert basis.T @ basis == pytest.approx(np.eye(5), abs=1e-14)
    found = bounding.gelbrich(cloud, cloud.cost(), 5, np.random.default_rng(0))
    naive = naive_gelbrich(centred(A, w) @ basis, centred(B, w) @ basis, w)
    assert found.bound == pytest.approx(naive, rel=1e-10)


# --- pairs and cycles


def naive_cycle(A, B, cycle):
    return sum(A[i] @ (B[i] - B[j]) for i, j in zip(cycle, [*cycle[1:], cycle[0]], strict=True))


@given(problems.seeds)
@settings(max_examples=10, deadline=None)
def test_cycles_equal_a_loop(seed):
    A, B, y = pair(seed, N=15, D=3)
    cloud = Clouds.of(A, B, y, "class")
    for length in (2, 3, 5, 10):
        found = cycling.draw_cycles(cloud, length, np.random.default_rng(seed), drawn=60)
        drawn = cycling._distinct(cloud.w, length, 60, np.random.default_rng(seed))
        assert all(len(set(cycle)) == length for cycle in drawn.tolist())
        values = [naive_cycle(A.numpy(), B.numpy(), cycle) for cycle in drawn.tolist()]
        assert found.negative == sum(v < -1e-12 for v in values)
        assert found.rate == found.negative / 60
        if found.negative:
            assert found.value == pytest.approx(min(values), rel=1e-9)
            assert naive_cycle(A.numpy(), B.numpy(), found.witness) == pytest.approx(found.value)
            i, j = found.witness[:2]
            if length == 2:
                assert (A[i] - A[j]) @ (B[i] - B[j]) == pytest.approx(found.value)
        else:
            assert found.witness == ()
            assert math.isnan(found.value)


def test_a_negative_cycle_proves_that_an_exchange_is_cheaper():
    A, B, _ = pair(3, N=30)
    for cycle in quick(A, B).cycles:
        assert cycle.negative
        i, j = list(cycle.witness), [*cycle.witness[1:], cycle.witness[0]]
        saved = (A[i] - B[i]).square().sum() - (A[i] - B[j]).square().sum()
        assert saved == pytest.approx(-2 * cycle.value)
        assert saved > 0


def test_cycles_are_drawn_by_weight():
    w = torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=F64)
    drawn = cycling._distinct(w, 2, 200_000, np.random.default_rng(0)).numpy()
    first = np.bincount(drawn[:, 0]) / len(drawn)
    assert first == pytest.approx(w.numpy(), abs=0.01)
    after_0 = np.bincount(drawn[drawn[:, 0] == 0, 1], minlength=4) / (drawn[:, 0] == 0).sum()
    assert after_0 == pytest.approx([0, 0.2, 0.2, 0.6], abs=0.01)
    all_four = cycling._distinct(w, 4, 100, np.random.default_rng(0))
    assert all_four.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 100


def test_lengths_that_the_samples_allow():
    A, B, _ = pair(3, N=12)
    assert [c.length for c in quick(A, B).cycles] == [2, 3, 5, 10]
    assert [c.length for c in quick(A[:4], B[:4]).cycles] == [2, 3]
    assert [c.length for c in quick(A[:5], B[:5]).cycles] == [2, 3, 5]


@pytest.mark.parametrize(("x", "m"), [(1, 10), (7, 10_000), (10, 10), (0, 50), (500, 1000)])
def test_intervals_are_clopper_and_pearsons(x, m):
    low, high, upper = cycling._clopper_pearson(x, m)
    two = binomtest(x, m).proportion_ci(0.95, "exact")
    one = binomtest(x, m, alternative="less").proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((two.low, two.high), rel=1e-9, abs=1e-12)
    if x:
        assert upper == pytest.approx(one.high, rel=1e-9)
    else:
        assert one.high <= upper == 3 / m
    assert cycling._clopper_pearson(0, 2)[2] == 1


def test_rounding_is_not_counted():
    A, _ = problems.features(1, N=50, D=4)
    B = A @ skew(4, 1)  # every pair is zero, up to rounding
    drawn = cycling._distinct(torch.full((50,), 0.02, dtype=F64), 2, 1000, np.random.default_rng(0))
    sums, rounding = cycling.cycle_sums(Clouds.of(A, B, None, "sample"), drawn)
    assert (sums < 0).any()
    assert (sums.abs() < rounding).all()
    assert quick(A, B).cycles[0].negative == 0
    assert quick(A, B - 1e-12 * A).cycles[0].negative == 10_000


def test_the_bound_of_rounding_is_the_worst_case():
    A, B, _ = pair(2, N=6, D=3)
    cycles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    _, rounding = cycling.cycle_sums(Clouds.of(A, B, None, "sample"), cycles)
    eps = 2.0**-52
    for cycle, found in zip(cycles.tolist(), rounding.tolist(), strict=True):
        i, j = cycle, [*cycle[1:], cycle[0]]
        scale = ((A[i] - A[i[0]]).norm(dim=1) * (B[i] - B[j]).norm(dim=1)).sum()
        assert found == pytest.approx((3 * 3 + 4) * eps * float(scale), abs=0)


def test_the_mean_of_all_pairs_is_twice_the_covariance():
    A, B, y = pair(11, N=20, K=4)
    means = torch.stack([B[y == k].mean(0) for k in range(4)])[y]
    pairs = torch.tensor([(i, j) for i in range(20) for j in range(20) if i != j])
    sums, _ = cycling.cycle_sums(Clouds.of(A, means, None, "sample"), pairs)
    b01 = ((A - A.mean(0)) * (means - means.mean(0))).sum(1).mean()
    assert float(sums.sum()) / 400 == pytest.approx(float(2 * b01), rel=1e-12)


# --- class means


def to_means(A, B, y, weighting):
    """Centred start, class means of the centred end, and their weights, for the oracle."""
    w = weights(y, weighting)
    A, B = centred(A, w), centred(B, w)
    present = np.unique(y)
    M = np.stack([B[y == k].mean(0) for k in present])
    return A, M, w, np.array([w[y == k].sum() for k in present])


def cost_to_means(A, M, w, y):
    return sum(wi * ((a - M[k]) ** 2).sum() for a, k, wi in zip(A, y, w, strict=True))


@given(problems.seeds)
@settings(max_examples=25, deadline=None)
def test_class_means_equal_pot(emd2, seed):
    K = 2 + seed % 4
    start, end, y = pair(seed, N=60, D=1 + seed % 5, K=K)
    for weighting in ("class", "sample"):
        found = quick(start, end, 3 * y + 1, weighting=weighting, exact=0).atoms
        A, M, w, pi = to_means(start, end, y.numpy(), weighting)
        C = squares(A, M)
        W2 = emd2(w, pi, C)
        v = np.array(found.potential)
        assert found.optimal
        assert found.cost == pytest.approx(cost_to_means(A, M, w, y.tolist()), rel=1e-12)
        assert found.bound == pytest.approx(W2, rel=1e-9, abs=1e-12)
        assert found.bound == pytest.approx(w @ (C - v).min(1) + pi @ v, rel=1e-11, abs=1e-12)
        assert found.ratio == pytest.approx(found.cost / found.bound, rel=1e-12)
        nearer = (C - v)[np.arange(60), y] - (C - v).min(1) > 1e-9
        assert found.other == nearer.sum()


def test_many_samples_to_class_means(emd2, monkeypatch):
    start, end, y = pair(12, N=3000, D=4, K=5)
    A, M, w, pi = to_means(start, end, y.numpy(), "sample")
    W2 = emd2(w, pi, squares(A, M))
    found = quick(start, end, y, exact=0).atoms
    assert found.optimal
    assert found.bound == pytest.approx(W2, rel=1e-9)
    monkeypatch.setattr(solving, "UNSURE", 1)
    monkeypatch.setattr(solving, "ROUNDS", 10)
    found = quick(start, end, y, exact=0).atoms
    assert found.optimal
    assert found.bound == pytest.approx(W2, rel=1e-9)
    monkeypatch.setattr(solving, "MANY", 4)
    found = quick(start, end, y, exact=0).atoms
    assert not found.optimal
    assert W2 * (1 - 1e-3) < found.bound <= W2 * (1 + 1e-12)
    assert "costs at most" in str(found)


def test_a_program_that_may_move_too_little_does_not_claim_to_be_best(emd2, monkeypatch):
    start, end, y = pair(12, N=3000, D=4, K=5)
    A, M, w, pi = to_means(start, end, y.numpy(), "sample")
    W2 = emd2(w, pi, squares(A, M))
    monkeypatch.setattr(solving, "_smooth", lambda c, w, pi: np.zeros(len(pi)))
    bounds = []
    for rounds in (0, 1, 2, 20):
        monkeypatch.setattr(solving, "UNSURE", 1)
        monkeypatch.setattr(solving, "ROUNDS", rounds)
        found = quick(start, end, y, exact=0).atoms
        bounds.append(found.bound)
        assert found.optimal == (found.bound > W2 * (1 - 1e-9))
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] < bounds[-1] == pytest.approx(W2, rel=1e-9)


def test_labels_that_are_optimal():
    M = 10 * problems.simplex(4, 6)
    y = torch.arange(40) % 4
    A = M[y] + 0.1 * problems.features(1, N=40, D=6)[0]
    found = quick(A, M[y] * 2, y).atoms
    assert (found.ratio, found.other, found.optimal) == (1, 0, True)
    assert found.bound == found.cost > 0
    still = quick(0 * A, 0 * A, y).atoms
    assert (still.cost, still.bound) == (0, 0)
    assert math.isnan(still.ratio)


def test_labels_that_are_swapped_cost_all():
    M = problems.simplex(3, 3)
    y = torch.arange(30) % 3
    found = quick(M[(y + 1) % 3], M[y], y).atoms
    assert found.cost == pytest.approx(2)
    assert found.bound == pytest.approx(0, abs=1e-12)
    assert found.other >= 20  # the potential may leave one class on the edge of its cell


def test_without_labels_or_classes_there_are_no_class_means():
    A, B, y = pair(1)
    assert quick(A, B).atoms is None
    assert quick(A, B, torch.zeros_like(y)).atoms is None


# --- what is said


def test_what_is_left_out():
    A, B, y = pair(1, N=120)
    bare = quick(A, B, y, certificates=False, exact=0)
    assert (bare.exact, bare.gelbrich, bare.subsets, bare.cycles, bare.atoms) == (
        None,
        None,
        (),
        (),
        None,
    )
    assert bare.bounds == (0, bare.cost)
    assert str(bare).count("\n") == 0
    without = quick(A, B, y, exact=0)
    assert without.exact is None
    assert without.subsets == ()
    assert quick(A, B, y, certificates=False).exact == quick(A, B, y).exact


def test_sentences_say_what_is_proven_and_what_is_sampled():
    A, B, y = pair(1, N=120)
    text = str(quick(A, B, y, weighting="class", exact=100))
    lines = text.splitlines()
    assert lines[0].startswith(
        "120 samples of 3 features, weighted by class, both clouds centred (their means are "
    )
    assert "(sampled, " in lines[1]
    full = str(quick(A, B, y)).splitlines()
    assert "the optimal transport (exact, all 120 samples); " in full[1]
    assert "samples (sampled; in expectation it never falls with the size" in full[2]
    assert full[3].startswith("Proven by the covariances of the whole set (Gelbrich bound): W2^2 is at")
    assert "random pairs are negative: not optimal, proven by samples " in full[4]
    assert "random cycles of 10 " in full[7]
    assert full[8].startswith("Proven by duality, on the whole set: sending the samples to their class")
    projected = str(quick(A, B, directions=2).gelbrich)
    assert "(Gelbrich bound of a projection on 2 directions)" in projected
    best = str(quick(A, 2 * A))
    assert "The network's map is an optimal transport map (exact, all 120 samples)." in best
    assert "Of 16 random subsets of 50 to 100 samples none has a gap (sampled)." in best
    assert "None of 10,000 random cycles of 2, 3, 5 or 10 samples is negative: of each length" in best
    assert "at most 0.03 % of all are (sampled, 95 %)." in best
    still = str(quick(A, A + 1e-300 * A, y))
    assert "nothing is transported" in still
    assert "The map costs nothing, so there is nothing to prove by the covariances." in still
    at_means, two = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])
    assert "The samples stand on their class means already" in str(quick(at_means, at_means, two))
    assert "nan" not in still


def test_what_it_tells_comes_back_through_a_file(tmp_path):
    A, B, y = pair(1, N=120)
    for found in (quick(A, A, y), quick(A, B, y), quick(A, B, exact=0, certificates=False)):
        write_json(tmp_path / "gap.json", found.to_dict())
        again = json.loads((tmp_path / "gap.json").read_text())
        del again["checksum"]
        assert repr(restored(again)) == repr(restored(found.to_dict())) == repr(found)
    assert quick(A, B, y).to_dict()["subsets"][0]["size"] == 50
    with pytest.warns(DeprecationWarning, match=r"Gap\.told is Gap\.to_dict now"):
        told = quick(A, B, y).told()
    assert repr(told) == repr(quick(A, B, y).to_dict())
    for broken in ({}, {**told, "exact": 3}, {**told, "cost": "much"}, {**told, "more": 1}):
        with pytest.raises(ValueError, match="this is no verdict on transport"):
            restored(broken)


def test_progress_tells_every_stage(monkeypatch):
    from contextlib import contextmanager

    told = []

    @contextmanager
    def watching(title, total, *, enabled):
        told.append((title, total, enabled))
        yield lambda done, note="": told.append((done, note))

    monkeypatch.setattr(verdict, "shown", watching)
    gap(*pair(1, N=120))
    notes = ["assignment", "subsets of 50", "subsets of 100"]
    notes += [*(f"cycles of {k}" for k in (2, 3, 5, 10)), "class means", "covariances", ""]
    assert told == [("transport", 9, True), *enumerate(notes)]


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": torch.zeros(12, 4)}, r"of the same samples, got shapes \(12, 3\) and \(12, 4\)"),
        (
            {"start": torch.zeros(12), "end": torch.zeros(12)},
            r"start must be of shape \(N, D\), .* of shape \(12,\)",
        ),
        (
            {"end": torch.zeros(12, 3, dtype=torch.complex64)},
            "end must hold real numbers, got torch.complex64",
        ),
        (
            {"start": torch.zeros(1, 3), "end": torch.zeros(1, 3)},
            r"need at least 2 samples, got start of shape \(1, 3\)",
        ),
        (
            {"start": torch.zeros(9, 0), "end": torch.zeros(9, 0)},
            r"start must be of shape .* at least one number, got .* \(9, 0\)",
        ),
        ({"start": torch.full((12, 3), math.nan)}, "start must be finite, got NaN or infinity"),
        ({"end": torch.full((12, 3), math.inf)}, "end must be finite, got NaN or infinity"),
        (
            {"end": torch.full((12, 3), 1e160, dtype=F64)},
            r"features of 1e\+160 at most: float64 cannot hold",
        ),
        (
            {"y": torch.zeros(11, dtype=torch.int64)},
            "need one label a row of start, got 12 rows and 11 labels",
        ),
        ({"y": torch.zeros(12)}, "labels must be integer class indices .* got torch.float32"),
        (
            {"y": torch.zeros(12, dtype=torch.bool)},
            "labels must be integer class indices .* got torch.bool",
        ),
        ({"y": torch.arange(12) - 1}, "must not be negative, got -1"),
        ({"y": None, "weighting": "class"}, "needs the labels y"),
        ({"y": torch.zeros(12, dtype=torch.int64), "weighting": "class"}, "at least 2 classes, got 1"),
        ({"exact": 5001}, "from 2 to 5,000 samples, got 5001"),
        ({"exact": -1}, "from 2 to 5,000 samples, got -1"),
        ({"exact": 1}, "from 2 to 5,000 samples, got 1"),
        ({"exact": 2, "weighting": "class"}, "one sample of each of 3 classes, got 2"),
        ({"directions": 0}, "directions must be at least 1, got 0"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_bad_input(change, message):
    A, B, y = pair(1)
    given_ = {"start": A, "end": B, "y": y} | change
    with pytest.raises(ValueError, match=message):
        gap(given_.pop("start"), given_.pop("end"), given_.pop("y"), progress=False, **given_)


def test_an_unknown_weighting_is_refused(monkeypatch):
    # the types are checked in tests only, and would refuse it before pfc does
    monkeypatch.setattr(verdict, "class_weights", inspect.unwrap(verdict.class_weights))
    with pytest.raises(ValueError, match="must be 'class' or 'sample', got 'batch'"):
        inspect.unwrap(gap)(*pair(1)[:2], weighting="batch", progress=False)
