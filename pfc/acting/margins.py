"""How much nearer features are to the nearest class mean than to the second nearest."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pfc.measuring.reference import refuse_meanless
from pfc.profile.profile import Profile

POOLS = ("flatten", "mean", "cls", "last")  # by which a profile's features can be made again


def pool_of(profile: Any) -> str:
    """How the features of a profile that keeps class means were reduced, if it can be done again."""
    refuse_meanless(profile, "profile")
    if (pool := profile.about.get("pool", "flatten")) not in POOLS:
        raise ValueError(
            f"the profile's features were reduced by pool={pool!r}; measure with one of "
            f"{', '.join(POOLS)}"
        )
    return str(pool)


def refuse_width(layer: str, features: int, means: int) -> None:
    """Refuse features of another width than the class means about which they are looked at."""
    if features != means:
        raise ValueError(
            f"layer {layer!r} has {features} numbers a sample, its class means have {means}: the "
            "profile is another network's, or of inputs of another size"
        )


class ClassMeans(nn.Module):
    """The class means of one layer, less their mean.

    Args:
        means: Of the P classes that have samples.
        classes: Their numbers.
    """

    centre: Tensor
    points: Tensor
    classes: Tensor

    def __init__(self, means: Float[Tensor, "P D"], classes: Int64[Tensor, " P"]) -> None:
        super().__init__()
        centre = means.mean(0)  # about which squares cost no digits
        self.register_buffer("centre", centre)
        self.register_buffer("points", means - centre)
        self.register_buffer("classes", classes)

    @classmethod
    def of(cls, profile: Profile, layer: str, example: Tensor) -> "ClassMeans":
        """The means that a profile keeps of a layer, where the network's weights are."""
        moments = profile.moments[layer]
        classes = (moments.count > 0).nonzero().flatten()
        means = moments.mean + moments.mean_error
        scaled = means[classes] * 2.0 ** profile.about.get("exponents", {}).get(layer, 0)
        wide = torch.promote_types(example.dtype, torch.float32)
        return cls(scaled.to(example.device, wide), classes.to(example.device))

    def forward(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        """Squared distances to each class mean, in the features' type, at least float32."""
        wide = torch.promote_types(H.dtype, torch.float32)
        h, M = H.to(wide) - self.centre.to(wide), self.points.to(wide)
        squares = h.square().sum(1, keepdim=True) + M.square().sum(1)
        with torch.autocast(H.device.type, enabled=False):
            return torch.addmm(squares, h, M.mT, alpha=-2).clamp(min=0)

    def margin(self, distances: Float[Tensor, "B P"]) -> tuple[Float[Tensor, " B"], Int64[Tensor, " B"]]:
        """(d2^2 - d1^2) / (d2^2 + d1^2), and the class of the nearest mean; NaN where both are 0."""
        two, places = distances.topk(2, largest=False)
        return (two[:, 1] - two[:, 0]) / two.sum(1), self.classes[places[:, 0]]

    def logits(self, distances: Float[Tensor, "b P"], K: int) -> Float[Tensor, "b K"]:
        """Squared distances, negated, in the places of their classes; -inf where none is known."""
        found = distances.new_full((len(distances), K), -torch.inf)
        found[:, self.classes] = -distances
        return found
