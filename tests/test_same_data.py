"""A run holds on to its data: others in their place are refused, its own are found wherever they lie."""

import json
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pfc
from pfc.cli import main
from pfc.data import Normalisation
from tests.test_cli import refused
from tests.test_data import png, table
from tests.test_readers import LATER, rewritten

RECIPE = pfc.Recipe(name="tiny", data="set", width=4, blocks=(1,), epochs=2, batch_size=4)
SMALL = "digits --epochs 1 --width 4 --blocks 1".split()
QUIET = ["--no-theory", "--no-test"]
VIEWS = [("left", 9), ("right", 7)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("PFC_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(root, count=6, seed=0, splits=("train", "test"), classes="ab"):
    """A folder of grey images."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (4, 4), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def kept(here):
    """A run that was trained on the folder `set`, given as a relative path."""
    return train(pfc.data.load(folder(here / "set").relative_to(here), progress=False))


def train(images, name="run", **how):
    recipe = how.pop("recipe", RECIPE)
    epochs = pfc.train(recipe.build(images), images, recipe, folder=name, progress=False, **how)
    list(epochs)
    return pfc.Run(name)


# What is kept.


def test_the_configuration_tells_the_data_from_others(kept, here):
    data = json.loads((here / "run/config.json").read_text())["data"]
    images = pfc.data.load(here / "set")
    assert data["spec"] == str(here / "set")
    assert data["counts"] == {"train": 12, "test": 12}
    assert data["fingerprint"] == images.fingerprint
    assert data["names"] == ["a", "b"]
    assert set(data["files"]) == {"train", "test"}


def test_fingerprints_are_of_pixels_labels_and_names():
    digits = pfc.data.load("digits", limit=40)
    other = digits.images.clone()
    other[39, 0, 7, 7] += 1
    changed = (
        replace(digits, images=other),
        replace(digits, labels=digits.labels.flip(0)),
        replace(digits, classes=tuple("abcdefghij")),
        replace(digits, images=digits.images.flip(0), labels=digits.labels.flip(0)),
        replace(digits, images=digits.images.reshape(40, 1, 4, 16)),
    )
    assert len({images.fingerprint for images in (digits, *changed)}) == 6
    assert digits.fingerprint == pfc.data.load("digits", limit=40).fingerprint
    assert digits.fingerprint == replace(digits, spec="elsewhere", split="test").fingerprint


def test_a_relative_path_means_the_same_folder_everywhere(kept, here, monkeypatch):
    run, images = pfc.Run(here / "run"), pfc.data.load(here / "set")
    folder(here / "other" / "set", count=9, seed=1)
    monkeypatch.chdir(here / "other")
    for split in ("train", "test"):
        assert run.data(split).images.equal(pfc.data.load(here / "set", split).images)
    assert run.data().images.equal(images.images)


def test_constants_are_those_of_training(here):
    images = pfc.data.load(folder(here / "set"))
    own = Normalisation((100.0,), (50.0,), "given")
    run = train(replace(images, normalisation=own))
    assert run.data().normalisation == run.data("test").normalisation == own


def test_the_column_of_the_labels_is_kept(here, capsys):
    blobs = [png(np.full((4, 4), 9 * i, np.uint8)) for i in range(12)]
    labels = [i % 2 for i in range(12)]
    content = table(blobs, labels, "ab", label="coarse_label", fine_label=[i % 4 for i in range(12)])
    kinds = json.loads(content.schema.metadata[b"huggingface"])
    kinds["info"]["features"]["fine_label"] = {"_type": "ClassLabel", "names": list("wxyz")}
    (here / "set").mkdir()
    made = content.replace_schema_metadata({"huggingface": json.dumps(kinds)})
    pq.write_table(made, here / "set" / "train.parquet")
    images = pfc.data.load(here / "set", label_column="coarse_label")
    assert "2 classes by coarse_label: a, b" in repr(images)
    assert images.batches().name == "set (coarse_label)"
    assert pfc.data.load(here / "set").batches().name == "set (fine_label)"
    run = train(images)
    assert run.data().labels.tolist() == labels
    main(["train", *SMALL, "--data", "set", "--label", "coarse_label", "--out", "named"])
    assert "2 classes by coarse_label: a, b" in capsys.readouterr().err
    for more in ([], ["--data", "set"], ["--limit", "8"], ["--data", "set", "--limit", "8"]):
        main(["measure", "named", *QUIET, *more])
        told = capsys.readouterr()
        assert f"{8 if '--limit' in more else 12} samples, 2 classes" in told.out
        assert "the labels are coarse_label; --label chooses fine_label" in told.err
        assert "not the data" not in told.err
    assert "no column 'x'" in refused(capsys, "measure", "run", "--label", "x")
    assert "no column 'x'" in refused(capsys, "measure", "run", "--column", "x")
    assert "have none" in refused(capsys, "train", *SMALL, "--label", "x", "--out", "r")
    assert "--label goes with --data" in refused(capsys, "mufm", "--label", "x")


# What has changed.


def added(data):
    shutil.copy(data / "train/a/0.png", data / "train/a/9.png")


def removed(data):
    (data / "train/b/3.png").unlink()


def repainted(data):
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(data / "train/b/3.png")


def renamed(data):
    for split in ("train", "test"):
        (data / split / "a").rename(data / split / "A2")


def swapped(data):
    for split in ("train", "test"):
        (data / split / "a").rename(data / split / "c")


def replaced(data):
    shutil.rmtree(data)
    folder(data, seed=5)


def turned(data):
    for path in data.glob("*/*/*.png"):
        Image.open(path).resize((2, 8)).save(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added, "images 12 then, 13 now"),
        (removed, "images 12 then, 11 now"),
        (repainted, "other pixels, labels or names, by their fingerprint"),
        (renamed, "class 0 is 'a' in the one and 'A2' in the other"),
        (swapped, "class 0 is 'a' in the one and 'b' in the other"),
        (replaced, "other pixels, labels or names, by their fingerprint"),
        (turned, r"the size \[1, 4, 4\] then, \[1, 8, 2\] now"),
    ],
)
def test_changed_data_are_refused(kept, here, capsys, change, words):
    change(here / "set")
    with pytest.raises(
        ValueError, match=f"run was trained on other data than those in .* now: .*{words}"
    ):
        kept.data()
    assert "measure these ones by --data" in refused(capsys, "measure", "run")
    with pytest.raises(
        ValueError, match=f"run was trained on what was in .*: .*{words}.*choose another"
    ):
        train(pfc.data.load(here / "set"), resume=True)


def test_other_data_are_measured_if_asked_for(kept, here, capsys):
    repainted(here / "set")
    main(["measure", "run", "--data", "set", *QUIET])
    told = capsys.readouterr()
    assert "pfc: these are not the data of run: other pixels, labels or names, by their" in told.err
    assert "12 samples, 2 classes" in told.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda test: (test / "a/0.png").unlink(), "12 images of split 'test' then, 11 now"),
        (
            lambda test: Image.new("L", (4, 4)).save(test / "a/0.png"),
            "other files of split 'test', by their names and sizes",
        ),
        (lambda test: (test / "a/0.png").rename(test / "b/9.png"), "other files of split 'test'"),
    ],
)
def test_another_split_that_has_changed_is_refused(kept, here, change, words):
    change(here / "set/test")
    kept.data()
    with pytest.raises(ValueError, match=words):
        kept.data("test")


def test_of_another_split_the_names_and_sizes_of_files_are_compared_and_no_more(kept, here):
    path, before = here / "set/test/a/0.png", kept.data("test")
    size = path.stat().st_size
    Image.new("L", (4, 4)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # a PNG may have something behind its end
    assert not kept.data("test").images.equal(before.images)


def test_data_that_have_moved_are_found_by_their_new_place(kept, here, capsys):
    (here / "set").rename(here / "moved")
    with pytest.raises(
        ValueError, match=r"trained on what was in '.*set', which is no folder now: say by"
    ):
        kept.data()
    images = kept.data(spec="moved")
    assert images.normalisation.source.startswith("all 12 images of split 'train'")
    assert kept.data("test", spec=here / "moved").split == "test"
    for more in ([], ["--split", "test"], ["--limit", "4"]):
        main(["measure", "run", "--data", "moved", *QUIET, *more])
        assert "not the data" not in capsys.readouterr().err
    assert "which is no folder now" in refused(capsys, "measure", "run")
    folder(here / "other", seed=3)
    with pytest.raises(ValueError, match="was trained on other data than those in"):
        kept.data(spec="other")
    assert train(pfc.data.load("moved"), resume=True).folder == kept.folder


def test_a_run_goes_on_wherever_its_data_are(here):
    images = pfc.data.load(folder(here / "set").relative_to(here))
    epochs = pfc.train(RECIPE.build(images), images, RECIPE, folder="run", progress=False)
    list(islice(epochs, 1))
    epochs.close()
    (here / "set").rename(here / "moved")
    assert sorted(train(pfc.data.load(here / "moved"), resume=True).profiles) == [0, 1, 2]


def test_the_recipe_on_the_command_line_keeps_the_whole_path(here, capsys, monkeypatch):
    folder(here / "set")
    main(["train", *SMALL, "--data", "set", "--out", "run"])
    assert pfc.Run("run").recipe.data == str(here / "set")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    main(["train", *SMALL, "--data", "../set", "--out", "../run", "--resume"])
    main(["measure", "../run", *QUIET])
    assert "12 samples, 2 classes" in capsys.readouterr().out


def test_a_run_is_not_put_among_its_data(here, capsys):
    folder(here / "set")
    words = "--out set/run lies among the data in "
    assert words in refused(capsys, "train", *SMALL, "--data", "set", "--out", "set/run")


def test_runs_of_older_versions_are_compared_by_what_they_have_kept(kept, here):
    rewritten(here / "run/config.json", lambda c: [c["data"].pop(name) for name in LATER])
    repainted(here / "set")
    assert len(pfc.Run("run").data()) == len(pfc.Run("run").data("test")) == 12
    rewritten(here / "run/config.json", lambda c: c["data"].update(samples=12))
    removed(here / "set")
    with pytest.raises(ValueError, match="images 12 then, 11 now"):
        pfc.Run("run").data()


def test_an_older_run_is_resumed_by_its_place(here):
    images = pfc.data.load(folder(here / "set").relative_to(here))
    train(images)
    rewritten(here / "run/config.json", lambda c: [c["data"].pop(name) for name in LATER])
    rewritten(here / "run/config.json", lambda c: c["data"].update(spec="set"))
    train(images, resume=True)
    (here / "set").rename(here / "moved")
    with pytest.raises(ValueError, match=r"holds another run: its spec is set, not .*moved; choose"):
        train(pfc.data.load("moved"), resume=True)


def test_images_of_ones_own_are_compared_too(here):
    images = replace(pfc.data.load(folder(here / "set")), origin=None, spec="mine")
    train(images)
    train(images, resume=True)
    with pytest.raises(ValueError, match="other pixels, labels or names"):
        train(replace(images, images=images.images.flip(3)), resume=True)


# Numbers of classes.


def numbered(here, labels):
    (here / "set").mkdir()
    blobs = [png(np.full((4, 4), 9 * i, np.uint8)) for i in range(len(labels))]
    pq.write_table(pa.table({"image": blobs, "label": labels}), here / "set" / "train.parquet")
    return "set"


@pytest.mark.filterwarnings("ignore:split .* has no image of", "ignore:classes .* have no sample")
def test_gaps_among_whole_numbers_are_refused_where_a_network_is(here, capsys):
    (here / "mynet.py").write_text(f"{MODULE}")
    images = pfc.data.load(numbered(here, [7, 3] * 4))
    with pytest.raises(
        ValueError, match="whole numbers without names, and no split has 0, 1, 2, 4, 5 and"
    ):
        train(images)
    message = refused(capsys, "measure", "mynet:net", "--data", "set")
    assert (
        "no split has 0, 1, 2, 4, 5 and 1 more: if they are the numbers of the network's out" in message
    )
    found = pfc.measure(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8)), images.batches()
    )
    assert found.about["classes"] == 8
    assert "class 0 has no sample; number the classes" in refused(capsys, "mufm", "--data", "set")


MODULE = """
import torch
from pfc import FCResNet
def net():
    torch.manual_seed(0)
    return FCResNet(16, 2, width=4, blocks=2)
def named():
    made = net()
    made.config = type("C", (), {"id2label": {0: "b", 1: "a"}})()
    return made
def unnamed():
    made = net()
    made.config = type("C", (), {"id2label": {0: "LABEL_0", 1: "LABEL_1"}})()
    return made
"""


@pytest.mark.filterwarnings("always:the data.s classes")
def test_names_other_than_the_networks_own_are_told(here, capsys):
    folder(here / "set")
    (here / "mynet2.py").write_text(MODULE)
    main(["measure", "mynet2:named", "--data", "set", *QUIET])
    words = "pfc: the data's classes are not those of the model's id2label: class 0 is 'a' in the one"
    assert words in capsys.readouterr().err
    main(["measure", "mynet2:unnamed", "--data", "set", *QUIET])
    assert "id2label" not in capsys.readouterr().err


# What the command line says.


def test_weights_and_constants_that_nobody_named_are_told(here, capsys):
    folder(here / "set")
    (here / "mynet3.py").write_text(MODULE)
    main(["measure", "mynet3:net", "--data", "set", *QUIET])
    told, constants = capsys.readouterr().err, pfc.data.load("set").normalisation
    assert "pfc: no --weights, so the weights are those that mynet3:net gives" in told
    words = (
        f"--mean {constants.mean[0] / 255:.4g} --std {constants.std[0] / 255:.4g} (all 12 images of spl"
    )
    assert words in told
    main(["measure", "mynet3:net", "--data", "set", "--mean", "0.5", "--std", "0.25", *QUIET])
    assert "--mean 0.5 --std 0.25 (given on the command line)" in capsys.readouterr().err


def test_remedies(here, capsys):
    folder(here / "set")
    (here / "mynet4.py").write_text(MODULE)
    measure = ["measure", "mynet4:net", "--data", "set"]
    assert "mynet4.py is a file; name its module, as Python imports it from here: mynet4:net" in refused(
        capsys, "measure", "mynet4.py:net", "--data", "set"
    )
    assert "from here: nets.mynet4:net" in refused(capsys, "measure", "nets/mynet4.py:net")
    words = "figures are of one run or profile, got 3: pfc figures a; pfc figures b; pfc figures c"
    assert words in refused(capsys, "figures", "a", "b", "c")
    net = pfc.FCResNet(16, 2, width=4, blocks=2)
    for prefix in ("module.", "_orig_mod.", "model.net."):
        save_file({f"{prefix}{key}": t for key, t in net.state_dict().items()}, "w.safetensors")
        assert f"its names begin with '{prefix}', a wrapper's" in refused(
            capsys, *measure, "--weights", "w.safetensors"
        )
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("w.pt", "p.safetensors"):
        (here / name).write_text(pointer)
        words = f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"
        assert words in refused(capsys, *measure, "--weights", name)
    for name in ("p.safetensors", "f.npz"):
        (here / name).write_text(pointer)
        assert "is a Git LFS pointer" in refused(capsys, "measure", name, "--labels", "y")


def test_a_tilde_is_the_home_folder(here, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("PFC_CACHE", "~/cache")
    folder(here / "home" / "set")
    main(["train", *SMALL, "--data", "~/set", "--out", "~/run"])
    assert pfc.Run("~/run").config["data"]["spec"] == str(here / "home" / "set")
    weights = "~/run/weights/epoch-0001.safetensors"
    (here / "mynet5.py").write_text(MODULE.replace("blocks=2", "blocks=1"))
    main(["measure", "~/run", "--data", "~/set", "--out", "~/p.json", *QUIET])
    main([
        "measure",
        "mynet5:net",
        "--weights",
        weights,
        "--data",
        "~/set",
        "--means",
        "~/p.json",
        *QUIET,
    ])
    main(["figures", "~/p.json", "--no-theory", "--out", "~/pictures"])
    np.savez(here / "home/f.npz", a=np.eye(4), b=np.eye(4))
    np.save(here / "home/y.npy", np.arange(4) % 2)
    main(["measure", "~/f.npz", "--labels", "~/y.npy", *QUIET])
    assert pfc.load("~/p.json").about["samples"] == 12
    assert not (here / "~").exists()
    assert sorted(path.name for path in (here / "home").iterdir() if path.suffix != ".lock") == sorted([
        "cache",
        "f.npz",
        "p.json",
        "p.safetensors",
        "pictures",
        "run",
        "set",
        "y.npy",
    ])


def test_without_a_home_there_is_no_cache_but_data(here, monkeypatch):
    def none(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PFC_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", none)
    folder(here / "set")
    with pytest.warns(UserWarning, match="no cache, .* there is no home folder; PFC_CACHE names one"):
        assert len(pfc.data.load("set")) == 12


def test_the_column_of_the_images_is_kept_and_another_is_told(here, capsys):
    blobs = {name: [png(np.full((4, 4), k * i, np.uint8)) for i in range(12)] for name, k in VIEWS}
    content = table(blobs["left"], [i % 2 for i in range(12)], "ab", image="left")
    content = content.append_column("right", pa.array(blobs["right"]))
    (here / "set").mkdir()
    pq.write_table(content.replace_schema_metadata({}), here / "set" / "train.parquet")
    images = pfc.data.load(here / "set", image_column="right")
    assert images.batches().name == "set (right)"
    train(images)
    for more in ([], ["--column", "right"], ["--limit", "8"], ["--column", "right", "--limit", "8"]):
        main(["measure", "run", *QUIET, *more])
        told = capsys.readouterr()
        assert "pfc: the images are right; --column chooses left\n" in told.err
        assert "not the data" not in told.err
    main(["measure", "run", *QUIET, "--column", "left"])
    told = capsys.readouterr().err
    assert "pfc: these are not the data of run: the images of column 'left'; other pixels" in told
    assert "pfc: the images are left; --column chooses right\n" in told
