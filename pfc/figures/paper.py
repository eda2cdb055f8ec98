"""The paper's figures: metrics over the epochs of training, and over the layers of a network."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import (
    ENDS,
    LETTER,
    MEASURED,
    Numbers,
    apart,
    canvas,
    drawn,
    headline,
    named,
    on_grid,
    scale,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile, Segment
    from pfc.profile.segment import Position

AXES = {  # what each kind of position says
    "path": "relative position along the path",
    "chord": "relative distance from the first layer",
    "proj": "relative position on the straight line",
    "index": "relative number of the layer",
}
MARKERS = "os^Dv"  # in turn with depth, for print without colour
LINE: Any = {"color": "#d1495b", "linewidth": 1.1, "zorder": 1.5}  # what theory predicts
LONG = 6  # letters above which names of layers stand upright
EPS = 0.01  # tolerated error at the layer that is marked; ours, as of `Profile.effective_depth`


@dataclass(frozen=True)
class _Column:
    """Layers over one axis: of a segment, or all of a profile; the segment too if its layers differ."""

    start: int
    names: Sequence[str]
    x: Numbers
    title: str
    axis: str
    segment: "Segment | None" = None


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
    epochs, names, start = _over_epochs(profiles, segment)
    seen = [profiles[epoch].columns for epoch in epochs]
    metrics = [metric for metric in drawn() if all(metric in columns for columns in seen)]
    title = headline(profiles[epochs[-1]], f" at epoch {epochs[-1]}")
    with canvas(7.0, 3.0, title) as figure:
        for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            ax.set_title(named(metric))
            ax.set_ylabel(drawn()[metric].tex)
            curves = [[columns[metric][start + i] for columns in seen] for i in range(len(names))]
            _draw(ax, epochs, curves, _by_depth(len(curves)), metric)
            _epoch_axis(ax, epochs, 380 / len(metrics))
        _legend(figure, short(names))
    return figure


def layers(
    profile: "Profile", *, position: "Position" = "path", end: "End | None" = "measured"
) -> "Figure":
    """Each metric over the relative position of the layers: Figure 3 of arXiv 2405.00985.

    One row a metric, one column a segment, the last segment first; each panel has its own scale. Where
    nothing moves in a segment, and where there are no segments, layers stand at equal distances, and the
    axis says so. Behind the measured layers stands what the straight line from the first to the last
    features predicts, exactly. PFC3 is left out of a profile measured with passes=1; a dotted line
    stands at the layer from which on its error stays within 0.01.

    Args:
        profile: What was measured.
        position: Where layers stand, as for `Segment.position`.
        end: What stands at the end of the predicted line, as for `Segment.line`; `None` draws no line.

    Returns:
        A figure 7 inches wide, wider from three segments on.

    Raises:
        ValueError: If the kind of position or the end is unknown.
    """
    if position not in AXES:
        raise ValueError(f"position must be one of {', '.join(map(repr, AXES))}, got {position!r}")
    if end is not None and end not in ENDS:
        raise ValueError(f"end must be one of {', '.join(map(repr, ENDS))} or None, got {end!r}")
    columns = _columns_of(profile, position)
    metrics = [metric for metric in drawn() if metric in profile.columns]
    width = max(7.0, 3.1 * len(columns))
    letters = max(len(name) for column in columns for name in column.names)
    height = 1 + 2 * len(metrics) + (letters > LONG) * letters * LETTER / 72
    with canvas(width, height, headline(profile)) as figure:
        grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharex="col")
        for axes, metric in zip(grid, metrics, strict=True):
            axes[0].set_ylabel(f"{named(metric)}\n{drawn()[metric].tex}")
            for ax, column in zip(axes, columns, strict=True):
                _panel(ax, column, profile, metric, end)
        for top, bottom, column in zip(grid[0], grid[-1], columns, strict=True):
            _name_axis(top, column, 72 * width / len(columns) - 60)
            bottom.set_xlabel(column.axis)
        figure.align_ylabels(grid[:, 0])
        _line_legend(figure, end)
    return figure


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


def _panel(ax: "Axes", column: _Column, profile: "Profile", metric: str, end: "End | None") -> None:
    """One metric over the layers of one column, the predicted line behind it."""
    ax.set_xlim(_widened(column.x))
    ax.set_xticks(list(column.x), minor=True)
    ax.tick_params(axis="x", which="minor", length=0)
    ax.grid(axis="x", which="minor")
    predicted: Sequence[float] = ()
    if end is not None and column.segment is not None:
        t, predicted = on_grid(column.segment, end, metric)
        ax.plot(t, predicted, label="line", **LINE)
    values = profile.columns[metric][column.start : column.start + len(column.names)]
    _draw(ax, column.x, [values], [MEASURED], metric, predicted)
    depth = profile.effective_depth(EPS) if metric == "pfc3" else None
    if depth is not None and 0 <= depth - column.start < len(column.names):
        ax.axvline(column.x[depth - column.start], color="0.35", linestyle=":", linewidth=1.2, zorder=1)
        ax.legend(ax.lines[-1:], [f"1 - PFC3 within {EPS} from here on"], handlelength=1.5)


def _line_legend(figure: "Figure", end: "End | None") -> None:
    """Tells measured layers from the line, once for all panels; nothing where no line is drawn."""
    for ax in figure.axes:
        predicted = [line for line in ax.lines if line.get_label() == "line"]
        if end is not None and predicted:
            measured = next(line for line in ax.lines if line.get_marker() == MEASURED["marker"])
            told = ["measured layers", f"straight line to {ENDS[end]}"]
            figure.legend([measured, *predicted], told, loc="outside lower center", ncols=2)
            return


def _columns_of(profile: "Profile", position: "Position") -> list[_Column]:
    """The segments, the last first; one column of all layers if there are none."""
    n = len(profile.segments)
    if not n:
        axis = "number of the layer (no segments: not measured, or no neighbours of one shape)"
        return [_Column(0, short(profile.layers), range(len(profile.layers)), "all layers", axis)]
    found = []
    for i, segment in reversed(list(enumerate(profile.segments))):
        x, axis = segment.position(position), AXES[position]
        moves = all(map(math.isfinite, x))
        if not moves:
            x, axis = segment.position("index"), f"{AXES['index']} (nothing moves)"
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, profile.shapes[segment.start]))
        title = f"segment {i + 1} of {n}: shape {shape}" if n > 1 else f"layers of shape {shape}"
        found.append(
            _Column(segment.start, short(segment.layers), x, title, axis, segment if moves else None)
        )
    return found


def _draw(
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


def _epoch_axis(ax: "Axes", epochs: Sequence[int], points: float) -> None:
    """An axis of log(1 + epoch), with a tick at each measured epoch and as many numbers as fit."""
    import numpy as np

    names, places = [str(epoch) for epoch in epochs], np.log1p(epochs).tolist()
    kept = apart(places, names, points)
    ax.set_xscale("function", functions=(np.log1p, np.expm1))
    ax.set_xlabel("epoch")
    ax.set_xlim(*np.expm1(_widened(places)))
    ax.set_xticks([epochs[i] for i in kept], [names[i] for i in kept])
    ax.set_xticks(list(epochs), minor=True)


def _name_axis(ax: "Axes", column: _Column, points: float) -> None:
    """Names of the layers along the upper edge, as many as fit, upright where they are long."""
    names, long = column.names, max(map(len, column.names)) > LONG
    kept = apart(column.x, ["--" if long else name for name in names], points)
    top = ax.secondary_xaxis("top")
    top.set_xticks([column.x[i] for i in kept], [names[i] for i in kept], rotation=90 if long else 0)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0)
    top.set_xlabel(column.title, fontweight="bold")


def _widened(places: Numbers) -> tuple[float, float]:
    """Limits of an axis with a margin, also where a curve's end has no finite value."""
    low, high = min(places), max(places)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _by_depth(n: int) -> Iterator[dict[str, Any]]:
    """How the line of each layer looks: darker and thicker with depth, its marker in turn."""
    from matplotlib import colormaps

    for i in range(n):
        deep = i / max(n - 1, 1)
        color, marker = colormaps["viridis_r"](0.12 + 0.88 * deep), MARKERS[i % len(MARKERS)]
        yield {"color": color, "linewidth": 0.8 + 1.2 * deep, "marker": marker, "markersize": 3.5}


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    """One legend below all panels; the figure grows with its rows."""
    fit = max(1, int(470 / (38 + LETTER * max(map(len, names)))))
    figure.set_figheight(figure.get_figheight() + 0.17 * ((len(names) - 1) // fit))
    how: dict[str, Any] = {"ncols": min(len(names), fit), "borderaxespad": 0, "title": "layer"}
    figure.legend(figure.axes[0].lines, names, loc="outside lower center", **how)
