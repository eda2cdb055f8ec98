"""Scores against loops over samples, AUROC against pairs, intervals by simulation, and refusals."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from pfc.acting import gauges
from pfc.acting.scores import _check
from pfc.acting.unknown import auroc, orthogonality
from pfc.moments import ClassMoments
from tests import problems
from tests.models import Plain, batched, samples, seeded

KINDS = ("cosine", "distance", "span", "depth")


def naive_scores(layers, means, spreads, kind):
    """Each score by its definition, sample by sample; means and spreads by class."""
    N, found = len(layers[0]), []
    near = [
        [int(np.argmin(np.linalg.norm(M - h, axis=1))) for h in H]
        for H, M in zip(layers, means, strict=False)
    ]
    for l, (H, M, s) in enumerate(zip(layers, means, spreads, strict=True)):
        g, column = M.mean(0), []
        for i in range(N):
            h, k = H[i], near[l][i]
            if kind == "cosine":
                others = [(h - g) @ (m - g) / np.linalg.norm(h - g) / np.linalg.norm(m - g) for m in M]
                column.append(max(others))
            elif kind == "distance":
                column.append(np.linalg.norm(h - M[k]) / s[k])
            elif kind == "span":
                inside = np.linalg.lstsq((M - g).T, h - g, rcond=None)[0] @ (M - g)
                column.append(np.linalg.norm(inside) / np.linalg.norm(h - g))
            else:
                first = l
                while first and near[first - 1][i] == k:
                    first -= 1
                column.append(first)
        found.append(column)
    return np.array(found).T, np.array(near).T


@pytest.fixture(scope="module")
def given():
    """A network, its profile of training data, test data and unknown data of another mean."""
    model = seeded(Plain).double().eval()
    x, y = samples(n=90, dtype=torch.float64)
    test, z = samples(n=41, seed=3, dtype=torch.float64)
    profile = pfc.measure(model, batched(x, y), progress=False)
    strange = torch.randn(23, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2
    return model, profile, (x, y), (test, z), (strange, torch.zeros(23, dtype=torch.int64))


def of(model, data):
    """Features of all layers as arrays, in float64."""
    found, y = pfc.features(model, batched(*data), progress=False)
    return {name: H.double().numpy() for name, H in found.items()}, y.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_each_score_is_its_definition(given, kind):
    model, profile, train, test, strange = given
    found = pfc.scores(
        model, batched(*test, 7), profile, kind, unknown=batched(*strange, 9), progress=False
    )
    known, y = of(model, train)
    means = [np.stack([H[y == k].mean(0) for k in range(3)]) for H in known.values()]
    spreads = [
        [np.sqrt(((H[y == k] - M[k]) ** 2).sum(1).mean()) for k in range(3)]
        for H, M in zip(known.values(), means, strict=True)
    ]
    for part, data in ((found, test), (found.unknown, strange)):
        layers, labels = of(model, data)
        values, near = naive_scores(list(layers.values()), means, spreads, kind)
        assert tuple(part.table.columns) == profile.layers
        np.testing.assert_allclose(part.table, values, rtol=1e-10, atol=1e-12)
        assert (part.nearest.to_numpy() == near).all()
    layers, labels = of(model, test)
    near = naive_scores(list(layers.values()), means, spreads, "depth")[1]
    for i, k in enumerate(labels):
        depth = next((l for l in range(3) if all(near[i, j] == k for j in range(l, 3))), 3)
        assert found.samples["depth"][i] == depth
    assert found.samples["label"].tolist() == labels.tolist()
    assert "label" not in found.unknown.samples


def test_baselines_are_those_of_the_logits(given):
    model, profile, _, test, _ = given
    with torch.no_grad():
        logits = model(test[0])
    table = pfc.scores(model, batched(*test, 7), profile, progress=False).samples
    assert table["answer"].tolist() == logits.argmax(1).tolist()
    for name, known in {
        "max softmax": logits.softmax(1).amax(1),
        "max logit": logits.amax(1),
        "energy": logits.exp().sum(1).log(),
    }.items():
        np.testing.assert_allclose(table[name], known, rtol=1e-12)


def test_a_network_of_one_logit_has_two_classes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = samples(n=40, K=2, dtype=torch.float64)
    profile = pfc.measure(net, batched(x, y), layers=["0"], progress=False)
    table = pfc.scores(net, batched(x, y), profile, progress=False).samples
    with torch.no_grad():
        z = net(x)[:, 0]
    p = torch.sigmoid(z)
    np.testing.assert_allclose(table["max softmax"], torch.maximum(p, 1 - p), rtol=1e-12)
    assert table["answer"].tolist() == (z > 0).long().tolist()


def test_known_and_unknown_are_told_apart_the_right_way_round(given):
    model, profile, _, test, strange = given
    for kind in KINDS:
        found = pfc.scores(
            model, batched(*test), profile, kind, unknown=batched(*strange), progress=False
        )
        sign = {"cosine": 1, "span": 1, "distance": -1, "depth": -1}[kind]
        for name in profile.layers:
            a, b = sign * found.table[name].to_numpy(), sign * found.unknown.table[name].to_numpy()
            assert found.auroc.loc[name, "auroc"] == pytest.approx(naive_auroc(a, b), abs=1e-12)
        assert [*found.auroc.index] == [*profile.layers, "max softmax", "max logit", "energy"]
        assert found.auroc.loc["energy", "auroc"] == pytest.approx(
            naive_auroc(found.samples["energy"], found.unknown.samples["energy"]), abs=1e-12
        )


def naive_auroc(known, unknown):
    """Pair by pair, where equal scores count half."""
    return np.mean([(a > b) + (a == b) / 2 for a in known for b in unknown])


@pytest.mark.parametrize("seed", range(6))
def test_auroc_is_the_share_of_pairs_and_its_interval_delongs(seed):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, 17) + 2.0, rng.integers(0, 9, 12) + 0.0
    area, low, high = auroc(a, b, 0.9)
    assert area == pytest.approx(naive_auroc(a, b), abs=1e-14)
    assert area == pytest.approx(roc_auc_score([1] * 17 + [0] * 12, [*a, *b]), abs=1e-12)
    pairs = np.array([[(x > y) + (x == y) / 2 for y in b] for x in a])
    variance = np.var(pairs.mean(1), ddof=1) / 17 + np.var(pairs.mean(0), ddof=1) / 12
    half = 1.6448536269514722 * math.sqrt(variance) / (area * (1 - area))
    for end, sign in ((low, -1), (high, 1)):
        x = math.log(area / (1 - area)) + sign * half
        assert end == pytest.approx(1 / (1 + math.exp(-x)), abs=1e-12)


def test_the_interval_covers_the_true_area():
    from scipy.stats import norm

    rng, true, hits = np.random.default_rng(0), norm.cdf(1.2 / math.sqrt(2)), 0
    for _ in range(1000):
        _, low, high = auroc(rng.normal(1.2, 1, 40), rng.normal(0, 1, 30))
        hits += low <= true <= high
    assert 0.93 <= hits / 1000 <= 0.97


def test_areas_and_intervals_that_are_not_defined():
    assert auroc([1.0, 2.0], [0.0, -1.0])[0] == 1
    assert all(map(math.isnan, auroc([1.0, 2.0], [0.0, -1.0])[1:]))
    assert all(map(math.isnan, auroc([1.0, math.nan], [0.0])))
    assert auroc([1.0], [1.0, 2.0])[0] == 0.25
    assert math.isnan(auroc([1.0], [1.0, 2.0])[1])
    with pytest.raises(ValueError, match="need scores of both, got 0 known and 1 unknown"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="interval must be a level"):
        auroc([1.0], [1.0], 1.0)


def test_nc5_is_the_mean_cosine_and_vanishes_where_the_unknown_are_orthogonal(given):
    model, profile, _, test, strange = given
    found = pfc.scores(model, batched(*test), profile, unknown=batched(*strange, 4), progress=False)
    layers, _ = of(model, strange)
    for name, H in layers.items():
        M, u = profile.moments[name].mean.numpy(), H.mean(0)
        for column, g in (("nc5", 0 * u), ("centred", M.mean(0))):
            cosines = [abs((m - g) @ (u - g)) / np.linalg.norm(m - g) / np.linalg.norm(u - g) for m in M]
            assert found.nc5.loc[name, column] == pytest.approx(np.mean(cosines), rel=1e-10)
    moments = ClassMoments.of(problems.simplex(3, 5), torch.arange(3))
    beyond = torch.tensor([0.0, 0, 0, 1, 2], dtype=torch.float64)
    assert orthogonality(moments, beyond, centre=True) < 1e-30
    assert orthogonality(moments, problems.simplex(3, 5)[0], centre=True) == pytest.approx(2 / 3)
    assert math.isnan(orthogonality(moments, 0 * beyond, centre=False))


def test_what_a_translation_and_a_scale_leave_alone():
    """All scores are about the mean of the means, and in units of the data."""
    H, y = problems.features(2, N=50, D=6, K=4)
    readings = []
    for X in (H, (2.5 * H + 1e4) @ problems.orthogonal(6, 1)):
        readings.append(gauges.Gauge.of(ClassMoments.of(X, y)).read(X + 0.3 * (X - X.mean(0))))
    for kind in ("cosine", "distance", "span"):
        one, two = (gauges.KINDS[kind].formula(r) for r in readings)
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10, equal_nan=True)


def test_scores_of_features_at_the_edge_of_float64():
    H, y = problems.features(2, N=50, D=6, K=4)
    plain = gauges.Gauge.of(ClassMoments.of(H, y)).read(H)
    huge = gauges.Gauge.of(ClassMoments.of(H, y), 600).read(H * 2.0**600)
    near, far = (gauges.KINDS["distance"].formula(r) for r in (plain, huge))
    torch.testing.assert_close(near, far, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_defined_is_nan():
    H = torch.tensor([[0.0, 0], [2, 0], [0, 3], [0, 3]], dtype=torch.float64)
    gauge = gauges.Gauge.of(ClassMoments.of(H, torch.tensor([0, 0, 1, 1])))
    g = torch.tensor([[0.5, 1.5]], dtype=torch.float64)  # the mean of the means
    seen = gauge.read(torch.cat([H, g]))
    distance = gauges.KINDS["distance"].formula(seen)
    assert distance[:2].tolist() == [1, 1]
    assert distance[2:4].isnan().all(), "the second class has no spread"
    for kind in ("cosine", "span"):
        values = gauges.KINDS[kind].formula(seen)
        assert values[:4].isfinite().all()
        assert values[4].isnan()


def test_a_class_mean_that_is_the_mean_of_all_has_no_direction():
    H = torch.tensor([[1.0, 1], [-1, -1], [0, 0]], dtype=torch.float64)
    gauge = gauges.Gauge.of(ClassMoments.of(H, torch.arange(3)))
    assert gauges.KINDS["cosine"].formula(gauge.read(H))[:2].tolist() == pytest.approx([1, 1])


def test_depths_by_hand():
    near = torch.tensor([[2, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 2]])
    assert gauges.settled(near).tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 2], [0, 0, 0, 3]]
    y = torch.tensor([1, 1, 0, 1])
    assert gauges.prediction_depth(near, y).tolist() == [1, 0, 2, 4]


def test_the_hardest_samples_come_first(given):
    model, profile, _, test, strange = given
    found = pfc.scores(model, batched(*test), profile, unknown=batched(*strange), progress=False)
    hard = found.hardest(10)
    assert len(hard) == 10
    depths = found.samples["depth"]
    assert sorted(hard["depth"], reverse=True) == hard["depth"].tolist()
    assert hard["depth"].min() >= depths.drop(hard.index).max()
    for i, row in hard.iterrows():
        if row["depth"]:
            assert row["nearest"] == found.nearest.iloc[i, row["depth"] - 1] != row["label"]
        else:
            assert row["nearest"] == row["label"]
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        found.hardest(0)
    with pytest.raises(ValueError, match=r"n must be a whole number, got 2\.5"):
        inspect.unwrap(type(found).hardest)(found, 2.5)
    with pytest.raises(ValueError, match="unknown data have no classes of their own"):
        found.unknown.hardest()


def test_only_chosen_layers_are_read(given):
    model, profile, _, test, _ = given
    whole = pfc.scores(model, batched(*test), profile, "span", progress=False)
    some = pfc.scores(
        model, batched(*test), profile, "span", layers="blocks.*", limit=20, progress=False
    )
    assert [*some.table] == ["blocks.0", "blocks.1"]
    np.testing.assert_allclose(some.table, whole.table[["blocks.0", "blocks.1"]][:20], rtol=1e-12)
    assert repr(some) == "Scores('span': 20 samples, 2 layers)"


def test_scores_of_a_saved_profile_and_pooled_maps(tmp_path):
    digits = pfc.data.load("digits", limit=120)
    torch.manual_seed(0)
    net = pfc.ConvResNet(1, (8, 8), 10, blocks=(1, 1), width=4, zero_start=False)
    for pool in ("flatten", "mean"):
        profile = pfc.measure(net, digits.batches(), pool=pool, progress=False)
        profile.save(tmp_path / f"{pool}.json")
        kept = pfc.load(tmp_path / f"{pool}.json")
        found = pfc.scores(net, digits.batches(50), kept, progress=False)
        right = found.nearest.to_numpy() == found.samples["label"].to_numpy()[:, None]
        np.testing.assert_allclose(right.mean(0), profile.columns["pfc3"], atol=1e-12)


def refused(match, given, **changed):
    model, profile, _, test, _strange = given
    how = {"net": model, "data": batched(*test), "profile": profile} | changed
    with pytest.raises(ValueError, match=match):
        pfc.scores(**how, progress=False)


def test_what_can_not_be_scored_is_refused(given, tmp_path):
    model, profile, train, test, _strange = given
    refused("kind must be one of cosine, distance, span, depth, got 'knn'", given, kind="knn")
    with pytest.raises(ValueError, match="profile must be a Profile, as measure gives it, got dict"):
        _check({}, "cosine")
    profile.save(tmp_path / "p.json", means=False)
    refused(
        "keeps no class means: measure again, or save it", given, profile=pfc.load(tmp_path / "p.json")
    )
    about = pfc.measure(model, batched(*test), means=profile, progress=False)
    refused("is itself about the means of other data, 90 samples", given, profile=about)
    refused("no layer matches 'stage'; measured are stem", given, layers=["stage"])
    refused("layers are none; measured are stem", given, layers=[])
    summed = pfc.measure(model, batched(*train), pool=lambda H: H.abs(), progress=False)
    refused(
        "were reduced by pool='<lambda>'; measure with one of flatten, mean, cls", given, profile=summed
    )
    refused("limit must be at least 1, got 0", given, limit=0)


def test_labels_and_forms_that_do_not_fit_are_refused(given):
    model, _profile, train, test, _strange = given
    two = [(x[y < 2], y[y < 2]) for x, y in batched(*train)]
    with pytest.warns(match="no sample"):
        few = pfc.measure(model, two, progress=False)
    refused("has samples of class 2, of which the profile has no mean", given, profile=few)
    with pytest.warns(match="no sample"):
        one = pfc.measure(model, [(x[y == 1], y[y == 1]) for x, y in two], means=few, progress=False)
    object.__setattr__(one, "about", {**one.about, "means": None})
    refused("the means of at least 2 classes, the profile has 1", given, profile=one)
    wide = torch.zeros(4, 9, dtype=torch.float64)
    unknown = [(wide, torch.zeros(4, dtype=torch.int64))]
    refused("the unknown data can't be scored beside the known: Plain failed", given, unknown=unknown)
    told = "samples of the unknown data that were compared are among"
    refused(f"41 of 41 {told} those of data: give data of none", given, unknown=batched(*test, 6))

    def few(n, data):
        return batched(torch.cat([_strange[0], data[0][:n]]), torch.zeros(23 + n).long())

    refused(f"6 of 29 {told} those of data", given, unknown=few(6, test))
    refused(f"9 of 32 {told} the data that the profile was", given, unknown=few(9, train))
    model, profile = given[:2]
    pfc.scores(model, batched(*test), profile, unknown=few(2, test), progress=False)
    H, labels = problems.features(0, D=5, K=3)
    other = pfc.measure_features({"stem": H}, labels, progress=False)
    refused("layer 'stem' has 8 numbers a sample, its class means have 5", given, profile=other)


def test_unknown_data_need_no_labels(given):
    model, profile, _, test, (x, y) = given
    known = pfc.scores(model, batched(*test), profile, unknown=batched(x, y, 9), progress=False)
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=9)
    strange = [(part, [-5.0] * len(part)) for part in x.split(9)]
    for unknown in ([*x.split(9)], plain, strange, [(part, None) for part in x.split(9)]):
        found = pfc.scores(model, batched(*test), profile, unknown=unknown, progress=False)
        np.testing.assert_array_equal(found.unknown.table, known.unknown.table)
        assert found.auroc.equals(known.auroc)
        assert found.nc5.equals(known.nc5)
    dicts = [{"x": part, "label": torch.ones(len(part))} for part in x.split(9)]
    named = [{"x": part} for part in x.split(9)]
    for unknown in (dicts, named):
        found = pfc.scores(model, batched(*test), profile, unknown=unknown, progress=False)
        assert found.auroc.equals(known.auroc)
    told = "the unknown data .* batch 0 must be a tensor, a pair .* got str"
    refused(told, given, unknown=["text"])
    refused("batch 0 must be a pair", given, data=[*test[0].split(9)])


def test_the_network_is_left_as_it_was(given):
    model, profile, _, test, _ = given
    model.train()
    before = [p.clone() for p in model.parameters()]
    pfc.scores(model, batched(*test), profile, progress=False)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()


def test_a_summary_has_the_quantiles_of_both(given):
    model, profile, _, test, strange = given
    alone = pfc.scores(model, batched(*test), profile, progress=False)
    found = pfc.scores(model, batched(*test), profile, unknown=batched(*strange), progress=False)
    table, layers = found.summary(), list(profile.layers)
    assert list(table.index) == [*layers, "max softmax", "max logit", "energy"]
    assert table.iloc[:, :3].equals(alone.summary())
    for name in table.index:
        parts = [s.table[name] if name in layers else s.samples[name] for s in (found, found.unknown)]
        for prefix, values in zip(("", "unknown_"), parts, strict=True):
            told = table.loc[name, [f"{prefix}{q}" for q in ("q05", "median", "q95")]]
            np.testing.assert_allclose(told.tolist(), np.quantile(values, [0.05, 0.5, 0.95]), rtol=1e-12)
    assert table[["auroc", "low", "high"]].equals(found.auroc)
    assert table.loc[layers, ["nc5", "centred"]].equals(found.nc5)
    assert table.nc5.isna().sum() == 3
