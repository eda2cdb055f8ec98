"""The path of the residual stream: known paths, a twin sample by sample, its laws, its subset."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import pfc
from pfc.labels import BatchLabels
from pfc.moments import SegmentMoments
from pfc.profile import Segment
from pfc.theory import path as paths
from pfc.theory.path import PathNumbers, PathSample, names, path_of
from tests import oracles, problems

F64 = torch.float64


def gram_of(points):
    D = torch.as_tensor(points, dtype=F64).diff(dim=0)
    return D @ D.T


def naive(points):
    """One path by its definitions, vectors and not inner products (MATH section 4)."""
    D = np.diff(np.asarray(points, dtype=np.float64), axis=0)
    n = np.linalg.norm(D, axis=1)
    u = D[n > 0] / n[n > 0, None]
    chord, length = np.linalg.norm(D.sum(axis=0)), n.sum()
    out = {
        "length": length,
        "chord": chord,
        "straightness": chord / length,
        "energy": len(D) * (n**2).sum(),
        "speed": len(D) * (n**2).sum() / length**2,
        "direction": (length / chord) ** 2,
        "line_shape": len(u) / np.linalg.norm(u.sum(axis=0)),
    }
    for i, d in enumerate(n):
        out[f"steps.{i}"] = d
    for i, (a, b) in enumerate(pairwise(D)):
        if not (a.any() and b.any()):
            out[f"angles.{i}"] = out[f"curvature.{i}"] = math.nan
            continue
        p, q = a / np.linalg.norm(a), b / np.linalg.norm(b)
        out[f"angles.{i}"] = 2 * math.atan2(np.linalg.norm(p - q), np.linalg.norm(p + q))
        out[f"curvature.{i}"] = 2 * math.sin(out[f"angles.{i}"]) / np.linalg.norm(a + b)
    return out


def numbers(path):
    """All numbers of the whole, by the names they have over samples."""
    told = {name: getattr(path, name) for name in paths.WHOLE}
    for name in paths.AT_BLOCKS:
        told |= {f"{name}.{i}": value for i, value in enumerate(getattr(path, name))}
    return told


def test_o9_a_right_angle():
    path = path_of("abc", gram_of([[0, 0], [1, 0], [1, 1]]))
    assert (path.length, path.energy) == (2, pytest.approx(4, rel=1e-15))
    assert path.chord == pytest.approx(math.sqrt(2), rel=1e-15)
    assert path.line_shape == pytest.approx(math.sqrt(2), rel=1e-15)
    assert path.angles == pytest.approx([math.pi / 2], rel=1e-15)
    assert path.curvature == pytest.approx([math.sqrt(2)], rel=1e-15)
    assert path.energies == pytest.approx([2, 2])


def test_curvature_is_that_of_the_circle():
    t = torch.linspace(0, 2, 9, dtype=F64)
    path = path_of("abcdefghi"[:9], gram_of(3 * torch.stack([t.cos(), t.sin()], dim=1)))
    assert path.curvature == pytest.approx([1 / 3] * 7, rel=1e-12)
    assert path.angles == pytest.approx([0.25] * 7, rel=1e-12)
    assert path.speed == pytest.approx(1, rel=1e-12)


def test_a_straight_line_at_constant_speed_has_the_least_energy():
    direction = torch.tensor([1.0, 2, 2], dtype=F64)
    path = path_of("abcdefghi"[:5], gram_of(torch.arange(5)[:, None] * direction))
    assert (path.straightness, path.speed, path.direction) == pytest.approx((1, 1, 1), rel=1e-14)
    assert path.energy == pytest.approx(path.chord**2, rel=1e-14)
    assert max(path.angles) < 2e-8
    uneven = path_of("abcdefghi"[:3], gram_of(torch.tensor([0.0, 1, 4])[:, None] * direction))
    assert uneven.direction == pytest.approx(1, rel=1e-14)
    assert uneven.line_shape == pytest.approx(1, rel=1e-14)
    assert uneven.speed == pytest.approx(2 * (1 + 9) / 16, rel=1e-14)


def test_what_does_not_move_is_nan_and_left_out():
    still = path_of("abc", torch.zeros(2, 2, dtype=F64))
    assert still.length == still.chord == still.energy == 0
    for name in ("straightness", "speed", "direction", "line_shape"):
        assert math.isnan(getattr(still, name)), name
    assert math.isnan(still.angles[0])
    pause = path_of("abcd", gram_of([[0, 0], [1, 0], [1, 0], [1, 1]]))
    assert all(map(math.isnan, (*pause.angles, *pause.curvature)))
    assert pause.line_shape == pytest.approx(math.sqrt(2), rel=1e-15), "a pause is no increment"
    back = path_of("abc", gram_of([[0.0], [1], [0]]))
    assert (back.straightness, back.direction, back.line_shape) == (0, math.inf, math.inf)
    assert back.angles[0] == math.pi


@given(problems.seeds, st.integers(2, 6), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_a_path_equals_its_twin_and_obeys_its_laws(seed, depth, D):
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(depth, D, generator=g, dtype=F64)
    path = path_of("abcdefghi"[:depth], gram_of(points))
    for name, value in naive(points).items():
        assert numbers(path)[name] == pytest.approx(value, rel=1e-10, abs=1e-7 if "angle" in name else 0)
    assert path.energy >= path.length**2 * (1 - 1e-12)
    assert path.length**2 >= path.chord**2 * (1 - 1e-12)
    assert path.energy == pytest.approx(path.speed * path.direction * path.chord**2)
    even = points.diff(dim=0) - (points[-1] - points[0]) / (depth - 1)
    excess = (depth - 1) * float(even.square().sum())
    assert path.energy == pytest.approx(path.chord**2 + excess, rel=1e-10)
    Q = problems.orthogonal(D, seed)
    moved = path_of("abcdefghi"[:depth], gram_of(3 * points @ Q + 7))
    for name, value in numbers(path).items():
        factor = {"length": 3, "chord": 3, "energy": 9, "steps": 3, "curvature": 1 / 3}
        by = factor.get(name.partition(".")[0], 1)
        assert numbers(moved)[name] == pytest.approx(by * value, rel=1e-8, abs=1e-7)


def stacked(seed, weighting, batch=13, **how):
    """Random layers of unbalanced classes, the segment's path and its samples' numbers."""
    H, y = problems.features(seed, N=70, D=5, K=3)
    g = torch.Generator().manual_seed(seed)
    layers = [H + i * torch.randn(70, 5, generator=g, dtype=F64) for i in range(4)]
    moments, sample = SegmentMoments.empty(4, 3, 5), PathSample(**how)
    for rows in torch.arange(70).split(batch):
        grams = moments.update([layer[rows] for layer in layers], BatchLabels.of(y[rows]))
        sample.update(grams, y[rows])
    found = Segment.of(0, list("abcd"), moments, weighting, {}, sample)
    return torch.stack(layers, dim=1), y, found


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_the_whole_is_the_weighted_mean_of_the_samples(weighting):
    H, y, found = stacked(4, weighting)
    w = oracles.weights(y, weighting)
    whole = np.concatenate([np.sqrt(w)[i] * h.numpy() for i, h in enumerate(H)], axis=1)
    for name, value in naive(whole).items():
        assert numbers(found.path())[name] == pytest.approx(value, rel=1e-10), name
    assert found.path().length == pytest.approx(
        sum(math.sqrt(w @ (np.diff(H, axis=1)[:, l] ** 2).sum(axis=1)) for l in range(3))
    )


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_quantiles_over_samples_are_those_of_each_sample(weighting):
    H, y, found = stacked(5, weighting)
    w, each = oracles.weights(y, weighting), [naive(h) for h in H]
    path = found.path()
    assert path.sampled == 70
    assert sorted(each[0]) == sorted(names(3))
    for name in names(3):
        values = np.array([own[name] for own in each])
        order = values.argsort()
        below = w[order].cumsum()
        for q in (0.05, 0.37, 0.95):
            known = values[order][np.searchsorted(below, q - 1e-12)]
            assert path.over_samples(name, q) == pytest.approx(known, rel=1e-5, abs=1e-5), (name, q)
        assert path.over_samples(name, 0) == pytest.approx(values.min(), rel=1e-5, abs=1e-5)
        assert path.over_samples(name, 1) == pytest.approx(values.max(), rel=1e-5, abs=1e-5)


def test_the_kept_subset_depends_on_nothing_but_the_samples():
    kept = [stacked(6, "class", batch=batch, kept=20)[2].quantiles for batch in (1, 7, 70)]
    for other in kept[1:]:
        torch.testing.assert_close(other, kept[0], rtol=1e-14, atol=0, equal_nan=True)
    H, _, found = stacked(6, "sample", kept=20)
    assert found.sampled == 20
    ranks = paths._ranks(0, 0, 70)
    chosen = np.argsort(ranks)[:20]
    lengths = np.array([naive(H[i])["length"] for i in chosen])
    assert found.path().over_samples("length", 1) == pytest.approx(lengths.max(), rel=1e-6)
    assert found.path().over_samples("length", 0) == pytest.approx(lengths.min(), rel=1e-6)


def test_merging_streams_keeps_a_fair_subset_in_any_order():
    g = torch.Generator().manual_seed(0)
    D = torch.randn(60, 3, 4, generator=g, dtype=F64)
    grams, y = D @ D.mT, torch.arange(60) % 3

    def part(stream, rows):
        sample = PathSample(stream=stream, kept=25)
        sample.update(grams[rows], y[rows])
        return sample

    one, two = part(0, slice(40)), part(1, slice(40, None))
    one.merge(part(1, slice(40, None)))
    two.merge(part(0, slice(40)))
    assert one.seen == two.seen == 60
    torch.testing.assert_close(one.quantiles("sample"), two.quantiles("sample"), rtol=0, atol=0)
    ranks = np.concatenate([paths._ranks(0, 0, 40), paths._ranks(1, 0, 20)])
    assert len(set(ranks.tolist())) == 60
    assert not np.array_equal(paths._ranks(0, 0, 20), paths._ranks(1, 0, 20))
    few = [PathSample(stream=stream, kept=10) for stream in (0, 1)]
    for sample in few:
        sample.update(grams, y)
    kept = [sample.quantiles("sample") for sample in few]
    assert not torch.equal(*kept), "each stream keeps its own samples"


def test_ranks_are_uniform():
    ranks = paths._ranks(3, 1000, 20_000) / 2.0**64
    assert ranks.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(ranks, 10, (0, 1))[0].min() > 1800


def test_energy_length_chord_and_optimal_transport_form_a_chain():
    """Energy >= length^2 >= chord^2 >= W2^2, per sample, of a residual net's own features."""
    torch.manual_seed(0)
    H, y = problems.features(3, N=60, D=6, K=4, spread=2.0)
    net = pfc.FCResNet(6, 4, width=8, blocks=4, zero_start=False)
    profile = pfc.measure(net, [(H.float(), y)], weighting="sample", progress=False)
    path = profile.segment().path()
    features, _ = pfc.features(net, [(H.float(), y)], ["stem", "blocks.3"], progress=False)
    A, B = (features[name].double() for name in ("stem", "blocks.3"))
    cost = torch.cdist(A, B, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    rows, columns = linear_sum_assignment(cost)
    w2 = cost[rows, columns].mean()
    assert path.energy >= path.length**2 >= path.chord**2 >= w2 * (1 - 1e-12)
    assert path.chord**2 == pytest.approx(cost.diagonal().mean(), rel=1e-12)


def test_a_profile_keeps_its_paths(tmp_path):
    torch.manual_seed(0)
    H, y = problems.features(3, N=60, D=6, K=4)
    net = pfc.FCResNet(6, 4, width=8, blocks=3, zero_start=False)
    profile = pfc.measure(net, [(H.float(), y)], progress=False)
    profile.save(tmp_path / "p.json", means=False)
    path, again = profile.segment().path(), pfc.load(tmp_path / "p.json").segment().path()
    assert path.to_dict() == again.to_dict()
    assert path.to_dict()["straightness.median"] == path.over_samples("straightness", 0.5)
    assert again.sampled == 60


def test_errors_name_what_was_given():
    path = path_of("abc", gram_of([[0, 0], [1, 0], [1, 1]]))
    assert math.isnan(path.over_samples("length"))
    with pytest.raises(ValueError, match=r"name must be one of length, chord, .* got 'width'"):
        path.over_samples("width")
    with pytest.raises(ValueError, match=r"q must be a multiple of 0.01 in \[0, 1\], got 0.123"):
        path.over_samples("length", 0.123)
    with pytest.raises(ValueError, match=r"got -0\.1"):
        path.over_samples("length", -0.1)


def test_numbers_of_many_paths_are_those_of_each():
    g = torch.Generator().manual_seed(1)
    D = torch.randn(5, 3, 4, generator=g, dtype=F64)
    many = PathNumbers.of(D @ D.mT)
    for i in range(5):
        one = PathNumbers.of(D[i : i + 1] @ D[i : i + 1].mT)
        assert float(many.straightness[i]) == pytest.approx(float(one.straightness[0]), rel=1e-15)
