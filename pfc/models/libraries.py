"""Models of torchvision and timm, whose weights these libraries load in their own way."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pfc.foreign import attribute, in_words, told
from pfc.models.loaded import Loaded
from pfc.models.preprocessing import Transform
from pfc.schema import one_line


def imported(module: str, called: str, remedy: str) -> Any:
    """A library that is no dependency; one line where it is missing or fails."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            raise ValueError(f"{called} needs {error.name}, which is not installed: {remedy}") from error
        raise ValueError(f"{called}: {module} can't be imported: {one_line(error)}") from error
    except Exception as error:  # such as of a build for another version of torch
        why = one_line(in_words(error))
        raise ValueError(
            f"{called}: {module} is installed but can't be imported ({why}): install the build that "
            "belongs to this version of torch"
        ) from error


def from_timm(name: str) -> Loaded:
    """A pretrained model of timm with the transform of its own data configuration.

    Args:
        name: Such as `resnet50.a1_in1k`.

    Returns:
        The model; timm itself loads the weights.

    Raises:
        ValueError: If timm is missing, or fails, as for a name it does not know.
    """
    called = f"timm:{name}"
    timm, data = (imported(module, called, "pip install timm") for module in ("timm", "timm.data"))
    with told(f"timm has no pretrained {name!r}"):
        model = timm.create_model(name, pretrained=True).eval()
    with told(f"timm's preprocessing of {name!r} failed"):
        config = data.resolve_model_data_config(model)
        transform = data.create_transform(**config, is_training=False)
    known = attribute(model, "pretrained_cfg") or {}
    names = known.get("label_names") if isinstance(known, Mapping) else None
    return Loaded(called, model, Transform(transform), _names(names))


def from_torchvision(name: str) -> Loaded:
    """A model of torchvision with its default weights and their own transforms.

    Args:
        name: Such as `resnet18`.

    Returns:
        The model; torchvision itself loads the weights.

    Raises:
        ValueError: If torchvision is missing, or fails, as for a name it does not know.
    """
    called = f"torchvision:{name}"
    models = imported("torchvision.models", called, "pip install torchvision")
    with told(f"torchvision has no pretrained {name!r}"):
        weights = models.get_model_weights(name).DEFAULT
        model = models.get_model(name, weights="DEFAULT").eval()
        transform = weights.transforms()
    return Loaded(called, model, Transform(transform), _names(weights.meta.get("categories")))


def _names(known: Any) -> tuple[str, ...]:
    """Names by number, of a list or of a dict by number; none where some are missing."""
    if isinstance(known, Mapping):
        known = [known[k] for k in range(len(known))] if {*known} == {*range(len(known))} else []
    return tuple(map(str, known)) if isinstance(known, Sequence) else ()
