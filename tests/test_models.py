"""`pfc mufm` and its figures: toy and real data, numbers kept, work that goes on, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import pfc
from pfc import figures
from pfc.cli import main
from pfc.theory import mufm, ufm
from pfc.theory.toy import toy

SMALL = "--per-class 10 --dimensions 6 --steps 300".split()


def call(*arguments):
    main(["mufm", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_figure_4_keeps_every_way_and_every_constants_source(tmp_path, capsys):
    call(*SMALL, "--out", tmp_path)
    out = capsys.readouterr().out
    made = sorted(p.name for p in tmp_path.iterdir())
    assert made == [f"figure4.{kind}" for kind in ("json", "png", "svg")]
    kept = json.loads((tmp_path / "figure4.json").read_text())
    assert set(kept["ways"]) == {"MUFM, ours", "MUFM, descent", "UFM, ours", "UFM, descent"}
    assert kept["settings"]["sources"]["per_class"] == "given"
    assert kept["settings"]["sources"]["sigma"].startswith("inferred")
    assert kept["settings"]["constants"]["steps"] == 300
    X, y = toy(4, 6, 10)
    solution = mufm.solve(X, y, lam=0.005)
    ends = kept["ends"]
    assert ends["MUFM, ours"]["objective"] == pytest.approx(solution.objective, rel=1e-12)
    assert ends["MUFM, ours"]["pfc1"] == pytest.approx(solution.pfc1, rel=1e-9)
    assert ends["UFM, closed form"]["objective"] == ufm.optimum(4, 6, 10).objective
    assert ends["UFM, ours"]["objective"] == pytest.approx(ufm.optimum(4, 6, 10).objective, rel=1e-10)
    assert kept["ways"]["MUFM, descent"]["steps"][-1] == 300
    call(*SMALL, "--start", "data", "--out", tmp_path / "data")
    begun = json.loads((tmp_path / "data" / "figure4.json").read_text())["ways"]["MUFM, descent"]
    assert begun["cosine"][0] == pytest.approx(1)
    assert kept["ways"]["MUFM, descent"]["cosine"][0] < 0.5
    assert "MUFM: " in out
    assert "figure4.png" in out


def test_figure_5_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    lams = ["--lams", "1e-3", "1e-1", "1e-3", "--out", tmp_path, "--sweep", *SMALL]
    real, seen = mufm.solve, []

    def solve(*arguments, lam, **how):
        seen.append(lam)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments, lam=lam, **how)

    monkeypatch.setattr(mufm, "solve", solve)
    with pytest.raises(SystemExit):
        call(*lams)
    assert len(json.loads((tmp_path / "figure5.json").read_text())["solutions"]) == 1
    call(*lams)
    assert seen == [1e-3, 1e-1, 1e-1], "what was done is not done again"
    kept = json.loads((tmp_path / "figure5.json").read_text())
    X, y = toy(4, 6, 10)
    for row, lam in zip(kept["solutions"], (1e-3, 1e-1), strict=True):
        assert row["lam"] == lam
        known = real(X, y, lam=lam, relax=True)
        assert row["objective"] == pytest.approx(known.objective, rel=1e-10)
        assert row["gap"] == pytest.approx(known.gap, rel=1e-3, abs=1e-12)
        assert row["certified"] == (row["gap"] <= 1e-4)
    assert [row["steps"] for row in kept["descent"]] == [300, 300]
    out = capsys.readouterr().out
    assert "of 2 are proven to be within a relative 1e-04 of the minimum" in out
    assert "PFC1 is below that of the data (Theorem 4) for 2 of 2 coefficients." in out
    message = refused(capsys, *lams, "--weight-decay", "0.01")
    assert "holds a sweep with another weight_decay: choose another folder" in message
    (tmp_path / "figure5.json").write_text('{"format": "pfc-mufm-1"}')
    message = "figure5.json: settings is missing; or choose another folder"
    assert message in refused(capsys, *lams)
    (tmp_path / "figure5.json").write_text('{"format": "pfc-mufm-9"}')
    assert "by a newer pfc (pfc-mufm-9); this one reads pfc-mufm-1: update pfc" in refused(capsys, *lams)


def test_real_pixels_are_scaled_and_centred(tmp_path):
    digits = ["--data", "digits", "--no-descent", "--restarts", "0", "--out", tmp_path]
    call("--sweep", *digits, "--limit", "100", "--lams", "0.01")
    kept = json.loads((tmp_path / "figure5.json").read_text())
    assert kept["settings"]["data"] == "100 images of digits, pixels in 0..1"
    assert kept["settings"]["centred"] is True
    assert "sigma" not in kept["settings"]["constants"]
    images = pfc.data.load("digits", limit=100)
    X = images.images.flatten(1).double() / 255
    solution = mufm.solve(X, images.labels, lam=0.01, centre=True, restarts=0)
    (row,) = kept["solutions"]
    assert row["objective"] == pytest.approx(solution.objective, rel=1e-6)
    assert row["pfc1"] == pytest.approx(solution.pfc1, rel=1e-4)
    assert row["pfc3"] == pytest.approx(solution.pfc3)
    assert kept["descent"] == []
    call(*digits, "--limit", "60", "--no-centre")
    ways = json.loads((tmp_path / "figure4.json").read_text())["ways"]
    assert set(ways) == {"MUFM, ours", "UFM, ours"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    how = "--limit 100 --epochs 2 --width 12 --blocks 2 --seed 1".split()
    main(["train", "digits", *how, "--out", str(folder)])
    return folder


def test_features_of_a_run_are_the_data(run_folder, tmp_path, capsys):
    call("--sweep", "--features", run_folder, "--lams", "1", "--no-descent", "--out", tmp_path / "a")
    kept = json.loads((tmp_path / "a" / "figure5.json").read_text())
    assert kept["settings"]["data"] == "100 features of stem of small on digits"
    run = pfc.training.Run(run_folder)
    found, y = pfc.features(run.network(), run.data().batches(), ["stem"], progress=False)
    solution = mufm.solve(found["stem"], y, lam=1.0, centre=True)
    assert kept["solutions"][0]["objective"] == pytest.approx(solution.objective, rel=1e-9)
    other = ["--layer", "blocks.1", "--epoch", "0", "--steps", "100", "--out", tmp_path / "b"]
    call("--features", run_folder, *other)
    settings = json.loads((tmp_path / "b" / "figure4.json").read_text())["settings"]
    assert settings["data"] == "100 features of blocks.1 of small on digits"
    message = refused(capsys, "--features", run_folder, "--layer", "blocks.*")
    assert "layer must name one layer, 'blocks.*' names blocks.0, blocks.1" in message


def test_cross_entropy_and_a_free_bias(tmp_path):
    call(*SMALL, "--loss", "ce", "--out", tmp_path / "ce")
    kept = json.loads((tmp_path / "ce" / "figure4.json").read_text())
    X, y = toy(4, 6, 10)
    known = mufm.solve(X, y, lam=0.005, loss="ce").objective
    assert kept["ends"]["MUFM, ours"]["objective"] == pytest.approx(known, rel=1e-10)
    assert set(kept["ways"]) == {"MUFM, descent", "UFM, descent"}
    call(*SMALL, "--bias", "--sweep", "--lams", "0.1", "--out", tmp_path / "bias")
    kept = json.loads((tmp_path / "bias" / "figure5.json").read_text())
    known = mufm.solve(X, y, lam=0.1, bias="free").objective
    assert kept["solutions"][0]["objective"] == pytest.approx(known, rel=1e-10)
    assert kept["descent"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lam", "0"], "lam must be a positive number, got 0.0"),
        (["--weight-decay", "-1"], "weight_decay must be a positive number, got -1.0"),
        (["--lams", "1"], "--lams are the coefficients of a --sweep; without one there is --lam"),
        (["--sweep", "--lams", "1", "-2"], "lams must be a positive number, got -2.0"),
        (["--sweep", "--lams"], "lams needs at least one coefficient"),
        (["--sigma", "1e200", "--no-descent"], "squares overflow; scale them down"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--restarts", "-1"], "restarts must be at least 0, got -1"),
        (["--bias", "--loss", "ce"], "--bias goes with --loss mse only"),
        (["--bias", "--descent"], "gradient descent has no bias; leave one of them out"),
        (["--limit", "10"], "--limit goes with --data or --features"),
        (["--layer", "stem"], "--layer and --epoch go with --features RUN"),
        (["--features", "nowhere"], "nowhere holds no run"),
        (["--data", "nowhere"], "no data set or folder 'nowhere'"),
        (["--sigma", "0"], "sigma must be a positive number"),
        (["--classes", "1"], "classes must be at least 2, got 1"),
        (["--descent", "--data", "digits", "--steps", "100000000"], "takes hours; leave it out"),
        (["--loss", "hinge"], "Invalid value"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


WAY = {"steps": [0, 1, 5], "pfc1": [2.0, 0.1, 0.0], "pfc2": [0.5, 0.2, 1e-20], "pfc3": [0.8, 0.9, 1.0]}
WAY |= {"objective": [3.0, 2.0, 1.0]}
DATA = {"pfc1": 5.0, "pfc2": 0.4, "pfc3": 0.7}


def test_iterations_show_the_numbers_and_the_data():
    figure = figures.iterations({"MUFM, ours": WAY, "UFM, descent": WAY}, DATA, title="told")
    figure.draw_without_rendering()
    for ax, metric in zip(figure.axes, ("pfc1", "pfc2", "pfc3"), strict=False):
        ours, theirs, data = ax.lines
        assert_array_equal(ours.get_xdata(), [1, 2, 6])
        floor = 1e-16 if metric != "pfc3" else 0
        assert_array_equal(ours.get_ydata(), np.maximum(WAY[metric], floor))
        assert_array_equal(theirs.get_ydata(), ours.get_ydata())
        assert data.get_ydata()[0] == DATA[metric]
    assert_array_equal(figure.axes[3].lines[0].get_ydata(), WAY["objective"])
    with pytest.raises(ValueError, match=r"ways must be some of MUFM, ours.*, got none"):
        figures.iterations({}, DATA)
    with pytest.raises(ValueError, match=r"got Adam"):
        figures.iterations({"Adam": WAY}, DATA)


def row(lam, certified):
    names = ("pfc1", "pfc2", "pfc3", "cosine", "distance", "moved")
    return {"lam": lam, **{name: lam * (i + 1) for i, name in enumerate(names)}, "certified": certified}


def test_a_sweep_fills_what_is_proven_and_draws_descent_beside():
    solutions = [row(0.01, True), row(0.1, False), row(1.0, True)]
    descent = [{**row(0.1, False), "moved": math.nan}]
    figure = figures.sweep(solutions, DATA, descent, title="told")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    line, proven, found, theirs, data = ax.lines
    assert_array_equal(line.get_xdata(), [0.01, 0.1, 1.0])
    assert_array_equal(proven.get_xdata(), [0.01, 1.0])
    assert_array_equal(found.get_xdata(), [0.1])
    assert found.get_markerfacecolor() == "white"
    assert_array_equal(theirs.get_ydata(), [0.1])
    assert data.get_ydata()[0] == DATA["pfc1"]
    assert_array_equal(figure.axes[4].lines[0].get_ydata(), [5 * r["lam"] for r in solutions])
    expected = [{"lam": 0.01, "pfc1": 3.0, "moved": 2.0}, {"lam": 1.0, "pfc1": 4.0, "moved": 5.0}]
    figure = figures.sweep(solutions, DATA, (), expected)
    figure.draw_without_rendering()
    closed = figure.axes[0].lines[3]
    assert closed.get_label() == "orthogonal means, expected"
    assert_array_equal(closed.get_ydata(), [3.0, 4.0])
    assert len(figure.axes[2].lines) == len(figure.axes[0].lines) - 1, "PFC3 has no closed form"
    with pytest.raises(ValueError, match="a sweep needs the solution of at least one coefficient"):
        figures.sweep([], DATA)


def test_figures_of_models_take_metrics_and_a_width():
    solutions = [row(0.01, True), row(1.0, True)]
    for draw, more in (
        (lambda **how: figures.iterations({"UFM, ours": WAY}, DATA, **how), 1),
        (lambda **how: figures.sweep(solutions, DATA, **how), 3),
    ):
        figure = draw(metrics=["pfc3", "pfc1"], width=3.25)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == 3.25
        titles = [ax.get_title(loc="left")[:4] for ax in figure.axes]
        assert titles[:2] == ["PFC3", "PFC1"]
        assert len(titles) == 2 + more
        assert len({ax.get_position().x0 for ax in figure.axes}) == 1, "one below another"
        assert figure._repr_png_().startswith(b"\x89PNG")
        with pytest.raises(ValueError, match=r"metrics must be some of pfc1, pfc2, pfc3, .*; got nc1"):
            draw(metrics=["nc1"])


def test_theory_names_its_modules():
    assert set(dir(pfc.theory)) == {
        *("descent", "geodesic", "mufm", "path", "separation", "toy", "transport", "ufm")
    }
    for name in dir(pfc.theory):
        assert getattr(pfc.theory, name).__name__ == f"pfc.theory.{name}"
    with pytest.raises(AttributeError, match=r"module 'pfc.theory' has no attribute 'nothing'"):
        _ = pfc.theory.nothing
    assert isinstance(toy()[0], torch.Tensor)
