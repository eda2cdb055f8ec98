"""Class means of other data, such as the training set's, about which data are measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from pfc.measuring import shards
from pfc.measuring.layout import Layout
from pfc.measuring.scale import Scale
from pfc.measuring.sums import Sums
from pfc.metrics import Weighting, class_weights
from pfc.moments import ClassMoments
from pfc.processes import Processes
from pfc.profile.profile import Profile
from pfc.span import MeansSpan


@dataclass(frozen=True, eq=False)
class Reference:
    """Class means of other data.

    Args:
        moments: Of each layer.
        exponents: Of layers whose features were divided by a power of two.
        about: How they were measured.
    """

    moments: Mapping[str, ClassMoments]
    exponents: Mapping[str, int]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, profile: Any) -> "Reference | None":
        """The means that a profile keeps; `None` for none."""
        if profile is None:
            return None
        refuse_meanless(profile, "means")
        return cls(profile.moments, profile.about.get("exponents", {}), profile.about)

    @property
    def classes(self) -> int:
        """Classes of the reference, with samples or without."""
        return int(self.about["classes"])

    @property
    def digest(self) -> float:
        """A number by which processes see that they have the same means."""
        return float(sum(each.mean.sum() + each.scatter.sum() for each in self.moments.values()))

    @property
    def name(self) -> str:
        """What the means are of, in words."""
        data = self.about.get("data")
        return f"{data or 'other data'}, {self.about['samples']} samples"

    def check(self, layout: Layout) -> None:
        """Refuse layers whose means are not known, or of another shape or pooling."""
        if (pool := self.about.get("pool", layout.pool)) != layout.pool:
            raise ValueError(
                f"the means are of outputs reduced by pool={pool!r}, these are by {layout.pool!r}: "
                f"measure with pool={pool!r}"
            )
        for name, features in layout.features.items():
            if name not in self.moments:
                raise ValueError(f"the means of layer {name!r} are not known; {_known(self.moments)}")
            if (D := self.moments[name].mean.shape[1]) != features:
                raise ValueError(
                    f"layer {name!r} has {features} numbers a sample, but its means have {D}: the means "
                    "are another network's"
                )

    def prepare(self, sums: Sums) -> None:
        """Divide features by the power of two by which those behind the means were divided."""
        for group in sums.groups:
            group.scale = Scale(self.exponents.get(group.names[0], 0), settled=True)

    def refuse_unknown(self, count: Shaped[Tensor, " K"]) -> None:
        """Refuse classes that the reference has no sample of."""
        known = next(iter(self.moments.values())).count.to(count.device) > 0
        unknown = ((count > 0) & ~known).nonzero().flatten().tolist()
        if unknown:
            raise ValueError(f"classes {unknown} have samples here, but none behind the means")

    def spans(
        self, sums: Sums, weighting: Weighting, ranks: Processes
    ) -> tuple[dict[str, MeansSpan], dict[str, Float64[Tensor, "P R"]]]:
        """The span of the means at each layer, and in it how far the data's own are from them."""
        self.refuse_unknown(sums.count)
        weights = class_weights(sums.count, weighting)
        spans, own = {}, {}
        for name, moments in sums.moments.items():
            known = self.moments[name].to(sums.device)
            spans[name] = span = shards.shared_span(known, weighting, ranks, weights)
            own[name] = (self.offsets(name, moments) @ span.basis)[known.count > 0]
        return spans, own

    def offsets(self, name: str, moments: ClassMoments) -> Float64[Tensor, "K D"]:
        """The data's own class means less the reference's; 0 for a class without samples."""
        known = self.moments[name].to(moments.mean.device)
        apart = (moments.mean - known.mean) + (moments.mean_error - known.mean_error)
        return apart * (moments.count > 0)[:, None]

    def about_means(self, name: str, moments: ClassMoments, span: MeansSpan) -> ClassMoments:
        """Moments of the classes that have samples, about the reference means in their span."""
        seen = moments.count > 0
        moved = self.offsets(name, moments).square().sum(1)
        M = span.points[span.place[seen]]
        scatter = (moments.scatter + moments.count * moved)[seen]
        return ClassMoments(moments.count[seen], M, scatter, torch.zeros_like(M))


def _known(names: Iterable[str]) -> str:
    return f"the profile given as means= knows those of {', '.join(names)}"


def refuse_meanless(profile: Any, name: str) -> None:
    """Refuse what is no profile of data about their own class means, which it keeps."""
    if not isinstance(profile, Profile):
        raise ValueError(f"{name} must be a Profile, as measure gives it, got {type(profile).__name__}")
    if not profile.moments:
        raise ValueError(
            f"the profile given as {name}= keeps no class means: measure again, or save it with "
            "means=True (a run keeps the means of its last epoch)"
        )
    if profile.about.get("means"):
        raise ValueError(
            f"the profile given as {name}= is itself about the means of {profile.about['means']}: "
            "give the one that those are of"
        )
