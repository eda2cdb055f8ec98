"""What `pfc prune`, `pfc exits` and `pfc scores` found of a run, as figures with their sentences."""

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from pfc import figures
from pfc.acting.gauges import KINDS
from pfc.acting.heldout import Change
from pfc.acting.kept import Kept, Name, kept
from pfc.acting.unknown import BASELINES
from pfc.report.pictures import picture
from pfc.report.sources import Source
from pfc.schema import restored

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAMES: tuple[Name, ...] = ("prune", "exits", "scores")
TITLES = {"prune": "fewer blocks", "exits": "early exits", "scores": "scores of held-out data"}
CURVES: tuple[Name, ...] = ("prune", "exits")  # what accuracy is drawn of against operations
POINTS = "Each point is a cut."
HOW = (
    "Chosen on one half of the held-out data, and told of the other. Bands are 95 % intervals, the "
    "dotted line is the whole network, and a ring is what was chosen."
)
DPI = 130  # sharp at the width of a column; ours


def acting(source: Source, *, unfolded: bool) -> str:
    """The figures and what they say, as HTML; empty where nothing was found, or of a single profile."""
    if source.run is None:
        return ""
    files = {name: kept(source.run.folder, name, source.last) for name in NAMES}
    found = {name: file for name, file in files.items() if file is not None}
    if not found:
        return ""
    title = ", ".join(TITLES[name] for name in found)
    how = "" if [*found] == ["scores"] else f'<p class="note">{HOW}</p>'
    return (
        f'<details class="acting"{" open" * unfolded}><summary>{title[0].upper()}{title[1:]}</summary>'
        f"{how}<div>{''.join(_parts(found, source.name))}</div></details>"
    )


def _parts(found: dict[Name, Kept], name: str) -> Iterator[str]:
    """Each figure with the sentences under it."""
    cuts, exits, scores = (found.get(each) for each in NAMES)
    if cuts is not None:
        cuts.table.attrs["layer"] = cuts.told["layer"]
        drawn = figures.depth({f"classifier {cuts.told['head']!r}": cuts.table})
        words = f"Accuracy of {name} against the last layer that is kept: {_ends(cuts, 'accuracy')}"
        yield _part(words, drawn, _of_cuts(cuts))
    if exits is not None:
        exits.table.attrs["threshold"] = _threshold(exits)
    if curves := {TITLES[each]: found[each].table for each in CURVES if each in found}:
        words = "; ".join(f"{each} {_span(table)}" for each, table in curves.items())
        told = POINTS if exits is None else _of_exits(exits)
        drawn = figures.operations(curves)
        yield _part(f"Accuracy of {name} against operations: {words}", drawn, told)
    if scores is not None and "auroc" not in scores.table:
        yield f"<p>{escape(_of_known(scores))}</p>"
    elif scores is not None:
        words = f"AUROC of the scores of {name}, layer by layer: {_ends(scores, 'auroc')}"
        drawn = figures.familiarity({scores.told["kind"]: scores.table}, width=4.5)
        yield _part(words, drawn, _of_unknown(scores))


def _part(words: str, figure: "Figure", told: str) -> str:
    """A figure, its text alternative, and what it says."""
    return f"<section>{picture(figure, words, DPI)}<p>{escape(told)}</p></section>"


def _ends(found: Kept, column: str) -> str:
    """A number of the first layer and of the last."""
    layers = [name for name in found.table.index if name not in BASELINES]
    values = found.table[column].tolist()
    return f"{values[0]:.3f} at {layers[0]}, {values[len(layers) - 1]:.3f} at {layers[-1]}"


def _span(table: "pd.DataFrame") -> str:
    """Accuracy where a curve has its fewest operations, and where it has its most."""
    ends = table.sort_values("share").iloc[[0, -1]]
    each = zip(ends["accuracy"], ends["share"], strict=True)
    return ", ".join(f"{accuracy:.3f} at {share:.0%} of them" for accuracy, share in each)


def _threshold(exits: Kept) -> float:
    """Above which samples exit; infinite where none do."""
    threshold = exits.told["threshold"]
    return math.inf if threshold is None else float(threshold)


def _change(found: Kept) -> str:
    """How the accuracy changes, on which data, and what was tolerated."""
    told, change = found.told, restored(Change, found.told["change"])
    return f"On {told['about']['data']}: {change}; {float(told['eps']):g} was the most to be lost."


def _of_cuts(cuts: Kept) -> str:
    """What was cut, and what that costs and saves."""
    told, (before, after) = cuts.told, cuts.told["operations"]
    if not told["removed"]:
        return f"No layer can go: no cut is sure enough. {_change(cuts)}"
    return (
        f"Cut after {told['layer']}: {len(told['removed'])} layers can go, and "
        f"{after / max(before, 1):.1%} of the operations remain. {_change(cuts)}"
    )


def _of_exits(exits: Kept) -> str:
    """What exits early, and what that costs and saves."""
    threshold, told = _threshold(exits), exits.told
    if math.isinf(threshold):
        return f"No sample exits early: no threshold is sure enough. {_change(exits)}"
    early = sum(map(float, told["exits"].values()))
    return (
        f"With threshold {threshold:.4g}, {early:.1%} of the samples exit early, and "
        f"{float(told['share']):.1%} of the operations remain. {_change(exits)}"
    )


def _of_known(scores: Kept) -> str:
    """What is typical of the first layer and of the last."""
    told = scores.told
    return (
        f"Scores: the median {KINDS[told['kind']].words} is {_ends(scores, 'median')}, of "
        f"{told['samples']} samples of {told['data']}."
    )


def _of_unknown(scores: Kept) -> str:
    """How well the layers and the logits tell known from unknown data."""
    told, table = scores.told, scores.table
    logits = [f"{name} {table['auroc'][name]:.3f}" for name in BASELINES if name in table.index]
    beside = f"; of the logits: {', '.join(logits)}" if logits else ""
    return (
        f"Known are {told['samples']} samples of {told['data']}, unknown {told['unknown_samples']} of "
        f"{told['unknown']}, scored by the {KINDS[told['kind']].words}. "
        f"AUROC, with 95 % intervals, is {_ends(scores, 'auroc')}{beside}; 0.5 is chance."
    )
