"""What theory says of a segment: agreement with the line, sentences, tables, and how they print."""

import json
import math
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from pfc.files import write_json
from pfc.profile import load_transport
from pfc.profile.prediction import _factor, _of_law, _percent, _told
from pfc.theory import transport
from pfc.theory.separation import fit
from tests import problems
from tests.test_profile import Walk


@pytest.fixture(scope="module")
def measured():
    H, y = problems.features(3, N=80, D=6, K=4, spread=0.8)
    torch.manual_seed(0)
    net = pfc.FCResNet(6, 4, width=8, blocks=4, zero_start=False)
    return net, [(H.float(), y)], pfc.measure(net, [(H.float(), y)], progress=False)


class OnTheLine(nn.Module):
    """Moves every sample a part of its way to the nearest corner of a frame, along one straight line."""

    def __init__(self, times, end):
        super().__init__()
        self.end = end
        self.layers = nn.ModuleList(Stop(t) for t in times)

    def forward(self, x):
        for layer in self.layers:
            layer(x, self.end)


class Stop(nn.Module):
    """One point of the line."""

    def __init__(self, t):
        super().__init__()
        self.t = t

    def forward(self, x, end):
        return (1 - self.t) * x + self.t * end


def test_layers_on_the_line_agree_with_it_wherever_they_stand():
    A, y = problems.features(5, N=50, D=6, K=3)
    B, _ = problems.features(6, N=50, D=6, K=3, spread=0.3)
    times = [0.0, 0.1, 0.45, 0.8, 1.0]
    profile = pfc.measure(OnTheLine(times, B), [(A, y)], layers="layers.*", progress=False)
    for kind in ("path", "chord", "proj"):
        found = profile.agreement(kind)
        assert found.position == pytest.approx(times, abs=1e-12)
        for metric in ("pfc1", "pfc2", "pfc3"):
            assert found.difference[metric] == pytest.approx([0] * 5, abs=1e-10)
            assert found.off[metric] == pytest.approx(0, abs=1e-10)
    index = profile.agreement("index")
    assert max(map(abs, index.difference["pfc1"])) > 1e-3
    path = profile.segment().path()
    assert path.straightness == pytest.approx(1, abs=1e-12)
    assert path.over_samples("straightness", 0) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("end", ["measured", "means", "etf"])
def test_differences_and_their_one_number_are_what_they_say(measured, end):
    _, _, profile = measured
    table = profile.table()
    for kind in ("path", "chord", "proj", "index"):
        found = profile.agreement(kind, end)
        position = np.array(profile.segment().position(kind))
        inside = (position >= 0) & (position <= 1)
        for metric in ("pfc1", "pfc2", "pfc3"):
            values = table[metric].to_numpy()[:5]
            line = getattr(profile.segment().line(position.clip(0, 1).tolist(), end), metric).numpy()
            known = np.where(inside, values - line, np.nan)
            np.testing.assert_allclose(found.difference[metric], known, rtol=1e-12, atol=1e-15)
            inner = known[1:-1][inside[1:-1]]
            off = math.sqrt((inner**2).mean()) / abs(values[-1] - values[0])
            assert found.off[metric] == pytest.approx(off, rel=1e-12)
    if end == "measured":
        assert found.difference["pfc1"][0] == pytest.approx(0, abs=1e-12)
        assert found.difference["pfc3"][-1] == pytest.approx(0, abs=1e-12)


def test_a_layer_beside_the_line_has_no_difference():
    """On a path that overshoots, the chord's position passes 1: there is no line there."""
    H, y = problems.features(1, D=2)
    profile = pfc.measure(
        Walk([(0.0, 0.0), (3.0, 0.0), (-2.0, 0.0)]), [(H, y)], layers="steps.*", progress=False
    )
    found = profile.agreement("chord")
    assert found.position == pytest.approx([0, 3, 1])
    assert math.isnan(found.difference["pfc1"][1])
    assert math.isnan(found.off["pfc1"])


def test_after_one_pass_pfc3_is_nan_and_fuzziness_left_out(measured):
    net, data, _ = measured
    profile = pfc.measure(net, data, passes=1, progress=False)
    assert all(map(math.isnan, profile.agreement().difference["pfc3"]))
    assert set(profile.prediction().laws) == {"pfc1"}
    assert "PFC3" not in str(profile.prediction())
    with pytest.raises(ValueError, match="fuzziness was not measured"):
        profile.law()


