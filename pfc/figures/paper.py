"""The paper's figures: metrics over the epochs of training, and over the layers of a network."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import (
    ENDS,
    LINES,
    MEASURED,
    Numbers,
    apart,
    canvas,
    chosen,
    column,
    headline,
    legend,
    named,
    named_ticks,
    on_grid,
    panels,
    room,
    scale,
    ticks,
    wrapped,
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
MARK: Any = {"color": "0.35", "linestyle": ":", "linewidth": 1.2, "zorder": 1}  # of the effective depth
EPS = 0.01  # tolerated error at the layer that is marked; ours, as of `Profile.effective_depth`


def training(
    profiles: Mapping[int, "Profile"],
    *,
    segment: int | None = None,
    metrics: Sequence[str] | None = None,
    width: float = 7.0,
) -> "Figure":
    """Each metric over the epochs of training, one line a layer: Figure 2 of arXiv 2405.00985.

    Lines are darker and thicker the deeper the layer. PFC3 is shown as the accuracy that it is, and
    left out if a profile was measured with passes=1.

    Args:
        profiles: Profile of each measured epoch, 0 before training.
        segment: Whose layers; all measured layers if `None`.
        metrics: Columns of the profiles' tables; by default PFC1-3.
        width: Of the figure, in inches; panels that do not fit side by side stand below one another.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no profile, an epoch is negative, there is no such segment, the layers
            are not the same at all epochs, or a metric is unknown.
    """
    epochs, rows = over_epochs(profiles, segment)
    names = profiles[epochs[0]].layers[rows]
    seen = [profiles[epoch].columns for epoch in epochs]
    shown = chosen(metrics, seen)
    title = headline(profiles[epochs[-1]], f" at epoch {epochs[-1]}")
    with canvas(width, 2.7, title) as figure:
        axes, points = panels(figure, len(shown))
        for ax, metric in zip(axes, shown, strict=True):
            ax.set_title(named(metric))
            ax.set_ylabel(column(metric).tex)
            curves = list(zip(*(columns[metric][rows] for columns in seen), strict=True))
            draw_curves(ax, [epochs] * len(curves), curves, by_depth(len(curves)), metric)
            epoch_axis(ax, epochs, points)
        legend(figure, axes[0].lines, ticks(names), "layer")
    return figure


def layers(
    profile: "Profile | Mapping[str, Profile | Sequence[Profile]]",
    *,
    position: "Position" = "path",
    end: "End | None" = "measured",
    metrics: Sequence[str] | None = None,
    width: float = 7.0,
) -> "Figure":
    """Each metric over all measured layers: Figure 3 of arXiv 2405.00985.

    One panel a metric, below one another over one axis: the number of the layer. Inside a segment,
    which is shaded, a layer stands by its relative position between the numbers of the segment's first
    and last layer (at these where a chord or a projection lies beyond them), or by its number where
    nothing moves. Behind a segment's layers stands what the straight line from its first to its last
    features predicts, exactly. PFC3 is left out of a profile measured with passes=1; a dotted line
    stands at the layer from which on its error stays within 0.01.

    Args:
        profile: What was measured; or several profiles by their names, which are drawn over one
            another, as `compared` does, by the number of the layer, or by the part of the depth where
            layers differ, and without the predicted line.
        position: Where layers stand, as for `Segment.position`.
        end: What stands at the end of the predicted line, as for `Segment.line`; `None` draws no line.
        metrics: Columns of `profile.table()`; by default PFC1-3. The line predicts these alone.
        width: Of the figure, in inches: 3.25 for a column of a paper.

    Returns:
        The figure.

    Raises:
        ValueError: If the kind of position, the end or a metric is unknown.
    """
    if isinstance(profile, Mapping):
        from pfc.figures.compared import compared

        return compared(profile, metrics=metrics, width=width)
    if position not in AXES:
        raise ValueError(f"position must be one of {', '.join(map(repr, AXES))}, got {position!r}")
    if end is not None and end not in ENDS:
        raise ValueError(f"end must be one of {', '.join(map(repr, ENDS))} or None, got {end!r}")
    shown, places = chosen(metrics, [profile.columns]), _places(profile, position)
    height = 1 + min(2.0, 0.9 + 0.22 * width) * len(shown) + room(profile.layers)
    with canvas(width, height, headline(profile)) as figure:
        axes = figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]
        for ax, metric in zip(axes, shown, strict=True):
            ax.set_ylabel(f"{named(metric)}\n{column(metric).tex}".rstrip())
            _panel(ax, profile, metric, places, end)
        named_ticks(axes[-1], places, profile.layers, 72 * width - 90)
        axes[-1].set_xlabel("\n".join(wrapped(_axis(profile, position), width - 0.8, 4.6)))
        figure.align_ylabels(axes)
        _explained(figure, profile, end)
    return figure


def over_epochs(profiles: Mapping[int, "Profile"], i: int | None) -> tuple[list[int], slice]:
    """The epochs in order, and the rows of the layers to show."""
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
    if i is None:
        return epochs, slice(None)
    segment = profiles[epochs[-1]].segment(i)
    return epochs, slice(segment.start, segment.start + len(segment.layers))


def _moving(profile: "Profile", position: "Position") -> "dict[int, Segment]":
    """The segments in which a position is known, by their number."""
    return {
        i: segment
        for i, segment in enumerate(profile.segments)
        if all(map(math.isfinite, segment.position(position)))
    }


def _places(profile: "Profile", position: "Position") -> list[float]:
    """Where each layer stands on the axis of all layers."""
    places = [float(l) for l in range(len(profile.layers))]
    for segment in _moving(profile, position).values():
        start, L = segment.start, len(segment.layers) - 1
        t = [min(max(t, 0.0), 1.0) for t in segment.position(position)]
        places[start : start + L + 1] = [start + L * each for each in t]
    return places


def _axis(profile: "Profile", position: "Position") -> str:
    """What the axis of all layers says."""
    if not profile.segments:
        why = "not measured, or no neighbours of one shape"
        why = "not about the means of other data" if profile.about.get("means") else why
        return f"number of the layer (no segments: {why})"
    moving = _moving(profile, position)
    if not moving:
        return "number of the layer (nothing moves)"
    still = " or, where nothing moves, by number" if len(moving) < len(profile.segments) else ""
    if _whole(profile):
        return f"layers by {AXES[position]}"
    return f"layers in order; shaded: layers of one shape, by {AXES[position]}{still}"


def _whole(profile: "Profile") -> bool:
    """Whether one segment has all layers."""
    return any(segment.layers == profile.layers for segment in profile.segments)


def _panel(ax: "Axes", profile: "Profile", metric: str, places: list[float], end: "End | None") -> None:
    """One metric over the layers, the predicted lines behind it."""
    ax.set_xlim(_widened(places))
    ax.set_xticks(places, minor=True)
    ax.tick_params(axis="x", which="minor", length=0)
    ax.grid(axis="x", which="both")
    predicted: list[float] = []
    for segment in _moving(profile, "path").values():
        last = segment.start + len(segment.layers) - 1
        if not _whole(profile):
            ax.axvspan(segment.start, last, color="0.955", linewidth=0, zorder=0)
        if end is not None and metric in LINES:
            t, values = on_grid(segment, end, metric)
            ax.plot(
                [segment.start + (last - segment.start) * at for at in t], values, label="line", **LINE
            )
            predicted += values
    draw_curves(
        ax, [places], [profile.columns[metric]], [MEASURED | {"label": "measured"}], metric, predicted
    )
    depth = profile.effective_depth(EPS) if metric == "pfc3" else None
    if depth is not None:
        ax.axvline(places[depth], label="depth", **MARK)


def _explained(figure: "Figure", profile: "Profile", end: "End | None") -> None:
    """Tells once for all panels what their lines are; nothing where there are measured layers alone."""
    of = "" if _whole(profile) else ", shape by shape"
    words = {
        "measured": "measured layers",
        "line": f"straight line to {ENDS[end]}{of}" if end else "",
        "depth": f"1 - PFC3 within {EPS} from here on",
    }
    lines = {str(line.get_label()): line for ax in figure.axes for line in ax.lines}
    shown = [label for label in words if label in lines]
    if len(shown) > 1:
        legend(figure, [lines[label] for label in shown], [words[label] for label in shown])


def draw_curves(
    ax: "Axes",
    x: Sequence[Numbers],
    curves: Sequence[Numbers],
    looks: Iterable[Mapping[str, Any]],
    metric: str,
    others: Numbers = (),
) -> None:
    """Curves of one metric over one axis; infinite values stand as signs at the upper edge.

    Args:
        ax: Where.
        x: Places of the values of each curve.
        curves: The values of each curve.
        looks: How each curve is drawn.
        metric: Its name.
        others: Values drawn already, for which the scale must have room.
    """
    for places, curve, look in zip(x, curves, looks, strict=True):
        ax.plot(places, curve, **look)
        for place in (a for a, b in zip(places, curve, strict=True) if b == math.inf):
            how: Any = {"transform": ax.get_xaxis_transform(), "color": look["color"]}
            ax.text(place, 1, r"$\infty$", ha="center", va="top", **how)
    ax.grid(axis="y")
    scale(
        ax,
        [b for curve in (*curves, others) for b in curve if math.isfinite(b)],
        log=not column(metric).rises,
    )


def epoch_axis(ax: "Axes", epochs: Sequence[int], points: float) -> None:
    """An axis of log(1 + epoch), with a tick at each measured epoch and as many numbers as fit."""
    import numpy as np

    names, places = [str(epoch) for epoch in epochs], np.log1p(epochs).tolist()
    kept = apart(places, names, points)
    ax.set_xscale("function", functions=(np.log1p, np.expm1))
    ax.set_xlabel("epoch")
    ax.set_xlim(*np.expm1(_widened(places)))
    ax.set_xticks([epochs[i] for i in kept], [names[i] for i in kept])
    ax.set_xticks(list(epochs), minor=True)


def _widened(places: Numbers) -> tuple[float, float]:
    """Limits of an axis with a margin, also where a curve's end has no finite value."""
    low, high = min(places), max(places)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def by_depth(n: int) -> Iterator[dict[str, Any]]:
    """How the line of each layer looks: darker and thicker with depth, its marker in turn."""
    from matplotlib import colormaps

    for i in range(n):
        deep = i / max(n - 1, 1)
        color, marker = colormaps["viridis_r"](0.12 + 0.88 * deep), MARKERS[i % len(MARKERS)]
        yield {"color": color, "linewidth": 0.8 + 1.2 * deep, "marker": marker, "markersize": 3.5}
