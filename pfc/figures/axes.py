"""What all figures share: style, axes, scales, names of layers, and files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile, Segment
    from pfc.profile.segment import Position

Numbers = Sequence[int | float]

WORDS = {  # what a metric is, and its formula
    "pfc1": ("scatter ratio", r"$\mathrm{Tr}\,\Sigma_W\,/\,\mathrm{Tr}\,\Sigma_B$"),
    "pfc2": ("distance to simplex ETF", r"$\|G/\|G\|_F - G_\mathrm{ETF}\|_F$"),
    "pfc3": ("nearest-mean accuracy", "fraction of samples"),
}
ENDS = {"measured": "the last features", "means": "their class means", "etf": "the nearest ETF"}
AXES = {  # what each kind of position says
    "path": "relative position along the path",
    "chord": "relative distance from the first layer",
    "proj": "relative position on the straight line",
    "index": "relative number of the layer",
}
STYLE: Any = {
    **{"font.size": 8.5, "axes.titlesize": 8.5, "figure.titlesize": 10, "figure.titleweight": "bold"},
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"axes.titlelocation": "left", "legend.frameon": False, "axes.axisbelow": True},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "ytick.minor.width": 0.4},
    **{"grid.color": "0.88", "grid.linewidth": 0.6, "figure.constrained_layout.w_pad": 0.06},
    **{"svg.fonttype": "none", "svg.hashsalt": "pfc"},  # words stay words, and names the same
}
MARKERS = "os^Dv"  # in turn with depth, for print without colour
LINE: Any = {"color": "#d1495b", "linewidth": 1.1, "zorder": 1.5}  # what theory predicts
MEASURED: Any = {"color": "#2b2f77", "linewidth": 0.8, "marker": "o", "markersize": 4}
LETTER = 5.0  # points that a letter of a tick's label takes
LONG = 6  # letters above which names of layers stand upright
EPS = 0.01  # tolerated error at the layer that is marked; ours, as of `Profile.effective_depth`
WIDE = 1e6  # ratio above which a logarithmic axis would show nothing but its smallest value; ours
SAME = 1e-3  # relative difference below which values are drawn as the same; ours


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


@dataclass(frozen=True)
class Column:
    """Layers over one axis: of a segment, or all of a profile; the segment too if its layers differ."""

    start: int
    names: Sequence[str]
    x: Numbers
    title: str
    axis: str
    segment: "Segment | None" = None


def columns_of(profile: "Profile", position: "Position") -> list[Column]:
    """The segments, the last first; one column of all layers if there are none."""
    n = len(profile.segments)
    if not n:
        axis = "number of the layer (no segments: not measured, or no neighbours of one shape)"
        return [Column(0, short(profile.layers), range(len(profile.layers)), "all layers", axis)]
    found = []
    for i, segment in reversed(list(enumerate(profile.segments))):
        x, axis = segment.position(position), AXES[position]
        moves = all(map(math.isfinite, x))
        if not moves:
            x, axis = segment.position("index"), f"{AXES['index']} (nothing moves)"
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, profile.shapes[segment.start]))
        title = f"segment {i + 1} of {n}: shape {shape}" if n > 1 else f"layers of shape {shape}"
        found.append(
            Column(segment.start, short(segment.layers), x, title, axis, segment if moves else None)
        )
    return found


def draw(
    ax: "Axes",
    x: Numbers,
    curves: Sequence[Numbers],
    looks: Iterable[Mapping[str, Any]],
    metric: str,
    others: Numbers = (),
) -> None:
    """Curves of one metric over one axis; infinite values stand as signs at the upper edge.

    Args:
        ax: Where.
        x: Places of the values.
        curves: The values of each curve.
        looks: How each curve is drawn.
        metric: Its name.
        others: Values drawn already, for which the scale must have room.
    """
    for curve, look in zip(curves, looks, strict=True):
        ax.plot(x, curve, **look)
        for place in (a for a, b in zip(x, curve, strict=True) if b == math.inf):
            how: Any = {"transform": ax.get_xaxis_transform(), "color": look["color"]}
            ax.text(place, 1, r"$\infty$", ha="center", va="top", **how)
    ax.grid(axis="y")
    scale(
        ax, [b for curve in (*curves, others) for b in curve if math.isfinite(b)], log=metric != "pfc3"
    )


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


def epoch_axis(ax: "Axes", epochs: Sequence[int], points: float) -> None:
    """An axis of log(1 + epoch), with a tick at each measured epoch and as many numbers as fit."""
    import numpy as np

    names, places = [str(epoch) for epoch in epochs], np.log1p(epochs).tolist()
    kept = apart(places, names, points)
    ax.set_xscale("function", functions=(np.log1p, np.expm1))
    ax.set_xlabel("epoch")
    ax.set_xlim(*np.expm1(widened(places)))
    ax.set_xticks([epochs[i] for i in kept], [names[i] for i in kept])
    ax.set_xticks(list(epochs), minor=True)


def name_axis(ax: "Axes", column: Column, points: float) -> None:
    """Names of the layers along the upper edge, as many as fit, upright where they are long."""
    names, long = column.names, max(map(len, column.names)) > LONG
    kept = apart(column.x, ["--" if long else name for name in names], points)
    top = ax.secondary_xaxis("top")
    top.set_xticks([column.x[i] for i in kept], [names[i] for i in kept], rotation=90 if long else 0)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0)
    top.set_xlabel(column.title, fontweight="bold")


def widened(places: Numbers) -> tuple[float, float]:
    """Limits of an axis with a margin, also where a curve's end has no finite value."""
    low, high = min(places), max(places)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


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


def by_depth(n: int) -> Iterator[dict[str, Any]]:
    """How the line of each layer looks: darker and thicker with depth, its marker in turn."""
    from matplotlib import colormaps

    for i in range(n):
        deep = i / max(n - 1, 1)
        color, marker = colormaps["viridis_r"](0.12 + 0.88 * deep), MARKERS[i % len(MARKERS)]
        yield {"color": color, "linewidth": 0.8 + 1.2 * deep, "marker": marker, "markersize": 3.5}


def legend(figure: "Figure", names: Sequence[str]) -> None:
    """One legend below all panels; the figure grows with its rows."""
    fit = max(1, int(470 / (38 + LETTER * max(map(len, names)))))
    figure.set_figheight(figure.get_figheight() + 0.17 * ((len(names) - 1) // fit))
    how: dict[str, Any] = {"ncols": min(len(names), fit), "borderaxespad": 0, "title": "layer"}
    figure.legend(figure.axes[0].lines, names, loc="outside lower center", **how)


def named(metric: str) -> tuple[str, str, str]:
    """Name and direction of collapse, what it is, the formula."""
    from pfc.profile.columns import COLUMNS

    arrow = "\N{UPWARDS ARROW}" if COLUMNS[metric].rises else "\N{DOWNWARDS ARROW}"
    return f"{metric.upper()} (more collapsed {arrow})", *WORDS[metric]


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
