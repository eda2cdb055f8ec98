"""Two runs in one folder: the second is refused while the first lives, and no longer."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import pytest

import pfc
from pfc.cli import main
from pfc.lock import locked
from pfc.training import Run
from tests.test_training import SCRIPT, TINY, same_bits, trained

BUSY = "is in use by process {}: wait for it, stop it, or choose another folder"


@pytest.fixture(scope="module")
def digits():
    return pfc.data.load("digits", limit=200)


@contextmanager
def training(folder):
    """A process that has trained an epoch in a folder and waits in the next for us to read."""
    script = SCRIPT.replace('print("epoch", flush=True)', 'print("epoch", flush=True); input()')
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], **pipes) as run:
        try:
            assert run.stdout.readline() == b"epoch\n"
            yield run
        finally:
            run.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(digits, tmp_path, capsys):
    recipe, folder = replace(TINY, epochs=40), tmp_path / "run"
    with training(folder) as first:
        before = (folder / "config.json").stat().st_mtime_ns
        for resume in (True, False):
            with pytest.raises(ValueError, match=BUSY.format(first.pid)):
                trained(digits, folder, recipe=recipe, resume=resume)
        for command in ("run", "train"):
            with pytest.raises(SystemExit, match="2"):
                main([command, "digits", "--out", str(folder)])
            said = capsys.readouterr().err.splitlines()[-1]
            assert said == f"pfc: {folder} {BUSY.format(first.pid)}"
        assert (folder / "lock").read_text() == f"{first.pid}\n"
        assert (folder / "config.json").stat().st_mtime_ns == before
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (folder / "lock").exists(), "nobody was there to remove it"
    again, _ = trained(digits, folder, recipe=recipe, resume=True)
    assert not (folder / "lock").exists()
    whole, _ = trained(digits, recipe=recipe)
    assert same_bits(again, whole)
    assert len(Run(folder).history) == 40


def test_the_lock_lives_as_long_as_the_generator(digits, tmp_path):
    def begin():
        net = TINY.build(digits, 0)
        return pfc.train(net, digits, TINY, folder=tmp_path, resume=True, progress=False)

    waiting = begin()
    assert list(tmp_path.iterdir()) == [], "nothing is taken before the first epoch is asked for"
    first = begin()
    next(first)
    (tmp_path / ".state.safetensors.ab12").write_bytes(b"half")
    with pytest.raises(ValueError, match=BUSY.format(os.getpid())):
        next(waiting)
    assert (tmp_path / ".state.safetensors.ab12").exists(), "not swept by one who is refused"
    first.close()
    assert not (tmp_path / "lock").exists()
    second = begin()
    assert [epoch.epoch for epoch in islice(second, 2)] == [1, 2]
    assert (tmp_path / "lock").exists(), "it is not swept"
    del second
    assert not (tmp_path / "lock").exists()
    assert [epoch.epoch for epoch in begin()] == [3, 4, 5, 6]
    assert not (tmp_path / "lock").exists()


def test_a_run_that_fails_leaves_no_lock(digits, tmp_path):
    bad = replace(TINY, learning_rate=1e30, normalise="none")
    for _ in range(2):
        with pytest.raises(ValueError, match="training diverged"):
            trained(digits, tmp_path, recipe=bad, resume=True)
        assert not (tmp_path / "lock").exists()


def test_a_lock_that_was_removed_as_we_opened_it_is_not_ours(tmp_path, monkeypatch):
    taken, real = [], fcntl.flock

    def flock(file, how):
        real(file, how)
        taken.append(os.fstat(file).st_ino)
        if len(taken) == 1:
            (tmp_path / "lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(taken) == 2
        assert (tmp_path / "lock").stat().st_ino == taken[1]


def test_a_lock_of_others_is_not_removed(tmp_path):
    with locked(tmp_path):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("9\n")
    assert (tmp_path / "lock").read_text() == "9\n"
    with locked(tmp_path / "gone"):
        (tmp_path / "gone" / "lock").unlink()
        (tmp_path / "gone").rmdir()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    held = locked(tmp_path)
    with held:
        if not (child := os.fork()):
            try:
                held.gen.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "lock").exists()
        with pytest.raises(ValueError, match=BUSY.format(os.getpid())), locked(tmp_path):
            pass
    assert not (tmp_path / "lock").exists()


def test_a_forked_child_that_lives_on_does_not_hold_the_lock(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from pfc.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    print(child, flush=True) if child else None\n"
        "    signal.pause()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(ValueError, match=BUSY.format(parent.pid)), locked(tmp_path):
                pass
            parent.kill()
            parent.wait()
            with locked(tmp_path):
                os.kill(child, 0)
        finally:
            parent.kill()
            os.kill(child, signal.SIGKILL)


def test_another_thread_is_kept_out(tmp_path):
    def enter():
        with locked(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path), pytest.raises(ValueError, match=BUSY.format(os.getpid())):
            pool.submit(enter).result()
        pool.submit(enter).result()


def test_the_file_of_a_dead_holder_means_nothing(tmp_path):
    (tmp_path / "lock").write_text("123456789\n")
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unsigned_lock_is_of_another_process(tmp_path):
    with locked(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(ValueError, match="is in use by another process: wait"), locked(tmp_path):
            pass


def test_a_folder_that_knows_no_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="can't be locked, so nothing else may use it: .*No locks"):
        with locked(tmp_path):
            assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_a_generator_left_open_is_no_noise_at_exit(tmp_path):
    code = SCRIPT.split("for epoch")[0] + (
        "g = pfc.train(net, digits, recipe, folder=sys.argv[1], progress=False); next(g)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not (tmp_path / "lock").exists()


def test_at_exit_the_file_is_removed_before_the_lock_is_released(tmp_path):
    code = (
        "import fcntl, sys; from pathlib import Path; from pfc.lock import locked\n"
        "real = fcntl.flock\n"
        "def flock(file, how):\n"
        "    print(how == fcntl.LOCK_UN, Path(sys.argv[1], 'lock').exists())\n"
        "    real(file, how)\n"
        "fcntl.flock = flock\n"
        "held = locked(Path(sys.argv[1]))\n"
        "held.__enter__()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True\nTrue False\n", "")
