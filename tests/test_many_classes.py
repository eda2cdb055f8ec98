"""Many classes: what is sorted out, tiled or taken from a smaller matrix equals all pairs at once."""

from itertools import product

import numpy as np
import pytest
import torch

import pfc.line
import pfc.span
import pfc.tiles
from pfc import fused, metrics, pairs
from pfc.bounds import Form
from pfc.crossings import Pairs, intervals
from pfc.line import LineCrossings
from pfc.measuring import costs
from pfc.moments import ClassMoments
from pfc.nearest import NearestMean, project
from pfc.prototypes import Prototypes
from pfc.screening import Ends, Places, Tile
from pfc.span import MeansSpan
from tests import problems

SEEDS = 80  # 6,000 were tried once


def all_pairs(tile):
    """The intervals without any pair left out."""
    N, K = len(tile.own), len(tile.ends.a)
    i, j = torch.arange(N).repeat_interleave(K), torch.arange(K).repeat(N)
    other = tile.own[i] != j
    return intervals(tile._exact(i[other], j[other]))


def tiles_of(A, B, y):
    """Of each end of a line one tile of all samples."""
    spans = [MeansSpan.of(ClassMoments.of(H, y)) for H in (A, B)]
    line, tiles = LineCrossings(*spans), []
    order = y.argsort(stable=True)
    x, z = (project(H[order], span, line.bases) for H, span in zip((A, B), spans, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfc.line, "Tile", lambda *parts: tiles.append(Tile(*parts)) or tiles[-1])
        line._screened(x, z, line.first.place[y[order]])
    return dict(zip(line.ends, tiles, strict=True))


def instance(seed):
    """Two layers of random sizes: whole numbers that tie, crowded means, offsets, an outlying class."""
    rng = np.random.default_rng(seed)
    K, D, m = int(rng.integers(2, 9)), int(rng.integers(1, 10)), int(rng.integers(1, 5))
    y = np.repeat(np.arange(K), m)
    kind = seed % 5
    A, B = rng.integers(-3, 4, size=(2, len(y), D)) / 2 if kind == 0 else rng.normal(size=(2, len(y), D))
    M = rng.normal(size=(2, K, D)) * rng.choice([0.3, 1, 5], size=(2, 1, 1))
    if kind == 2:  # crowded
        M[:, 1:] = M[:, :1] + 10.0 ** -rng.integers(1, 9) * M[:, 1:]
        A, B = A * np.abs(M[0, -1] - M[0, 0]).max(), B * np.abs(M[1, -1] - M[1, 0]).max()
    if kind == 3:
        M[:, 0] *= 10.0 ** rng.integers(2, 7)
    if kind:
        A, B = A + M[0, y], B + M[1, y]
    if kind == 4:
        A, B = A * 10.0 ** rng.integers(-12, 12), B + 10.0 ** rng.integers(0, 7)
    return *(torch.from_numpy(np.asarray(H, dtype=np.float64)) for H in (A, B)), torch.from_numpy(y)


@pytest.mark.parametrize("part", range(4))
def test_what_is_sorted_out_changes_no_bit_of_the_curves(part, monkeypatch):
    """Also where class points are seen batch by batch, and on devices that are not asked which."""
    asked = there = 0
    if part > 1:
        monkeypatch.setattr("pfc.screening.PAIRS", 0)
    if part > 2:
        monkeypatch.setattr("pfc.screening.SYNCHRONOUS_DEVICES", set())
    for seed in range(part, SEEDS, 4):
        for end, tile in tiles_of(*instance(seed)).items():
            found, known = tile.pairs(), all_pairs(tile)
            for ours, theirs in zip(intervals(found), known, strict=True):
                assert np.array_equal(np.sort(ours), np.sort(theirs)), (seed, end)
            asked, there = asked + len(found.sample), there + len(tile.own) * len(tile.ends.a)
    assert asked < 0.7 * there


def test_of_many_classes_few_pairs_are_left(monkeypatch):
    monkeypatch.setattr(fused, "LEAST", 0)  # few pairs and all are added up in the same way
    A, y = problems.features(1, N=600, D=12, K=100, spread=0.6)
    B, _ = problems.features(2, N=600, D=12, K=100, spread=0.3)
    B = B - torch.stack([B[y == k].mean(0) for k in range(100)])[y] + 3 * ClassMoments.of(A, y).mean[y]
    for tile in tiles_of(A, B, y).values():
        found = tile.pairs()
        for ours, theirs in zip(intervals(found), all_pairs(tile), strict=True):
            assert len(theirs)
            assert np.array_equal(np.sort(ours), np.sort(theirs))
        assert len(found.sample) < 600 * 100 / 10


def test_coarse_bounds_are_below_the_exact_coefficients():
    for seed in range(40):
        for tile in tiles_of(*instance(seed)).values():
            rows = torch.arange(len(tile.own))
            K = len(tile.ends.a)
            i, j = rows.repeat_interleave(K), torch.arange(K).repeat(len(rows))
            exact = tile._exact(i, j).coefficients.view(3, len(rows), K) / tile.ends.first_gaps.unit**2
            coefficients = tile._bounds().coefficients(tile.stop.each)
            for bound, known in zip(coefficients, exact, strict=True):
                assert bool((bound.double() <= known).all()), seed


def test_setting_torch_to_coarser_products_changes_nothing():
    known = [intervals(tile.pairs()) for tile in tiles_of(*instance(1)).values()]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = [intervals(tile.pairs()) for tile in tiles_of(*instance(1)).values()]
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, theirs in zip(found, known, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("seed", range(50))
def test_midway_between_two_means_the_lower_class_wins_whatever_products_round(seed):
    rng = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 2, 3, generator=rng, dtype=torch.float64)
    first, last = (Prototypes(points, torch.zeros((), dtype=torch.float64)) for points in (p, q))
    assert not first.crowded
    ends = Ends(first, last, torch.cat([p, 0 * p], 1), torch.cat([0 * q, q], 1), Form.gaps(p))
    own = torch.tensor([0, 1])
    midway = torch.cat([((p[0] + p[1]) / 2).expand(2, 3), 0 * p], 1)
    tile = Tile(ends, Places(midway, own), Places(ends.b, own), (own, own))
    starts, stops = intervals(tile._exact(own, 1 - own))
    assert starts.tolist() == [0.0]  # of the sample of class 1
    assert len(stops) == 1


def test_no_pairs_have_no_room():
    none = torch.zeros(3, 0, dtype=torch.float64)
    where = torch.zeros(0, dtype=torch.int64)
    ones = torch.ones(2, dtype=torch.float64)
    assert Pairs(none, where, where > 0, none[:2], none[:2], floors=ones, largest=ones).room == 0


@pytest.mark.parametrize("crowd", [0.0, 1e-3, 1e-9])
def test_squared_distances_have_all_their_digits(crowd, monkeypatch):
    """By one product or, where points are near, from their differences; of few such or of many."""
    M = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if crowd:
        M[20:] = M[3] + crowd * M[20:]
    known = (M[:, None] - M).square().sum(2)
    monkeypatch.setitem(pfc.tiles.TILE, "cpu", 1)
    monkeypatch.setattr(pfc.tiles, "FEWEST", 7)
    for often in (0.0, 1.0):
        monkeypatch.setattr(pairs, "OFTEN", often)
        seen = torch.zeros_like(known)
        for rows, rest, found in pairs.squared_distances(M):
            torch.testing.assert_close(found, known[rows, rest], rtol=1e-12, atol=0)
            seen[rows, rest] += 1
        assert bool((seen.triu() == torch.ones_like(seen).triu()).all())


@pytest.fixture
def _tiny_tiles(monkeypatch):
    monkeypatch.setitem(pfc.tiles.TILE, "cpu", 1)
    monkeypatch.setattr(pfc.tiles, "FEWEST", 3)


@pytest.mark.usefixtures("_tiny_tiles")
@pytest.mark.parametrize("seed", range(60))
def test_the_nearest_other_class_and_the_metrics_of_pairs_are_those_of_all_at_once(seed, monkeypatch):
    g = torch.Generator().manual_seed(seed)
    K, D = 2 + seed % 17, 1 + seed % 6
    M = torch.randn(K, D, generator=g, dtype=torch.float64)
    if seed % 3 == 0:
        M = M.mul(2).round()  # distances that tie, points that coincide
    if seed % 3 == 1:
        M[K // 2 :] = M[0] + 1e-7 * M[K // 2 :]
    apart = torch.cdist(M, M, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    least = apart.amin(1, keepdim=True)
    first = (apart <= least + pairs.ROUNDING * M.norm(dim=1).max()).byte().argmax(1)
    for few in (0, len(M)):  # seen by bounds first, and not
        monkeypatch.setattr(pairs, "FEW", few)
        assert pairs.nearest_others(M).equal(first)
    off = ~torch.eye(K, dtype=torch.bool)
    variance = torch.rand(K, generator=g, dtype=torch.float64)
    known = ((variance[:, None] + variance) / (2 * apart.square()))[off].mean()
    found = metrics.class_distance_variance(M, variance)
    assert float(found) == pytest.approx(float(known), rel=1e-10)
    C = M - M.mean(0)
    cosines = (C @ C.mT / C.norm(dim=1) / C.norm(dim=1)[:, None])[off]
    if seed % 3 != 0:
        angle, farthest = metrics.angles(M)
        assert float(angle) == pytest.approx(float(cosines.std(correction=0)), abs=1e-12, rel=1e-10)
        assert float(farthest) == pytest.approx(float((cosines + 1 / (K - 1)).abs().mean()), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_distances_that_tie_but_for_rounding_are_one(seed, monkeypatch):
    g = torch.Generator().manual_seed(seed)
    corners = torch.tensor([*product([-1.0, 1.0], repeat=5)], dtype=torch.float64)
    corners = corners[torch.randperm(len(corners), generator=g)]
    known = (torch.cdist(corners, corners).round(decimals=6) == 2).byte().argmax(1)
    turned = corners @ torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    for few in (0, len(turned)):
        monkeypatch.setattr(pairs, "FEW", few)
        assert pairs.nearest_others(turned).equal(known)


@pytest.mark.parametrize(("K", "D"), [(3, 1), (7, 3), (7, 6), (7, 7), (4, 9)])
def test_the_smaller_gram_matrix_gives_the_same_distance_and_gradient(K, D):
    M = torch.randn(K, D, generator=torch.Generator().manual_seed(K), dtype=torch.float64)

    def of_all_classes(M):
        C = M - M.mean(0)
        G = C @ C.mT
        frame = (torch.eye(K, dtype=torch.float64) - 1 / K) / (K - 1) ** 0.5
        return torch.linalg.matrix_norm(G / torch.linalg.matrix_norm(G) - frame)

    assert float(metrics.etf_distance(M)) == pytest.approx(float(of_all_classes(M)), rel=1e-12)
    M.requires_grad_()
    (known,) = torch.autograd.grad(of_all_classes(M), M)
    found = metrics.etf_distance_gradient(M.detach())
    torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_tiny_tiles")
@pytest.mark.parametrize("seed", range(40))
def test_nearest_means_by_tiles_are_those_of_one_product(seed, monkeypatch):
    A, _, y = instance(seed)
    found = NearestMean.empty(MeansSpan.of(ClassMoments.of(A, y)))
    tiled = found.update(A, y)
    monkeypatch.setattr(pfc.tiles, "FEWEST", 10**6)
    known = NearestMean.empty(MeansSpan.of(ClassMoments.of(A, y)))
    assert tiled.equal(known.update(A, y))
    assert found.span.points.equal(known.span.points)


def test_points_within_rounding_are_one_wherever_they_stand():
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[[7, 31, 40]] = points[3] + 1e-12 * points[[7, 31, 40]]
    points[45] = points[44]
    floor = torch.tensor(1e-11, dtype=torch.float64)
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    known = points[(apart <= floor).byte().argmax(1)]
    assert pfc.span._together(points, floor).equal(known)
    assert not known.equal(points)


def test_crowded_points_are_seen_unless_they_are_the_same():
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    floor = torch.tensor(0.0, dtype=torch.float64)
    assert not Prototypes(points, floor).crowded
    points[40] = points[3]
    assert not Prototypes(points, floor).crowded
    points[40] += 1e-9
    assert Prototypes(points, floor).crowded


def _bytes(found, seen):
    """Bytes of the tensors that an object keeps, each once."""
    if isinstance(found, torch.Tensor):
        new = found.data_ptr() not in seen
        seen.add(found.data_ptr())
        return found.numel() * found.element_size() if new else 0
    if isinstance(found, dict):
        return sum(_bytes(each, seen) for each in found.values())
    if isinstance(found, tuple | list):
        return sum(_bytes(each, seen) for each in found)
    return _bytes(vars(found), seen) if hasattr(found, "__dict__") else 0


@pytest.mark.parametrize(("K", "D"), [(60, 100), (120, 30)])
def test_the_cost_counts_what_a_line_keeps(K, D):
    H, y = problems.features(3, N=4 * K, D=D, K=K)
    spans = [MeansSpan.of(ClassMoments.of(X, y)) for X in (H, H.sin())]
    line = LineCrossings(*spans)
    seen = set()
    _bytes(spans, seen)
    line.update(project(H, spans[0], line.bases), project(H.sin(), spans[1], line.bases), y)
    assert 0.8 < _bytes(vars(line), seen) / (8 * costs._line(K, D)) < 1.1
