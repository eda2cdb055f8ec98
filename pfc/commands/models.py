"""`pfc mufm`: UFM and MUFM solved, on the paper's toy data or on real ones; Figures 4 and 5."""

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pfc import data as sets
from pfc.commands.solving import USUAL, Constants, Samples, Task, iterations
from pfc.commands.solving import sweep as sweep_over
from pfc.files import check_place
from pfc.measuring import features as collect
from pfc.measuring import measure
from pfc.theory.toy import toy
from pfc.training import Run

LAMS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0, 10.0)  # inferred; the paper's are lost
USUAL_WORK = 1e10  # steps times numbers of H that descent takes unasked, about a minute; ours
MOST_WORK = 1e12  # that it takes at all, hours; ours


def mufm(
    *,
    sweep: bool = False,
    data: str | None = None,
    split: str = "train",
    limit: int | None = None,
    features: Path | None = None,
    layer: str | None = None,
    epoch: int | None = None,
    lams: Annotated[list[float] | None, Parameter(negative_iterable="", consume_multiple=True)] = None,
    centre: bool | None = None,
    bias: bool = False,
    descent: bool | None = None,
    out: Path | None = None,
    constants: Constants = USUAL,
) -> None:
    """Solve UFM and MUFM to their optimum: Figure 4, or with --sweep Figure 5.

    Args:
        sweep: Solve MUFM for each of --lams, and compare with the data: Figure 5.
        data: Real images instead of the toy data: digits, a hub name, a folder of parquet files or of
            images; pixels are scaled to 0..1 and flattened.
        split: Of the images.
        limit: A class-balanced subset of so many images.
        features: A run's folder: the features of its network on its images are the data.
        layer: Of that network; the first of its last run of layers of one shape if not given.
        epoch: Of that run: weights are kept at 0, in the middle and at the end (the default).
        lams: Coefficients of a sweep.
        centre: Take the mean from the data first; by default from real data, not from the toy data.
        bias: Give MUFM a free bias (squared error only).
        descent: Also run the paper's plain gradient descent; by default where it takes a minute or two.
        out: Folder of the figure and the numbers; runs/mufm if not given. A sweep goes on there.
        constants: Of the models and the toy data.

    Raises:
        ValueError: If an argument has no meaning.
    """
    if lams is not None and not sweep:
        raise ValueError("--lams are the coefficients of a --sweep; without one there is --lam")
    chosen = sorted(set(LAMS if lams is None else lams))
    _check(constants, chosen, bias=bias)
    folder = out or Path("runs") / "mufm"
    figure = "figure5" if sweep else "figure4"
    check_place(folder / f"{figure}.json", f"{figure}.png", f"{figure}.svg")
    samples = _samples(data, split, limit, features, layer, epoch, constants)
    work = samples.size * constants.steps * (len(chosen) if sweep else 1)
    if descent and (bias or work > MOST_WORK):
        why = "--descent has no bias" if bias else f"--descent in {samples.size:,} numbers takes hours"
        raise ValueError(f"{why}; leave it out")
    task = Task(
        samples=samples,
        constants=constants,
        centre=samples.real if centre is None else centre,
        bias="free" if bias else False,
        descent=(not bias and work <= USUAL_WORK) if descent is None else descent,
        folder=folder,
    )
    if sweep:
        sweep_over(task, chosen)
    else:
        iterations(task)


def _check(c: Constants, lams: list[float], *, bias: bool) -> None:
    """Refuse what no model can take, before anything is loaded."""
    positive = {"lam": c.lam, "weight-decay": c.weight_decay, "feature-decay": c.feature_decay}
    for name, value in (*positive.items(), ("step", c.step), *(("lams", lam) for lam in lams)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"--{name} must be a positive number, got {value}")
    if not lams:
        raise ValueError("--lams needs at least one coefficient, such as 1e-4 1e-3; or leave it out")
    for name, number, least in (("steps", c.steps, 1), ("restarts", c.restarts, 0), ("seed", c.seed, 0)):
        if number is not None and number < least:
            raise ValueError(f"--{name} must be at least {least}, got {number}")
    if bias and c.loss == "ce":
        raise ValueError("--bias goes with --loss mse only")


def _samples(
    data: str | None,
    split: str,
    limit: int | None,
    features: Path | None,
    layer: str | None,
    epoch: int | None,
    c: Constants,
) -> Samples:
    """The data that were asked for."""
    if features is None and (layer is not None or epoch is not None):
        raise ValueError("--layer and --epoch go with --features RUN")
    if features is not None:
        return _from_run(Run(features), layer, epoch, data, split, limit)
    if data is not None:
        images = sets.load(data, split, limit, c.seed)
        name = f"{len(images):,} images of {images.batches().name}, pixels in 0..1"
        return Samples(name, images.images.flatten(1).float() / 255, images.labels, real=True)
    if limit is not None:
        raise ValueError("--limit goes with --data or --features; toy data have --per-class")
    return Samples("toy data", *toy(c.classes, c.dimensions, c.per_class, c.sigma, c.seed), real=False)


def _from_run(
    run: Run, layer: str | None, epoch: int | None, data: str | None, split: str, limit: int | None
) -> Samples:
    """Features of a trained network's layer."""
    net, images = run.network(epoch), run.data(split)
    if data is not None:
        images = run.normalised(sets.load(data, split))
    images = sets.subset(images, limit)
    if layer is None:
        few = sets.subset(images, 2 * len(images.classes))
        layer = measure(net, few.batches(), passes=1, progress=False).segment().layers[0]
    found, y = collect(net, images.batches(), [layer])
    if len(found) != 1:
        raise ValueError(f"--layer must name one layer, {layer!r} names {', '.join(found)}")
    (X,) = found.values()
    name = f"{len(y):,} features of {layer} of {run.folder.name} on {images.batches().name}"
    return Samples(name, X, y, real=True)
