"""Features at hand: `pfc.measure_features`, from arrays of any kind, in memory or on disk."""

import re
import tracemalloc
import warnings
from inspect import unwrap

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pfc
from pfc.measuring import arrays
from tests import problems
from tests.arrays import profile_of
from tests.models import Plain, batched, samples, seeded

NET = seeded(Plain).double()
X, Y = samples(90, dtype=torch.float64)
BY_MODEL = pfc.measure(NET, batched(X, Y), layers=["stem", "blocks.*"], progress=False)
H, _ = pfc.features(NET, batched(X, Y), layers=["stem", "blocks.*"], progress=False)


def same(found, known, tolerance=1e-12):
    assert set(found.columns) == set(known.columns)
    for name, values in known.columns.items():
        assert found.columns[name] == pytest.approx(values, rel=tolerance, abs=1e-14, nan_ok=True), name


@pytest.mark.parametrize("batch", [7, 64, 1000])
@pytest.mark.parametrize(
    "head",
    [NET.classifier, (NET.classifier.weight.detach(), NET.classifier.bias.detach().numpy())],
    ids=["module", "pair"],
)
def test_a_models_features_give_the_models_profile(head, batch):
    found = profile_of(H, Y, W=head, batch=batch)
    same(found, BY_MODEL)
    assert found.accuracy == BY_MODEL.accuracy
    assert found.verdict() == BY_MODEL.verdict()
    a, b = found.segment(), BY_MODEL.segment()
    assert a.certify("etf").theorem1.b01 == pytest.approx(b.certify("etf").theorem1.b01, rel=1e-12)
    assert a.line([0, 0.3, 1]).pfc3.tolist() == b.line([0, 0.3, 1]).pfc3.tolist()
    torch.testing.assert_close(a.path().quantiles, b.path().quantiles, rtol=1e-9, atol=1e-12)


