"""The command line: what each command prints and writes, and one line with exit code 2 on bad input."""

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace
from html import escape
from statistics import median

import pytest
import torch

import pfc
from pfc.cli import HELP, main
from pfc.data import Normalisation, stratified
from pfc.files import write_tensors

SMALL = "digits --limit 200 --epochs 3 --width 16 --blocks 2 --seed 1".split()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    main(["train", *SMALL, "--out", str(folder)])
    return folder


PICTURES = [
    f"{name}.{kind}"
    for name in ("certificates", "layers", "path", "training")
    for kind in ("png", "svg")
]


def refused(capsys, *arguments):
    """What a refused command says: one line, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("pfc: ")
    return lines[-1]


def test_the_main_job(capsys, tmp_path):
    main(["run", *SMALL, "--out", str(tmp_path / "run")])
    captured = capsys.readouterr()
    for name in ("stem", "blocks.0", "blocks.1", "pfc1", "pfc2", "pfc3", "nc4"):
        assert name in captured.out
    assert "Progressive feedforward collapse" in captured.out
    assert "epoch 3: accuracy" in captured.err
    pictures = sorted(p.name for p in (tmp_path / "run" / "figures").iterdir())
    assert pictures == PICTURES
    for words in (
        "What theory says of the straight line from stem to blocks.1",
        "Theorem 1: ",
        "Path: ",
    ):
        assert words in captured.out
    theory = json.loads((tmp_path / "run" / "theory.json").read_text())
    assert all(sentence in captured.out for sentence in theory["sentences"])
    assert theory["transport"]["samples"] == 200
    assert captured.out.splitlines()[-1] == str(tmp_path / "run" / "report.html")
    page = (tmp_path / "run" / "report.html").read_text()
    assert escape(theory["sentences"][-1]) in page, "with the transport"
    before = (tmp_path / "run" / "state.safetensors").stat().st_mtime_ns
    main(["run", *SMALL, "--out", str(tmp_path / "run")])
    assert capsys.readouterr().out == captured.out, "a finished run is shown again"
    assert (tmp_path / "run" / "state.safetensors").stat().st_mtime_ns == before


def test_train_keeps_what_was_asked(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    assert (config["recipe"]["width"], config["recipe"]["blocks"], config["seed"]) == (16, [2], 1)
    assert config["data"]["limit"] == 200
    assert config["recipe"]["momentum"] == pfc.RECIPES["digits"].momentum


def test_a_profile_replaces_no_other_file(run_folder, tmp_path, capsys):
    odd = tmp_path / "odd.json"
    odd.write_text('{"format": ["pfc-profile-1"]}')
    assert "odd.json holds no profile" in refused(capsys, "measure", run_folder, "--out", odd)
    before = (run_folder / "config.json").read_bytes()
    message = refused(capsys, "measure", run_folder, "--out", run_folder / "config.json")
    assert "config.json holds no profile and would be replaced by one: choose another name" in message
    assert (run_folder / "config.json").read_bytes() == before


def test_measure_a_run(run_folder, capsys, tmp_path):
    main(["measure", str(run_folder), "--out", str(tmp_path / "p.json")])
    kept = pfc.training.Run(run_folder).profiles[3]
    assert pfc.load(tmp_path / "p.json").table().equals(kept.table())
    assert str(kept) in capsys.readouterr().out
    main(["measure", str(run_folder), "--epoch", "0", "--layers", "blocks.*", "--passes", "1"])
    out = capsys.readouterr().out
    assert "pfc3" not in out
    assert "stem" not in out
    assert "blocks.1" in out


MODULE = """
from pfc import FCResNet
def small():
    return FCResNet(64, 10, width=16, blocks=2)
def number():
    return 3
