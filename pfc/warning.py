"""Warnings about data or features, shown at the line that called into the package."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any


class CollapseWarning(UserWarning):
    """Something about the data or the features makes a metric undefined or meaningless."""


class CostWarning(UserWarning):
    """What was asked for takes long, or more memory than there is."""


def warn(message: str, category: type[Warning] = CollapseWarning) -> None:
    """Warn at the line that called into the package."""
    ours = [
        level
        for level, (frame, _) in enumerate(traceback.walk_stack(sys._getframe()), start=1)
        if frame.f_globals.get("__name__", "").startswith("pfc.")
    ]
    warnings.warn(message, category, stacklevel=max(ours) + 1)


def speaks() -> bool:
    """Whether this process says on the command line what all say that `torchrun` started together."""
    return int(os.environ.get("WORLD_SIZE") or 1) < 2 or os.environ.get("RANK", "0") == "0"


def renamed(old: str, new: str) -> property:
    """An attribute under its former name; both are given as `"Class.name"`."""

    def value(owner: Any) -> Any:
        warn(f"{old} is {new} now; the old name goes in 0.3", DeprecationWarning)
        return getattr(owner, new.partition(".")[2])

    return property(value, doc=f"The former name of `{new}`.")


def moved(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose names are elsewhere now, as `"module:name"`."""

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = places[name].replace(":", ".")
        warn(f"{module}.{name} is {new} now; the old name goes in 0.3", DeprecationWarning)
        return resolve_name(places[name])

    return find
