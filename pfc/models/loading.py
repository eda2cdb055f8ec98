"""Load a model by name: from the hub, from a library, or from a function of the user's own."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pfc.models.factory import from_factory
from pfc.models.hub import from_hub
from pfc.models.libraries import from_timm, from_torchvision
from pfc.models.loaded import Loaded

SOURCES: Mapping[str, Callable[[str], Loaded]] = {
    "hf": from_hub,
    "timm": from_timm,
    "torchvision": from_torchvision,
}


def load(name: str, weights: str | Path | None = None) -> Loaded:
    """Load a model by name, with its own preprocessing and the names of its classes.

    Transformers, timm and torchvision are no dependencies; each is imported where it is asked for.
    Weights of `hf:` are read from safetensors alone and no code of a repository is run; those of `timm:`
    and `torchvision:` are loaded by these libraries in their own way, which may be a pickle of tensors.

    Args:
        name: `"hf:NAME"`, a classifier of images or texts on the Hugging Face hub, or `"hf:FOLDER"`, one
            that `save_pretrained` wrote; `"timm:NAME"`; `"torchvision:NAME"`, with its default weights;
            or `"MODULE:FUNCTION"`, a function without arguments that gives a network, or a network and
            a function from a Pillow image to its input.
        weights: Of MODULE:FUNCTION, its state dict as a safetensors file; all others have their own.

    Returns:
        The model, its preprocessing, its classes, and batches of any set as it wants them.

    Raises:
        ValueError: If the library is missing, there is no such model, it can't be fetched, it is no
            classifier, or the weights do not fit.

    Example:
        >>> load("nothing")
        Traceback (most recent call last):
        ValueError: nothing names no model: give hf:NAME, timm:NAME, torchvision:NAME or MODULE:FUNCTION
    """
    source, _, rest = name.partition(":")
    if source not in SOURCES:
        return from_factory(name, weights)
    if weights is not None:
        raise ValueError(f"{name} has its own weights; give your own to MODULE:FUNCTION")
    if not rest:
        raise ValueError(f"{name!r} lacks the name of a model after the colon")
    return SOURCES[source](rest)


def is_named(source: str) -> bool:
    """Whether a text names a model of a hub or a library.

    Args:
        source: Such as `"hf:NAME"`.

    Returns:
        Whether it begins with one of their words.
    """
    return source.partition(":")[0] in SOURCES and ":" in source
