"""What `pfc prune`, `pfc exits` and `pfc scores` found of a run: kept in its folder, and read again."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pfc.acting.gauges import KINDS
from pfc.acting.heldout import Change
from pfc.acting.unknown import BASELINES
from pfc.files import read_json, write_json
from pfc.profile import Profile
from pfc.profile.prediction import checksum
from pfc.schema import (
    COUNT,
    FRACTION,
    NUMBER,
    POSITIVE,
    TEXT,
    WHOLE,
    Form,
    form_of,
    list_of,
    object_of,
    one_of,
    optional,
    scalar,
    up_to,
)

if TYPE_CHECKING:
    import pandas as pd

Name = Literal["prune", "exits", "scores"]

UNIT = up_to(1.0)  # also of a sum of fractions, which rounding may carry beyond
SIGNED = scalar("a number from -1 to 1", lambda v: type(v) in {int, float} and abs(v) <= 1 + 1e-9)
MOST = 1e6  # operations over those of the whole network that a file may tell; ours
ACCURACY = {
    **{"accuracy": UNIT, "change": SIGNED, "low": SIGNED, "high": SIGNED},
    **{"share": up_to(MOST)},
}
TYPICAL = {"q05": NUMBER, "median": NUMBER, "q95": NUMBER}
APART = {
    **{f"unknown_{name}": form for name, form in TYPICAL.items()},
    **{name: UNIT for name in ("auroc", "low", "high", "nc5", "centred")},
}
COLUMNS: dict[Name, dict[str, Form]] = {  # of the tables; the first one is the index
    "prune": {
        **{"layer": TEXT, "removed": COUNT, "head": TEXT, "penalty": NUMBER, "operations": COUNT},
        **ACCURACY,
        "chosen_low": SIGNED,
    },
    "exits": {"threshold": up_to(math.inf), **ACCURACY, "early": UNIT},
    "scores": {"layer": TEXT, **TYPICAL},
}
ABOUT = object_of({"data": TEXT, "seed": WHOLE})
TOLD: dict[Name, dict[str, Form]] = {  # what must stand beside the table; all else is free
    "prune": {
        **{"layer": TEXT, "removed": list_of(TEXT), "head": TEXT, "eps": FRACTION, "about": ABOUT},
        **{"operations": list_of(COUNT, 2), "change": form_of(Change)},
    },
    "exits": {
        **{"threshold": optional(up_to(math.inf)), "eps": FRACTION, "about": ABOUT},
        **{"share": up_to(MOST), "exits": object_of({}, others=UNIT), "change": form_of(Change)},
    },
    "scores": {
        **{"kind": one_of(*KINDS), "data": TEXT, "samples": POSITIVE},
        **{"unknown": optional(TEXT), "unknown_samples": COUNT},
    },
}


@dataclass(frozen=True, eq=False)
class Kept:
    """What a command found.

    Args:
        told: What was chosen, of which data and how.
        table: A row a cut, a threshold or a layer.
    """

    told: Mapping[str, Any]
    table: "pd.DataFrame"


def place(folder: Path, name: Name) -> Path:
    """Where what a command found stands in a run's folder."""
    return folder / f"{name}.json"


def as_told(told: Mapping[str, Any], table: "pd.DataFrame") -> dict[str, Any]:
    """Numbers and table as one object; the table column by column."""
    return {**told, "table": table.reset_index().to_dict("list")}


def keep(folder: Path, name: Name, profile: Profile, told: Mapping[str, Any]) -> None:
    """Write what `as_told` gives, in place of what an earlier call has found.

    Args:
        folder: The run's.
        name: Of the command.
        profile: The run's, of which it was found.
        told: What was found.
    """
    content = {"format": f"pfc-{name}-1", "profile": checksum(profile), **told}
    write_json(place(folder, name), content)


def kept(folder: Path, name: Name, profile: Profile) -> Kept | None:
    """Read what a command has found.

    Args:
        folder: The run's.
        name: Of the command.
        profile: The run's; what was found of another one is left out, with a warning.

    Returns:
        What was found; `None` if there is nothing.

    Raises:
        ValueError: If the file is damaged, or of another format.
    """
    path = place(folder, name)
    if not path.exists():
        return None
    content = read_json(path, f"pfc-{name}-1", _schema(name))
    if content.pop("profile") != checksum(profile):
        message = f"{path} is of another profile, and is left out: call `pfc {name}` again"
        warnings.warn(message, stacklevel=2)
        return None
    columns = content.pop("table")
    return Kept(content, _table(name, columns, path))


def _schema(name: Name) -> Form:
    """What a file must hold; of scores beside unknown data some columns more."""

    def table(value: Any, where: str) -> None:
        beside = name == "scores" and isinstance(value, dict) and "auroc" in value
        columns = COLUMNS[name] | (APART if beside else {})
        forms = {each: list_of(form) for each, form in columns.items()}
        object_of(forms, closed=True)(value, where)

    return object_of({"profile": TEXT, "table": table, **TOLD[name]})


def _table(name: Name, columns: Mapping[str, Any], path: Path) -> "pd.DataFrame":
    """The table of a file, whose columns have been checked one by one."""
    import pandas as pd

    index, *_ = COLUMNS[name]
    if len({*map(len, columns.values())}) > 1 or not columns[index]:
        raise ValueError(f"{path}: the columns of the table must be of one length, and not empty")
    as_written = {each for each, form in COLUMNS[name].items() if form in {TEXT, COUNT}}
    told = {
        each: values if each in as_written else [*map(float, values)] for each, values in columns.items()
    }
    table = pd.DataFrame(told).set_index(index)
    if name == "scores" and not (table.index.is_unique and {*table.index} - {*BASELINES}):
        raise ValueError(
            f"{path}: each layer must have a name of its own, beside {', '.join(BASELINES)}"
        )
    return table
