"""What figures are given: tables and images, refused by name where they are others."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def check_tables(tables: Any, columns: Iterable[str], source: str) -> None:
    """Refuse what is no mapping of names to tables that have some columns and rows."""
    if not isinstance(tables, Mapping):
        raise ValueError(
            f"need tables by what they are called, such as {{'ridge': table}}, got "
            f"{type(tables).__name__}"
        )
    if not tables:
        raise ValueError("need at least one table, got none")
    for name, table in tables.items():
        check_frame(table, columns, repr(name), source)


def check_frame(table: "pd.DataFrame", columns: Iterable[str], name: str, source: str) -> None:
    """Refuse what is no data frame of some columns and rows."""
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{name} must be {source}, got {type(table).__name__}")
    if lacking := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{name} must be {source}, and has no column {lacking[0]!r}")
    if not len(table):
        raise ValueError(f"{name} has no rows")


def check_profile(profile: Any, name: str) -> None:
    """Refuse what is no profile."""
    from pfc.profile import Profile

    if not isinstance(profile, Profile):
        raise ValueError(f"{name} must be a Profile, as measure gives it, got {type(profile).__name__}")


def pictures(images: Any) -> "Tensor":
    """Images of any library as a tensor that matplotlib can draw."""
    import torch

    try:
        found = torch.as_tensor(images, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"images must be an array, got {type(images).__name__}: {error}") from error
    if found.ndim not in {3, 4} or (found.ndim == 4 and found.shape[1] not in {1, 3}):
        raise ValueError(f"images must be N x C x H x W with C = 1 or 3, got {(*found.shape,)}")
    return found.float() if found.dtype in {torch.bfloat16, torch.float16} else found
