"""A model of the user's own: what MODULE:FUNCTION gives."""

import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import nn

from pfc.data.classes import names_of_model
from pfc.files import check_format, expanded, read_tensors, refuse_pickle
from pfc.foreign import told
from pfc.models.loaded import Loaded
from pfc.models.preprocessing import Transform
from pfc.training import fill
from pfc.training.config import FORMAT as RUN


def from_factory(name: str, weights: str | Path | None) -> Loaded:
    """What a function without arguments gives, found as Python imports its module from here.

    Args:
        name: MODULE:FUNCTION, whose function gives a network, or a network and a function that makes
            its input tensor of one Pillow image; or MODULE:NETWORK.
        weights: Its state dict as safetensors; as the function gives it if `None`.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such function, it fails, gives something else, or the weights do not
            fit.
    """
    refuse_pickle(expanded(name))
    check_name(name)
    sys.path.insert(0, "")
    try:
        with told(f"{name} failed"):  # whatever the user's own module or function raises
            found = _found(name)
            found = found() if callable(found) and not isinstance(found, nn.Module) else found
    finally:
        sys.path.remove("")
    model, transform = found if _is_pair(found) else (found, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} gave {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        _put(expanded(weights), model, name)
    preprocessing = None if transform is None else Transform(transform)
    return Loaded(name, model, preprocessing, names_of_model(model))


def _is_pair(found: Any) -> bool:
    return isinstance(found, tuple | list) and len(found) == 2 and callable(found[1])


def _put(weights: Path, model: nn.Module, name: str) -> None:
    refuse_pickle(weights)
    tensors, about = read_tensors(weights)
    if about.get("format", "").startswith("pfc-"):
        check_format(about["format"], RUN, weights)
    fill(model, tensors, weights, name)


def check_name(source: str) -> None:
    """Refuse what can't name a function, with what would."""
    name, colon, function = source.partition(":")
    if colon and name.endswith(".py"):
        module = ".".join(Path(name).with_suffix("").parts)
        raise ValueError(
            f"{name} is a file; name its module, as Python imports it from here: {module}:{function}"
        )
    if not colon:
        raise ValueError(
            f"{source} names no model: give hf:NAME, timm:NAME, torchvision:NAME or MODULE:FUNCTION"
        )


def _found(name: str) -> Any:
    """What MODULE:FUNCTION names."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"can't find {name}: {error}") from error
