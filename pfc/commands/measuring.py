"""`pfc measure`: every layer of a run, of any model on any data, or of features in a file."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pfc import data as sets
from pfc.commands import dry_run as dry_runs
from pfc.commands.given import Given
from pfc.commands.prepared import Prepared, prepared
from pfc.commands.theory import NO_THEORY, GapOf, TheoryIfAsked, of_arrays, of_model, predicted
from pfc.files import check_place, expanded
from pfc.measuring import measure as measure_layers
from pfc.measuring import measure_features
from pfc.measuring.forecast import forecast, forecast_features
from pfc.measuring.loader import StatisticsPlace
from pfc.measuring.opening import ONE_PASS, Asked
from pfc.models import Samples
from pfc.processes import Processes, launched
from pfc.profile import Prediction, Profile, load
from pfc.profile.columns import PFC
from pfc.profile.storage import refuse_foreign

FEATURES = {".npz", ".safetensors"}
LEVEL = 0.95  # of the intervals that are printed; ours
BESIDE = ("pfc1", "pfc2", "pfc3", "nc4")  # what training and test data are compared by


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how: arguments of `pfc.measure`.

    Args:
        layers: Names or globs, such as `blocks.*`; chosen by the network if not given.
        classes: Number of classes; by default the classifier's outputs.
        classifier: Name of the last linear layer; found by itself if not given. Of a file of features,
            the name of its weight, of weight and bias as W,b, or what stands before .weight and .bias.
        statistics: Keep the class statistics on the device or in the host's memory; where they fit if
            not given.
        weighting: Class weights in covariances: equal, or proportional to counts.
        passes: 2 for all metrics; 1 leaves out those that need the class means first.
        segments: Also accumulate cross-layer statistics: positions, path and straight line.
        intervals: Print 95 % intervals of PFC1-3 over samples too; takes a little longer.
        pool: How to reduce tokens or pixels to one vector per sample; flatten, and of texts mean, if not
            given.
    """

    layers: Annotated[list[str] | None, Parameter(negative_iterable="", consume_multiple=True)] = None
    classes: int | None = None
    classifier: str | None = None
    statistics: StatisticsPlace | None = None
    weighting: Literal["class", "sample"] = "class"
    passes: Literal[1, 2] = 2
    segments: bool = True
    intervals: bool = False
    pool: Literal["flatten", "mean", "cls", "last"] | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class About:
    """About which class means data are measured.

    Args:
        means: A split, such as train, or a saved profile's .json: measure about its class means.
        probe: Also the column `probe`: a ridge classifier of each layer, tried on the split kept apart.
        test: Where the data have a test split beside the one that is measured, measure it too, about the
            class means of this one, and print both side by side.
        labels: Of a file of features: the array of labels in it, or an .npy file.
    """

    means: str | None = None
    probe: Annotated[bool, Parameter(negative="")] = False
    test: bool = True
    labels: str | None = None


NOTHING = Given()
USUAL = Options()
OWN = About()


def measure(
    source: str,
    /,
    *,
    given: Given = NOTHING,
    options: Options = USUAL,
    about: About = OWN,
    batch_size: int = 256,
    device: str | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    theory: TheoryIfAsked = NO_THEORY,
) -> None:
    """Measure every layer of a run, of any model on any data, or of features in a file.

    Under `torchrun` every process measures its part of the data, and the first prints and saves.

    Args:
        source: A run's folder; hf:NAME, hf:FOLDER, timm:NAME or torchvision:NAME, a model with its own
            preprocessing; MODULE:FUNCTION, a function without arguments that gives the model; or an .npz
            or .safetensors file of features, an array a layer.
        given: What is measured.
        options: What is measured, and how.
        about: About which class means.
        batch_size: Samples in a forward pass.
        device: Such as cpu or cuda.
        out: Save the profile as this .json file.
        as_json: Print one JSON object and nothing else: the verdict, all numbers, how it was measured.
        dry_run: Read model and data, measure one batch, and print what all would take in seconds and
            bytes, and what --no-segments, --pool mean and --limit would save; nothing is saved.
        theory: What theory says.

    Raises:
        ValueError: If an argument has no meaning.
    """
    out = None if out is None else expanded(out)
    beside = _checked(out, batch_size)
    of_file = Path(source).suffix in FEATURES
    if about.labels is not None and not of_file:
        raise ValueError(
            f"--labels belongs to an .npz or .safetensors file of features, not to {source}"
        )
    if dry_run:
        print(_dry(source, given, options, about, batch_size, device, out, as_json=as_json))
        return
    if of_file:
        found = _of_file(expanded(source), options, about)
    else:
        with launched(device) as (ranks, device):
            found = _of_model(source, given, options, about, batch_size, device, ranks, out)
        if not ranks.is_main:
            return
    if out is not None:
        found.profile.save(out)
        if found.test is not None:
            found.test.save(_of_split(out, found.splits[1]))
    if not as_json:
        _print(found, options)
    prediction = predicted(found.profile, theory, beside, found.gap)
    if as_json:
        print(json.dumps(_as_json(found, options, prediction), indent=1))
    elif prediction is not None:
        print(prediction)


