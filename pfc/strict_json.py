"""JSON that means one thing: parsed strictly, and sealed with a checksum of its content."""

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pfc.schema import one_line, short


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """The object in a strict JSON text.

    Args:
        text: In UTF-8.
        where: What it was read from, for the message.

    Returns:
        The object.

    Raises:
        ValueError: If it is no JSON object, has a name twice, or is nested without end.
    """
    try:
        content = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_no_overflow,
        )
        _no_depth(content)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair can't be shown
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise ValueError(f"{where} is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a JSON {type(content).__name__}, not an object")
    return content


def _no_depth(value: Any, left: int = 50) -> None:
    if not left:
        raise ValueError("it is nested more than 50 deep")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_depth(part, left - 1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the name {short(name)} stands twice")
        content[name] = value
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _no_overflow(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value


def plain(value: Any) -> Any:
    """What JSON can hold: tuples as lists, NaN and the infinities as strings, which `float` reads."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content in the form of `plain`, with a checksum of itself at its end."""
    ready = json.loads(json.dumps(plain(content), allow_nan=False))
    return {**ready, "checksum": _seal(ready)}


def unsealed(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content without its checksum, which is compared; older files have none.

    Args:
        content: As it was read.
        where: What it was read from, for the message.

    Returns:
        All but the checksum.

    Raises:
        ValueError: If they do not belong together.
    """
    rest = {name: value for name, value in content.items() if name != "checksum"}
    if "checksum" in content and content["checksum"] != _seal(rest):
        raise ValueError(
            f"{where} is damaged: its content and its checksum differ (if it was changed by hand, take "
            "the checksum out)"
        )
    return rest


def _seal(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