def test_laws_are_fitted_to_the_layers_of_the_segment(measured):
    _, _, profile = measured
    values = profile.table()["fuzziness"].to_numpy()[:5]
    slope = np.polyfit(range(5), np.log(values), 1)[0]
    assert math.log(profile.law().rate) == pytest.approx(slope, rel=1e-10)
    assert profile.law("pfc1").layers == 5


def test_a_prediction_tells_its_numbers(measured, tmp_path):
    net, data, profile = measured
    found = pfc.measuring.transport(net, data, profile, progress=False)
    prediction = profile.prediction(transport=found)
    text = str(prediction)
    for words in ("from stem to blocks.3", "measured", "means", "etf", "Theorem 1: ", "Theorem 2: "):
        assert words in text
    for sentence in prediction.sentences():
        assert sentence in text
    table = prediction.table()
    certificate = profile.segment().certify("etf")
    assert table.loc["etf", "align"] == certificate.theorem1.align
    assert table.loc["etf", "pfc2_from"] == certificate.theorem2.t0
    assert table.loc["measured", "pfc1_falls"] == profile.segment().certify().theorem1.monotone
    write_json(tmp_path / "t.json", prediction.to_dict())
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["certificates"]["etf"]["theorem1"]["b01"] == certificate.theorem1.b01
    assert told["path"]["straightness"] == profile.segment().path().straightness
    assert told["sentences"] == prediction.sentences()
    assert repr(transport.restored(told["transport"])) == repr(found)


def test_a_prediction_is_kept_and_its_transport_read_again(measured, tmp_path):
    net, data, profile = measured
    found = pfc.measuring.transport(net, data, profile, progress=False)
    path = tmp_path / "theory.json"
    assert load_transport(path, profile) is None, "there is no file"
    profile.prediction(transport=found).save(path, profile)
    kept = json.loads(path.read_text())
    assert kept["format"] == "pfc-theory-1"
    assert kept["sentences"] == profile.prediction(transport=found).sentences()
    assert repr(load_transport(path, profile)) == repr(found)
    assert load_transport(path, replace(profile, segments=())) is None
    other = replace(profile, columns={**profile.columns, "cdnv": (0.0,) * len(profile.layers)})
    message = f"{path} is of another profile, so its transport is left out: measure again"
    with pytest.warns(UserWarning, match=message):
        assert load_transport(path, other) is None
    profile.prediction().save(str(path), profile)
    assert load_transport(str(path), profile) is None, "none was computed"
    for name in ("profile", "transport", "checksum"):
        del kept[name]
    path.write_text(json.dumps(kept))
    assert load_transport(path, profile) is None, "what has a default may be absent"
    path.write_text(json.dumps({**kept, "transport": {"cost": 1}}))
    with pytest.raises(ValueError, match=rf"{path}: transport\.samples is missing"):
        load_transport(path, profile)


def test_transport_is_that_of_the_segments_ends(measured):
    net, data, profile = measured
    found = pfc.measuring.transport(net, data, profile, progress=False)
    features, y = pfc.features(net, data, ["stem", "blocks.3"], progress=False)
    known = transport.gap(features["stem"], features["blocks.3"], y, weighting="class", progress=False)
    assert repr(found) == repr(known)
    assert found.cost <= profile.segment().path().chord ** 2 * (1 + 1e-9), "centred costs no more"
    odd = replace(profile, about={**profile.about, "pool": "mine"})
    with pytest.raises(ValueError, match="outputs were pooled by mine: give their features"):
        pfc.measuring.transport(net, data, odd)


def test_where_nothing_moves_theory_says_so():
    H, y = problems.features(3, N=40, D=6, K=4)
    net = pfc.FCResNet(6, 4, width=8, blocks=3)
    profile = pfc.measure(net, [(H.float(), y)], progress=False)
    assert profile.segment().certify().theorem1.monotone
    assert profile.segment().certify().theorem1.turns == ()
    assert profile.segment().certify().theorem2.turns == ()
    assert profile.prediction().sentences() == [
        "Nothing moves between the layers: the line is a point, and theory says nothing."
    ]
    assert math.isnan(profile.agreement().off["pfc1"])


