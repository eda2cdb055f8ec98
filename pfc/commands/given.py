"""What is measured on the command line: a model with its images or texts."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc import models
from pfc.files import expanded, refuse_pickle
from pfc.models.factory import check_name
from pfc.models.loading import is_named
from pfc.schema import some
from pfc.training import Run
from pfc.warning import speaks


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """The weights of the model that is measured, and the images or texts that it is shown.

    Args:
        data: digits, a hub name, a folder of parquet files or of images; of texts for a model of texts.
            A run has its own, and where they have been moved this says where they are.
        split: Of the data; a run's own, or train, if not given.
        limit: Use at most this many samples, as equal a class as can be.
        label: The column with the labels, where the data have several, such as coarse_label.
        column: The column with the images or texts, where the data have several, such as sentence1.
        epoch: Of a run: weights are kept at 0, in the middle and at the end (the default).
        weights: The model's state dict as safetensors, for MODULE:FUNCTION.
        mean: Subtracted from each channel of pixels in 0..1, for MODULE:FUNCTION; by default the mean of
            the data's training split. A run has its own, and so have hf:, timm: and torchvision:.
        std: Divides each channel then, in the same unit.
    """

    data: str | None = None
    split: str | None = None
    limit: int | None = None
    label: str | None = None
    column: str | None = None
    epoch: int | None = None
    weights: Path | None = None
    mean: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()
    std: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()

    def opened(self, source: str) -> "OfRun | OfModel":
        """The model, with the data that it is shown."""
        if expanded(source).is_dir():
            if self.weights is not None:
                raise ValueError(f"{source} is a run, which has its own weights; choose one by --epoch")
            return OfRun(self, Run(source))
        refuse_pickle(expanded(source))
        if ":" not in source:
            raise ValueError(
                f"{source} is no folder of a run, no file of arrays, and no MODULE:FUNCTION, hf:NAME, "
                "timm:NAME or torchvision:NAME"
            )
        if not is_named(source):
            check_name(source)
        if self.data is None:
            raise ValueError("a model needs --data: digits, a hub name, or a folder")
        whose = "its own weights" if is_named(source) else "the weights that --weights names"
        if self.epoch is not None:
            raise ValueError(f"--epoch belongs to a run; {source} has {whose}")
        if is_named(source):
            self.refuse_constants(source)
        return OfModel(self, models.load(source, self.weights))

    def refuse_constants(self, source: str) -> None:
        """Refuse constants where images are prepared in a way of their own."""
        if self.mean or self.std:
            raise ValueError(f"{source} has its own preprocessing: leave out --mean and --std")


@dataclass(frozen=True, eq=False)
class OfRun:
    """A run's network, and its data or others.

    Args:
        given: What was asked for.
        run: The run.
    """

    given: Given
    run: Run

    @property
    def model(self) -> nn.Module:
        """The network with its weights."""
        return self.run.network(self.given.epoch)

    def samples(self, split: str | None = None) -> sets.Images:
        """The images of a split as the network is shown them; of the one that is asked for if `None`."""
        images = self.run.normalised(self._images(split or self.given.split))
        return _by_constants(images, self.given)

    def _images(self, split: str | None) -> sets.Images:
        """Its own, all or fewer, wherever they are now; or others, which is told."""
        given, run = self.given, self.run
        spec, own = self._set()
        split, known = split or own, run.config["data"]
        column, shown = known.get("label_column"), known.get("image_column")
        other = given.column not in {None, shown}
        if not other and (same := self._same(split)) is not None:
            if given.limit is None and given.label is None:
                return same
            named = {"image_column": shown, "label_column": given.label or column}
            return sets.load(spec, split, given.limit, **named)
        images = sets.load(spec, split, given.limit, image_column=given.column, label_column=given.label)
        if given.label is None and images.origin and column in images.origin.other_labels:
            named = {"image_column": given.column, "label_column": column}
            images = sets.load(spec, split, given.limit, **named)
        how = [f"the images of column {given.column!r}"] * other + [*run.differences(images)]
        _say(f"these are not the data of {run.folder}: {'; '.join(how)}")
        return images

    def _same(self, split: str) -> sets.Images | None:
        """The run's own data, where they are or have been moved; `None` if others were asked for."""
        try:
            return self.run.data(split, spec=self.given.data)
        except ValueError:
            if self.given.data is None:
                raise
            return None

    def _set(self) -> tuple[str, str]:
        """The set, and the split that is taken if none is asked for."""
        known, data = self.run.config["data"], self.given.data
        if data is None:
            return known["spec"], known["split"]
        return data, known["split"] if known["split"] in sets.splits(data) else "train"

    def held_out(self) -> str | None:
        """The split that is kept apart from the one that is measured, if there is one."""
        spec, own = self._set()
        return sets.held_out(spec, self.given.split or own)

    def describe(self, samples: sets.Images | models.Samples) -> None:
        """Say what was chosen unasked: columns."""
        _say_columns(samples)


