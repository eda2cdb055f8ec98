"""What a collapse is good for: accuracy against the depth kept, and against operations."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import MEASURED, Numbers, canvas, legend, named_ticks, room
from pfc.figures.compared import COLOURS, SIGNS
from pfc.figures.given import check_tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = ("accuracy", "change", "low", "high")  # columns
EVERY = 8  # markers on a curve at most; ours


def depth(tables: "Mapping[str, pd.DataFrame]", *, width: float = 4.5) -> "Figure":
    """Accuracy against the layer after which a network is cut, with the 95 % intervals of its change.

    Args:
        tables: Those of `Pruned.table()`, by what they are called, such as the classifier; of the same
            layers. The layer that was chosen is marked. At the last layer stands the whole network with
            that classifier; as it was given it is the dotted line.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no table, one is not of `Pruned.table()`, or they have different layers.
    """
    check_tables(tables, ("removed", *DRAWN), "a table of Pruned.table()")
    tables = {name: _by_depth(table) for name, table in tables.items()}
    layers = _layers([*tables.values()])
    with canvas(width, 2.6 + room(layers), "Accuracy against the depth that is kept") as figure:
        ax = figure.subplots()
        lines = []
        for i, table in enumerate(tables.values()):
            at, look = [*range(len(layers))], _look(i)
            whole = float(table["accuracy"].iloc[-1])
            _band(ax, at, table, whole, look["color"])
            lines += ax.plot(at, table["accuracy"], **look)
            if (kept := table.attrs.get("layer")) in layers[:-1]:
                place = layers.index(kept)
                _ring(ax, [place], [table["accuracy"].iloc[place]], look["color"])
        _whole(ax, tables)
        named_ticks(ax, range(len(layers)), layers, 72 * width - 60)
        ax.set_xlabel("last layer that is kept")
        legend(figure, lines, [*tables])
    return figure


def operations(curves: "Mapping[str, pd.DataFrame]", *, width: float = 4.5) -> "Figure":
    """Accuracy against operations, of early exits and of pruned networks in one figure.

    Args:
        curves: Tables with `share` and `accuracy`, by what they are called: those of `EarlyExit.curve`,
            `Calibration.curve` and `Pruned.table()`. The threshold or layer that was chosen is marked.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no table, or one has other columns or no rows.
    """
    check_tables(curves, ("share", *DRAWN), "a table of EarlyExit.curve() or Pruned.table()")
    with canvas(width, 2.9, "Accuracy against operations") as figure:
        ax = figure.subplots()
        lines = []
        for i, table in enumerate(curves.values()):
            rows, look = _by_depth(table).sort_values("share"), _look(i)
            whole = float((rows["accuracy"] - rows["change"]).iloc[-1])
            tried = rows[rows.index != math.inf]  # without exits nothing changes, for certain
            _band(ax, tried["share"].tolist(), tried, whole, look["color"])
            lines += ax.plot(rows["share"], rows["accuracy"], markevery=_every(len(rows)), **look)
            kept = rows[rows.index == table.attrs.get("threshold", table.attrs.get("layer"))]
            kept = kept[kept["removed"] > 0] if "removed" in kept else kept
            _ring(ax, kept["share"].tolist(), kept["accuracy"].tolist(), look["color"])
        _whole(ax, curves)
        ax.set_xlabel("operations of a sample, over those of the whole network")
        ax.set_xlim(left=0)
        legend(figure, lines, [*curves])
    return figure


def _layers(tables: "Sequence[pd.DataFrame]") -> list[str]:
    layers = [*map(str, tables[0].index)]
    if any([*map(str, table.index)] != layers for table in tables):
        raise ValueError("the tables are of different layers: draw networks of the same layers together")
    return layers


def _by_depth(table: "pd.DataFrame") -> "pd.DataFrame":
    """A row a depth, of a pruned network: of the whole one's two that with the fitted classifier."""
    return table[~table.index.duplicated()] if "removed" in table else table


def _look(i: int) -> dict[str, Any]:
    return MEASURED | {"color": COLOURS[i % len(COLOURS)], "marker": SIGNS[i % len(SIGNS)]}


def _ring(ax: "Axes", x: Numbers, y: Numbers, colour: str) -> None:
    """Mark what was chosen."""
    ax.plot(x, y, "o", ms=9, mfc="none", mec=colour)


def _every(rows: int) -> int:
    return max(1, rows // EVERY)


def _band(ax: "Axes", at: Numbers, table: "pd.DataFrame", whole: float, colour: str) -> None:
    """The interval of the change of accuracy, about the whole network's."""
    low, high = ((whole + table[end]).tolist() for end in ("low", "high"))
    ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _whole(ax: "Axes", tables: "Mapping[str, pd.DataFrame]") -> None:
    """The accuracy of the whole network."""
    for whole in {float((t["accuracy"] - t["change"]).iloc[-1]) for t in tables.values()}:
        ax.axhline(whole, color="0.5", linewidth=0.6, linestyle=":")
    ax.set_ylabel("accuracy on held-out data")
