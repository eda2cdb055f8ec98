"""What is solved for Figures 4 and 5: data, constants with their sources, and the model of both."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pfc import data as sets
from pfc.measuring import features as collect
from pfc.measuring import measure
from pfc.profile.columns import PFC
from pfc.progress import shown
from pfc.theory import descent as plain_descent
from pfc.theory import mufm, ufm
from pfc.theory.coefficients import at_least, positive
from pfc.theory.collapse import collapse
from pfc.theory.toy import toy
from pfc.training import Run

OURS = "ours; the paper does not say"
TIRER = "Tirer and Bruna 2022, from memory; the paper's own is lost"
SOURCES = {  # of the defaults of the constants; the rest is ours
    **dict.fromkeys(("classes", "dimensions", "per_class"), TIRER),
    **dict.fromkeys(("weight_decay", "feature_decay", "step"), TIRER),
    **dict.fromkeys(("sigma", "lam", "steps"), "inferred; the paper's own is lost"),
    **dict.fromkeys(("loss", "start"), "arXiv 2405.00985, Sec. IV-B"),
}
METRICS = tuple(PFC)
DESCENT = ("weight_decay", "loss", "seed", "step", "steps")  # constants that gradient descent takes
ROWS = 5_000  # samples gathered between two signs of life; ours
NARROW = 200  # features up to which the relaxation is solved too, for a smaller gap; ours


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The constants of the models and of the toy data.

    Args:
        classes: Classes of the toy data.
        dimensions: Features of the toy data.
        per_class: Samples of each class of the toy data.
        sigma: Standard deviation of the toy data around their class means, which lie on a sphere.
        weight_decay: Of the classifier.
        feature_decay: Of the features, in UFM.
        lam: What a change of the data costs, in MUFM; a sweep has coefficients of its own.
        loss: Squared error or cross-entropy.
        seed: Of the toy data, a subset, and the random starts.
        restarts: Random starts of the solver after its own first one, unless that is proven to be best;
            4 up to 200 features and none above if not given.
        step: Of the paper's plain gradient descent.
        steps: How many it takes.
        start: Where it begins in MUFM: features from the standard normal distribution, or at the data.

    Raises:
        ValueError: If a constant is out of its range.
    """

    classes: int = 4
    dimensions: int = 20
    per_class: int = 50
    sigma: float = 0.5
    weight_decay: float = 0.005
    feature_decay: float = 0.005
    lam: float = 0.005
    loss: Literal["mse", "ce"] = "mse"
    seed: int = 0
    restarts: int | None = None
    step: float = plain_descent.STEP
    steps: int = plain_descent.STEPS
    start: plain_descent.Start = "normal"

    def __post_init__(self) -> None:
        positive(lam=self.lam, weight_decay=self.weight_decay, feature_decay=self.feature_decay)
        positive(step=self.step)
        at_least(1, steps=self.steps)
        at_least(0, restarts=self.restarts or 0, seed=self.seed)

    @property
    def sources(self) -> dict[str, str]:
        """Where each constant comes from."""
        return {
            f.name: SOURCES.get(f.name, OURS) if getattr(self, f.name) == f.default else "given"
            for f in fields(self)
        }


USUAL = Constants()


