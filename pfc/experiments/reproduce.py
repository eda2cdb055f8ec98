"""The paper's table, figures and claims: what is missing is trained, then all is drawn and told."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from pfc.data import splits
from pfc.device import device_of
from pfc.experiments import claims, mufm
from pfc.experiments.drawing import DRAWN, by_kind
from pfc.experiments.page import page
from pfc.experiments.trainings import SETS, Trained, Training
from pfc.files import check_place, expanded, write_json, write_text
from pfc.nets import one_of
from pfc.schema import some
from pfc.theory.coefficients import at_least
from pfc.training import RECIPES, Recipe
from pfc.training.trainer import Diverged

Item = Literal["table1", "fig1", "fig2", "fig3", "fig4", "fig5", "claims", "all"]
Scale = Literal["small", "paper"]
DECAYS = (0.0, 5e-4, 5e-3)  # of the question whether decay straightens the path; ours
MOST = 100  # seeds; ours
TRAINED: tuple[Item, ...] = ("table1", "fig1", "fig2", "fig3", "claims")  # what needs trained networks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be reproduced, from what, and where to.

    Args:
        item: A table, a figure, the claims, or all of them.
        scale: `"small"` trains on a processor, by the recipes NAME-paper and NAME-collapsed; `"paper"`
            trains Table I's networks on all images.
        sets: Names of data sets.
        data: Folders instead of the hub's data sets, by name.
        seeds: Trainings of each recipe, with seeds from 0 on.
        out: Folder of all that is written; a second call goes on there.
        device: Where to train; the processor if `None`.
        jobs: Trainings at once, each in a process of its own.
        train: Whether to train what is missing; if not, what is done is drawn and judged.

    Raises:
        ValueError: If an argument has no meaning.
    """

    item: Item = "all"
    scale: Scale = "small"
    sets: tuple[str, ...] = tuple(SETS)
    data: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 3
    out: Path = Path("runs") / "reproduce"
    device: str | None = None
    jobs: int = 1
    train: bool = True

    def __post_init__(self) -> None:
        one_of(Item, item=self.item)
        one_of(Scale, scale=self.scale)
        at_least(1, seeds=self.seeds, jobs=self.jobs)
        if self.seeds > MOST:
            raise ValueError(f"seeds must be at most {MOST}, got {self.seeds}")
        object.__setattr__(self, "sets", tuple(dict.fromkeys(self.sets)))
        for name in (*self.sets, *self.data):
            if name not in SETS:
                raise ValueError(f"no data set {name!r}; choose from {', '.join(SETS)}")
        if not self.sets:
            raise ValueError(f"sets needs at least one of {', '.join(SETS)}")

    @property
    def items(self) -> tuple[Item, ...]:
        """All that is asked for."""
        known: tuple[Item, ...] = get_args(Item)[:-1]
        return known if self.item == "all" else (self.item,)

    @cached_property
    def trainings(self) -> list[Trained]:
        """The trainings that are needed, those of the first seed first."""
        if not set(self.items) & set(TRAINED):
            return []
        seeds = 1 if self.items == ("fig1",) else self.seeds
        found = [training for seed in range(seeds) for training in self._of_seed(seed)]
        return [Trained(training, expanded(self.out) / "runs" / training.name) for training in found]

    @cached_property
    def iterations(self) -> mufm.Iterations:
        """Figure 4, drawn and kept."""
        return mufm.iterations(mufm.Task(data=mufm.Dataset.toy(), folder=self.out))

    @cached_property
    def sweep(self) -> mufm.Sweep:
        """Figure 5, drawn and kept."""
        return mufm.sweep(mufm.Task(data=mufm.Dataset.toy(), folder=self.out), mufm.LAMS)

    def _recipe(self, name: str, **changes: Any) -> Recipe:
        """A recipe, on the folder that is given for its data set."""
        recipe = RECIPES[name]
        return replace(recipe, data=self.data.get(name.partition("-")[0], recipe.data), **changes)

    def _of_seed(self, seed: int) -> Iterator[Training]:
        """The trainings of a seed; the baselines and the wide network have the first one alone."""
        if self.scale == "paper":
            yield from (Training(recipe=self._recipe(name), seed=seed) for name in self.sets)
            return
        papers = {name: self._recipe(f"{name}-paper") for name in self.sets}
        yield from (Training(recipe=recipe, seed=seed) for recipe in papers.values())
        if self.items == ("fig1",):
            return
        for name in self.sets:
            yield Training(recipe=self._recipe(f"{name}-collapsed"), seed=seed)
        if "claims" not in self.items:
            return
        if seed == 0:
            yield from (Training(recipe=r, seed=seed, shuffled=True) for r in papers.values())
        if "mnist" in self.sets:
            if seed == 0:
                yield Training(recipe=self._recipe("mnist-wide"), seed=seed)
            for decay in DECAYS:
                yield Training(recipe=self._recipe("mnist-paper", weight_decay=decay), seed=seed)

    def check(self) -> None:
        """Refuse, before hours are spent, what can't be done.

        Raises:
            ValueError: If data are missing, the device is, or the folder holds something else.
        """
        device_of(self.device, nn.Identity())
        out = expanded(self.out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"{self.out} is no folder: choose another place (--out)")
        self._check_data(out)
        for trained in self.trainings:
            trained.check()
        if self.train:
            for trained in {each.training.set: each for each in reversed(self.trainings)}.values():
                trained.check_data()
        elif self.trainings and not any(trained.done for trained in self.trainings):
            raise ValueError(f"nothing is trained in {self.out} yet: leave out --no-train (train=False)")

    def _check_data(self, out: Path) -> None:
        for name, folder in self.data.items():
            if "train" not in (known := splits(folder)):
                raise ValueError(f"{name}={folder} has no split 'train'; it has {some(known) or 'none'}")
            if out.absolute().is_relative_to(expanded(folder).absolute()):
                raise ValueError(f"--out {self.out} lies among the data in {folder}: choose another")

    def costs(self) -> Iterator[tuple[Trained, float]]:
        """Time what is due, trainings by recipes of one size once.

        Yields:
            Each training, and the seconds that it is likely to take on this machine.
        """
        known: dict[Any, float] = {}
        for trained in self.trainings:
            if not (trained.done or trained.lost):
                r = trained.training.recipe
                size = (trained.training.set, r.width, r.limit, r.epochs, r.batch_size)
                if size not in known:
                    known[size] = trained.training.seconds(self.device)
                yield trained, known[size]


