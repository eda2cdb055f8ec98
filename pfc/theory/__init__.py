"""What theory predicts of measured features; it sees tensors and moments, never a network or a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfc.theory import descent, geodesic, mufm, path, separation, toy, transport, ufm

__all__ = ["descent", "geodesic", "mufm", "path", "separation", "toy", "transport", "ufm"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pfc.theory' has no attribute {name!r}")
    return import_module(f"pfc.theory.{name}")


def __dir__() -> list[str]:
    return __all__
