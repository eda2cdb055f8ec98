"""Figures of profiles: over the epochs of training, and over the layers of a network."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.profile import Profile
    from pfc.profile.segment import Position

_Numbers = Sequence[int | float]

_WORDS = {  # what a metric is, and its formula
    "pfc1": ("scatter ratio", r"$\mathrm{Tr}\,\Sigma_W\,/\,\mathrm{Tr}\,\Sigma_B$"),
    "pfc2": ("distance to simplex ETF", r"$\|G/\|G\|_F - G_\mathrm{ETF}\|_F$"),
    "pfc3": ("nearest-mean accuracy", "fraction of samples"),
}
_AXES = {  # what each kind of position says
    "path": "relative position along the path",
    "chord": "relative distance from the first layer",
    "proj": "relative position on the straight line",
    "index": "relative number of the layer",
}
_STYLE: Any = {
    **{"font.size": 8.5, "axes.titlesize": 8.5, "figure.titlesize": 10, "figure.titleweight": "bold"},
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"axes.titlelocation": "left", "legend.frameon": False, "axes.axisbelow": True},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "ytick.minor.width": 0.4},
    **{"grid.color": "0.88", "grid.linewidth": 0.6, "figure.constrained_layout.w_pad": 0.06},
    **{"svg.fonttype": "none", "svg.hashsalt": "pfc"},  # words stay words, and names the same
}
_MARKERS = "os^Dv"  # in turn with depth, for print without colour
_MEASURED = {"color": "#2b2f77", "linewidth": 0.8, "marker": "o", "markersize": 4}
_LETTER = 5.0  # points that a letter of a tick's label takes
_LONG = 6  # letters above which names of layers stand upright
_EPS = 0.01  # tolerated error at the layer that is marked; ours, as of `Profile.effective_depth`
_SAME = 1e-3  # relative difference below which values are drawn as the same; ours


def training(profiles: Mapping[int, "Profile"], *, segment: int = -1) -> "Figure":
    """Each metric over the epochs of training, one line a layer: Figure 2 of arXiv 2405.00985.

    Lines are darker and thicker the deeper the layer. PFC3 is shown as the accuracy that it is, and
    left out if a profile was measured with passes=1.

    Args:
        profiles: Profile of each measured epoch, 0 before training.
        segment: Whose layers, the last by default; all layers where the profiles have no segments.

    Returns:
        A figure 7 inches wide.

    Raises:
        ValueError: If there is no profile, an epoch is negative, there is no such segment, or the
            layers are not the same at all epochs.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    epochs, names, start = _over_epochs(profiles, segment)
    seen = [profiles[epoch].columns for epoch in epochs]
    metrics = [metric for metric in _WORDS if all(metric in columns for columns in seen)]
    with rc_context(_STYLE):
        figure = Figure(figsize=(7, 3), layout="constrained")
        figure.suptitle(_about(profiles[epochs[-1]], f" at epoch {epochs[-1]}"))
        for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            ax.set_title("\n".join(_named(metric)[:2]))
            ax.set_ylabel(_named(metric)[2])
            curves = [[columns[metric][start + i] for columns in seen] for i in range(len(names))]
            _draw(ax, epochs, curves, _by_depth(len(curves)), metric)
            _epoch_axis(ax, epochs, 380 / len(metrics))
        _legend(figure, _short(names))
    return figure


