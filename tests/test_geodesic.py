"""The straight line and the theorems' certificates against known answers and brute force."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import pfc
from pfc.labels import BatchLabels
from pfc.moments import SegmentMoments
from pfc.profile import Segment
from pfc.theory.geodesic import Line
from tests import exact_line, problems
from tests.oracles import weights
from tests.test_line import crossings, nearest_frame

F64 = torch.float64
ENDS = ("measured", "means", "etf")


def segment(A, B, y, weighting="class"):
    """The segment of two layers, as measuring makes it."""
    A, B = torch.as_tensor(A, dtype=F64), torch.as_tensor(B, dtype=F64)
    moments = SegmentMoments.empty(2, int(y.max()) + 1, A.shape[1])
    moments.update([A, B], BatchLabels.of(y))
    return Segment.of(0, ["a", "b"], moments, weighting, crossings(A, B, y, weighting))


def brute(A, B, y, t, end, weighting="class"):
    """PFC1 and PFC2 of the features on the line, with the end replaced, by their definitions."""
    w, (A, B, y) = weights(y, weighting), (v.numpy() for v in (A, B, y))
    member = (y == np.arange(y.max() + 1)[:, None]).astype(float)
    mean = member / member.sum(axis=1, keepdims=True)
    if end != "measured":
        B = (nearest_frame(mean @ B) if end == "etf" else mean @ B)[y]
    H = (1 - t) * A + t * B
    means, pi = mean @ H, member @ w
    within = w @ ((H - means[y]) ** 2).sum(axis=1)
    between = pi @ ((means - pi @ means) ** 2).sum(axis=1)
    M, K = means - means.mean(axis=0), len(means)
    G = M @ M.T
    frame = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    return within / between, np.linalg.norm(G / np.linalg.norm(G) - frame)


@pytest.mark.parametrize("D", [3, 9, 10, 40])
def test_the_coordinates_of_the_means_do_not_matter(D, monkeypatch):
    A, y = problems.features(3, D=D, K=3)  # 6 means in all
    B = A @ torch.randn(D, D, generator=torch.Generator().manual_seed(D), dtype=F64) + A.tanh()
    found = []
    assert segment(A, B, y).means.shape[2] == (6 if D >= 10 else D), (
        "9 numbers instead of 6 are few more"
    )
    for spared in (0.0, math.inf):  # always in a basis of their span, and never
        monkeypatch.setattr("pfc.tiles.SPARED", spared)
        found.append(segment(A, B, y))
    (few, all_), t = found, torch.linspace(0, 1, 7, dtype=F64)
    assert (few.means.shape[2], all_.means.shape[2]) == (min(D, 6), D)
    gram, known = (each.means.flatten(0, 1) @ each.means.flatten(0, 1).mT for each in found)
    torch.testing.assert_close(gram, known, rtol=0, atol=1e-12 * float(known.abs().max()))
    for end in ENDS:
        for one, other in zip(*(vars(each.line(t, end)).values() for each in found), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


O2_B = [[4.0, 0], [6, 0], [-3, 4], [-3, 4], [-2, -4], [-2, -6]]


def test_o2_known_answers():
    found = segment(problems.O1_H, O2_B, problems.O1_Y)
    line = found.ends("measured")
    assert line.within.tolist() == pytest.approx([1, 1 / 3, 2 / 3], rel=1e-12)
    assert line.between.tolist() == pytest.approx([50 / 9, 95 / 9, 236 / 9], rel=1e-12)
    half = found.line(0.5)
    assert half.pfc1.item() == pytest.approx(3 / 68, rel=1e-12)
    assert half.pfc2.item() == pytest.approx(0.07696117637166383, rel=1e-10)
    assert half.pfc3.item() == 1
    means = [[[2, 0], [0, 3], [-2, -1]], [[5, 0], [-3, 4], [-2, -5]]]
    g = exact_line.fall_of_frame_distance(*means)
    coefficients = np.array([float(c) for c in reversed(g.all_coeffs())])
    assert coefficients / coefficients[0] * 560 == pytest.approx(
        [560, 1154.6666666667, 216, -1800, -1944], rel=1e-10
    )
    assert found.certify().theorem2.turns == pytest.approx(exact_line.course(g)[0], abs=1e-14)
    theorem1 = found.certify().theorem1
    scale = 50 / 9 * 236 / 9
    known = [235 / 27 / scale, 608 / 27 / scale, 46 / 27 / scale]
    assert theorem1.slacks == pytest.approx(known, rel=1e-12)
    assert theorem1.d == pytest.approx([235 / 27, 608 / 27, 46 / 27], rel=1e-12)
    assert theorem1.monotone
    assert theorem1.turns == ()
    assert theorem1.align == pytest.approx(95 / 9 / math.sqrt(scale), rel=1e-12)


def test_o2d_is_not_monotone_and_infinite_in_the_middle():
    found = segment([[-1.0], [1], [3], [5]], [[4.0], [4], [0], [0]], torch.tensor([0, 0, 1, 1]))
    t = [0.0, 0.25, 0.5, 0.75]
    known = [(1 - s) ** 2 / (4 * (1 - 2 * s) ** 2) if s != 0.5 else math.inf for s in t]
    assert found.line(t).pfc1.tolist() == pytest.approx(known, rel=1e-12)
    assert not found.certify().theorem1.monotone
    assert found.certify().theorem1.b01 == -4


def test_o2e_known_answers():
    found = segment([[-1.0], [3], [4], [6]], [[0.0], [0], [5], [5]], torch.tensor([0, 0, 1, 1]))
    known = [0.625, 0.31141868512110726, 10 / 81, 10 / 361, 0]
    assert found.line([0, 0.25, 0.5, 0.75, 1]).pfc1.tolist() == pytest.approx(
        known, rel=1e-12, abs=1e-15
    )


def test_o3_a_swap_of_two_means():
    eye = torch.eye(3, dtype=F64)
    found = segment(eye, eye[[1, 0, 2]], torch.arange(3))
    known = [0, 0.5338671637916229, math.sqrt(2 - math.sqrt(2)), 0.5338671637916229, 0]
    assert found.line([0, 0.25, 0.5, 0.75, 1]).pfc2.tolist() == pytest.approx(
        known, rel=1e-10, abs=1e-14
    )
    assert found.certify().theorem1.b01 == pytest.approx(0, abs=1e-15)
    assert found.certify().theorem2.turns == pytest.approx([0.5], abs=1e-9)


def counterexample(delta):
    """A start as near to the frame as one likes, the identity its optimal map, PFC2 not monotone."""
    E = np.eye(4) - 0.25
    M = np.concatenate([E, np.zeros((4, 4))])
    N = np.concatenate([np.zeros((4, 4)), np.diag([2.0, 1, 0, 0]) @ E])
    P = N.T @ N
    P = P - np.trace(P) / 3 * E
    return (M + delta * N - delta**2 * M @ P / 4).T.copy(), M.T.copy()


@pytest.mark.parametrize("seed", range(5))
def test_collinear_means_leave_the_frame_undefined_and_nothing_else(seed):
    A, y = problems.features(seed, N=40, D=6, K=4)
    B, _ = problems.features(seed + 50, N=40, D=6, K=4, spread=0.3)
    means = torch.stack([B[y == k].mean(0) for k in range(4)])
    along = torch.tensor([0.0, 1.0, 3.0, -2.0], dtype=F64)[:, None] * B[0]
    B = B - means[y] + along[y] + 2
    found = segment(A, B, y)
    t = [0, 0.3, 0.8, 1]
    for end in ("measured", "means"):
        line = found.line(t, end)
        for i, s in enumerate(t):
            pfc1, pfc2 = brute(A, B, y, s, end)
            assert float(line.pfc1[i]) == pytest.approx(pfc1, rel=1e-10, abs=1e-13)
            assert float(line.pfc2[i]) == pytest.approx(pfc2, rel=1e-10, abs=1e-12)
    line, verdict = found.line(t, "etf"), found.certify("etf")
    for metric in (line.pfc1, line.pfc2, line.pfc3):
        assert metric.isnan().all()
    for value in (verdict.theorem1.b01, verdict.theorem1.align, verdict.theorem2.t0):
        assert math.isnan(value)
    assert not verdict.theorem1.monotone
    assert not verdict.theorem2.falls
    assert verdict.theorem1.turns == verdict.theorem2.turns == ()
    back = segment(B, A, y)
    assert back.line(0.5, "etf").pfc2.item() == pytest.approx(brute(B, A, y, 0.5, "etf")[1], rel=1e-10)


@pytest.mark.parametrize("c", [1.0, 3.0, 2.0, 0.01, 100.0])
def test_where_the_line_passes_through_zero_the_metrics_are_undefined_there_alone(c):
    A, y = problems.features(5, N=12, D=4, K=3)
    t = 1 / (1 + c)
    found = segment(A, -c * A, y).line([0, t, t * (1 - 1e-4), t + (1 - t) * 1e-4, 1])
    for metric in (found.pfc1, found.pfc2):
        assert metric.isnan().tolist() == [False, True, False, False, False]
        assert metric[[2, 3, 4]].tolist() == pytest.approx([float(metric[0])] * 3, rel=1e-6)
    collapsed = torch.stack([A[y == k].mean(0) for k in range(3)])[y]
    assert segment(collapsed, -c * collapsed, y).line(t).pfc1.isnan()


def test_rounding_decides_nothing_where_the_ends_are_the_same():
    A, y = problems.features(1, N=40, D=6, K=4)
    for B in (A, A.clone() + 0.0, 3 * A + 1):
        found = segment(A, B, y)
        for end in ("measured", "means"):
            verdict = found.certify(end)
            assert verdict.theorem1.monotone
            assert verdict.theorem1.turns == verdict.theorem2.turns == ()
            assert verdict.theorem2.falls
            assert verdict.theorem2.t0 == 0
        assert found.certify().theorem1.d == (0, 0, 0)


def test_where_pfc2_rises_at_the_end_its_last_turn_is_told():
    """From a frame to means that are none: PFC2 falls nowhere, or not to the end."""
    eye = torch.eye(4, dtype=F64)
    stretched = torch.diag(torch.tensor([3.0, 1, 1, 1], dtype=F64))
    found = segment(eye, stretched, torch.arange(4)).certify().theorem2
    assert (found.falls, found.turns) == (False, ())
    assert math.isnan(found.t0)
    shrunk = torch.diag(torch.tensor([0.3, 1, 1, 1], dtype=F64))
    found = segment(shrunk, stretched, torch.arange(4)).certify().theorem2
    assert not found.falls
    assert found.turns == pytest.approx([0.7 / 2.7], rel=1e-9), "where the line passes the frame"


def test_o4_a_small_transport_cost_does_not_make_pfc2_monotone():
    A, B = counterexample(0.01)
    found = segment(A, B, torch.arange(4))
    t = torch.linspace(0, 1, 9, dtype=F64)
    known = [
        *(0.6691886825958886, 0.43916865624130064, 0.25096071017227034, 0.10457023498564874),
        *(1.9794691910515504e-06, 0.06274163938138311, 0.08365715688811504, 0.06274344049661583, 0),
    ]
    assert (found.line(t).pfc2 / 1e-4).tolist() == pytest.approx(known, abs=1e-10)
    theorem2 = found.certify("etf").theorem2
    assert len(theorem2.turns) == 2
    assert theorem2.t0 == pytest.approx(0.75, abs=1e-3)
    assert theorem2.radius == pytest.approx(1 - theorem2.t0)
    assert theorem2.curvature > 0
    assert found.certify("etf").theorem1.b01 > 0


@given(problems.seeds)
@settings(max_examples=60, deadline=None)
def test_all_ends_equal_brute_force(seed):
    K, D = 3 + seed % 3, 2 + seed // 3 % 6
    A, y = problems.features(seed, N=30, D=D, K=K)
    B, _ = problems.features(seed + 1, N=30, D=D, K=K, spread=0.4)
    B = B + 3
    for weighting in ("class", "sample"):
        found = segment(A, B, y, weighting)
        for end in ENDS:
            line = found.line([0, 0.3, 0.8, 1], end)
            if end == "etf" and D < K - 1:
                assert line.pfc2[1:].isnan().all()
                assert math.isnan(found.certify(end).theorem2.t0)
                assert math.isnan(found.certify(end).theorem1.b01)
                assert not found.certify(end).theorem1.monotone
                continue
            for i, t in enumerate((0, 0.3, 0.8, 1)):
                pfc1, pfc2 = brute(A, B, y, t, end, weighting)
                assert float(line.pfc1[i]) == pytest.approx(pfc1, rel=1e-10, abs=1e-13)
                assert float(line.pfc2[i]) == pytest.approx(pfc2, rel=1e-10, abs=1e-12)


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_turning_points_are_where_a_fine_grid_turns(seed):
    A, y = problems.features(seed, N=30, D=6, K=4)
    B, _ = problems.features(seed + 1, N=30, D=6, K=4, spread=0.4)
    found = segment(A, B, y)
    t = torch.linspace(0, 1, 401, dtype=F64)
    for end in ENDS:
        line, verdict = found.line(t, end), found.certify(end)
        for values, turns in ((line.pfc1, verdict.theorem1.turns), (line.pfc2, verdict.theorem2.turns)):
            slopes = values.diff().sign()
            seen = t[1:-1][slopes[1:] * slopes[:-1] < 0]
            apart = [s for s in turns if min([abs(s - o) for o in turns if o != s] + [s, 1 - s]) > 0.01]
            for s in apart:
                assert (seen - s).abs().min() < 0.006, (end, s)
            assert len(seen) <= len(turns)
        falls = bool((line.pfc1.diff() <= 1e-12).all())
        assert falls == verdict.theorem1.monotone or len(verdict.theorem1.turns) > 0
        if end != "measured":
            assert verdict.theorem1.monotone == (verdict.theorem1.b01 >= 0)
        if end == "etf":
            t0 = verdict.theorem2.t0
            after = found.line(torch.linspace(t0, 1, 50, dtype=F64), end).pfc2
            assert (after.diff() <= 1e-9).all()


def test_curvature_is_the_second_derivative_at_the_end():
    A, y = problems.features(5, N=30, D=6, K=4)
    B, _ = problems.features(6, N=30, D=6, K=4)
    found = segment(A, B, y)
    h = 1e-4
    S = found.line([1 - 2 * h, 1 - h, 1.0], "etf").pfc2.square() / 2
    assert float(S[0] - 2 * S[1] + S[2]) / h**2 == pytest.approx(
        found.certify("etf").theorem2.curvature, rel=1e-2
    )


def test_two_classes_never_turn_in_pfc2():
    A, y = problems.features(7, N=20, D=3, K=2)
    B, _ = problems.features(8, N=20, D=3, K=2)
    for end in ENDS:
        assert segment(A, B, y).certify(end).theorem2.turns == ()


def test_a_measured_profile_predicts_after_loading(tmp_path):
    torch.manual_seed(1)
    H, y = problems.features(3, N=90, D=6, K=4, spread=2.0)
    net = pfc.FCResNet(6, 4, width=8, blocks=3, zero_start=False)
    profile = pfc.measure(net, [(H.float(), y)], progress=False)
    profile.save(tmp_path / "p.json", means=False)
    table = profile.table()
    for again in (profile, pfc.load(tmp_path / "p.json")):
        line = again.segment().line([0.0, 1.0])
        for i, name in enumerate(("stem", "blocks.2")):
            assert float(line.pfc1[i]) == pytest.approx(table.loc[name, "pfc1"], rel=1e-12)
            assert float(line.pfc2[i]) == pytest.approx(table.loc[name, "pfc2"], rel=1e-12)
            assert float(line.pfc3[i]) == pytest.approx(table.loc[name, "pfc3"], rel=1e-12)
        assert again.segment().certify("etf") == profile.segment().certify("etf")
    one_pass = pfc.measure(net, [(H.float(), y)], passes=1, progress=False)
    assert one_pass.segment().line(0.5).pfc3.isnan().all()


def test_errors_name_what_was_given():
    found = segment(problems.O1_H, O2_B, problems.O1_Y)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        found.line(1.5)
    with pytest.raises(ValueError, match="end must be one of measured, means, etf, got 'end'"):
        inspect.unwrap(Line.of.__func__)(
            Line,
            count=found.count,
            scatter=found.scatter,
            cross=found.cross,
            means=found.means,
            weighting="class",
            end="end",
            curve=None,
        )
