"""What a run's config.json holds: of a run that was trained here, or that `pfc.Recorder` kept."""

import platform
from pathlib import Path
from typing import Any

import torch

from pfc import files
from pfc.schema import (
    COUNT,
    FINITE,
    POSITIVE,
    TEXT,
    defaults_of,
    form_of,
    list_of,
    object_of,
    optional,
)
from pfc.strict_json import plain
from pfc.training.recipes import Recipe

FORMAT = "pfc-run-1"
NUMBERS = list_of(FINITE)
TRAINED = object_of(  # what config.json must hold of a run of `train`; all else is free
    {
        "recipe": form_of(Recipe),
        "data": object_of(
            {
                **{"spec": TEXT, "split": TEXT, "shape": list_of(POSITIVE, 3), "classes": POSITIVE},
                "normalisation": object_of({"mean": NUMBERS, "std": NUMBERS, "source": TEXT}),
            },
            optional={
                **{"limit": optional(POSITIVE), "seed": COUNT, "samples": POSITIVE, "fingerprint": TEXT},
                **{
                    "names": list_of(TEXT),
                    "image_column": optional(TEXT),
                    "label_column": optional(TEXT),
                },
                **{"counts": object_of({}, others=COUNT), "files": object_of({}, others=TEXT)},
            },
        ),
    },
    optional={"seed": COUNT, "precision": TEXT},
)
DATA_DEFAULTS = {"limit": None, "seed": 0}
DEFAULTS = {"seed": 0, "precision": "float32", "measure_every": None}  # of `train`
RECORDED = object_of({"recorded": object_of({})})  # and of one that `pfc.Recorder` kept


def _config(value: Any, where: str) -> None:
    """A configuration of either kind."""
    recorded = isinstance(value, dict) and "recorded" in value
    (RECORDED if recorded else TRAINED)(value, where)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run, with the defaults of old ones; recipe and data `None` if recorded."""
    config = files.read_json(folder / "config.json", FORMAT, _config)
    if "recorded" in config:
        return {**DEFAULTS, "seed": None, "precision": None, **config, "recipe": None, "data": None}
    recipe = plain(defaults_of(Recipe)) | config["recipe"]
    return {**DEFAULTS, **config, "recipe": recipe, "data": DATA_DEFAULTS | config["data"]}


def trained_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run of `train`; one that `pfc.Recorder` kept is refused."""
    config = read_config(folder)
    if "recorded" in config:
        raise ValueError(
            f"{folder} was recorded by pfc.Recorder, which keeps profiles alone: it has no recipe, no "
            "data and no weights"
        )
    return config


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they matter for repeating a run."""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
    }
