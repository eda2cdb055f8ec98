"""Figures of scores, probes and the samples that are decided last: every number stands in them."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

import pfc
from pfc import figures

LAYERS = ["stem", "blocks.0", "blocks.1"]


def areas(*values, low=0.05, softmax=0.8):
    rows = {name: [v, v - low, v + low] for name, v in zip(LAYERS, values, strict=True)}
    rows["max softmax"] = [softmax, math.nan, math.nan]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["auroc", "low", "high"])


def words(figure):
    figure.draw_without_rendering()
    own = [ax.get_title() for ax in figure.axes] + [ax.get_ylabel() for ax in figure.axes]
    return "\n".join([*own, *(t.get_text() for each in figure.legends for t in each.get_texts())])


def test_areas_over_the_layers_with_their_intervals_and_the_baseline():
    both = {"cosine": areas(0.6, 0.7, 0.9), "span": areas(0.5, math.nan, 0.55)}
    figure = figures.familiarity(both)
    (ax,) = figure.axes
    lines = [line.get_ydata() for line in ax.lines]
    np.testing.assert_array_equal(lines[0], [0.6, 0.7, 0.9])
    np.testing.assert_array_equal(lines[1], [0.5, math.nan, 0.55])
    assert set(lines[2]) == {0.8}
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert {round(y, 6) for y in band} >= {0.55, 0.65, 0.85, 0.95}
    for told in ("cosine", "span", "max softmax", "AUROC, known against unknown"):
        assert told in words(figure)
    assert [t.get_text() for t in ax.get_xticklabels()] == LAYERS
    assert "scores" in words(figures.familiarity(both["span"]))


def test_areas_of_other_layers_or_none_are_refused():
    with pytest.raises(ValueError, match="need the AUROC of one kind of score or several"):
        figures.familiarity({})
    with pytest.raises(ValueError, match="of the same layers"):
        figures.familiarity({"a": areas(0.1, 0.2, 0.3), "b": areas(0.1, 0.2, 0.3).drop(index="stem")})
    for given, match in (
        (None, r"'scores' must be `auroc` of scores\(..., unknown=\), got NoneType"),
        ({"a": areas(0.1, 0.2, 0.3)[["auroc"]]}, "and has no column 'low'"),
        (areas(0.1, 0.2, 0.3).iloc[:0], "'scores' has no rows"),
    ):
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(figures.familiarity)(given)


@pytest.fixture(scope="module")
def digits():
    fit, apart = pfc.data.load("digits", "fit", limit=200), pfc.data.load("digits", "held-out", limit=90)
    torch.manual_seed(0)
    net = pfc.FCResNet(features=64, classes=10, width=16, blocks=2, zero_start=False)
    profile = pfc.measure(net, fit.batches(), probe=apart.batches(), progress=False)
    return net, profile, apart, pfc.measure(net, apart.batches(), means=profile, progress=False)


def test_the_tunnel_shows_probe_and_nearest_means(digits, tmp_path):
    _, profile, _, test = digits
    figure = figures.tunnel(profile, test)
    shown = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
    assert shown == [profile.columns["probe"], profile.columns["pfc3"], test.columns["pfc3"]]
    assert "linear probe, held out" in words(figure)
    assert len(figures.tunnel(profile).axes[0].lines) == 2
    with pytest.raises(ValueError, match="needs a profile measured with probe="):
        figures.tunnel(test)
    other = pfc.measure_features(
        {"x": profile.moments["stem"].mean.repeat(2, 1)}, [*range(10)] * 2, progress=False
    )
    with pytest.raises(ValueError, match="the test profile has no layer 'stem'"):
        figures.tunnel(profile, other)
    with pytest.raises(ValueError, match="profile must be a Profile, as measure gives it, got str"):
        inspect.unwrap(figures.tunnel)("profile")
    with pytest.raises(ValueError, match="test must be a Profile, as measure gives it, got str"):
        inspect.unwrap(figures.tunnel)(profile, "test")
    names = {path.name for path in figures.of_profile(profile, tmp_path, theory=False)}
    assert names == {"layers.png", "layers.svg", "tunnel.png", "tunnel.svg"}


def test_a_contact_sheet_shows_each_hard_image_with_its_classes(digits):
    net, profile, apart, _ = digits
    hard = pfc.scores(net, apart.batches(), profile, progress=False).hardest(15)
    figure = figures.contact_sheet(apart.images, hard, layers=profile.layers, classes=apart.classes)
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 15
    for ax, (number, row) in zip(shown, hard.iterrows(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), apart.images[number, 0])
        assert ax.get_title(loc="left") == f"{row['label']}\nnot {row['nearest']}\ndepth {row['depth']}"
    easy = hard.assign(depth=0)
    first = figures.contact_sheet(apart.images[:, 0], easy, layers=profile.layers).axes[0]
    assert first.get_title(loc="left") == f"{hard.iloc[0]['label']}\n\ndepth 0"
    colours = apart.images.expand(-1, 3, -1, -1)
    image = figures.contact_sheet(colours, hard, layers=profile.layers).axes[0].images[0]
    assert image.get_array().shape == (8, 8, 3)


def test_long_names_of_classes_take_more_room(digits):
    net, profile, apart, _ = digits
    hard = pfc.scores(net, apart.batches(), profile, progress=False).hardest(12)
    rows = []
    for names in (apart.classes, [f"a long name of class {k}" for k in range(10)]):
        figure = figures.contact_sheet(apart.images, hard, layers=profile.layers, classes=names)
        rows.append(figure.axes[0].get_gridspec().nrows)
        figure.draw_without_rendering()
        titles = [ax._left_title.get_window_extent() for ax in figure.axes if ax.images]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    assert rows[0] < rows[1]


def test_sheets_that_can_not_be_drawn_are_refused(digits):
    net, profile, apart, _ = digits
    hard = pfc.scores(net, apart.batches(), profile, progress=False).hardest(3)
    draw = inspect.unwrap(figures.contact_sheet)
    for images in (apart.images.numpy(), apart.images.bfloat16().requires_grad_(), apart.images.half()):
        shown = draw(images, hard, layers=profile.layers).axes[0].images[0].get_array()
        np.testing.assert_array_equal(shown, apart.images[int(hard.index[0]), 0])
    with pytest.raises(ValueError, match="there are names of 1 classes, and none of class"):
        draw(apart.images, hard, layers=profile.layers, classes=["zero"])
    with pytest.raises(ValueError, match=r"hardest must be what Scores\.hardest gives, got Tensor"):
        draw(apart.images, torch.zeros(3), layers=profile.layers)
    with pytest.raises(ValueError, match="and has no column 'depth'"):
        draw(apart.images, hard[["label", "nearest"]], layers=profile.layers)
    with pytest.raises(ValueError, match="images must be an array, got str"):
        draw("images", hard, layers=profile.layers)
    for images, rows, match in (
        (apart.images, hard[:0], "a sheet has 1 to 60 images, got 0"),
        (apart.images.expand(-1, 2, -1, -1), hard, "with C = 1 or 3"),
        (apart.images[:0], hard, "there are 0 images, and none of number"),
    ):
        with pytest.raises(ValueError, match=match):
            figures.contact_sheet(images, rows, layers=profile.layers)
