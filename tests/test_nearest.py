"""Nearest class means in the span of the means: exact decisions, scatter and sameness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import pfc.nearest
import pfc.span
import pfc.tiles
from pfc.moments import ClassMoments
from pfc.nearest import Axes, NearestMean, project
from pfc.prototypes import Prototypes
from pfc.span import MeansSpan, near_means, points_of
from pfc.tiles import coordinates
from tests import problems

pytestmark = pytest.mark.usefixtures("engine")


def brute(H, y):
    """Class of the nearest mean by the definition, in extended precision."""
    H = np.asarray(H, dtype=np.longdouble)
    means = np.stack([H[np.asarray(y) == k].mean(axis=0) for k in range(int(y.max()) + 1)])
    return np.array([((h - means) ** 2).sum(axis=1).argmin() for h in H])


@given(problems.seeds)
@settings(max_examples=40, deadline=None)
def test_decisions_are_those_in_the_whole_space(seed):
    offset = 10.0 ** (seed % 7)
    H, y = problems.features(seed, D=2 + seed % 9)
    H = (H + offset).float()
    for weighting in ("class", "sample"):
        nearest = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y), weighting))
        decided = nearest.update(H, y)
        known = brute(H, y)
        np.testing.assert_array_equal(decided, known)
        hits = [(known[np.asarray(y) == k] == k).sum() for k in range(4)]
        assert nearest.hits.tolist() == hits


@pytest.mark.parametrize("P", [2, 255, 256, 257, 2000])
def test_the_nearest_of_any_number_of_points(P):
    g = torch.Generator().manual_seed(P)
    points = torch.randn(P, 5, generator=g, dtype=torch.float64)
    points[-1] = points[P // 2 - 1]  # of equal ones the first
    z = points + 1e-4 * torch.randn(P, 5, generator=g, dtype=torch.float64)
    z[0] = float("nan")
    known = [0, *range(1, P - 1), P // 2 - 1]
    assert Prototypes(points, torch.zeros((), dtype=torch.float64)).nearest(z).tolist() == known


@pytest.mark.parametrize("seed", range(200))
def test_means_of_no_weight_bend_no_distance(seed):
    """Classes without samples in the data at hand, of sizes 1e-3 to 1e8, in more or fewer dimensions."""
    rng = np.random.default_rng(seed)
    K, D = int(rng.integers(3, 12)), int(rng.integers(1, 14))
    H = rng.integers(-3, 4, size=(K, D)) * (10.0 ** rng.integers(-3, 9, size=(K, 1)) if seed % 2 else 1)
    some = torch.arange(K) < rng.integers(2, K)
    weights = some.double() / some.sum()
    span = MeansSpan.of(ClassMoments.of(H, torch.arange(K)), weights=weights)
    R = span.basis.shape[1]
    assert R <= min(D, K - 1)
    np.testing.assert_allclose(span.basis.mT @ span.basis, np.eye(R), atol=1e-13)
    M = torch.from_numpy(H) - span.centre
    missed = (M - M @ span.basis @ span.basis.mT).norm(dim=1).max()
    assert missed <= 1e-13 * M.norm(dim=1).max()


@given(problems.seeds)
@settings(max_examples=20, deadline=None)
def test_batches_and_merging_add_up(seed):
    H, y = problems.features(seed)
    span = MeansSpan.of(ClassMoments.of(H, y))
    whole, first, second = (NearestMean.empty(span) for _ in range(3))
    whole.update(H, y)
    first.update(H[:23], y[:23])
    second.update(H[23:], y[23:])
    second.merge(first)
    for name in ("count", "hits", "sums", "squares"):
        torch.testing.assert_close(getattr(second, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_span_is_orthonormal_and_keeps_distances():
    H, y = problems.features(3, D=12, K=5)
    moments = ClassMoments.of(H, y)
    span = MeansSpan.of(moments, "sample")
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(span.basis.mT @ span.basis, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        torch.cdist(span.points, span.points),
        torch.cdist(moments.mean, moments.mean),
        rtol=1e-12,
        atol=0,
    )
    pi = moments.count / moments.count.sum()
    torch.testing.assert_close(pi @ span.points, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(40))
def test_coordinates_of_wide_rows_keep_the_digits_of_each(seed, monkeypatch):
    """Rows of sizes 1e-8 to 1e8, in whatever parts their columns are made triangular."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(pfc.tiles, "TALL", int(rng.integers(1, 40)))
    P = int(rng.integers(1, 9))
    D = int(rng.integers(1, 200))
    rows = rng.standard_normal((P, D)) * 10.0 ** rng.integers(-8, 9, size=(P, 1))
    rows[-1] = rows[0] * rng.choice([-1, 0, 1])
    M = torch.from_numpy(rows)
    near = coordinates(M)
    assert near.shape == (P, P) if D > 1.5 * P else near is M
    size = rows.astype(np.longdouble)
    gram, norms = size @ size.T, np.sqrt((size**2).sum(1))
    missed = np.abs((near @ near.mT).numpy() - gram)
    assert (missed <= 1e-14 * np.outer(norms, norms)).all()


