"""What the commands do: each a thin reading of arguments around the package's own functions."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import torch
from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc import figures as draw
from pfc.files import read_json, read_tensors, write_json
from pfc.line import End
from pfc.profile import Profile, load
from pfc.profile import measure as measure_layers
from pfc.profile import transport as transport_of
from pfc.profile.segment import Position
from pfc.training import RECIPES, Recipe, Run, fill, measured_epochs
from pfc.training import train as train_epochs

if TYPE_CHECKING:
    from pfc.theory.transport import Gap

THEORY = "pfc-theory-1"  # format of what theory said, as JSON


def _said() -> dict[str, str]:
    """What the docstring of `Recipe` says of each field."""
    lines = (line.strip().split(": ", 1) for line in (Recipe.__doc__ or "").splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


Changes = TypedDict(  # type: ignore[misc]  # exactly the recipe's fields, each of them optional
    "Changes",
    {
        f.name: Annotated[f.type, Parameter(help=_said()[f.name], negative_iterable="")]
        for f in fields(Recipe)[2:]
    },
    total=False,
)
NOTHING: Changes = {}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is made, besides its recipe.

    Args:
        out: Folder of the run; runs/RECIPE if not given.
        data: Instead of the recipe's data: digits, a hub name, a folder of parquet files or of images.
        limit: Train on a class-balanced subset of so many samples.
        seed: Of the first weights, the order of the samples and the subset.
        device: Such as cpu or cuda.
        precision: Of the forward passes.
        threads: Processor threads; chosen by the size of the network if not given.
        measure_every: Measure each so many epochs, not at about ten in geometric steps.
    """

    out: Path | None = None
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = None
    measure_every: int | None = None


USUAL = Options()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Theory:
    """What theory says of the last run of layers of one shape.

    Args:
        theory: Also print the theorems' certificates, the path, the law of data separation and the
            optimal transport, draw them, and keep them as JSON.
        transport: Samples of the exact optimal transport, at most 5,000; 0 leaves transport out.
    """

    theory: bool = True
    transport: int = 2000


ALL_THEORY = Theory()
MOST = 2**27  # numbers of a layer's features that are collected for transport: 512 MB; ours


def run(
    recipe: str = "digits",
    /,
    *,
    options: Options = USUAL,
    theory: Theory = ALL_THEORY,
    changes: Annotated[Changes, Parameter(name="*", group="Instead of the recipe's own")] = NOTHING,
) -> None:
    """Train until collapse, measure every layer, draw the figures and say what was found.

    Args:
        recipe: One of digits, mnist, fashion_mnist, cifar10, stl10, cifar100.
        options: How the run is made.
        theory: What theory says.
        changes: Instead of the recipe's own.
    """
    _check(theory)
    kept = Run(_train(recipe, options, changes, resume=True))
    profile = kept.profiles[max(kept.profiles)]
    print(profile)
    _tell_theory(profile, kept.network(), kept.data(), theory, options.device, kept.theory_file)
    for path in _draw_run(kept, "path", theory=theory.theory):
        print(path)
    print(profile.verdict())


def _check(theory: Theory) -> None:
    """Refuse before hours are spent."""
    if theory.transport == 1 or not 0 <= theory.transport <= 5000:
        raise ValueError(f"--transport must be 0 or from 2 to 5000 samples, got {theory.transport}")


def _tell_theory(
    profile: Profile,
    model: nn.Module,
    images: sets.Images,
    asked: Theory,
    device: str | None,
    path: Path | None,
) -> None:
    """Print what theory says of the last segment, and keep it as JSON."""
    if not asked.theory or not profile.segments:
        return
    found = None
    if asked.transport:
        most = MOST // prod(profile.shapes[profile.segment().start])
        few = _fair(images, max(most, len(images.classes)), profile.about["weighting"])
        exact = max(asked.transport, len(images.classes))
        found = transport_of(model, few.batches(), profile, exact=exact, device=device)
    prediction = profile.prediction(transport=found)
    print(prediction)
    if path is not None:
        write_json(path, {"format": THEORY, **prediction.told()})


