"""Exact PFC3 along the straight line, against brute force at many t and for all three ends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pfc
from pfc.line import ENDS, LineCrossings
from pfc.moments import ClassMoments
from pfc.nearest import MeansSpan, NearestMean, project
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
@settings(max_examples=200, deadline=None)
def test_curves_equal_brute_force(seed, weighting):
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
