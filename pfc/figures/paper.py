"""The paper's figures: metrics over the epochs of training, and over the layers of a network."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pfc.figures.axes import (
    AXES,
    ENDS,
    EPS,
    LETTER,
    LINE,
    LONG,
    MEASURED,
    STYLE,
    WORDS,
    Column,
    by_depth,
    columns_of,
    draw,
    epoch_axis,
    headline,
    legend,
    name_axis,
    named,
    on_grid,
    short,
    widened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile
    from pfc.profile.segment import Position


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
    metrics = [metric for metric in WORDS if all(metric in columns for columns in seen)]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3), layout="constrained")
        figure.suptitle(headline(profiles[epochs[-1]], f" at epoch {epochs[-1]}"))
        for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            ax.set_title("\n".join(named(metric)[:2]))
            ax.set_ylabel(named(metric)[2])
            curves = [[columns[metric][start + i] for columns in seen] for i in range(len(names))]
            draw(ax, epochs, curves, by_depth(len(curves)), metric)
            epoch_axis(ax, epochs, 380 / len(metrics))
        legend(figure, short(names))
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
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if position not in AXES:
        raise ValueError(f"position must be one of {', '.join(map(repr, AXES))}, got {position!r}")
    if end is not None and end not in ENDS:
        raise ValueError(f"end must be one of {', '.join(map(repr, ENDS))} or None, got {end!r}")
    columns = columns_of(profile, position)
    metrics = [metric for metric in WORDS if metric in profile.columns]
    width = max(7.0, 3.1 * len(columns))
    letters = max(len(name) for column in columns for name in column.names)
    height = 1 + 2 * len(metrics) + (letters > LONG) * letters * LETTER / 72
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(headline(profile))
        grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharex="col")
        for axes, metric in zip(grid, metrics, strict=True):
            axes[0].set_ylabel("\n".join(named(metric)))
            for ax, column in zip(axes, columns, strict=True):
                _panel(ax, column, profile, metric, end)
        for top, bottom, column in zip(grid[0], grid[-1], columns, strict=True):
            name_axis(top, column, 72 * width / len(columns) - 60)
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


def _panel(ax: "Axes", column: Column, profile: "Profile", metric: str, end: "End | None") -> None:
    """One metric over the layers of one column, the predicted line behind it."""
    ax.set_xlim(widened(column.x))
    ax.set_xticks(list(column.x), minor=True)
    ax.tick_params(axis="x", which="minor", length=0)
    ax.grid(axis="x", which="minor")
    predicted: Sequence[float] = ()
    if end is not None and column.segment is not None:
        t, predicted = on_grid(column.segment, end, metric)
        ax.plot(t, predicted, label="line", **LINE)
    values = profile.columns[metric][column.start : column.start + len(column.names)]
    draw(ax, column.x, [values], [MEASURED], metric, predicted)
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