class OnlyArray:
    """What speaks `__array__` and nothing else."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype=dtype)


KINDS = {
    "numpy": np.asarray,
    "lists": lambda H: H.tolist(),
    "fortran order": lambda H: np.asfortranarray(H.numpy()),
    "big endian": lambda H: H.numpy().astype(">f8"),
    "reversed view": lambda H: H.numpy()[::-1].copy()[::-1],
    "frame": lambda H: pd.DataFrame(H.numpy(), index=[f"row {i}" for i in range(len(H))]),
    "__array__": lambda H: OnlyArray(H.numpy()),
    "images": lambda H: H.reshape(len(H), 2, 2, 2),
    "with gradient": lambda H: H.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind(kind):
    found = profile_of({name: KINDS[kind](each) for name, each in H.items()}, Y.numpy())
    for name in ("pfc1", "pfc2", "pfc3", "nc1", "cdnv"):
        assert found.columns[name] == pytest.approx(BY_MODEL.columns[name], rel=1e-12)
    assert found.shapes[0] == ((2, 2, 2) if kind == "images" else (8,))


def test_integers_are_numbers_too():
    pixels = (100 * X).round().clamp(-128, 127)
    found, known = (profile_of({"x": each}, Y) for each in (pixels.to(torch.int8).numpy(), pixels))
    same(found, known)


def test_a_file_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 2**18)
    g = np.random.default_rng(0)
    y = np.arange(4000) % 5
    for i in range(2):
        file = np.lib.format.open_memmap(tmp_path / f"{i}.npy", "w+", np.float32, (4000, 1024))
        file[:] = g.normal(size=file.shape) + y[:, None] * (i + 1)
        file.flush()
    files = {f"layer {i}": np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(2)}
    pfc.measure_features({name: file[:500] for name, file in files.items()}, y[:500], progress=False)
    tracemalloc.start()  # what is loaded and compiled once is not counted
    profile = pfc.measure_features(files, y, progress=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4e6 < files["layer 0"].nbytes  # numpy's; torch's own is of blocks
    same(profile, profile_of({name: np.array(each) for name, each in files.items()}, y, batch=999), 1e-9)


def test_a_head_that_is_no_linear_layer_answers():
    head = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    found = profile_of(H, Y, W=head)
    answers = head(H["blocks.1"]).argmax(1)
    assert found.accuracy == pytest.approx(float((answers == Y).double().mean()))
    assert not np.isnan(found.table().nc4["blocks.1"])
    assert np.isnan(found.table().nc3["blocks.1"])


def test_one_logit_is_two_classes():
    y, w = (Y > 0).long(), torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).double()
    found = profile_of(H, y, W=w, b=[0.1])
    assert found.accuracy == pytest.approx(
        float((((H["blocks.1"] @ w[0]) + 0.1 > 0) == y).double().mean())
    )


def test_one_pass_gives_what_needs_no_means():
    found = profile_of(H, Y, passes=1)
    assert "pfc3" not in found.columns
    assert found.columns["pfc1"] == pytest.approx(BY_MODEL.columns["pfc1"], rel=1e-12)


@pytest.mark.parametrize(
    ("features", "y", "how", "match"),
    [
        ([1, 2], Y, {}, "features must be a dict of arrays by the names of layers, got list"),
        ({}, Y, {}, "features must be a dict of arrays .*, got an empty one"),
        ({"a": X[:5]}, Y, {}, "layer 'a' has 5 rows, and there are 90 labels"),
        ({"a": X[:, 0]}, Y, {}, r"layer 'a' must be of shape \(N, ...\).*take X\[:, None\]"),
        ({"a": X.to(torch.complex64)}, Y, {}, "layer 'a' must hold real numbers"),
        ({"a": [["x"], ["y"]]}, [0, 1], {}, "layer 'a' must be an array of numbers, got list"),
        ({"a": X}, Y.double(), {}, "labels must be integer class indices"),
        ({"a": X}, 0 * Y, {}, "need samples of at least 2 classes, got 1"),
        ({"a": X}, Y, {"classifier": torch.ones(3, 4)}, "takes 4 numbers a sample; the layers have a 6"),
        (
            {"a": X},
            Y,
            {"classifier": (torch.ones(3, 6), torch.ones(2))},
            r"bias must be of shape \(3,\)",
        ),
        ({"a": X}, Y, {"classes": 2}, "label 2, but there are 2 classes"),
        ({"a": X}, Y, {"passes": 3}, "passes must be 1 or 2, got 3"),
    ],
)
def test_what_is_unfit_is_refused_by_name(features, y, how, match):
    with pytest.raises(ValueError, match=match):  # types are checked in tests only
        unwrap(pfc.measure_features)(features, y, **how, progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_rows_of_a_number_that_is_not_finite_are_named(bad):
    broken = {name: each.clone() for name, each in H.items()}
    broken["blocks.0"][40, 3] = bad
    with pytest.raises(ValueError, match=r"layer 'blocks.0', rows 34 to 50 must be finite, got NaN"):
        profile_of(broken, Y)


class Worse:
    """An array whose third block is no numbers any more after so many readings of its first row."""

    def __init__(self, array, bad, after):
        self.array, self.bad, self.left, self.shape = array, bad, after, array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.left -= rows.start == 0
        found = self.array[rows].clone()
        if self.left < 0 and rows.start == 34:
            found[6, 3] = self.bad
        return found


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("about", [None, BY_MODEL], ids=["own", "others"])
@pytest.mark.parametrize("after", [0, 2])  # before the first pass, and in the second
def test_the_rows_are_named_whatever_meets_the_number_first(bad, dtype, about, after, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 17 * sum(each[0].numel() for each in H.values()))
    monkeypatch.setattr(arrays, "LEAST", 1)
    features = {name: each.to(dtype) for name, each in H.items()}
    features["blocks.0"] = Worse(features["blocks.0"], bad, after)
    with pytest.raises(ValueError, match=r"layer 'blocks.0', rows 34 to 50 must be finite, got NaN"):
        unwrap(pfc.measure_features)(features, Y, means=about, progress=False)


def test_numbers_are_looked_at_while_they_are_summed(monkeypatch):
    looked = []
    monkeypatch.setattr("pfc.samples._all_finite", lambda x: looked.append(len(x)) or True)
    profile_of(H, Y)
    assert looked == [1] * len(H) + [17] * len(H), "one row, and the first block"
    looked.clear()
    profile_of(H, Y, probe=({name: each + 0.01 for name, each in H.items()}, Y))
    assert sum(looked) > 3 * len(H) * len(Y), "a probe reads both sets as they are"


def test_what_else_is_wrong_is_told_as_it_is(monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 1)
    with pytest.raises(ValueError, match="label 2, but there are 2 classes"):
        pfc.measure_features(H, Y, classes=2, progress=False)
    huge = {name: each.clone() for name, each in H.items()}
    huge["blocks.1"][70] *= 1e300
    with pytest.raises(ValueError, match=r"layer 'blocks.1' gave features of 1.2e\+300 on batch 1"):
        pfc.measure_features(huge, Y, progress=False)


def test_few_samples_a_class_are_told():
    g = torch.Generator().manual_seed(0)
    noise, y = torch.randn(20, 50, generator=g), torch.arange(20) % 4
    with pytest.warns(pfc.warning.CollapseWarning, match=r"few samples a class: .* 9\d % .* layer 'x'"):
        pfc.measure_features({"x": noise + 0.5 * torch.eye(50)[y]}, y, progress=False)
    with pytest.warns(
        pfc.warning.CollapseWarning, match=re.escape("classes [3] have one sample, which")
    ):
        pfc.measure_features(
            {"x": noise[:16]}, y[:16].where(torch.arange(16) < 4, y[:16] % 3), progress=False
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pfc.measure_features(
            {"x": (noise + 50 * torch.eye(50)[y]).repeat(9, 1)}, y.repeat(9), progress=False
        )


@pytest.mark.parametrize("weighting", ["class", "sample"])
def test_the_unbiased_ratio_is_unbiased_in_both_its_parts(weighting):
    """A simulation: 1,500 draws of 3 to 9 samples a class from classes whose PFC1 is known."""
    g = torch.Generator().manual_seed(3)
    K, D, n = 4, 6, torch.tensor([3, 4, 6, 9])
    y = torch.arange(K).repeat_interleave(n)
    mu = torch.randn(K, D, generator=g, dtype=torch.float64)
    sigma = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    pi = torch.full((K,), 0.25).double() if weighting == "class" else (n / len(y)).double()
    within = float((pi * D * sigma**2).sum())
    between = float((pi * (mu - pi @ mu).square().sum(1)).sum())
    parts = []
    for _ in range(1500):
        X = mu[y] + sigma[y, None] * torch.randn(len(y), D, generator=g, dtype=torch.float64)
        moments = pfc.moments.ClassMoments.of(X, y)
        noise = pfc.metrics.noise_share(moments, weighting) * pfc.metrics.between_trace(
            moments, weighting
        )
        denominator = pfc.metrics.between_trace(moments, weighting) - noise
        parts.append((pfc.metrics.unbiased_scatter_ratio(moments, weighting) * denominator, denominator))
    found = torch.tensor(parts)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - torch.tensor([within, between])).abs() < 4 * error).all()
    biased = float(pfc.metrics.scatter_ratio(moments, weighting))
    assert biased < within / between  # as it is on average


def test_the_plane_of_a_sample_is_the_same_at_every_size_of_batch():
    a, b = (profile_of(H, Y, batch=batch) for batch in (7, 1000))
    for name in H:
        pd.testing.assert_frame_equal(a.coordinates(name), b.coordinates(name), atol=1e-6)
    points = a.coordinates("blocks.1")
    assert len(points) == 90
    assert sorted(points["class"]) == sorted(Y.tolist())


@pytest.mark.parametrize("most", [1, 200])
def test_the_plane_is_the_same_however_many_samples_wait_to_be_decided(most, monkeypatch):
    known = profile_of(H, Y, batch=7).sample
    monkeypatch.setattr("pfc.measuring.decisions.WAITING", most)
    found = profile_of(H, Y, batch=7).sample
    assert found.hashes.equal(known.hashes)
    assert all(found.points[name].equal(known.points[name]) for name in H)


def test_the_plane_shows_the_means_in_their_first_two_directions():
    x, y = problems.features(4, N=400, D=7, K=5)
    profile = profile_of({"x": x}, y)
    points = profile.coordinates("x")
    assert len(points) == 300
    means = np.stack([x[y == k].mean(0).numpy() for k in range(5)])
    M = means - means.mean(0)
    plane = np.linalg.svd(M, full_matrices=False)[2][:2]
    own = (x.numpy() - means.mean(0)) @ plane.T
    for row in points.to_numpy():
        distance = np.abs(np.abs(own) - np.abs(row[:2])).max(1)  # directions are known up to their signs
        assert y[distance.argmin()] == row[2]
        assert distance.min() < 1e-5
    np.testing.assert_allclose(profile.sample.means["x"].abs(), np.abs(M @ plane.T), atol=1e-5)


def test_of_two_classes_the_second_direction_is_within_them():
    x, y = problems.features(6, N=120, D=7, K=2)
    x[:, 3] *= 9
    points = profile_of({"x": x}, y).coordinates("x")
    m = [x[y == k].mean(0) for k in (0, 1)]
    line = (m[1] - m[0]) / (m[1] - m[0]).norm()
    within = x - torch.stack(m)[y]
    across = within - (within @ line)[:, None] * line
    U, S, _ = torch.linalg.svd(across, full_matrices=False)
    np.testing.assert_allclose(sorted(points.y.abs()), sorted((U[:, 0] * S[0]).abs()), atol=1e-4)


def test_the_sample_does_not_depend_on_the_order_of_the_data():
    x, y = problems.features(4, N=900, D=7, K=3)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    a, b = (profile_of({"x": x[i]}, y[i]).sample.labels for i in (slice(None), order))
    assert a.tolist() == b.tolist()
    assert len(a) == 300


def test_a_class_at_a_time():
    profile = profile_of({"h": problems.O1_H}, problems.O1_Y)
    table = profile.classes("h")
    assert list(table) == ["count", "scatter", "norm", "nearest", "cosine", "accuracy"]
    Mu = problems.O1_H.reshape(3, 2, 2).mean(1)
    M = Mu - Mu.mean(0)
    assert table.norm.tolist() == pytest.approx(M.norm(dim=1).tolist(), rel=1e-12)
    assert table.scatter.tolist() == [2, 2, 2]
    assert table["count"].tolist() == [2, 2, 2]
    assert table.nearest.tolist() == [1, 0, 0]  # at 13, 13 and 17 squared
    unit = M / M.norm(dim=1, keepdim=True)
    assert table.cosine.tolist() == pytest.approx([
        float(unit[k] @ unit[j]) for k, j in enumerate([1, 0, 0])
    ])
    assert profile.geometry["h"].confusion.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    np.testing.assert_allclose(profile.geometry["h"].gram, M @ M.mT, rtol=1e-6)
    with pytest.raises(ValueError, match="no layer 'x'; the profile has h"):
        profile.classes("x")
    assert profile_of({"h": problems.O1_H}, problems.O1_Y, passes=1).classes("h").accuracy.isna().all()


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("K", [3, 30, 300])
def test_the_nearest_other_class_is_the_lowest_of_those_at_one_distance(K, offset):
    H = 3 * torch.eye(K).repeat_interleave(2, 0) + offset
    H[::2] += 1
    H[1::2] -= 1
    found = profile_of({"h": H}, torch.arange(K).repeat_interleave(2))
    assert found.classes("h").nearest.tolist() == [1] + [0] * (K - 1)


def test_confusion_counts_every_sample_once():
    x, y = problems.features(8, N=200, K=4)
    profile = profile_of({"x": x}, y)
    Mu = torch.stack([x[y == k].mean(0) for k in range(4)])
    nearest = torch.cdist(x, Mu).argmin(1)
    want = [[int(((y == j) & (nearest == k)).sum()) for k in range(4)] for j in range(4)]
    assert profile.geometry["x"].confusion.tolist() == want
    assert profile.classes("x").accuracy.tolist() == pytest.approx([
        want[k][k] / sum(want[k]) for k in range(4)
    ])


@pytest.mark.parametrize("how", [{}, {"means": False}, {"pairs": False}, {"sample": False}])
def test_what_is_small_stays_in_every_file(tmp_path, how):
    profile = profile_of(H, Y)
    profile.save(tmp_path / "p.json", **how)
    again = pfc.load(tmp_path / "p.json")
    for name in H:
        pd.testing.assert_frame_equal(again.classes(name), profile.classes(name))
        kept = again.geometry[name]
        assert (kept.gram is not None, kept.confusion is not None) == ((how.get("pairs", True),) * 2)
        if how.get("sample", True):
            pd.testing.assert_frame_equal(again.coordinates(name), profile.coordinates(name))
    if not how.get("sample", True):
        with pytest.raises(ValueError, match="no coordinates are kept"):
            again.coordinates("stem")
    assert again.table().equals(profile.table())


def test_of_many_classes_no_pairs_are_kept():
    x = torch.randn(603, 4, generator=torch.Generator().manual_seed(0))
    profile = profile_of({"x": x}, torch.arange(603) % 201)
    assert profile.geometry["x"].gram is None
    assert profile.geometry["x"].confusion is None
    assert len(profile.classes("x")) == 201
