"""Decode columns of encoded images into one tensor: a loop over Pillow on one thread."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from pfc.data.classes import Numbering, kinds, numbering, values
from pfc.data.encoded import EncodedSet
from pfc.data.images import Images
from pfc.files import POINTER
from pfc.foreign import in_words
from pfc.progress import Step, shown
from pfc.schema import one_line

MANY = 5_000  # images worth a progress bar
IMAGE_NAMES = ("image", "img", "images")
LABEL_NAMES = ("fine_label", "label", "labels", "target", "class")  # CIFAR-100: 100 fine classes


@dataclass(frozen=True)
class Columns:
    """The columns of a split that are read.

    Args:
        image: With the images.
        label: With the labels.
        others: Other columns that could have been the labels'.
    """

    image: str
    label: str
    others: tuple[str, ...] = ()


def decoded(source: EncodedSet, split: str, columns: Columns, progress: bool) -> Images:
    """Read and decode a split."""
    labels, numbers = _labels(source, split, columns.label)
    N, where = len(labels), source.where(split)
    with shown(f"decoding {where}", N, enabled=progress and N >= MANY) as step:
        for mode in ("L", "RGB"):
            images = _decode(mode, source, split, columns.image, N, step)
            if images is not None:
                break
    assert images is not None, "every image can be RGB"
    whole = Images.of(images, torch.tensor(labels, device="cpu"), numbers.names, source.spec, split)
    return replace(whole, unused=numbers.unused, remarks=numbers.remarks)


def columns_of(source: EncodedSet, split: str) -> Columns:
    """The image and the label column: as given, else by feature type, else by content or name."""
    first, *rest = source.splits[split]
    names, where = first.schema.names, source.where(split)
    types = {name: kind.get("_type") for name, kind in kinds(first).items() if name in names}
    images = [name for name in names if types.get(name) == "Image"]
    images = images or [column.name for column in first.schema if "binary" in str(column.type)]
    labels = [name for name in names if types.get(name) == "ClassLabel"]
    labels = labels or [name for name in names if name in LABEL_NAMES]
    for name in source.columns:
        if name is not None and name not in names:
            raise ValueError(f"no column {name!r} in {where}; it has {', '.join(names)}")
    image = source.columns[0] or _one("image", images, IMAGE_NAMES, names, where)
    label = source.columns[1] or _one("label", labels, LABEL_NAMES, names, where)
    for part in rest:
        if part.schema is not first.schema and (lacks := {image, label} - {*part.schema.names}):
            raise ValueError(
                f"no column {min(lacks)!r} in {part.name} of {where}, as {first.name} has; it has "
                f"{', '.join(part.schema.names)}"
            )
    return Columns(image, label, tuple(name for name in labels if name != label))


def _one(what: str, found: Sequence[str], usual: Sequence[str], names: Sequence[str], where: str) -> str:
    """The first usual name among the columns found, or the only one."""
    candidates = [name for name in usual if name in found][:1] or found
    if len(candidates) != 1:
        raise ValueError(
            f"{len(found) or 'no'} {what} column(s) in {where}; choose by {what}_column=; there "
            f"are {', '.join(names)}"
        )
    return candidates[0]


def _labels(source: EncodedSet, split: str, column: str) -> tuple[list[int], Numbering]:
    """Class numbers of all rows, and the numbering."""
    found, where = list(values(source, split, column)), source.where(split)
    if not found:
        raise ValueError(f"{where} is empty")
    known = numbering(source, split, column)
    labels = [known.numbers.get(label, -1) for label in found]
    if -1 in labels:
        row = labels.index(-1)
        raise ValueError(f"{source.row(split, row)} has no label: {found[row]!r} is none of the classes")
    if len(set(labels)) < 2:
        raise ValueError(f"{where} has only one class, {known.names[labels[0]]!r}; need at least two")
    return labels, known


def _decode(
    mode: str, source: EncodedSet, split: str, column: str, N: int, step: Step
) -> UInt8[Tensor, "N C H W"] | None:
    """Images of a split in mode L or RGB, or `None` as soon as one does not fit mode L."""
    images, row = None, -1
    cells = (cell for some in source.read(split, column) for cell in some)
    for row, cell in enumerate(cells):
        try:
            pixels = _pixels(cell, mode, source.paths)
        except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
            raise ValueError(f"{source.row(split, row)} cannot be decoded: {_why(error)}") from error
        if pixels is None:
            return None
        images = _room(N, pixels.shape, source.where(split)) if images is None else images
        if pixels.shape != images.shape[1:]:
            sizes = [f"{H} x {W}" for _, H, W in (images.shape[1:], pixels.shape)]
            raise ValueError(
                f"images must have one size: in {source.where(split)}, row 0 is {sizes[0]}, row {row} "
                f"{sizes[1]}: {source.row(split, row)}"
            )
        images.numpy()[row] = pixels
        if row % 500 == 0:
            step(row)
    if row + 1 != N:
        raise ValueError(f"{source.where(split)} has {N} labels and {row + 1} images")
    return images


def _why(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return one_line(in_words(error))


def _room(N: int, shape: tuple[int, ...], where: str) -> UInt8[Tensor, "N C H W"]:
    """An empty tensor for all images."""
    try:
        return torch.empty(N, *shape, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"no memory for {N:,} images of {where}, {N * prod(shape) / 1e9:,.1f} GB: make them smaller"
        ) from error


def _pixels(cell: Any, mode: str, paths: bool) -> Any:
    """One image as a C x H x W array, or `None` if it does not fit mode L."""
    import numpy as np
    from PIL import Image, ImageOps

    image: Any = Image.open(BytesIO(_bytes(cell, paths)))
    if mode == "L" and image.mode != "L":
        return None
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image if image.mode == mode else _rgb(image))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _bytes(cell: Any, paths: bool) -> bytes:
    """The encoded image of a cell, or of the file that it names."""
    cell = cell if isinstance(cell, dict) else {"bytes": cell}
    blob, path = cell.get("bytes"), cell.get("path")
    if blob is None and path:
        if not paths:
            raise ValueError(f"it names the file {path!r} and does not hold its bytes")
        blob = Path(path).read_bytes()
    if blob and blob.startswith(POINTER):
        raise ValueError("it is a Git LFS pointer, not the image itself: run `git lfs pull`")
    return blob or b""


def _rgb(image: Any) -> Any:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow's way to a palette that holds transparency
    return image.convert("RGB")
