"""The command line: names and help of the commands; what they do is imported when they run."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import pairwise
from shutil import get_terminal_size
from types import FrameType
from typing import TYPE_CHECKING

from pfc import __version__
from pfc.warning import speaks

if TYPE_CHECKING:
    from cyclopts import App

HELP = {
    "run": """Train until collapse, measure every layer, draw figures and a page, and say what was found.

Without arguments: a residual network on the real digits bundled with scikit-learn, in well under two
minutes on one processor, without network or GPU. Called again it goes on where it was stopped.

Example: `pfc run`, or `pfc run digits --seed 1 --out runs/digits-1`""",
    "train": """Train a network by a recipe of the paper's Table I.

The run's folder keeps configuration, history, profiles of every layer at about ten epochs, weights, and
a state from which `--resume` continues to the same bits.

Example: `pfc train digits --out runs/wide --width 256 --epochs 100`""",
    "measure": """Measure every layer of a run, of any model on any data, or of features in a file.

Where the data have a test split, it is measured too, about the class means of what was measured.

Example: `pfc measure runs/digits --epoch 0`; for a model of your own
`pfc measure mynets:resnet --weights net.safetensors --data uoft-cs/cifar10 --split test --means train`;
for a published one `pfc measure hf:OWNER/NAME --data uoft-cs/cifar10 --split test`, or timm:NAME;
for features from anywhere `pfc measure features.npz --labels y --classifier W,b`""",
    "compare": """Compare runs or profiles, or groups of runs with different seeds, layer by layer.

A table of the differences with intervals over seeds, effective depths, straightness, and a sentence of
what differs; with `--cka` how alike the layers of two networks are.

Example: `pfc compare "runs/wd0-*" "runs/wd5e-4-*" --out compared`""",
    "mufm": """Solve the models UFM and MUFM to their optimum: Figure 4, or with --sweep Figure 5.

On the paper's toy data by default; on real pixels with `--data`, on a trained network's features with
`--features`. What could be proven of each solution stands beside it; plain gradient descent, the paper's
way, is drawn for comparison.

Example: `pfc mufm --sweep`, or `pfc mufm --sweep --data digits --lams 1e-4 1e-3 1e-2`""",
    "prune": """Remove the last blocks of a run's network, as far as its held-out data allow.

The blocks of the last segment after a layer go, and a classifier fitted in closed form takes the place
of its own: after the first layer of which one half of the held-out data says that no more accuracy
is lost than is tolerated. What it costs and saves is told of the other half, and kept in the run's
folder, where `pfc report` finds it.

Example: `pfc prune runs/fit --head ridge --eps 0.005 --out pruned.safetensors`""",
    "exits": """Let samples leave a run's network early, as far as its held-out data allow.

A sample leaves at the first layer where it is nearer to one class mean than to all others by more than a
threshold: the smallest of which one half of the held-out data says that no more accuracy is lost than is
tolerated. What it costs and saves is told of the other half, and kept in the run's folder, where
`pfc report` finds it.

Example: `pfc exits runs/fit --eps 0.02`""",
    "scores": """Score how familiar held-out data are at each layer, beside unknown data if given.

Of each layer the quantiles of a score about the class means; with `--unknown`, data of none of the
classes, AUROC with its 95 % interval beside what the logits alone tell. It is kept in the run's folder,
where `pfc report` finds it.

Example: `pfc scores runs/fit --unknown photos --kind distance`""",
    "reproduce": """Reproduce the paper's table, figures or claims.

It trains what is not yet trained, draws each figure in the paper's arrangement, judges every claim over
the seeds, and writes it all on a page, `README.md` in the folder. It may be stopped at any moment: the
same command goes on. `--list` says beforehand what would be trained, and how long that takes here.

Example: `pfc reproduce all --list`, `pfc reproduce fig3 --sets mnist --data mnist=data/mnist`""",
    "figures": """Draw metrics over epochs and over layers, of a run or a profile, as PNG and SVG.

Example: `pfc figures runs/digits`""",
    "report": """Write one page of runs and profiles, to be opened in any browser and sent to anyone.

The verdict, what theory says, every metric over layers and epochs, cosines and confusion of the class
means, maps of them, and the command that makes each run again: one file, which loads nothing.

