"""Data measured about the class means of other data: MATH 11.2, by column, and what is refused."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import pfc
from pfc.profile.columns import COLUMNS
from tests import problems
from tests.arrays import profile_of
from tests.models import Plain, batched, collected, samples, seeded
from tests.oracles import naive_row


def naive_about(H, y, M, weighting, W=None, b=None):
    """The metrics about means M (K x D, by class) by their definitions, sample by sample."""
    H, y, M = np.asarray(H), np.asarray(y), np.asarray(M)
    classes, n = np.unique(y, return_counts=True)
    pi = np.full(len(classes), 1 / len(classes)) if weighting == "class" else n / len(y)
    weight = {k: pi[i] / n[i] for i, k in enumerate(classes)}
    g = sum(p * M[k] for p, k in zip(pi, classes, strict=True))
    D = H.shape[1]
    within = sum(weight[k] * np.outer(h - M[k], h - M[k]) for h, k in zip(H, y, strict=True))
    between = sum(p * np.outer(M[k] - g, M[k] - g) for p, k in zip(pi, classes, strict=True))
    nearest = np.array([np.nanargmin([((h - m) ** 2).sum() for m in M]) for h in H])
    fuzziness = np.trace(within @ np.linalg.pinv(between, rcond=1e-12, hermitian=True))
    several = len(classes) > 1
    row = {"pfc3": np.mean(nearest == y), "position": math.nan}
    if several:
        row |= {"pfc1": np.trace(within) / np.trace(between)}
        row |= {"fuzziness": fuzziness, "nc1": fuzziness / len(classes)}
        kept = ("pfc2", "nc2_norm", "nc2_angle", "nc2_max_angle", "cdnv", "nc3")
        own = naive_row(H, y, weighting, W, b)
        row |= {name: own[name] for name in kept if name in own}
    if W is not None:
        row["nc4"] = np.mean((H @ np.asarray(W).T + np.asarray(b)).argmax(1) != nearest)
    assert D == M.shape[1]
    return row


def two_sets(seed, keep=None, K=4, D=5):
    """Training and test features at two layers, the test ones of some classes only, a classifier."""
    g = torch.Generator().manual_seed(seed)
    train, y = problems.features(seed, N=60, D=D, K=K)
    test, z = problems.features(seed + 1, N=50, D=D, K=K)
    test = test + 0.3 * torch.randn(D, generator=g, dtype=test.dtype)
    if keep is not None:
        test, z = test[torch.isin(z, torch.tensor(keep))], z[torch.isin(z, torch.tensor(keep))]
    turn = problems.orthogonal(D, seed)
    W = torch.randn(K, D, generator=g, dtype=test.dtype)
    b = torch.randn(K, generator=g, dtype=test.dtype)
    return {"a": train @ turn, "b": train}, y, {"a": test @ turn, "b": test}, z, W, b


def quietly(*args, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return profile_of(*args, **how)


@given(problems.seeds)
@settings(max_examples=24, deadline=None)
def test_every_column_equals_its_definition(seed):
    keep = [None, [0, 2], [1], [0, 1, 3]][seed % 4]
    weighting = ("class", "sample")[seed // 4 % 2]
    train, y, test, z, W, b = two_sets(seed, keep, D=(2, 5)[seed // 8 % 2])
    known = quietly(train, y, W=W, b=b, weighting=weighting)
    found = quietly(test, z, W=W, b=b, weighting=weighting, means=known)
    assert set(found.columns) == set(COLUMNS) - {"pfc1_unbiased", "probe"}
    for name, head in (("a", {}), ("b", {"W": W, "b": b})):
        M = np.stack([train[name][y == k].mean(0).numpy() for k in range(4)])
        row = naive_about(test[name], z, M, weighting, **head)
        for column, value in found.table().loc[name].items():
            want = row.get(column, math.nan)
            np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-12, err_msg=column)
    answers = (test["b"] @ W.mT + b).argmax(1)
    assert found.accuracy == pytest.approx(float((answers == z).double().mean()))


def test_about_its_own_means_nothing_changes():
    train, y, _, _, W, b = two_sets(3)
    own = profile_of(train, y, W=W, b=b, paired=False)
    about = profile_of(train, y, W=W, b=b, means=own)
    for name in about.columns:
        assert about.columns[name] == pytest.approx(own.columns[name], rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_an_offset_costs_no_digit(offset):
    train, y, test, z, _, _ = two_sets(5)
    moved = [{name: H + offset for name, H in each.items()} for each in (train, test)]
    about = quietly(moved[1], z, means=quietly(moved[0], y)).table()
    M = [moved[0]["b"][y == k].mean(0).numpy() for k in range(4)]
    row = naive_about(moved[1]["b"] - offset, z, np.stack(M) - offset, "class")
    assert about.pfc1["b"] == pytest.approx(row["pfc1"], rel=1e-12 if not offset else 1e-8)


def test_a_model_on_test_data_about_its_training_means(tmp_path):
    net = seeded(Plain)
    train, test = (batched(*samples(n, seed=seed)) for n, seed in ((90, 0), (70, 1)))
    own = pfc.measure(net, train, progress=False)
    own.save(tmp_path / "own.json")
    about = pfc.measure(net, test, means=pfc.load(tmp_path / "own.json"), progress=False)
    assert about.layers == own.layers
    assert about.segments == ()
    assert str(about).splitlines()[0].endswith("about the class means of other data, 90 samples")
    assert str(own).splitlines()[0].endswith("about their own class means")
    rows, seen = (collected(net, each, ["stem", "blocks.1"]) for each in (train, test))
    y, z = (torch.cat([labels for _, labels in each]) for each in (train, test))
    for name in ("stem", "blocks.1"):
        M = np.stack([rows[name][y == k].mean(0) for k in range(3)])
        row = naive_about(seen[name], z, M, "class")
        for column in ("pfc1", "pfc2", "pfc3", "nc1", "cdnv"):
            assert about.table()[column][name] == pytest.approx(row[column], rel=1e-9)
    about.save(tmp_path / "about.json")
    again = pfc.load(tmp_path / "about.json")
    assert again.table().equals(about.table())
    assert str(again) == str(about)
    with pytest.raises(
        ValueError, match="pfc1_unbiased was not measured; it needs the data's own class"
    ):
        again._measured("pfc1_unbiased")


def test_one_class_of_test_data_is_enough():
    train, y, test, z, W, b = two_sets(2, keep=[1])
    found = quietly(test, z, W=W, b=b, means=quietly(train, y, W=W, b=b))
    row = found.table().loc["b"]
    assert 0 <= row.pfc3 <= 1
    assert 0 <= row.nc4 <= 1
    assert row[["pfc1", "pfc2", "cdnv", "nc3"]].isna().all()
    assert found.classes("b").index.tolist() == [1]
    assert found.geometry["b"].confusion.shape == (1, 4)


def test_both_side_by_side():
    train, y, test, z, _, _ = two_sets(2)
    own = quietly(train, y, name="training")
    both = own.beside(quietly(test, z, means=own, name="test"))
    assert both.columns.tolist()[:4] == [
        *(("position", "training"), ("position", "test")),
        *(("pfc1", "training"), ("pfc1", "test")),
    ]
    assert both["pfc3"].training.tolist() == list(own.columns["pfc3"])
    with pytest.raises(ValueError, match="names must be two different ones, got 'training', 'training'"):
        own.beside(own)
    with pytest.raises(ValueError, match="no layer in common: a, b; c"):
        own.beside(quietly({"c": train["a"]}, y), ("x", "y"))


def refused(match, **changes):
    train, y, test, z, _, _ = two_sets(1)
    how = {"means": quietly(train, y)} | changes
    with pytest.raises(ValueError, match=match):
        quietly(how.pop("features", test), how.pop("y", z), **how)


def test_what_does_not_fit_is_refused_by_name():
    train, y, test, z, _, _ = two_sets(1)
    known = quietly(train, y)
    refused("keeps no class means: measure again", means=dataclasses.replace(known, moments={}))
    part = dataclasses.replace(known, moments={"a": known.moments["a"]})
    refused(r"the means of layer 'b' are not known; .* knows those of a", means=part)
    wide = {"a": test["a"], "b": torch.cat([test["b"], test["b"]], 1)}
    refused("layer 'b' has 10 numbers a sample, but its means have 5", features=wide)
    refused("label 9, but there are 4 classes", y=torch.where(z == 3, 9, z))
    refused("the means are of 4 classes, got classes=5", classes=5)
    refused("both passes are needed, got passes=1", passes=1)
    about = quietly(test, z, means=known)
    refused("is itself about the means of other data, 60 samples", means=about)
    some = y != 2
    without = quietly({n: H[some] for n, H in train.items()}, y[some], classes=4)
    refused(r"classes \[2\] have samples here, but none behind the means", means=without)
    pooled = dataclasses.replace(known, about={**known.about, "pool": "mean"})
    refused("reduced by pool='mean', these are by 'flatten'", means=pooled)


def test_a_mean_that_is_no_profile_is_refused():
    with pytest.raises(ValueError, match="means must be a Profile, as measure gives it, got str"):
        pfc.measuring.entry.Reference.of("train.json")


def test_shuffled_features_are_noticed():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 4)

    net = nn.Sequential(Noisy(6, 4), nn.Linear(4, 3))
    data = batched(*samples(60))
    known = pfc.measure(net, data, passes=1, layers="0", progress=False)
    with pytest.raises(ValueError, match="different features from the first at layer '0'"):
        pfc.measure(net, data, means=known, progress=False)


@pytest.mark.parametrize("power", [-500, 500])
def test_features_whose_squares_overflow(power):
    """The powers of two of the reference hold for the data, too."""
    train, y, test, z, _, _ = two_sets(5)
    plain = quietly(test, z, means=quietly(train, y))
    large = [{name: H * 2.0**power for name, H in each.items()} for each in (train, test)]
    known = quietly(large[0], y)
    found = quietly(large[1], z, means=known)
    for name in set(plain.columns) - {"position"}:
        assert found.columns[name] == pytest.approx(plain.columns[name], rel=1e-12, nan_ok=True), name
    a, b = (profile.classes("a") for profile in (found, plain))
    np.testing.assert_allclose(a.norm, b.norm * 2.0**power, rtol=1e-12)
    x = [sorted(profile.coordinates("a").x.abs()) for profile in (found, plain)]  # of other hashes
    np.testing.assert_allclose(np.array(x[0]) * 2.0**-power, x[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="float64 cannot square both; scale them"):
        quietly({name: H * 2.0**500 for name, H in test.items()}, z, means=quietly(train, y))