@dataclass(frozen=True, eq=False)
class OfModel:
    """A model by name or of the user's own, and data.

    Args:
        given: What was asked for.
        loaded: The model.
    """

    given: Given
    loaded: models.Loaded

    @property
    def model(self) -> nn.Module:
        """The network with its weights."""
        return self.loaded.model

    def samples(self, split: str | None = None) -> sets.Images | models.Samples:
        """The data of a split as the model is shown them; of the one that is asked for if `None`."""
        given = self.given
        if self.loaded.preprocessing is not None:
            given.refuse_constants(self.loaded.name)
        split = split or given.split or "train"
        how = self.loaded.preprocessing
        texts = how is not None and how.content == "text"
        samples = self.loaded.samples(
            str(given.data),
            split,
            given.limit,
            image_column=None if texts else given.column,
            text_column=given.column if texts else None,
            label_column=given.label,
        )
        _refuse_gaps(samples)
        return _by_constants(samples, given) if isinstance(samples, sets.Images) else samples

    def held_out(self) -> str | None:
        """The split that is kept apart from the one that is measured, if there is one."""
        return sets.held_out(str(self.given.data), self.given.split or "train")

    def describe(self, samples: sets.Images | models.Samples) -> None:
        """Say what was chosen unasked: columns, weights, and what images or texts were prepared by."""
        _say_columns(samples)
        loaded = self.loaded
        if self.given.weights is None and not is_named(loaded.name):
            _say(f"no --weights, so the weights are those that {loaded.name} gives")
        if isinstance(samples, models.Samples):
            what = samples.preprocessing
            _say(f"the {what.content}s are prepared as {loaded.name} says, by {what.name}")
            return
        constants = samples.normalisation
        each = (constants.mean, constants.std)
        mean, std = (" ".join(f"{x / 255:.4g}" for x in part) for part in each)
        _say(f"the images are normalised by --mean {mean} --std {std} ({constants.source})")


def _by_constants(images: sets.Images, given: Given) -> sets.Images:
    """Images normalised by the constants that were given, if any were."""
    if not (given.mean or given.std):
        return images
    C, m, s = images.shape[0], len(given.mean), len(given.std)
    if (m, s) != (C, C):
        raise ValueError(f"--mean and --std need {C} number(s) each, one a channel, got {m} and {s}")
    mean, std = (tuple(255 * x for x in constants) for constants in (given.mean, given.std))
    return replace(images, normalisation=sets.Normalisation(mean, std, "given on the command line"))


def _say(words: str) -> None:
    if speaks():
        print(f"pfc: {words}", file=sys.stderr)


def _say_columns(samples: sets.Images | models.Samples) -> None:
    what = "images" if isinstance(samples, sets.Images) else f"{samples.preprocessing.content}s"
    if samples.chosen_contents:
        others = ", ".join(samples.other_contents)
        _say(f"the {what} are {samples.chosen_contents}; --column chooses {others}")
    if samples.chosen_labels:
        _say(
            f"the labels are {samples.chosen_labels}; --label chooses {', '.join(samples.other_labels)}"
        )


def _refuse_gaps(samples: sets.Images | models.Samples) -> None:
    """Refuse samples whose class numbers may not be those of a network's outputs."""
    if samples.unused:
        raise ValueError(
            f"the labels of {samples.spec} are whole numbers without names, and no split has "
            f"{some(map(str, samples.unused))}: if they are the numbers of the network's outputs, give "
            "the column the names of all classes (ClassLabel), else number them from 0 without gaps"
        )