def layers(profile: "Profile", *, position: "Position" = "path") -> "Figure":
    """Each metric over the relative position of the layers: Figure 3 of arXiv 2405.00985.

    One row a metric, one column a segment, the last segment first; each panel has its own scale. Where
    nothing moves in a segment, and where there are no segments, layers stand at equal distances, and the
    axis says so. PFC3 is left out of a profile measured with passes=1; a dotted line stands at the layer
    from which on its error stays within 0.01.

    Args:
        profile: What was measured.
        position: Where layers stand, as for `Segment.position`.

    Returns:
        A figure 7 inches wide, wider from three segments on.

    Raises:
        ValueError: If the kind of position is unknown.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if position not in _AXES:
        raise ValueError(f"position must be one of {', '.join(map(repr, _AXES))}, got {position!r}")
    columns = _columns(profile, position)
    metrics = [metric for metric in _WORDS if metric in profile.columns]
    width = max(7.0, 3.1 * len(columns))
    letters = max(len(name) for column in columns for name in column.names)
    height = 1 + 2 * len(metrics) + (letters > _LONG) * letters * _LETTER / 72
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(_about(profile))
        grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharex="col")
        for axes, metric in zip(grid, metrics, strict=True):
            axes[0].set_ylabel("\n".join(_named(metric)))
            for ax, column in zip(axes, columns, strict=True):
                _panel(ax, column, profile, metric)
        for top, bottom, column in zip(grid[0], grid[-1], columns, strict=True):
            _name_axis(top, column, 72 * width / len(columns) - 60)
            bottom.set_xlabel(column.axis)
        figure.align_ylabels(grid[:, 0])
    return figure


def save(figure: "Figure", path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG and as SVG; the same figure gives the same bytes.

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
    with rc_context(_STYLE):
        replace_file(png, lambda new: figure.savefig(new, format="png", dpi=200))
        replace_file(svg, lambda new: figure.savefig(new, format="svg", metadata={"Date": None}))
    return png, svg


@dataclass(frozen=True)
class _Column:
    """Layers over one axis: those of a segment, or all of a profile."""

    start: int
    names: Sequence[str]
    x: _Numbers
    title: str
    axis: str


def _columns(profile: "Profile", position: "Position") -> list[_Column]:
    """The segments, the last first; one column of all layers if there are none."""
    n = len(profile.segments)
    if not n:
        axis = "number of the layer (no segments: not measured, or no neighbours of one shape)"
        return [_Column(0, _short(profile.layers), range(len(profile.layers)), "all layers", axis)]
    columns = []
    for i, segment in reversed(list(enumerate(profile.segments))):
        x, axis = segment.position(position), _AXES[position]
        if not all(map(math.isfinite, x)):
            x, axis = segment.position("index"), f"{_AXES['index']} (nothing moves)"
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, profile.shapes[segment.start]))
        title = f"segment {i + 1} of {n}: shape {shape}" if n > 1 else f"layers of shape {shape}"
        columns.append(_Column(segment.start, _short(segment.layers), x, title, axis))
    return columns


def _over_epochs(profiles: Mapping[int, "Profile"], i: int) -> tuple[list[int], Sequence[str], int]:
    """The epochs in order, the names of the layers to show, and the first one's row."""
    epochs = sorted(profiles)
    if not epochs or epochs[0] < 0:
        raise ValueError(f"need profiles of at least one epoch, 0 or later, got epochs {epochs}")
    first = profiles[epochs[0]]
    for epoch in epochs:
        if profiles[epoch].layers != first.layers:
            raise ValueError(
                f"all epochs need the same layers: epoch {epochs[0]} has {list(first.layers)}, "
                f"epoch {epoch} has {list(profiles[epoch].layers)}"
            )
    if not first.segments and i == -1:
        return epochs, first.layers, 0
    chosen = first.segment(i)
    return epochs, chosen.layers, chosen.start


def _panel(ax: "Axes", column: _Column, profile: "Profile", metric: str) -> None:
    """One metric over the layers of one column."""
    ax.set_xlim(_widened(column.x))
    ax.set_xticks(list(column.x), minor=True)
    ax.tick_params(axis="x", which="minor", length=0)
    ax.grid(axis="x", which="minor")
    values = profile.columns[metric][column.start : column.start + len(column.names)]
    _draw(ax, column.x, [values], [_MEASURED], metric)
    depth = profile.effective_depth(_EPS) if metric == "pfc3" else None
    if depth is not None and 0 <= depth - column.start < len(column.names):
        ax.axvline(column.x[depth - column.start], color="0.35", linestyle=":", linewidth=1.2, zorder=1)
        ax.legend(ax.lines[-1:], [f"1 - PFC3 within {_EPS} from here on"], handlelength=1.5)


def _draw(
    ax: "Axes", x: _Numbers, curves: Sequence[_Numbers], looks: Iterable[Mapping[str, Any]], metric: str
) -> None:
    """Curves of one metric over one axis; infinite values stand as signs at the upper edge."""
    for curve, look in zip(curves, looks, strict=True):
        ax.plot(x, curve, **look)
        for place in (a for a, b in zip(x, curve, strict=True) if b == math.inf):
            how = {"transform": ax.get_xaxis_transform(), "color": look["color"]}
            ax.text(place, 1, r"$\infty$", ha="center", va="top", **how)
    ax.grid(axis="y")
    _scale(ax, [b for curve in curves for b in curve if math.isfinite(b)], log=metric != "pfc3")


