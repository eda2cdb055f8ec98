"""Figures show the profile's own numbers, whatever is missing, and are saved the same each time."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_array_equal
from PIL import Image

from pfc import figures
from pfc.figures.axes import on_grid
from pfc.measuring import measure, transport
from pfc.nets import ConvResNet, FCResNet
from pfc.profile.columns import COLUMNS, Column
from pfc.warning import CollapseWarning

METRICS = ("pfc1", "pfc2", "pfc3")


def batches():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 1, 6, 6, generator=generator) + y[:, None, None, None]
    return list(zip(x.split(20), y.split(20), strict=True))


def net(seed=0, blocks=3, **how):
    torch.manual_seed(seed)
    return FCResNet(36, 3, width=8, blocks=blocks, zero_start=False, **how)


def measured_layers(profile, **how):
    """The layers without the predicted line, which would have its own points and room."""
    return figures.layers(profile, end=None, **how)


@pytest.fixture(scope="module")
def profile():
    return measure(net(), batches(), progress=False)


@pytest.fixture(scope="module")
def other():
    return measure(net(1), batches(), progress=False)


@pytest.fixture(scope="module")
def staged():
    torch.manual_seed(0)
    model = ConvResNet(1, (6, 6), 3, blocks=(1, 2), width=2, zero_start=False)
    return measure(model, batches(), progress=False)


def changed(profile, **columns):
    values = {name: tuple(map(float, column)) for name, column in columns.items()}
    return replace(profile, columns={**profile.columns, **values})


def below(figure):
    """Names of layers along the lower edge, and what the axis says."""
    ax = figure.axes[-1]
    return [label.get_text() for label in ax.get_xticklabels()], " ".join(ax.get_xlabel().split())


def measured_in(ax):
    """The line of the measured layers of a panel."""
    (line,) = [line for line in ax.lines if line.get_label() == "measured"]
    return line


def told(figure):
    """The words of the figure's legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def drawn(figure):
    """Draw it, so that warnings come out."""
    figure.draw_without_rendering()
    return figure


# training


def test_training_shows_every_number(profile, other):
    figure = drawn(figures.training({4: profile, 0: other, 9: profile}))
    assert len(figure.axes) == 3
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        assert len(ax.lines) == 4
        for i, line in enumerate(ax.lines):
            assert_array_equal(line.get_xdata(), [0, 4, 9])
            one, two = profile.columns[metric][i], other.columns[metric][i]
            assert_array_equal(line.get_ydata(), [two, one, one])


def test_training_takes_the_layers_of_a_segment(staged):
    whole, last, first = (drawn(figures.training({0: staged}, segment=i)).axes[0] for i in (None, -1, 0))
    assert [line.get_ydata()[0] for line in whole.lines] == list(staged.columns["pfc1"])
    assert [line.get_ydata()[0] for line in last.lines] == list(staged.columns["pfc1"][2:5])
    assert [line.get_ydata()[0] for line in first.lines] == list(staged.columns["pfc1"][:2])


def test_training_axis_is_logarithmic_and_holds_epoch_0(profile):
    epochs = [0, 1, 2, 4, 7, 13, 26, 50, 95, 183, 350]
    ax = drawn(figures.training(dict.fromkeys(epochs, profile))).axes[0]
    places = ax.transData.transform([(epoch, 1) for epoch in epochs])[:, 0]
    steps = np.diff(places) / np.diff(np.log1p(epochs))
    assert steps == pytest.approx(np.full(10, steps[0]))
    assert sorted([*ax.get_xticks(), *ax.get_xticks(minor=True)]) == epochs
    labels = [int(label.get_text()) for label in ax.get_xticklabels()]
    assert set(labels) <= set(epochs)
    assert {0, 350} < set(labels)
    assert -1 < ax.get_xlim()[0] < 0


def test_an_epoch_without_finite_values_keeps_its_place(profile):
    start = changed(profile, pfc1=[math.inf] * 4, pfc2=[math.nan] * 4)
    figure = drawn(figures.training({0: start, 5: profile, 350: profile}))
    places = [ax.transAxes.inverted().transform(ax.transData.transform((0, 1)))[0] for ax in figure.axes]
    assert places == pytest.approx([1 / 22] * 3)


