"""Exact PFC3 along the straight line, against brute force at many t and for all three ends."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pfc
from pfc.line import ENDS, LineCrossings, StepCurve
from pfc.moments import ClassMoments
from pfc.nearest import NearestMean, project
from pfc.span import MeansSpan
from tests import problems


def crossings(A, B, y, weighting="class", batch=17):
    spans = [MeansSpan.of(ClassMoments.of(H, y), weighting) for H in (A, B)]
    line = LineCrossings(*spans)
    for rows in torch.arange(len(y)).split(batch):
        z_A, z_B = (project(H[rows], s, line.bases) for H, s in zip((A, B), spans, strict=True))
        line.update(z_A, z_B, y[rows])
    return line.curves()


def nearest_frame(M):
    """The frame nearest to the means, on D x K columns."""
    M = M.T
    centre = M.mean(axis=1, keepdims=True)
    U, S, Vt = np.linalg.svd(M - centre, full_matrices=False)
    r = M.shape[1] - 1
    return (centre + S[:r].sum() / r * U[:, :r] @ Vt[:r]).T


def brute(A, B, y, t, end):
    """Features interpolated, end replaced, nearest mean by the definition; ties to the lowest class."""
    A, B, y = (np.asarray(v) for v in (A, B, y))
    K = y.max() + 1
    means = np.stack([B[y == k].mean(axis=0) for k in range(K)])
    if end != "measured":
        B = (nearest_frame(means) if end == "etf" else means)[y]
    H = (1 - t) * A + t * B
    mu = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    return np.mean([((h - mu) ** 2).sum(axis=1).argmin() == k for h, k in zip(H, y, strict=True)])


@given(problems.seeds, st.sampled_from(["class", "sample"]))
@settings(max_examples=50, deadline=None)
def test_curves_equal_brute_force(engine, seed, weighting):
    K, D = 3 + seed % 3, 2 + seed // 3 % 6
    A, y = problems.features(seed, N=40, D=D, K=K, spread=1.0)
    B, _ = problems.features(seed + 1, N=40, D=D, K=K, spread=0.7)
    B = B - B[0] + torch.stack([B[y == k].mean(0) for k in range(K)])[y] + 5
    curves = crossings(A, B, y, weighting)
    assert set(curves) == (set(ENDS) if D >= K - 1 else {"measured", "means"})
    for end, curve in curves.items():
        breaks = torch.cat([curve.starts, curve.stops])
        for t in torch.linspace(0, 1, 9, dtype=torch.float64):
            if len(breaks) and (breaks - t).abs().min() < 1e-7 and 0 < t < 1:
                continue
            known = brute(A, B, y, float(t), end)
            assert float(curve.accuracy(t[None])) == pytest.approx(known, abs=1e-12), (end, float(t))


def test_o2d_breakpoints_are_exact():
    A = torch.tensor([[-1.0], [1], [3], [5]], dtype=torch.float64)
    B = torch.tensor([[4.0], [4], [0], [0]], dtype=torch.float64)
    curve = crossings(A, B, torch.tensor([0, 0, 1, 1]))["measured"]
    t = torch.tensor([0, 0.3, 0.34, 0.49, 0.51, 0.59, 0.61, 1], dtype=torch.float64)
    assert curve.accuracy(t).tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 1, 1]
    assert curve.breakpoints.equal(torch.cat([curve.starts, curve.stops]).unique())
    found = sorted({round(float(x), 12) for x in curve.breakpoints})
    assert found == pytest.approx([1 / 3, 0.5, 0.6], abs=1e-12)


def test_o2_stays_right():
    B = torch.tensor([[4.0, 0], [6, 0], [-3, 4], [-3, 4], [-2, -4], [-2, -6]], dtype=torch.float64)
    for curve in crossings(problems.O1_H, B, problems.O1_Y).values():
        assert curve.starts.shape == (0,)
        assert curve.accuracy(torch.linspace(0, 1, 5, dtype=torch.float64)).tolist() == [1] * 5


def test_ties_at_the_ends_count_as_at_a_layer():
    """Integer features with equal means and samples half-way between means."""
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    A = torch.tensor([[0.0], [4], [3], [5], [2], [2]], dtype=torch.float64)  # means 2, 4, 2
    B = torch.tensor([[0.0], [2], [3], [7], [1], [1]], dtype=torch.float64)  # means 1, 5, 1
    for A_, B_ in ((A, B), (B, A), (A, A), (B, 0 * B)):
        curve = crossings(A_, B_, y)["measured"]
        for t, H in ((0.0, A_), (1.0, B_)):
            nearest = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
            nearest.update(H, y)
            known = float(nearest.hits.sum()) / 6
            found = float(curve.accuracy(torch.tensor([t], dtype=torch.float64)))
            assert found == pytest.approx(known), (t, A_, B_)


@pytest.mark.parametrize("seed", range(300))
def test_exact_ties_go_to_the_lowest_class_in_layers_and_on_the_line(engine, seed):
    """Whole numbers whose distances are compared exactly: no rounding may break a tie."""
    rng = np.random.default_rng(seed)
    K, D, m = int(rng.integers(2, 6)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    y = np.repeat(np.arange(K), m)
    A, B = rng.integers(-3, 4, size=(2, len(y), D)) + int(rng.choice([0, 1000]))
    known = []
    for H in (A, B):
        means = np.stack([H[y == k].sum(axis=0).astype(object) * Fraction(1, m) for k in range(K)])
        far = ((H[:, None].astype(object) - means) ** 2).sum(axis=2)
        known.append(np.array([row.tolist().index(min(row)) for row in far]))
    labels = torch.from_numpy(y)
    for H, nearest in zip((A, B), known, strict=True):
        H = torch.from_numpy(H * 0.5)
        found = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, labels))).update(H, labels)
        assert found.tolist() == nearest.tolist()
    curve = crossings(torch.from_numpy(A / 2), torch.from_numpy(B / 2), labels)["measured"]
    ends = curve.accuracy(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([float((nearest == y).mean()) for nearest in known])


@pytest.mark.parametrize("size", [1.0, 2.0**20, 2.0**100])
def test_means_that_coincide_at_one_end_are_a_tie_there_whatever_the_size_of_the_other(size):
    y = torch.tensor([0, 1, 2])
    A = size * 100 * torch.eye(3, dtype=torch.float64)
    for ends, known in (((A, 0 * A), [1, 1 / 3]), ((0 * A, A), [1 / 3, 1])):
        curve = crossings(*ends, y)["measured"]
        assert curve.accuracy(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == known
    A = size * torch.tensor([[100.0], [-100], [100], [-100]], dtype=torch.float64)
    B = size * torch.tensor([[-100.0], [-90], [90], [100]], dtype=torch.float64)
    curve = crossings(A, B, torch.tensor([0, 0, 1, 1]))["measured"]
    assert curve.accuracy(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [0.5, 1]


@pytest.mark.parametrize("gap", [1e-4, 1e-7, 1e-10])
@pytest.mark.parametrize("K", [3, 100, 1000])
def test_classes_that_nearly_coincide_keep_their_samples_in_layers_and_on_the_line(K, gap):
    """The last two classes are `gap` apart, their samples a hundredth of it from their means."""
    rng = np.random.default_rng(K)
    M = rng.normal(size=(K, 8))
    M[-1] = M[-2] + gap * rng.normal(size=8)
    y = np.repeat(np.arange(K), 4)
    H = M[y] + gap / 100 * rng.normal(size=(len(y), 8))
    H[-1] = M[-2]  # one sample lies with the other class
    H, y = torch.from_numpy(H), torch.from_numpy(y)
    known = 1 - 1 / len(y)
    found = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    assert found.update(H, y).tolist() == [*y[:-1].tolist(), K - 2]
    t = torch.tensor([0, 0.3, 0.9, 1], dtype=torch.float64)
    other = torch.from_numpy(M)[y] if K < 1000 else 2 * H
    for ends, at_ends in (((H, 2 * H), [known] * 2), ((other, H), [1 if K < 1000 else known, known])):
        accuracy = crossings(*ends, y, batch=1000)["measured"].accuracy(t).tolist()
        assert [accuracy[0], accuracy[-1]] == pytest.approx(at_ends, abs=1e-12)
        assert accuracy[2] == pytest.approx(known, abs=1e-12)


@given(problems.seeds, st.sampled_from([0.0, 0.05, 0.3]))
@settings(max_examples=50, deadline=None)
def test_effective_depth_is_the_first_time_from_which_the_accuracy_stays(seed, eps):
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.integers(0, 10, size=5) / 10)
    stops = np.sort(np.minimum(starts + rng.integers(1, 6, size=5) / 10, 1.1))
    curve = StepCurve(10, *map(torch.from_numpy, (starts, stops)))
    t = np.linspace(0, 1, 1001)
    fine = curve.accuracy(torch.from_numpy(t)).numpy() >= 1 - eps - 1e-9
    depth = curve.effective_depth(eps)
    if not fine[-1]:
        assert depth is None
        return
    late = np.flatnonzero(~fine)
    assert depth == pytest.approx(t[late[-1]] if len(late) else 0, abs=1.1e-3)


def test_effective_depth_of_a_line_that_is_always_right_is_zero():
    never = torch.empty(0, dtype=torch.float64)
    assert StepCurve(10, never, never).effective_depth() == 0
    with pytest.raises(ValueError, match=r"eps must lie in \[0, 1\], got 2.0"):
        StepCurve(10, never, never).effective_depth(2.0)


def test_a_profile_keeps_the_curves_and_they_meet_its_layers(tmp_path):
    torch.manual_seed(1)
    H, y = problems.features(3, N=90, D=6, K=4, spread=2.0)
    net = pfc.FCResNet(6, 4, width=8, blocks=3, zero_start=False)
    profile = pfc.measure(net, list(zip(H.float().split(31), y.split(31), strict=True)), progress=False)
    profile.save(tmp_path / "p.json")
    table = profile.table()["pfc3"]
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for again in (profile, pfc.load(tmp_path / "p.json")):
        curves = again.segment().curves
        assert set(curves) == set(ENDS)
        measured = curves["measured"].accuracy(ends)
        assert measured.tolist() == pytest.approx([table["stem"], table["blocks.2"]])
        for end in ("means", "etf"):
            assert curves[end].accuracy(ends).tolist() == pytest.approx([table["stem"], 1.0])
    features, labels = pfc.features(net, [(H.float(), y)])
    A, B = features["stem"].double(), features["blocks.2"].double()
    t = torch.tensor([0.37], dtype=torch.float64)
    for end, curve in profile.segment().curves.items():
        assert float(curve.accuracy(t)) == pytest.approx(brute(A, B, labels, 0.37, end))
    assert pfc.measure(net, [(H.float(), y)], passes=1, progress=False).segment().curves == {}
    assert isinstance(net, nn.Module)
