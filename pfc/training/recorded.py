"""A run's folder that `pfc.Recorder` keeps: configuration and profiles, no recipe, data or weights."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

from pfc import files
from pfc.lock import locked
from pfc.profile import Profile, load
from pfc.schema import short
from pfc.training.config import FORMAT, environment, read_config
from pfc.training.profiles import keep_profile, profiles_in, sweep
from pfc.warning import warn

HELD: "WeakValueDictionary[Path, Lock]" = WeakValueDictionary()  # of this process, by folder
USUAL = {  # what `measure` takes if nothing is said
    "passes": 2,
    "segments": True,
    "pool": "flatten",
    "weighting": "class",
    "shift": 0,
}


class Lock:
    """A folder's lock, which recorders of one process share, till the last of them is gone."""

    def __init__(self, path: Path) -> None:
        stack = ExitStack()
        stack.enter_context(locked(path))
        finalize(self, stack.close)


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
        self._held: Lock | None = None

    def open(self) -> None:
        """Make the folder, or go on in it.

        Raises:
            ValueError: If it holds something else, or what was measured otherwise.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another folder")
        config = self.path / "config.json"
        files.check_place(config)
        self._lock()
        if config.exists():
            self._compare(config)
            sweep(self.path, ("profiles",))
        elif any((self.path / "profiles").glob("*")):
            raise ValueError(
                f"{self.path} holds profiles and no config.json, so they are not pfc.Recorder's: choose "
                "another folder"
            )
        else:
            self._write()
        self._whole = max(profiles_in(self.path), default=None)

    def _lock(self) -> None:
        """Keep other processes out as long as this one records here."""
        path = self.path.absolute()
        self._held = HELD.get(path) or Lock(path)
        HELD[path] = self._held

    def _write(self) -> None:
        about = {"format": FORMAT, "recorded": self.how, **environment()}
        files.write_json(self.path / "config.json", about)

    def check(self, profile: Profile) -> None:
        """Refuse to go on with another network than the one whose profiles are kept.

        Raises:
            ValueError: If the newest kept profile has other layers.
        """
        kept = profiles_in(self.path)
        if not kept or self._last is not None:
            return
        newest = load(kept[max(kept)])
        if (newest.layers, newest.shapes) != (profile.layers, profile.shapes):
            raise ValueError(
                f"{self.path} was recorded of another network: it has the layers "
                f"{short(list(newest.layers))}, not {short(list(profile.layers))}, or these have other "
                "shapes; choose another folder"
            )

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
            was, now = (_meant(name, how.get(name, USUAL.get(name))) for how in (old, self.how))
            if was != now:
                raise ValueError(
                    f"{self.path} was recorded with {name}={short(was)}, not {short(now)}: choose "
                    "another folder"
                )

    def keep(self, epoch: int, profile: Profile) -> None:
        """Write the profile of an epoch, in the place of one that is there; the last one shrinks."""
        if not (self.path / "config.json").exists():  # somebody has removed the folder
            self._write()
        self._forget_later(epoch)
        keep_profile(self.path, epoch, profile, means=True, in_full=True)
        before, last = self._whole, self._last
        self._whole, self._last = epoch, profile
        if before is not None and before != epoch:
            self._shrink(before, last)

    def _forget_later(self, epoch: int) -> None:
        """A training that goes on from an epoch writes all later ones anew."""
        later = {e: path for e, path in profiles_in(self.path).items() if e > epoch}
        if not later or self._last is not None:
            return
        for path in later.values():
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)
        if self._whole in later:
            self._whole = None
        warn(
            f"{self.path}: epoch {epoch} is recorded anew, so those after it, "
            f"{short(sorted(later))}, are removed",
            UserWarning,
        )

    def _shrink(self, before: int, last: Profile | None) -> None:
        """Take from an older profile what only the newest one keeps."""
        kept = profiles_in(self.path)
        if before not in kept:
            return
        try:
            last = load(kept[before]) if last is None else last
            keep_profile(self.path, before, last, means=False, in_full=before == min(kept))
        except (OSError, ValueError) as error:
            warn(f"the profile of epoch {before} is left as it is: {error}", UserWarning)


def _meant(name: str, value: Any) -> Any:
    """What an argument says: one name or glob of layers is a list of one."""
    return [value] if name == "layers" and isinstance(value, str) else value
