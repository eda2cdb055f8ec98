"""The examples run, each as it stands, at its smallest."""

import runpy
import sys
from pathlib import Path

import pytest

import pfc

EXAMPLES = Path(__file__).parents[1] / "examples"
SAY = {
    "plain": "epoch 0: PFC1",
    "lightning_digits": "PFC1 of the last block",
    "transformers_digits": "PFC1",
}
NEEDS = {"lightning_digits": "lightning", "transformers_digits": "accelerate"}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAY}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAY)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), "--epochs", "1"])
    runpy.run_path(str(path), run_name="__main__")
    assert SAY[name] in capsys.readouterr().out
    folder = tmp_path if name == "plain" else tmp_path / "pfc"
    assert len(pfc.load(folder).profiles) == 1
