"""Command lines at random: what is measured is what was asked for, or one line says why not."""

import contextlib
import os
import random
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

import pfc
from pfc.cli import main
from tests.test_data import png
from tests.test_fuzz import in_time
from tests.test_same_data import MODULE, folder

pytestmark = pytest.mark.filterwarnings("ignore")

COUNTS = {  # images of each data set by split
    "set": {"train": 12, "test": 12},
    "two": {"train": 10},
    "digits": {"train": 1797, "fit": 1438, "held-out": 359},
}
SOURCES = (
    *(
        "run",
        "run",
        "run",
        "./run",
        "net:net",
        "net:net",
        "net:named",
        "f.npz",
        "p.json",
        "set",
        "nowhere",
    ),
    *(
        "net.py:net",
        "net:gone",
        "gone:net",
        "net:number",
        "net:",
        ":net",
        ":",
        "net:net:net",
        "",
        " ",
        ".",
    ),
    *(
        "~",
        "~nobody/run",
        "a\0b",
        "é:é",
        "run/config.json",
        "net.py",
        "w.safetensors",
        "/dev/null",
    ),
    *("-", "*", "run/", "two", "empty", "x" * 300),
)
OPTIONS = {
    "--data": (
        *(
            "set",
            "set",
            "./set",
            "two",
            "digits",
            "empty",
            "nowhere",
            "",
            ".",
            "run",
            "f.npz",
            "a\0b",
            "~",
        ),
        *("a/b/c", "x" * 300, "\udcff"),
    ),
    "--split": ("train", "test", "fit", "held-out", "dev", "", "TRAIN", "a/b"),
    "--limit": ("2", "4", "11", "5000", "1", "0", "-3", "1e3", "x", "", "9" * 30),
    "--label": ("label", "label", "coarse_label", "fine_label", "x", ""),
    "--column": ("image", "image", "x", ""),
    "--epoch": ("0", "1", "7", "-1", "x"),
    "--weights": ("w.safetensors", "gone.safetensors", "set", "f.npz", "pointer.pt", ""),
    "--mean": ("0.5", "0.1 0.2", "nan", "inf", "x"),
    "--std": ("0.5", "0", "-1", "nan", "0.1 0.2"),
    "--means": ("train", "test", "p.json", "gone.json", "set", ""),
    "--labels": ("y", "y.npy", "z", ""),
    "--layers": ("stem", "blocks.*", "*", "gone", ""),
    "--classes": ("2", "10", "1", "x", "-1"),
    "--classifier": ("classifier", "W", "gone", ""),
    "--weighting": ("class", "sample", "x"),
    "--passes": ("1", "2", "3"),
    "--pool": ("flatten", "mean", "cls", "last", "x"),
    "--batch-size": ("5", "1", "0", "-1", "x"),
    "--device": ("cpu", "cuda", "x", "meta", "cuda:99", ""),
    "--out": ("o.json", "o", "set", "", "run/config.json", "/dev/null", "x" * 300 + ".json", "w.json"),
    "--transport": ("0", "2", "10", "1", "-1", "x"),
    "--unknown": ("1",),
}
FLAGS = ("--no-test", "--no-segments", "--test", "--no-theory")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run, a model, data of three kinds, features and a profile."""
    home = tmp_path_factory.mktemp("arguments")
    with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFC_CACHE", str(home / ".cache"))
        patch.setenv("HOME", str(home))
        folder(home / "set")
        labels = [k % 2 for k in range(10)]
        content = {"image": [png(np.full((4, 4), 20 * k, np.uint8)) for k in range(10)]}
        (home / "two").mkdir()
        pq.write_table(
            pa.table({**content, "label": labels, "coarse_label": labels}), "two/train.parquet"
        )
        (home / "net.py").write_text(f"{MODULE}\nnumber = 3\n")
        small = "--epochs 1 --width 4 --blocks 1 --data set --out run"
        main(["train", "digits", *small.split()])
        net = pfc.FCResNet(16, 2, width=4, blocks=2)
        save_file(net.state_dict(), "w.safetensors")
        (home / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        np.savez("f.npz", a=np.eye(4), y=np.arange(4) % 2)
        np.save("y.npy", np.arange(4) % 2)
        main(["measure", "run", "--no-theory", "--no-test", "--out", "p.json"])
        (home / "empty").mkdir()
    return home


def command_line(rng):
    """A command at random; most of the time few of its parts are odd."""
    kind = rng.choice((*["measure"] * 4, "figures", "report", "train", "mufm"))
    chosen = rng.sample(list(OPTIONS), rng.randint(0, 4))
    parts = [(name, *usual(OPTIONS[name], rng).split(" ")) for name in chosen]
    rest = [part for option in parts for part in option]
    if kind in {"figures", "report"}:
        sources = rng.choices(SOURCES, k=rng.choice((0, 1, 1, 1, 2)))
    if kind == "report":
        return [kind, *sources, *rng.choice(([], ["--out", "r.html"], ["--out", "set"], rest[:2]))]
    if kind == "figures":
        return [kind, *sources, *rng.choice(([], ["--end", "etf"], ["--end", "x"], rest[:2]))]
    if kind == "train":
        small = "--epochs 1 --width 4 --blocks 1 --out".split()
        return [kind, rng.choice(("digits", "mnist", "x")), *small, f"runs/{rng.random()}", *rest]
    if kind == "mufm":
        return [kind, "--steps", "5", "--restarts", "0", "--no-descent", "--out", "mufm", *rest]
    flags = rng.sample(FLAGS, rng.randint(0, 2)) + ["--no-theory"] * (rng.random() < 0.9)
    if rng.random() < 0.6 and "--data" not in chosen:
        rest += ["--data", rng.choice(("set", "two", "digits"))]
    return [kind, usual(SOURCES[3:], rng), *rest, *flags]


def usual(values, rng):
    """One of the first two values most of the time."""
    return rng.choice(values[:2] if rng.random() < 0.8 else values)


def expected(arguments):
    """How many samples must be measured, by what was asked for alone; `None` if it can't be told."""
    given = dict(pairwise(arguments))
    source, data = arguments[1], given.get("--data")
    if source == "f.npz":
        return 4
    name = Path(data or "set").name
    if name not in COUNTS:
        return None
    count = COUNTS[name][given.get("--split") or "train"]
    return min(count, int(given["--limit"])) if "--limit" in given else count


