"""Warnings about data or features, shown at the line that called into the package."""

import sys
import traceback
import warnings


class CollapseWarning(UserWarning):
    """Something about the data or the features makes a metric undefined or meaningless."""


def warn(message: str, category: type[Warning] = CollapseWarning) -> None:
    """Warn at the line that called into the package."""
    ours = [
        level
        for level, (frame, _) in enumerate(traceback.walk_stack(sys._getframe()), start=1)
        if frame.f_globals.get("__name__", "").startswith("pfc.")
    ]
    warnings.warn(message, category, stacklevel=max(ours) + 1)