def _print(found: "Found", options: Options) -> None:
    """The verdict first, then the numbers."""
    if options.passes == 2:
        print(found.profile.verdict())
    print(found.profile)
    if options.intervals:
        print(_with_intervals(found.profile))
    if found.test is not None:
        print_beside(found.profile, found.test, found.splits)


def _as_json(found: "Found", options: Options, prediction: Prediction | None) -> dict[str, Any]:
    """All that is printed, for scripts; what has no meaning is null."""
    told = _numbers(found.profile, options)
    if found.test is not None:
        told[found.splits[1]] = _numbers(found.test, options)
    if prediction is not None:
        told["theory"] = prediction.sentences()
    return told


def _numbers(profile: Profile, options: Options) -> dict[str, Any]:
    """The verdict, how it was measured, and all metrics of each layer."""
    table = profile.table(LEVEL if options.intervals and profile.errors else None)
    rows = {str(layer): dict(row) for layer, row in table.iterrows()}
    decided = options.passes == 2
    return {
        "verdict": profile.verdict().split("\n") if decided else [],
        "effective_depth": profile.effective_depth() if decided else None,
        "about": dict(profile.about),
        "layers": {
            layer: {name: x if math.isfinite(x) else None for name, x in row.items()}
            for layer, row in rows.items()
        },
    }


def _with_intervals(profile: Profile) -> str:
    """PFC1-3 at every layer with their intervals."""
    table = profile.table(interval=LEVEL)
    names = [f"{metric}{end}" for metric in PFC for end in ("_low", "", "_high")]
    shown = table[names].to_string(float_format="{:.4g}".format, na_rep="-")
    return f"{100 * LEVEL:g} % intervals over samples:\n{shown}"


def _checked(out: Path | None, batch_size: int) -> Path | None:
    """Where what theory says is kept, if the profile can be."""
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if out is None:
        return None
    if out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")
    _check_profile(out)
    check_place(beside := out.with_name(f"{out.stem}-theory.json"))
    return beside


def _check_profile(path: Path) -> None:
    """Refuse a place where a profile can't be kept."""
    check_place(path, f"{path.stem}.safetensors.next")
    refuse_foreign(path)


