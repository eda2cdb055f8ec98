"""The models' figures: UFM and MUFM on their way to the minimum, and the MUFM over its coefficient."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import canvas, drawn, named, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_WAYS: dict[str, dict[str, Any]] = {  # model and method
    "MUFM, ours": {"color": "#2b2f77", "linewidth": 1.4},
    "MUFM, descent": {"color": "#2b2f77", "linewidth": 1.1, "linestyle": ":"},
    "UFM, ours": {"color": "#3a7d44", "linewidth": 1.4},
    "UFM, descent": {"color": "#3a7d44", "linewidth": 1.1, "linestyle": ":"},
}
_DATA: Any = {"color": "0.45", "linestyle": "--", "linewidth": 1.0}
_OURS: Any = {"color": "#2b2f77", "linewidth": 1.2}
_DESCENT: Any = {"color": "#d1495b", "linewidth": 1.0, "linestyle": ":", "marker": "x", "markersize": 4}
_ALIGNED = {  # measures of alignment with the data; the paper's own is lost
    "cosine": r"$\langle H,X\rangle/(\|H\|_F\|X\|_F)$",
    "distance": r"$\|H/\|H\|_F - X/\|X\|_F\|_F$",
    "moved": r"$\|H-X\|_F/\|X\|_F$",
}
_FLOOR = 1e-16  # below it a value is drawn as this one: nothing of it is known in float64


def iterations(ways: Mapping[str, Row], data: Row, *, title: str = "") -> "Figure":
    """Each metric along the iterations of UFM and MUFM: Figure 4 of arXiv 2405.00985.

    Args:
        ways: Such as `"MUFM, ours"` or `"UFM, descent"`: of each the lists `steps`, `pfc1`, `pfc2`,
            `pfc3` and `objective`.
        data: `pfc1`, `pfc2` and `pfc3` of the data, drawn as a dashed line.
        title: What was solved, in a line.

    Returns:
        A figure 9.5 inches wide. A metric below 1e-16 is drawn there.

    Raises:
        ValueError: If there is no way, or its name is unknown.
    """
    if not ways or not set(ways) <= set(_WAYS):
        raise ValueError(f"ways must be some of {', '.join(_WAYS)}, got {', '.join(ways) or 'none'}")
    with canvas(9.5, 3.1, title) as figure:
        axes = figure.subplots(1, 4)
        for ax, metric in zip(axes, drawn(), strict=False):
            ax.set_title(named(metric))
            _along(ax, ways, metric)
            ax.axhline(data[metric], label="data", **_DATA)
        axes[3].set_title("objective\n")
        _along(axes[3], ways, "objective")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _along(ax: "Axes", ways: Mapping[str, Row], metric: str) -> None:
    """One number along the iterations of each way."""
    for name, way in ways.items():
        values = [max(v, _FLOOR) if metric in {"pfc1", "pfc2"} else v for v in way[metric]]
        ax.plot([1 + step for step in way["steps"]], values, label=name, **_WAYS[name])
    ax.set_xscale("log")
    if metric != "pfc3":
        ax.set_yscale("log")
    ax.grid(axis="y")
    ax.set_xlabel("1 + iterations")


def sweep(
    solutions: Sequence[Row], data: Row, descent: Sequence[Row] = (), *, title: str = ""
) -> "Figure":
    """Collapse of the MUFM's minimum, and its alignment with the data, over lambda: Figure 5.

    Of arXiv 2405.00985, whose measure of alignment is lost: three are drawn. Filled points are
    proven to be minima to a relative 1e-4; open ones are the best of several starts.

    Args:
        solutions: A row for each coefficient: `lam`, `pfc1`, `pfc2`, `pfc3`, `cosine`, `distance`,
            `moved`, `certified`.
        data: `pfc1`, `pfc2` and `pfc3` of the data, drawn as a dashed line.
        descent: What plain gradient descent ended at: the same keys but the last.
        title: What was solved, in a line.

    Returns:
        A figure 9 inches wide.

    Raises:
        ValueError: If there is no solution.
    """
    if not solutions:
        raise ValueError("a sweep needs the solution of at least one coefficient")
    with canvas(9.0, 5.0, title) as figure:
        grid = figure.subplots(2, 3, sharex=True)
        for ax, metric in zip(grid[0], drawn(), strict=True):
            _over(ax, solutions, descent, metric)
            ax.axhline(data[metric], label="data", **_DATA)
            ax.set_title(named(metric))
        for ax, (measure, formula) in zip(grid[1], _ALIGNED.items(), strict=True):
            _over(ax, solutions, descent, measure)
            told = "alignment with" if measure == "cosine" else "distance from"
            ax.set_title(f"{told} the data\n{formula}")
            ax.set_xlabel(r"$\lambda$")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _over(ax: "Axes", solutions: Sequence[Row], descent: Sequence[Row], metric: str) -> None:
    """One number over the coefficients, proven points filled."""
    lams, values = ([row[key] for row in solutions] for key in ("lam", metric))
    ax.plot(lams, values, **_OURS)
    for certified, face, told in (
        (True, _OURS["color"], "proven to 1e-4"),
        (False, "white", "best found"),
    ):
        some = [i for i, row in enumerate(solutions) if row["certified"] is certified]
        look: Any = {"color": _OURS["color"], "markerfacecolor": face, "markersize": 5}
        if some:
            ax.plot([lams[i] for i in some], [values[i] for i in some], "o", label=told, **look)
    shown = [row for row in descent if row.get(metric) is not None]
    if shown:
        ends = [row[metric] for row in shown]
        ax.plot([row["lam"] for row in shown], ends, label="gradient descent", **_DESCENT)
        values = [*values, *ends]
    ax.set_xscale("log")
    ax.grid(axis="y")
    scale(ax, [v for v in values if math.isfinite(v)], log=metric in {"pfc1", "moved"})
