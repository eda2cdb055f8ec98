"""An image set that has been found but not read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64

from pfc.schema import quoted

Rows = Int64[np.ndarray, " n"]
Block = TypeVar("Block", bound=Sized)


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a split, as one file has them.

    Args:
        name: The file's; empty where the rows are no file's.
        schema: Arrow schema, with the hub's feature types in its metadata if known.
        rows: How many there are.
    """

    name: str
    schema: Any
    rows: int


@runtime_checkable
class Read(Protocol):
    """How the values of a column are read."""

    def __call__(self, split: str, column: str, rows: Rows | None = None, /) -> Iterable[list[Any]]:
        """Values in order, some at a time: of all rows of a split, or of some, ascending."""


def picked(blocks: Iterable[Block], rows: Rows) -> Iterator[tuple[Block, Rows]]:
    """Blocks of consecutive rows that hold some of these, ascending, with their places in the block."""
    first = taken = 0
    for block in blocks:
        end = taken + int((rows[taken : taken + len(block)] < first + len(block)).sum())
        if end > taken:
            yield block, rows[taken:end] - first
        first, taken = first + len(block), end
        if taken == len(rows):
            return


@dataclass(frozen=True)
class EncodedSet:
    """An image set that has been found but not read.

    Args:
        spec: What the user called it.
        path: The absolute path of its folder; its name on the hub.
        splits: The parts of each split, in order.
        read: Yields the values of a column of a split in order, some at a time.
        stamp: Plain JSON that changes whenever the data do.
        files: Fingerprint of the names and sizes of each split's files, where it has files.
        remarks: What lies beside the images and is not read, in sentences.
        paths: Whether an image may stand in a file of its own, which its row names.
        columns: Names of the image and the label column, if the user gave them.
    """

    spec: str
    path: str
    splits: Mapping[str, Sequence[Part]]
    read: Read
    stamp: Any
    files: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    paths: bool = True
    columns: tuple[str | None, str | None] = (None, None)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(part.rows for part in parts) for split, parts in self.splits.items()}

    def where(self, split: str) -> str:
        """Name a split in a message."""
        return f"split {split!r} of {quoted(self.spec)}"

    def row(self, split: str, number: int) -> str:
        """Name a row in a message, with its file."""
        return f"row {number} of {self.where(split)}{self._file(split, number)}"

    def _file(self, split: str, number: int) -> str:
        for part in self.splits[split]:
            if number < part.rows and part.name:
                alone = part.rows == 1 or len(self.splits[split]) == 1
                return f" ({part.name})" if alone else f" (row {number} of {part.name})"
            number -= part.rows
        return ""
