"""`pfc mufm`: UFM and MUFM solved, on the paper's toy data or on real ones; Figures 4 and 5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pfc import data as sets
from pfc.experiments import mufm as experiment
from pfc.experiments.mufm import Constants, Dataset, Task
from pfc.files import check_place, expanded
from pfc.training import Run

USUAL_WORK = 1e10  # steps times numbers of H that descent takes unasked, about a minute; ours
MOST_WORK = 1e12  # that it takes at all, hours; ours
USUAL = Constants()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """The data that the models are drawn to; the toy data if nothing is given.

    Args:
        data: Real images instead of the toy data: digits, a hub name, a folder of parquet files or of
            images; pixels are scaled to 0..1 and flattened.
        split: Of the images.
        limit: Use at most this many samples, as equal a class as can be.
        label: The column with the labels, where the images have several, such as coarse_label.
        features: A run's folder: the features of its network on its images are the data.
        layer: Of that network; the first of its last run of layers of one shape if not given.
        epoch: Of that run: weights are kept at 0, in the middle and at the end (the default).
    """

    data: str | None = None
    split: str = "train"
    limit: int | None = None
    label: str | None = None
    features: Path | None = None
    layer: str | None = None
    epoch: int | None = None

    def dataset(self, constants: Constants) -> Dataset:
        """The data that were asked for."""
        if self.features is None and (self.layer is not None or self.epoch is not None):
            raise ValueError("--layer and --epoch go with --features RUN")
        if self.label is not None and self.data is None:
            raise ValueError("--label goes with --data")
        if self.features is not None:
            run = Run(self.features)
            if self.data is None:
                images = run.data(self.split)
            else:
                images = run.normalised(sets.load(self.data, self.split, label_column=self.label))
            return Dataset.features(run, sets.subset(images, self.limit), self.layer, self.epoch)
        if self.data is not None:
            chosen = (self.split, self.limit, constants.seed)
            return Dataset.pixels(sets.load(self.data, *chosen, label_column=self.label))
        if self.limit is not None:
            raise ValueError("--limit goes with --data or --features; toy data have --per-class")
        return Dataset.toy(constants)


TOY = Given()


def mufm(
    *,
    sweep: bool = False,
    given: Given = TOY,
    lams: Annotated[list[float] | None, Parameter(negative_iterable="", consume_multiple=True)] = None,
    centre: bool | None = None,
    bias: bool = False,
    descent: bool | None = None,
    out: Path = Path("runs") / "mufm",
    constants: Annotated[Constants, Parameter(name="*")] = USUAL,
) -> None:
    """Solve UFM and MUFM to their optimum: Figure 4, or with --sweep Figure 5.

    Args:
        sweep: Solve MUFM for each of --lams, and compare with the data: Figure 5.
        given: The data.
        lams: Coefficients of a sweep.
        centre: Take the mean from the data first; by default from real data, not from the toy data.
        bias: Give MUFM a free bias (squared error only).
        descent: Also run the paper's plain gradient descent; by default where it takes a minute or two.
        out: Folder of the figure and the numbers. A sweep goes on there.
        constants: Of the models and the toy data.

    Raises:
        ValueError: If an argument has no meaning.
    """
    if lams is not None and not sweep:
        raise ValueError("--lams are the coefficients of a --sweep; without one there is --lam")
    if bias and constants.loss == "ce":
        raise ValueError("--bias goes with --loss mse only")
    chosen, out = experiment.coefficients(experiment.LAMS if lams is None else lams), expanded(out)
    check_place(out / f"figure{5 if sweep else 4}.json")
    found = given.dataset(constants)
    work = found.X.numel() * constants.steps * (len(chosen) if sweep else 1)
    if descent and work > MOST_WORK:
        raise ValueError(f"--descent in {found.X.numel():,} numbers takes hours; leave it out")
    task = Task(
        data=found,
        constants=constants,
        centre=centre,
        bias="free" if bias else False,
        descent=not bias and work <= USUAL_WORK if descent is None else descent,
        folder=out,
    )
    result = experiment.sweep(task, chosen) if sweep else experiment.iterations(task)
    print(result, *result.files, sep="\n")
