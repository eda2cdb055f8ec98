"""`pfc run` and `pfc train`: a recipe, a folder, and what came out."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, TypedDict

import torch
from cyclopts import Parameter

from pfc import data as sets
from pfc import figures as draw
from pfc.commands.measuring import print_beside
from pfc.commands.theory import ALL_THEORY, Theory, of_model, predicted
from pfc.files import expanded
from pfc.measuring import measure
from pfc.processes import launched
from pfc.profile import Profile
from pfc.report import write as write_report
from pfc.training import RECIPES, Recipe, Run, measured_epochs
from pfc.training import train as train_epochs
from pfc.training.same_data import resolved
from pfc.training.speed import PrecisionChoice


def _of_recipe(**names: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's fields as options, some of them by other names."""
    return {
        f.name: Annotated[
            f.type, Parameter(help=f.metadata["help"], negative_iterable="", name=names.get(f.name))
        ]
        for f in fields(Recipe)
        if "help" in f.metadata
    }


# Exactly the recipe's fields, each of them optional. In `run` --transport is an option of theory.
COST = "--transport-cost"
Changes = TypedDict("Changes", _of_recipe(transport=("--transport", COST)), total=False)  # type: ignore[misc]
RunChanges = TypedDict("RunChanges", _of_recipe(transport=(COST,)), total=False)  # type: ignore[misc]
NOTHING: Any = {}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is made, besides its recipe.

    Args:
        out: Folder of the run; runs/RECIPE if not given.
        data: Instead of the recipe's data: digits, a hub name, a folder of parquet files or of images.
        split: Of the data: train, or fit of the digits, whose held-out part is the test set then.
        label: The column with the labels, where the data have several, such as coarse_label.
        seed: Of the first weights, the order of the samples and the subset.
        device: Such as cpu or cuda.
        precision: Of the forward passes; auto takes bfloat16 where the machine multiplies it by itself.
        threads: Processor threads; chosen by the size of the network if not given.
        compile: Compile the network for training by torch.compile.
        measure_every: Measure each so many epochs, not at about ten in geometric steps.
    """

    out: Path | None = None
    data: str | None = None
    split: str = "train"
    label: str | None = None
    seed: int = 0
    device: str | None = None
    precision: PrecisionChoice = "float32"
    threads: int | None = None
    compile: bool = False
    measure_every: int | None = None


USUAL = Options()


def run(
    recipe: str = "digits",
    /,
    *,
    options: Options = USUAL,
    theory: Theory = ALL_THEORY,
    changes: Annotated[RunChanges, Parameter(name="*", group="Instead of the recipe's own")] = NOTHING,
) -> None:
    """Train until collapse, measure every layer, draw figures and a page, and say what was found.

    Args:
        recipe: digits, or one of the paper's: mnist, fashion_mnist, cifar10, stl10, cifar100; each of
            these also as NAME-paper and NAME-collapsed, at a size for a processor, and mnist-wide.
        options: How the run is made.
        theory: What theory says.
        changes: Instead of the recipe's own.
    """
    folder = _train(recipe, options, changes, resume=True)
    if folder is None:
        return
    kept = Run(folder)
    profile = kept.profiles[max(kept.profiles)]
    net, images = kept.network(), kept.data()
    print(profile)
    gap = of_model(profile, net, images, options.device)
    if (prediction := predicted(profile, theory, kept.theory_file, gap)) is not None:
        print(prediction)
    if (apart := sets.held_out(images.spec, images.split)) is not None:
        held_out = kept.data(apart).batches()
        test = measure(net, held_out, means=profile, device=options.device)
        test.save(folder / "profiles" / f"{apart}.json")
        print_beside(profile, test, (images.split, apart))
    print(profile.verdict(), flush=True)  # before the figures, which may fail
    print(*draw.of_run(kept, theory=theory.theory), sep="\n")
    print(write_report(folder))


def train(
    recipe: str,
    /,
    *,
    resume: bool = False,
    options: Options = USUAL,
    changes: Annotated[Changes, Parameter(name="*", group="Instead of the recipe's own")] = NOTHING,
) -> None:
    """Train a network by a recipe of the paper's Table I; keep history, profiles and weights.

    Args:
        recipe: digits, or one of the paper's: mnist, fashion_mnist, cifar10, stl10, cifar100; each of
            these also as NAME-paper and NAME-collapsed, at a size for a processor, and mnist-wide.
        resume: Continue the run in its folder.
        options: How the run is made.
        changes: Instead of the recipe's own.
    """
    folder = _train(recipe, options, changes, resume=resume)
    if folder is not None:
        name = quote(str(folder))
        print(f"{folder}: pfc measure {name}, pfc figures {name}, pfc report {name}")


def _train(name: str, options: Options, changes: Mapping[str, Any], *, resume: bool) -> Path | None:
    """The run's folder; `None` in all but the first of several processes, which is to go on alone."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; choose from {', '.join(RECIPES)}")
    changed: dict[str, Any] = {**changes, **({"data": options.data} if options.data is not None else {})}
    changed |= {"data": resolved(changed["data"])} if "data" in changed else {}
    recipe = replace(RECIPES[name], **changed)
    folder = expanded(options.out or Path("runs") / name)
    named = ("seed", "precision", "threads", "compile", "measure_every")
    how = {"folder": folder, "resume": resume, **{name: getattr(options, name) for name in named}}
    measured_epochs(recipe.epochs, options.measure_every)  # refused before the data are loaded
    chosen = (options.split, recipe.limit, options.seed)
    images = sets.load(recipe.data, *chosen, label_column=options.label)
    if images.origin and folder.absolute().is_relative_to(images.origin.path):
        raise ValueError(f"--out {folder} lies among the data in {images.origin.path}: choose another")
    with launched(options.device) as (ranks, device):
        if ranks.is_main:
            print(f"{images}\n{folder}: {recipe.epochs} epochs", file=sys.stderr)
        torch.manual_seed(options.seed + ranks.rank)  # else the random state kept were the process's own
        net = recipe.build(images, options.seed)
        for epoch in train_epochs(net, images, recipe, **how, device=device):
            if epoch.profile is not None and ranks.is_main:
                print(_line(epoch.epoch, epoch.profile), file=sys.stderr)
    return folder if ranks.is_main else None


def _line(epoch: int, profile: Profile) -> str:
    last = profile.table().iloc[-1]
    numbers = ", ".join(f"{c.upper()} {last[c]:.4g}" for c in ("pfc1", "pfc2", "pfc3"))
    accuracy = "" if profile.accuracy is None else f"accuracy {profile.accuracy:.4f}, "
    return f"epoch {epoch}: {accuracy}last layer {numbers}"
