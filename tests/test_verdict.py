"""Verdicts speak of every measured layer, and say no more than the numbers."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pfc
from tests import problems

NAMES = ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "classifier.input")
ROOT = Path(__file__).parents[1]
PFC = ("pfc1", "pfc2", "pfc3")


def of(pfc1, pfc2, pfc3, segments=()):
    """A profile with given columns."""
    n = len(pfc1)
    return pfc.Profile(
        layers=NAMES[:n],
        shapes=tuple((l + 1,) for l in range(n)),
        columns={"pfc1": tuple(pfc1), "pfc2": tuple(pfc2), "pfc3": tuple(pfc3)},
        moments={},
        segments=segments,
        about={"model": "Net", "samples": 1000, "classes": 3, "weighting": "class", "chosen": "named"}
        | {"accuracy": 1.0},
    )


def random_columns(rng):
    """Columns of few values, so that ties, rounding, NaN and infinities abound."""
    n = int(rng.integers(1, len(NAMES) + 1))
    way, columns = rng.integers(4), []
    for values in (
        [0.0, 1e-9, 0.3, 0.9999, 1.0, 1.7],
        [0.0, 1e-3, 0.5, 1.4],
        [0.5, 0.98996, 0.99, 0.9999, 1],
    ):
        column = rng.choice(np.array(values), n)
        if way:  # in order, or the same everywhere
            column = np.full(n, column[0]) if rng.random() < 0.2 else np.sort(column)
            column = column if len(columns) == 2 else column[::-1]
        columns.append(column * (1 + 1e-14 * rng.integers(-3, 4, n)))
    columns[2] = np.minimum(columns[2], 1)
    if way == 1:
        columns[rng.integers(3)][rng.integers(n)] = math.nan
    if way == 2:
        columns[0][0] = math.inf
    return [column.tolist() for column in columns]


def less_collapsed(metric, a, b):
    """Whether b is, beyond rounding."""
    if a == b:
        return False
    a, b = (-a, -b) if metric == "pfc3" else (a, b)
    size = {"pfc1": max(abs(a), abs(b)), "pfc2": math.sqrt(2), "pfc3": 1}[metric]
    return b > a and (math.isinf(b) or b - a > 1e-12 * size)


def check_first(said, names, columns):
    """Everything that the first sentence claims, and that it claims what it can."""
    undefined = {
        m: [n for n, v in zip(names, c, strict=True) if math.isnan(v)] for m, c in columns.items()
    }
    if len(names) == 1 or any(undefined.values()):
        why = [f"{m.upper()} is undefined at {', '.join(at)}" for m, at in undefined.items() if at]
        why = "only one layer was measured" if len(names) == 1 else "; ".join(why)
        span = f"from {names[0]} to {names[-1]}" if len(names) > 1 else f"at {names[0]}"
        assert said == f"Of progressive feedforward collapse nothing can be said {span}: {why}."
        return
    back = {
        m: [names[l + 1] for l, (a, b) in enumerate(pairwise(c)) if less_collapsed(m, a, b)]
        for m, c in columns.items()
    }
    told = dict(re.findall(r"(PFC\d) steps back at ([^;)]*)", said))
    assert told == {m.upper(): ", ".join(at) for m, at in back.items() if at}
    assert ("does not hold at every layer from" in said) == any(back.values())
    forward = {m for m, c in columns.items() if less_collapsed(m, c[-1], c[0])}
    kept = {
        m
        for m, c in columns.items()
        if m in forward or abs(c[0] - (m == "pfc3")) < 1e-12 * (m != "pfc1")
    }
    kept |= {m for m in ("pfc1",) if columns[m][0] == 0}
    if not any(back.values()):
        assert ("does not show from" in said) == (not forward)
        partly = re.search(r"holds for (.*?) from", said)
        assert bool(partly) == (bool(forward) and len(kept) < 3)
        assert not partly or set(partly[1].lower().split(" and ")) == kept
        assert ("holds from" in said) == (bool(forward) and len(kept) == 3)
    check_ends(said, columns)


def check_ends(said, columns):
    """What it says of where each metric begins and ends."""
    for metric, c in columns.items():
        found = re.search(
            rf"{metric.upper()} (stays at|goes from) ([\w.+-]+)(?: to ([\w.+-]+?))?[,.](?:\s|$)", said
        )
        moved = any(less_collapsed(metric, a, b) or less_collapsed(metric, b, a) for a in c for b in c)
        assert found, said
        assert (found[1] == "goes from") == moved
        first, last = float(found[2]), float(found[3] or found[2])
        assert first == pytest.approx(c[0], rel=5e-3)
        assert last == pytest.approx(c[-1], rel=5e-3)
        assert (first == 1) == (c[0] == pytest.approx(1, abs=2e-12)) or math.isinf(c[0])
        if less_collapsed(metric, c[0], c[-1]) or less_collapsed(metric, c[-1], c[0]):
            assert (first < last) == (c[0] < c[-1])
            assert first != last


def check_second(said, names, pfc3, eps):
    """Everything that the second sentence claims."""
    good = [p >= 1 - eps - 1e-12 for p in pfc3]
    known = [p for p in pfc3 if not math.isnan(p)]
    if good[-1]:
        depth = next(l for l in range(len(good)) if all(good[l:]))
        wrong = round((1 - pfc3[-1]) * 1000)
        assert said.startswith(f"From {names[depth]} (layer {depth + 1} of {len(names)}) on, at least ")
        assert said.endswith(f"at {names[-1]} {f'all but {wrong} are' if wrong else 'all are'}.")
    elif any(good):
        where = ", ".join(n for n, fine in zip(names, good, strict=True) if fine)
        assert (
            f"nearest to their own class mean at {where}, but not at the last layer, {names[-1]}" in said
        )
        last = re.search(r"where (.*?)( %)? (?:are|is undefined)\.$", said)[1]
        assert (
            last == "that" if math.isnan(pfc3[-1]) else -1e-12 < pfc3[-1] - float(last) / 100 < 1.001e-4
        )
    elif known:
        best = float(re.search(r"the best reaches ([\d.]+) %", said)[1]) / 100
        assert -1e-12 < max(known) - best < 1.001e-4
        assert best < float(re.search(r"No layer reaches ([\d.]+) %", said)[1]) / 100
        unknown = [n for n, p in zip(names, pfc3, strict=True) if math.isnan(p)]
        assert ("undefined" in said) == bool(unknown)
        assert not unknown or said.endswith(f"; it is undefined at {', '.join(unknown)}.")
    else:
        assert said == "Nearest-class-mean accuracy is undefined at every layer."


def test_no_verdict_says_more_than_the_numbers():
    rng, kinds = np.random.default_rng(0), {}
    for _ in range(6000):
        columns = dict(zip(PFC, random_columns(rng), strict=True))
        eps = float(rng.choice([0, 1e-5, 1e-4, 0.01, 0.011, 0.5, 1]))
        profile = of(*columns.values())
        first, second = profile.verdict(eps=eps).split("\n")
        check_first(first, profile.layers, columns)
        check_second(second, profile.layers, columns["pfc3"], eps)
        for sentence in (first, second):
            kind = " ".join(re.sub(r"\S*\d\S*|\(.*?\)|stem|classifier\S+", "", sentence).split()[:6])
            kinds[kind] = kinds.get(kind, 0) + 1
        if not any(map(math.isnan, columns["pfc1"])):
            back = [less_collapsed("pfc1", a, b) for a, b in pairwise(columns["pfc1"])]
            known = [name for name, steps in zip(profile.layers[1:], back, strict=True) if steps]
            assert profile.non_monotone_layers("pfc1") == known
    assert min(kinds.values()) >= 3, kinds
    assert len(kinds) >= 8


def test_the_percentage_asked_for_is_told_in_full():
    profile = of([2.0, 1.0], [1.0, 0.5], [0.9, 0.99994])
    said = {eps: profile.verdict(eps=eps).split("\n")[1] for eps in (0.0, 1e-5, 5e-5, 0.07)}
    assert said[0] == "No layer reaches 100 % nearest-class-mean accuracy; the best reaches 99.99 %."
    assert said[1e-5].startswith("No layer reaches 99.999 % ")
    assert said[5e-5].startswith("No layer reaches 99.995 % ")
    assert "on, at least 93 % of the samples" in said[0.07]
    with pytest.raises(ValueError, match=r"eps must lie in \[0, 1\], got 2"):
        profile.verdict(eps=2.0)


def test_rounding_is_of_the_range_of_a_metric_that_has_one():
    """With two classes PFC2 is 0 but for rounding; PFC1 has no range, and 1e-17 is less than 3e-17."""
    profile = of([3e-17, 2e-17, 1e-17], [1e-17, 3e-17, 0.0], [1.0, 1.0, 1.0])
    assert profile.verdict().startswith("Progressive feedforward collapse holds from stem to blocks.1: ")
    assert "PFC1 goes from 3e-17 to 1e-17, PFC2 stays at 1e-17, PFC3 stays at 1." in profile.verdict()
    assert math.isnan(profile.tau("pfc2"))
    assert of([1e-17, 3e-17], [0.5, 0.4], [1.0, 1.0]).non_monotone_layers("pfc1") == ["blocks.0"]


def still(make):
    """A profile of three layers, each a map of the same features."""
    H, y = problems.features(4, N=60, D=5, K=3)
    layers = {}
    for i, A in enumerate(make(torch.linalg.qr(torch.randn(5, 5).double()).Q)):
        layers[str(i)] = H = H @ A
    return pfc.measure_features(layers, y, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda Q: [torch.eye(5).double(), 2 * torch.eye(5).double(), 4 * torch.eye(5).double()],
        lambda Q: [torch.eye(5).double(), -torch.eye(5).double()],
        lambda Q: [Q, Q, Q],
    ],
    ids=["scaled", "mirrored", "turned"],
)
def test_where_no_metric_changes_nothing_is_said_to_collapse(make):
    torch.manual_seed(0)
    profile = still(make)
    first = profile.verdict().split("\n")[0]
    assert first.startswith("Progressive feedforward collapse does not show from 0 to ")
    assert [first.count(words) for words in ("stays at", "goes from", "steps back")] == [3, 0, 0]
    for metric in PFC:
        assert profile.non_monotone_layers(metric) == []
        assert math.isnan(profile.tau(metric))
    told = profile.prediction().sentences()
    assert not any("% of PFC" in sentence for sentence in told)
    assert len(profile.layers) == 2 or "no metric changes" in told[2]


# all layers, and those of a segment


@pytest.fixture(scope="module")
def staged():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 1, 6, 6) + y[:, None, None, None]
    model = pfc.ConvResNet(1, (6, 6), 3, blocks=(1, 2), width=2, zero_start=False)
    return pfc.measure(model, [(x, y)], progress=False)


def test_all_layers_are_spoken_of_unless_a_segment_is_asked_for(staged):
    assert staged.layers[-1] == "classifier.input"
    whole, last, first = (staged.verdict(i).split("\n") for i in (None, -1, 0))
    ends = [(0, 5), (2, 4), (0, 1)]
    for said, (a, b) in zip((whole, last, first), ends, strict=True):
        assert f" from {staged.layers[a]} to {staged.layers[b]}" in said[0]
        assert said[1] == whole[1]
    for i, (a, b) in zip((None, -1, 0), ends, strict=True):
        values = staged.columns["pfc1"][a : b + 1]
        n = b - a + 1
        known = sum(np.sign(values[l] - values[m]) for l in range(n) for m in range(l)) / (
            n * (n - 1) / 2
        )
        assert staged.tau("pfc1", i) == pytest.approx(known)
        assert staged.law("pfc1", i).layers == n
        back = [
            name for name, v, w in zip(staged.layers[a + 1 :], values, values[1:], strict=False) if w > v
        ]
        assert staged.non_monotone_layers("pfc1", i) == back
    with pytest.raises(ValueError, match="no segment 2: the profile has 2"):
        staged.verdict(2)


def test_a_plain_cnn_has_all_its_layers_in_the_verdict():
    torch.manual_seed(0)
    net = nn.Sequential()
    for i, (a, b, stride) in enumerate([(1, 4, 1), (4, 4, 1), (4, 6, 2), (6, 8, 1), (8, 8, 2)], 1):
        net.add_module(f"conv{i}", nn.Conv2d(a, b, 3, stride, 1))
    net.append(nn.Flatten()).append(nn.Linear(32, 3))
    y = torch.arange(60) % 3
    data = [(torch.randn(60, 1, 8, 8) + y[:, None, None, None], y)]
    profile = pfc.measure(net, data, layers="conv*", progress=False)
    assert sum(len(segment.layers) for segment in profile.segments) < 5
    assert "from conv1 to conv5" in profile.verdict()
    alone = pfc.measure(net, data, layers=["conv1", "conv3", "conv5"], progress=False)
    assert alone.segments == ()
    assert "from conv1 to conv5" in alone.verdict()
    assert alone.law().layers == 3
    assert -1 <= alone.tau("pfc2") <= 1
    assert alone.verdict() == replace(alone, segments=()).verdict()


def test_what_one_pass_leaves_out_is_refused(staged):
    once = replace(staged, columns={k: v for k, v in staged.columns.items() if k != "pfc3"})
    once = replace(once, about={**staged.about, "passes": 1})
    for call in (once.verdict, lambda: once.tau("pfc3"), lambda: once.non_monotone_layers("pfc3")):
        with pytest.raises(ValueError, match="pfc3 was not measured; it needs passes=2"):
            call()


def test_the_verdict_of_the_readme_is_that_of_its_record():
    readme = (ROOT / "README.md").read_text()
    told = pfc.load(ROOT / "records/digits/profile.json").verdict()
    assert told.replace("\n", " ") in " ".join(readme.split())