"""


def test_measure_a_model_of_ones_own(run_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(MODULE)
    weights = run_folder / "weights" / "epoch-0003.safetensors"
    command = [
        "measure",
        "mynets:small",
        "--weights",
        str(weights),
        "--data",
        "digits",
        "--limit",
        "200",
    ]
    main(command)
    assert "200 samples, 10 classes" in capsys.readouterr().out
    assert "no folder of a run" in refused(capsys, "measure", "nothing", "--data", "digits")
    assert "can't find mynets:large" in refused(capsys, "measure", "mynets:large", "--data", "digits")
    assert "can't find nonets:small" in refused(capsys, "measure", "nonets:small", "--data", "digits")
    assert "gave int, not a torch" in refused(capsys, "measure", "mynets:number", "--data", "digits")
    assert "needs --data" in refused(capsys, "measure", "mynets:small")
    write_tensors(tmp_path / "w.safetensors", {"other": torch.zeros(1)})
    message = refused(capsys, *command[:3], "w.safetensors", *command[4:])
    assert "w.safetensors does not fit mynets:small" in message
    (tmp_path / "w.pt").write_bytes(b"pickle")
    assert "a pickle is never loaded" in refused(capsys, *command[:3], "w.pt", *command[4:])


def test_figures_of_runs_and_profiles(run_folder, capsys, tmp_path):
    main(["figures", str(run_folder), "--out", str(tmp_path), "--position", "index"])
    assert sorted(p.name for p in tmp_path.iterdir()) == PICTURES
    profile = run_folder / "profiles" / "epoch-0003.json"
    main(["figures", str(profile), "--out", str(tmp_path)])
    assert (tmp_path / "epoch-0003-layers.png").exists()
    assert str(tmp_path / "epoch-0003-layers.svg") in capsys.readouterr().out


def test_theory_is_told_kept_and_drawn_or_left_out(run_folder, capsys, tmp_path):
    out = tmp_path / "p.json"
    main(["measure", str(run_folder), "--out", str(out), "--theory", "--transport", "50"])
    told = capsys.readouterr().out
    assert "(sampled, 50 of 200 samples;" in told
    kept = json.loads((tmp_path / "p-theory.json").read_text())
    assert kept["format"] == "pfc-theory-1"
    assert kept["transport"]["exact"]["samples"] == 50
    assert all(sentence in told for sentence in kept["sentences"])
    main(["figures", str(out), "--end", "etf"])
    names = ("p-certificates", "p-layers", "p-path")
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == list(names)
    main(["measure", str(run_folder), "--theory", "--transport", "0"])
    told = capsys.readouterr().out
    assert "Theorem 1: " in told
    assert "transport" not in told
    main(["measure", str(run_folder), "--out", str(tmp_path / "q.json"), "--no-theory"])
    assert "Theorem" not in capsys.readouterr().out
    assert not (tmp_path / "q-theory.json").exists()
    main(["figures", str(tmp_path / "q.json"), "--no-theory"])
    assert sorted(p.stem for p in tmp_path.glob("q*.png")) == ["q-layers"]
    main(["measure", str(run_folder), "--no-segments", "--theory"])
    told = capsys.readouterr().out
    assert "Theorem" not in told
    assert "Progressive feedforward collapse" in told, "the verdict needs no segments"
    main(["measure", str(run_folder), "--passes", "1"])
    assert "Progressive feedforward collapse" not in capsys.readouterr().out
    told = (tmp_path / "p-theory.json").read_text()
    main(["measure", str(run_folder), "--epoch", "0", "--out", str(out), "--no-theory"])
    (tmp_path / "p-theory.json").write_text(told)
    capsys.readouterr()
    with warnings.catch_warnings(action="always"):
        main(["figures", str(out)])
    warned = capsys.readouterr().err.strip()
    left_out = "is of another profile, so its transport is left out: measure again"
    assert warned == f"pfc: {tmp_path}/p-theory.json {left_out}"
    (tmp_path / "p-theory.json").write_text('{"format": "pfc-theory-9"}')
    assert "by a newer pfc (pfc-theory-9); this one reads pfc-theory-1: update pfc" in refused(
        capsys, "figures", out
    )


def test_transport_of_many_numbers_is_of_a_fair_sample(run_folder, capsys, monkeypatch):
    monkeypatch.setattr("pfc.commands.theory.MOST", 16 * 60)
    main(["measure", str(run_folder), "--theory"])
    assert "60 samples of 16 features, weighted by class" in capsys.readouterr().out
    main(["measure", str(run_folder), "--weighting", "sample", "--theory"])
    assert "60 samples of 16 features, weighted by sample" in capsys.readouterr().out
    images = pfc.data.load("digits", limit=200)
    equal, any_of = (
        stratified(images, 60, weighting).labels.bincount() for weighting in ("class", "sample")
    )
    assert equal.tolist() == [6] * 10
    assert any_of.sum() == 60
    assert any_of.tolist() != [6] * 10
    assert stratified(images, 60, "sample").labels.equal(stratified(images, 60, "sample").labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--transport", "6000"], "--transport must be 0 or from 2 to 5000 samples, got 6000"),
        (["measure", "nowhere", "--transport", "1"], "--transport must be 0 or from 2 to 5000"),
        (["figures", "nowhere", "--end", "last"], "Invalid value"),
        (["train", "imagenet"], "no recipe 'imagenet'; choose from digits, mnist"),
        (["train"], "requires an argument"),
        (["train", "digits", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "digits", "--epochs", "many"], "Invalid value"),
        (["train", "digits", "--limit", "3"], "limit must be at least 10"),
        (["train", "digits", "--loss", "hinge"], "Invalid value"),
        (["train", "digits", "--data", "nowhere"], "no data set or folder 'nowhere'"),
        (["train", "digits", "--precision", "int8"], "Invalid value"),
        (["figures", "nowhere"], "nowhere holds no run"),
        (["figures", "nowhere.json"], "no file nowhere.json"),
        (["measure", "nowhere:x", "--data", "digits", "--out", "p.txt"], "--out must end in .json"),
        (
            ["measure", "nowhere:x", "--data", "digits", "--batch-size", "0"],
            "--batch-size must be at least 1",
        ),
        (["nothing"], "Unknown command"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


def test_other_ways_to_be_refused(capsys, run_folder):
    assert "resume it, or choose another folder" in refused(capsys, "train", *SMALL, "--out", run_folder)
    assert "its momentum is 0.9, not 0.5; choose another folder" in refused(
        capsys, "run", *SMALL, "--momentum", "0.5", "--out", run_folder
    )
    assert "no weights of epoch 2; it has [0, 1, 3]" in refused(
        capsys, "measure", run_folder, "--epoch", "2"
    )
    assert "no layer matches 'blok*'" in refused(capsys, "measure", run_folder, "--layers", "blok*")


def test_help_has_a_working_example_of_every_command(capsys):
    for name in HELP:
        main([name, "--help"])
        assert "Example: pfc" in capsys.readouterr().out
    main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in HELP)
    main(["--version"])
    assert capsys.readouterr().out.strip() == pfc.__version__


def assert_every_field_is_told(out):
    words = " ".join(re.sub(r"[^!-~]", " ", out.replace("`", "")).split())
    for field in fields(pfc.Recipe):
        if field.name not in {"name", "data"}:
            assert f"--{field.name.replace('_', '-')} " in words
            assert field.metadata["help"].replace("`", "") in words
            assert field.metadata["source"]


def test_help_shows_every_field_of_a_recipe(capsys):
    main(["run", "--help"])
    assert_every_field_is_told(capsys.readouterr().out)


def printed(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


ALL_HELP = "from pfc.cli import HELP, main; [main([name, '--help']) for name in HELP]"
NO_DOCSTRINGS = """
from importlib.machinery import SourceFileLoader
whole = SourceFileLoader.get_code
def get_code(self, name):
    if name.partition(".")[0] != "pfc":
        return whole(self, name)
    return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True, optimize=2)
