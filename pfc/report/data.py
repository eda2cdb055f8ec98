"""The numbers of a page: what of a run is kept, how finely, and at how many epochs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pfc.profile import Profile
from pfc.profile.classes import ClassGeometry
from pfc.profile.columns import COLUMNS, PFC
from pfc.report.planes import packed, plane
from pfc.report.sources import Source

DIGITS = 5  # significant digits of a number on the page; ours, as all of these
EPOCHS = 30  # of a run, at most
NUMBERS = 3200  # in the columns and lines of a run: many layers have fewer epochs
FEWEST = 6  # epochs that even the deepest network has
MATRICES = 5  # epochs of a run whose matrices are on the page
CELLS = 10_000  # in these matrices: of many classes those of the last epoch alone
MANY = 20  # classes of which that is so in any case
PLANES = 3  # epochs of a run of which there are maps
SAMPLES = 4000  # points on these maps, over all layers


def of_source(source: Source) -> dict[str, Any]:
    """All that the page draws of a run or a profile."""
    last = source.last
    profiles = {e: p for e, p in sorted(source.profiles.items()) if p.layers == last.layers}
    most = NUMBERS // (len(last.layers) * len(last.columns) + 3 * steps(last) * len(last.segments))
    kept = {e: profiles[e] for e in spread([*profiles], min(EPOCHS, max(FEWEST, most)))}
    return {
        "name": source.name,
        "layers": last.layers,
        "shapes": last.shapes,
        "segments": [[segment.start, len(segment.layers)] for segment in last.segments],
        "about": last.about,
        "classes": class_names(source),
        "epochs": [_epoch(e, profile, last) for e, profile in kept.items()],
        "matrices": _matrices(kept),
        "planes": _planes(kept),
        "tests": [_test(split, test, last) for split, test in source.tests.items()],
    }


def columns(sources: Iterable[Source]) -> dict[str, Any]:
    """What each column is, as far as a chart has to know."""
    names = dict.fromkeys(name for source in sources for name in source.last.columns)
    return {name: _column(name) for name in names}


def _column(name: str) -> dict[str, Any]:
    if (column := COLUMNS.get(name)) is None:
        return {"title": "", "words": "", "highest": None, "collapsed": None, "rises": False}
    told = {"title": column.title, "words": column.words, "collapsed": column.collapsed}
    return {**told, "highest": column.highest, "rises": column.rises}


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly, with the first and the last of them; the last of one."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def steps(profile: Profile) -> int:
    """Points at which a segment's straight line is drawn: fewer of many segments."""
    return max(9, min(21, 33 // max(1, len(profile.segments))))


def short(value: float) -> float:
    """A number in few digits."""
    return float(f"{value:.{DIGITS}g}")


def class_names(source: Source) -> list[str]:
    """Of the classes that have samples: the data's own names of them, or their numbers."""
    last = source.last
    known = next(iter(last.geometry.values()), None)
    numbers = range(last.about["classes"]) if known is None else known.number.tolist()
    told = (source.config.get("data") or {}).get("names") or last.about.get("labels")
    within = told is not None and max(numbers, default=0) < len(told)
    return [str(told[k]) if told is not None and within else str(k) for k in numbers]


def _epoch(epoch: int, profile: Profile, last: Profile) -> dict[str, Any]:
    """One epoch: its columns, the straight line of each segment, and what else was so measured."""
    own = {k: v for k, v in profile.about.items() if last.about.get(k, math.nan) != v}
    told = {"epoch": epoch, "columns": _shortened(profile.columns), "lines": _lines(profile)}
    return {**told, "about": own} if own else told


def _shortened(named: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [short(value) for value in values] for name, values in named.items()}


def _lines(profile: Profile) -> list[dict[str, list[float]]]:
    """What the straight line predicts at equal steps of t, from 0 to 1, segment by segment."""
    t = torch.linspace(0, 1, steps(profile), dtype=torch.float64, device="cpu")
    lines = [segment.line(t) for segment in profile.segments]
    return [_shortened({m: getattr(line, m).tolist() for m in PFC}) for line in lines]


def _test(split: str, test: Profile, last: Profile) -> dict[str, Any]:
    """What test data are about the means of the training data, layer by layer of these."""
    place = {layer: l for l, layer in enumerate(test.layers)}
    rows = [place.get(layer) for layer in last.layers]
    return {
        "split": split,
        "samples": test.about["samples"],
        "means": test.about.get("means"),
        "accuracy": test.accuracy,
        "columns": {
            name: [math.nan if l is None else short(values[l]) for l in rows]
            for name, values in test.columns.items()
        },
    }


def _matrices(profiles: Mapping[int, Profile]) -> list[dict[str, Any]]:
    """Cosines of the class means and confusion of the nearest means, where they were kept."""
    has = [e for e, p in profiles.items() if any(g.gram is not None for g in p.geometry.values())]
    if not has:
        return []
    classes = max(len(g.number) for g in profiles[has[-1]].geometry.values())
    cells = len(profiles[has[-1]].layers) * classes**2
    most = 1 if classes > MANY else max(1, min(MATRICES, CELLS // cells))
    return [
        {
            "epoch": e,
            "gram": _each(profiles[e], lambda g: None if g.gram is None else _cosines(g.gram)),
            "confusion": _each(profiles[e], _confusion),
        }
        for e in spread(has, most)
    ]


def _each(profile: Profile, of: Callable[[ClassGeometry], Any]) -> list[Any]:
    """Something of the classes at each layer; nothing where nothing is known of them."""
    known = [profile.geometry.get(layer) for layer in profile.layers]
    return [None if geometry is None else of(geometry) for geometry in known]


def _cosines(gram: Tensor) -> str:
    """Above the diagonal, row by row, in 16 bits, of many classes in 8; undefined is the least."""
    bits = 8 if len(gram) > MANY else 16
    one = 2 ** (bits - 1) - 1
    norm = gram.double().diagonal().clamp(min=0).sqrt()
    cosine = (gram.double() / norm / norm[:, None]).clamp(-1, 1)
    above = torch.ones_like(cosine, device="cpu").triu(1).bool()
    whole = (cosine[above] * one).round().nan_to_num(nan=-one - 1)
    return packed(whole.numpy().astype(f"<i{bits // 8}"))


def _confusion(geometry: ClassGeometry) -> list[int] | None:
    """Samples, row by row; a negative number is so many zeros."""
    if geometry.confusion is None:
        return None
    found: list[int] = []
    for value, group in groupby(geometry.confusion.long().flatten().tolist()):
        found += [-len(same)] if len(same := list(group)) > 1 and value == 0 else same
    return found


def _planes(profiles: Mapping[int, Profile]) -> list[dict[str, Any]]:
    """Maps of the class means and of some samples, each layer turned towards the one before."""
    has = [e for e, profile in profiles.items() if profile.sample is not None]
    epochs = spread(has, PLANES)
    most = SAMPLES // max(1, len(epochs) * len(next(iter(profiles.values())).layers))
    return [{"epoch": e, **plane(profiles[e], max(40, most))} for e in epochs]
