"""What all figures share: style, axes, scales, names of layers, and files."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pfc.line import End
    from pfc.profile import Profile, Segment
    from pfc.profile.columns import Column

Numbers = Sequence[int | float]

ENDS = {"measured": "the last features", "means": "their class means", "etf": "the nearest ETF"}
LINES = ("pfc1", "pfc2", "pfc3")  # what the straight line predicts
STYLE: Any = {
    **{"font.size": 8.5, "axes.titlesize": 8.5, "figure.titlesize": 10, "figure.titleweight": "bold"},
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"axes.titlelocation": "left", "legend.frameon": False, "axes.axisbelow": True},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "ytick.minor.width": 0.4},
    **{"grid.color": "0.88", "grid.linewidth": 0.6, "figure.constrained_layout.w_pad": 0.06},
    **{"svg.fonttype": "none", "svg.hashsalt": "pfc"},  # words stay words, and names the same
    "pdf.fonttype": 42,  # TrueType: what journals take
}
FORMATS: dict[str, Any] = {
    "png": {"dpi": 200},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
USUAL = ("png", "svg")
MEASURED: Any = {"color": "#2b2f77", "linewidth": 0.8, "marker": "o", "markersize": 4}
LETTER = 5.0  # points that a letter of a tick's label takes
LONG = 6  # letters above which names of layers stand upright
LONGEST = 24  # letters above which a name is abbreviated
PANEL = 2.2  # inches that a panel beside others is wide at least
NARROWEST = 2.0  # inches of a figure below which no letter fits
WIDE = 1e6  # ratio above which a logarithmic axis would show nothing but its smallest value; ours
SAME = 1e-3  # relative difference below which values are drawn as the same; ours


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own settings and ours, whatever the user's are; those are back afterwards."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # all but the backend
        matplotlib.rcParams.update(STYLE)
        yield


def _matplotlib() -> Any:
    """The library, also where MPLBACKEND names a backend that is not installed: none is needed here."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as matplotlib does it, which would fail there
    return matplotlib


@contextmanager
def canvas(width: float, height: float, title: str) -> Iterator["Figure"]:
    """A figure with a title, which notebooks show; the style holds while the block draws."""
    if not width >= NARROWEST:
        raise ValueError(f"width must be at least {NARROWEST} inches, got {width}")
    with style():
        from matplotlib.figure import Figure

        lines = [line for each in title.split("\n") for line in wrapped(each, width, 6.7)]
        figure = Figure(figsize=(width, height + 0.17 * max(0, len(lines) - 1)), layout="constrained")
        figure.suptitle("\n".join(lines))
        figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
        yield figure


def _png(figure: "Figure") -> bytes:
    """What a notebook shows where a figure is the last line of a cell."""
    written = BytesIO()
    with style():
        figure.savefig(written, format="png", dpi=144)
    return written.getvalue()


def save(figure: "Figure", path: str | Path) -> tuple[Path, ...]:
    """Write a figure as PNG, SVG or PDF; the same figure gives the same bytes.

    The layout is settled once, before the first writing: it would move by rounding each time.

    Args:
        figure: Any matplotlib figure.
        path: Where; the folder is made. A path that ends in .png, .svg or .pdf is that one file; without
            such an ending a PNG and an SVG file are written, with their endings added.

    Returns:
        The paths of the files.

    Raises:
        ValueError: If the path ends in another format of images.
    """
    from pfc.files import expanded, replace_file

    path = expanded(path)
    kind = path.suffix.lower()[1:]
    if kind not in FORMATS and kind in figure.canvas.get_supported_filetypes():
        raise ValueError(f"figures are written as .png, .svg or .pdf, got {path}")
    named = {kind: path} if kind in FORMATS else {k: path.with_name(f"{path.name}.{k}") for k in USUAL}
    with style():
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # and not "none", by which each writing would draw twice
        for kind, file in named.items():
            replace_file(file, partial(figure.savefig, format=kind, **FORMATS[kind]))
    return (*named.values(),)


def wrapped(text: str, width: float, letter: float) -> list[str]:
    """Lines of a text that fit a figure so many inches wide, a letter so many points."""
    return wrap(text, int(72 * width / letter), break_on_hyphens=False) or [""]


def panels(figure: "Figure", n: int) -> "tuple[list[Axes], float]":
    """So many panels in rows, by which the figure grows, and how many points wide each is."""
    rows = ceil(n / min(n, max(1, int(figure.get_figwidth() / PANEL))))
    columns = ceil(n / rows)
    figure.set_figheight(figure.get_figheight() * (1 + 0.8 * (rows - 1)))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in grid[n:]:
        ax.remove()
    return grid[:n], 72 * figure.get_figwidth() / columns - 45


