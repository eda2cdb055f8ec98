"""What theory predicts of measured features; it sees tensors and moments, never a network or a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfc.theory import descent as descent
    from pfc.theory import geodesic as geodesic
    from pfc.theory import mufm as mufm
    from pfc.theory import path as path
    from pfc.theory import separation as separation
    from pfc.theory import toy as toy
    from pfc.theory import transport as transport
    from pfc.theory import ufm as ufm

__all__ = ["descent", "geodesic", "mufm", "path", "separation", "toy", "transport", "ufm"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pfc.theory' has no attribute {name!r}")
    return import_module(f"pfc.theory.{name}")


def __dir__() -> list[str]:
    return __all__
