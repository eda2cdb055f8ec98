"""What is in tuples, lists and dicts of any depth: found, and changed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Kinds = type | tuple[type, ...]


def found(kinds: Kinds, item: Any) -> Iterator[Any]:
    """Everything of some types."""
    if isinstance(item, kinds):
        yield item
    elif isinstance(item, tuple | list):  # asked first, as to ask for a mapping is slow
        for part in item:
            yield from found(kinds, part)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from found(kinds, part)


def changed(kinds: Kinds, change: Callable[[Any], Any], item: Any) -> Any:
    """The same with everything of some types changed; a mapping becomes a dict."""
    if isinstance(item, kinds):
        return change(item)
    if isinstance(item, tuple | list):
        parts = [changed(kinds, change, part) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    if isinstance(item, Mapping):
        return {key: changed(kinds, change, value) for key, value in item.items()}
    return item
