"""Measure, predict and reproduce progressive feedforward collapse, layer by layer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfc import data as data
    from pfc import experiments as experiments
    from pfc import figures as figures
    from pfc import losses as losses
    from pfc import models as models
    from pfc import report as report
    from pfc import theory as theory
    from pfc.acting.exits import EarlyExit as EarlyExit
    from pfc.acting.pruned import Pruned as Pruned
    from pfc.acting.pruning import prune as prune
    from pfc.acting.scores import Scores as Scores
    from pfc.acting.scores import scores as scores
    from pfc.integrations.recorder import Recorder as Recorder
    from pfc.measuring import Monitor as Monitor
    from pfc.measuring import cka as cka
    from pfc.measuring import features as features
    from pfc.measuring import measure as measure
    from pfc.measuring import measure_features as measure_features
    from pfc.nets import ConvResNet as ConvResNet
    from pfc.nets import FCResNet as FCResNet
    from pfc.profile import Profile as Profile
    from pfc.report import Comparison as Comparison
    from pfc.report import compare as compare
    from pfc.training import RECIPES as RECIPES
    from pfc.training import Recipe as Recipe
    from pfc.training import Run as Run
    from pfc.training import load as load
    from pfc.training import train as train

_HOME = {  # the public names, found on first use: `pfc --help` shall not pay for torch
    **dict.fromkeys(("data", "experiments", "figures", "losses", "metrics", "models"), ""),
    **dict.fromkeys(("moments", "report", "theory"), ""),
    **dict.fromkeys(("Scores", "scores"), "pfc.acting.scores"),
    **dict.fromkeys(("EarlyExit",), "pfc.acting.exits"),
    **dict.fromkeys(("Pruned",), "pfc.acting.pruned"),
    **dict.fromkeys(("prune",), "pfc.acting.pruning"),
    **dict.fromkeys(("ConvResNet", "FCResNet"), "pfc.nets"),
    **dict.fromkeys(("Monitor", "cka", "features", "measure", "measure_features"), "pfc.measuring"),
    **dict.fromkeys(("Profile",), "pfc.profile"),
    **dict.fromkeys(("Comparison", "compare"), "pfc.report"),
    **dict.fromkeys(("Recorder",), "pfc.integrations.recorder"),
    **dict.fromkeys(("RECIPES", "Recipe", "Run", "load", "train"), "pfc.training"),
}
__all__ = sorted(_HOME)
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pfc' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(home), name) if home else import_module(f"pfc.{name}")


def __dir__() -> list[str]:
    return __all__
