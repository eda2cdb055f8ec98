"""Profiles: positions, verdicts, and files that come back as they were or say what is wrong."""

import json
import math
import re
import warnings
from dataclasses import replace
from inspect import unwrap

import pytest
import torch
from torch import nn

import pfc
from pfc.files import write_tensors
from pfc.labels import BatchLabels
from pfc.moments import SegmentMoments
from pfc.profile import Segment
from pfc.warning import CollapseWarning
from tests import problems


class Walk(nn.Module):
    """Adds one more fixed step of a path in the plane to every sample."""

    def __init__(self, steps):
        super().__init__()
        self.steps = nn.ModuleList(Step(step) for step in steps)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Step(nn.Module):
    """Adds one vector."""

    def __init__(self, step):
        super().__init__()
        self.step = torch.tensor(step, dtype=torch.float64)

    def forward(self, x):
        return x + self.step


@pytest.fixture
def profile():
    """A small residual net with random weights, measured on random features."""
    H, y = problems.features(3, N=80, D=6, K=4)
    torch.manual_seed(0)
    net = pfc.FCResNet(6, 4, width=8, blocks=3, zero_start=False)
    return pfc.measure(net, [(H.float(), y)], progress=False)


def test_positions_of_a_known_path():
    points = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.0)]  # the path 00, 10, 11, 31
    known = {
        "path": [0, 0.25, 0.5, 1],
        "chord": [0, 0.316227766, 0.447213595, 1],
        "proj": [0, 0.3, 0.4, 1],
        "index": [0, 1 / 3, 2 / 3, 1],
    }
    H, y = problems.features(1, D=2)
    profile = pfc.measure(Walk(points), [(H, y)], layers="steps.*", progress=False)
    segment = profile.segment()
    for kind, positions in known.items():
        assert segment.position(kind) == pytest.approx(positions, abs=1e-9), kind
    assert profile.table()["position"].tolist() == pytest.approx(known["path"], abs=1e-12)


def test_positions_weigh_samples_as_the_profile_does():
    y = torch.tensor([0, 0, 0, 1])
    first = torch.zeros(4, 1, dtype=torch.float64)
    middle = torch.tensor([[3.0], [3], [3], [1]], dtype=torch.float64)
    last = middle + torch.tensor([[1.0], [1], [1], [5]], dtype=torch.float64)
    moments = SegmentMoments.empty(3, 2, 1)
    moments.update([first, middle, last], BatchLabels.of(y))
    for weighting, (a, b) in {"sample": (28 / 4, 28 / 4), "class": (5, 13)}.items():
        segment = Segment.of(0, ["a", "b", "c"], moments, weighting, {})
        known = math.sqrt(a) / (math.sqrt(a) + math.sqrt(b))
        assert segment.position("path")[1] == pytest.approx(known, rel=1e-12)


def test_nothing_moves_is_nan():
    H, y = problems.features(1, D=2)
    profile = pfc.measure(Walk([(0.0, 0.0)] * 2), [(H, y)], layers="steps.*", progress=False)
    assert all(math.isnan(p) for p in profile.segment().position())


def test_a_saved_profile_comes_back_whole(profile, tmp_path):
    profile.save(tmp_path / "deep" / "profile.json")
    again = pfc.load(tmp_path / "deep" / "profile.json")
    assert str(again) == str(profile)
    assert again.table().equals(profile.table())
    assert (again.layers, again.shapes, again.about) == (profile.layers, profile.shapes, profile.about)
    for name, moments in profile.moments.items():
        assert again.moments[name].mean.equal(moments.mean)
        assert again.moments[name].scatter.equal(moments.scatter)
        assert again.moments[name].mean_error.equal(moments.mean_error)
    for ours, theirs in zip(profile.segments, again.segments, strict=True):
        assert (ours.start, ours.layers, ours.weighting) == (
            theirs.start,
            theirs.layers,
            theirs.weighting,
        )
        for name in ("count", "scatter", "cross", "means", "steps"):
            assert getattr(theirs, name).equal(getattr(ours, name))
    assert again.segment().position("proj") == profile.segment().position("proj")


def test_nan_and_infinity_come_back(tmp_path):
    y = torch.tensor([0, 0, 1, 1])
    H = torch.tensor([[1.0], [-1], [2], [-2]])
    with pytest.warns(CollapseWarning, match="span 0 dimensions, not 1"):
        profile = pfc.measure(nn.Sequential(nn.Identity()), [(H, y)], progress=False)
    profile.save(tmp_path / "p.json")
    row = pfc.load(tmp_path / "p.json").table().iloc[0]
    assert row["pfc1"] == math.inf
    assert math.isnan(row["pfc2"])
    text = (tmp_path / "p.json").read_text()
    assert '"inf"' in text
    assert '"nan"' in text
    json.loads(text, parse_constant=pytest.fail)  # strict JSON


def test_means_can_be_left_out(profile, tmp_path):
    profile.save(tmp_path / "p.json", means=False)
    again = pfc.load(tmp_path / "p.json")
    assert again.moments == {}
    assert again.table().equals(profile.table())
    assert again.segment().means.equal(profile.segment().means)


