"""Find a set for a model: as `pfc.data` finds it, the bundled digits too."""

import os
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from pfc import data as sets
from pfc.data.encoded import EncodedSet, Part, Rows
from pfc.data.loading import bundled, refuse_columns, with_split
from pfc.data.sources import find

Columns = tuple[str | None, str | None]  # of contents and labels, if the user gave them


def found(spec: str | Path, split: str, columns: Columns, progress: bool) -> EncodedSet:
    """A set that has this split."""
    if bundled(spec):
        refuse_columns(columns)
        return digits(split)
    return with_split(replace(find(os.fspath(spec), progress), columns=columns), split)


def digits(split: str) -> EncodedSet:
    """The bundled digits as a set of encoded images, so that they are prepared as others are."""
    import pyarrow as pa
    from PIL import Image

    images = sets.load("digits", split)
    schema = pa.schema({"image": pa.binary(), "label": pa.string()})

    def read(split: str, column: str, rows: Rows | None = None) -> Iterator[list[Any]]:
        for i in range(len(images)) if rows is None else rows.tolist():
            if column == "label":
                yield [images.classes[images.labels[i]]]
                continue
            pixels = images.images[i]
            with BytesIO() as file:
                grey = (pixels[0].int() * 255 // 16).byte()  # the digits have 16 levels above black
                Image.fromarray(grey.numpy()).save(file, "PNG")
                yield [file.getvalue()]

    return EncodedSet("digits", "digits", {split: [Part("", schema, len(images))]}, read, None)
