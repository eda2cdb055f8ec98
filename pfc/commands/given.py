"""What is measured on the command line: a model with its images, or features of a file."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc.files import check_format, read_tensors, refuse_pickle
from pfc.training import Run, fill
from pfc.training.folder import FORMAT as RUN


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """The weights of the model that is measured, and the images that it is shown.

    Args:
        data: digits, a hub name, a folder of parquet files or of images; a run has its own.
        split: Of the data; a run's own, or train, if not given.
        limit: Use at most this many samples, as equal a class as can be.
        epoch: Of a run: weights are kept at 0, in the middle and at the end (the default).
        weights: The model's state dict as safetensors, for MODULE:FUNCTION.
        mean: Subtracted from each channel of pixels in 0..1, for MODULE:FUNCTION; by default the mean of
            the data's training split. A run has its own.
        std: Divides each channel then, in the same unit.
    """

    data: str | None = None
    split: str | None = None
    limit: int | None = None
    epoch: int | None = None
    weights: Path | None = None
    mean: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()
    std: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()

    def model(self, source: str) -> nn.Module:
        """The network with its weights."""
        if Path(source).is_dir():
            if self.weights is not None:
                raise ValueError(f"{source} is a run, which has its own weights; choose one by --epoch")
            return Run(source).network(self.epoch)
        refuse_pickle(Path(source))
        if ":" not in source:
            raise ValueError(
                f"{source} is no folder of a run, no file of arrays, and no MODULE:FUNCTION"
            )
        if self.data is None:
            raise ValueError("a model needs --data: digits, a hub name, or a folder")
        if self.epoch is not None:
            raise ValueError(f"--epoch belongs to a run; {source} has the weights that --weights names")
        return _from_factory(source, self.weights)

    def images(self, source: str, split: str | None = None) -> sets.Images:
        """The images of a split as the network is shown them; of the one that is asked for if `None`."""
        split = split or self.split
        if not Path(source).is_dir():
            return self._normalised(sets.load(str(self.data), split or "train", self.limit))
        run = Run(source)
        if self.data is None and self.limit is None:
            return self._normalised(run.data(split))
        spec, own = self._of_run(run)
        return self._normalised(run.normalised(sets.load(spec, split or own, self.limit)))

    def _of_run(self, run: Run) -> tuple[str, str]:
        """The set, and the split that is taken if none is asked for."""
        own = run.config["data"]
        return (own["spec"], own["split"]) if self.data is None else (self.data, "train")

    def held_out(self, source: str) -> str | None:
        """The split that is kept apart from the one that is measured, if there is one."""
        spec, own = (self.data, "train")
        if Path(source).is_dir():
            spec, own = self._of_run(Run(source))
        return sets.held_out(str(spec), self.split or own)

    def _normalised(self, images: sets.Images) -> sets.Images:
        if not (self.mean or self.std):
            return images
        C, m, s = images.shape[0], len(self.mean), len(self.std)
        if (m, s) != (C, C):
            raise ValueError(f"--mean and --std need {C} number(s) each, one a channel, got {m} and {s}")
        mean, std = (tuple(255 * x for x in given) for given in (self.mean, self.std))
        return replace(images, normalisation=sets.Normalisation(mean, std, "given on the command line"))


def _from_factory(source: str, weights: Path | None) -> nn.Module:
    sys.path.insert(0, "")
    try:
        factory = resolve_name(source)
        model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except (ImportError, AttributeError) as error:
        raise ValueError(f"can't find {source}: {error}") from error
    except Exception as error:  # whatever the user's own module or function raises
        raise ValueError(f"{source} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source} gave {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        tensors, about = read_tensors(weights)
        if about.get("format", "").startswith("pfc-"):
            check_format(about["format"], RUN, weights)
        fill(model, tensors, weights, source)
    return model