def test_labels_of_epochs_do_not_overlap(profile):
    figure = drawn(figures.training(dict.fromkeys([0, *range(1, 500, 7)], profile)))
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert len(boxes) > 3
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_deeper_lines_are_darker_and_thicker_and_named(profile):
    figure = figures.training({0: profile})
    lines = figure.axes[0].lines
    light = [np.dot(line.get_color()[:3], [0.299, 0.587, 0.114]) for line in lines]
    assert light == sorted(light, reverse=True)
    assert min(-np.diff(light)) > 0.1
    assert all(np.diff([line.get_linewidth() for line in lines]) > 0)
    assert len({line.get_marker() for line in lines}) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(profile.layers)


def test_training_without_segments_shows_all_layers():
    model = ConvResNet(1, (6, 6), 3, blocks=(1, 1), width=2, zero_start=False)
    bare = measure(model, batches(), segments=False, progress=False)
    figure = drawn(figures.training({0: bare}))
    assert len(figure.axes[0].lines) == 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(bare.layers)
    with pytest.raises(ValueError, match="no segment 0: the profile has 0"):
        figures.training({0: bare}, segment=0)


def test_training_refuses_what_it_cannot_draw(profile, staged):
    with pytest.raises(ValueError, match=r"at least one epoch, 0 or later, got epochs \[\]"):
        figures.training({})
    with pytest.raises(ValueError, match=r"0 or later, got epochs \[-1, 2\]"):
        figures.training({2: profile, -1: profile})
    with pytest.raises(ValueError, match="no segment 1: the profile has 1"):
        figures.training({0: profile}, segment=1)
    with pytest.raises(ValueError, match=r"epoch 0 has \['stem', 'blocks.0'.*epoch 3 has .*'stages"):
        figures.training({0: profile, 3: staged})


# layers


@pytest.mark.parametrize("position", ["path", "chord", "proj", "index"])
def test_layers_stand_at_their_positions(profile, position):
    figure = measured_layers(profile, position=position)
    assert len(figure.axes) == 3
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        at = np.clip(profile.segment().position(position), 0, 1)
        assert_array_equal(measured_in(ax).get_xdata(), 3 * at)
        assert_array_equal(measured_in(ax).get_ydata(), profile.columns[metric])
    words = {"path": "path", "chord": "distance", "proj": "straight line", "index": "number"}
    assert words[position] in figure.axes[-1].get_xlabel()


@pytest.mark.parametrize("position", ["path", "index"])
def test_all_layers_stand_in_order_on_one_axis(staged, position):
    figure = drawn(figures.layers(staged, position=position))
    known, start = [], 0
    for segment in staged.segments:
        known += range(start, segment.start)
        start = segment.start + len(segment.layers)
        known += [segment.start + (len(segment.layers) - 1) * t for t in segment.position(position)]
    known += range(start, len(staged.layers))
    assert len(known) == len(staged.layers) > sum(len(segment.layers) for segment in staged.segments)
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        assert_array_equal(measured_in(ax).get_xdata(), known)
        assert_array_equal(measured_in(ax).get_ydata(), staged.columns[metric])
        assert metric.upper() in ax.get_ylabel()
        lines = [line for line in ax.lines if line.get_label() == "line"]
        shades = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
        for segment, line, shade in zip(staged.segments, lines, shades, strict=True):
            ends = (segment.start, segment.start + len(segment.layers) - 1)
            assert shade == ends == (line.get_xdata()[0], line.get_xdata()[-1])
    names, axis = below(figure)
    assert names == list(staged.layers)
    assert axis.startswith("layers in order; shaded: layers of one shape, by relative")
    assert told(figure)[1] == "straight line to the last features, shape by shape"


def test_a_layer_beyond_the_end_of_its_line_stands_at_the_end(profile):
    steps = torch.zeros(3, 3, 3).double()
    steps[:] = torch.outer(*[torch.tensor([3.0, -5.0, 3.0]).double()] * 2)  # at 0, 3, -2, 1 of a line
    far = replace(profile, segments=(replace(profile.segment(), steps=steps),))
    assert far.segment().position("proj") == pytest.approx([0, 3, -2, 1])
    assert_array_equal(
        measured_in(measured_layers(far, position="proj").axes[0]).get_xdata(), [0, 3, 0, 3]
    )


def test_layers_without_segments_are_counted():
    bare = measure(net(), batches(), segments=False, progress=False)
    figure = drawn(measured_layers(bare))
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        assert_array_equal(measured_in(ax).get_xdata(), range(4))
        assert_array_equal(measured_in(ax).get_ydata(), bare.columns[metric])
    names, axis = below(figure)
    assert names == list(bare.layers)
    assert "number of the layer (no segments" in axis


