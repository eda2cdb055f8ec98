"""Several networks in one figure: metrics over their layers, and how alike their layers are."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, TypeAlias

from pfc.figures.axes import (
    MEASURED,
    canvas,
    chosen,
    column,
    legend,
    named,
    named_ticks,
    room,
    ticks,
)
from pfc.figures.paper import draw_curves

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.profile import Profile

    Members: TypeAlias = Profile | Sequence[Profile]

# Okabe and Ito's colours, told apart by all eyes; markers in turn, for print without colour
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SIGNS = "osD^vPX*"  # one more than colours, so that 56 networks look different


def compared(
    groups: "Mapping[str, Members]",
    *,
    metrics: Sequence[str] | None = None,
    width: float = 7.0,
) -> "Figure":
    """Each metric over the layers of several networks, or of groups of them with different seeds.

    One panel a metric, below one another; a line is the mean of a group, its band reaches from the
    least of its networks to the largest. Layers stand by their number where all have the same ones, else
    by the part of the depth that they have reached.

    Args:
        groups: A profile, or one a seed, by what the group is called.
        metrics: Columns of the profiles' tables; by default PFC1-3.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no group, the profiles of one have different layers, or a metric is
            unknown.
    """
    members = {name: _members(name, given) for name, given in groups.items()}
    if not members:
        raise ValueError("need at least one profile, got none")
    every = [profile for profiles in members.values() for profile in profiles]
    shown, layers = chosen(metrics, [profile.columns for profile in every]), every[0].layers
    same = all(profile.layers == layers for profile in every)
    height = 1 + min(2.0, 0.9 + 0.22 * width) * len(shown) + (room(layers) if same else 0)
    with canvas(width, height, _title(list(members))) as figure:
        axes = figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]
        for ax, metric in zip(axes, shown, strict=True):
            ax.set_ylabel(f"{named(metric)}\n{column(metric).tex}".rstrip())
            _panel(ax, members, metric, same=same)
        if same:
            named_ticks(axes[-1], range(len(layers)), layers, 72 * width - 90)
        axes[-1].set_xlabel("layers in order" if same else "part of the depth")
        figure.align_ylabels(axes)
        legend(figure, axes[0].lines[: len(members)], [*map(_called, members, members.values())])
    return figure


def _members(name: str, given: "Members") -> "list[Profile]":
    profiles = list(given) if isinstance(given, Sequence) else [given]
    if not profiles or any(profile.layers != profiles[0].layers for profile in profiles):
        raise ValueError(f"group {name!r} needs one profile or several of the same layers")
    return profiles


def _title(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} against {', '.join(names[1:])}"


def _called(name: str, profiles: "Sequence[Profile]") -> str:
    return name if len(profiles) == 1 else f"{name} ({len(profiles)} seeds: mean, least, largest)"


def _panel(ax: "Axes", members: "Mapping[str, Sequence[Profile]]", metric: str, *, same: bool) -> None:
    """One metric of all groups."""
    bands: list[float] = []
    for i, profiles in enumerate(members.values()):
        by_layer = _by_layer(profiles, metric)
        low, high = ([_end(end, values) for values in by_layer] for end in (min, max))
        if len(profiles) > 1:
            places, colour = _places(len(by_layer), same=same), COLOURS[i % len(COLOURS)]
            ax.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
            bands += [value for value in (*low, *high) if math.isfinite(value)]
    several = list(members.values())
    at = [_places(len(profiles[0].layers), same=same) for profiles in several]
    means = [[mean(values) for values in _by_layer(profiles, metric)] for profiles in several]
    looks = [
        MEASURED | {"color": COLOURS[i % len(COLOURS)], "marker": SIGNS[i % len(SIGNS)]}
        for i in range(len(several))
    ]
    draw_curves(ax, at, means, looks, metric, bands)


def _end(end: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    """The least or the largest; nothing where one is not finite, so that the band breaks."""
    return end(values) if all(map(math.isfinite, values)) else math.nan


def _by_layer(profiles: "Sequence[Profile]", metric: str) -> list[tuple[float, ...]]:
    """Of each layer the metric of all networks."""
    return list(zip(*(profile.columns[metric] for profile in profiles), strict=True))


def _places(layers: int, *, same: bool) -> list[float]:
    """Where layers stand: by their number, or by the part of the depth."""
    return [float(l) if same else l / max(layers - 1, 1) for l in range(layers)]


def similarity(
    alike: "pd.DataFrame", *, names: Sequence[str] = ("", ""), width: float = 4.5
) -> "Figure":
    """How alike the layers of two networks are: linear CKA as a map.

    Args:
        alike: As `pfc.cka` gives it.
        names: What the two networks are called: that of the rows, and that of the columns.
        width: Of the figure, in inches.

    Returns:
        The figure.
    """
    rows, columns = list(alike.index), list(alike.columns)
    samples = alike.attrs.get("samples")
    of = "" if samples is None else f" over {samples:,} samples"
    height = max(2.0, (width - 1.4) * len(rows) / len(columns)) + room(columns) + 0.6
    with canvas(width, height, f"Linear CKA{of}") as figure:
        ax = figure.subplots()
        image = ax.imshow(alike.to_numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
        named_ticks(ax, range(len(columns)), columns, 72 * width - 110)
        step = max(1, math.ceil(len(rows) * 10 / (72 * (height - room(columns) - 1))))
        kept = range(len(rows) - 1, -1, -step)
        ax.set_yticks([*kept], [ticks(rows)[i] for i in kept])
        ax.set_ylabel(names[0])
        ax.set_xlabel(names[1])
        figure.colorbar(image, ax=ax, shrink=0.8)
    return figure
