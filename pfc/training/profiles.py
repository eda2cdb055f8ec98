"""The profiles in a run's folder: where they stand, how much of each is kept, what a kill leaves."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pfc.profile import Profile

FEW = 20  # classes up to which the numbers of their pairs are kept at every measured epoch
OWN = (  # files of ours
    r"config|history|state|theory|prune|exits|scores|report|epoch-\d+|test|validation|held-out|random"
)
FIGURES = r"[\w.-]+\.(?:png|svg|pdf)"
# what a killed process was writing: a hidden folder beside the file, named as tempfile names it
TORN = re.compile(
    rf"\.(?:(?:{OWN})\.(?:json|jsonl|html|safetensors(?:\.next)?)|{FIGURES})\.[a-z0-9_]{{8}}"
)
PLACES = ("profiles", "weights", "figures")


def by_epoch(folder: Path, pattern: str) -> dict[int, Path]:
    """The files of a folder that a pattern matches and whose names tell an epoch, by that."""
    paths = sorted(folder.glob(pattern))
    return {int(path.stem[6:]): path for path in paths if re.fullmatch(r"epoch-\d{4,9}", path.stem)}


def profiles_in(folder: Path) -> dict[int, Path]:
    """A run's profiles, by epoch."""
    return by_epoch(folder, "profiles/epoch-*.json")


def keep_profile(folder: Path, epoch: int, profile: Profile, *, means: bool, in_full: bool) -> None:
    """Write the profile of an epoch.

    Args:
        folder: The run's.
        epoch: After so many passes.
        profile: What was measured.
        means: Keep the class means, K x D numbers a layer.
        in_full: Keep the coordinates of the sample, and the numbers of pairs of many classes too.
    """
    pairs = in_full or profile.about["classes"] <= FEW
    path = folder / "profiles" / f"epoch-{epoch:04d}.json"
    profile.save(path, means=means, pairs=pairs, sample=in_full)


def sweep(folder: Path, places: Sequence[str] = PLACES) -> None:
    """Remove what a killed process was writing, where runs write and nowhere else."""
    for place in (folder, *(folder / name for name in places)):
        for path in place.glob(".*"):
            if path.is_dir() and not path.is_symlink() and TORN.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
