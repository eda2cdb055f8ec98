"""The page of a record: its profiles and figures as small files, tables, the environment."""

import json
import platform
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Any

import torch

from pfc import figures
from pfc.files import write_text
from pfc.profile import Profile


def keep(
    record: Path,
    profiles: Mapping[str, Profile],
    epochs: Mapping[int, Profile],
    metrics: Sequence[str],
    *,
    segments: Container[str] | None = None,
) -> None:
    """Write the profiles, without class means, with segments where they are named, and their figures."""
    for name, profile in profiles.items():
        whole = segments is None or name in segments
        kept = profile if whole else replace(profile, segments=())
        kept.save(record / f"{name}.json", means=False, pairs=False)
        figures.save(figures.layers(profile, metrics=metrics), record / f"{name}.png")
    if epochs:
        figures.save(figures.training(epochs, metrics=metrics), record / "training.png")


def layers(profiles: Mapping[str, Profile], metrics: Sequence[str]) -> Iterator[str]:
    """A line a layer, the profiles by name side by side."""
    tables = {name: profile.table() for name, profile in profiles.items()}
    heads = [f"{metric.upper()} {name}" for metric in metrics for name in tables]
    yield f"| layer | {' | '.join(heads)} |"
    yield "| --- " * (len(heads) + 1) + "|"
    for layer in next(iter(profiles.values())).layers:
        values = [table[metric][layer] for metric in metrics for table in tables.values()]
        yield f"| {layer} | " + " | ".join("-" if isnan(v) else f"{v:.4f}" for v in values) + " |"


def seeds(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a seed, with the same cells."""
    yield f"| {' | '.join(lines[0])} |"
    yield "| --- " * len(lines[0]) + "|"
    for line in lines:
        yield f"| {' | '.join(f'{v:.4f}' if isinstance(v, float) else str(v) for v in line.values())} |"


def page(record: Path, parts: Mapping[str, Iterator[str]], pictures: Mapping[str, str]) -> None:
    """The record's README: its notes, the tables under their titles, the environment, the figures."""
    lines = [(record / "NOTES.md").read_text(encoding="utf-8").rstrip(), ""]
    for title, table in parts.items():
        lines += [f"## {title}", "", *table, ""]
    config = json.loads((record / "config.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    lines += [f"Environment: {versions}, {config['machine']}, {config['threads']} thread, cpu.", ""]
    for name, words in pictures.items():
        lines += [f"![{words}]({name}.png)", ""]
    write_text(record / "README.md", "\n".join(lines))


def environment(*packages: str, **settings: Any) -> dict[str, Any]:
    """What is needed to run it again: settings, and the versions of these packages."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {
        **settings,
        "versions": versions,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