@dataclass
class Tally:
    """What became of the command lines."""

    done: int = 0
    refused: int = 0
    compared: int = 0


def run(arguments, capsys):
    """Output, errors and the exit code of a command."""
    code = 0
    try:
        with in_time():
            main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return captured.out, captured.err, code


def check(arguments, capsys, tally):
    out, err, code = run(arguments, capsys)
    assert code in {0, 2}
    assert "Traceback" not in err
    if code:
        tally.refused += 1
        assert err.rstrip("\n").rpartition("\n")[2].startswith("pfc: ")
        return
    tally.done += 1
    found = re.search(r": (\d+) samples", out.partition("\n")[0])
    if arguments[0] == "measure" and found and (count := expected(arguments)) is not None:
        assert int(found[1]) == count
        tally.compared += 1


def cases(seeds, home, monkeypatch, capsys):
    tally = Tally()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("PFC_CACHE", str(home / ".cache"))
    monkeypatch.setenv("HOME", str(home))
    for seed in seeds:
        arguments = command_line(random.Random(seed))
        before = (home / "run/config.json").read_bytes()
        try:
            check(arguments, capsys, tally)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {arguments}: {error!r}") from error
        assert (home / "run/config.json").read_bytes() == before
        for path in home.glob("o*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return tally


def test_command_lines_do_what_they_say_or_say_why_not(home, monkeypatch, capsys):
    tally = cases(range(50), home, monkeypatch, capsys)
    assert tally.done >= 3
    assert tally.refused >= 25


@pytest.mark.slow
@pytest.mark.parametrize("start", [1000, 2000])
def test_many_command_lines_do_what_they_say_or_say_why_not(start, home, monkeypatch, capsys):
    tally = cases(range(start, start + 1000), home, monkeypatch, capsys)
    with capsys.disabled():
        print(tally)
    assert tally.done >= 100
    assert tally.compared >= 50


def test_the_folder_is_as_it_was_made(home):
    assert {"run", "set", "two", "net.py"} <= set(os.listdir(home))