def _fair(images: sets.Images, most: int, weighting: str) -> sets.Images:
    """So many images at most: as equal a class as can be, or any, as the classes are weighted."""
    if len(images) <= most or weighting == "class":
        return sets.subset(images, most)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most].sort().values
    return replace(images, images=images.images[some], labels=images.labels[some])


def train(
    recipe: str,
    /,
    *,
    resume: bool = False,
    options: Options = USUAL,
    changes: Annotated[Changes, Parameter(name="*", group="Instead of the recipe's own")] = NOTHING,
) -> None:
    """Train a network by a recipe of the paper's Table I; keep history, profiles and weights.

    Args:
        recipe: One of digits, mnist, fashion_mnist, cifar10, stl10, cifar100.
        resume: Continue the run in its folder.
        options: How the run is made.
        changes: Instead of the recipe's own.
    """
    folder = _train(recipe, options, changes, resume=resume)
    print(f"{folder}: pfc measure {folder}, pfc figures {folder}")


def _train(name: str, options: Options, changes: Changes, *, resume: bool) -> Path:
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; choose from {', '.join(RECIPES)}")
    changed: dict[str, Any] = {**changes, **({"data": options.data} if options.data else {})}
    recipe = replace(RECIPES[name], **changed)
    folder = options.out or Path("runs") / name
    measured_epochs(recipe.epochs, options.measure_every)  # refused before the data are loaded
    images = sets.load(recipe.data, limit=options.limit, seed=options.seed)
    print(f"{images}\n{folder}: {recipe.epochs} epochs", file=sys.stderr)
    for epoch in train_epochs(
        recipe.build(images, options.seed),
        images,
        recipe,
        folder=folder,
        resume=resume,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        measure_every=options.measure_every,
    ):
        if epoch.profile is not None:
            print(_line(epoch.epoch, epoch.profile), file=sys.stderr)
    return folder


def _line(epoch: int, profile: Profile) -> str:
    last = profile.table().iloc[-1]
    numbers = ", ".join(f"{c.upper()} {last[c]:.4g}" for c in ("pfc1", "pfc2", "pfc3"))
    accuracy = "" if profile.accuracy is None else f"accuracy {profile.accuracy:.4f}, "
    return f"epoch {epoch}: {accuracy}last layer {numbers}"


def measure(
    source: str,
    /,
    *,
    data: str | None = None,
    split: str = "train",
    limit: int | None = None,
    epoch: int | None = None,
    weights: Path | None = None,
    mean: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = (),
    std: Annotated[tuple[float, ...], Parameter(negative_iterable="")] = (),
    layers: Annotated[list[str] | None, Parameter(negative_iterable="")] = None,
    classes: int | None = None,
    classifier: str | None = None,
    weighting: Literal["class", "sample"] = "class",
    passes: Literal[1, 2] = 2,
    segments: bool = True,
    pool: Literal["flatten", "mean", "cls"] = "flatten",
    batch_size: int = 256,
    device: str | None = None,
    out: Path | None = None,
    theory: Theory = ALL_THEORY,
) -> None:
    """Measure every layer of a run, or of any model, on any data.

    Args:
        source: A run's folder, or MODULE:FUNCTION, a function without arguments that gives the model.
        data: digits, a hub name, a folder of parquet files or of images; a run has its own.
        split: Of the data.
        limit: Measure a class-balanced subset of so many samples.
        epoch: Of a run: weights are kept at 0, in the middle and at the end (the default).
        weights: The model's state dict as safetensors, for MODULE:FUNCTION.
        mean: Subtracted from each channel of pixels in 0..1, for MODULE:FUNCTION; by default the mean of
            the data's training split. A run has its own.
        std: Divides each channel then, in the same unit.
        layers: Names or globs, such as `blocks.*`; chosen by the network if not given.
        classes: Number of classes; by default the classifier's outputs.
        classifier: Name of the last linear layer; found by itself if not given.
        weighting: What a class counts in covariances of unbalanced data.
        passes: 2 for all metrics; 1 leaves out those that need the class means first.
        segments: Also gather what pairs layers of one shape.
        pool: What becomes of outputs with more than one axis a sample.
        batch_size: Samples in a forward pass.
        device: Such as cpu or cuda.
        out: Save the profile as this .json file, and what theory says beside it.
        theory: What theory says.

    Raises:
        ValueError: If an argument has no meaning.
    """
    _check(theory)
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # no hours for a place that can't be written to
    model, images = _model_and_data(source, data, split, limit, epoch, weights)
    images = _normalised(images, mean, std) if mean or std else images
    try:
        profile = measure_layers(
            model,
            images.batches(batch_size),
            layers=layers,
            classes=classes,
            weighting=weighting,
            passes=passes,
            segments=segments,
            pool=pool,
            device=device,
            classifier=classifier,
        )
    except RuntimeError as error:
        C, H, W = images.shape
        raise ValueError(f"{source} can't be run on images of {C} x {H} x {W}: {error}") from error
    print(profile)
    if out is not None:
        profile.save(out)
    beside = None if out is None else out.with_name(f"{out.stem}-theory.json")
    _tell_theory(profile, model, images, theory, device, beside)
    if passes == 2 and profile.segments:
        print(profile.verdict())


