"""The words of a page: what was found of a run, what theory says of it, and how it was made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from itertools import chain
from shlex import quote
from typing import Any

from pfc.profile import Profile
from pfc.profile.columns import PFC
from pfc.profile.prediction import ENDS_IN_WORDS, Prediction
from pfc.report.sources import Source
from pfc.training import RECIPES, Recipe

TURNS = ("pfc1_turns", "pfc2_turns")


def verdict(source: Source) -> list[str]:
    """The sentences that stand on top: whether collapse holds, and from where on it is decided."""
    try:
        told = source.last.verdict().splitlines()
    except ValueError as error:
        told = [f"There is no verdict: {error}."]
    return told


def tiles(source: Source) -> Iterator[tuple[str, str]]:
    """Names and numbers: each of PFC1-3 from the first layer to the last, effective depth, accuracy."""
    last = source.last
    for metric in PFC:
        if metric in last.columns:
            first, end = (_number(last.columns[metric][l]) for l in (0, -1))
            yield metric.upper(), first if len(last.layers) == 1 else f"{first} → {end}"
    if "pfc3" in last.columns:
        depth = last.effective_depth()
        told = "none" if depth is None else f"{depth + 1} of {len(last.layers)}"
        yield "effective depth (1 %)", told
    if last.accuracy is not None:
        yield "accuracy", _number(last.accuracy)
    for split, test in source.tests.items():
        if test.accuracy is not None:
            yield f"accuracy, {split}", _number(test.accuracy)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def predictions(source: Source) -> list[Prediction]:
    """What theory says of each segment, the last one with its transport."""
    last, end = source.last, len(source.last.segments) - 1
    return [
        last.prediction(i, source.transport if i == end else None) for i in range(len(last.segments))
    ]


def certificates(prediction: Prediction) -> str:
    """The certificates as a table, a row for each end of the line."""
    heads = ["end of the line", "align", "PFC1 falls", "PFC1 turns", "PFC2 falls from", "PFC2 turns"]
    rows = []
    for end, row in prediction.table().iterrows():
        turns = {name: ", ".join(f"{t:.3g}" for t in row[name]) or "-" for name in TURNS}
        cells = [_number(row["align"]), "yes" if row["pfc1_falls"] else "no", turns["pfc1_turns"]]
        cells += [_number(row["pfc2_from"]), turns["pfc2_turns"]]
        head = f'<th scope="row">{ENDS_IN_WORDS[str(end)]}</th>'
        rows.append(f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    told = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f"<table><thead><tr>{told}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def command(config: Mapping[str, Any]) -> str | None:
    """The command that makes a run again; `None` where none can, as of a recipe of one's own."""
    kept, data = config.get("recipe") or {}, config.get("data") or {}
    known = RECIPES.get(kept.get("name", ""))
    if known is None or (kept.get("limit") is None and known.limit is not None):
        return None
    words = ["pfc", "train", known.name, *chain.from_iterable(_changes(known, kept))]
    if (spec := data.get("spec", known.data)) != known.data:
        words += ["--data", spec]
    if (split := data.get("split", "train")) != "train":
        words += ["--split", split]
    if (label := data.get("label_column")) not in {None, "label"}:
        words += ["--label", label]
    words += ["--seed", str(config.get("seed", 0))]
    if (precision := config.get("precision", "float32")) != "float32":
        words += ["--precision", precision]
    if config.get("measure_every") is not None:
        words += ["--measure-every", str(config["measure_every"])]
    return " ".join(map(quote, words + ["--compile"] * bool(config.get("compiled"))))


def _changes(known: Recipe, kept: Mapping[str, Any]) -> Iterator[list[str]]:
    """Options for what a run has otherwise than its recipe."""
    for field in fields(Recipe):
        own = getattr(known, field.name)
        value = kept.get(field.name, own)
        if "help" not in field.metadata or _same(value, own):
            continue
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            yield [option if value else option.replace("--", "--no-", 1)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield [word for part in value for word in (option, str(part))]
        else:
            yield [option, str(value)]


def _same(value: Any, own: Any) -> bool:
    return bool(tuple(value) == own if isinstance(own, tuple) else value == own)


def facts(source: Source) -> Iterator[tuple[str, str]]:
    """How a run or a profile was made, by name."""
    config, about = source.config, source.last.about
    data, recipe = config.get("data") or {}, config.get("recipe") or {}
    again = command(config)
    yield ("made by", _otherwise(source)) if again is None else ("command", again)
    yield "data", _data(data, about)
    if "fingerprint" in data:
        yield "fingerprint of the data", data["fingerprint"]
    yield "network", about["model"]
    if recipe:
        told = (
            f"{name.replace('_', ' ')} {_plain(value)}"
            for name, value in recipe.items()
            if name not in {"data", "name"}
        )
        yield "recipe", f"{recipe['name']}: {', '.join(told)}"
    if source.seed is not None:
        yield "seed", str(source.seed)
    yield "measured", _measured(source.last)
    machine = [str(config[n]) for n in ("device", "machine", "precision") if config.get(n) is not None]
    if machine:
        yield "device", ", ".join(machine)
    versions = config.get("versions", {"torch": about["torch"]} if "torch" in about else {})
    if versions:
        yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())


def _otherwise(source: Source) -> str:
    if source.run is None:
        return "measuring; a saved profile keeps no command"
    if "recorded" in source.config:
        return "pfc.Recorder, in a training that it knows nothing of"
    return "pfc.train with the recipe below, which no option of `pfc train` makes"


def _data(data: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    if not data:
        return f"{about.get('data') or 'not named'}: {about['samples']} samples"
    limit = "" if data.get("limit") is None else f", limited to {data['limit']}"
    return f"{data['spec']}, split {data['split']}{limit}: {about['samples']} samples"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measured(profile: Profile) -> str:
    about = profile.about
    means = about.get("means")
    told = "their own class means" if means is None else f"the class means of {means}"
    passes = "" if about.get("passes", 2) == 2 else ", one pass"
    return (
        f"{len(profile.layers)} layers ({about['chosen']}), weighting by {about['weighting']}, "
        f"about {told}{passes}"
    )


def listed(sentences: Sequence[str], kind: str) -> str:
    """Sentences as a list of HTML."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(each)}</li>" for each in sentences)}</ul>'


def defined(pairs: Sequence[tuple[str, str]], kind: str) -> str:
    """Names and values as HTML."""
    told = (
        f'<div class="{name.split()[0]}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
        for name, value in pairs
    )
    return f'<dl class="{kind}">{"".join(told)}</dl>'