def line(A, B, y):
    """The prediction of two layers."""
    profile = pfc.measure(OnTheLine([0.0, 1.0], B), [(A, y)], layers="layers.*", progress=False)
    return profile.prediction().sentences()


def test_sentences_of_each_verdict():
    y = torch.tensor([0, 0, 1, 1])
    A, B = ([[v] for v in values] for values in ([-1.0, 1, 3, 5], [4.0, 4, 0, 0]))
    theorem1, theorem2, *_ = line(torch.tensor(A).double(), torch.tensor(B).double(), y)
    for end in ("nearest simplex ETF", "measured features"):
        assert f"on the line to the {end} PFC1 rises to t = 0.5 and falls to the end" in theorem1
    assert theorem2.count("PFC2 is 0 (two classes) everywhere") == 2
    H, y = problems.features(2, N=40, D=6, K=4, spread=0.1)
    means = torch.stack([H[y == k].mean(0) for k in range(4)])[y]
    rising = line(H, means + 5 * (H - means), y)[0]
    assert "on the line to the measured features PFC1 rises everywhere" in rising
    eye = torch.eye(3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="one sample"):
        theorem1, theorem2, *_ = line(eye, eye[[1, 0, 2]], torch.arange(3))
    assert "to the measured features PFC2 rises to t = 0.5 and falls to the end" in theorem2
    shrunk, stretched = (torch.diag(torch.tensor([v, 1.0, 1, 1]).double()) for v in (0.3, 3))
    with pytest.warns(UserWarning, match="one sample"):
        rising = line(shrunk, stretched, torch.arange(4))[1]
    assert "to the measured features PFC2 falls to t = 0.259 and rises to the end" in rising
    with pytest.warns(UserWarning, match="one sample"):
        rising = line(torch.eye(4, dtype=torch.float64), stretched, torch.arange(4))[1]
    assert "to the measured features PFC2 rises everywhere" in rising
    H, y = problems.features(9, N=40, D=2, K=5)
    theorem1, theorem2, *_ = line(H, 2 * H + 1, y)
    assert "on the line to the nearest simplex ETF nothing is defined" in theorem1
    assert "on the line to the nearest simplex ETF PFC2 is undefined" in theorem2


def test_where_pfc2_falls_twice_both_are_told():
    """The counterexample to a global Theorem 2: it falls on [0, 1/2] as well."""
    delta, E = 0.01, np.eye(4) - 1 / 4
    M, N = np.vstack([E, 0 * E]), np.vstack([0 * E, np.diag([2, 1, 0, 0]) @ E])
    P = N.T @ N - np.trace(N.T @ N) / 3 * E
    start = (M + delta * N - delta**2 * M @ P / 4).T
    with pytest.warns(UserWarning, match="one sample"):
        theorem2 = line(torch.from_numpy(start), torch.from_numpy(M.T.copy()), torch.arange(4))[1]
    assert theorem2.count("PFC2 falls to t = 0.5, rises to t = 0.75 and falls to the end") == 2


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ((0.25,), ["0.25"]),
        ((0.9997,), ["0.9997"]),
        ((0.12345, 0.12346), ["0.12345", "0.12346"]),
        ((1 - 2.0**-53,), ["0.9999999999999999"]),
        ((0.5, 0.5 + 2.0**-52), ["0.5", "0.5000000000000002"]),
    ],
)
def test_turns_are_printed_apart_and_inside(turns, told):
    assert _told(turns) == told


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (0.5, "0.5"),
        (0.9994, "0.999"),
        (0.9996, "0.9996"),
        (1.00000004, "1.00000004"),
        (1 + 2.0**-52, "1.0000000000000002"),
    ],
)
def test_a_factor_of_what_changes_is_not_told_as_one(rate, told):
    assert _factor(rate) == told


def test_no_part_of_a_change_that_is_round_off_is_told():
    y = torch.arange(3).repeat(4)
    H, _ = problems.features(4, N=12, D=4, K=3)
    profile = pfc.measure(OnTheLine([0.0, 0.4, 1.0], 3 * H), [(H, y)], layers="layers.*", progress=False)
    sentences = profile.prediction().sentences()
    assert all(math.isnan(off) for off in profile.agreement().off.values())
    assert (
        "Inner layers are not compared with the line: no metric changes, or none is defined."
        in sentences
    )
    assert "PFC1 does not change" in sentences[0]
    assert "PFC2 does not change" in sentences[1]