def test_layers_that_do_not_move_are_counted():
    torch.manual_seed(0)
    still = measure(FCResNet(36, 3, width=8, blocks=2), batches(), progress=False)
    assert math.isnan(still.segment().position()[0])
    figure = drawn(measured_layers(still))
    assert_array_equal(measured_in(figure.axes[0]).get_xdata(), [0, 1, 2])
    assert "nothing moves" in figure.axes[-1].get_xlabel()


def test_an_axis_says_where_some_layers_do_not_move(staged):
    first, last = staged.segments
    still = replace(staged, segments=(replace(first, steps=0 * first.steps), last))
    figure = drawn(figures.layers(still))
    assert below(figure)[1].endswith("or, where nothing moves, by number")
    assert_array_equal(measured_in(figure.axes[0]).get_xdata()[:2], [0, 1])
    assert len([line for line in figure.axes[0].lines if line.get_label() == "line"]) == 1


def test_names_do_not_overlap_however_many():
    deep = measure(net(blocks=40), batches(), passes=1, progress=False)
    labels = drawn(measured_layers(deep)).axes[-1].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert 10 < len(boxes) < 41
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert labels[-1].get_text() == "blocks.39"


def test_long_names_stand_upright_and_whole(staged):
    figure = drawn(measured_layers(replace(staged, segments=())))
    assert below(figure)[0] == list(staged.layers)
    labels = figure.axes[-1].get_xticklabels()
    assert {label.get_rotation() for label in labels} == {90}
    assert min(label.get_window_extent().y0 for label in labels) > 0
    assert min(ax.get_position().height for ax in figure.axes) * figure.get_figheight() > 1.65


HIDDEN = "model.encoder.transformer.layers.{}.output"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("stem", "blocks.0", "blocks.1"), None),
        (("features.3", "features.6"), None),
        (tuple(map(HIDDEN.format, (0, 1))), ["\u2026layers.0.output", "\u2026layers.1.output"]),
        (("encoder.some.very.long.name.norm", "decoder.some.very.long.name.norm"), None),
        (("a_name_of_thirty_letters_no_dot", "stem"), None),
    ],
)
def test_a_name_is_shown_whole_or_by_its_last_parts(profile, names, shown):
    n = len(names)
    columns = {metric: profile.columns[metric][:n] for metric in METRICS}
    few = replace(profile, layers=names, segments=(), columns=columns)
    assert below(measured_layers(few))[0] == (shown or list(names))
    assert told(figures.training({0: few})) == (shown or list(names))


def test_a_layer_without_a_finite_value_keeps_its_place(profile):
    gaps = {metric: [math.inf, 2, 1, math.nan] for metric in METRICS}
    ax = measured_layers(changed(profile, **gaps)).axes[0]
    assert ax.get_xlim() == pytest.approx((-0.15, 3.15))


@pytest.mark.parametrize(
    ("pfc3", "place"), [([0.9, 0.98, 0.995, 1], 2), ([1, 1, 1, 1], 0), ([1, 1, 1, 0.98], None)]
)
def test_the_layer_of_effective_depth_is_marked(profile, pfc3, place):
    figure = measured_layers(changed(profile, pfc3=pfc3))
    ax = figure.axes[2]
    assert len(ax.lines) == (1 if place is None else 2)
    if place is not None:
        assert ax.lines[1].get_xdata()[0] == 3 * profile.segment().position()[place]
        assert told(figure) == ["measured layers", "1 - PFC3 within 0.01 from here on"]


def test_a_layer_of_any_segment_or_none_is_marked(staged):
    for depth in (3, 5):
        pfc3 = [0.9] * depth + [1] * (6 - depth)
        ax = measured_layers(changed(staged, pfc3=pfc3)).axes[2]
        assert ax.lines[1].get_xdata()[0] == measured_in(ax).get_xdata()[depth]


def test_layers_refuses_an_unknown_position(profile):
    with pytest.raises(ValueError, match="one of 'path', 'chord', 'proj', 'index', got 'length'"):
        figures.layers(profile, position="length")


# both


BOTH = pytest.mark.parametrize(
    "draw", [measured_layers, lambda profile: figures.training({0: profile})], ids=["layers", "training"]
)