def _model_and_data(
    source: str, data: str | None, split: str, limit: int | None, epoch: int | None, weights: Path | None
) -> tuple[nn.Module, sets.Images]:
    if Path(source).is_dir():
        if weights is not None:
            raise ValueError(f"{source} is a run, which has its own weights; choose one by --epoch")
        kept = Run(source)
        if data is None and limit is None:
            return kept.network(epoch), kept.data(split)
        return kept.network(epoch), kept.normalised(sets.load(data or kept.recipe.data, split, limit))
    if ":" not in source:
        raise ValueError(f"{source} is no folder of a run, and no MODULE:FUNCTION either")
    if data is None:
        raise ValueError("a model needs --data: digits, a hub name, or a folder")
    if epoch is not None:
        raise ValueError(f"--epoch belongs to a run; {source} has the weights that --weights names")
    return _from_factory(source, weights), sets.load(data, split, limit)


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
        fill(model, read_tensors(weights)[0], weights, source)
    return model


def _normalised(images: sets.Images, mean: tuple[float, ...], std: tuple[float, ...]) -> sets.Images:
    C = images.shape[0]
    if len(mean) != C or len(std) != C:
        raise ValueError(
            f"--mean and --std need {C} number(s) each, one a channel, got {len(mean)} and {len(std)}"
        )
    m, s = (tuple(255 * x for x in given) for given in (mean, std))
    return replace(images, normalisation=sets.Normalisation(m, s, "given on the command line"))


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
    if source.suffix == ".json":
        beside, stem = source.with_name(f"{source.stem}-theory.json"), f"{source.stem}-"
        paths = _draw_profile(load(source), position, end, theory, beside, out or source.parent, stem)
    else:
        paths = _draw_run(Run(source), position, out, end, theory=theory)
    for path in paths:
        print(path)


def _draw_run(
    kept: Run,
    position: Position,
    out: Path | None = None,
    end: End = "measured",
    *,
    theory: bool = True,
) -> Iterator[Path]:
    folder = out or kept.folder / "figures"
    profiles: dict[int, Any] = kept.profiles
    last = profiles[max(profiles)]
    yield from draw.save(draw.training(profiles), folder / "training")
    yield from _draw_profile(last, position, end, theory, kept.theory_file, folder)


def _draw_profile(
    profile: Profile,
    position: Position,
    end: End,
    theory: bool,
    told: Path,
    folder: Path,
    stem: str = "",
) -> Iterator[Path]:
    """Figures of one profile in a folder, each name after the stem."""
    figure = draw.layers(profile, position=position, end=end if theory else None)
    yield from draw.save(figure, folder / f"{stem}layers")
    if theory and profile.segments:
        found = _kept_transport(told)
        yield from draw.save(draw.path(profile), folder / f"{stem}path")
        certified = draw.certificates(profile, transport=found)
        yield from draw.save(certified, folder / f"{stem}certificates")


def _kept_transport(path: Path) -> "Gap | None":
    """The transport that was computed with a profile, if it was."""
    from pfc.theory.transport import restored

    if not path.exists():
        return None
    content = read_json(path)
    if content.get("format") != THEORY:
        raise ValueError(f"{path} has format {content.get('format')!r}; this version reads {THEORY!r}")
    return None if content.get("transport") is None else restored(content["transport"])
