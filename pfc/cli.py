"""The command line: names and help of the commands; what they do is imported when they run."""

import sys
import warnings

from cyclopts import App, CycloptsError

from pfc import __version__

app = App(
    name="pfc",
    version=__version__,
    help="Measure progressive feedforward collapse: how a network pulls its classes together, layer by "
    "layer. Start with `pfc run`, which needs no data and no network.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
HELP = {
    "run": """Train until collapse, measure every layer, draw the figures and say what was found.

Without arguments: a residual network on the real digits bundled with scikit-learn, in well under two
minutes on one processor, without network or GPU. Called again it goes on where it was stopped.

Example: `pfc run`, or `pfc run digits --seed 1 --out runs/digits-1`""",
    "train": """Train a network by a recipe of the paper's Table I.

The run's folder keeps configuration, history, profiles of every layer at about ten epochs, weights, and
a state from which `--resume` continues to the same bits.

Example: `pfc train digits --out runs/wide --width 256 --epochs 100`""",
    "measure": """Measure every layer of a run, or of any model, on any data.

Example: `pfc measure runs/digits --epoch 0`, or for a model of your own
`pfc measure mynets:resnet --weights resnet.safetensors --data uoft-cs/cifar10 --split test`""",
    "mufm": """Solve the models UFM and MUFM to their optimum: Figure 4, or with --sweep Figure 5.

On the paper's toy data by default; on real pixels with `--data`, on a trained network's features with
`--features`. What could be proven of each solution stands beside it; plain gradient descent, the paper's
way, is drawn for comparison.

Example: `pfc mufm --sweep`, or `pfc mufm --sweep --data digits --lams 1e-4 1e-3 1e-2`""",
    "figures": """Draw metrics over epochs and over layers, of a run or a profile, as PNG and SVG.

Example: `pfc figures runs/digits`""",
}
for name, text in HELP.items():
    app.command(f"pfc.commands:{name}", name=name, help=text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input is one line and exit code 2.

    Args:
        arguments: Of the command line; the process's own if `None`.

    Raises:
        SystemExit: With code 2 on bad input, 130 on an interrupt.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:  # the reader, such as `head`, has gone
        sys.stderr.close()
        raise SystemExit(1) from None
    except (ValueError, OSError, CycloptsError) as error:
        print(f"pfc: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "pfc: interrupted; a run keeps what it has done and goes on with --resume, a sweep by "
            "the same command",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pfc: {message}", file=sys.stderr)
