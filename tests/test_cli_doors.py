"""The command line's doors: features in a file, test data about training means, the digits' hold-out."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pfc
from pfc.cli import main
from pfc.data import arrays
from pfc.experiments import mufm
from tests.test_cli import refused

SMALL = "digits --split fit --limit 300 --epochs 4 --width 16 --blocks 2 --seed 1".split()
QUIET = ["--no-theory"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors") / "run"
    main(["train", *SMALL, "--out", str(folder)])
    return pfc.Run(folder)


@pytest.fixture(scope="module")
def files(run):
    """The run's features, labels and classifier in an .npz, a .safetensors and an .npy file."""
    net, folder = run.network(), run.folder.parent
    H, y = pfc.features(net, run.data().batches(), progress=False)
    head = {"fc.weight": net.classifier.weight.detach(), "fc.bias": net.classifier.bias.detach()}
    save_file(
        {**{name: part.contiguous() for name, part in H.items()}, **head, "y": y},
        folder / "f.safetensors",
    )
    own = {"W": head["fc.weight"].numpy(), "b": head["fc.bias"].numpy()}
    np.savez(folder / "f.npz", y=y.numpy(), **{name: part.numpy() for name, part in H.items()}, **own)
    np.save(folder / "y.npy", y.numpy())
    np.savez(folder / "objects.npz", y=np.array([{}], dtype=object))
    return folder


def of(capsys, *arguments):
    main(["measure", *map(str, arguments)])
    return capsys.readouterr().out


def table(text):
    return [line for line in text.splitlines() if line.startswith(("stem", "blocks"))]


@pytest.mark.parametrize(
    "options",
    [
        ("f.npz", "--labels", "y", "--classifier", "W,b"),
        ("f.safetensors", "--labels", "y", "--classifier", "fc", "--layers", "stem", "blocks.*"),
        ("f.safetensors", "--labels", "y.npy", "--classifier", "fc", "--layers", "stem", "blocks.*"),
    ],
)
def test_features_of_a_file_give_the_models_table(run, files, capsys, options):
    by_model = of(capsys, run.folder, "--no-test", *QUIET)
    placed = [str(files / o) if o in {"f.npz", "f.safetensors", "y.npy"} else o for o in options]
    by_file = of(capsys, *placed, *QUIET)
    assert table(by_file) == table(by_model)
    assert by_file.splitlines()[-2:] == by_model.splitlines()[-2:]


def test_theory_of_features_is_that_of_the_model(run, files, capsys, tmp_path):
    by_model = of(capsys, run.folder, "--no-test", "--theory", "--transport", 100)
    by_file = of(
        capsys,
        files / "f.npz",
        "--labels",
        "y",
        "--classifier",
        "W,b",
        "--theory",
        "--transport",
        100,
        "--out",
        tmp_path / "p.json",
    )
    words = [line.split(" ")[0] for line in by_model.splitlines()]
    named = words.index("FCResNet:")  # the headline, where a file has its own name
    found = [line.split(" ")[0] for line in by_file.splitlines()]
    assert found[:named] + found[named + 1 :] == words[:named] + words[named + 1 :]
    assert (tmp_path / "p-theory.json").exists()
    assert pfc.load(tmp_path / "p.json").about["data"] == "f"


def test_rows_of_safetensors_are_read_when_asked_for(files):
    found = arrays.arrays(files / "f.safetensors")
    assert list(found) == ["blocks.0", "blocks.1", "fc.bias", "fc.weight", "stem", "y"]
    assert isinstance(found["stem"], arrays.Rows)
    assert found["stem"].shape == (300, 16)
    assert found["stem"][5:9].shape == (4, 16)
    assert sorted(["blocks.10", "blocks.9", "a"], key=arrays._natural) == ["a", "blocks.9", "blocks.10"]


def test_a_split_about_the_means_of_another(run, capsys):
    own = of(capsys, run.folder, "--split", "held-out", *QUIET)
    about = of(capsys, run.folder, "--split", "held-out", "--means", "fit", "--limit", 200, *QUIET)
    assert own.splitlines()[2].endswith("about their own class means")
    assert "about the class means of digits (fit), 200 samples" in about.splitlines()[2]
    means = pfc.measure(run.network(), run.data().batches(), progress=False)
    want = pfc.measure(run.network(), run.data("held-out").batches(), means=means, progress=False)
    about = of(capsys, run.folder, "--split", "held-out", "--means", "fit", *QUIET)
    assert table(about) == table(str(want))


def test_both_splits_side_by_side(run, files, capsys, tmp_path):
    out = of(capsys, run.folder, "--out", tmp_path / "own.json", *QUIET)
    known = pfc.load(tmp_path / "own.json")
    test = pfc.measure(run.network(), run.data("held-out").batches(), means=known, progress=False)
    assert f"digits (held-out): 359 samples, about the class means of {test.about['means']}" in out
    assert f"accuracy {test.accuracy:.4f}" in out
    last = next(line for line in reversed(out.splitlines()) if line.startswith("blocks.1"))
    numbers = [f"{p.columns[c][-1]:.4g}" for c in ("pfc1", "pfc2", "pfc3", "nc4") for p in (known, test)]
    assert last.split()[1:] == numbers
    assert "held-out" not in of(capsys, run.folder, "--no-test", *QUIET)
    about = of(capsys, run.folder, "--split", "held-out", "--means", tmp_path / "own.json", *QUIET)
    assert table(about) == table(str(test))