@dataclass(frozen=True, eq=False)
class Dataset:
    """The data that the models are drawn to.

    Args:
        name: In words.
        X: One sample a row.
        y: Their classes.
        real: Whether they are no toy data.
    """

    name: str
    X: Tensor
    y: Tensor
    real: bool

    @classmethod
    def toy(cls, constants: Constants = USUAL) -> "Dataset":
        """The paper's toy data."""
        c = constants
        return cls("toy data", *toy(c.classes, c.dimensions, c.per_class, c.sigma, c.seed), real=False)

    @classmethod
    def pixels(cls, images: sets.Images) -> "Dataset":
        """The pixels of real images, scaled to 0..1 and flattened."""
        name = f"{len(images):,} images of {images.batches().name}, pixels in 0..1"
        return cls(name, images.images.flatten(1).float() / 255, images.labels, real=True)

    @classmethod
    def features(
        cls,
        run: Run,
        images: sets.Images | None = None,
        layer: str | None = None,
        epoch: int | None = None,
    ) -> "Dataset":
        """The features of a layer of a run's network.

        Args:
            run: A run with weights.
            images: What the network is shown; the run's own data if `None`.
            layer: Its name; the first of the last segment if `None`.
            epoch: Of the weights; the last that were kept if `None`.

        Returns:
            One row of features an image.

        Raises:
            ValueError: If there are no such weights, or the name is that of no layer or of several.
        """
        net, images = run.network(epoch), run.data() if images is None else images
        if layer is None:
            few = sets.subset(images, 2 * len(images.classes))
            layer = measure(net, few.batches(), passes=1, progress=False).segment().layers[0]
        found, y = collect(net, images.batches(), [layer])
        if len(found) != 1:
            raise ValueError(f"layer must name one layer, {layer!r} names {', '.join(found)}")
        (X,) = found.values()
        name = f"{len(y):,} features of {layer} of {run.folder.name} on {images.batches().name}"
        return cls(name, X, y, real=True)

    @property
    def metrics(self) -> dict[str, float]:
        """PFC1-3 of the data."""
        found = collapse(self.X, self.y)
        return {metric: getattr(found, metric) for metric in METRICS}


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What is to be solved, and where the results go.

    Args:
        data: What the models are drawn to.
        constants: Of the models.
        centre: Whether the mean is taken from the data first; from real data if `None`.
        bias: Of MUFM, as for `pfc.theory.mufm.solve`.
        descent: Whether to run the paper's plain gradient descent too.
        folder: Of the figure and the numbers; it is made.

    Raises:
        ValueError: If gradient descent is to run with a bias.
    """

    data: Dataset
    constants: Constants = USUAL
    centre: bool | None = None
    bias: Literal["free"] | bool = False
    descent: bool = True
    folder: str | Path = Path("runs") / "mufm"

    def __post_init__(self) -> None:
        if self.bias and self.descent:
            raise ValueError("gradient descent has no bias; leave one of them out")

    @property
    def centred(self) -> bool:
        """Whether the mean is taken from the data first."""
        return self.data.real if self.centre is None else self.centre

    def settings(self, *, sweep: bool) -> dict[str, Any]:
        """All that decides the result, each constant that plays a part with its source."""
        N, D = self.data.X.shape
        idle = {"classes", "dimensions", "per_class", "sigma"} if self.data.real else set()
        idle |= {"lam", "feature_decay"} if sweep else set()
        idle |= set() if self.descent else {"step", "steps", "start"}
        parts = {"constants": asdict(self.constants), "sources": self.constants.sources}
        return {
            **{"data": self.data.name, "samples": N, "features": D, "centred": self.centred},
            **{"bias": self.bias, "descent": self.descent},
            **{name: {k: v for k, v in part.items() if k not in idle} for name, part in parts.items()},
        }

    @property
    def title(self) -> str:
        """The data and the model in a line."""
        N, D = self.data.X.shape
        c = self.constants
        name = f"{self.data.name}{', centred' * self.centred}"
        return f"{name}: N = {N:,}, D = {D:,}, weight decay {c.weight_decay:g}, {c.loss}"

    @property
    def X(self) -> Tensor:
        """The data as the model sees them, in float64."""
        X = self.data.X.double()
        return X - X.mean(0) if self.centred else X

    @cached_property
    def solve(self) -> Callable[[float], mufm.Solution]:
        """Solves MUFM for a coefficient; what all coefficients share is done once."""
        X, y, c = self.data.X, self.data.y, self.constants
        narrow = X.shape[1] <= NARROW
        restarts = c.restarts if c.restarts is not None else 4 * narrow
        how = self._given("weight_decay", "loss", "seed")
        how |= {"restarts": restarts, "centre": self.centred, "bias": self.bias, "relax": narrow}
        if c.loss == "ce" or len(X) < X.shape[1]:
            return lambda lam: mufm.solve(X, y, lam=lam, **how)
        statistics = self._statistics()

        def solved(lam: float) -> mufm.Solution:
            found = mufm.solve(statistics, lam=lam, **how)
            return replace(found, pfc3=found.accuracy([(X, y)]))

        return solved

    def _statistics(self) -> mufm.Statistics:
        """Statistics of the data, gathered and decomposed."""
        X, y = self.data.X, self.data.y
        parts = list(zip(X.split(ROWS), y.split(ROWS), strict=True))
        with shown("statistics", len(parts) + 1) as step:

            def told() -> Iterator[tuple[Tensor, Tensor]]:
                for done, part in enumerate(parts):
                    step(done, "gather")
                    yield part

            statistics = mufm.gather(told())
            step(len(parts), "decompose")
            centred = self.centred or self.bias == "free"
            _ = (statistics.centred if centred else statistics).spectrum  # kept for every coefficient
        return statistics

    @property
    def balanced(self) -> bool:
        """Whether all classes have as many samples."""
        return len(self.data.y.bincount().unique()) == 1

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Classes, features, and samples of a class."""
        (N, D), classes = self.data.X.shape, int(self.data.y.max()) + 1
        return classes, D, N // classes

    def _given(self, *names: str) -> dict[str, Any]:
        """Some of the constants by name, as the models take them."""
        return {name: getattr(self.constants, name) for name in names}

    def optimum(self) -> ufm.Optimum:
        """The optimum of UFM for balanced classes, in closed form."""
        return ufm.optimum(*self._sizes, **self._given("weight_decay", "feature_decay", "loss"))

    def iterate(self) -> mufm.Trace:
        """What our solver passes through in MUFM."""
        return mufm.iterates(self.X, self.data.y, **self._given("lam", "weight_decay", "seed"))

    def iterate_ufm(self) -> mufm.Trace:
        """What our solver passes through in UFM, which is MUFM of data that are zero."""
        classes, D, _ = self._sizes
        zero = torch.zeros(len(self.data.y), min(D, classes), dtype=torch.float64, device="cpu")
        how = self._given("weight_decay", "seed")
        return mufm.iterates(zero, self.data.y, lam=self.constants.feature_decay, **how)

    def expected(self, lam: float) -> mufm.Optimum | None:
        """MUFM in closed form for orthogonal means, where the toy data's are only nearly so."""
        c = self.constants
        if self.data.real or self.centred or self.bias or c.loss == "ce" or c.dimensions < c.classes:
            return None
        given = self._given("weight_decay", "sigma")
        return mufm.optimum(c.classes, c.dimensions, c.per_class, lam=lam, **given)

    def descend(self, lam: float) -> mufm.Trace:
        """Plain gradient descent on MUFM."""
        return plain_descent.on_mufm(self.X, self.data.y, lam=lam, **self._given(*DESCENT, "start"))

    def descend_ufm(self) -> mufm.Trace:
        """Plain gradient descent on UFM of balanced classes."""
        return plain_descent.on_ufm(*self._sizes, **self._given(*DESCENT, "feature_decay"))