@BOTH
@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 0.5, 0.2, 0.09], "log"),
        ([1, 0.5, 0.2, 0.1], "linear"),
        ([1, 0.5, 0.2, 0], "linear"),
        ([1, 0.5, math.nan, 0.001], "log"),
        ([math.inf, 0.5, 0.2, 0.1], "linear"),
    ],
)
def test_scale_is_logarithmic_beyond_a_decade(profile, draw, values, scale):
    figure = draw(changed(profile, pfc1=values, pfc3=[0.05, 0.3, 0.7, 1]))
    assert [ax.get_yscale() for ax in figure.axes] == [scale, "linear", "linear"]


@BOTH
def test_each_panel_says_what_it_is_and_which_way_collapse_goes(profile, draw):
    figure = draw(profile)
    said = [ax.get_title(loc="left") + ax.get_ylabel() for ax in figure.axes]
    words = ["scatter ratio", "distance to simplex ETF", "nearest-mean accuracy"]
    for i, (text, word, arrow) in enumerate(zip(said, words, "\u2193\u2193\u2191", strict=True)):
        assert f"PFC{i + 1} (more collapsed {arrow})" in text
        assert word in text


@BOTH
def test_undefined_values_break_nothing(profile, draw):
    nan = [math.nan] * 4
    figure = drawn(draw(changed(profile, pfc1=[math.inf, 2, 1, math.nan], pfc2=nan, pfc3=nan)))
    y = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    assert_array_equal(y, [math.inf, 2, 1, math.nan])
    assert [text.get_text() for text in figure.axes[0].texts] == [r"$\infty$"]
    for ax in figure.axes[1:]:
        assert [text.get_text() for text in ax.texts] == ["no finite value"]


@BOTH
@pytest.mark.parametrize(
    ("values", "limits"), [([2, 2 + 1e-12, 2, 2 - 1e-12], (1.9, 2.1)), ([0] * 4, (-0.05, 0.05))]
)
def test_values_that_hardly_differ_are_drawn_flat(profile, draw, values, limits):
    assert draw(changed(profile, pfc1=values)).axes[0].get_ylim() == pytest.approx(limits)


@pytest.mark.parametrize(
    ("values", "minor"), [([2, 1, 0.5, 0.1], {"0.2", "0.5"}), ([1, 0.1, 0.01, 0.001], set())]
)
def test_numbers_on_a_logarithmic_axis_are_plain(profile, values, minor):
    axis = drawn(measured_layers(changed(profile, pfc1=values))).axes[0].yaxis
    assert {"0.1", "1"} <= {label.get_text() for label in axis.get_ticklabels()}
    assert minor <= {label.get_text() for label in axis.get_ticklabels(minor=True)}
    assert bool(minor) == any(label.get_text() for label in axis.get_ticklabels(minor=True))


@BOTH
def test_pfc3_is_left_out_where_it_was_not_measured(draw):
    figure = drawn(draw(measure(net(), batches(), passes=1, progress=False)))
    said = [ax.get_title(loc="left") + ax.get_ylabel() for ax in figure.axes]
    assert [text[:4] for text in said] == ["PFC1", "PFC2"]


@BOTH
def test_one_layer_and_infinite_scatter_can_be_drawn(draw):
    x = torch.ones(12, 1, 6, 6)
    with pytest.warns(CollapseWarning):
        flat = measure(net(), [(x, torch.arange(12) % 3)], layers=["stem"], progress=False)
    drawn(draw(flat))


@BOTH
def test_the_title_names_network_and_data(profile, draw):
    about = {**profile.about, "data": "noise", "accuracy": 0.5}
    title = draw(replace(profile, about=about)).get_suptitle()
    assert title.startswith("FCResNet on noise: 60 samples, 3 classes, accuracy 0.5000")
    silent = draw(replace(profile, about={**profile.about, "accuracy": None})).get_suptitle()
    assert silent == "FCResNet: 60 samples, 3 classes"


@BOTH
def test_figures_fit_a_page_and_no_letter_is_small_or_cut(profile, draw):
    figure = drawn(draw(profile))
    assert figure.get_figwidth() == 7
    assert figure.get_figheight() <= 8
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8


