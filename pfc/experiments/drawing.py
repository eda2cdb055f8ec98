"""Figures 1 to 5 of a reproduction: each drawn in the paper's arrangement, with its numbers as JSON."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfc import figures
from pfc.experiments.task import METRICS
from pfc.experiments.trainings import Trained
from pfc.files import write_json

if TYPE_CHECKING:
    from pfc.experiments.reproduce import Plan

FORMAT = "pfc-reproduced-1"


def by_kind(known: Sequence[Trained]) -> dict[str, dict[str, list[Trained]]]:
    """The trainings by what differs between them, then by data set; the seeds in order."""
    found: dict[str, dict[str, list[Trained]]] = {}
    for trained in known:
        found.setdefault(trained.training.kind, {}).setdefault(trained.training.set, []).append(trained)
    return found


def first_seeds(known: Sequence[Trained], kind: str) -> dict[str, Trained]:
    """Of each data set the training of the least seed that is done."""
    return {name: own[0] for name, own in by_kind(known).get(kind, {}).items()}


def kinds(plan: "Plan") -> tuple[str, ...]:
    """The kinds that are drawn."""
    return ("paper", "collapsed") if plan.scale == "small" else ("",)


def figure1(plan: "Plan", known: Sequence[Trained], out: Path) -> list[Path]:
    """Samples in the plane of the last class means, of each data set and kind."""
    written: list[Path] = []
    for kind in kinds(plan):
        for name, trained in first_seeds(known, kind).items():
            shown, path = trained.examined["plane"], out / f"figure1-{named(name, kind)}"
            title = f"{named(name, kind)}: samples in the plane of their last class means"
            how = {"title": title, "labels": shown["labels"], "classes": shown["classes"]}
            written += figures.save(figures.plane(shown["points"], **how), path)
            write_json(path.with_suffix(".json"), {"format": FORMAT, **shown})
    return written


def _rows(
    plan: "Plan",
    known: Sequence[Trained],
    path: Path,
    draw: Callable[[Mapping[str, Trained]], Any],
    numbers: Callable[[Trained], dict[str, Any]],
) -> list[Path]:
    """A figure of a row a data set, for each kind of recipe, and the numbers of all trainings."""
    written: list[Path] = []
    for kind in kinds(plan):
        if chosen := first_seeds(known, kind):
            written += figures.save(draw(chosen), path.with_name(named(path.name, kind)))
    runs = {trained.training.name: numbers(trained) for trained in known}
    write_json(path.with_suffix(".json"), {"format": FORMAT, "runs": runs})
    return written


def figure2(plan: "Plan", known: Sequence[Trained], out: Path) -> list[Path]:
    """PFC1-3 over the epochs."""

    def draw(chosen: Mapping[str, Trained]) -> Any:
        return figures.all_training({name: trained.profiles for name, trained in chosen.items()})

    return _rows(plan, known, out / "figure2", draw, _over_epochs)


def figure3(plan: "Plan", known: Sequence[Trained], out: Path) -> list[Path]:
    """PFC1-3 over the layers."""

    def draw(chosen: Mapping[str, Trained]) -> Any:
        return figures.all_layers({name: trained.last for name, trained in chosen.items()})

    return _rows(plan, known, out / "figure3", draw, _over_layers)


def named(name: str, kind: str) -> str:
    """A name of a file, or of a data set, with the kind of recipe where there are several."""
    return f"{name}-{kind}" if kind else name


def _over_epochs(trained: Trained) -> dict[str, Any]:
    """What Figure 2 shows of a training, and the accuracy."""
    profiles = trained.profiles
    return {
        "layers": list(trained.last.layers),
        "epochs": list(profiles),
        "accuracy": [profile.accuracy for profile in profiles.values()],
        **{m: [_short(p.columns[m]) for p in profiles.values()] for m in METRICS},
    }


def _over_layers(trained: Trained) -> dict[str, Any]:
    """What Figure 3 shows of a training, and the baselines."""
    segment = trained.last.segment()
    grid = [i / 100 for i in range(101)]
    line = segment.line(grid)
    own = {"trained": trained.last, "test": trained.test, "random": trained.random}
    return {
        "stage": list(segment.layers),
        "position": _short(segment.position()),
        "line": {m: _short(getattr(line, m).tolist()) for m in METRICS},
        **{name: {k: _short(v) for k, v in p.columns.items()} for name, p in own.items() if p},
    }


def _short(values: Sequence[float]) -> list[float]:
    """Numbers in six digits."""
    return [float(f"{value:.6g}") for value in values]


def figure4(plan: "Plan", known: Sequence[Trained], out: Path) -> list[Path]:
    """UFM and MUFM along the iterations, on the paper's toy data."""
    return list(plan.iterations.files)


def figure5(plan: "Plan", known: Sequence[Trained], out: Path) -> list[Path]:
    """MUFM over its coefficient, on the paper's toy data."""
    return list(plan.sweep.files)


DRAWN: Mapping[str, Callable[["Plan", Sequence[Trained], Path], list[Path]]] = {
    "fig1": figure1,
    "fig2": figure2,
    "fig3": figure3,
    "fig4": figure4,
    "fig5": figure5,
}
