"""Scores and probes over the layers of a network, and the samples that are decided last."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pfc.figures.axes import LETTER, MEASURED, canvas, headline, legend, named_ticks, room
from pfc.figures.compared import COLOURS, SIGNS
from pfc.figures.given import check_frame, check_profile, pictures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike
    from torch import Tensor

    from pfc.profile import Profile

STYLES = ("--", ":", "-.")  # of the baselines, which are lines across
MOST = 60  # images of a sheet; ours
ROW = 12  # images in a row; ours


def familiarity(areas: "pd.DataFrame | Mapping[str, pd.DataFrame]", *, width: float = 7.0) -> "Figure":
    """How well each layer tells known data from unknown: AUROC over the layers, with intervals.

    Scores of the logits, such as the largest softmax, are lines across: what the layers have to beat.

    Args:
        areas: `auroc` of a `pfc.Scores`, or several by what they are called, of the same layers; an
            interval without ends is not drawn.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is none, one has other columns, or they are not of the same layers.
    """
    each = dict(areas) if isinstance(areas, Mapping) else {"scores": areas}
    for name, frame in each.items():
        check_frame(frame, ("auroc", "low", "high"), repr(name), "`auroc` of scores(..., unknown=)")
    layers, known = _same_rows(each)
    first, places = next(iter(each.values())), range(len(layers))
    with canvas(width, 3.2 + room(layers), "How well known data are told from unknown") as figure:
        ax = figure.subplots()
        lines = [_line(ax, i, frame.loc[layers]) for i, frame in enumerate(each.values())]
        for name, style in zip(known, STYLES, strict=False):
            value = float(first["auroc"][name])
            lines.append(ax.axhline(value, color="0.35", linestyle=style, linewidth=1))
        ax.set_ylabel("AUROC, known against unknown")
        named_ticks(ax, places, layers, 72 * width - 90)
        ax.grid(axis="y")
        legend(figure, lines, [*each, *known])
    return figure


def _same_rows(each: "Mapping[str, pd.DataFrame]") -> tuple[list[str], list[str]]:
    """The layers that all are of, and the baselines beside them."""
    from pfc.acting.unknown import BASELINES

    rows = [[name for name in frame.index if name not in BASELINES] for frame in each.values()]
    if not rows or not rows[0] or any(names != rows[0] for names in rows):
        raise ValueError("need the AUROC of one kind of score or several, of the same layers")
    return rows[0], [name for name in BASELINES if name in next(iter(each.values())).index]


def _line(ax: "Axes", i: int, frame: "pd.DataFrame") -> Any:
    """One kind of score."""
    places, colour = range(len(frame)), COLOURS[i % len(COLOURS)]
    look = MEASURED | {"color": colour, "marker": SIGNS[i % len(SIGNS)]}
    (line,) = ax.plot(places, frame["auroc"], **look)
    ax.fill_between(places, frame["low"], frame["high"], color=colour, alpha=0.2, linewidth=0)
    return line


def tunnel(profile: "Profile", test: "Profile | None" = None, *, width: float = 7.0) -> "Figure":
    """Accuracy of a linear probe and of the nearest class mean over the layers.

    Where a network has a tunnel (Masarczyk et al., arXiv 2305.19753), the probe's accuracy stops rising
    long before the last layer, while the nearest means still gain, or do not.

    Args:
        profile: Measured with `probe=`.
        test: What the held-out data are about the same class means, for their nearest-mean accuracy.
        width: Of the figure, in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If the profile has no probe or no PFC3, or the test profile lacks a layer of it or
            PFC3.
    """
    check_profile(profile, "profile")
    if not {"probe", "pfc3"} <= profile.columns.keys():
        raise ValueError("the tunnel needs a profile measured with probe= and passes=2")
    curves = {
        "linear probe, held out": list(profile.columns["probe"]),
        "nearest class mean, measured data": list(profile.columns["pfc3"]),
    }
    if test is not None:
        check_profile(test, "test")
        if "pfc3" not in test.columns:
            raise ValueError("the test profile has no PFC3: measure it with passes=2")
        if missing := [layer for layer in profile.layers if layer not in test.layers]:
            raise ValueError(f"the test profile has no layer {missing[0]!r}")
        rows = [test.layers.index(layer) for layer in profile.layers]
        curves["nearest class mean, held out"] = [test.columns["pfc3"][l] for l in rows]
    with canvas(width, 3.0 + room(profile.layers), headline(profile)) as figure:
        ax = figure.subplots()
        for i, values in enumerate(curves.values()):
            look = MEASURED | {"color": COLOURS[i], "marker": SIGNS[i]}
            ax.plot(range(len(values)), values, **look)
        ax.set_ylabel("fraction of samples answered rightly")
        named_ticks(ax, range(len(profile.layers)), profile.layers, 72 * width - 90)
        ax.grid(axis="y")
        legend(figure, ax.lines, [*curves])
    return figure


def contact_sheet(
    images: "Tensor | ArrayLike",
    hardest: "pd.DataFrame",
    *,
    layers: Sequence[str],
    classes: Sequence[str] | None = None,
    width: float = 7.0,
) -> "Figure":
    """The images that a network decides last, each with its class and where it was nearest before.

    Args:
        images: All images of the data, as an array of any library, N x C x H x W or N x H x W, of one
            channel or three: whole numbers from 0 to 255, or fractions.
        hardest: What `pfc.Scores.hardest` gives.
        layers: Names of the layers, of which a depth is an index.
        classes: Names of the classes; their numbers if `None`.
        width: Of the figure, in inches.

    Returns:
        The figure: over each image its class, the one that it was last nearest to in its stead, and its
        depth.

    Raises:
        ValueError: If there is none or more than 60, one has no image or no name of its class, or images
            are of another shape.
    """
    images = pictures(images)
    _check_hardest(hardest, classes)
    if not hardest.index.isin(range(len(images))).all():
        raise ValueError(f"there are {len(images)} images, and none of number {max(hardest.index)}")
    texts = [_told(row, classes) for _, row in hardest.iterrows()]
    ends = (float(images.min()), float(images.max()))
    letters = max(len(line) for text in texts for line in text.split("\n"))
    columns = max(1, min(ROW, len(texts), int(72 * width / (LETTER * (letters + 1)))))
    rows = math.ceil(len(texts) / columns)
    title = f"The samples that are decided last, of {len(layers)} layers"
    with canvas(width, 0.3 + rows * (width / columns + 0.45), title) as figure:
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, number, text in zip(grid, hardest.index, texts, strict=False):
            _image(ax, images[int(number)], ends)
            ax.set_title(text, fontsize=8)
        for ax in grid:
            ax.axis("off")
    return figure


def _check_hardest(hardest: "pd.DataFrame", classes: Sequence[str] | None) -> None:
    """Refuse samples that are none, too many, or of classes without a name."""
    if hasattr(hardest, "__len__") and not 1 <= len(hardest) <= MOST:
        raise ValueError(f"a sheet has 1 to {MOST} images, got {len(hardest)}")
    columns = ("label", "nearest", "depth")
    check_frame(hardest, columns, "hardest", "what Scores.hardest gives")
    largest = int(hardest[["label", "nearest"]].to_numpy().max())
    if classes is not None and largest >= len(classes):
        raise ValueError(f"there are names of {len(classes)} classes, and none of class {largest}")


def _told(row: "pd.Series", classes: Sequence[str] | None) -> str:
    """The class of a sample, the one that it was nearest to in its stead, and its depth."""
    own, other = (str(k) if classes is None else classes[k] for k in (row["label"], row["nearest"]))
    instead = f"\nnot {other}" if row["depth"] else "\n"
    return f"{own}{instead}\ndepth {row['depth']}"


def _image(ax: "Axes", image: "Tensor", ends: tuple[float, float]) -> None:
    """One image, channels last; grey where it has one, from black to white as all are."""
    image = image.movedim(0, -1) if image.ndim == 3 else image
    grey = image.ndim == 2 or image.shape[-1] == 1
    low, high = ends
    how: Any = {"cmap": "gray", "vmin": low, "vmax": high} if grey else {}
    ax.imshow(image.numpy().squeeze(), interpolation="nearest", **how)
