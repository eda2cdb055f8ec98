"""The trainings that the paper's figures and claims need: each kept in a folder, and examined once."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfc import data as sets
from pfc.data import Images
from pfc.device import device_of
from pfc.files import read_json, write_json
from pfc.measuring import features, measure, transport
from pfc.profile import Profile, load
from pfc.schema import COUNT, FINITE, TEXT, list_of, object_of, optional, quoted
from pfc.theory.transport import Gap, restored
from pfc.training import RECIPES, Recipe, Run, train
from pfc.training.speed import fast_precision
from pfc.training.trainer import Trainer
from pfc.warning import CollapseWarning

FORMAT = "pfc-examined-1"
SETS = {  # shape of an image, classes, and training images in all, to tell the cost beforehand
    "mnist": ((1, 28, 28), 10, 60_000),
    "fashion_mnist": ((1, 28, 28), 10, 60_000),
    "cifar10": ((3, 32, 32), 10, 50_000),
    "stl10": ((3, 96, 96), 10, 5_000),
    "cifar100": ((3, 32, 32), 100, 50_000),
}
EXACT = 1_000  # samples of the exact optimal transport; ours
SHOWN = (3, 30)  # classes and samples of each in Figure 1; ours
STEPS = 3  # that are timed, after as many that are not; ours
FEW = (2, 8)  # samples of the first steps that are timed; ours
SLOW = 3.0  # seconds of a whole step from which on it is not timed itself; ours
POINTS = object_of({}, others=list_of(list_of(FINITE, 2)))
SCHEMA = object_of(  # what a file of an examined training must hold
    {"plane": object_of({"classes": list_of(TEXT), "labels": list_of(COUNT), "points": POINTS})},
    optional={"transport": optional(object_of({}))},
)
LOST = object_of({"error": TEXT})


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, by a recipe with a seed.

    Args:
        recipe: How, and on what.
        seed: Of the first weights, the order of the samples and the subset.
        shuffled: Whether the labels are dealt out anew, so that there is nothing but noise to learn.
    """

    recipe: Recipe
    seed: int = 0
    shuffled: bool = False

    @property
    def set(self) -> str:
        """The name of its data set."""
        return self.recipe.name.partition("-")[0]

    @property
    def kind(self) -> str:
        """What differs from other trainings of the set, but for the seed."""
        base, decay = RECIPES[self.recipe.name].weight_decay, self.recipe.weight_decay
        parts = [self.recipe.name.partition("-")[2]] + ["shuffled"] * self.shuffled
        parts += [f"decay-{decay:g}"] * (decay != base)
        return "-".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(part for part in (self.set, self.kind, str(self.seed)) if part)

    def images(self) -> Images:
        """What it is trained on."""
        images = sets.load(self.recipe.data, limit=self.recipe.limit, seed=self.seed)
        if not self.shuffled:
            return images
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(self.seed), device="cpu"
        )
        return replace(images, labels=images.labels[order])

    def seconds(self, device: str | None = None) -> float:
        """Tell what it costs, from some steps on noise; measuring is not counted.

        Where a step of all samples would take long, its cost is read from two of few.

        Args:
            device: Where; the processor if `None`.

        Returns:
            Seconds of all its epochs on this machine.
        """
        size, images = self.recipe.batch_size, min(self.recipe.limit or 10**9, SETS[self.set][2])
        (a, one), (b, other) = ((few, self._step(few, device)) for few in FEW)
        step = one + max(0.0, other - one) / (b - a) * (size - a)
        if step < SLOW:
            step = self._step(size, device)
        return step * -(-images // size) * self.recipe.epochs

    def _step(self, size: int, device: str | None) -> float:
        """Seconds of a step of so many samples, after others that are not timed."""
        shape, classes, _ = SETS[self.set]
        noise = Images.of(
            torch.randint(256, (STEPS * size, *shape), dtype=torch.uint8, device="cpu"),
            torch.arange(STEPS * size, device="cpu") % classes,
            *(tuple(map(str, range(classes))), "noise", "train"),
        )
        net = self.recipe.build(noise, self.seed)
        place, recipe = device_of(device, net), replace(self.recipe, batch_size=size)
        trainer = Trainer(net, noise, recipe, self.seed, place, fast_precision(net, place), None)
        trainer.epoch(1, profiled=False)
        return trainer.epoch(2, profiled=False).seconds / STEPS


@dataclass(frozen=True)
class Trained:
    """A training that is done and examined, as its folder keeps it.

    Args:
        training: Which.
        folder: Its folder.
    """

    training: Training
    folder: Path

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / "examined.json").exists()

    @property
    def lost(self) -> str:
        """What was told when the training diverged; empty if it did not."""
        path = self.folder / "diverged.json"
        return str(read_json(path, FORMAT, LOST)["error"]) if path.exists() else ""

    def lose(self, error: str) -> None:
        """Keep what is told of a training that diverged."""
        write_json(self.folder / "diverged.json", {"format": FORMAT, "error": error})

    def check(self) -> None:
        """Refuse a folder that holds another training, or what was damaged; where the data lie is free.

        Raises:
            ValueError: If it does.
        """
        if not (self.folder / "config.json").exists():
            return
        run, t = Run(self.folder), self.training
        was, now = (
            {**vars(recipe), "name": "", "data": "", "seed": seed}
            for recipe, seed in ((run.recipe, run.config["seed"]), (t.recipe, t.seed))
        )
        if differ := [f"{k} is {was[k]}, not {now[k]}" for k in now if was[k] != now[k]]:
            raise ValueError(
                f"{self.folder} holds another training: its {', '.join(differ)}; "
                "choose another folder, or remove this one"
            )
        if self.done:
            _ = self.examined

    def check_data(self) -> None:
        """Refuse data that are not there, or not those of the training that the folder holds.

        Raises:
            ValueError: If so.
        """
        images = self.training.images()
        if (self.folder / "config.json").exists():
            if differ := list(Run(self.folder).differences(images)):
                raise ValueError(
                    f"{self.folder} was trained on other data than those in "
                    f"{quoted(self.training.recipe.data)}: {'; '.join(differ)}; choose another folder"
                )

    @cached_property
    def profiles(self) -> Mapping[int, Profile]:
        """By epoch."""
        return Run(self.folder).profiles

    @property
    def last(self) -> Profile:
        """After training, on the training images."""
        return self.profiles[max(self.profiles)]

    @cached_property
    def test(self) -> Profile | None:
        """On the test images about the training means; `None` where there are none."""
        return self._beside("test")

    @cached_property
    def random(self) -> Profile | None:
        """Of a network with random first weights in all blocks, before training."""
        return self._beside("random")

    def _beside(self, name: str) -> Profile | None:
        path = self.folder / "profiles" / f"{name}.json"
        return load(path) if path.exists() else None

    @cached_property
    def examined(self) -> dict[str, Any]:
        """What was asked of the network after training."""
        path = self.folder / "examined.json"
        found: dict[str, Any] = read_json(path, FORMAT, SCHEMA)
        shown, last = found["plane"], self.last.segment().layers
        count, classes = len(shown["labels"]), len(shown["classes"])
        known = all(0 <= label < classes for label in shown["labels"])
        whole = all(len(shown["points"].get(layer, ())) == count for layer in last)
        if not (classes and known and whole and len(shown["points"]) == len(last)):
            raise ValueError(
                f"{path}: plane does not fit the run; remove the file to have it made again"
            )
        return found

    @property
    def gap(self) -> Gap | None:
        """Whether the last stage is an optimal transport map."""
        numbers = self.examined.get("transport")
        return None if numbers is None else restored(numbers)

    def run(self, device: str | None = None, *, progress: bool = True) -> "Trained":
        """Train what is not yet trained, and examine it.

        Args:
            device: Where; the processor if `None`.
            progress: Show bars.

        Returns:
            Itself.

        Raises:
            Diverged: If the loss is no longer finite.
            ValueError: If the data are not there, or the folder holds another run.
        """
        if self.done:
            return self
        images, t = self.training.images(), self.training
        torch.manual_seed(t.seed)
        net = t.recipe.build(images, t.seed)
        how: dict[str, Any] = {"folder": self.folder, "resume": True, "seed": t.seed, "device": device}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # of few samples a class, said on the page
            for _ in train(net, images, t.recipe, **how, precision="auto", progress=progress):
                pass
            self._examine(net.eval(), images, progress=progress)
        return self

    def _examine(self, net: nn.Module, images: Images, *, progress: bool) -> None:
        """Ask the trained network what is asked once."""
        last = self.last
        random = replace(self.training.recipe, zero_start=False).build(images, self.training.seed)
        place = next(net.parameters()).device
        found = {"random": measure(random.to(place), images.batches(), progress=progress)}
        if (apart := sets.held_out(images.spec, images.split)) is not None:
            test = sets.load(images.spec, apart)
            found["test"] = measure(net, test.batches(), means=last, progress=progress)
        for name, profile in found.items():
            profile.save(self.folder / "profiles" / f"{name}.json", means=False, pairs=False)
        few = sets.stratified(images, max(EXACT, len(images.classes)), last.about["weighting"])
        gap = transport(net, few.batches(), last, exact=EXACT, progress=progress)
        told = {"transport": gap.to_dict(), "plane": plane(net, images, last.segment().layers)}
        write_json(self.folder / "examined.json", {"format": FORMAT, **told})


def plane(net: nn.Module, images: Images, layers: tuple[str, ...]) -> dict[str, Any]:
    """Samples of three classes at each layer, in the plane of their class means at the last one.

    Args:
        net: The network.
        images: What it is shown; the class means are those of all its images of the three classes.
        layers: Of one shape.

    Returns:
        Names of the classes, the class of each sample, and its two coordinates at each layer.
    """
    classes, each = SHOWN
    few = replace(images, images=images.images[k := images.labels < classes], labels=images.labels[k])
    found, y = features(net, few.batches(), list(layers), progress=False)
    ends = found[layers[-1]].double()
    means = torch.stack([ends[y == k].mean(0) for k in range(classes)])
    origin, basis = means.mean(0), torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:2]
    kept = torch.cat([(y == k).nonzero()[:each, 0] for k in range(classes)])
    points = {name: _rounded((H[kept].double() - origin) @ basis.mT) for name, H in found.items()}
    names = list(images.classes[:classes])
    return {"classes": names, "labels": y[kept].tolist(), "points": points}


def _rounded(points: Tensor) -> list[list[float]]:
    """Coordinates in five digits, which is more than a figure shows."""
    return [[float(f"{x:.5g}") for x in row] for row in points.tolist()]
