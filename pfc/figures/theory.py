"""What theory says, drawn: the path of the residual stream, the certificates on the straight line."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pfc.figures.axes import (
    ENDS,
    LINES,
    MEASURED,
    canvas,
    chosen,
    headline,
    legend,
    named,
    named_ticks,
    on_grid,
    panels,
    room,
    scale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile, Segment
    from pfc.theory.path import Path
    from pfc.theory.transport import Gap

_ENDS: dict["End", dict[str, Any]] = {  # how the line to each end looks
    "measured": {"color": "#2b2f77", "linewidth": 1.4},
    "means": {"color": "#d1495b", "linewidth": 1.4, "linestyle": "--"},
    "etf": {"color": "#3a7d44", "linewidth": 1.4, "linestyle": "-."},
}
_BAND: Any = {"color": MEASURED["color"], "alpha": 0.18, "linewidth": 0}
_DOTTED: Any = {"color": "0.35", "linestyle": ":", "linewidth": 1.2}
_LEVELS = (0.05, 0.5, 0.95)  # of the samples


def path(profile: "Profile", *, segment: int = -1, width: float = 7.0) -> "Figure":
    """The path of the residual stream: energy of each block, turning angles, straightness over samples.

    Args:
        profile: What was measured.
        segment: Which segment, the last by default.
        width: Of the figure, in inches; panels that do not fit side by side stand below one another.

    Returns:
        The figure; a panel of which nothing is known says so.

    Raises:
        ValueError: If there is no such segment.
    """
    found = profile.segment(segment)
    walked, names = found.path(), found.layers
    with canvas(width, 2.9 + room(names[1:]), headline(profile)) as figure:
        (energy, angles, straight), points = panels(figure, 3)
        _energies(energy, walked, names, points)
        _angles(angles, walked, names, points)
        _straightness(straight, walked)
        shown = [*energy.get_legend_handles_labels()[0], *angles.get_legend_handles_labels()[0]]
        if angles.get_legend_handles_labels()[1]:
            legend(figure, shown, [str(each.get_label()) for each in shown])
    return figure


def certificates(
    profile: "Profile",
    *,
    segment: int = -1,
    transport: "Gap | None" = None,
    metrics: Sequence[str] | None = None,
    width: float = 7.0,
) -> "Figure":
    """Each metric along the straight line to its three ends, with the turning points of both theorems.

    Dots stand where a metric turns, decided by roots. Shaded is where Theorem 2 holds for PFC2, from t0
    on, on the line to the end that is a simplex equiangular tight frame.

    Args:
        profile: What was measured.
        segment: Which segment, the last by default.
        transport: What `pfc.theory.transport.gap` found of it, drawn as a further panel.
        metrics: Some of PFC1-3, all of which the line predicts.
        width: Of the figure, in inches; panels that do not fit side by side stand below one another.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no such segment, or the line does not predict a metric.
    """
    found = profile.segment(segment)
    shown = chosen(metrics, [LINES, profile.columns])
    title = f"{headline(profile)}\n{found.layers[0]} to {found.layers[-1]}"
    with canvas(width, 2.9, title) as figure:
        axes, _ = panels(figure, len(shown) + (transport is not None))
        for ax, metric in zip(axes, shown, strict=False):
            _on_line(ax, found, metric)
        lines = [line for line in axes[0].lines if line.get_label() in ENDS.values()]
        legend(figure, lines, [f"line to {line.get_label()}" for line in lines])
        if transport is not None:
            _transport(axes[-1], transport)
    return figure


def _on_line(ax: "Axes", segment: "Segment", metric: str) -> None:
    """One metric on the lines to the three ends."""
    known: list[float] = []
    for end, look in _ENDS.items():
        t, values = on_grid(segment, end, metric)
        if not any(map(math.isfinite, values)):
            continue
        ax.plot(t, values, label=ENDS[end], **look)
        known += values
        certificate = segment.certify(end)
        turns = {"pfc1": certificate.theorem1.turns, "pfc2": certificate.theorem2.turns}.get(metric, ())
        at = getattr(segment.line(list(turns) or [0.0], end), metric).tolist()[: len(turns)]
        ax.plot(turns, at, "o", color=look["color"], markersize=5)
    t0 = segment.certify("etf").theorem2.t0
    if metric == "pfc2" and math.isfinite(t0):
        ax.axvspan(t0, 1, color=_ENDS["etf"]["color"], alpha=0.08, linewidth=0)
    scale(ax, [value for value in known if math.isfinite(value)], log=False)
    ax.grid(axis="y")
    ax.set_xlim(0, 1)
    ax.set_title(named(metric))
    ax.set_xlabel("t on the straight line")


def _energies(ax: "Axes", walked: "Path", names: Sequence[str], points: float) -> None:
    """Each block's part of the energy; equal at constant speed."""
    ax.set_title("energy of each block\n")
    if not walked.length > 0:
        return _nothing(ax)
    ax.set_title(f"energy of each block\nspeed x direction: {walked.speed:.2f} x {walked.direction:.2f}")
    L = len(walked.steps)
    part = (np.array(walked.steps) / max(walked.steps)) ** 2  # energies may leave float64
    ax.bar(range(L), 100 * part / part.sum(), color=MEASURED["color"])
    ax.axhline(100 / L, **_DOTTED, label="constant speed")
    _blocks(ax, names[1:], points)
    ax.set_ylabel("% of the energy")
    return None


