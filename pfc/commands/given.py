"""What is measured on the command line: a model with its images, or features of a file."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc.files import check_format, expanded, read_tensors, refuse_pickle
from pfc.foreign import told
from pfc.schema import some
from pfc.training import Run, fill
from pfc.training.config import FORMAT as RUN
from pfc.warning import speaks


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """The weights of the model that is measured, and the images that it is shown.

    Args:
        data: digits, a hub name, a folder of parquet files or of images; a run has its own, and where
            they have been moved this says where they are.
        split: Of the data; a run's own, or train, if not given.
        limit: Use at most this many samples, as equal a class as can be.
        label: The column with the labels, where the data have several, such as coarse_label.
        epoch: Of a run: weights are kept at 0, in the middle and at the end (the default).
        weights: The model's state dict as safetensors, for MODULE:FUNCTION.
        mean: Subtracted from each channel of pixels in 0..1, for MODULE:FUNCTION; by default the mean of
            the data's training split. A run has its own.
        std: Divides each channel then, in the same unit.
    """

    data: str | None = None
    split: str | None = None
    limit: int | None = None
    label: str | None = None
    epoch: int | None = None
    weights: Path | None = None
    mean: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()
    std: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()

    def model(self, source: str) -> nn.Module:
        """The network with its weights."""
        if expanded(source).is_dir():
            if self.weights is not None:
                raise ValueError(f"{source} is a run, which has its own weights; choose one by --epoch")
            return Run(source).network(self.epoch)
        refuse_pickle(expanded(source))
        _check_name(source)
        if self.data is None:
            raise ValueError("a model needs --data: digits, a hub name, or a folder")
        if self.epoch is not None:
            raise ValueError(f"--epoch belongs to a run; {source} has the weights that --weights names")
        return _from_factory(source, self.weights)

    def images(self, source: str, split: str | None = None) -> sets.Images:
        """The images of a split as the network is shown them; of the one that is asked for if `None`."""
        split = split or self.split
        if not expanded(source).is_dir():
            return self._normalised(_without_gaps(self._loaded(str(self.data), split or "train")))
        run = Run(source)
        return self._normalised(run.normalised(self._beside(run, split)))

    def _loaded(self, spec: str, split: str) -> sets.Images:
        return sets.load(spec, split, self.limit, label_column=self.label)

    def _beside(self, run: Run, split: str | None) -> sets.Images:
        """Images for a run: its own, all or fewer, wherever they are now; or others, which is told."""
        spec, own = self._of_run(run)
        split, column = split or own, run.config["data"].get("label_column")
        if (same := self._same(run, split)) is not None:
            if self.limit is None and self.label is None:
                return same
            return sets.load(spec, split, self.limit, label_column=self.label or column)
        images = self._loaded(spec, split)
        if self.label is None and images.origin and column in images.origin.other_labels:
            images = sets.load(spec, split, self.limit, label_column=column)
        how = "; ".join(run.differences(images))
        _say(f"these are not the data of {run.folder}: {how}")
        return images

    def _same(self, run: Run, split: str) -> sets.Images | None:
        """The run's own data, where they are or have been moved; `None` if others were asked for."""
        try:
            return run.data(split, spec=self.data)
        except ValueError:
            if self.data is None:
                raise
            return None

    def _of_run(self, run: Run) -> tuple[str, str]:
        """The set, and the split that is taken if none is asked for."""
        known = run.config["data"]
        if self.data is None:
            return known["spec"], known["split"]
        return self.data, known["split"] if known["split"] in sets.splits(self.data) else "train"

    def held_out(self, source: str) -> str | None:
        """The split that is kept apart from the one that is measured, if there is one."""
        spec, own = (self.data, "train")
        if expanded(source).is_dir():
            spec, own = self._of_run(Run(source))
        return sets.held_out(str(spec), self.split or own)

    def describe(self, source: str, images: sets.Images) -> None:
        """Say what was chosen unasked: labels, weights, and by what images were normalised."""
        if images.chosen_labels and images.origin:
            others = ", ".join(images.origin.other_labels)
            _say(f"the labels are {images.chosen_labels}; --label chooses {others}")
        if expanded(source).is_dir():
            return
        if self.weights is None:
            _say(f"no --weights, so the weights are those that {source} gives")
        constants = images.normalisation
        each = (constants.mean, constants.std)
        mean, std = (" ".join(f"{x / 255:.4g}" for x in part) for part in each)
        _say(f"the images are normalised by --mean {mean} --std {std} ({constants.source})")

    def _normalised(self, images: sets.Images) -> sets.Images:
        if not (self.mean or self.std):
            return images
        C, m, s = images.shape[0], len(self.mean), len(self.std)
        if (m, s) != (C, C):
            raise ValueError(f"--mean and --std need {C} number(s) each, one a channel, got {m} and {s}")
        mean, std = (tuple(255 * x for x in given) for given in (self.mean, self.std))
        return replace(images, normalisation=sets.Normalisation(mean, std, "given on the command line"))


def _say(words: str) -> None:
    if speaks():
        print(f"pfc: {words}", file=sys.stderr)


def _check_name(source: str) -> None:
    """Refuse what can't name a model, with what would."""
    name, colon, function = source.partition(":")
    if colon and name.endswith(".py"):
        module = ".".join(Path(name).with_suffix("").parts)
        raise ValueError(
            f"{name} is a file; name its module, as Python imports it from here: {module}:{function}"
        )
    if not colon:
        raise ValueError(f"{source} is no folder of a run, no file of arrays, and no MODULE:FUNCTION")


def _without_gaps(images: sets.Images) -> sets.Images:
    """Images whose class numbers can be those of a network's outputs."""
    if images.unused:
        raise ValueError(
            f"the labels of {images.spec} are whole numbers without names, and no split has "
            f"{some(map(str, images.unused))}: if they are the numbers of the network's outputs, give "
            "the column the names of all classes (ClassLabel), else number them from 0 without gaps"
        )
    return images


def _found(source: str) -> Any:
    """What MODULE:FUNCTION names."""
    try:
        return resolve_name(source)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"can't find {source}: {error}") from error


def _from_factory(source: str, weights: Path | None) -> nn.Module:
    sys.path.insert(0, "")
    try:
        with told(f"{source} failed"):  # whatever the user's own module or function raises
            factory = _found(source)
            model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source} gave {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        weights = expanded(weights)
        refuse_pickle(weights)
        tensors, about = read_tensors(weights)
        if about.get("format", "").startswith("pfc-"):
            check_format(about["format"], RUN, weights)
        fill(model, tensors, weights, source)
    return model
