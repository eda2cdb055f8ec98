"""A folder of images in class folders, by rules of our own.

Those of `datasets` look for words such as `test` in the name of every file and folder and leave out what
lies beside a match: a class `crash-test` or a file `ILSVRC2012_val_00000293.JPEG` would make all other
images vanish without a word.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfc.data.classes import renumbered
from pfc.data.encoded import EncodedSet, Part, Rows
from pfc.data.listing import File, Listing, fingerprint, left_out, stamp
from pfc.data.parquet import SPLITS
from pfc.schema import nfc, quoted, some

SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .webp .tif .tiff .pbm .pgm .ppm".split())
Labelled = list[tuple[File, str]]  # images, each with its class


def image_folder(spec: str, listing: Listing) -> EncodedSet:
    """The set in a folder of images."""
    images = [file for file in listing.files if file.suffix in SUFFIXES]
    roots = _roots(listing, images)
    rows = {split: _by_class(listing, root, images) for split, root in roots.items()}
    if not any(rows.values()):
        raise ValueError(
            f"folder {quoted(spec)} has no parquet files and no images in class subfolders; images are "
            f"files in {', '.join(sorted(SUFFIXES))}"
        )
    classes = _classes(listing, roots, rows)
    splits = {split: own for split, own in rows.items() if own}
    schema, numbers = _schema(classes), {name: number for number, name in enumerate(classes)}

    def read(split: str, column: str, wanted: Rows | None = None) -> Iterator[list[Any]]:
        for i in range(len(rows[split])) if wanted is None else wanted.tolist():
            file, name = rows[split][i]
            yield [numbers[name]] if column == "label" else [{"path": str(file.path)}]

    return EncodedSet(
        spec,
        str(listing.root.absolute()),
        {split: [Part(file.name, schema, 1) for file, _ in own] for split, own in splits.items()},
        read,
        stamp([file for own in splits.values() for file, _ in own]),
        files={
            split: fingerprint([file for file, _ in own], roots[split]) for split, own in splits.items()
        },
        remarks=(*_left_out(listing, splits), *renumbered(classes)),
    )


def _schema(classes: Sequence[str]) -> Any:
    import pyarrow as pa

    kinds = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.schema(
        {"image": image, "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": kinds}})},
    )


def _roots(listing: Listing, images: Sequence[File]) -> dict[str, Path]:
    """The folder of each split; the whole one where no folder is called so."""
    holding = {file.path.relative_to(listing.root).parts[0] for file in images if len(file.parts) > 1}
    top = [folder for folder in listing.inside(listing.root) if folder.name in holding]
    splits: dict[str, list[Path]] = {}
    for folder in top:
        if split := SPLITS.get(folder.name.lower()):
            splits.setdefault(split, []).append(folder)
    others = [folder for folder in top if folder.name.lower() not in SPLITS]
    named = [folder for own in splits.values() for folder in own]
    if named and others:
        raise ValueError(
            f"in {quoted(listing.root)} {_names(listing, named)} would be a split, beside folders of "
            f"images that are none: {_names(listing, others)}; if all are classes, move them into a "
            "folder 'train' there, else move the others away"
        )
    for split, own in splits.items():
        if len(own) > 1:
            raise ValueError(
                f"{len(own)} folders in {quoted(listing.root)} are of split {split!r}: "
                f"{_names(listing, own)}; make them one, or move one away"
            )
    return {split: own[0] for split, own in splits.items()} or {"train": listing.root}


def _names(listing: Listing, paths: Sequence[Path]) -> str:
    return some(listing.name(path) for path in sorted(paths))


def _by_class(listing: Listing, root: Path, images: Sequence[File]) -> Labelled:
    """Images of a split, each with the name of its class: its folder just below the root."""
    folders = listing.inside(root)
    _refuse_two_forms(folders)
    _refuse_splits_inside(listing, root, folders)
    deep = len(root.relative_to(listing.root).parts)
    within = (f for f in images if f.path.is_relative_to(root) and len(f.parts) > deep + 1)
    return [(file, file.parts[deep]) for file in within]


def _refuse_two_forms(folders: Sequence[Path]) -> None:
    """Refuse folders whose names differ in their Unicode form alone."""
    forms: dict[str, Path] = {}
    for folder in folders:
        other = forms.setdefault(nfc(folder.name), folder)
        if other != folder:
            raise ValueError(
                f"folders {str(other)!a} and {str(folder)!a} have one name in two Unicode "
                "forms: make them one class, or rename one"
            )


def _refuse_splits_inside(listing: Listing, root: Path, folders: Sequence[Path]) -> None:
    """Refuse classes each of which holds a folder that is called like a split."""
    inner = [
        [path for path in listing.inside(folder) if path.name.lower() in SPLITS] for folder in folders
    ]
    if folders and all(inner):
        lies_in = "give the folder in which it lies"
        remedy = lies_in if len(folders) == 1 else "put the classes into splits"
        raise ValueError(
            f"in {quoted(root)} every folder of a class would hold a split, such as "
            f"{listing.name(inner[0][0])}: {remedy}"
        )


def _classes(listing: Listing, roots: Mapping[str, Path], rows: Mapping[str, Labelled]) -> list[str]:
    """The classes of all splits in the order of their names; a class folder without image is refused."""
    classes = {name for own in rows.values() for _, name in own}
    empty = [
        folder
        for split, root in roots.items()
        for folder in listing.inside(root)
        if rows[split] and nfc(folder.name) not in classes
    ]
    if empty:
        raise ValueError(
            f"no image lies in {_names(listing, empty)} of {quoted(listing.root)}: if it is a class, "
            f"put its images there ({', '.join(sorted(SUFFIXES))}), else move the folder away"
        )
    return sorted(classes)


def _left_out(listing: Listing, splits: Mapping[str, Labelled]) -> Iterator[str]:
    """What lies beside the images of the classes: other files, and folders without any image."""
    read = {file.path for rows in splits.values() for file, _ in rows}
    yield from left_out(listing, read)
    holding = {folder for file in listing.files for folder in file.path.parents}
    if empty := [folder for folder in listing.inside(listing.root) if folder not in holding]:
        yield f"no image lies in {_names(listing, empty)} of {quoted(listing.root)}"
