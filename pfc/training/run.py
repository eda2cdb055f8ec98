"""Read a run from its folder."""

import re
import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfc import data as sets
from pfc.files import read_tensors, refuse_pickle
from pfc.profile import Profile, load
from pfc.schema import restored
from pfc.training.folder import FORMAT, fill, history, read_config
from pfc.training.recipes import Recipe


class Run:
    """A run that `train` kept in a folder: its recipe, data, profiles and weights.

    Args:
        folder: The run's folder.

    Raises:
        ValueError: If there is no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
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
            return restored(Recipe, self.config["recipe"])
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
        paths = self._by_epoch("profiles/epoch-*.json")
        if not paths:
            raise ValueError(f"{self.folder} has no profile yet")
        return {epoch: load(path) for epoch, path in paths.items()}

    def _by_epoch(self, pattern: str) -> dict[int, Path]:
        paths = sorted(self.folder.glob(pattern))
        return {int(path.stem[6:]): path for path in paths if re.fullmatch(r"epoch-\d{4,9}", path.stem)}

    def data(self, split: str | None = None) -> sets.Images:
        """The images of the run; of another split all of them.

        Args:
            split: The run's own if `None`.

        Returns:
            The images, normalised as in training.
        """
        told = self.config["data"]
        if split in {None, told["split"]}:
            return sets.load(told["spec"], told["split"], told["limit"], told["seed"])
        return self.normalised(sets.load(told["spec"], str(split)))

    def normalised(self, images: sets.Images) -> sets.Images:
        """Other images with the constants that this run was trained with.

        Args:
            images: Of the run's number of channels.

        Returns:
            The same images.

        Raises:
            ValueError: If they have another number of channels.
        """
        told = self.config["data"]["normalisation"]
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
        kept = self._by_epoch("weights/epoch-*.safetensors")
        if not kept or (epoch is not None and epoch not in kept):
            raise ValueError(f"{self.folder} has no weights of epoch {epoch}; it has {sorted(kept)}")
        path = kept[max(kept) if epoch is None else epoch]
        weights, told = read_tensors(path, FORMAT)[0], self.config["data"]
        if sum(self.recipe.blocks) > len(weights):  # else it could take for ever to build
            raise ValueError(f"{path} does not fit this network: it has {len(weights)} tensors")
        try:
            with torch.device("meta"):  # shapes alone, until they are known to be those of the file
                net = self.recipe.network(tuple(told["shape"]), told["classes"])
        except (ValueError, RuntimeError, TypeError) as error:  # torch's, of sizes beyond its numbers
            why = str(error).splitlines()[0]
            raise ValueError(f"{self.folder / 'config.json'} tells of no network: {why}") from None
        with warnings.catch_warnings(action="ignore"):  # that nothing is copied
            fill(net, weights, path)
        fill(net.to_empty(device="cpu"), weights, path)
        return net
