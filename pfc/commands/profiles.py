"""`pfc measure` and `pfc figures`: a run or any model, on any data."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc import figures as draw
from pfc.commands.theory import ALL_THEORY, Theory, tell
from pfc.files import check_format, check_place, read_tensors, refuse_pickle
from pfc.line import End
from pfc.measuring import measure as measure_layers
from pfc.measuring.loader import StatisticsPlace
from pfc.processes import launched
from pfc.profile import load, load_transport
from pfc.profile.segment import Position
from pfc.training import Run, fill
from pfc.training.folder import FORMAT as RUN


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """The weights of the model that is measured, and the images that it is shown.

    Args:
        data: digits, a hub name, a folder of parquet files or of images; a run has its own.
        split: Of the data.
        limit: Use at most this many samples, as equal a class as can be.
        epoch: Of a run: weights are kept at 0, in the middle and at the end (the default).
        weights: The model's state dict as safetensors, for MODULE:FUNCTION.
        mean: Subtracted from each channel of pixels in 0..1, for MODULE:FUNCTION; by default the mean of
            the data's training split. A run has its own.
        std: Divides each channel then, in the same unit.
    """

    data: str | None = None
    split: str = "train"
    limit: int | None = None
    epoch: int | None = None
    weights: Path | None = None
    mean: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()
    std: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = ()

    def model_and_images(self, source: str) -> tuple[nn.Module, sets.Images]:
        """The model, and the images as it is shown them."""
        model, images = self._of_run(source) if Path(source).is_dir() else self._of_factory(source)
        return model, self._normalised(images) if self.mean or self.std else images

    def _of_run(self, source: str) -> tuple[nn.Module, sets.Images]:
        if self.weights is not None:
            raise ValueError(f"{source} is a run, which has its own weights; choose one by --epoch")
        kept = Run(source)
        if self.data is None and self.limit is None:
            return kept.network(self.epoch), kept.data(self.split)
        images = sets.load(self.data or kept.recipe.data, self.split, self.limit)
        return kept.network(self.epoch), kept.normalised(images)

    def _of_factory(self, source: str) -> tuple[nn.Module, sets.Images]:
        refuse_pickle(Path(source))
        if ":" not in source:
            raise ValueError(f"{source} is no folder of a run, and no MODULE:FUNCTION either")
        if self.data is None:
            raise ValueError("a model needs --data: digits, a hub name, or a folder")
        if self.epoch is not None:
            raise ValueError(f"--epoch belongs to a run; {source} has the weights that --weights names")
        return _from_factory(source, self.weights), sets.load(self.data, self.split, self.limit)

    def _normalised(self, images: sets.Images) -> sets.Images:
        C, m, s = images.shape[0], len(self.mean), len(self.std)
        if (m, s) != (C, C):
            raise ValueError(f"--mean and --std need {C} number(s) each, one a channel, got {m} and {s}")
        mean, std = (tuple(255 * x for x in given) for given in (self.mean, self.std))
        return replace(images, normalisation=sets.Normalisation(mean, std, "given on the command line"))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how: arguments of `pfc.measure`.

    Args:
        layers: Names or globs, such as `blocks.*`; chosen by the network if not given.
        classes: Number of classes; by default the classifier's outputs.
        classifier: Name of the last linear layer; found by itself if not given.
        statistics: Keep the class statistics on the device or in the host's memory; where they fit if
            not given.
        weighting: Class weights in covariances: equal, or proportional to counts.
        passes: 2 for all metrics; 1 leaves out those that need the class means first.
        segments: Also accumulate cross-layer statistics: positions, path and straight line.
        pool: How to reduce tokens or pixels to one vector per sample.
    """

    layers: Annotated[list[str] | None, Parameter(negative_iterable="")] = None
    classes: int | None = None
    classifier: str | None = None
    statistics: StatisticsPlace | None = None
    weighting: Literal["class", "sample"] = "class"
    passes: Literal[1, 2] = 2
    segments: bool = True
    pool: Literal["flatten", "mean", "cls"] = "flatten"


NOTHING = Given()
USUAL = Options()


def measure(
    source: str,
    /,
    *,
    given: Given = NOTHING,
    options: Options = USUAL,
    batch_size: int = 256,
    device: str | None = None,
    out: Path | None = None,
    theory: Theory = ALL_THEORY,
) -> None:
    """Measure every layer of a run, or of any model, on any data.

    Under `torchrun` every process measures its part of the data, and the first prints and saves.

    Args:
        source: A run's folder, or MODULE:FUNCTION, a function without arguments that gives the model.
        given: What is measured.
        options: What is measured, and how.
        batch_size: Samples in a forward pass.
        device: Such as cpu or cuda.
        out: Save the profile as this .json file, and what theory says beside it.
        theory: What theory says.

    Raises:
        ValueError: If an argument has no meaning.
    """
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if out is not None:
        check_place(out, f"{out.stem}.safetensors.next", f"{out.stem}-theory.json")
    model, images = given.model_and_images(source)
    with launched(device) as (ranks, device):
        try:
            own = images.part(ranks.rank, ranks.size).batches(batch_size)
            profile = measure_layers(model, own, device=device, **vars(options))
        except RuntimeError as error:
            C, H, W = images.shape
            raise ValueError(f"{source} can't be run on images of {C} x {H} x {W}: {error}") from error
    if not ranks.is_main:
        return
    print(profile)
    if out is not None:
        profile.save(out)
    beside = None if out is None else out.with_name(f"{out.stem}-theory.json")
    tell(profile, model, images, theory, device, beside)
    if options.passes == 2:
        print(profile.verdict())


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


def figures(
    source: Path,
    /,
    *,
    out: Path | None = None,
    position: Position = "path",
    end: End = "measured",
    theory: bool = True,
) -> None:
    """Draw metrics over epochs and over layers, the path and the certificates, as PNG and SVG.

    Args:
        source: A run's folder, or a profile's .json file.
        out: Folder of the figures; `figures` in the run, or beside the profile.
        position: Where a layer stands on the axis from the first to the last of its segment.
        end: What stands at the end of the predicted line: the measured features, their class means, or
            the simplex ETF nearest to these.
        theory: Draw the predicted line, the path and the certificates.
    """
    how: dict[str, Any] = {"position": position, "end": end, "theory": theory}
    if source.suffix == ".json":
        profile, beside = load(source), source.with_name(f"{source.stem}-theory.json")
        kept = load_transport(beside, profile) if theory else None
        how |= {"stem": f"{source.stem}-", "transport": kept}
        paths = draw.of_profile(profile, out or source.parent, **how)
    else:
        paths = draw.of_run(Run(source), out, **how)
    print(*paths, sep="\n")
