"""What config.json keeps of a run's data, and how other data differ from them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfc.data import Images
from pfc.data.classes import difference as names_differ
from pfc.files import expanded


def about_data(images: Images) -> dict[str, Any]:
    """What is kept of the images: enough to load them again, and to tell them from others."""
    origin = images.origin
    names = ("counts", "files", "image_column", "label_column")
    where = {"spec": origin.path, **{name: getattr(origin, name) for name in names}} if origin else {}
    return {
        **{name: getattr(images, name) for name in ("spec", "split", "limit", "seed")},
        **where,
        "samples": len(images),
        "shape": list(images.shape),
        "classes": len(images.classes),
        "names": list(images.classes),
        "normalisation": asdict(images.normalisation),
        "fingerprint": images.fingerprint,
    }


def resolved(spec: str) -> str:
    """A folder by its absolute path; what is no folder as it is."""
    folder = expanded(spec)
    return str(folder.absolute()) if folder.is_dir() and spec != "digits" else spec


def differences(known: Mapping[str, Any], images: Images) -> Iterator[str]:
    """How images differ from those that a run has kept of the same split and limit, in words."""
    parts = {"samples": len(images), "shape": list(images.shape), "classes": len(images.classes)}
    words = {"samples": "images", "shape": "the size", "classes": "classes"}
    for name, now in parts.items():
        if known.get(name, now) != now:
            yield f"{words[name]} {known[name]} then, {now} now"
    yield from _renamed(known, images)
    if known.get("fingerprint", images.fingerprint) != images.fingerprint:
        yield "other pixels, labels or names, by their fingerprint"


def changes(known: Mapping[str, Any], images: Images) -> Iterator[str]:
    """How another split differs from what a run has kept of it, in words."""
    split = images.split
    now = images.origin.counts.get(split) if images.origin else None
    was = known.get("counts", {}).get(split, now)
    if was != now:
        yield f"{was} images of split {split!r} then, {now} now"
    yield from _renamed(known, images)
    files = (images.origin.files if images.origin else {}).get(split)
    if known.get("files", {}).get(split, files) != files:
        yield f"other files of split {split!r}, by their names and sizes"


def _renamed(known: Mapping[str, Any], images: Images) -> Iterator[str]:
    if how := names_differ(known.get("names", images.classes), images.classes):
        yield f"{how} (then and now)"


def moved(known: Mapping[str, Any]) -> bool:
    """Whether the folder of a run's data is no longer there."""
    spec = known["spec"]
    return os.path.isabs(spec) and not Path(spec).is_dir()