def test_a_loaded_profile_can_be_saved_again(profile, tmp_path):
    for means in (True, False):
        profile.save(tmp_path / "a.json", means=means)
        pfc.load(tmp_path / "a.json").save(tmp_path / "b.json")
        again = pfc.load(tmp_path / "b.json")
        assert again.table().equals(profile.table())
        assert set(again.moments) == (set(profile.layers) if means else set())


def test_means_and_traces_of_a_segment_are_those_of_the_features(profile):
    segment = profile.segment()
    A, B = (profile.moments[segment.layers[i]].mean for i in (0, -1))
    A, B = A - A.mean(0), B - B.mean(0)
    a, b = segment.means
    for found, known in ((a @ a.T, A @ A.T), (a @ b.T, A @ B.T), (b @ b.T, B @ B.T)):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)
    assert segment.scatter[1].equal(profile.moments[segment.layers[-1]].scatter)


def damaged(path, change):
    content = json.loads(path.read_text())
    del content["checksum"]  # as a file of an older version has none
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format="pfc-profile-2"),
            r"was written by a newer pfc \(pfc-profile-2\); this one reads pfc-profile-1: update pfc",
        ),
        (
            lambda c: c.update(format="pfc-run-1"),
            "has format 'pfc-run-1'; this version reads 'pfc-profile",
        ),
        (lambda c: c.pop("format"), "has format None; this version reads 'pfc-profile-1'"),
        (lambda c: c.pop("columns"), "p.json: columns is missing"),
        (lambda c: c.update(layers=3), "p.json: layers must be a list, got 3"),
        (
            lambda c: c.update(columns={"pfc1": ["one"]}),
            r"p.json: columns.pfc1\[0\] must be a number from 0 on, got 'one'",
        ),
        (lambda c: c["columns"]["pfc1"].pop(), "layers, shapes and columns must be as many"),
        (lambda c: c["layers"].__setitem__(1, c["layers"][0]), "each layer of its own name"),
        (lambda c: c.update(arrays="0"), "does not belong to"),
        (
            lambda c: c["segments"].append({"start": 0, "layers": []}),
            r"p.json: segment/1/ must be two or more layers from layer 0 on, got \(\)",
        ),
        (lambda c: c["segments"].append(dict(c["segments"][0])), "p.json: segment/1/count is missing"),
        (
            lambda c: c["about"].update(classes=5),
            r"layer/stem/count must be torch.float64 of shape \[5\], got torch.float64 of \[4\]",
        ),
    ],
)
def test_damaged_profiles_are_refused(profile, tmp_path, change, message):
    profile.save(tmp_path / "p.json")
    damaged(tmp_path / "p.json", change)
    with pytest.raises(ValueError, match=message):
        pfc.load(tmp_path / "p.json")


