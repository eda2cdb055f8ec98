"""Labelled images or texts where they lie: read and prepared anew in each pass, never all in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from pfc.data.columns import Columns
from pfc.data.decoding import decoding, picture
from pfc.data.encoded import EncodedSet
from pfc.data.images import batch_count, set_name
from pfc.foreign import in_words, is_ours
from pfc.models.preprocessing import Inputs, Preprocessing
from pfc.schema import one_line, short

END = object()


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images or texts where they lie, which each pass reads and prepares anew.

    Args:
        source: The set.
        split: Which of its splits.
        columns: Its columns that are read.
        index: Rows that are taken, ascending.
        labels: Class of each of them, an index into `classes`.
        classes: Names of the classes, by the model's numbers where these are known.
        preprocessing: Makes the model's inputs.
        unused: Numbers that no split has, where the labels are whole numbers without names.
    """

    source: EncodedSet
    split: str
    columns: Columns
    index: Int64[Tensor, " N"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    unused: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        what = f"{len(self):,} {self.preprocessing.content}s, {len(self.classes)} classes"
        return f"Samples({self.name!r}: {what}, by {self.preprocessing.name})"

    @property
    def spec(self) -> str:
        """What the set was asked for by."""
        return self.source.spec

    @property
    def chosen_labels(self) -> str | None:
        """The column of the labels, where there was a choice."""
        return self.columns.label if self.columns.others else None

    @property
    def other_labels(self) -> tuple[str, ...]:
        """Columns that could have been the labels' too."""
        return self.columns.others

    @property
    def chosen_contents(self) -> str | None:
        """The column of the images or texts, where there was a choice."""
        return self.columns.content if self.columns.contents else None

    @property
    def other_contents(self) -> tuple[str, ...]:
        """Columns that could have been the images' or texts' too."""
        return self.columns.contents

    @property
    def name(self) -> str:
        """The set's name without its folder, and the split and the columns where there was a choice."""
        return set_name(self.source.path, self.split, self.chosen_contents, self.chosen_labels)

    def rows(self, index: Int64[Tensor, " n"]) -> "Samples":
        """The samples with these numbers.

        Args:
            index: Their numbers among these, ascending.

        Returns:
            The same set, of which fewer rows are taken.
        """
        return replace(self, index=self.index[index], labels=self.labels[index])

    def part(self, i: int, of: int) -> "Samples":
        """Every so-many-th sample, from number `i` on: the parts of processes, even but for one.

        Args:
            i: Which part, from 0.
            of: How many parts there are.

        Returns:
            The samples of that part.
        """
        return self.rows(torch.arange(i, len(self), of, device="cpu"))

    def batches(self, batch_size: int = 256) -> "Stream":
        """The model's inputs with their labels in the order of the set, as often as one likes.

        Args:
            batch_size: Samples in a batch; the last one may be smaller.

        Returns:
            What `measure` takes for data.
        """
        return Stream(self, batch_size)

    def contents(self) -> Iterator[tuple[int, Any]]:
        """The images or texts, one at a time.

        Yields:
            Number of a row, and its content: a Pillow image, upright and RGB, or a text.

        Raises:
            ValueError: If a row can't be decoded, is no text, or is missing.
        """
        read = _text if self.preprocessing.content == "text" else _image
        for row, cell in self._cells():
            yield row, read(self, row, cell)

    def _cells(self) -> Iterator[tuple[int, Any]]:
        """The rows that are taken, as they stand in the column."""
        content = self.columns.content
        cells = chain.from_iterable(self.source.read(self.split, content, self.index.numpy()))
        for row in self.index.tolist():
            cell = next(cells, END)
            if cell is END:
                raise ValueError(f"{self.source.row(self.split, row)} has a label and no {content!r}")
            yield row, cell


def _image(samples: Samples, row: int, cell: Any) -> Any:
    with decoding(samples.source, samples.split, row):
        return picture(cell, samples.source.paths)


def _text(samples: Samples, row: int, cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    raise ValueError(f"{samples.source.row(samples.split, row)} has no text, but {short(cell)}")


@dataclass(frozen=True, eq=False)
class Stream:
    """Mini-batches of a model's inputs with their labels; may be iterated again.

    Args:
        samples: Where they come from.
        batch_size: Samples in a batch; the last one may be smaller.

    Raises:
        ValueError: If a batch would hold nothing.
    """

    samples: Samples
    batch_size: int = 256

    def __post_init__(self) -> None:
        batch_count(len(self.samples), self.batch_size)

    @property
    def name(self) -> str:
        """The set's name."""
        return self.samples.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.samples.classes

    def __len__(self) -> int:
        return batch_count(len(self.samples), self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor] | tuple[Tensor, Tensor]]:
        contents = self.samples.contents()
        for y in self.samples.labels.split(self.batch_size):
            inputs = self._inputs(islice(contents, len(y)))
            yield {**inputs, "labels": y} if isinstance(inputs, Mapping) else (inputs, y)

    def _inputs(self, contents: Iterator[tuple[int, Any]]) -> Inputs:
        """One batch prepared; what the preprocessing raises is told, of an image with its row."""
        samples, known = self.samples, Progress()
        try:
            return samples.preprocessing(known.follow(contents))
        except Exception as error:
            if is_ours(error):
                raise
            whole = samples.preprocessing.content == "text" or known.row is None
            where = self.name if whole else samples.source.row(samples.split, known.row or 0)
            name = samples.preprocessing.name
            raise ValueError(f"{name} failed on {where}: {one_line(in_words(error))}") from error


@dataclass
class Progress:
    """Where a batch is.

    Args:
        row: The last row that was taken.
    """

    row: int | None = None

    def follow(self, contents: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        """The contents, whose rows are noted."""
        for self.row, content in contents:
            yield content