SourceFileLoader.get_code = get_code
"""


def test_commands_need_no_docstrings(tmp_path):
    """Of the package alone, as `python -OO` compiles all libraries too, which a slow test does."""
    small = "run --limit 60 --epochs 1 --width 8 --blocks 2 --out".split()
    code = (
        f"{NO_DOCSTRINGS}\n{ALL_HELP}\nimport pfc, sys\nassert not pfc.Run.__doc__\nmain(sys.argv[1:])"
    )
    said = printed("-c", code, *small, tmp_path / "run")
    assert "Progressive feedforward collapse" in said
    assert said.count("Usage: pfc") == len(HELP)
    assert_every_field_is_told(said)


@pytest.mark.slow
def test_commands_run_optimised(tmp_path):
    small = "run --limit 100 --epochs 1 --width 8 --blocks 2 --out".split()
    said = printed("-OO", "-c", f"import sys; {ALL_HELP}; main(sys.argv[1:])", *small, tmp_path / "run")
    assert "Progressive feedforward collapse" in said
    assert said.count("Usage: pfc") == len(HELP)
    assert_every_field_is_told(said)


def test_help_does_not_pay_for_torch():
    """`pfc --help` answers in under 0.4 s because it imports no torch (timed in a slow test)."""
    code = "import sys; from pfc.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_interrupt_says_how_to_go_on(tmp_path):
    code = (  # a process started in the background would ignore the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pfc.cli import main; main(sys.argv[1:])"
    )
    small = "train digits --limit 100 --epochs 1000 --width 8 --blocks 1 --out".split()
    command = [sys.executable, "-c", code, *small, str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        while not run.stderr.readline().startswith("epoch 2"):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        assert "pfc: interrupted; a run keeps what it has done" in run.stderr.read()
    assert run.returncode == 130
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_hidden_files_of_a_folder_that_is_no_run_stay(capsys, tmp_path):
    mine = [tmp_path / ".pre-commit-config.yaml", tmp_path / "sub" / ".env.local", tmp_path / ".tmp1"]
    mine[1].parent.mkdir()
    for path in mine:
        path.write_text("mine")
    main(["train", *SMALL, "--out", str(tmp_path)])
    assert all(path.exists() for path in mine)


def test_what_the_system_or_a_users_module_raises_is_one_line(capsys, tmp_path, monkeypatch, run_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "badnets.py").write_text(
        "import torch\nnumber = 3\n"
        "def needs(x):\n    return x\n"
        "def fails():\n    raise KeyError('gone')\n"
        "def cifar():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())\n"
    )
    (tmp_path / "file").write_text("")
    measure = ["measure", "--data", "digits", "--limit", "200"]
    for name, message in {
        "number": "gave int, not a torch",
        "needs": "badnets:needs failed: TypeError",
        "fails": "badnets:fails failed: KeyError: 'gone'",
        "cifar": "Sequential failed in layer '0' on batch 0 of 200 samples: RuntimeError: Given",
    }.items():
        assert message in refused(capsys, *measure, f"badnets:{name}")
    assert "--epoch belongs to a run" in refused(capsys, *measure, "badnets:cifar", "--epoch", "3")
    assert "need 1 number(s) each" in refused(capsys, *measure, "badnets:cifar", "--mean", "0.5")
    assert "no device 'foo' here" in refused(capsys, "measure", run_folder, "--device", "foo")
    assert "threads must be at least 1" in refused(
        capsys, "train", *SMALL, "--threads", "0", "--out", "r"
    )
    assert "file" in refused(capsys, "train", *SMALL, "--out", "file")
    assert "file" in refused(capsys, "measure", run_folder, "--out", "file/p.json")


def test_other_data_are_normalised_as_in_training_or_as_told(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept = pfc.training.Run(run_folder)
    other = kept.normalised(replace(kept.data(), normalisation=Normalisation((9.0,), (9.0,), "other")))
    assert other.normalisation == kept.data().normalisation
    (tmp_path / "mynets2.py").write_text(MODULE)
    weights = str(run_folder / "weights" / "epoch-0003.safetensors")
    command = ["measure", "mynets2:small", "--weights", weights, "--data", "digits", "--limit", "200"]
    constants = kept.data().normalisation
    told = ["--mean", repr(constants.mean[0] / 255), "--std", repr(constants.std[0] / 255)]
    tables = []
    for more in ([], told, ["--mean", "0.01", "--std", "0.06"]):
        main([*command, *more, "--out", "p.json"])
        tables.append(pfc.load("p.json").table()["pfc1"].tolist())
    assert tables[1] == pytest.approx(tables[0], rel=1e-6)
    assert tables[2] != pytest.approx(tables[0], rel=1e-2)


@pytest.mark.slow
def test_help_answers_in_under_0_4_seconds():
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pfc", "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - started)
    assert median(seconds) < 0.4


def test_measure_says_the_verdict_first_and_theory_only_if_asked(run_folder, capsys):
    main(["measure", str(run_folder)])
    said = capsys.readouterr().out
    assert said.startswith("Progressive feedforward collapse")
    assert "Theorem 1" not in said
    main(["measure", str(run_folder), "--theory", "--transport", "0"])
    assert "Theorem 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["measure", str(run_folder), "--transport", "50"])
    assert "--transport is a part of what theory says: give --theory too" in capsys.readouterr().err


def test_measure_prints_json_for_scripts(run_folder, capsys):
    main(["measure", str(run_folder), "--json", "--intervals", "--theory", "--transport", "0"])
    told = json.loads(capsys.readouterr().out)
    profile = max(pfc.Run(run_folder).profiles.items())[1]
    assert list(told["layers"]) == list(profile.layers)
    assert told["verdict"] == profile.verdict().split("\n")
    row = told["layers"][profile.layers[0]]
    assert row["nc3"] is None
    assert row["pfc1_low"] < row["pfc1"] < row["pfc1_high"]
    assert row["pfc1"] == pytest.approx(profile.columns["pfc1"][0], rel=1e-9)
    assert any(sentence.startswith("Theorem 1") for sentence in told["theory"])


def test_completion_is_installed_for_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    main(["--install-completion"])
    (script,) = (path for path in tmp_path.rglob("pfc") if path.is_file())
    assert "--weight-decay" in script.read_text()


def test_the_transport_cost_is_an_option_of_both_commands(tmp_path, capsys):
    sizes = "--limit 50 --epochs 1 --width 8 --blocks 2".split()
    for command, name in (
        ("train", "--transport"),
        ("train", "--transport-cost"),
        ("run", "--transport-cost"),
    ):
        out = tmp_path / f"{command}{name}"
        theory = ["--no-theory"] if command == "run" else []
        main([command, "digits", "--out", str(out), *sizes, *theory, name, "0.25"])
        assert pfc.Run(out).recipe.transport == 0.25
