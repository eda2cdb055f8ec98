"""The paper's figures in its own arrangement: several data sets at once, and samples on their lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import LINES, MEASURED, canvas, column, legend, named, on_grid
from pfc.figures.paper import AXES, LINE, by_depth, draw_curves, epoch_axis, over_epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.profile import Profile
    from pfc.profile.segment import Position

HEIGHT = 1.7  # inches of a row of panels; ours
COLORS = ("#2b2f77", "#d1495b", "#3a7d44")  # of the classes, in turn


def all_training(runs: Mapping[str, Mapping[int, "Profile"]], *, width: float = 7.0) -> "Figure":
    """Figure 2 of arXiv 2405.00985: a row a data set, PFC1-3 over the epochs, a line a layer.

    The layers are those of each network's last segment. Lines are darker and thicker with depth.

    Args:
        runs: Of each data set, by its name, the profile of each measured epoch.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no data set, or of one no profile, or its layers change.
    """
    with canvas(width, 0.9 + HEIGHT * len(_some(runs)), _title("over the epochs")) as figure:
        grid = figure.subplots(len(runs), len(LINES), squeeze=False)
        for row, (name, profiles) in zip(grid, runs.items(), strict=True):
            epochs, rows = over_epochs(profiles, -1)
            for ax, metric in zip(row, LINES, strict=True):
                curves = list(zip(*(profiles[e].columns[metric][rows] for e in epochs), strict=True))
                draw_curves(ax, [epochs] * len(curves), curves, by_depth(len(curves)), metric)
                epoch_axis(ax, epochs, 24 * width - 45)
            row[0].set_ylabel(name)
        _heads(grid)
        ends = [grid[0, 0].lines[0], grid[0, 0].lines[-1]]
        legend(figure, ends, ["first layer of the last stage", "last layer"])
    return figure


def all_layers(
    profiles: Mapping[str, "Profile"], *, position: "Position" = "path", width: float = 7.0
) -> "Figure":
    """Figure 3 of arXiv 2405.00985: a row a data set, PFC1-3 over the layers of its last segment.

    Behind the measured layers stands what the straight line from the first to the last predicts.

    Args:
        profiles: Of each data set, by its name.
        position: Where layers stand, as for `Segment.position`.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no data set, a profile has no segment, or the position is unknown.
    """
    with canvas(width, 0.9 + HEIGHT * len(_some(profiles)), _title("over the layers")) as figure:
        grid = figure.subplots(len(profiles), len(LINES), squeeze=False, sharex=True)
        for row, (name, profile) in zip(grid, profiles.items(), strict=True):
            segment = profile.segment()
            span = slice(segment.start, segment.start + len(segment.layers))
            for ax, metric in zip(row, LINES, strict=True):
                t, values = on_grid(segment, "measured", metric)
                ax.plot(t, values, **LINE)
                looks = [MEASURED]
                found = profile.columns[metric][span]
                draw_curves(ax, [segment.position(position)], [found], looks, metric, values)
            row[0].set_ylabel(name)
        _heads(grid)
        for ax in grid[-1]:
            ax.set_xlabel(AXES[position].removesuffix(" along the path"))
        legend(figure, grid[0, 0].lines, ["straight line to the last features", "measured layers"])
    return figure


def plane(
    points: Mapping[str, Sequence[Sequence[float]]],
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    most: int = 6,
    title: str = "",
    width: float = 7.0,
) -> "Figure":
    """Figure 1 of arXiv 2405.00985 on real features: samples in the plane of the last class means.

    A panel a layer; behind the samples stand their straight lines from the first layer to the last.

    Args:
        points: Of each layer, by its name, two coordinates a sample, in the same plane.
        labels: Class of each sample, an index into `classes`.
        classes: Their names.
        most: Panels; of more layers the first, the last, and as many evenly between.
        title: Of the figure.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there are fewer than two layers.
    """
    names = list(points)
    if len(names) < 2:
        raise ValueError(f"need two layers at least, got {', '.join(names) or 'none'}")
    count = min(most, len(names))
    shown = [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
    with canvas(width, 0.8 + width / count * _flatness(points), title) as figure:
        row = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
        for ax, name in zip(row, shown, strict=True):
            _samples(ax, points, name, labels)
            ax.set_title(name)
        legend(figure, row[0].collections[-len(classes) :], list(classes), "class")
    return figure


def _flatness(points: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Height over width of what all panels show."""
    x, y = zip(*(point for own in points.values() for point in own), strict=True)
    return float(min(2.0, (max(y) - min(y)) / ((max(x) - min(x)) or 1)))


def _samples(
    ax: "Axes", points: Mapping[str, Sequence[Sequence[float]]], name: str, labels: Sequence[int]
) -> None:
    """The samples of a layer on their lines, and the triangle of the last class means."""
    from matplotlib.collections import LineCollection

    first, *_, last = points.values()
    ends = [(tuple(a), tuple(b)) for a, b in zip(first, last, strict=True)]
    shades = [COLORS[k % len(COLORS)] for k in labels]
    ax.add_collection(LineCollection(ends, colors=shades, linewidths=0.3, alpha=0.35))
    for k in sorted(set(labels)):
        own = [point for point, label in zip(points[name], labels, strict=True) if label == k]
        how: Any = {"s": 9, "color": COLORS[k % len(COLORS)], "linewidths": 0, "zorder": 3}
        ax.scatter([x for x, _ in own], [y for _, y in own], **how)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def _some(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if not given:
        raise ValueError("need at least one data set, got none")
    return given


def _title(over: str) -> str:
    return f"{', '.join(metric.upper() for metric in LINES)} {over}, at the layers of the last stage"


def _heads(grid: Any) -> None:
    """What each column of panels shows, once above all rows."""
    for ax, metric in zip(grid[0], LINES, strict=True):
        ax.set_title(f"{named(metric)}\n{column(metric).tex}".rstrip())
