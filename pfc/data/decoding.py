"""Decode columns of encoded images into one tensor: a loop over Pillow on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from pfc.data.classes import Numbering, numbering, values
from pfc.data.columns import Columns
from pfc.data.encoded import EncodedSet
from pfc.data.images import Images
from pfc.files import POINTER
from pfc.foreign import in_words
from pfc.progress import Step, shown
from pfc.schema import one_line

MANY = 5_000  # images worth a progress bar


def decoded(source: EncodedSet, split: str, columns: Columns, progress: bool) -> Images:
    """Read and decode a split."""
    labels, numbers = class_numbers(source, split, columns.label)
    N, where = len(labels), source.where(split)
    with shown(f"decoding {where}", N, enabled=progress and N >= MANY) as step:
        for mode in ("L", "RGB"):
            images = _decode(mode, source, split, columns.content, N, step)
            if images is not None:
                break
    assert images is not None, "every image can be RGB"
    whole = Images.of(images, torch.tensor(labels, device="cpu"), numbers.names, source.spec, split)
    return replace(whole, unused=numbers.unused, remarks=numbers.remarks)


def class_numbers(source: EncodedSet, split: str, column: str) -> tuple[list[int], Numbering]:
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
        with decoding(source, split, row):
            pixels = _pixels(cell, mode, source.paths)
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


@contextmanager
def decoding(source: EncodedSet, split: str, row: int) -> Iterator[None]:
    """Tell by its row an image that can't be decoded."""
    try:
        yield
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        raise ValueError(f"{source.row(split, row)} cannot be decoded: {_why(error)}") from error


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


def picture(cell: Any, paths: bool) -> Any:
    """The image of a cell as Pillow's, upright, RGB."""
    image = _upright(_opened(cell, paths))
    image = image if image.mode == "RGB" else _rgb(image)
    image.load()  # else a damaged one would fail later
    return image


def _pixels(cell: Any, mode: str, paths: bool) -> Any:
    """One image as a C x H x W array, or `None` if it does not fit mode L."""
    import numpy as np

    image = _opened(cell, paths)
    if mode == "L" and image.mode != "L":
        return None
    image = _upright(image)
    pixels = np.asarray(image if image.mode == mode else _rgb(image))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _opened(cell: Any, paths: bool) -> Any:
    from PIL import Image

    return Image.open(BytesIO(_bytes(cell, paths)))


def _upright(image: Any) -> Any:
    """An image as its Exif says it is held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if "exif" in image.info else image


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
