"""`pfc reproduce`: the paper's table, figures and claims."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pfc.experiments import reproduce as experiment
from pfc.experiments.reproduce import Item, Scale
from pfc.experiments.trainings import SETS
from pfc.training.same_data import resolved


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is reproduced, from what, and where.

    Args:
        scale: small trains for minutes to an hour a network on one core; paper trains Table I's own
            networks on all images, for a GPU.
        sets: Some of mnist, fashion_mnist, cifar10, stl10, cifar100.
        data: Folders instead of the hub's data sets, each as NAME=FOLDER.
        seeds: Trainings of each recipe.
        out: Folder of all that is written. What is there already is not done again.
        device: Such as cpu or cuda.
        jobs: Trainings at once, each in a process and on a thread of its own.
        train: Train what is missing, or draw and judge what is done.
    """

    scale: Scale = "small"
    sets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative_iterable="")] = (*SETS,)
    data: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative_iterable="")] = ()
    seeds: int = 3
    out: Path = Path("runs") / "reproduce"
    device: str | None = None
    jobs: int = 1
    train: bool = True

    def plan(self, item: Item) -> experiment.Plan:
        """The plan."""
        named = ("scale", "sets", "seeds", "out", "device", "jobs", "train")
        how = {name: getattr(self, name) for name in named}
        return experiment.Plan(item=item, data=dict(map(_folder, self.data)), **how)


USUAL = Asked()


def reproduce(
    item: Item = "all",
    /,
    *,
    asked: Asked = USUAL,
    show: Annotated[bool, Parameter(name="--list", negative="")] = False,
) -> None:
    """Reproduce the paper's table, figures or claims: train what is missing, draw, and write a page.

    Args:
        item: One of table1, fig1, fig2, fig3, fig4, fig5, claims, all.
        asked: What it is made from, and where.
        show: Only say what would be trained, and about how long it would take on this machine.
    """
    plan = asked.plan(item)
    if show:
        print(*experiment.estimate(plan), sep="\n")
        return
    print(*experiment.reproduce(plan), sep="\n")


def _folder(given: str) -> tuple[str, str]:
    name, equals, folder = given.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"--data takes NAME=FOLDER, such as mnist=data/mnist, got {given!r}")
    return name, resolved(folder)