def _scale(ax: "Axes", values: _Numbers, *, log: bool) -> None:
    """A logarithmic axis, where asked for, if values are positive and span more than a decade."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    if not values:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color="0.4")
        ax.set_yticks([])
    elif log and min(values) > 0 and max(values) > 10 * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        if max(values) < 100 * min(values):
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            ax.yaxis.set_minor_formatter("{x:g}")
    else:
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if max(values) - min(values) <= _SAME * abs(max(values)):
            room = 0.05 * abs(max(values)) or 0.05
            ax.set_ylim(min(values) - room, max(values) + room)


def _epoch_axis(ax: "Axes", epochs: Sequence[int], points: float) -> None:
    """An axis of log(1 + epoch), with a tick at each measured epoch and as many numbers as fit."""
    import numpy as np

    names, places = [str(epoch) for epoch in epochs], np.log1p(epochs).tolist()
    kept = _apart(places, names, points)
    ax.set_xscale("function", functions=(np.log1p, np.expm1))
    ax.set_xlabel("epoch")
    ax.set_xlim(*np.expm1(_widened(places)))
    ax.set_xticks([epochs[i] for i in kept], [names[i] for i in kept])
    ax.set_xticks(list(epochs), minor=True)


def _name_axis(ax: "Axes", column: _Column, points: float) -> None:
    """Names of the layers along the upper edge, as many as fit, upright where they are long."""
    names, long = column.names, max(map(len, column.names)) > _LONG
    kept = _apart(column.x, ["--" if long else name for name in names], points)
    top = ax.secondary_xaxis("top")
    top.set_xticks([column.x[i] for i in kept], [names[i] for i in kept], rotation=90 if long else 0)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0)
    top.set_xlabel(column.title, fontweight="bold")


def _widened(places: _Numbers) -> tuple[float, float]:
    """Limits of an axis with a margin, also where a curve's end has no finite value."""
    low, high = min(places), max(places)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _apart(places: _Numbers, names: Sequence[str], points: float) -> list[int]:
    """Which names can stand on an axis of so many points: the last, the first, what fits between."""
    unit = points / ((max(places) - min(places)) or 1)
    kept: list[int] = []
    for i in (len(places) - 1, *range(len(places) - 1)):
        rooms = ((j, 1 + (len(names[i]) + len(names[j])) / 2) for j in kept)
        if all(abs(places[i] - places[j]) * unit >= _LETTER * room for j, room in rooms):
            kept.append(i)
    return sorted(kept)


def _short(names: Sequence[str]) -> list[str]:
    """`blocks.0` as 1, `blocks.1` as 2, any other name by its last part, if that is clear."""
    ends = [name.rpartition(".")[2] for name in names]
    numbers = [int(end) for end in ends if end.isdecimal()]
    short = [str(int(end) + 1) if end.isdecimal() else end for end in ends]
    clear = numbers == list(range(len(numbers))) and len(set(short)) == len(short)
    return short if clear else list(names)


def _by_depth(n: int) -> Iterator[dict[str, Any]]:
    """How the line of each layer looks: darker and thicker with depth, its marker in turn."""
    from matplotlib import colormaps

    for i in range(n):
        deep = i / max(n - 1, 1)
        color, marker = colormaps["viridis_r"](0.12 + 0.88 * deep), _MARKERS[i % len(_MARKERS)]
        yield {"color": color, "linewidth": 0.8 + 1.2 * deep, "marker": marker, "markersize": 3.5}


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    """One legend below all panels; the figure grows with its rows."""
    fit = max(1, int(470 / (38 + _LETTER * max(map(len, names)))))
    figure.set_figheight(figure.get_figheight() + 0.17 * ((len(names) - 1) // fit))
    how: dict[str, Any] = {"ncols": min(len(names), fit), "borderaxespad": 0, "title": "layer"}
    figure.legend(figure.axes[0].lines, names, loc="outside lower center", **how)


def _named(metric: str) -> tuple[str, str, str]:
    """Name and direction of collapse, what it is, the formula."""
    from pfc.profile.result import RISES

    arrow = "\N{UPWARDS ARROW}" if RISES[metric] else "\N{DOWNWARDS ARROW}"
    return f"{metric.upper()} (more collapsed {arrow})", *_WORDS[metric]


def _about(profile: "Profile", when: str = "") -> str:
    """The network, the data and the accuracy in a line."""
    about = profile.about
    data = f" on {about['data']}" if about.get("data") else ""
    accuracy = "" if profile.accuracy is None else f", accuracy {profile.accuracy:.4f}{when}"
    return f"{about['model']}{data}: {about['samples']} samples, {about['classes']} classes{accuracy}"