def legend(figure: "Figure", lines: Sequence[Any], names: Sequence[str], title: str = "") -> None:
    """One legend below all panels; the figure grows with its rows."""
    fit = max(1, int(67 * figure.get_figwidth() / (38 + LETTER * max(map(len, names)))))
    rows = ceil(len(names) / fit) - 1 + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.17 * rows)
    how: dict[str, Any] = {"ncols": min(len(names), fit), "borderaxespad": 0, "title": title or None}
    figure.legend(lines, names, loc="outside lower center", **how)


def scale(ax: "Axes", values: Numbers, *, log: bool) -> None:
    """A logarithmic axis, where asked for, if values are positive and span more than a decade."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    if not values:
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color="0.4")
        ax.set_yticks([])
    elif log and min(values) > 0 and 10 * min(values) < max(values) < WIDE * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        if max(values) < 100 * min(values):
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            ax.yaxis.set_minor_formatter("{x:g}")
    else:
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if max(values) - min(values) <= SAME * abs(max(values)):
            room = 0.05 * abs(max(values)) or 0.05
            ax.set_ylim(min(values) - room, max(values) + room)


def apart(places: Numbers, names: Sequence[str], points: float) -> list[int]:
    """Which names can stand on an axis of so many points: the last, the first, what fits between."""
    unit = points / ((max(places) - min(places)) or 1)
    kept: list[int] = []
    for i in (len(places) - 1, *range(len(places) - 1)):
        rooms = ((j, 1 + (len(names[i]) + len(names[j])) / 2) for j in kept)
        if all(abs(places[i] - places[j]) * unit >= LETTER * room for j, room in rooms):
            kept.append(i)
    return sorted(kept)


def named_ticks(ax: "Axes", places: Numbers, names: Sequence[str], points: float) -> None:
    """Names along the lower edge, as many as fit on so many points, upright where they are long."""
    names = ticks(names)
    long = max(map(len, names)) > LONG
    kept = apart(places, ["--" if long else name for name in names], points)
    ax.set_xticks([places[i] for i in kept], [names[i] for i in kept], rotation=90 if long else 0)


def ticks(names: Sequence[str]) -> list[str]:
    """Names of layers; of very long ones the last parts after an ellipsis, where these differ."""
    ends = [_end(name) for name in names]
    return ends if len(set(ends)) == len(ends) else list(names)


def room(names: Sequence[str]) -> float:
    """Inches that names along an edge take of the figure's height beyond a line."""
    letters = max(map(len, ticks(names)))
    return letters * LETTER / 72 if letters > LONG else 0.0


def _end(name: str) -> str:
    """A name, or as many of its last parts as are short enough, at least one."""
    end = name
    while len(end) > LONGEST and "." in end:
        end = end.partition(".")[2]
    return name if end == name else f"\N{HORIZONTAL ELLIPSIS}{end}"


def chosen(metrics: Sequence[str] | None, measured: Sequence[Iterable[str]]) -> list[str]:
    """The metrics to draw: those asked for, else PFC1-3 as far as all of these have them."""
    from pfc.profile.columns import COLUMNS, PFC

    known = [metric for metric in COLUMNS if all(metric in each for each in measured)]
    if metrics is None:
        return [metric for metric in PFC if metric in known]
    asked = [metrics] if isinstance(metrics, str) else list(metrics)
    if not asked or set(asked) - set(known):
        had = ", ".join(asked) or "none"
        raise ValueError(f"metrics must be some of {', '.join(known)}, which are known; got {had}")
    return asked


def column(metric: str) -> "Column":
    """A metric's row of the table of metrics."""
    from pfc.profile.columns import COLUMNS

    return COLUMNS[metric]


def named(metric: str) -> str:
    """Name and direction of collapse, and below it what the metric is."""
    known = column(metric)
    arrow = "\N{UPWARDS ARROW}" if known.rises else "\N{DOWNWARDS ARROW}"
    toward = "" if known.collapsed is None else f" (more collapsed {arrow})"
    return f"{metric.upper()}{toward}\n{known.title or fill(known.words, 32)}"


def headline(profile: "Profile", when: str = "") -> str:
    """The network, the data and the accuracy in a line."""
    about = profile.about
    data = f" on {about['data']}" if about.get("data") else ""
    accuracy = "" if profile.accuracy is None else f", accuracy {profile.accuracy:.4f}{when}"
    means = f"\nabout the class means of {about['means']}" if about.get("means") else ""
    found = f"{about['model']}{data}: {about['samples']} samples, {about['classes']} classes"
    return f"{found}{accuracy}{means}"


def on_grid(segment: "Segment", end: "End", metric: str) -> tuple[Numbers, Numbers]:
    """Points of the straight line's curve, with both sides of every breakpoint of PFC3."""
    import torch

    t = torch.linspace(0, 1, 201, dtype=torch.float64, device="cpu")
    if metric == "pfc3" and end in segment.curves:
        jumps = segment.curves[end].breakpoints.clamp(0, 1)
        t = torch.cat([t, jumps, (jumps - 1e-9).clamp(min=0)]).sort().values
    return t.tolist(), getattr(segment.line(t, end), metric).tolist()