@pytest.mark.parametrize("weighting", ["class", "sample"])
@pytest.mark.parametrize("steep", [1.0, 7.9, 8.1, 1e5])
def test_a_span_of_wide_means_is_that_of_their_decomposition(steep, weighting, engine):
    """Of directions alike in strength, nearly so, and so weak that what is formed of them is oblique."""
    K, D, g = 7, 2000, torch.Generator().manual_seed(int(steep))
    y = torch.arange(K).repeat_interleave(torch.arange(1, K + 1))
    pi = torch.ones(K).double() if weighting == "class" else y.bincount().double()
    pi /= pi.sum()
    around = torch.cat([pi.sqrt()[:, None], torch.randn(K, K - 1, generator=g).double()], 1)
    left = torch.linalg.qr(around).Q[:, 1:]  # of means whose weighted mean is 0
    right = torch.linalg.qr(torch.randn(D, K - 1, generator=g).double()).Q
    values = torch.logspace(0, -math.log10(steep), K - 1, dtype=torch.float64)
    M = (left * values) @ right.mT / pi.sqrt()[:, None]
    span = MeansSpan.of(ClassMoments.of((M + 3)[y], y), weighting)
    torch.testing.assert_close(span.values, values, rtol=1e-15 * steep + 1e-14, atol=0)
    eye = torch.eye(K - 1, dtype=torch.float64)
    torch.testing.assert_close(
        span.basis.mT @ span.basis, eye, rtol=0, atol=2e-15 * min(steep, 8) + 2e-15
    )
    missed = right - span.basis @ (span.basis.mT @ right)
    assert (missed.norm(dim=0) <= 1e-14 * values[0] / values).all()
    torch.testing.assert_close(span.points @ span.basis.mT, M, rtol=0, atol=1e-13)
    moments = ClassMoments.of((M + 3)[y], y)
    assert points_of(moments, weighting).equal(span.points)


@pytest.mark.parametrize("power", [-520, -400, 0, 400, 500])
def test_spans_of_wide_means_of_any_size_are_alike(power, engine):
    """Where squares leave float64, too."""
    H, y = problems.features(6, N=30, D=1100, K=4)
    ours = MeansSpan.of(ClassMoments.of(H, y))
    moments = ClassMoments.of(H, y)
    for part in (moments.mean, moments.mean_error):
        part *= 2.0**power
    moments.scatter.zero_()
    span = MeansSpan.of(moments)
    found, known = (each.points.abs() for each in (span, ours))  # directions have no sign
    torch.testing.assert_close(found / 2.0**power, known, rtol=1e-12, atol=1e-12)
    assert points_of(moments).equal(span.points)


@pytest.mark.parametrize("most", [1, 2**8])
@pytest.mark.parametrize("D", [9, 40, 1100])
def test_means_of_two_layers_are_in_coordinates_of_both(D, most, monkeypatch, engine):
    """By a loop, or by what serves where there are too many rows for it."""
    monkeypatch.setattr(pfc.span, "FEWER", most)
    layers = [ClassMoments.of(H + 5, y) for H, y in (problems.features(s, D=D) for s in (1, 2))]
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    near = near_means(layers, pi)
    assert near.shape == (8, 8 if D > 12 else D)
    M = torch.cat([layer.centred(pi) for layer in layers])
    torch.testing.assert_close(near @ near.mT, M @ M.mT, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_means_that_are_no_numbers_are_not_made_triangular(bad, engine):
    H, y = problems.features(6, N=30, D=1100, K=4)
    moments = ClassMoments.of(H, y)
    moments.mean[1, 700] = bad
    assert not near_means([moments], moments.count / 30).isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError):
        points_of(moments)


