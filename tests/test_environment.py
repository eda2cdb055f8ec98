"""The user's environment: streams, terminals, disks, memory and settings of matplotlib."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import pfc
from pfc import files
from pfc.cli import main
from pfc.figures import album
from pfc.theory import mufm, transport, ufm
from pfc.training import Run
from tests import problems

SMALL = "digits --epochs 1 --limit 60 --width 6 --blocks 1 --out".split()


def started(*arguments, shell="", folder=None, **environment):
    """`python -m pfc` in a shell that may close its streams."""
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-m", "pfc", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=env)


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_stop_nothing(tmp_path, closed):
    done = started("train", *SMALL, tmp_path / "run", shell=closed)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(Run(tmp_path / "run").history) == 1
    assert started("nothing", shell=closed).returncode == 2


def test_names_that_a_stream_can_not_write_are_escaped(tmp_path):
    done = started("train", *SMALL, "gr\u00fcn", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gr\\xfcn: pfc measure")
    assert (tmp_path / "gr\u00fcn/config.json").exists()


@pytest.mark.parametrize("columns", ["1", "400"])
def test_help_fits_any_terminal(columns):
    for arguments in ([], ["measure"]):
        done = started(*arguments, "--help", COLUMNS=columns)
        assert (done.returncode, done.stderr) == (0, "")
        assert "pfc" in "".join(done.stdout.split())


def broken(*_, **__):
    raise RuntimeError("Failed to process string with tex because latex could not be found")


def test_a_figure_that_fails_costs_only_itself(tmp_path, monkeypatch):
    digits = pfc.data.load("digits", limit=60)
    net = pfc.FCResNet(features=64, classes=10, width=6, blocks=2)
    profile = pfc.measure(net, digits.batches(), progress=False)
    monkeypatch.setitem(album.OF_THEORY, "path", broken)
    with pytest.warns(
        UserWarning, match="figure path is left out, since matplotlib can't draw it: Runtime"
    ):
        drawn = album.of_profile(profile, tmp_path)
    assert {path.stem for path in drawn} == {"layers", "certificates"}
    with pytest.raises(ValueError, match="'index'"):
        album.of_profile(profile, tmp_path, position="depth")


def test_the_verdict_is_printed_before_figures_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pfc.commands.training.draw.of_run", broken)
    with pytest.raises(RuntimeError, match="latex"):
        main(["run", *SMALL, str(tmp_path / "run"), "--no-theory"])
    assert "Progressive feedforward collapse" in capsys.readouterr().out


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_too_little_memory_is_one_line(monkeypatch, capsys, error):
    def load(path):
        raise error

    monkeypatch.setattr("pfc.commands.profiles.load", load)
    with pytest.raises(SystemExit, match="2"):
        main(["figures", "p.json"])
    said = capsys.readouterr().err
    assert said.startswith("pfc: out of memory: take a smaller --batch-size or --limit")
    assert said.count("\n") == 1


def test_a_disk_without_modes_is_written_to(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    files.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order, move = [], os.replace
    monkeypatch.setattr(files, "to_disk", lambda path: order.append(path.name))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("moved"), move(a, b)))
    files.write_text(tmp_path / "a.txt", "text")
    assert order == ["a.txt", "moved", tmp_path.name]


def test_what_numpy_is_to_raise_stops_no_theory():
    H, y = problems.features(3, N=60, D=6, K=4)
    how = {"lam": 0.1, "weight_decay": 0.01}
    with np.errstate(all="raise"):
        profile = pfc.measure_features({"a": H, "b": 2 * H.flip(1) ** 3}, y, progress=False)
        told = [
            *profile.prediction().sentences(),
            transport.gap(H, 2 * H.flip(1), y, progress=False),
            *(mufm.solve(H, y, **how, loss=loss) for loss in ("mse", "ce")),
            mufm.optimum(3, 5, 20, **how, norm=1.0, sigma=0.3),
            mufm.solve_layered(H, y, **{**how, "lam": [0.1, 0.2]}, layers=2),
            ufm.unbalanced([3, 4, 5], 6, weight_decay=0.01, feature_decay=0.01),
        ]
    assert all(map(str, told))
