"""A profile's numbers in other forms: as text, with intervals, beside another's, flat for loggers."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from html import escape
from typing import TYPE_CHECKING

from pfc.intervals import UNKNOWN, normal, of_ratio, wilson
from pfc.profile.columns import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

    from pfc.profile.profile import Profile


def as_text(profile: "Profile") -> str:
    """The headline, and the main columns of the table."""
    shown = [name for name, column in COLUMNS.items() if column.main and name in profile.columns]
    table = profile.table()[shown].to_string(float_format=_short, na_rep="-")
    return f"{_headline(profile)}\n{table}"


def as_html(profile: "Profile") -> str:
    """The headline and the whole table, for notebooks."""
    return f"<p>{escape(_headline(profile))}</p>{profile.table().to_html(float_format=_short)}"


def _headline(profile: "Profile") -> str:
    about, means = profile.about, profile.about.get("means")
    accuracy = "" if profile.accuracy is None else f", accuracy {profile.accuracy:.4f}"
    return (
        f"{about['model']}: {about['samples']} samples, {about['classes']} classes"
        f"{accuracy}, weighting by {about['weighting']}, layers: {about['chosen']}, "
        + ("about their own class means" if means is None else f"about the class means of {means}")
    )


def _short(x: float) -> str:
    return f"{x:.4g}"


def side_by_side(
    profile: "Profile", other: "Profile", names: Sequence[str] | None = None
) -> "pd.DataFrame":
    """The metrics of two profiles at the layers that both have, metric by metric."""
    import pandas as pd

    pair = (profile, other)
    names = [p.about.get("data") or p.about["model"] for p in pair] if names is None else list(names)
    if len(set(names)) != 2 or len(names) != 2:
        raise ValueError(f"names must be two different ones, got {', '.join(map(repr, names))}")
    layers = [layer for layer in profile.layers if layer in other.layers]
    if not layers:
        raise ValueError(f"no layer in common: {', '.join(profile.layers)}; {', '.join(other.layers)}")
    both = pd.concat([p.table().loc[layers] for p in pair], axis=1, keys=names)
    shared = [column for column in profile.columns if column in other.columns]
    return both.swaplevel(axis=1)[[(column, name) for column in shared for name in names]]


def intervals_of(profile: "Profile", level: float) -> dict[str, list[float]]:
    """Both ends of an interval for each of PFC1-3 at every layer."""
    z, N = normal(level), profile.about["samples"]
    if not profile.errors:
        raise ValueError("no intervals are known: measure with intervals=True")
    of = {
        "pfc1": lambda x, error: of_ratio(x, z * error),
        "pfc2": lambda x, error: (max(0.0, x - z * error), min(math.sqrt(2), x + z * error)),
        "pfc3": lambda x, _: wilson(x, N, z),
    }
    errors = {**profile.errors, "pfc3": (0.0,) * len(profile.layers)}
    found: dict[str, list[float]] = {}
    for metric, interval in of.items():
        pairs = [
            UNKNOWN if math.isnan(x) or math.isnan(error) else interval(x, error)
            for x, error in zip(profile.columns[metric], errors[metric], strict=True)
        ]
        found |= {
            f"{metric}_{end}": [pair[i] for pair in pairs] for i, end in enumerate(("low", "high"))
        }
    return found


def scalars_of(
    profile: "Profile", prefix: str, layers: str | Sequence[str], by: str
) -> dict[str, float]:
    """The metrics of chosen layers, accuracy and effective depth, without what is NaN."""
    if by not in {"layer", "metric"}:
        raise ValueError(f"by must be 'layer' or 'metric', got {by!r}")
    last, names = layers == "last", profile.layers
    found = {
        f"{prefix}{_key(None if last else names[l], metric, by)}": float(values[l])
        for l in ([-1] if last else _chosen(names, layers))
        for metric, values in profile.columns.items()
    }
    depth = profile.effective_depth() if "pfc3" in profile.columns else None
    for name, value in (("accuracy", profile.accuracy), ("effective_depth", depth)):
        if value is not None:
            found[f"{prefix}{name}"] = float(value)
    return {key: value for key, value in found.items() if not math.isnan(value)}


def _key(layer: str | None, metric: str, by: str) -> str:
    if layer is None:
        return metric
    return f"{layer}/{metric}" if by == "layer" else f"{metric}/{layer}"


def _chosen(names: Sequence[str], layers: str | Sequence[str]) -> list[int]:
    """The rows of the layers that are named."""
    globs = ["*"] if layers == "all" else [layers] if isinstance(layers, str) else list(layers)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"no layer matches {glob!r}; measured are {', '.join(names)}")
    return [l for l, name in enumerate(names) if any(fnmatchcase(name, glob) for glob in globs)]
