"""Files that version 0.1.0 wrote are read by this one; they were made with that version."""

import json
import shutil
import warnings
from pathlib import Path

import pytest

import pfc
from pfc.cli import main
from pfc.profile import load_transport
from pfc.theory import descent, mufm
from pfc.training import Run

OLD = Path(__file__).parent / "written_by_0_1_0"


def test_a_profile_of_two_segments():
    profile = pfc.load(OLD / "two-segments.json")
    assert profile.about["weighting"] == "sample"
    assert [len(segment.layers) for segment in profile.segments] == [3, 2]
    for segment in profile.segments:
        ends = [profile.columns["pfc1"][profile.layers.index(segment.layers[i])] for i in (0, -1)]
        assert segment.line([0.0, 1.0]).pfc1.tolist() == pytest.approx(ends, rel=1e-12)
        assert segment.path().length > 0
        assert segment.path().over_samples("straightness") > 0
    for name, moments in profile.moments.items():
        assert int(moments.count.sum()) == 120, name


def test_a_profile_of_one_pass_beyond_squares():
    profile = pfc.load(OLD / "one-pass.json")
    assert "pfc3" not in profile.columns
    assert profile.moments == {}
    assert any(profile.about["exponents"].values())


def test_a_run_is_read_and_resumed(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.recipe.epochs == 2
    assert sorted(run.profiles) == [0, 1, 2]
    assert [line["epoch"] for line in run.history] == [1, 2]
    found = pfc.measure(run.network(), run.data().batches(), progress=False)
    for column, values in run.profiles[2].columns.items():
        # of float32 passes, which differ by 1.1e-6 between two processors
        assert found.columns[column] == pytest.approx(values, rel=2e-6, nan_ok=True), column
    net = run.recipe.build(run.data())
    assert not list(pfc.train(net, run.data(), run.recipe, folder=tmp_path / "run", resume=True))


def test_what_theory_said_of_a_run_is_read():
    run = Run(OLD / "run")
    with warnings.catch_warnings(action="error"):
        found = load_transport(run.theory_file, run.profiles[2])
    assert found.to_dict()["cost"] == json.loads(run.theory_file.read_text())["transport"]["cost"]


def test_a_sweep_goes_on_without_solving_anything_anew(tmp_path, monkeypatch, capsys):
    def again(*_, **__):
        raise AssertionError("this was solved")

    shutil.copytree(OLD / "mufm", tmp_path / "mufm")
    path = tmp_path / "mufm" / "figure5.json"
    before = path.read_bytes()
    monkeypatch.setattr(mufm, "solve", again)
    monkeypatch.setattr(descent, "on_mufm", again)
    sweep = "mufm --sweep --steps 50 --classes 3 --dimensions 4 --per-class 6 --lams 1e-3 1e-1"
    main([*sweep.split(), "--out", str(tmp_path / "mufm")])
    assert path.read_bytes() == before
    assert (
        "PFC1 is below that of the data (Theorem 4) for 2 of 2 coefficients." in capsys.readouterr().out
    )
    with pytest.raises(AssertionError, match="this was solved"):
        main([*sweep.split(), "1e-2", "--out", str(tmp_path / "mufm")])
