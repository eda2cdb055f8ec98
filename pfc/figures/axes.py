"""What all figures share: style, axes, scales, names of layers, and files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile, Segment
    from pfc.profile.columns import Column

Numbers = Sequence[int | float]

ENDS = {"measured": "the last features", "means": "their class means", "etf": "the nearest ETF"}
STYLE: Any = {
    **{"font.size": 8.5, "axes.titlesize": 8.5, "figure.titlesize": 10, "figure.titleweight": "bold"},
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"axes.titlelocation": "left", "legend.frameon": False, "axes.axisbelow": True},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "ytick.minor.width": 0.4},
    **{"grid.color": "0.88", "grid.linewidth": 0.6, "figure.constrained_layout.w_pad": 0.06},
    **{"svg.fonttype": "none", "svg.hashsalt": "pfc"},  # words stay words, and names the same
}
MEASURED: Any = {"color": "#2b2f77", "linewidth": 0.8, "marker": "o", "markersize": 4}
LETTER = 5.0  # points that a letter of a tick's label takes
WIDE = 1e6  # ratio above which a logarithmic axis would show nothing but its smallest value; ours
SAME = 1e-3  # relative difference below which values are drawn as the same; ours


@contextmanager
def canvas(width: float, height: float, title: str) -> Iterator["Figure"]:
    """A figure with a title; the style of all figures holds while the block draws."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title)
        yield figure


def save(figure: "Figure", path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG and as SVG; the same figure gives the same bytes.

    The layout is settled once, before the first writing: it would move by rounding each time.

    Args:
        figure: Any matplotlib figure.
        path: Where, without the ending; the folder is made.

    Returns:
        The paths of the PNG and of the SVG file.

    Raises:
        ValueError: If the path ends in .png or .svg already.
    """
    from matplotlib import rc_context

    from pfc.files import replace_file

    path = Path(path)
    if path.suffix.lower() in {".png", ".svg"}:
        raise ValueError(f"give the path without its ending, as {path.with_suffix('')}, got {path}")
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    with rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        replace_file(png, lambda new: figure.savefig(new, format="png", dpi=200))
        replace_file(svg, lambda new: figure.savefig(new, format="svg", metadata={"Date": None}))
    return png, svg


def scale(ax: "Axes", values: Numbers, *, log: bool) -> None:
    """A logarithmic axis, where asked for, if values are positive and span more than a decade."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    if not values:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color="0.4")
        ax.set_yticks([])
    elif log and min(values) > 0 and 10 * min(values) < max(values) < WIDE * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        if max(values) < 100 * min(values):
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            ax.yaxis.set_minor_formatter("{x:g}")
    else:
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if max(values) - min(values) <= SAME * abs(max(values)):
            room = 0.05 * abs(max(values)) or 0.05
            ax.set_ylim(min(values) - room, max(values) + room)


def apart(places: Numbers, names: Sequence[str], points: float) -> list[int]:
    """Which names can stand on an axis of so many points: the last, the first, what fits between."""
    unit = points / ((max(places) - min(places)) or 1)
    kept: list[int] = []
    for i in (len(places) - 1, *range(len(places) - 1)):
        rooms = ((j, 1 + (len(names[i]) + len(names[j])) / 2) for j in kept)
        if all(abs(places[i] - places[j]) * unit >= LETTER * room for j, room in rooms):
            kept.append(i)
    return sorted(kept)


def short(names: Sequence[str]) -> list[str]:
    """`blocks.0` as 1, `blocks.1` as 2, any other name by its last part, if that is clear."""
    ends = [name.rpartition(".")[2] for name in names]
    numbers = [int(end) for end in ends if end.isdecimal()]
    short = [str(int(end) + 1) if end.isdecimal() else end for end in ends]
    clear = numbers == list(range(len(numbers))) and len(set(short)) == len(short)
    return short if clear else list(names)


def drawn() -> "dict[str, Column]":
    """The metrics that figures draw, by name."""
    from pfc.profile.columns import PFC

    return PFC


def named(metric: str) -> str:
    """Name and direction of collapse, and below it what the metric is."""
    column = drawn()[metric]
    arrow = "\N{UPWARDS ARROW}" if column.rises else "\N{DOWNWARDS ARROW}"
    return f"{metric.upper()} (more collapsed {arrow})\n{column.title}"


def headline(profile: "Profile", when: str = "") -> str:
    """The network, the data and the accuracy in a line."""
    about = profile.about
    data = f" on {about['data']}" if about.get("data") else ""
    accuracy = "" if profile.accuracy is None else f", accuracy {profile.accuracy:.4f}{when}"
    return f"{about['model']}{data}: {about['samples']} samples, {about['classes']} classes{accuracy}"


def on_grid(segment: "Segment", end: "End", metric: str) -> tuple[Numbers, Numbers]:
    """Points of the straight line's curve, with both sides of every breakpoint of PFC3."""
    import torch

    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    if metric == "pfc3" and end in segment.curves:
        jumps = segment.curves[end].breakpoints.clamp(0, 1)
        t = torch.cat([t, jumps, (jumps - 1e-9).clamp(min=0)]).sort().values
    return t.tolist(), getattr(segment.line(t, end), metric).tolist()
