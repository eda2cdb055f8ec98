"""The page of what was reproduced: differences from the paper, claims, Table I, figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pfc.experiments import judges
from pfc.experiments.claims import CLAIMS, OTHERS, Answer
from pfc.experiments.task import METRICS
from pfc.experiments.trainings import SETS, Trained
from pfc.profile import Profile

if TYPE_CHECKING:
    from pfc.experiments.reproduce import Plan

SIGNS = {"confirmed": "yes", "refuted": "**no**", "undecided": "?"}
FEW = 100  # images of a class below which its mean is noisy; ours


def page(
    plan: "Plan",
    known: Sequence[Trained],
    answers: Sequence[Answer],
    pictures: Sequence[Path],
    lost: Mapping[str, str],
) -> str:
    """The page, in Markdown.

    Args:
        plan: What was asked for.
        known: The trainings that are done.
        answers: What was found of each claim.
        pictures: Figures, in the folder of the page.
        lost: What is told of trainings that diverged, by name.

    Returns:
        Its text.
    """
    known = sorted(known, key=lambda each: (each.training.set, each.training.kind, each.training.seed))
    of = "" if len(plan.sets) == len(SETS) else f", on {' and '.join(plan.sets)}"
    parts = [f"# Progressive feedforward collapse: what the paper claims, and what was found{of}", ""]
    parts += [_differences(plan, known)]
    if lost:
        parts += ["**Trainings that diverged:**", "", *(f"- {n}: {e}" for n, e in lost.items()), ""]
    if answers:
        parts += ["## Claims", "", *tables(answers), ""]
    if known:
        parts += ["## Table I: the networks, and the last layer after training", "", *_table(known), ""]
        parts += ["## Layer by layer", "", *_layers(known), ""]
    parts += [line for path in pictures for line in (f"![{path.stem}]({path.name})", "")]
    return "\n".join(parts)


DIFFERENCES = """\
What differs from the paper stands first. Its learning rates, batch sizes and numbers of channels are not
in the text that we have; where each of ours comes from stands in a run's `config.json`, under `sources`.

- Layers are those of the last stage, all of one shape, with maps flattened, as the paper has it.
- A claim is confirmed if it holds on all seeds, refuted if it fails on all, and else undecided.
"""
SMALL = """\
- Scale: few images, and networks narrower than `--scale paper`, as the table of the networks says.
- Recipes `paper` keep to cross-entropy, `collapsed` ones end nearest to a frame; both were searched for.
"""
CELLS = """\
Each cell says whether the claim holds, on how many seeds, and its number with a 95 % interval over them.
Claims marked + are ours.
"""
LAYERS = """\
From the first to the last layer of the last stage; `random` is the network before training, its blocks
with random weights.
"""


def _differences(plan: "Plan", known: Sequence[Trained]) -> str:
    """What differs from the paper."""
    told = DIFFERENCES + SMALL * (plan.scale == "small" and len(known) > 0)
    few = {t.training.set for t in known if t.last.about["samples"] < FEW * t.last.about["classes"]}
    if few:
        told += (
            f"- Fewer than {FEW} images a class ({', '.join(sorted(few))}): PFC1 is too small there,\n"
        )
        told += "  and PFC3 too large, most in early layers.\n"
    return told


def tables(answers: Sequence[Answer]) -> Iterator[str]:
    """What was found of the claims: a table a kind of network, a row a claim, a column a data set.

    Args:
        answers: What was found.

    Yields:
        Lines in Markdown.
    """
    yield CELLS.rstrip()
    kinds = dict.fromkeys(each.kind for each in answers if _of_network(each))
    for kind in kinds:
        yield from ("", f"### Networks: {kind}", "")
        yield from _of_kind([each for each in answers if each.kind == kind])
    if others := [each for each in answers if not _of_network(each)]:
        yield from ("", "### Weight decay, and the models of Figures 4 and 5", "")
        yield "| claim | of | where | found | its number |"
        yield "| --- | --- | --- | --- | --- |"
        for each in others:
            name, _, metric = each.claim.partition(": ")
            words, number = OTHERS[name]
            told = f"{words}, {metric}" if metric else words
            yield f"| {told} | {each.kind} | {each.where} | {cell(each)} | {number} |"


def _of_kind(answers: Sequence[Answer]) -> Iterator[str]:
    """The table of a kind of network."""
    places = list(dict.fromkeys(each.where for each in answers))
    cells = {(each.claim, each.where): cell(each) for each in answers}
    heads = [place.replace("|", r"\|") for place in places]
    yield f"| claim | its number | {' | '.join(heads)} |"
    yield "| --- " * (len(places) + 2) + "|"
    for claim in CLAIMS:
        row = [cells.get((claim.name, place), "") for place in places]
        if any(row):
            yield f"| {claim.words}{' +' * claim.ours} | {claim.number} | {' | '.join(row)} |"


def _of_network(found: Answer) -> bool:
    return found.claim in {claim.name for claim in CLAIMS}


def cell(found: Answer) -> str:
    """An answer in a cell of a table."""
    sign = SIGNS[found.verdict]
    seeds = f" {found.held}/{found.of}" if found.of > 1 else ""
    if math.isnan(found.value):
        return f"{sign}{seeds}"
    half = "" if math.isnan(found.low) else f" ± {(found.high - found.low) / 2:.2g}"
    return f"{sign}{seeds}, {found.value:.3g}{half}"


def _table(known: Sequence[Trained]) -> Iterator[str]:
    """Table I with what came of it."""
    heads = ["run", "net", "blocks", "width", "images", "loss", "rate", "decay", "accuracy", "on test"]
    heads += ["effective depth", "PFC1", "PFC2", "PFC3", "straightness", "cost / least"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for trained in known:
        r, last, test = trained.training.recipe, trained.last, trained.test
        cells = [trained.training.name, r.net, "+".join(map(str, r.blocks)), str(r.width)]
        cells += [f"{last.about['samples']:,}", r.loss, f"{r.learning_rate:g}", f"{r.weight_decay:g}"]
        cells += [_accuracy(last), _accuracy(test), _depth(last)]
        cells += [_told(last.columns[m][-1], ".4g") for m in METRICS]
        cells += [_told(last.segment().path().straightness, ".3f")]
        excess = judges.transported(judges.Network(last, gap=trained.gap)).value
        yield f"| {' | '.join([*cells, _told(1 + excess, '.8g')])} |"


def _told(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _accuracy(profile: Profile | None) -> str:
    return "-" if profile is None or profile.accuracy is None else f"{profile.accuracy:.4f}"


def _depth(profile: Profile) -> str:
    found = profile.effective_depth()
    return f"{'none' if found is None else found + 1} of {len(profile.layers)}"


def _layers(known: Sequence[Trained]) -> Iterator[str]:
    """First and last layer of the last stage, trained, on test images, and before training."""
    yield LAYERS.rstrip()
    yield ""
    yield (
        "| run | "
        + " | ".join(f"{m.upper()}{of}" for m in METRICS for of in ("", " test", " random"))
        + " |"
    )
    yield "| --- " * (1 + 3 * len(METRICS)) + "|"
    for trained in known:
        stage = trained.last.segment().layers
        cells = [
            "-"
            if p is None
            else " to ".join(
                _told(p.columns[m][p.layers.index(l)], ".3g") for l in (stage[0], stage[-1])
            )
            for m in METRICS
            for p in (trained.last, trained.test, trained.random)
        ]
        yield f"| {trained.training.name} | {' | '.join(cells)} |"
