"""Numbers that say of a sample how it lies to the class means of a layer, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.measuring.scale import Scale
from pfc.moments import ClassMoments
from pfc.nearest import project
from pfc.span import MeansSpan
from pfc.tiles import column_tiles, row_tiles, upcast


@dataclass(frozen=True, eq=False)
class Reading:
    """How a batch lies to the class means of a layer.

    Args:
        z: Coordinates of the samples in the span of the centred means, from the mean of the means.
        beyond: Squared norm of what lies outside that span.
        points: The centred means in these coordinates.
        spread: Root mean squared distance of each class's samples to their mean.
        nearest: The nearest mean of each sample, as a place in `points`.
    """

    z: Float64[Tensor, "B R"]
    beyond: Float64[Tensor, " B"]
    points: Float64[Tensor, "P R"]
    spread: Float64[Tensor, " P"]
    nearest: Int64[Tensor, " B"]

    @property
    def norm(self) -> Float64[Tensor, " B"]:
        """Distance to the mean of the means."""
        return (self.z.square().sum(1) + self.beyond).sqrt()


def _cosine(r: Reading) -> Float64[Tensor, " B"]:
    cosines = r.z @ r.points.mT / r.norm[:, None] / r.points.norm(dim=1)
    of_points = cosines.nan_to_num(-torch.inf).amax(1)  # a mean that is the mean of all has no direction
    return of_points.where(of_points > -torch.inf, torch.nan)


def _distance(r: Reading) -> Float64[Tensor, " B"]:
    apart = ((r.z - r.points[r.nearest]).square().sum(1) + r.beyond).sqrt()
    unit = r.spread[r.nearest]
    return (apart / unit).where(unit > 0, torch.nan)


def _span(r: Reading) -> Float64[Tensor, " B"]:
    return r.z.norm(dim=1) / r.norm


@dataclass(frozen=True)
class Kind:
    """A kind of score.

    Args:
        words: What it is.
        rises: Whether samples of the known classes have the larger scores, rather than the smaller.
        formula: What it is of a reading; `None` of what is read from several layers.
    """

    words: str
    rises: bool
    formula: Callable[[Reading], Float64[Tensor, " B"]] | None


KINDS = {
    "cosine": Kind("cosine to the nearest centred class mean", True, _cosine),
    "distance": Kind("distance to the nearest class mean in that class's spread", False, _distance),
    "span": Kind("share of the norm in the span of the class means", True, _span),
    "depth": Kind("first layer from which on the nearest class mean stays the same", False, None),
}


@dataclass(frozen=True, eq=False)
class Gauge:
    """Reads how samples lie to the class means of a layer.

    Args:
        span: The span of the means; its centre is their unweighted mean.
        spread: Root mean squared distance of each class's samples to their mean.
        numbers: The class of each point of the span.
        scale: The power of two by which the features behind the means were divided.
    """

    span: MeansSpan
    spread: Float64[Tensor, " P"]
    numbers: Int64[Tensor, " P"]
    scale: Scale

    @classmethod
    def of(cls, moments: ClassMoments, exponent: int = 0) -> "Gauge":
        """Of the moments of a layer, whose features were divided by this power of two."""
        seen = moments.count > 0
        spread = (moments.scatter[seen] / moments.count[seen]).sqrt()
        numbers = seen.nonzero().flatten()
        return cls(MeansSpan.of(moments), spread, numbers, Scale(exponent, settled=True))

    def read(self, H: Float[Tensor, "B D"]) -> Reading:
        """How a batch of features lies."""
        H = self.scale.rescaled(H)
        z = project(H, self.span, self.span.basis)
        nearest = self.span.prototypes.nearest(z)
        return Reading(z, self._beyond(H, z), self.span.points, self.spread, nearest)

    def _beyond(self, H: Float[Tensor, "B D"], z: Float64[Tensor, "B R"]) -> Float64[Tensor, " B"]:
        """Squared norm outside the span; not as a difference of squares, which would cost digits."""
        span, found = self.span, z.new_zeros(len(z))
        for columns in column_tiles(H):
            for rows in row_tiles(H, columns):
                X = upcast(H[rows, columns], "scores").sub_(span.centre[columns])
                X -= span.centre_error[columns]
                found[rows] += (X - z[rows] @ span.basis[columns].mT).square().sum(1)
        return found


def settled(nearest: Int64[Tensor, "N L"]) -> Int64[Tensor, "N L"]:
    """Of each layer the first layer from which on up to it the nearest mean is the same."""
    changed = torch.zeros_like(nearest)
    place = torch.arange(nearest.shape[1], device=nearest.device)
    changed[:, 1:] = place[1:] * (nearest[:, 1:] != nearest[:, :-1])
    return changed.cummax(1).values


def prediction_depth(nearest: Int64[Tensor, "N L"], y: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The first layer from which on each sample is nearest to its own mean; L where it never is."""
    right = (nearest == y[:, None]).long()
    return nearest.shape[1] - right.flip(1).cumprod(1).sum(1)
