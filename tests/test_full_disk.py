"""A disk that fills up, and places that can't be written to: one line, and nothing done before is lost.

No room is made by a limit on the size of files, which works everywhere, and by a real small disk where
the tests may mount one.
"""

import errno
import json
import os
import resource
import subprocess
from contextlib import contextmanager
from itertools import islice

import pytest
import torch

import pfc
from pfc.cli import main
from pfc.files import write_json
from pfc.training import Run
from pfc.training.folder import RunFolder
from tests.test_data import noise, png, table, write
from tests.test_training import TINY

SMALL = "digits --limit 60 --epochs 3 --width 6 --blocks 2".split()


@contextmanager
def room(size):
    """No file may grow above so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 KB of its own, and a function that changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("these tests may not mount a small disk")

    def change(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)

    yield place, change
    subprocess.run(["umount", str(place)], check=True)


def refused(capsys, *arguments):
    """The line that a refused command says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("pfc: ")
    return said.removeprefix("pfc: ")


def full(path, why="File too large"):
    return f"no room on the disk for {path}: make room, then run the same again ({why})"


def content(folder):
    """Bytes of every file; of the history all but seconds, which no run repeats, and their checksum."""
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    own = ("seconds", "measuring_seconds", "checksum")
    lines = [
        json.loads(line)
        for line in files.pop(next(p for p in files if p.name == "history.jsonl")).splitlines()
    ]
    return files, [{k: v for k, v in line.items() if k not in own} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main(["train", *SMALL, "--out", str(folder)])
    return folder


def test_a_run_goes_on_to_the_same_bits_when_there_is_room_again(undisturbed, tmp_path, capsys):
    folder, failed = tmp_path / "run", []
    torch.rand(1)  # the random state of the process is another
    sizes = sorted({p.stat().st_size for p in undisturbed.rglob("*") if p.is_file()})
    for size in (10, 600, *(size - 1 for size in sizes)):
        with room(size):
            said = refused(capsys, "train", *SMALL, "--out", folder, "--resume")
        failed.append(said.removeprefix(full("|").split("|")[0]).split(": make room")[0])
        assert said == full(failed[-1])
        assert not (folder / "lock").exists()
        if (folder / "state.safetensors").exists():
            assert len(Run(folder).history) <= 3
    assert str(folder / "config.json") in failed
    assert str(folder / "profiles/epoch-0003.safetensors.next") in failed, "some epochs were done"
    done = len(Run(folder).history)
    assert done >= 1
    main(["train", *SMALL, "--out", str(folder), "--resume"])
    assert content(folder) == content(undisturbed)


def test_pfc_run_and_its_figures(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    with room(3000):
        assert refused(capsys, "run", *SMALL, "--out", folder).startswith("no room on the disk for")
    with room(40_000):
        assert refused(capsys, "run", *SMALL, "--out", folder) == full(folder / "figures/training.png")
    assert list((folder / "figures").iterdir()) == []
    assert json.loads((folder / "theory.json").read_text())["format"] == "pfc-theory-1"
    again, (whole, history) = content(folder), content(undisturbed)
    assert again[1] == history
    assert {path: again[0][path] for path in whole} == whole


def test_measure_keeps_the_old_profile(undisturbed, tmp_path, capsys):
    out = tmp_path / "p.json"
    main(["measure", str(undisturbed), "--epoch", "0", "--out", str(out), "--no-theory"])
    old = pfc.load(out).table()
    with room(5000):
        said = refused(capsys, "measure", undisturbed, "--out", out, "--no-theory")
    assert said == full(tmp_path / "p.safetensors.next")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "p.safetensors"]
    assert pfc.load(out).table().equals(old)
    main(["measure", str(undisturbed), "--out", str(out), "--no-theory"])
    assert not pfc.load(out).table().equals(old)
    with room(40_000):
        said = refused(capsys, "figures", out, "--no-theory")
    assert said == full(tmp_path / "p-layers.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "p.safetensors"]


def test_a_profile_is_old_or_new_at_every_step(undisturbed, tmp_path, monkeypatch):
    old, new = (Run(undisturbed).profiles[epoch] for epoch in (0, 3))
    path, beside = tmp_path / "p.json", tmp_path / "p.safetensors"
    coming = tmp_path / "p.safetensors.next"
    old.save(path)

    def stopped(*_):
        raise KeyboardInterrupt

    def killed(*_):
        os.link(coming, tmp_path / "kept")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pfc.profile.storage.write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
        assert not coming.exists()
        patch.setattr("pfc.profile.storage.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
    (tmp_path / "kept").rename(coming)
    assert pfc.load(path).table().equals(old.table()), "the JSON file decides"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
    assert coming.exists()
    assert pfc.load(path).table().equals(new.table())
    with monkeypatch.context() as patch:
        patch.setattr("pfc.profile.storage.write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            old.save(path)
    assert pfc.load(path).table().equals(new.table()), "what waited has its place first"
    old.save(path)
    assert pfc.load(path).table().equals(old.table())
    assert sorted(tmp_path.iterdir()) == [path, beside]


def test_a_sweep_goes_on(tmp_path, capsys):
    lams = [1e-3, 1e-2, 1e-1]
    how = ["--sweep", "--classes", "3", "--dimensions", "4", "--per-class", "4", "--no-descent"]
    command = ["mufm", *how, "--restarts", "0", "--out", tmp_path, "--lams", *lams]
    path = tmp_path / "figure5.json"
    with room(600):
        assert refused(capsys, *command) == full(path)
    with room(2500):
        assert refused(capsys, *command) == full(path)
    before = json.loads(path.read_text())["solutions"]
    assert 1 <= len(before) < 3
    with room(5000):
        assert refused(capsys, *command) == full(tmp_path / "figure5.png")
    after = json.loads(path.read_text())["solutions"]
    assert after[: len(before)] == before, "what was done is not done again"
    assert [row["lam"] for row in after] == lams


def test_the_cache_of_the_data_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("PFC_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "set", table([png(p) for p in noise(4)], [0, 1, 0, 1]))
    with room(100), pytest.warns(UserWarning, match=r"no cache, so .* anew: no room on the disk for"):
        first = pfc.data.load(folder)
    assert list((tmp_path / "cache").iterdir()) == []
    assert pfc.data.load(folder).images.equal(first.images)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_real_small_disk(disk, undisturbed, capsys):
    place, change = disk
    ballast, folder = place / "ballast", place / "run"
    why = "No space left on device"
    ballast.write_bytes(bytes(230_000))
    said = refused(capsys, "train", *SMALL, "--out", folder, "--resume")
    failed = said.split(" for ")[1].split(": make room")[0]
    assert said == full(failed, why)
    assert str(folder) in failed
    change("size=320k")
    refused(capsys, "train", *SMALL, "--out", folder, "--resume")
    profile = Run(undisturbed).profiles[3]
    (place / "more").write_bytes(bytes(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize))
    with pytest.raises(OSError, match=f"p.safetensors.next: make room, then .*{why}") as caught:
        profile.save(place / "p.json")
    assert caught.value.errno == errno.ENOSPC
    change("size=2m")
    main(["train", *SMALL, "--out", str(folder), "--resume"])
    assert content(folder) == content(undisturbed)


def test_a_disk_that_is_read_only(disk, undisturbed, capsys):
    place, change = disk
    change("ro")
    told = "can't be written: Read-only file system"
    for command, path in (
        (["train", *SMALL, "--out", place / "run"], place / "run"),
        (["run", *SMALL, "--out", place], place / "lock"),
        (["measure", undisturbed, "--out", place / "p.json"], place / "p.json"),
        (["mufm", "--out", place], place / "figure4.json"),
        (["mufm", "--sweep", "--out", place / "a"], place / "a/figure5.json"),
        (["figures", undisturbed, "--out", place], place / "training.png"),
    ):
        assert refused(capsys, *command) == f"{path} {told}"


def test_an_out_that_is_a_file_or_a_folder(undisturbed, tmp_path, capsys):
    file, folder = tmp_path / "file", tmp_path / "folder.json"
    file.write_text("mine")
    folder.mkdir()
    for command, message in (
        (["train", *SMALL, "--out", file], f"{file} can't be written: File exists"),
        (["run", *SMALL, "--out", file / "run"], f"{file / 'run'} can't be written: Not a directory"),
        (["measure", undisturbed, "--out", folder], f"{folder} is a folder, not a file: choose another"),
        (["measure", undisturbed, "--out", file / "p.json"], "p.json can't be written: File exists"),
        (["mufm", "--out", file], f"{file / 'figure4.json'} can't be written: File exists"),
        (
            ["figures", undisturbed, "--out", file],
            f"{file / 'training.png'} can't be written: File exists",
        ),
    ):
        assert message in refused(capsys, *command)
    assert file.read_text() == "mine"


def test_a_line_that_found_no_room_is_cut(tmp_path):
    digits = pfc.data.load("digits", limit=60)

    def epochs(folder):
        net = TINY.build(digits)
        return pfc.train(net, digits, TINY, folder=folder, progress=False, resume=True)

    whole, folder = tmp_path / "whole", tmp_path / "run"
    last = list(epochs(whole))[3]
    list(islice(epochs(folder), 3))
    size = (folder / "history.jsonl").stat().st_size
    with room(size + 40), pytest.raises(OSError, match=r"no room on the disk for .*history\.jsonl"):
        RunFolder(folder, {})._add_history(last)
    assert (folder / "history.jsonl").stat().st_size == size + 40
    assert [line["epoch"] for line in Run(folder).history] == [1, 2]
    list(epochs(folder))
    assert content(folder) == content(whole)


def test_an_error_of_the_system_keeps_its_number(tmp_path):
    with room(10), pytest.raises(OSError, match="no room on the disk") as caught:
        write_json(tmp_path / "a.json", {"format": "f-1", "long": "a" * 100})
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value) == full(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
