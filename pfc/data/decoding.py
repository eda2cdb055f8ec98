"""Decode columns of encoded images into one tensor: a loop over Pillow on one thread."""

import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from pfc.data.images import Images
from pfc.data.sources import EncodedSet
from pfc.progress import Step, shown

MANY = 5_000  # images worth a progress bar
IMAGE_NAMES = ("image", "img", "images")
LABEL_NAMES = ("fine_label", "label", "labels", "target", "class")  # CIFAR-100: 100 fine classes


def decoded(source: EncodedSet, split: str, progress: bool) -> Images:
    """Read and decode a split."""
    image_column, label_column = _columns(source, split)
    labels, classes = _labels(source, split, label_column)
    N, where = len(labels), source.where(split)
    with shown(f"decoding {where}", N, enabled=progress and N >= MANY) as step:
        for mode in ("L", "RGB"):
            images = _decode(mode, _values(source, split, image_column), N, where, step)
            if images is not None:
                break
    assert images is not None, "every image can be RGB"
    return Images.of(images, torch.tensor(labels), classes, source.spec, split)


def _kinds(schema: Any) -> dict[str, dict[str, Any]]:
    """The hub's feature types by column; empty where the file has none."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    kinds: dict[str, dict[str, Any]] = json.loads(text).get("info", {}).get("features", {})
    return {name: kind for name, kind in kinds.items() if isinstance(kind, dict)}


def _columns(source: EncodedSet, split: str) -> tuple[str, str]:
    """The image and the label column: as given, else by feature type, else by content or name."""
    schema, where = source.schemas[split], source.where(split)
    kinds = {name: kind.get("_type") for name, kind in _kinds(schema).items()}
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    images = images or [column.name for column in schema if "binary" in str(column.type)]
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    labels = labels or [name for name in schema.names if name in LABEL_NAMES]
    for name in source.columns:
        if name is not None and name not in schema.names:
            raise ValueError(f"no column {name!r} in {where}; it has {', '.join(schema.names)}")
    return (
        source.columns[0] or _one("image", images, IMAGE_NAMES, schema.names, where),
        source.columns[1] or _one("label", labels, LABEL_NAMES, schema.names, where),
    )


def _one(what: str, found: Sequence[str], usual: Sequence[str], names: Sequence[str], where: str) -> str:
    """The first usual name among the columns found, or the only one."""
    candidates = [name for name in usual if name in found][:1] or found
    if len(candidates) != 1:
        raise ValueError(
            f"{len(found) or 'no'} {what} column(s) in {where}; choose by {what}_column=; there "
            f"are {', '.join(names)}"
        )
    return candidates[0]


def _values(source: EncodedSet, split: str, column: str) -> Iterator[Any]:
    return (value for array in source.read(split, column) for value in array.to_pylist())


def _labels(source: EncodedSet, split: str, column: str) -> tuple[list[int], tuple[str, ...]]:
    """Class indices of all rows, and the names of the classes."""
    values, where = list(_values(source, split, column)), source.where(split)
    if not values:
        raise ValueError(f"{where} is empty")
    names = _kinds(source.schemas[split]).get(column, {}).get("names")
    known = range(len(names)) if names else _held(source, column)
    names = tuple(names or map(str, known))
    index = {value: k for k, value in enumerate(known)}
    labels = [index.get(value, -1) for value in values]
    if -1 in labels:
        row = labels.index(-1)
        raise ValueError(f"row {row} of {where} has no label: {values[row]} is none of the classes")
    if len(set(labels)) < 2:
        raise ValueError(f"{where} has only one class, {names[labels[0]]!r}; need at least two")
    return labels, names


def _held(source: EncodedSet, column: str) -> list[Any]:
    """Sorted labels of all splits: the classes of a column without class names."""
    splits = [split for split, schema in source.schemas.items() if column in schema.names]
    values = [value for split in splits for value in _values(source, split, column)]
    if odd := [value for value in values if not isinstance(value, int | str | None)]:
        raise ValueError(
            f"labels must be whole numbers or text, got {odd[0]!r} in column {column!r} of "
            f"{source.spec!r}"
        )
    return sorted({v for v in values if isinstance(v, str) or (v is not None and v >= 0)})


def _decode(
    mode: str, cells: Iterable[Any], N: int, where: str, step: Step
) -> UInt8[Tensor, "N C H W"] | None:
    """Images of encoded cells in mode L or RGB, or `None` as soon as one does not fit mode L."""
    images = None
    for row, cell in enumerate(cells):
        pixels = _pixels(cell, mode, f"row {row} of {where}")
        if pixels is None:
            return None
        if images is None:
            images = torch.empty(N, *pixels.shape, dtype=torch.uint8)
            out = images.numpy()
        if pixels.shape != out.shape[1:]:
            sizes = [f"{H} x {W}" for _, H, W in (out.shape[1:], pixels.shape)]
            raise ValueError(
                f"images must have one size: in {where}, row 0 is {sizes[0]}, row {row} {sizes[1]}"
            )
        out[row] = pixels
        if row % 500 == 0:
            step(row)
    return images


def _pixels(cell: Any, mode: str, where: str) -> Any:
    """One image as a C x H x W array, or `None` if it does not fit mode L."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    cell = cell if isinstance(cell, dict) else {"bytes": cell}
    blob, path = cell.get("bytes"), cell.get("path")
    try:
        blob = Path(path).read_bytes() if path and blob is None else blob
        image: Any = Image.open(BytesIO(blob or b""))
        if mode == "L" and image.mode != "L":
            return None
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        pixels = np.asarray(image if image.mode == mode else _rgb(image))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        why = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        name = f" ({path})" if path else ""
        raise ValueError(f"{where}{name} cannot be decoded: {why}") from error
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _rgb(image: Any) -> Any:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow's way to a palette that holds transparency
    return image.convert("RGB")
