"""A profile's two files: numbers as JSON, arrays as safetensors beside it."""

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from pfc.files import (
    expanded,
    format_of,
    read_json,
    read_tensors,
    reading,
    refuse_pickle,
    write_json,
    write_tensors,
)
from pfc.line import ENDS, End, StepCurve
from pfc.moments import ClassMoments
from pfc.profile.classes import ClassGeometry, SamplePoints
from pfc.profile.columns import COLUMNS
from pfc.profile.segment import Segment
from pfc.schema import (
    COUNT,
    EXPONENT,
    FRACTION,
    NUMBER,
    POSITIVE,
    TEXT,
    Array,
    check_arrays,
    list_of,
    object_of,
    one_of,
    optional,
    short,
    up_to,
)
from pfc.strict_json import parse_json
from pfc.theory.path import names as path_numbers

FORMAT = "pfc-profile-1"
ABOUT = object_of(
    {
        **{"model": TEXT, "chosen": TEXT, "samples": POSITIVE, "classes": POSITIVE},
        **{"weighting": one_of("class", "sample"), "accuracy": optional(FRACTION)},
    },
    optional={
        "data": optional(TEXT),
        "means": optional(TEXT),
        "pool": TEXT,
        "exponents": object_of({}, others=EXPONENT),
    },
)
SCHEMA = object_of(  # what the JSON file must hold; all else is free
    {
        "about": ABOUT,
        "layers": list_of(TEXT),
        "shapes": list_of(list_of(POSITIVE)),
        "columns": object_of(
            {},
            optional={name: list_of(up_to(c.highest)) for name, c in COLUMNS.items()},
            others=list_of(NUMBER),
        ),
        "segments": list_of(
            object_of({"start": COUNT, "layers": list_of(TEXT)}, optional={"sampled": COUNT})
        ),
        "arrays": TEXT,
    },
    optional={"errors": object_of({}, others=list_of(NUMBER))},
)
MOMENTS = {"count": "count", "mean": "mean", "scatter": "scatter", "low": "mean_error"}  # in files: here
LAYER = {"count": Array("K"), "mean": Array("K D"), "scatter": Array("K"), "low": Array("K D")}
SEGMENT = {  # K classes with samples, L increments
    "count": Array("K"),
    "scatter": Array("2 K"),
    "cross": Array("K"),
    "means": Array("2 K R"),
    "steps": Array("K L L"),
}
CURVE = {"starts": Array("B"), "stops": Array("B")}
QUANTILES = Array("C 101", finite=False)


def write(
    path: str | Path,
    *,
    layers: Sequence[str],
    shapes: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[float]],
    moments: Mapping[str, ClassMoments],
    segments: Sequence[Segment],
    about: Mapping[str, Any],
    geometry: Mapping[str, ClassGeometry],
    sample: SamplePoints | None,
    errors: Mapping[str, Sequence[float]],
    pairs: bool = True,
) -> None:
    """Write both files; what is given are the fields of a `Profile`, and whether to keep `pairs`."""
    path = _json_path(path)
    refuse_foreign(path)
    arrays = {
        f"segment/{i}/{name}": array
        for i, segment in enumerate(segments)
        for name, array in segment.arrays().items()
    }
    for name, each in moments.items():
        arrays |= {f"layer/{name}/{key}": getattr(each, own) for key, own in MOMENTS.items()}
    for name, classes in geometry.items():
        own = classes.arrays(pairs=pairs)
        arrays |= {f"classes/{name}/{key}": array for key, array in own.items()}
    if sample is not None:
        arrays |= {f"sample/{key}": array for key, array in sample.arrays().items()}
    content = {
        "format": FORMAT,
        "about": dict(about),
        "layers": list(layers),
        "shapes": [list(shape) for shape in shapes],
        "columns": dict(columns),
        "segments": [segment.to_dict() for segment in segments],
        **({"errors": dict(errors)} if errors else {}),
    }
    _write_both(path, content, arrays)


