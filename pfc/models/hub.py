"""Models of transformers: from the Hugging Face hub, or from a folder that `save_pretrained` wrote."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pfc.data.classes import names_of_model
from pfc.files import expanded
from pfc.foreign import attribute, in_words, is_ours
from pfc.models.libraries import imported
from pfc.models.loaded import Loaded
from pfc.models.preprocessing import ImageProcessor, Preprocessing, Tokenizer, longest
from pfc.schema import one_line, some

SAFE = {"trust_remote_code": False}  # no code of a repository is run
TASKS = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
NOWHERE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError")


def from_hub(name: str) -> Loaded:
    """A classifier of images or texts, float32, its weights from safetensors alone.

    Args:
        name: A name on the hub, or a folder.

    Returns:
        The model with its image processor (the Pillow one, so that the numbers are the same with and
        without torchvision) or its tokenizer.

    Raises:
        ValueError: If transformers is missing, there is no such model, it can't be fetched, it is no
            classifier of images or texts, or has other weights than safetensors.
    """
    called = f"hf:{name}"
    transformers = imported("transformers", called, "pip install 'pfc[hf]'")
    place = _place(name)
    with _telling(called, name, "cannot be loaded"):
        config = transformers.AutoConfig.from_pretrained(place, **SAFE)
        task = _task(config, called)
        model = _model(getattr(transformers, TASKS[task]), place, called)
    read = _image_processor if task == "ForImageClassification" else _tokenizer
    with _telling(called, name, "has no preprocessing of its own that can be loaded"):
        preprocessing = read(transformers, place, model, called)
    return Loaded(called, model, preprocessing, names_of_model(model))


def _place(name: str) -> str:
    """A folder, or else a name on the hub."""
    folder = expanded(name)
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"no folder {name!r}: give one that save_pretrained wrote, or a hub name")
    if "/" in name and folder.parent.is_dir():
        raise ValueError(
            f"no folder {name!r}, though there is a folder {str(folder.parent)!r}, so the hub is not "
            "asked: give a folder that save_pretrained wrote, or call from elsewhere for a hub name"
        )
    return name


def _task(config: Any, called: str) -> str:
    kinds = [str(kind) for kind in attribute(config, "architectures") or []]
    for task in TASKS:
        if any(task in kind for kind in kinds):
            return task
    raise ValueError(
        f"{called} is no classifier of images or texts but {some(kinds) or 'of no kind that it tells'}: "
        "measure it from Python by pfc.measure, with batches of its inputs"
    )


def _model(auto: Any, place: str, called: str) -> nn.Module:
    precision = {"dtype": torch.float32} if _version() >= 5 else {}  # 4 reads float32 unasked
    model, found = auto.from_pretrained(
        place, use_safetensors=True, output_loading_info=True, **precision, **SAFE
    )
    if lacking := sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])}):
        raise ValueError(
            f"the weights of {called} lack {some(lacking)}, which would be drawn at random: it is not "
            "trained to the end"
        )
    return model.eval()


def _version() -> int:
    import transformers

    return int(transformers.__version__.partition(".")[0])


def _image_processor(transformers: Any, place: str, model: nn.Module, called: str) -> Preprocessing:
    new = find_spec("transformers.image_processing_backends") is not None
    pillow = {"backend": "pil"} if new else {"use_fast": False}
    return ImageProcessor(transformers.AutoImageProcessor.from_pretrained(place, **pillow, **SAFE))


def _tokenizer(transformers: Any, place: str, model: nn.Module, called: str) -> Preprocessing:
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **SAFE)
    if not _words(tokenizer):
        raise ValueError(
            f"{called} has no vocabulary, so each word would be the unknown one: put the files of its "
            f"tokenizer ({some(_files(tokenizer))}) beside its weights, as save_pretrained writes them"
        )
    if tokenizer.pad_token is None or attribute(model.config, "pad_token_id") is None:
        raise ValueError(
            f"{called} has no padding token, so texts of different lengths make no batch: set it in its "
            "tokenizer (pad_token) and its config (pad_token_id), and save both anew"
        )
    return Tokenizer(tokenizer, longest(tokenizer, model))


def _words(tokenizer: Any) -> bool:
    """Whether it knows more than marks; without its files transformers makes one that knows these."""
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), ""}
    return any(token.strip("\u2581") not in marks for token in tokenizer.get_vocab())  # of a space


def _files(tokenizer: Any) -> list[str]:
    return sorted({"tokenizer.json", *(attribute(tokenizer, "vocab_files_names") or {}).values()})


@contextmanager
def _telling(called: str, name: str, what: str) -> Iterator[None]:
    """Tell what transformers and its libraries raise, and what to do."""
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        if any(type(each).__name__ in NOWHERE for each in _causes(error)):
            raise ValueError(
                f"offline: {called} is no folder and not in this machine's cache, and the hub cannot be "
                f"reached: "
                f"fetch it where it can (`hf download {name} --local-dir FOLDER`), then give hf:./FOLDER"
            ) from error
        why = one_line(in_words(error))
        if "custom code" in why:
            why = (
                "it needs code of its repository, and none is run: load it in a MODULE:FUNCTION of yours"
            )
        elif "safetensors" in why:
            why += " (a pickle is never loaded: save the model anew by save_pretrained)"
        raise ValueError(f"{called} {what}: {why}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