def _of_split(out: Path, split: str) -> Path:
    """Where the profile of the split kept apart stands."""
    return out.with_name(f"{out.stem}-{split}.json")


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured.

    Args:
        profile: Of the data that were asked for.
        gap: Finds their optimal transport.
        test: Of the split kept apart, about the class means of the others; `None` for none.
        splits: Names of both.
    """

    profile: Profile
    gap: GapOf
    test: Profile | None = None
    splits: tuple[str, str] = ("", "")


def _of_model(
    source: str,
    given: Given,
    options: Options,
    about: About,
    batch_size: int,
    device: str | None,
    ranks: Processes,
    out: Path | None,
) -> Found:
    """Measure a model, and its test data about the means of what was measured."""
    ready = _ready(source, given, options, about, out)
    model, samples = ready.model, ready.samples
    probe = None if ready.held is None else ready.held.batches(batch_size)

    def measured(samples: sets.Images | Samples, means: Profile | None, **more: Any) -> Profile:
        own = samples.part(ranks.rank, ranks.size).batches(batch_size)
        how = _how(options, samples, means)
        return measure_layers(model, own, means=means, device=device, **how, **more)

    means = _known(about.means) if ready.means is None else measured(ready.means, None)
    profile = measured(samples, means, probe=probe)
    gap = of_model(profile, model, samples, device, batch_size)
    if ready.beside is not None:
        splits = (samples.split, ready.beside.split)
        return Found(profile, gap, measured(ready.beside, profile), splits)
    return Found(profile, gap)


def _ready(source: str, given: Given, options: Options, about: About, out: Path | None) -> Prepared:
    """The model and all data that are measured."""
    if about.probe and about.means is not None:
        raise ValueError("--probe goes without --means: it is of samples about their own class means")
    if about.means is not None and options.passes == 1:
        raise ValueError(ONE_PASS)
    return prepared(
        given.opened(source),
        means=about.means,
        test=about.test and options.passes == 2,
        probe=about.probe,
        check=lambda split: None if out is None else _check_profile(_of_split(out, split)),
    )


def _dry(
    source: str,
    given: Given,
    options: Options,
    about: About,
    batch_size: int,
    device: str | None,
    out: Path | None,
    *,
    as_json: bool,
) -> str:
    """What measuring would cost, from one batch."""
    told = dry_runs.as_json if as_json else dry_runs.told
    if Path(source).suffix in FEATURES:
        path = expanded(source)
        features, means = _features(path, options, about)
        asked = Asked(means=means, **_of_arrays(options))
        of = forecast_features(features.layers, features.y, features.classifier, asked)
        return told(of, path.stem, {})
    ready = _ready(source, given, options, about, out)
    means = None if ready.means is not None else _known(about.means)
    how = _how(options, ready.samples, means)
    how |= {"segments": options.segments and ready.means is None}
    batches = ready.samples.batches(batch_size)
    of = forecast(ready.model, batches, Asked(means=means, device=device, **how))
    return told(of, batches.name, dry_runs.others(ready, batch_size, options.passes))


def _how(options: Options, samples: sets.Images | Samples, means: Profile | None) -> dict[str, Any]:
    """Arguments of `pfc.measure`: other data's means bring their number of classes."""
    how = vars(options) | {"pool": options.pool or _usual_pool(samples)}
    return how if means is None else how | {"classes": None}


def _known(means: str | None) -> Profile | None:
    """A saved profile, about whose class means data are measured; `None` for none."""
    return None if means is None else load(expanded(means))


def _usual_pool(samples: sets.Images | Samples) -> Literal["flatten", "mean"]:
    """Texts have many lengths, and images one."""
    text = isinstance(samples, Samples) and samples.preprocessing.content == "text"
    return "mean" if text else "flatten"


def print_beside(profile: Profile, test: Profile, splits: tuple[str, str]) -> None:
    """Print what was measured on training data beside what test data are about the same means."""
    both = profile.beside(test, splits)
    shown = [name for name in BESIDE if name in both and bool(both[name].notna().to_numpy().any())]
    means = f"{test.about['data']}: {test.about['samples']} samples, about the class means of "
    accuracy = "" if test.accuracy is None else f"; accuracy {test.accuracy:.4f}"
    print(f"{means}{test.about['means']}{accuracy}")
    print(both[shown].to_string(float_format="{:.4g}".format, na_rep="-"))


def _of_file(path: Path, options: Options, about: About) -> Found:
    """Measure the features of a file."""
    given, means = _features(path, options, about)
    profile = measure_features(
        given.layers,
        given.y,
        classifier=given.classifier,
        means=means,
        name=path.stem,
        **_of_arrays(options),
    )
    return Found(profile, of_arrays(profile, given.layers, given.y))


def _features(path: Path, options: Options, about: About) -> tuple[sets.Features, Profile | None]:
    """The features of a file, and the profile about whose class means they are measured."""
    if about.probe:
        raise ValueError(f"--probe belongs to a model and its data, not to the features of {path}")
    if about.labels is None:
        raise ValueError(f"{path} needs --labels: the name of an array in it, or an .npy file")
    if about.means is not None and not about.means.endswith(".json"):
        raise ValueError(f"of features in a file --means must be a profile's .json, got {about.means}")
    given = sets.Features.read(path, about.labels, classifier=options.classifier, layers=options.layers)
    return given, _known(about.means)


def _of_arrays(options: Options) -> dict[str, Any]:
    """Arguments of `pfc.measure_features`."""
    names = ("classes", "weighting", "passes", "segments", "intervals")
    return {name: getattr(options, name) for name in names}