def reproduce(plan: Plan, *, progress: bool = True) -> list[Path]:
    """Train what is missing, draw what is asked for, and write it all on a page.

    Everything lies in the plan's folder: `runs/` holds the trainings, which may be stopped at any moment
    and go on at the next call; the figures, their numbers as JSON, `claims.json` and `README.md` stand
    beside it.

    Args:
        plan: What, from what, and where to.
        progress: Show bars and what is done.

    Returns:
        What was written.

    Raises:
        ValueError: If data are missing, or the folder holds something else.
    """
    plan.check()
    out = expanded(plan.out)
    check_place(out / "README.md")
    if {"fig5", "claims"} & {*plan.items}:
        plan.sweep  # noqa: B018  # refused before hours of training, if its file is another's
    if plan.train:
        run_all(plan, progress=progress)
    known = [trained for trained in plan.trainings if trained.done]
    written: list[Path] = []
    for item in plan.items:
        written += DRAWN[item](plan, known, out) if item in DRAWN else []
    if "claims" in plan.items:
        written.append(out / "claims.json")
        answers = [asdict(each) for each in _answers(plan, known)]
        write_json(written[-1], {"format": claims.FORMAT, "answers": answers})
    write_text(out / "README.md", _page(plan, out))
    return [*written, out / "README.md"]