def _write_both(path: Path, content: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    """Write the two files so that at every moment the JSON file and its own arrays are there.

    The arrays wait under another name until the JSON file is replaced, and take their place then.
    """
    beside, coming = _places(path)
    if coming.exists() and path.exists() and _digest(coming) in path.read_text(errors="replace"):
        coming.replace(beside)  # a killed process had replaced the JSON file only
    try:
        write_tensors(coming, arrays, format=FORMAT)
        write_json(path, {**content, "arrays": _digest(coming)})
    except BaseException:
        coming.unlink(missing_ok=True)
        raise
    coming.replace(beside)


def refuse_foreign(path: Path) -> None:
    """Refuse to write a profile that would replace a file of something else.

    Args:
        path: The profile's .json file.

    Raises:
        ValueError: If there is such a file.
    """
    if _json_format(path) not in (FORMAT, None):
        raise ValueError(f"{path} holds no profile and would be replaced by one: choose another name")
    beside, _ = _places(path)
    if beside.exists() and format_of(beside) not in {FORMAT, None}:
        raise ValueError(
            f"{beside} holds other tensors, and {path} would replace it: choose another name"
        )


def _json_format(path: Path) -> Any:
    """What a JSON file calls its format, empty if nothing; `None` of no file or a damaged one."""
    try:
        with reading(path):
            return parse_json(path.read_bytes(), str(path)).get("format", "")
    except ValueError:
        return None


def _places(path: Path) -> tuple[Path, Path]:
    """Where the arrays of a profile stand, and where they wait for its JSON file."""
    beside = path.with_suffix(".safetensors")
    return beside, beside.with_name(f"{beside.name}.next")


def _digest(path: Path) -> str:
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: str | Path) -> dict[str, Any]:
    """The fields of the `Profile` that a file holds."""
    refuse_pickle(expanded(path))
    path = _json_path(path)
    content = read_json(path, FORMAT, SCHEMA)
    arrays = _arrays(path, content["arrays"])
    about, layers = content["about"], tuple(content["layers"])
    shapes = tuple(tuple(shape) for shape in content["shapes"])
    columns = {name: tuple(map(float, values)) for name, values in content["columns"].items()}
    errors = {name: tuple(map(float, values)) for name, values in content.get("errors", {}).items()}
    lengths = {len(layers), len(shapes), *map(len, columns.values()), *map(len, errors.values())}
    if len(lengths) > 1 or len(set(layers)) < len(layers) or not layers:
        raise ValueError(
            f"{path}: layers, shapes and columns must be as many, each layer of its own name"
        )
    return {
        "layers": layers,
        "shapes": shapes,
        "columns": columns,
        "moments": {
            name: _moments(f"layer/{name}/", prod(shape), about["classes"], arrays, path)
            for name, shape in zip(layers, shapes, strict=True)
            if f"layer/{name}/mean" in arrays
        },
        "segments": tuple(
            _segment(each, layers, about, arrays, f"segment/{i}/", path)
            for i, each in enumerate(content["segments"])
        ),
        "about": about,
        "geometry": {
            name: ClassGeometry.restored(own, f"{path}: classes/{name}/")
            for name in layers
            if (own := _under(f"classes/{name}/", arrays))
        },
        "sample": _sample(_under("sample/", arrays), layers, path),
        "errors": errors,
    }


def _under(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays whose names begin so, by what follows."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _sample(own: Mapping[str, Tensor], layers: Sequence[str], path: Path) -> SamplePoints | None:
    if not own:
        return None
    found = SamplePoints.restored(own, f"{path}: sample/")
    if set(found.points) != set(layers):
        raise ValueError(
            f"{path}: sample/ must be of the profile's layers, got {short(list(found.points))}"
        )
    return found


def _arrays(path: Path, digest: str) -> dict[str, Tensor]:
    """The arrays of a profile: of its two places, from the one that has what the JSON file names."""
    beside, coming = _places(path)
    if coming.exists() and _digest(coming) == digest:
        beside = coming
    refuse_pickle(beside)
    if _digest(beside) != digest:
        raise ValueError(f"{beside} does not belong to {path}; measure again")
    return read_tensors(beside, FORMAT)[0]


def _moments(
    prefix: str, features: int, classes: int, arrays: Mapping[str, Tensor], path: Path
) -> ClassMoments:
    parts = {key: arrays[prefix + key] for key in MOMENTS if prefix + key in arrays}
    check_arrays(parts, LAYER, {"K": classes, "D": features}, f"{path}: {prefix}")
    return ClassMoments(**{own: parts[key] for key, own in MOMENTS.items()})


def _segment(
    content: Mapping[str, Any],
    layers: tuple[str, ...],
    about: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    prefix: str,
    path: Path,
) -> Segment:
    """A segment, if its parts belong together; its arrays stand under a prefix."""
    own = _under(prefix, arrays)
    start, names = content["start"], tuple(content["layers"])
    if len(names) < 2 or layers[start : start + len(names)] != names:
        raise ValueError(
            f"{path}: {prefix} must be two or more layers from layer {start} on, got {short(names)}"
        )
    sizes = {"L": len(names) - 1, "C": len(path_numbers(len(names) - 1))}
    check_arrays(own, SEGMENT, sizes, f"{path}: {prefix}")
    if not bool((own["count"] > 0).all()) or sizes["K"] < 2:
        raise ValueError(f"{path}: {prefix}count must be of two or more classes with samples")
    if "quantiles" in own:
        QUANTILES.check(own["quantiles"], sizes, f"{path}: {prefix}quantiles")
    return Segment(
        start=start,
        layers=names,
        weighting=about["weighting"],
        curves={
            end: _curve(own, end, about["samples"], f"{path}: {prefix}")
            for end in ENDS
            if f"curve/{end}/starts" in own
        },
        quantiles=own.get("quantiles"),
        sampled=content.get("sampled", 0),
        exponent=about.get("exponents", {}).get(names[0], 0),
        **{name: own[name] for name in SEGMENT},
    )


def _curve(arrays: Mapping[str, Tensor], end: End, samples: int, where: str) -> StepCurve:
    parts = {name: arrays[f"curve/{end}/{name}"] for name in CURVE if f"curve/{end}/{name}" in arrays}
    check_arrays(parts, CURVE, {}, f"{where}curve/{end}/")
    for name, times in parts.items():
        if not bool((times.diff() >= 0).all() & (times >= 0).all() & (times <= 1.001).all()):
            raise ValueError(f"{where}curve/{end}/{name} must ascend from 0 to 1")
    return StepCurve(samples, **parts)


def _json_path(path: str | Path) -> Path:
    path = expanded(path)
    if path.suffix != ".json":
        raise ValueError(f"a profile's path ends in .json, got {path}")
    return path
