"""What a report or a comparison is of: runs, recordings and saved profiles, by short names."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfc.files import expanded
from pfc.profile import Profile, load, load_transport
from pfc.training import Run

if TYPE_CHECKING:
    from pfc.theory.transport import Gap

SPLITS = ("test", "validation", "valid", "held-out")  # whose profiles `pfc run` and `measure` keep


@dataclass(frozen=True, eq=False)
class Source:
    """A run, or a saved profile: what was measured, and how it was made.

    Args:
        path: A run's folder, or a profile's .json file.
        name: What it is called beside others.
    """

    path: Path
    name: str

    @cached_property
    def run(self) -> Run | None:
        """The run; `None` of a single profile."""
        return Run(self.path) if self.path.is_dir() else None

    @cached_property
    def profiles(self) -> Mapping[int, Profile]:
        """By epoch; a single profile stands at 0."""
        return {0: load(self.path)} if self.run is None else self.run.profiles

    @property
    def last(self) -> Profile:
        """Of the last measured epoch."""
        return self.profiles[max(self.profiles)]

    @cached_property
    def tests(self) -> Mapping[str, Profile]:
        """Of data kept apart, about the class means of the last epoch's, by the name of the split."""
        beside = {split: self._beside(split) for split in SPLITS}
        return {split: load(path) for split, path in beside.items() if path.exists()}

    def _beside(self, split: str) -> Path:
        if self.path.is_dir():
            return self.path / "profiles" / f"{split}.json"
        return self.path.with_name(f"{self.path.stem}-{split}.json")

    @property
    def transport(self) -> "Gap | None":
        """What was found of the last segment's optimal transport, if it was kept."""
        beside = self.path.with_name(f"{self.path.stem}-theory.json")
        return load_transport(beside if self.run is None else self.run.theory_file, self.last)

    @property
    def config(self) -> Mapping[str, Any]:
        """How the run was made; nothing of a single profile."""
        return {} if self.run is None else self.run.config

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What runs share that differ in their seed alone, by name; nothing where it is not known."""
        config = self.config
        if not config.get("recipe"):
            return {}
        names = ["spec", "split", "limit", "label_column"]
        if config["data"].get("limit") is None:  # else the seed chooses the images
            names.append("fingerprint")
        data = {name: config["data"].get(name) for name in names}
        return {**config["recipe"], **data, "precision": config.get("precision")}

    @property
    def kind(self) -> str | None:
        """The settings as one text; `None` where they are not known."""
        return json.dumps(self.settings, sort_keys=True) if self.settings else None

    @property
    def unfinished(self) -> str:
        """How far a run has come that is not at its end; empty of others."""
        recipe, last = self.config.get("recipe"), max(self.profiles)
        return f"epoch {last} of {recipe['epochs']}" if recipe and last < recipe["epochs"] else ""

    @property
    def seed(self) -> int | None:
        """Of the run; `None` if it is not known."""
        return self.config.get("seed")


def sources(paths: Sequence[str | Path]) -> list[Source]:
    """Find runs and profiles.

    Args:
        paths: Folders of runs, .json files of profiles, and globs of them such as `runs/wd0-*`.

    Returns:
        Each once, in order, under the shortest names that tell them apart.

    Raises:
        ValueError: If there is none, or something else.
    """
    found = list(dict.fromkeys(path for each in paths for path in _matching(each)))
    return [Source(path, name) for path, name in zip(found, short_names(found), strict=True)]


def _matching(path: str | Path) -> list[Path]:
    """The run or profile at a path, or all that a glob matches; what a glob also finds is left out."""
    there = expanded(path)
    if there.exists() or not glob.has_magic(str(path)):
        _check(there, path)
        return [there]
    matched = [Path(match) for match in sorted(glob.glob(str(there)))]
    if not (found := [match for match in matched if _is_run(match) or _is_profile(match)]):
        raise ValueError(f"no run or profile matches {path}")
    return found


def _check(there: Path, given: str | Path) -> None:
    if there.is_dir() and _is_run(there):
        return
    if there.is_dir():
        raise ValueError(f"{given} holds no run: there is no config.json in it")
    if not there.exists():
        raise ValueError(f"{given} does not exist: give a run's folder or a profile's .json file")
    if there.suffix != ".json":
        raise ValueError(f"{given} is neither a run's folder nor a profile's .json file")


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file()


def _is_profile(path: Path) -> bool:
    return path.suffix == ".json" and path.with_suffix(".safetensors").is_file()


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many of them as tell all apart."""
    whole = [path.absolute().with_suffix("" if path.is_file() else path.suffix).parts for path in paths]
    for parts in range(1, max(map(len, whole), default=0)):
        names = ["/".join(each[-parts:]) for each in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
