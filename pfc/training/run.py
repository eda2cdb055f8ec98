"""Read a run from its folder."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfc import data as sets
from pfc.files import expanded, read_tensors, refuse_pickle
from pfc.profile import Profile
from pfc.profile import load as load_profile
from pfc.profile.page_data import read_page
from pfc.schema import quoted, restored
from pfc.training.config import FORMAT, read_config, trained_config
from pfc.training.folder import fill, history
from pfc.training.profiles import by_epoch, profiles_in
from pfc.training.recipes import Recipe
from pfc.training.same_data import changes, differences, moved


def load(path: str | Path) -> "Profile | Run | dict[str, dict[int, Profile]]":
    """Read a saved profile, a run, or the numbers of a report's page.

    Args:
        path: A profile's .json file, a run's folder, or a page that `pfc.report.write` made.

    Returns:
        A `Profile` from a .json file, a `Run` from a folder; of an .html page the profiles of each run,
        by its name and by epoch, to five digits and without moments, segments and geometry.

    Raises:
        ValueError: If there is none of them, or it is damaged.
    """
    if expanded(path).is_dir():
        return Run(path)
    is_page = expanded(path).suffix.lower() in {".html", ".htm"}
    return read_page(path) if is_page else load_profile(path)


class Run:
    """A run that `train` kept in a folder: its recipe, data, profiles and weights.

    One that `pfc.Recorder` kept has profiles alone, and says so where it is asked for more.

    Args:
        folder: The run's folder.

    Raises:
        ValueError: If there is no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        refuse_pickle(self.folder)
        if not (self.folder / "config.json").exists():
            raise ValueError(f"{folder} holds no run: there is no config.json in it")
        self.config = read_config(self.folder)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, with what was changed for this run.

        Raises:
            ValueError: If config.json tells of one that can't be.
        """
        try:
            return restored(Recipe, self._trained()["recipe"])
        except ValueError as error:
            raise ValueError(f"{self.folder / 'config.json'}: {error}") from None

    @property
    def theory_file(self) -> Path:
        """Where what theory says of the last profile is kept."""
        return self.folder / "theory.json"

    @property
    def history(self) -> list[dict[str, Any]]:
        """A line an epoch: loss, accuracy, learning rate, seconds."""
        return history(self.folder)

    @cached_property
    def profiles(self) -> dict[int, Profile]:
        """Profiles by epoch.

        Raises:
            ValueError: If there is none yet.
        """
        paths = profiles_in(self.folder)
        if not paths:
            raise ValueError(f"{self.folder} has no profile yet")
        return {epoch: load_profile(path) for epoch, path in paths.items()}

    def _trained(self) -> dict[str, Any]:
        """What `train` told of the run; one that `pfc.Recorder` kept is refused."""
        return trained_config(self.folder) if "recorded" in self.config else self.config

    def data(self, split: str | None = None, *, spec: str | Path | None = None) -> sets.Images:
        """The images of the run; of another split all of them.

        Args:
            split: The run's own if `None`.
            spec: Where the same data lie now, if they are no longer where they were.

        Returns:
            The images, normalised as in training.

        Raises:
            ValueError: If there are no such data any more, or they have changed since.
        """
        known = self._trained()["data"]
        if spec is None and moved(known):
            raise ValueError(
                f"{self.folder} was trained on what was in {quoted(known['spec'])}, which is no folder "
                "now: say by --data (in Python by spec=) where it has gone"
            )
        images = self._loaded(known["spec"] if spec is None else spec, split or known["split"])
        if how := list(self.differences(images)):
            raise ValueError(
                f"{self.folder} was trained on other data than those in {quoted(known['spec'])} now: "
                f"{'; '.join(how)}; put the former data back, or measure these ones by --data"
            )
        return self.normalised(images)

    def _loaded(self, spec: str | Path, split: str) -> sets.Images:
        """A split as the run would have loaded it."""
        known = self._trained()["data"]
        columns = {name: known.get(name) for name in ("image_column", "label_column")}
        if split != known["split"]:
            return sets.load(spec, split, **columns)
        return sets.load(spec, split, known["limit"], known["seed"], **columns)

    def differences(self, images: sets.Images) -> Iterator[str]:
        """How images differ from those of the run.

        Args:
            images: Of its split, limit and seed; or of another split.

        Yields:
            Each difference in words; none of what an older version has not kept.
        """
        known = self._trained()["data"]
        own = images.split == known["split"]
        yield from differences(known, images) if own else changes(known, images)

    def normalised(self, images: sets.Images) -> sets.Images:
        """Other images with the constants that this run was trained with.

        Args:
            images: Of the run's number of channels.

        Returns:
            The same images.

        Raises:
            ValueError: If they have another number of channels.
        """
        told = self._trained()["data"]["normalisation"]
        constants = sets.Normalisation(tuple(told["mean"]), tuple(told["std"]), told["source"])
        if images.shape[0] != len(constants.mean):
            raise ValueError(
                f"{self.folder} was trained on {len(constants.mean)} channel(s), not {images.shape[0]}"
            )
        return replace(images, normalisation=constants)

    def network(self, epoch: int | None = None) -> nn.Module:
        """The network with the weights of an epoch.

        Args:
            epoch: One of those kept; the last if `None`.

        Returns:
            The network, on the CPU.

        Raises:
            ValueError: If no weights were kept at that epoch.
        """
        known = self._trained()["data"]
        kept = by_epoch(self.folder, "weights/epoch-*.safetensors")
        if not kept or (epoch is not None and epoch not in kept):
            which = "keeps no weights" if not kept else f"has no weights of epoch {epoch}"
            raise ValueError(f"{self.folder} {which}; it has {sorted(kept) or 'profiles alone'}")
        path = kept[max(kept) if epoch is None else epoch]
        weights = read_tensors(path, FORMAT)[0]
        if sum(self.recipe.blocks) > len(weights):  # else it could take for ever to build
            raise ValueError(f"{path} does not fit this network: it has {len(weights)} tensors")
        try:
            with torch.device("meta"):  # shapes alone, until they are known to be those of the file
                net = self.recipe.network(tuple(known["shape"]), known["classes"])
        except (ValueError, RuntimeError, TypeError) as error:  # torch's, of sizes beyond its numbers
            why = str(error).splitlines()[0]
            raise ValueError(f"{self.folder / 'config.json'} tells of no network: {why}") from None
        with warnings.catch_warnings(action="ignore"):  # that nothing is copied
            fill(net, weights, path)
        fill(net.to_empty(device="cpu"), weights, path)
        return net