def test_means_may_lie_anyhow(engine):
    H, y = problems.features(6, N=30, D=1100, K=4)
    moments, turned = ClassMoments.of(H, y), ClassMoments.of(H, y)
    turned.mean, turned.mean_error = (M.mT.contiguous().mT for M in (turned.mean, turned.mean_error))
    assert not turned.mean.is_contiguous()
    for found, known in (
        (points_of(turned), points_of(moments)),
        (MeansSpan.of(turned).points, MeansSpan.of(moments).points),
    ):
        torch.testing.assert_close(found.abs(), known.abs(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("D", [1, 2, 8, 9, 64, 2000])
@pytest.mark.parametrize("weights", [None, [0.5, 0.5, 0.0]])
def test_columns_lie_an_odd_number_of_lines_apart(D, weights, engine):
    H, y = problems.features(2, N=30, D=D, K=3)
    weights = weights and torch.tensor(weights, dtype=torch.float64)
    span = MeansSpan.of(ClassMoments.of(H, y), weights=weights)
    R = min(D, 2)
    for columns in (span.basis, pfc.span.laid_out([span.basis, span.basis[:, :1], span.basis])):
        assert columns.stride(0) == 1
        assert columns.stride(1) % 16 == 8
        assert D <= columns.stride(1) < D + 16
        torch.testing.assert_close(columns[:, :R], span.basis, rtol=0, atol=0)
    room = MeansSpan.room(ClassMoments.of(H, y), R).basis
    assert (room.shape, room.stride()) == (span.basis.shape, span.basis.stride())
    torch.testing.assert_close(columns[:, R + 1 :], span.basis, rtol=0, atol=0)
    torch.testing.assert_close(columns[:, R], span.basis[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(40))
def test_exact_ties_of_wide_means_go_to_the_lowest_class(seed, monkeypatch, engine):
    """Of means 2 to 30 times as far apart in one direction as in another; all numbers are whole."""
    monkeypatch.setattr(pfc.span, "WIDE", 1)
    rng = np.random.default_rng(seed)
    D = int(rng.integers(5, 17))
    means = np.zeros((3, D), int)
    means[0], means[1] = rng.integers(-40, 41, D), rng.integers(-40, 41, D)
    means[2] = means[rng.integers(2)] + 2 * rng.integers(-2, 3, D)
    means *= 2
    pairs = [(a, b) for a in range(3) for b in range(a)]
    middles = np.stack([(means[a] + means[b]) // 2 for a, b in pairs])
    apart = ((middles[:, None] - means) ** 2).sum(2)
    H = torch.from_numpy(np.concatenate([means, means])).double()
    span = MeansSpan.of(ClassMoments.of(H, torch.arange(3).repeat(2)))
    found = NearestMean.empty(span).update(torch.from_numpy(middles).double(), torch.zeros(3).long())
    assert found.tolist() == apart.argmin(1).tolist()


def test_small_singular_values_keep_their_digits():
    """A squared Gram matrix would lose half of them."""
    means = problems.simplex(3, 3) @ torch.diag(torch.tensor([1.0, 1e-7, 0], dtype=torch.float64))
    H = torch.cat([means + 1e-9 * problems.orthogonal(3, s) for s in range(40)])
    y = torch.arange(3).repeat(40)
    span = MeansSpan.of(ClassMoments.of(H, y))
    mean = np.stack([H[y == k].numpy().mean(axis=0) for k in range(3)])
    known = np.linalg.svd((mean - mean.mean(axis=0)) / np.sqrt(3), compute_uv=False)
    np.testing.assert_allclose(span.values, known[:2], rtol=1e-8)


def test_classes_without_samples_have_no_place():
    H, y = problems.features(3)
    span = MeansSpan.of(ClassMoments.of(H, 2 * y))
    assert span.place.tolist() == [0, -1, 1, -1, 2, -1, 3]
    nearest = NearestMean.empty(span)
    nearest.update(H, 2 * y)
    known = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    known.update(H, y)
    assert nearest.hits.equal(known.hits)


def test_equal_means_tie_for_the_lowest_class():
    H = torch.tensor([[1.0], [-1], [1], [-1], [5]], dtype=torch.float64)
    y = torch.tensor([1, 1, 0, 0, 2])
    nearest = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    assert nearest.update(H, y).tolist() == [0, 0, 0, 0, 2]


@pytest.mark.parametrize("tile", [3, 40])
def test_tiles_change_nothing(monkeypatch, tile):
    H, y = problems.features(5, D=23)
    known = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    known.update(H, y)
    monkeypatch.setitem(pfc.tiles.TILE, "cpu", tile)
    found = NearestMean.empty(known.span)
    found.update(H, y)
    torch.testing.assert_close(found.squares, known.squares, rtol=1e-12, atol=1e-14)


def test_other_features_are_noticed():
    H, y = problems.features(5)
    nearest = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    nearest.update(H, y)
    nearest.check("blocks.3")
    again = NearestMean.empty(nearest.span)
    again.update(H + 1e-6, y)
    with pytest.raises(ValueError, match=r"different features from the first at layer 'blocks\.3'"):
        again.check("blocks.3")


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_one_number_that_is_none_is_noticed(bad):
    H, y = problems.features(5)
    again = NearestMean.empty(MeansSpan.of(ClassMoments.of(H, y)))
    H[40, 2] = bad
    again.update(H, y)
    with pytest.raises(ValueError, match=r"different features from the first at layer 'blocks\.3'"):
        again.check("blocks.3")


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [1, 64])
def test_coordinates_lose_nothing_to_a_common_offset(offset, dtype, few, monkeypatch):
    """In whatever order the product is taken, and whenever the centre is taken off."""
    monkeypatch.setattr(pfc.nearest, "FEW", few)
    H, y = problems.features(4, N=50, D=9, K=4)
    H = (H + offset).to(dtype)
    span = MeansSpan.of(ClassMoments.of(H, y))
    assert span.central == (offset < 1e3)
    known = (H.double() - span.centre - span.centre_error) @ span.basis
    found = project(H, span, span.basis)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-13)
    assert found.is_contiguous()


@pytest.mark.parametrize("few", [1, 64])
def test_coordinates_come_into_the_room_for_them_and_nowhere_else(few, monkeypatch):
    monkeypatch.setattr(pfc.nearest, "FEW", few)
    H, y = problems.features(4, N=50, D=9, K=4)
    span = MeansSpan.of(ClassMoments.of(H + 1e5, y))
    axes = Axes(span, span.basis)
    room = torch.full((60, span.basis.shape[1]), torch.pi, dtype=torch.float64)
    found = axes.project(H + 1e5, room[4:54])
    assert found.data_ptr() == room[4:].data_ptr()
    assert room[4:54].equal(axes.project(H + 1e5))
    assert (room[:4] == torch.pi).all()
    assert (room[54:] == torch.pi).all()


@pytest.mark.parametrize("most", [2, 200])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_gathered_is_what_its_words_say(most, known, monkeypatch):
    """Of coordinates that lie among others, as those of a line do."""
    monkeypatch.setattr(pfc.nearest, "MOST_PAIRED", most)
    H, y = problems.features(7, N=90, D=6, K=5)
    span = MeansSpan.of(ClassMoments.of(H, y))
    P, R = span.points.shape
    z = torch.cat([torch.ones(90, 1), project(H, span, span.basis), torch.ones(90, 2)], 1)[:, 1 : R + 1]
    near, found = torch.cdist(z, span.points).argmin(1), NearestMean.empty(span)
    for rows in torch.arange(90).split(40):
        z_rows, own = z[rows[0] : rows[-1] + 1], near[rows] if known else None
        assert found.take(z_rows, y[rows], own).equal(near[rows])
    residual = z - span.points[y]
    for k in range(P):
        of = y == k
        assert found.count[k] == of.sum()
        assert found.hits[k] == (near[of] == k).sum()
        torch.testing.assert_close(found.sums[k], residual[of].sum(0), rtol=0, atol=1e-13)
        torch.testing.assert_close(found.squares[k], residual[of].square().sum(0), rtol=1e-13, atol=0)
    pairs = [[int(((y == k) & (near == j)).sum()) for j in range(P)] for k in range(P)]
    assert found.confusion.tolist() == (pairs if most >= P else [])


def test_a_class_that_the_span_does_not_know_is_refused():
    H, y = problems.features(7, N=90, D=6, K=5)
    found = NearestMean.empty(MeansSpan.of(ClassMoments.of(H[y != 2], y[y != 2], 5)))
    with pytest.raises(
        (ValueError, IndexError, RuntimeError), match=r"classes that the span knows|index"
    ):
        found.update(H, y)


def awkward(seed):
    """Points and samples at many scales: random, repeated, on a grid, crowded, with outliers."""
    g = torch.Generator().manual_seed(seed)
    P = int(torch.randint(2, 40, (1,), generator=g))
    R = int(torch.randint(1, P + 1, (1,), generator=g))
    M = torch.randn(P, R, generator=g, dtype=torch.float64) * 10.0 ** (seed % 9 * 4 - 16)
    kind = seed % 5
    M = [M, M[torch.randint(0, P, (P,), generator=g)], M.sign(), M * 1e-9 + M[:1], M][kind]
    noise = torch.randn(150, R, generator=g, dtype=torch.float64) * 10.0 ** -(seed % 7)
    z = M[torch.randint(0, P, (150,), generator=g)] + noise * M.std()
    if kind == 2:
        z = torch.randint(-2, 3, (150, R), generator=g).double() / 2
    if kind == 4:
        z[::3] *= 1e25
        z[1::3] *= 1e-20
    return M, z


@pytest.mark.parametrize("moved", [1e-15, 0.1])
@pytest.mark.parametrize("seed", range(30))
def test_single_precision_decides_only_what_it_can(monkeypatch, seed, moved):
    M, z = awkward(seed)
    points = Prototypes(M, M.abs().max() * moved)
    monkeypatch.setattr("pfc.prototypes.MANY", 2**60)
    known = points.nearest(z)
    monkeypatch.setattr("pfc.prototypes.MANY", 0)
    assert points.nearest(z).equal(known)
    if seed % 5 == 0:
        assert not points.likely(z, points._form.bounds(z, z.norm(dim=1)))[1].all()