Example: `pfc report runs/digits`, or `pfc report 'runs/digits-*' --out digits.html`""",
}
NARROWEST = 20  # columns of a terminal: the tables of the help never end in fewer; ours
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
GOES_ON = "a run keeps what it has done and goes on with --resume, all else by the same command"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input is one line and exit code 2.

    Args:
        arguments: Of the command line; the process's own if `None`.

    Raises:
        SystemExit: With code 2 on bad input, 130 on an interrupt, 143 if terminated.
    """
    if arguments is None:
        _open_streams()
    with _signals(own=arguments is None) as signals:
        try:
            _run(sys.argv[1:] if arguments is None else arguments, signals)
        except BaseException as error:
            if (code := _code(error, signals.received)) is None:
                raise
            with suppress(OSError):
                _flush()
            raise SystemExit(code) from None


def _open_streams() -> None:
    """Give a closed stream an end, escape what its encoding lacks, and help some columns to stand in."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
    if get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def _run(arguments: list[str], signals: "Signals") -> None:
    with warnings.catch_warnings():
        warnings.showwarning = _OneLine()
        _refuse_empty(arguments)
        app = _app()
        if arguments[:1] in [[name] for name in HELP]:
            import_module("pfc.commands")
        signals.working = True
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        _flush()
    signals.check()


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse an empty argument, as of a variable that is not set: it would name the current folder."""
    for before, argument in pairwise(["", *arguments]):
        name, equals, value = argument.partition("=")
        if not argument or (name.startswith("--") and equals and not value):
            option = name or (before if before.startswith("--") else "an argument")
            raise ValueError(f"{option} is empty: give it a value, or leave it out")


def _app() -> "App":
    from cyclopts import App

    app = App(
        name="pfc",
        version=__version__,
        help="Measure progressive feedforward collapse: how a network pulls its classes together, "
        "layer by layer. Start with `pfc run`, which needs no data and no network.",
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    completion = "Install completion of commands and options for the shell that this is called from."
    app.register_install_completion_command(help=completion)
    for name, text in HELP.items():
        app.command(f"pfc.commands:{name}", name=name, help=text)
    return app


def _code(error: BaseException, received: int) -> int | None:
    """The exit code of an error, which is told in a line; `None` if it is a fault of ours."""
    from cyclopts import CycloptsError

    if received or isinstance(error, KeyboardInterrupt):
        number = signal.Signals(received or signal.SIGINT)
        _say(f"{WORDS[number]}; {GOES_ON}")
        return 128 + number
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has gone
        return 1
    if isinstance(error, ValueError | OSError | CycloptsError):
        _say(" ".join(_words(error).split()))
        return 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own
        _say(f"out of memory: take a smaller --batch-size or --limit ({error})".replace(" ()", ""))
        return 2
    return None


def _words(error: Exception) -> str:
    """The message of an error; what names no file is the standard output, if there is no room for it."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        if error.filename is None and error.strerror:
            return f"the standard output can't be written: {error.strerror}"
    return str(error)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody may be there to read it
        print(f"pfc: {text}", file=sys.stderr, flush=True)


def _flush() -> None:
    """Send off what was printed; what can't be is dropped, so that leaving does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


class Signals:
    """What becomes of SIGINT and SIGTERM.

    While nothing is begun, and at the second one, they end the process at once; else they interrupt what
    runs, which puts its files in order.

    Args:
        own: Whether the process is ours to leave.
    """

    def __init__(self, own: bool) -> None:
        self.own, self.working, self.received = own, False, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.own and (self.received or not self.working):
            word = WORDS[signal.Signals(number)]
            why = GOES_ON if self.working else "nothing was begun"
            os.write(2, f"pfc: {word}; {why}\n".encode())
            os._exit(128 + number)
        self.received = number
        raise KeyboardInterrupt

    def check(self) -> None:
        """Interrupt what has not noticed."""
        if self.received:
            raise KeyboardInterrupt


@contextmanager
def _signals(*, own: bool) -> Iterator[Signals]:
    """Our way with signals while the block runs; then the system's if the process is ours to end."""
    signals, before = Signals(own), {}
    with suppress(ValueError):  # no thread but the main one may
        for number in WORDS:
            if (old := signal.getsignal(number)) is not signal.SIG_IGN:  # as `nohup` and `&` ask
                signal.signal(number, signals)
                before[number] = signal.SIG_DFL if own else old
    try:
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _OneLine:
    """Says each warning of a command in one line, and once."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def __call__(self, message: Warning | str, *_: object, **__: object) -> None:
        if speaks() and str(message) not in self.said:
            self.said.add(str(message))
            print(f"pfc: {message}", file=sys.stderr)