@BOTH
def test_any_measured_column_can_be_drawn(profile, draw):
    everything = [name for name in COLUMNS if name in profile.columns]
    figure = drawn(with_metrics(draw, profile, everything))
    assert set(everything) == set(COLUMNS) - {"probe"}
    assert len(figure.axes) == len(everything)
    for ax, metric in zip(figure.axes, everything, strict=True):
        said = ax.get_title(loc="left") + ax.get_ylabel()
        assert said.startswith(metric.upper())
        assert COLUMNS[metric].title in said
        assert ("more collapsed" in said) == (COLUMNS[metric].collapsed is not None)
        values = np.concatenate([line.get_ydata() for line in ax.lines if len(line.get_ydata()) != 2])
        assert_array_equal(values, profile.columns[metric])
    (one,) = drawn(with_metrics(draw, profile, "cdnv")).axes
    assert "CDNV" in one.get_title(loc="left") + one.get_ylabel()


def with_metrics(draw, profile, metrics):
    """The same figure of other metrics."""
    if draw is measured_layers:
        return figures.layers(profile, metrics=metrics, end=None)
    return figures.training({0: profile}, metrics=metrics)


@pytest.mark.parametrize("metrics", [["pfc4"], ["pfc1", "loss"], []])
def test_unknown_metrics_are_refused(profile, metrics):
    for draw in (
        figures.layers,
        figures.certificates,
        lambda profile, metrics: figures.training({0: profile}, metrics=metrics),
    ):
        with pytest.raises(ValueError, match=r"metrics must be some of .*pfc1.*; got (pfc|none)"):
            draw(profile, metrics=metrics)
    once = replace(profile, columns={"pfc1": profile.columns["pfc1"]})
    with pytest.raises(ValueError, match="some of pfc1, which are known; got pfc3"):
        figures.layers(once, metrics=["pfc3"])
    with pytest.raises(ValueError, match="some of pfc1, pfc2, pfc3, which are known; got nc1"):
        figures.certificates(profile, metrics=["nc1"])


def test_a_column_without_a_title_is_shown_by_its_words(profile, monkeypatch):
    words = "effective rank of the class means, which a participation ratio tells"
    monkeypatch.setitem(COLUMNS, "ratio", Column("ratio", lambda e: 1.0, words, collapsed=None))
    figure = drawn(figures.layers(changed(profile, ratio=[1, 2, 2, 1]), metrics="ratio"))
    assert " ".join(figure.axes[0].get_ylabel().split()) == f"RATIO {words}"


DRAWN = {
    "layers": figures.layers,
    "training": lambda profile, **how: figures.training({0: profile, 3: profile}, **how),
    "path": figures.path,
    "certificates": figures.certificates,
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("width", [3.25, 7.0, 12.0])
def test_a_figure_of_any_width_is_legible_and_whole(profile, staged, name, width):
    for each in (profile, staged):
        figure = drawn(DRAWN[name](each, width=width))
        assert figure.get_figwidth() == width
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0) >= -0.01
        assert box.x1 <= width + 0.01
        assert box.y1 <= figure.get_figheight() + 0.01
        sizes = [ax.get_position().size * figure.get_size_inches() for ax in figure.axes]
        assert min(min(size) for size in sizes) > 1.1
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 8


def test_a_width_without_room_is_refused(profile):
    with pytest.raises(ValueError, match=r"width must be at least 2\.0 inches, got 1\.5"):
        figures.layers(profile, width=1.5)
    with pytest.raises(ValueError, match="got nan"):
        figures.path(profile, width=math.nan)


# save


def test_both_files_are_written_and_valid(profile, tmp_path):
    png, svg = figures.save(figures.layers(profile), tmp_path / "new" / "fig.3")
    assert [path.relative_to(tmp_path / "new").as_posix() for path in (png, svg)] == [
        "fig.3.png",
        "fig.3.svg",
    ]
    with Image.open(png) as image:
        image.load()
        assert image.width == 7 * 200
    texts = ElementTree.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")
    assert set(profile.layers) < {"".join(text.itertext()) for text in texts}
    assert {path.name for path in png.parent.iterdir()} == {"fig.3.png", "fig.3.svg"}


def test_the_same_input_gives_the_same_bytes(profile, other, tmp_path):
    for draw in (measured_layers, lambda p: figures.training({0: other, 3: p})):
        figure = draw(profile)
        pairs = [
            figures.save(f, tmp_path / str(i)) for i, f in enumerate((figure, draw(profile), figure))
        ]
        for kind in range(2):
            assert len({pair[kind].read_bytes() for pair in pairs}) == 1
    assert b"<dc:date>" not in pairs[0][1].read_bytes()