def test_missing_and_foreign_files_are_refused(profile, tmp_path):
    with pytest.raises(ValueError, match="no file"):
        pfc.load(tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        pfc.load(tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        profile.save(tmp_path / "p")
    profile.save(tmp_path / "p.json")
    write_tensors(tmp_path / "p.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not belong to"):
        pfc.load(tmp_path / "p.json")
    torch.save({"a": torch.zeros(1)}, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="a pickle is never loaded"):
        pfc.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a JSON list, not an object"):
        pfc.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        pfc.load(tmp_path / "p.json")


def shaped(pfc1, pfc2, pfc3):
    """A profile with given columns."""
    names = tuple(f"blocks.{i}" for i in range(len(pfc1)))
    zeros = torch.zeros(2, len(pfc1) - 1, len(pfc1) - 1, dtype=torch.float64)
    K = torch.zeros(2, dtype=torch.float64)
    segment = Segment(0, names, "class", K, K.new_zeros(2, 2), K, K.new_zeros(2, 2, 2), zeros)
    return pfc.Profile(
        layers=names,
        shapes=((3,),) * len(names),
        columns={"pfc1": pfc1, "pfc2": pfc2, "pfc3": pfc3},
        moments={},
        segments=(segment,),
        about={"model": "Net", "samples": 1000, "classes": 2, "weighting": "class", "chosen": "named"}
        | {"accuracy": 1.0},
    )


def test_verdict_of_a_collapse_that_holds():
    profile = shaped((0.5, 0.3, 0.1), (0.6, 0.5, 0.2), (0.9, 0.995, 1.0))
    assert profile.verdict().split("\n") == [
        "Progressive feedforward collapse holds from blocks.0 to blocks.2: PFC1 goes from 0.5 to 0.1, "
        "PFC2 goes from 0.6 to 0.2, PFC3 goes from 0.9 to 1.",
        "From blocks.1 (layer 2 of 3) on, at least 99 % of the samples are nearest to their own class "
        "mean; at blocks.2 all are.",
    ]
    assert profile.effective_depth() == 1
    assert profile.effective_depth(0.0) == 2
    assert [profile.tau(c) for c in ("pfc1", "pfc2", "pfc3")] == pytest.approx([-1, -1, 1])


def test_verdict_says_where_it_does_not_hold():
    profile = shaped((0.5, 0.3, 0.4), (0.6, 0.6, 0.6), (0.9, 0.8, 0.981))
    first, second = profile.verdict().split("\n")
    assert "does not hold at every layer" in first
    assert "(PFC1 steps back at blocks.2; PFC3 steps back at blocks.1)" in first
    assert second == "No layer reaches 99 % nearest-class-mean accuracy; the best reaches 98.10 %."
    assert profile.tau("pfc1") == pytest.approx(-1 / 3)
    assert math.isnan(profile.tau("pfc2"))
    assert profile.non_monotone_layers("pfc2") == []
    assert shaped((1.0, math.nan), (0.0, 0.0), (1.0, 1.0)).non_monotone_layers("pfc1") == ["blocks.1"]


def test_errors_name_what_was_given(profile):
    with pytest.raises(ValueError, match="no segment 1: the profile has 1"):
        profile.segment(1)
    one_pass = pfc.measure(
        pfc.FCResNet(6, 4, width=8, blocks=1),
        [(torch.randn(8, 6), torch.arange(8) % 4)],
        passes=1,
        progress=False,
    )
    with pytest.raises(ValueError, match="pfc3 was not measured; it needs passes=2"):
        one_pass.effective_depth()
    with pytest.raises(ValueError, match=r"column must be one of position, pfc1, .*, got 'PFC1'"):
        profile.law("PFC1")


def test_text_and_html_hold_every_layer(profile):
    for text in (str(profile), profile._repr_html_()):
        assert "80 samples, 4 classes" in text
        for name in profile.layers:
            assert name in text
    assert "nc2_angle" in profile._repr_html_()


def test_reprs_are_a_line(profile):
    assert re.fullmatch(
        r"Profile\(FCResNet: 80 samples, 4 classes, 4 layers, at blocks.2: "
        r"PFC1 \S+, PFC2 \S+, PFC3 0\.\d+\)",
        repr(profile),
    )
    assert repr(profile.segment()) == "Segment(stem to blocks.2: 4 layers, 4 classes)"
    assert repr(profile.prediction()) == "Prediction(stem to blocks.2: 4 layers, 4 classes)"
    names = tuple(f"{'very.' * 40}long.{i}" for i in range(4))
    segment = replace(profile.segment(), layers=names)
    about = {**profile.about, "model": "M" * 300}
    long = replace(profile, layers=names, segments=(segment,), about=about)
    for each in (long, segment, long.prediction()):
        assert len(repr(each)) < 200
        assert "\n" not in repr(each)
    once = replace(profile, columns={"pfc1": profile.columns["pfc1"]})
    assert "PFC3" not in repr(once)


def test_html_is_escaped(profile):
    odd = replace(profile, about={**profile.about, "model": "<lambda>"})
    assert "&lt;lambda&gt;: 80 samples" in odd._repr_html_()


def test_scalars_are_the_numbers_of_the_table(profile):
    last, table = profile.scalars(), profile.table()
    row = table.iloc[-1].dropna()
    known = {f"pfc/{metric}": value for metric, value in row.items()}
    assert {key: last[key] for key in known} == known
    more = {"pfc/accuracy": profile.accuracy}
    if (depth := profile.effective_depth()) is not None:
        more["pfc/effective_depth"] = depth
    assert last == known | more
    assert {type(value) for value in last.values()} == {float}
    assert "nc3" not in str(profile.scalars(layers="stem")), "NaN is left out"
    every = profile.scalars("", "all")
    cells = {f"{layer}/{m}": v for layer, r in table.iterrows() for m, v in r.dropna().items()}
    assert every == cells | {key.removeprefix("pfc/"): value for key, value in more.items()}
    some = profile.scalars("x.", ["stem", "blocks.[02]"])
    assert {key.split("/")[0] for key in some} - {"x.accuracy", "x.effective_depth"} == {
        "x.stem",
        "x.blocks.0",
        "x.blocks.2",
    }
    turned = {"/".join(reversed(key.split("/"))): value for key, value in cells.items()}
    assert profile.scalars("", "all", by="metric").items() >= turned.items()
    assert profile.scalars(by="metric") == last
    with pytest.raises(ValueError, match="by must be 'layer' or 'metric', got 'row'"):
        unwrap(type(profile).scalars)(profile, by="row")
    with pytest.raises(ValueError, match=r"no layer matches 'conv\*'; measured are stem, blocks.0"):
        profile.scalars(layers=["stem", "conv*"])


def test_scalars_tell_effective_depth_only_where_it_is_known():
    good, bad = (shaped((0.5, 0.3), (0.6, 0.5), (0.9, last)) for last in (1.0, 0.9))
    assert good.scalars()["pfc/effective_depth"] == 1
    assert "pfc/effective_depth" not in bad.scalars()
    once = replace(good, columns={"pfc1": (0.5, math.nan)}, about={**good.about, "accuracy": None})
    assert once.scalars() == {}
    assert once.scalars(layers="all") == {"pfc/blocks.0/pfc1": 0.5}


def test_import_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(pfc.__all__) <= set(dir(pfc))
        for name in pfc.__all__:
            assert getattr(pfc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pfc.nothing
