"""Second pass, where intervals are asked for: how far each sample moves PFC1 and PFC2 of a layer.

The means are known then, so that the influence of a sample is a number, and the sum of their squares the
variance of the metric (the infinitesimal jackknife): no resampling, and nothing random.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc import metrics
from pfc.metrics import Weighting, class_weights
from pfc.moments import ClassMoments, Total
from pfc.tiles import row_tiles

METRICS = ("pfc1", "pfc2")


@dataclass(eq=False)
class Influence:
    """Summed squared influences of the samples on PFC1 and PFC2, class by class: a monoid.

    A sample of class c with residual r moves PFC1 by `share[c] (|r|^2 - mean square + r . along[c])` and
    PFC2 by `r . frame[c]`.

    Args:
        moments: Of the layer, about the data's own class means.
        share: Of each class.
        along: Of each class.
        frame: Of each class; NaN where PFC2 is 0 of more than two classes, and has no derivative.
    """

    moments: ClassMoments
    share: Float64[Tensor, " K"]
    along: Float64[Tensor, "K D"]
    frame: Float64[Tensor, "K D"]

    @classmethod
    def of(
        cls,
        moments: ClassMoments,
        weighting: Weighting,
        about: ClassMoments | None = None,
        offsets: Float64[Tensor, "K D"] | None = None,
    ) -> "Influence":
        """No samples yet; of PFC1 about other means, what is about them, and how far the own are off."""
        seen = moments.count > 0
        own = moments.present()
        pi, count = class_weights(moments.count, weighting), moments.count.clamp(min=1)
        B = metrics.between_trace(own if about is None else about, weighting)
        share = pi / count / B
        if offsets is not None:
            along = 2 * offsets
        else:
            ratio = metrics.scatter_ratio(own, weighting)
            along = torch.zeros_like(moments.mean)
            along[seen] = -2 * ratio * own.centred(class_weights(own.count, weighting))
        frame = torch.zeros_like(moments.mean)
        frame[seen] = metrics.etf_distance_gradient(own.centred()) / own.count[:, None]
        return cls(moments, share, along, frame)

    @cached_property
    def squares(self) -> Float64[Tensor, "K 2"]:
        """The sums so far."""
        return self.along.new_zeros(len(self.share), len(METRICS))

    def update(self, H: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> None:
        """Add a batch in place."""
        own = self.moments
        square = own.scatter / own.count.clamp(min=1)
        for rows in row_tiles(H, slice(0, H.shape[1])):
            k = y[rows]
            r = (H[rows].double() - own.mean[k]) - own.mean_error[k]
            moved = self.share[k] * (r.square().sum(1) - square[k] + (r * self.along[k]).sum(1))
            both = torch.stack([moved, (r * self.frame[k]).sum(1)], 1)
            self.squares.index_add_(0, k, both.square())

    def merge(self, total: Total) -> None:
        """Make the sums those of all processes that `total` sums over."""
        total(self.squares)

    def errors(self) -> dict[str, float]:
        """The standard error of each metric; NaN where a class has one sample."""
        n = self.moments.count
        used = n > 0
        squares = self.squares[used] * (n / (n - 1))[used, None]
        return dict(zip(METRICS, squares.sum(0).sqrt().tolist(), strict=True))