@pytest.mark.parametrize("name", ["fig.png", "fig.SVG", "fig.1.pdf"])
def test_an_ending_is_that_one_file_and_the_same_each_time(profile, tmp_path, name):
    figure = figures.layers(profile)
    (first,) = figures.save(figure, tmp_path / name)
    assert first == tmp_path / name
    before = first.read_bytes()
    assert before.startswith({"g": b"\x89PNG", "G": b"<?xml", "f": b"%PDF"}[name[-1]])
    (second,) = figures.save(figures.layers(profile), tmp_path / "again" / name)
    figures.save(figure, str(first))
    assert before == first.read_bytes() == second.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {name, "again"}


def test_a_pdf_keeps_its_letters_as_truetype(profile, tmp_path):
    (path,) = figures.save(figures.layers(profile), tmp_path / "fig.pdf")
    assert b"/Subtype /Type3" not in path.read_bytes()
    assert b"CreationDate" not in path.read_bytes()


@pytest.mark.parametrize("name", ["fig.eps", "fig.JPG"])
def test_save_refuses_another_format(tmp_path, name):
    with pytest.raises(ValueError, match=r"are written as \.png, \.svg or \.pdf, got .*fig\."):
        figures.save(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    figure = Figure()
    png, _ = figures.save(figure, tmp_path / "fig")
    before = png.read_bytes()

    def torn(path, **_):
        path.write_bytes(b"torn")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        figures.save(figure, tmp_path / "fig")
    assert png.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_drawing_leaves_no_global_state(profile, tmp_path):
    before = dict(matplotlib.rcParams)
    figures.layers(profile)
    figures.training({0: profile})
    figures.save(Figure(), tmp_path / "fig")
    assert dict(matplotlib.rcParams) == before


def test_an_album_has_all_figures_of_a_profile(profile, tmp_path):
    found = transport(net(), batches(), profile, progress=False)
    how = {"position": "index", "end": "etf"}
    paths = figures.of_profile(profile, tmp_path / "a", stem="p-", transport=found, **how)
    assert [path.name for path in paths] == [
        f"p-{name}.{kind}" for name in ("layers", "path", "certificates") for kind in ("png", "svg")
    ]
    known = {
        "layers": figures.layers(profile, **how),
        "path": figures.path(profile),
        "certificates": figures.certificates(profile, transport=found),
    }
    for name, figure in known.items():
        png, svg = figures.save(figure, tmp_path / name)
        assert (tmp_path / "a" / f"p-{name}.png").read_bytes() == png.read_bytes()
        assert (tmp_path / "a" / f"p-{name}.svg").read_bytes() == svg.read_bytes()


def test_an_album_without_theory_draws_no_line(profile, tmp_path):
    png, svg = figures.of_profile(profile, str(tmp_path), theory=False)
    known, _ = figures.save(measured_layers(profile), tmp_path / "known")
    assert png.read_bytes() == known.read_bytes()
    assert (png.name, svg.name) == ("layers.png", "layers.svg")
    alone = figures.of_profile(replace(profile, segments=()), tmp_path / "alone")
    assert [path.name for path in alone] == ["layers.png", "layers.svg"], "theory needs a segment"


@dataclass
class Kept:
    """What an album needs of a run."""

    folder: Path
    profiles: dict
    theory_file: Path


def test_an_album_of_a_run_has_its_epochs_and_its_last_profile(profile, other, tmp_path):
    run = Kept(tmp_path, {4: profile, 0: other}, tmp_path / "theory.json")
    found = transport(net(), batches(), profile, progress=False)
    profile.prediction(transport=found).save(run.theory_file, profile)
    paths = figures.of_run(run)
    names = ("training", "layers", "path", "certificates")
    assert [path.stem for path in paths] == [name for name in names for _ in range(2)]
    assert {path.parent for path in paths} == {tmp_path / "figures"}
    known = figures.of_profile(profile, tmp_path / "a", transport=found)
    known += figures.save(figures.training(run.profiles), tmp_path / "a" / "training")
    for path in known:
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes()
    run.theory_file.write_text("damaged")
    few = figures.of_run(run, str(tmp_path / "b"), theory=False)
    assert [path.stem for path in few] == ["training", "training", "layers", "layers"]
    with pytest.raises(ValueError, match=r"theory\.json is not JSON"):
        figures.of_run(run, tmp_path / "b")


def test_importing_figures_is_cheap():
    code = "import sys, pfc.figures; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


# What theory predicts


@pytest.mark.parametrize("end", ["measured", "means", "etf"])
@pytest.mark.parametrize("position", ["path", "index"])
def test_the_predicted_line_is_the_segments_own(profile, end, position):
    figure = drawn(figures.layers(profile, position=position, end=end))
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        (line,) = [line for line in ax.lines if line.get_label() == "line"]
        x, values = line.get_data()
        t, _ = on_grid(profile.segment(), end, metric)
        assert_array_equal(x, [3 * each for each in t])
        assert (x[0], x[-1]) == (0, 3)
        assert_array_equal(values, getattr(profile.segment().line(t, end), metric))
        breaks = profile.segment().curves[end].breakpoints
        assert metric != "pfc3" or set(breaks.clamp(0, 1).tolist()) <= set(t)
        low, high = ax.get_ylim()
        finite = values[np.isfinite(values)]
        assert low <= finite.min()
        assert finite.max() <= high
    assert told(figure)[0] == "measured layers"
    assert told(figure)[1].startswith("straight line to ")


def test_no_line_where_nothing_moves_or_nobody_asked(profile):
    still = measure(FCResNet(36, 3, width=8, blocks=3), batches(), progress=False)
    for figure in (figures.layers(still), figures.layers(profile, end=None)):
        assert not [line for ax in figure.axes for line in ax.lines if line.get_label() == "line"]
        assert not figure.legends
    with pytest.raises(
        ValueError, match="end must be one of 'measured', 'means', 'etf' or None, got 'x'"
    ):
        figures.layers(profile, end="x")


def test_the_path_shows_its_numbers(profile):
    energy, angles, straight = drawn(figures.path(profile)).axes
    path = profile.segment().path()
    heights = [bar.get_height() for bar in energy.patches]
    assert heights == pytest.approx([100 * e / path.energy for e in path.energies])
    for exponent in (-600, 600):  # energies vanish or overflow
        far = replace(profile, segments=(replace(profile.segment(), exponent=exponent),))
        energy = drawn(figures.path(far)).axes[0]
        assert [bar.get_height() for bar in energy.patches] == pytest.approx(heights)
    assert sum(heights) == pytest.approx(100)
    median, whole = (line.get_ydata() for line in angles.lines)
    assert whole == pytest.approx(np.degrees(path.angles))
    assert median == pytest.approx([np.degrees(path.over_samples(f"angles.{i}")) for i in range(2)])
    assert straight.lines[0].get_xdata()[50] == path.over_samples("straightness", 0.5)
    assert straight.lines[1].get_xdata()[0] == path.straightness


def test_a_path_without_samples_or_without_movement_is_drawn(profile):
    older = replace(profile.segment(), quantiles=None, sampled=0)
    figure = drawn(figures.path(replace(profile, segments=(older,))))
    assert len(figure.axes[1].lines) == 1
    still = measure(FCResNet(36, 3, width=8, blocks=3), batches(), progress=False)
    figure = drawn(figures.path(still))
    for ax in figure.axes:
        assert [text.get_text() for text in ax.texts] == ["nothing moves"]
        assert "nan" not in ax.get_title(loc="left")
    two = measure(net(blocks=1), batches(), progress=False)
    texts = [[text.get_text() for text in ax.texts] for ax in drawn(figures.path(two)).axes]
    assert texts == [[], ["nothing turns: two layers"], []]


def test_certificates_show_turns_and_where_theorem_2_holds(profile):
    figure = drawn(figures.certificates(profile))
    assert len(figure.axes) == 3
    for ax, metric in zip(figure.axes, METRICS, strict=True):
        lines = {line.get_label(): line for line in ax.lines if line.get_marker() == "None"}
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        for line, dot, end in zip(lines.values(), dots, ("measured", "means", "etf"), strict=True):
            t, values = line.get_data()
            assert_array_equal(values, getattr(profile.segment().line(t.tolist(), end), metric))
            certificate = profile.segment().certify(end)
            turns = {"pfc1": certificate.theorem1.turns, "pfc2": certificate.theorem2.turns}
            assert tuple(dot.get_xdata()) == turns.get(metric, ())
    (shade,) = figure.axes[1].patches
    assert shade.get_x() == profile.segment().certify("etf").theorem2.t0


def test_certificates_show_transport_in_percent_of_the_cost(profile):
    found = transport(net(), batches(), profile, progress=False)
    ax = drawn(figures.certificates(profile, transport=found)).axes[3]
    exact, bound, atoms = (bar.get_height() for bar in ax.patches)
    assert exact == pytest.approx(100 / found.exact.ratio)
    assert bound == pytest.approx(100 / found.gelbrich.ratio)
    assert atoms == pytest.approx(100 / found.atoms.ratio)
    still_net = FCResNet(36, 3, width=8, blocks=3)
    still = measure(still_net, batches(), progress=False)
    same = transport(still_net, batches(), still, progress=False)
    ax = drawn(figures.certificates(still, transport=same)).axes[3]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["to the class\nmeans"]
    ax = drawn(figures.certificates(still, transport=replace(same, atoms=None))).axes[3]
    assert [text.get_text() for text in ax.texts] == ["nothing moves"]


def test_certificates_of_an_undefined_end_leave_it_out(profile):
    collapsed = replace(
        profile.segment(), means=profile.segment().means.clone().index_fill_(0, torch.tensor(1), 0)
    )
    ax = drawn(figures.certificates(replace(profile, segments=(collapsed,)))).axes[0]
    assert "the nearest ETF" not in [line.get_label() for line in ax.lines]


# several data sets


def test_all_training_shows_the_last_segment_of_each_data_set(profile, other, staged):
    runs = {"one": {0: other, 9: profile}, "two": {0: staged, 3: staged}}
    figure = drawn(figures.all_training(runs))
    grid = np.array(figure.axes).reshape(2, 3)
    for row, (name, profiles) in zip(grid, runs.items(), strict=True):
        last = profiles[max(profiles)].segment()
        for ax, metric in zip(row, METRICS, strict=True):
            assert len(ax.lines) == len(last.layers)
            for i, line in enumerate(ax.lines, start=last.start):
                assert_array_equal(line.get_xdata(), sorted(profiles))
                want = [profiles[epoch].columns[metric][i] for epoch in sorted(profiles)]
                assert_array_equal(line.get_ydata(), want)
        assert row[0].get_ylabel() == name
    assert told(figure) == ["first layer of the last stage", "last layer"]


def test_an_early_profile_may_lack_its_segments(profile):
    early = replace(profile, segments=())
    figure = drawn(figures.all_training({"one": {0: early, 9: profile}}))
    assert len(figure.axes[0].lines) == 4


@pytest.mark.parametrize("position", ["path", "index"])
def test_all_layers_shows_layers_and_line_of_each_data_set(profile, staged, position):
    figure = drawn(figures.all_layers({"one": profile, "two": staged}, position=position))
    for row, each in zip(np.array(figure.axes).reshape(2, 3), (profile, staged), strict=True):
        segment = each.segment()
        for ax, metric in zip(row, METRICS, strict=True):
            line, measured = ax.lines
            assert_array_equal(measured.get_xdata(), segment.position(position))
            want = each.columns[metric][segment.start :][: len(segment.layers)]
            assert_array_equal(measured.get_ydata(), want)
            assert (list(line.get_xdata()), list(line.get_ydata())) == on_grid(
                segment, "measured", metric
            )
    assert told(figure) == ["straight line to the last features", "measured layers"]


def test_the_plane_shows_samples_and_their_lines():
    points = {f"l{i}": [[float(i), 0.0], [0.0, i + 1.0], [-float(i), -1.0]] for i in range(9)}
    figure = drawn(figures.plane(points, [0, 1, 1], ["a", "b"], most=4))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["l0", "l3", "l5", "l8"]
    for ax in figure.axes:
        lines, *dots = ax.collections
        assert_array_equal(lines.get_segments()[1], [[0, 1], [0, 9]])
        own = points[ax.get_title(loc="left")]
        assert_array_equal(dots[0].get_offsets(), own[:1])
        assert_array_equal(dots[1].get_offsets(), own[1:])
    assert told(figure) == ["a", "b"]


def test_figures_of_data_sets_refuse_what_they_cannot_draw(profile):
    for draw in (figures.all_training, figures.all_layers):
        with pytest.raises(ValueError, match="need at least one data set, got none"):
            draw({})
    with pytest.raises(ValueError, match="no segment -1: the profile has 0"):
        figures.all_layers({"one": replace(profile, segments=())})
    with pytest.raises(ValueError, match="need two layers at least, got l0"):
        figures.plane({"l0": [[0.0, 1.0]]}, [0], ["a"])
