"""What was measured of a classifier: numbers, verdicts, files."""

import warnings
from importlib import import_module
from typing import Any

from pfc.profile.prediction import Prediction as Prediction
from pfc.profile.prediction import load_transport as load_transport
from pfc.profile.profile import Profile as Profile
from pfc.profile.profile import load as load
from pfc.profile.segment import Segment as Segment

_MOVED = frozenset({"Cost", "Monitor", "cost", "features", "measure", "transport"})  # until 0.3


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'pfc.profile' has no attribute {name!r}")
    warnings.warn(f"pfc.profile.{name} is pfc.measuring.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(import_module("pfc.measuring"), name)