def _angles(ax: "Axes", walked: "Path", names: Sequence[str], points: float) -> None:
    """Turning angle at each inner layer, of the whole and over samples."""
    ax.set_title("turning angle\nat each inner layer")
    if not any(map(math.isfinite, walked.angles)):
        return _nothing(ax, "nothing turns: two layers" if walked.length > 0 else "nothing moves")
    n = len(walked.angles)
    low, middle, high = (
        np.degrees([walked.over_samples(f"angles.{i}", q) for i in range(n)]) for q in _LEVELS
    )
    if np.isfinite(middle).any():  # earlier versions kept none
        ax.fill_between(range(n), low, high, **_BAND, label="5 to 95 % of samples")
        how: Any = {"color": MEASURED["color"], "linewidth": 0.8, "linestyle": "--"}
        ax.plot(range(n), middle, **how, label="median")
    ax.plot(range(n), np.degrees(walked.angles), **MEASURED, label="whole data set")
    ax.set_ylim(0, None)
    ax.grid(axis="y")
    _blocks(ax, names[1:-1], points)
    ax.set_ylabel("degrees")
    return None


def _straightness(ax: "Axes", walked: "Path") -> None:
    """How the samples' straightness is distributed."""
    ax.set_title("straightness\nsamples, and the whole")
    levels = [i / 100 for i in range(101)]
    over = [walked.over_samples("straightness", q) for q in levels]
    if not math.isfinite(walked.straightness):
        return _nothing(ax)
    if all(map(math.isfinite, over)):
        ax.step(over, levels, where="post", color=MEASURED["color"], linewidth=1.2)
    ax.axvline(walked.straightness, color=MEASURED["color"], linewidth=1)
    known = [x for x in (*over, walked.straightness, 0.95) if math.isfinite(x)]
    ax.set_xlim(min(known) - 0.02, 1.0)
    ax.set_ylim(0, 1)
    ax.grid()
    ax.set_xlabel(f"straightness (upright: {walked.straightness:.3f})")
    ax.set_ylabel("fraction of samples below")
    return None


def _blocks(ax: "Axes", names: Sequence[str], points: float) -> None:
    """Names of blocks along the lower edge."""
    named_ticks(ax, range(len(names)), names, points)
    ax.set_xlabel("block")


def _nothing(ax: "Axes", why: str = "nothing moves") -> None:
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", color="0.4")
    ax.set_xticks([])
    ax.set_yticks([])


def _transport(ax: "Axes", found: "Gap") -> None:
    """What of the map's cost is needed, exactly or at least."""
    bars: list[tuple[str, float]] = []
    if found.exact is not None:
        some = f"{found.exact.samples:,}\nof {found.samples:,}" if found.exact.sampled else "all samples"
        bars.append((f"optimal,\n{some}", _part(found.exact.w2, found.exact.cost)))
    if found.gelbrich is not None:
        bars.append(("at least, by\ncovariances", _part(found.gelbrich.bound, found.cost)))
    if found.atoms is not None:
        bars.append(("to the class\nmeans", _part(found.atoms.bound, found.atoms.cost)))
    ax.set_title("optimal transport\n% of what the map costs")
    bars = [(name, part) for name, part in bars if math.isfinite(part)]
    if not bars:
        _nothing(ax)
        return
    ax.bar(range(len(bars)), [part for _, part in bars], color=MEASURED["color"], width=0.6)
    for i, (_, part) in enumerate(bars):
        ax.text(i, part - 2, f"{part:.1f}", ha="center", va="top", color="white")
    ax.set_xticks(range(len(bars)), [name for name, _ in bars])
    ax.tick_params(axis="x", labelsize=7, length=0)
    ax.set_ylim(0, 105)
    ax.axhline(100, **_DOTTED)


def _part(least: float, cost: float) -> float:
    return 100 * least / cost if cost > 0 else math.nan
