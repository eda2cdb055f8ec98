"""The models' figures: UFM and MUFM on their way to the minimum, and the MUFM over its coefficient."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import LINES, canvas, chosen, column, legend, named, panels, scale

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
_EXPECTED: Any = {"color": "#3a7d44", "linewidth": 1.2, "linestyle": "--"}
_ALIGNED = {  # measures of alignment with the data; the paper's own is lost
    "cosine": r"$\langle H,X\rangle/(\|H\|_F\|X\|_F)$",
    "distance": r"$\|H/\|H\|_F - X/\|X\|_F\|_F$",
    "moved": r"$\|H-X\|_F/\|X\|_F$",
}
_FLOOR = 1e-16  # below it a value is drawn as this one: nothing of it is known in float64


def iterations(
    ways: Mapping[str, Row],
    data: Row,
    *,
    title: str = "",
    metrics: Sequence[str] | None = None,
    width: float = 9.5,
) -> "Figure":
    """Each metric along the iterations of UFM and MUFM: Figure 4 of arXiv 2405.00985.

    Args:
        ways: Such as `"MUFM, ours"` or `"UFM, descent"`: of each the lists `steps`, `pfc1`, `pfc2`,
            `pfc3` and `objective`.
        data: `pfc1`, `pfc2` and `pfc3` of the data, drawn as a dashed line.
        title: What was solved, in a line.
        metrics: Some of PFC1-3, by default all; the objective stands behind them.
        width: Of the figure, in inches; panels that do not fit side by side stand below one another.

    Returns:
        The figure. A metric below 1e-16 is drawn there.

    Raises:
        ValueError: If there is no way, or its name or a metric is unknown.
    """
    if not ways or not set(ways) <= set(_WAYS):
        raise ValueError(f"ways must be some of {', '.join(_WAYS)}, got {', '.join(ways) or 'none'}")
    shown = chosen(metrics, [LINES])
    with canvas(width, 2.9, title) as figure:
        axes, _ = panels(figure, len(shown) + 1)
        for ax, metric in zip(axes, shown, strict=False):
            ax.set_title(named(metric))
            _along(ax, ways, metric)
            ax.axhline(data[metric], label="data", **_DATA)
        axes[-1].set_title("objective\n")
        _along(axes[-1], ways, "objective")
        legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _along(ax: "Axes", ways: Mapping[str, Row], metric: str) -> None:
    """One number along the iterations of each way."""
    for name, way in ways.items():
        values = [max(v, _FLOOR) if metric in {"pfc1", "pfc2"} else v for v in way[metric]]
        ax.plot([1 + step for step in way["steps"]], values, label=name, **_WAYS[name])
    ax.set_xscale("log")
    if metric == "objective" or not column(metric).rises:
        ax.set_yscale("log")
    ax.grid(axis="y")
    ax.set_xlabel("1 + iterations")


def sweep(
    solutions: Sequence[Row],
    data: Row,
    descent: Sequence[Row] = (),
    expected: Sequence[Row] = (),
    *,
    title: str = "",
    metrics: Sequence[str] | None = None,
    width: float = 9.0,
) -> "Figure":
    """Collapse of the MUFM's minimum, and its alignment with the data, over lambda: Figure 5.

    Of arXiv 2405.00985, whose measure of alignment is lost: three are drawn. Filled points are
    proven to be minima to a relative 1e-4; open ones are the best of several starts.

    Args:
        solutions: A row for each coefficient: `lam`, `pfc1`, `pfc2`, `pfc3`, `cosine`, `distance`,
            `moved`, `certified`.
        data: `pfc1`, `pfc2` and `pfc3` of the data, drawn as a dashed line.
        descent: What plain gradient descent ended at: the same keys but the last.
        expected: The closed form for orthogonal means: rows that may lack keys, drawn as a dashed line.
        title: What was solved, in a line.
        metrics: Some of PFC1-3, by default all; the three measures of alignment stand behind them.
        width: Of the figure, in inches; panels that do not fit side by side stand below one another.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no solution, or a metric is unknown.
    """
    if not solutions:
        raise ValueError("a sweep needs the solution of at least one coefficient")
    shown = chosen(metrics, [LINES])
    with canvas(width, 2.8, title) as figure:
        axes, _ = panels(figure, len(shown) + len(_ALIGNED))
        for ax, name in zip(axes, (*shown, *_ALIGNED), strict=True):
            _over(ax, solutions, descent, expected, name)
            ax.set_xlabel(r"$\lambda$")
            ax.set_title(named(name) if name in shown else _alignment(name))
            if name in shown:
                ax.axhline(data[name], label="data", **_DATA)
        legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _alignment(measure: str) -> str:
    """What a measure of alignment is called, and its formula below."""
    told = "alignment with" if measure == "cosine" else "distance from"
    return f"{told} the data\n{_ALIGNED[measure]}"


def _over(
    ax: "Axes", solutions: Sequence[Row], descent: Sequence[Row], expected: Sequence[Row], metric: str
) -> None:
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
    for rows, told, look in (
        (descent, "gradient descent", _DESCENT),
        (expected, "orthogonal means, expected", _EXPECTED),
    ):
        if shown := [row for row in rows if row.get(metric) is not None]:
            ends = [row[metric] for row in shown]
            ax.plot([row["lam"] for row in shown], ends, label=told, **look)
            values = [*values, *ends]
    ax.set_xscale("log")
    ax.grid(axis="y")
    scale(ax, [v for v in values if math.isfinite(v)], log=metric in {"pfc1", "moved"})
