"""All that can be said about a map and optimal transport: what is proven, and what is only sampled."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pfc.metrics import Weighting, class_weights
from pfc.progress import shown
from pfc.samples import ArrayLike
from pfc.schema import form_of
from pfc.schema import restored as rebuilt
from pfc.theory.coefficients import whole
from pfc.theory.transport.clouds import Clouds
from pfc.theory.transport.cycles import LENGTHS, Cycles, draw_cycles
from pfc.theory.transport.exact import Exact, Subset, assign_at_most, draw_subsets, subset_sizes
from pfc.theory.transport.gelbrich import Gelbrich, gelbrich
from pfc.theory.transport.semidiscrete import SemiDiscrete, transport_to_means
from pfc.warning import renamed

MOST = 5_000  # samples of an assignment: seconds, and 200 MB for the costs; ours


@dataclass(frozen=True)
class Gap:
    r"""A map's transport cost against the optimal one, of clouds centred by their weighted means.

    Args:
        samples: Of the whole set.
        features: Of a sample.
        weighting: `"sample"` if all samples weigh the same, `"class"` if all classes do.
        cost: Of the whole set, $\sum_i w_i \|a_i - b_i\|^2$.
        shift: Distance of the two means, which centring took off; squared, it is what any map between
            the clouds as given costs besides.
        exact: Optimal transport of the whole set or of a subset, as it says itself.
        gelbrich: Proven upper bound of the ratio.
        subsets: Gaps of random subsets of growing size: sampled.
        cycles: Random pairs and cycles: a negative one is a proof, the rate is sampled.
        atoms: Semi-discrete transport to the class means; `None` without two classes.
    """

    samples: int
    features: int
    weighting: Weighting
    cost: float
    shift: float
    exact: Exact | None
    gelbrich: Gelbrich | None
    subsets: tuple[Subset, ...]
    cycles: tuple[Cycles, ...]
    atoms: SemiDiscrete | None

    @property
    def w2(self) -> float:
        """Squared Wasserstein-2 distance of the whole set; NaN if it was not computed for all of it."""
        return math.nan if self.exact is None or self.exact.sampled else self.exact.w2

    @property
    def gap(self) -> float:
        """Cost less w2 of the whole set, at least 0; NaN if `exact` is of a subset."""
        return math.nan if self.exact is None or self.exact.sampled else self.exact.gap

    @property
    def ratio(self) -> float:
        """Cost over w2 of the whole set, 1 for an optimal map; NaN if `exact` is of a subset."""
        return math.nan if self.exact is None or self.exact.sampled else self.exact.ratio

    @property
    def bounds(self) -> tuple[float, float]:
        """Proven lower and upper bound of the whole set's squared Wasserstein-2 distance."""
        if not math.isnan(self.w2):
            return self.w2, self.w2
        return (self.gelbrich.bound if self.gelbrich else 0.0), self.cost

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name; `restored` reads them, also from JSON."""
        return asdict(self)

    told = renamed("Gap.told", "Gap.to_dict")

    def __str__(self) -> str:
        head = (
            f"{self.samples:,} samples of {self.features:,} features, weighted by {self.weighting}, "
            f"both clouds centred (their means are {self.shift:.4g} apart): the network's map costs "
            f"{self.cost:.4g}."
        )
        parts = [self.exact, self._growth(), self.gelbrich, *self._crossings(), self.atoms]
        return "\n".join([head, *(str(part) for part in parts if part)])

    def _growth(self) -> str:
        if not self.subsets:
            return ""
        if not any(s.gap for s in self.subsets):
            draws = sum(s.draws for s in self.subsets)
            sizes = f"{self.subsets[0].size:,} to {self.subsets[-1].size:,}"
            return f"Of {draws} random subsets of {sizes} samples none has a gap (sampled)."
        told = ", ".join(f"{s.gap:.3g} +- {s.error:.1g} at {s.size:,}" for s in self.subsets)
        return (
            f"The gap of random subsets: {told} samples (sampled; in expectation it never falls with "
            "the size and never exceeds the gap of the whole set)."
        )

    def _crossings(self) -> list[str]:
        """One sentence for all lengths at which no cycle is negative, and one for each other."""
        none = [c for c in self.cycles if not c.negative]
        told = [str(c) for c in self.cycles if c.negative]
        if len(none) < 2:
            return [*map(str, none), *told]
        lengths = ", ".join(str(c.length) for c in none[:-1]) + f" or {none[-1].length}"
        rate = f"{100 * none[0].upper:.2g} %"
        return [
            f"None of {none[0].drawn:,} random cycles of {lengths} samples is negative: of each length "
            f"at most {rate} of all are (sampled, 95 %).",
            *told,
        ]


def gap(
    start: ArrayLike,
    end: ArrayLike,
    y: ArrayLike | None = None,
    *,
    weighting: Weighting = "sample",
    exact: int = 2000,
    certificates: bool = True,
    directions: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Gap:
    r"""Is the map from the first to the last features of a segment an optimal transport map?

    Assumption 1 of arXiv 2405.00985 says that it is one. Both clouds are first centred by their weighted
    means, because a common shift moves every map's cost alike and would hide everything in the ratio.

    Args:
        start: Features before, N x D of any type, one sample a row; the sums are float64.
        end: Features of the same samples after, of the same shape.
        y: Class of each sample; needed to weigh by class, and for the transport to class means.
        weighting: `"sample"`, every sample the same, or `"class"`, every class the same.
        exact: Samples of the exact part, at most: all if there are no more and they weigh the same, else
            a random subset, of equal classes if weighted by class. 0 leaves it and the subsets out.
        certificates: Also bound and sample the whole set.
        directions: The Gelbrich bound works in so many dimensions, at most.
        seed: Of all that is drawn; not negative.
        progress: Show a progress bar.

    Returns:
        Cost, W2^2, gap, ratio and bounds; the ratio is 1 exactly for an optimal map.

    Raises:
        ValueError: If shapes, types, labels, the weighting or a size do not fit, or features are not
            finite.

    Examples:
        >>> found = gap([[0.0], [1.0]], [[3.0], [1.0]], certificates=False, progress=False)
        >>> found.cost, found.w2
        (2.25, 0.25)
    """
    class_weights(torch.ones(2, dtype=torch.float64, device="cpu"), weighting)  # refuses an unknown one
    clouds = Clouds.of(start, end, y, weighting)
    whole(exact=exact, directions=directions, seed=seed)
    _check_sizes(exact, directions, clouds)
    cost = clouds.cost()
    stages = _stages(clouds, cost, exact, directions if certificates else 0, seed)
    found: list[Any] = []
    with shown("transport", len(stages), enabled=progress) as step:
        for i, (note, stage) in enumerate(stages):
            step(i, note)
            found.append(stage())
        step(len(stages))
    return Gap(
        samples=clouds.N,
        features=clouds.D,
        weighting=weighting,
        cost=cost,
        shift=float((clouds.means[1] - clouds.means[0]).norm()),
        exact=_first(found, Exact),
        gelbrich=_first(found, Gelbrich),
        subsets=tuple(part for part in found if isinstance(part, Subset)),
        cycles=tuple(part for part in found if isinstance(part, Cycles)),
        atoms=_first(found, SemiDiscrete),
    )


def _stages(
    clouds: Clouds, cost: float, exact: int, directions: int, seed: int
) -> list[tuple[str, Callable[[], Any]]]:
    """The computations by name, in order; certificates only with `directions`."""
    rng = np.random.default_rng(seed)
    stages: list[tuple[str, Callable[[], Any]]] = []
    if exact:
        stages.append(("assignment", partial(assign_at_most, clouds, exact, rng)))
    if not directions:
        return stages
    sizes, lengths = subset_sizes(clouds, exact), (k for k in LENGTHS if k <= clouds.N)
    stages += [(f"subsets of {n}", partial(draw_subsets, clouds, n, rng)) for n in sizes]
    stages += [(f"cycles of {k}", partial(draw_cycles, clouds, k, rng)) for k in lengths]
    if clouds.labels is not None and len(clouds.count) > 1:
        stages.append(("class means", partial(transport_to_means, clouds)))
    stages.append(("covariances", partial(gelbrich, clouds, cost, directions, rng)))
    return stages


def _first(found: list[Any], kind: type) -> Any:
    return next((part for part in found if isinstance(part, kind)), None)


def _check_sizes(exact: int, directions: int, clouds: Clouds) -> None:
    if exact == 1 or not 0 <= exact <= MOST:
        raise ValueError(
            f"exact must be 0 or from 2 to {MOST:,} samples, got {exact} (it takes the cube of it)"
        )
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    K = len(clouds.count)
    if 0 < exact < K and clouds.weighting == "class":
        raise ValueError(f"exact must be 0 or at least one sample of each of {K} classes, got {exact}")


def restored(numbers: Mapping[str, Any]) -> Gap:
    """A verdict from `Gap.to_dict`, also where JSON kept tuples as lists and what is not finite as text.

    Args:
        numbers: All numbers by name.

    Returns:
        The same verdict.

    Raises:
        ValueError: If a part is missing or of the wrong kind.
    """
    try:
        form_of(Gap)(numbers, "it")
        found: Gap = rebuilt(Gap, numbers)
        if any(cycles.negative and not cycles.witness for cycles in found.cycles):
            raise ValueError("negative cycles need a witness")
        return found
    except ValueError as error:
        raise ValueError(f"this is no verdict on transport: {error}") from None
