"""The numbers of a report's page: a block of JSON in its HTML, written and read back."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfc.files import check_format, expanded, reading
from pfc.profile.profile import Profile
from pfc.profile.storage import ABOUT
from pfc.schema import COUNT, FINITE, POSITIVE, TEXT, list_of, object_of, optional
from pfc.strict_json import parse_json, sealed, unsealed

FORMAT = "pfc-report-1"
OPENING = '<script type="application/json" id="pfc-data">'
CLOSING = "</script>"
EPOCH = object_of(
    {"epoch": COUNT, "columns": object_of({}, others=list_of(optional(FINITE)))},
    optional={"about": object_of({})},
)
RUN = object_of({
    **{"name": TEXT, "layers": list_of(TEXT), "shapes": list_of(list_of(POSITIVE))},
    **{"about": object_of({}), "epochs": list_of(EPOCH)},
})
SCHEMA = object_of({"runs": list_of(RUN)})  # what is read back; all else is for the page


def finite(value: Any) -> Any:
    """What a page's JSON holds: nothing in place of NaN and the infinities."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def block(content: Mapping[str, Any]) -> str:
    """The element of a page that holds its numbers, sealed; no name in it can end it."""
    text = json.dumps(sealed(finite({"format": FORMAT, **content})), separators=(",", ":"))
    return f"{OPENING}{text.replace('<', chr(92) + 'u003c')}{CLOSING}"


def read_page(path: str | Path) -> dict[str, dict[int, Profile]]:
    """Read the profiles of a report's page again.

    Args:
        path: The page, an .html file that `pfc.report.write` made.

    Returns:
        Of each run, by its name on the page, the profiles by epoch (a single profile's is 0): names,
        shapes, columns to five significant digits, and `about`. What is not finite reads back as NaN;
        moments, segments and geometry are not on a page.

    Raises:
        ValueError: If there is no such file, it is no page of a report, or it is damaged.
    """
    path = expanded(path)
    with reading(path):
        text = path.read_bytes()
    found = re.search(re.escape(OPENING.encode()) + rb"(.*?)" + re.escape(CLOSING.encode()), text, re.S)
    if found is None:
        raise ValueError(f'{path} is no page of a report: there is no element with id "pfc-data" in it')
    content = parse_json(found[1], str(path))
    check_format(content.get("format"), FORMAT, path)
    content = unsealed(content, str(path))
    SCHEMA(content, f"{path}: ")
    return {
        run["name"]: {each["epoch"]: _profile(run, each, path) for each in run["epochs"]}
        for run in content["runs"]
    }


def _profile(run: Mapping[str, Any], epoch: Mapping[str, Any], path: Path) -> Profile:
    """One epoch of a run."""
    layers, about = tuple(run["layers"]), {**run["about"], **epoch.get("about", {})}
    columns = {
        name: tuple(math.nan if value is None else float(value) for value in values)
        for name, values in epoch["columns"].items()
    }
    lengths = {len(layers), len(run["shapes"]), *map(len, columns.values())}
    if len(lengths) > 1 or len(set(layers)) < len(layers) or not layers:
        raise ValueError(
            f"{path}: layers, shapes and columns must be as many, each layer of its own name"
        )
    ABOUT(about, f"{path}: about")
    return Profile(
        layers=layers,
        shapes=tuple(map(tuple, run["shapes"])),
        columns=columns,
        moments={},
        segments=(),
        about=about,
    )
