"""SIGINT and SIGTERM at any time: one line, exit code 130 or 143, nothing lost, and no traceback."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest

from pfc.cli import main
from pfc.training import Run

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
SMALL = "digits --limit 60 --epochs 400 --width 6 --blocks 1 --measure-every 400".split()
WAITS = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:
    raise ImportError("it was interrupted") from None
"""


@pytest.fixture(autouse=True)
def listening():
    """Signals end a test, also where the suite was started so as to ignore them (`nohup`, `&`)."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def started(*arguments, **environment):
    """`python -m pfc`, which takes interrupts as on a terminal."""

    def listen():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, "-m", "pfc", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=listen,
    )


@pytest.mark.parametrize("module", ["cyclopts", "torch"])
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_during_the_imports(tmp_path, module, number, code, word):
    (tmp_path / f"{module}.py").write_text(WAITS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with started("run", PYTHONPATH=path) as run:
        assert run.stdout.readline() == "importing\n"
        run.send_signal(number)
        _, said = run.communicate(timeout=30)
    assert said == f"pfc: {word}; nothing was begun\n"
    assert run.returncode == code


def test_terminated_while_it_trains_it_keeps_what_is_done(tmp_path):
    with started("train", *SMALL, "--out", tmp_path / "run") as run:
        while not run.stderr.readline().startswith("epoch 0"):
            assert run.poll() is None
        while not (tmp_path / "run/history.jsonl").read_text():
            assert run.poll() is None
        run.terminate()
        said = run.communicate(timeout=30)[1]
    assert said == (
        "pfc: terminated; a run keeps what it has done and goes on with --resume, all else by the same "
        "command\n"
    )
    assert run.returncode == 143
    kept = Run(tmp_path / "run")
    assert 1 <= len(kept.history) < 400
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        *("config.json", "history.jsonl", "profiles", "state.safetensors", "weights")
    ]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("how", ["turns into another error", "is swallowed"])
def test_a_signal_that_code_of_others_catches(monkeypatch, capsys, number, code, word, how):
    def load(path):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            if how == "turns into another error":
                raise ImportError("numpy could not be imported") from None

    monkeypatch.setattr("pfc.commands.profiles.load", load)
    monkeypatch.setattr("pfc.figures.of_profile", lambda *_, **__: [])
    before = [signal.getsignal(n) for n, *_ in SIGNALS]
    with pytest.raises(SystemExit) as caught:
        main(["figures", "p.json"])
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(f"pfc: {word}; a run keeps what it has done")
    assert [signal.getsignal(n) for n, *_ in SIGNALS] == before


def test_a_second_signal_ends_it_at_once(tmp_path):
    code = (
        "import os, signal, sys, pfc.commands.profiles as p\n"
        "def load(path):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException:\n"
        "        try:\n            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        except BaseException:\n            pass\n"
        "    print('not reached', flush=True)\n"
        "p.load = load\n"
        "from pfc.cli import main\nsys.argv = ['pfc', 'figures', 'p.json']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.startswith("pfc: terminated; a run keeps what it has done")


def test_a_signal_that_is_to_be_ignored_is(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def load(path):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("went on")

    try:
        monkeypatch.setattr("pfc.commands.profiles.load", load)
        with pytest.raises(SystemExit, match="2"):
            main(["figures", "p.json"])
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_are_left_alone():
    codes = []

    def run():
        try:
            main(["figures", "nowhere.json"])
        except SystemExit as left:
            codes.append(left.code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [2]


def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pfc", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "pfc: the standard output can't be written: No space left on device\n"


@pytest.mark.slow
def test_the_suite_runs_where_interrupts_are_ignored():
    """As a script's `nohup bash .ci/run &` starts it."""
    one = f"{__file__}::{test_a_signal_that_code_of_others_catches.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=20", one]
    ignored = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    done = subprocess.run(command, preexec_fn=ignored, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