@pytest.mark.parametrize("name", ["own-held-out.json", "own-theory.json"])
def test_places_of_all_files_are_looked_at_before_anything_is_measured(run, capsys, tmp_path, name):
    (tmp_path / name).mkdir()
    said = refused(capsys, "measure", run.folder, "--out", tmp_path / "own.json")
    assert said == f"pfc: {tmp_path / name} is a folder, not a file: choose another name"
    assert not (tmp_path / "own.json").exists()


def test_a_test_profile_replaces_nothing_else(run, capsys, tmp_path):
    (tmp_path / "own-held-out.json").write_text("{}")
    said = refused(capsys, "measure", run.folder, "--out", tmp_path / "own.json", *QUIET)
    assert f"{tmp_path / 'own-held-out.json'} holds no profile and would be replaced by one" in said
    assert not (tmp_path / "own.json").exists()


def test_a_run_ends_with_its_test_data(capsys, tmp_path):
    main(["run", *SMALL, "--out", str(tmp_path / "run"), *QUIET])
    out = capsys.readouterr().out
    assert "digits (held-out): 359 samples, about the class means of digits (fit), 300 samples" in out
    kept = pfc.load(tmp_path / "run" / "profiles" / "held-out.json")
    assert kept.about["means"] == "digits (fit), 300 samples"
    assert set(pfc.Run(tmp_path / "run").profiles) == {0, 1, 2, 3, 4}


def test_planes_are_kept_at_three_epochs_and_classes_at_all(run):
    kept = {epoch: profile.sample is not None for epoch, profile in run.profiles.items()}
    assert kept == {0: True, 1: False, 2: True, 3: False, 4: True}
    same = [p.sample.labels.tolist() for p in run.profiles.values() if p.sample is not None]
    assert same[0] == same[1] == same[2]
    for epoch, profile in run.profiles.items():
        assert profile.classes("stem")["count"].sum() == 300
        assert profile.geometry["stem"].gram is not None
        assert bool(profile.moments) == (epoch == 4)


def test_a_profile_never_replaces_a_file_of_features(files, capsys):
    before = (files / "f.safetensors").read_bytes()
    how = ("--labels", "y", "--out", files / "f.json", *QUIET)
    assert "f.safetensors holds other tensors" in refused(
        capsys, "measure", files / "f.safetensors", *how
    )
    profile = pfc.measure_features({"x": torch.eye(4)}, [0, 1, 0, 1], progress=False)
    with pytest.raises(ValueError, match=r"f.safetensors holds other tensors, .* choose another name"):
        profile.save(files / "f.json")
    assert (files / "f.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("f.npz",), "f.npz needs --labels: the name of an array in it, or an .npy file"),
        (("f.npz", "--labels", "z"), "f.npz has no array 'z'; it has y, stem, blocks.0, blocks.1, W, b"),
        (("f.npz", "--labels", "z.npy"), "no file z.npy"),
        (("f.npz", "--labels", "y", "--classifier", "V"), "has no array 'V'; it has y, stem"),
        (("f.npz", "--labels", "y", "--layers", "q*"), "has no array 'q*'; it has stem, blocks.0"),
        (("f.npz", "--labels", "y", "--means", "train"), "--means must be a profile's .json, got train"),
        (("objects.npz", "--labels", "y"), "objects.npz is no .npz file of plain arrays"),
        (("none.npz", "--labels", "y"), "no file"),
        (("run", "--labels", "y"), "--labels belongs to an .npz or .safetensors file of features"),
        (
            ("run", "--means", "validation"),
            "no split 'validation' in 'digits'; it has train, fit, held-out",
        ),
        (("run", "--means", "nothing.json"), "no file nothing.json"),
        (("nothing.txt",), "is no folder of a run, no file of arrays, and no MODULE:FUNCTION"),
    ],
)
def test_bad_input_is_one_line(run, files, capsys, arguments, words):
    assert words in refused(capsys, "measure", files / arguments[0], *arguments[1:])


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "digits", "--out", ""), "--out"),
        (("train", "digits", "--data", ""), "--data"),
        (("train", "digits", "--out="), "--out"),
        (("measure", "net:net", "--data", "digits", "--weights", ""), "--weights"),
        (("measure", "", "--data", "digits"), "an argument"),
        (("mufm", "--out", "", "--sweep"), "--out"),
        (("mufm", "--features="), "--features"),
        (("figures", "run", "--out", ""), "--out"),
        (("figures", ""), "an argument"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(capsys, tmp_path, monkeypatch, arguments, option):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments) == f"pfc: {option} is empty: give it a value, or leave it out"
    assert not [*tmp_path.iterdir()]


def test_an_empty_text_is_no_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, profile = run.data(), run.profiles[4]
    constants = mufm.Constants(per_class=10, dimensions=6, steps=20)
    task = mufm.Task(data=mufm.Dataset.toy(constants), constants=constants, folder="")
    for call in (
        lambda: pfc.Run(""),
        lambda: pfc.load(""),
        lambda: pfc.data.load(""),
        lambda: profile.save(""),
        lambda: arrays.arrays(""),
        lambda: pfc.figures.of_run(run, ""),
        lambda: pfc.figures.of_profile(profile, ""),
        lambda: next(pfc.train(run.network(), images, pfc.RECIPES["digits"], folder="")),
        lambda: mufm.iterations(task),
        lambda: mufm.sweep(task, [0.1]),
    ):
        with pytest.raises(ValueError, match=r"an empty text is no path; the current folder is '.'"):
            call()
    assert not [*tmp_path.iterdir()]
