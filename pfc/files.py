"""Files that are old or new, never torn: written beside their place, then moved into it."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, then move it there in one step.

    Args:
        path: Where the finished file stands; its folder is made.
        write: Is given the path of the new, empty file and fills it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))


def plain(value: Any) -> Any:
    """What JSON can hold: tuples as lists, NaN and the infinities as strings, which `float` reads."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON in one step, in the form of `plain`."""
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write named tensors with string metadata as safetensors in one step."""
    from safetensors.torch import save_file

    ready = {  # copies: tied weights share memory, which the format refuses
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    replace_file(path, lambda new: save_file(ready, new, metadata=metadata))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ValueError: If there is no such file, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors by name, and its metadata.

    Raises:
        ValueError: If there is no such file, or it is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); a pickle is never loaded: convert it with "
            "safetensors.torch.save_file(torch.load(..., weights_only=True), ...)"
        ) from None