def _page(plan: Plan, out: Path) -> str:
    """The page of all that is in the folder, by whatever call it was made."""
    read = {trained.folder: trained for trained in plan.trainings}
    trainings = [read.get(each.folder, each) for each in replace(plan, item="all").trainings]
    kept = out / "claims.json"
    return page(
        plan,
        [trained for trained in trainings if trained.done],
        claims.read(kept) if kept.exists() else [],
        sorted(out.glob("figure*.png")),
        {trained.training.name: trained.lost for trained in trainings if trained.lost},
    )


def run_all(plan: Plan, *, progress: bool = True) -> None:
    """Run the trainings that are due; one that diverges keeps its words, and the others go on."""
    due = [trained for trained in plan.trainings if not (trained.done or trained.lost)]
    if plan.jobs == 1:
        _follow(
            (_result(trained, plan.device, progress) for trained in due), len(due), progress=progress
        )
        return
    others = set(active_children())
    context = get_context("spawn")
    with ProcessPoolExecutor(plan.jobs, mp_context=context, initializer=_alone) as pool:
        futures = [pool.submit(_result, trained, plan.device, False) for trained in due]
        try:
            _follow((each.result() for each in as_completed(futures)), len(due), progress=progress)
        except BaseException:
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _alone() -> None:
    """A process beside others takes one thread, and leaves interrupts to the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _result(trained: Trained, device: str | None, progress: bool) -> Trained:
    try:
        trained.run(device, progress=progress)
    except Diverged as error:
        trained.lose(str(error))
    return trained


def _follow(results: Iterator[Trained], due: int, *, progress: bool) -> None:
    for number, trained in enumerate(results, start=1):
        if progress:
            told = trained.lost or "done"
            print(f"{number} of {due}: {trained.training.name} {told}", file=sys.stderr, flush=True)


def _answers(plan: Plan, known: Sequence[Trained]) -> Iterator[claims.Answer]:
    """All that the claims come to."""
    for kind, runs in by_kind(known).items():
        for name, own in runs.items() if "decay" not in kind else ():
            yield from claims.ask(kind or "Table I", name, [network(trained) for trained in own])
    if straight := _by_decay(known):
        yield from claims.decay(straight)
    sweep = plan.sweep
    yield from claims.figure4(plan.iterations.ends, "toy data")
    yield from claims.figure5(sweep.solutions, sweep.data, sweep.descent, "toy data")


def network(trained: Trained) -> claims.Network:
    """What the claims need of a training."""
    return claims.Network(trained.last, trained.test, trained.random, trained.gap)


def _by_decay(known: Sequence[Trained]) -> dict[float, list[claims.Network]]:
    """The networks of the question about decay, of the seeds that all decays have."""
    found: dict[float, dict[int, Trained]] = {}
    for trained in known:
        if trained.training.kind.startswith("paper-decay"):
            own = found.setdefault(trained.training.recipe.weight_decay, {})
            own[trained.training.seed] = trained
    seeds = set.intersection(*(set(own) for own in found.values())) if found else set()
    return {d: [network(own[seed]) for seed in sorted(seeds)] for d, own in found.items() if seeds}


def estimate(plan: Plan) -> Iterator[str]:
    """What a plan would train, a line each, with its likely hours on this machine.

    Args:
        plan: What is to be reproduced.

    Yields:
        Lines of text, the last with the sum; trainings alone, measuring is some percent more.
    """
    plan.check()
    total, hours = 0.0, partial("{:.2f} h".format)
    for trained, seconds in plan.costs():
        total += seconds / plan.jobs / 3600
        epochs = trained.training.recipe.epochs
        yield f"{trained.training.name}: {epochs} epochs, {hours(seconds / 3600)}"
    done = sum(trained.done for trained in plan.trainings)
    yield f"{done} of {len(plan.trainings)} trainings are done; the others take about {hours(total)}"
