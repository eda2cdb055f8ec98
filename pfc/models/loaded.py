"""A model that was loaded by name, and data as it wants them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pfc import data as sets
from pfc.data.classes import renamed_classes
from pfc.data.columns import Content, columns_of
from pfc.data.decoding import class_numbers
from pfc.data.drawing import drawn
from pfc.data.encoded import EncodedSet
from pfc.models.finding import found
from pfc.models.matching import matched
from pfc.models.preprocessing import Preprocessing
from pfc.models.samples import Samples, Stream
from pfc.warning import warn


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its own preprocessing and its own names of the classes.

    Args:
        name: What it was asked for by.
        model: The network, in evaluation mode where its library gives it so.
        preprocessing: Makes its inputs of images or texts; `None` where nothing is known of it: then
            data are normalised images, by the constants of their training split.
        classes: Names of its classes by number; empty if it names none.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        by = self.preprocessing.name if self.preprocessing else "none of its own"
        names = f"{len(self.classes)} classes" if self.classes else "classes without names"
        return f"Loaded({self.name!r}: {type(self.model).__name__}, {names}, preprocessing: {by})"

    def samples(
        self,
        spec: str | Path = "digits",
        split: str = "train",
        limit: int | None = None,
        seed: int = 0,
        *,
        image_column: str | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        progress: bool = True,
    ) -> Samples | sets.Images:
        """Labelled images or texts as this model wants them; read when batches of them are.

        Images may be of any sizes. Where all names of the data's classes are names of the model's, the
        labels are the model's numbers, whatever order the data have; where they are not, a warning says
        so and the numbers stay. Whole numbers without names are taken as the model's.

        Args:
            spec: `"digits"`, a name on the Hugging Face hub, a folder of parquet files, or a folder of
                images in one subfolder a class, as for `pfc.data.load`.
            split: Which part.
            limit: Samples in all, as equal a class as can be; `None` or more than there are means all.
            seed: Chooses them; a smaller limit's are among a larger one's.
            image_column: The column with the images, if it cannot be told.
            text_column: The column with the texts, if it cannot be told.
            label_column: The column with the labels, if it cannot be told or is not the one wanted.
            progress: Show a progress bar while a set is fetched.

        Returns:
            The samples; of a model without a preprocessing of its own what `pfc.data.load` gives.

        Raises:
            ValueError: If there is no such set, split, column or limit, or rows have no label.
        """
        content: Content = self.preprocessing.content if self.preprocessing else "image"
        wrong, other = (text_column, "texts") if content == "image" else (image_column, "images")
        if wrong is not None:
            raise ValueError(f"{self.name} takes {content}s, so there is no column {wrong!r} of {other}")
        columns = (text_column if content == "text" else image_column, label_column)
        if self.preprocessing is None:
            named = {"image_column": columns[0], "label_column": columns[1]}
            return sets.load(spec, split, limit, seed, **named, progress=progress)
        source = found(spec, split, columns, progress)
        samples = self._matched(source, split, self.preprocessing)
        return samples if limit is None else samples.rows(drawn(samples.labels, limit, seed))

    def batches(
        self,
        spec: str | Path = "digits",
        split: str = "train",
        limit: int | None = None,
        seed: int = 0,
        *,
        batch_size: int = 256,
        image_column: str | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        progress: bool = True,
    ) -> Stream | sets.Batches:
        """Batches of this model's inputs with their labels, as `measure` takes them.

        Each pass reads, decodes and prepares anew, one image at a time: in memory there are one batch
        and a whole number a sample.

        Args:
            spec: As for `samples`.
            split: As for `samples`.
            limit: As for `samples`.
            seed: As for `samples`.
            batch_size: Samples in a batch; the last one may be smaller.
            image_column: As for `samples`.
            text_column: As for `samples`.
            label_column: As for `samples`.
            progress: As for `samples`.

        Returns:
            The batches, to be iterated as often as one likes: dicts with `labels` for a model of
            transformers, `(x, y)` for others.

        Raises:
            ValueError: As for `samples`, or if a batch would hold nothing.
        """
        columns = {"image_column": image_column, "text_column": text_column}
        taken = self.samples(
            spec, split, limit, seed, **columns, label_column=label_column, progress=progress
        )
        return taken.batches(batch_size)

    def _matched(self, source: EncodedSet, split: str, preprocessing: Preprocessing) -> Samples:
        """All rows of a split, their labels in the model's numbers; what was chosen is told."""
        columns = columns_of(source, split, preprocessing.content)
        labels, known = class_numbers(source, split, columns.label)
        match = matched(known.names, self.classes, self.name, named=known.named)
        for sentence in (*source.remarks, *known.remarks):
            warn(sentence, UserWarning)
        if match.told and not (match.differ and renamed_classes(self.model, known.names)):
            warn(match.told, UserWarning)  # else `measure` tells it
        y = match.renumbered(torch.tensor(labels, device="cpu"))
        index = torch.arange(len(y), device="cpu")
        return Samples(source, split, columns, index, y, match.classes, preprocessing, known.unused)
