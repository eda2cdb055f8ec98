"""The one table of metrics: no column without an oracle, its invariances, its range and a sentence."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import pfc
from pfc.profile.columns import COLUMNS, PFC, markdown
from tests import problems
from tests.arrays import profile_of
from tests.models import Plain, batched, samples, seeded
from tests.oracles import naive_table

ROOT = Path(__file__).parents[1]


def layers(seed, N=60, D=5, K=4, spread=1.0, single=True):
    """Three layers of one shape, labels, and a classifier of the last; a class may have one sample."""
    H, y = problems.features(seed, N=N, D=D, K=K, spread=spread)
    if not single:
        y[(y == y.bincount().argmax()).nonzero()[:5, 0]] = y.max()
    g = torch.Generator().manual_seed(seed + 1)
    found = {"first": H}
    for name in ("second", "third"):
        H = H + 0.5 * torch.randn(H.shape, generator=g, dtype=H.dtype) + 0.2 * H.mean(0)
        found[name] = H
    W = torch.randn(int(y.max()) + 1, D, generator=g, dtype=H.dtype)
    return found, y, W, torch.randn(len(W), generator=g, dtype=H.dtype)


def held_out(H, y, seed=5):
    """Other samples of the same classes at the same layers."""
    g = torch.Generator().manual_seed(seed)
    z = y[torch.randperm(len(y), generator=g)[:37]]
    noise = torch.randn(len(z), 1, generator=g, dtype=torch.float64)
    drawn = {
        name: torch.stack([X[y == k].mean(0) for k in z.tolist()]) + noise * (X[: len(z)] - X.mean(0))
        for name, X in H.items()
    }
    return drawn, z


@given(problems.seeds)
@settings(max_examples=12, deadline=None)
def test_every_column_has_an_oracle_and_equals_it(seed):
    H, y, W, b = layers(seed, D=3 + seed % 6, K=3 + seed % 3, single=seed % 2 == 0)
    for weighting in ("class", "sample"):
        held = held_out(H, y)
        found = profile_of(H, y, weighting=weighting, W=W, b=b, probe=held)
        known = naive_table(H.values(), y, weighting, W, b, held)
        assert set().union(*known) == set(COLUMNS) == set(found.columns)
        for i, row in enumerate(known):
            for name in COLUMNS:
                value = found.columns[name][i]
                want = row.get(name, math.nan)
                np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-13, err_msg=name)


MOVES = {
    "translate": lambda H: H + 3.5,
    "rotate": lambda H: H @ problems.orthogonal(H.shape[1], 5),
    "scale": lambda H: -2.75 * H,
    "stretch": lambda H: H * torch.linspace(1, 3, H.shape[1], dtype=H.dtype),
}
RIGID = {"translate", "rotate", "scale"}
# What a column does not change under, F4 of the specification; under the other moves it changes.
INVARIANT = {
    **dict.fromkeys(("position", "pfc1", "pfc1_unbiased", "pfc2", "pfc3", "cdnv", "probe"), RIGID),
    **dict.fromkeys(("nc2_norm", "nc2_angle", "nc2_max_angle"), RIGID),
    # with D = K - 1 the pseudo-inverse is an inverse, and any linear map cancels
    "nc1": {*RIGID, "stretch"},
    "fuzziness": {*RIGID, "stretch"},
    "nc3": {"translate"},  # the classifier does not move with the features
    "nc4": set(),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_its_invariances(name, move):
    H, y, W, b = layers(11, N=90, D=3, K=4, spread=1.5, single=False)
    moved = {layer: MOVES[move](X) for layer, X in H.items()}
    apart, z = held_out(H, y)
    sets = ((H, apart), (moved, {layer: MOVES[move](X) for layer, X in apart.items()}))
    before, after = (profile_of(each, y, W=W, b=b, probe=(held, z)).columns[name] for each, held in sets)
    same = after == pytest.approx(before, rel=1e-10, abs=1e-12, nan_ok=True)
    assert same == (move in INVARIANT[name]), (before, after)


@given(problems.seeds)
@settings(max_examples=15, deadline=None)
def test_every_column_stays_in_its_range(seed):
    H, y, W, b = layers(seed, spread=0.1 + seed % 5)
    for name, values in profile_of(H, y, W=W, b=b, probe=held_out(H, y)).columns.items():
        for value in values:
            assert math.isnan(value) or 0 <= value <= COLUMNS[name].highest, name


def test_every_column_knows_its_value_at_perfect_collapse():
    M = 3 * problems.simplex(4, 6) @ problems.orthogonal(6, 1)
    y = torch.arange(40) % 4
    noise = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = {"first": M[y] + noise, "second": M[y] + 7}
    profile = profile_of(H, y, W=M, b=-7 * M.sum(1), probe=({n: X - 1e-9 for n, X in H.items()}, y))
    for name, column in COLUMNS.items():
        if column.collapsed is not None:
            assert profile.columns[name][-1] == pytest.approx(column.collapsed, abs=1e-12), name
    for name, column in COLUMNS.items():  # what rises ends at its largest value
        assert column.rises == (column.collapsed == column.highest), name


def test_every_column_has_a_sentence():
    assert markdown() in (ROOT / "README.md").read_text(), f"the README's table is to be\n{markdown()}"
    words = [column.words for column in COLUMNS.values()]
    assert all(each.split()[0].replace("-", "").isalpha() and len(each.split()) > 2 for each in words)
    assert len(set(words)) == len(words)
    assert all(column.title and column.tex for column in PFC.values())


def test_arrays_give_the_profile_of_the_model_that_made_them():
    model, (x, y) = seeded(Plain).eval(), samples(n=61)
    known = pfc.measure(model, batched(x, y, 10), progress=False)
    H, labels = pfc.features(model, batched(x, y, 10), progress=False)
    head = model.classifier
    found = profile_of(H, labels, W=head.weight.detach(), b=head.bias.detach(), batch=17)
    assert found.layers == known.layers
    assert found.columns.keys() == known.columns.keys() == COLUMNS.keys() - {"probe"}
    for name in known.columns:
        np.testing.assert_allclose(found.columns[name], known.columns[name], rtol=1e-12, err_msg=name)
    assert found.accuracy == known.accuracy
    t = [0.0, 0.3, 1.0]
    for metric in ("pfc1", "pfc2", "pfc3"):
        one, two = (getattr(p.segment().line(t), metric) for p in (found, known))
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_a_new_column_is_measured_kept_and_shown(monkeypatch, tmp_path):
    """A row in the table is all that the package needs."""
    ratio = pfc.profile.columns.Column(
        "ratio",
        lambda e: pfc.metrics.participation_ratio(e.M),
        "effective rank of the class means",
        collapsed=None,
    )
    monkeypatch.setitem(COLUMNS, "ratio", ratio)
    H, y, W, b = layers(3)
    profile = profile_of(H, y, W=W, b=b)
    assert all(1 <= value <= 3 for value in profile.columns["ratio"])
    assert re.search(r"\bratio\b", str(profile))
    profile.save(tmp_path / "p.json")
    assert pfc.load(tmp_path / "p.json").columns["ratio"] == profile.columns["ratio"]
    assert -1 <= profile.tau("ratio") <= 1
    assert "| `ratio` | effective rank of the class means |  |" in markdown()
