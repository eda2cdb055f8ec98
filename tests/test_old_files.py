"""Files that version 0.1.0 wrote are read by this one; they were made with that version."""

import shutil
from pathlib import Path

import pytest

import pfc
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
        assert found.columns[column] == pytest.approx(values, rel=1e-6, nan_ok=True), column
    net = run.recipe.build(run.data())
    assert not list(pfc.train(net, run.data(), run.recipe, folder=tmp_path / "run", resume=True))