def test_the_law_tells_what_it_leaves_out():
    assert _of_law("fuzziness", fit([1.0, 0.5, 0.25, 0.0, 0.0]), 5) == (
        "Law of data separation: fuzziness of the 3 of 5 layers where it is above zero changes by the "
        "factor 0.5 a layer, halves every 1 layers (correlation of its logarithm with depth -1.000)."
    )
    assert _of_law("pfc1", fit([1.0, 0.9]), 2) == (
        "Law of data separation: PFC1 changes by the factor 0.9 a layer, halves every 6.58 layers."
    )


def test_effective_depth_on_the_line_stands_beside_the_measured():
    H, y = problems.features(3, N=200, D=6, K=4)
    B = torch.eye(6, dtype=torch.float64)[y] + 0.1 * H
    moves = OnTheLine([0.0, 0.3, 0.6, 0.9, 1.0], B)
    profile = pfc.measure(moves, [(H, y)], layers="layers.*", progress=False)
    depth, segment = profile.prediction().depth, profile.segment()
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    fine = (segment.line(t).pfc3 >= 0.99).numpy()
    assert fine[-1]
    assert not fine[0]
    first = t[np.flatnonzero(~fine)[-1] + 1]
    assert depth.t == pytest.approx(float(first), abs=1e-3)
    position = segment.position("path")
    at = segment.layers.index(depth.layer)

    def up(value):
        """To three digits below 1, and no less than it is."""
        return f"{math.ceil(1000 * value - 1e-9) / 1000:g}"

    assert 0.1 < depth.t < 1
    assert position[at] == depth.position >= depth.t > position[at - 1]
    assert depth.measured == profile.layers[profile.effective_depth()]
    assert str(depth) == (
        "Effective depth: on the line to the measured features at least 99 % of the samples are "
        f"nearest to their own class mean from t = {up(depth.t)} on, which {depth.layer} (at "
        f"{up(depth.position)}) is the first to reach; measured, they are from {depth.measured} on."
    )
    assert str(depth) in profile.prediction().sentences()
    assert profile.prediction().to_dict()["depth"]["t"] == depth.t


def test_where_the_last_layer_fails_there_is_no_effective_depth():
    H, y = problems.features(3, N=80, D=6, K=4, spread=2.0)
    profile = pfc.measure(
        OnTheLine([0.0, 1.0], H + H.flip(1)), [(H, y)], layers="layers.*", progress=False
    )
    depth = profile.prediction().depth
    assert (depth.t, depth.layer, depth.measured) == (None, None, None)
    assert str(depth).endswith("from no t on; measured, they are at no layer to the end.")


@pytest.mark.parametrize(
    ("part", "words"), [(0.0123, "1.2 %"), (0.5, "50 %"), (1.5, "150 %"), (20.0, "2000 %")]
)
def test_percentages_have_no_exponent(part, words):
    assert _percent(part) == words


def test_of_two_layers_nothing_is_said_that_holds_by_definition():
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    H, _ = problems.features(3, N=6, D=4, K=3)
    sentences = line(H, 0.3 * H + torch.eye(4)[y].double(), y)
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "Theorem 1",
        "Theorem 2",
        "Effective depth",
        "Law of data separation",
        "Law of data separation",
    ]
    for word in ("straightness", "energy", "correlation", "nner layer"):
        assert not any(word in sentence for sentence in sentences)


def test_a_notebook_shows_the_sentences(measured):
    prediction = measured[2].prediction()
    html = unescape(prediction._repr_html_())
    assert html.count("<li>") == len(prediction.sentences())
    for sentence in prediction.sentences():
        assert sentence in html
    assert "from stem to blocks.3" in html
    assert "pfc1_falls" in html
    odd = replace(prediction, layers=("<a>", *prediction.layers[1:]))
    assert "from &lt;a&gt; to" in odd._repr_html_()


def test_of_a_path_that_returns_nothing_infinite_is_said():
    H, y = problems.features(3, N=40, D=6, K=4)
    profile = pfc.measure(OnTheLine([0.0, 1.0, 0.0], 3 * H), [(H, y)], layers="layers.*", progress=False)
    sentences = profile.prediction().sentences()
    assert "Path: it ends where it began, so that it has no straightness." in sentences
    assert not any("inf" in sentence for sentence in sentences)
