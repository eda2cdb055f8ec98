"""A run's folder that `pfc.Recorder` keeps: configuration and profiles, no recipe, data or weights."""

import json
from pathlib import Path
from typing import Any

from pfc import files
from pfc.profile import Profile, load
from pfc.schema import short
from pfc.training.config import FORMAT, environment, read_config
from pfc.training.profiles import keep_profile, profiles_in, sweep


class RecordedFolder:
    """A folder of profiles, which the readers of a run's folder read.

    The profile that was kept last is whole. The class means of the one before go when the next is
    there, as do its coordinates and, of many classes, the numbers of their pairs, but of the first.

    Args:
        path: The folder; made when it is opened.
        how: How is measured, as it is kept in config.json.
    """

    def __init__(self, path: Path, how: dict[str, Any]) -> None:
        self.path = path
        self.how: dict[str, Any] = json.loads(json.dumps(how))
        self._whole: int | None = None  # the epoch whose profile is whole
        self._last: Profile | None = None  # that profile, if this process has kept it

    def open(self) -> None:
        """Make the folder, or go on in it.

        Raises:
            ValueError: If it holds something else, or what was measured otherwise.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another folder")
        config = self.path / "config.json"
        files.check_place(config)
        if config.exists():
            self._compare(config)
        elif any((self.path / "profiles").glob("*")):
            raise ValueError(
                f"{self.path} holds profiles and no config.json, so they are not pfc.Recorder's: choose "
                "another folder"
            )
        else:
            files.write_json(config, {"format": FORMAT, "recorded": self.how, **environment()})
        sweep(self.path)
        self._whole = max(profiles_in(self.path), default=None)

    def _compare(self, config: Path) -> None:
        try:
            old = read_config(self.path).get("recorded")
        except ValueError as error:
            raise ValueError(
                f"{self.path} holds something else than what pfc.Recorder keeps: choose another folder "
                f"({error})"
            ) from None
        if old is None:
            raise ValueError(f"{self.path} holds a run of pfc train: choose another folder")
        for name in sorted(old.keys() | self.how.keys()):
            was, now = old.get(name), self.how.get(name)
            if was != now:
                raise ValueError(
                    f"{self.path} was recorded with {name}={short(was)}, not {short(now)}: choose "
                    "another folder"
                )

    def keep(self, epoch: int, profile: Profile) -> None:
        """Write the profile of an epoch, in the place of one that is there; the last one shrinks."""
        keep_profile(self.path, epoch, profile, means=True, in_full=True)
        kept = profiles_in(self.path)
        before, last = self._whole, self._last
        self._whole, self._last = epoch, profile
        if before is not None and before != epoch and before in kept:
            last = load(kept[before]) if last is None else last
            keep_profile(self.path, before, last, means=False, in_full=before == min(kept))
