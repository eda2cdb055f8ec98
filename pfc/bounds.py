"""Lower bounds of what is linear in samples, in single precision: what this may round is taken off."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from pfc.tiles import coarse, inner

LEAST = 1e-30  # of a number over the square of the unit: below it single precision ends


def unit_of(norms: Float64[Tensor, " K"]) -> Float64[Tensor, ""]:
    """A power of two near the largest norm."""
    return torch.exp2(norms.max().log2().nan_to_num(neginf=0.0).floor())


class Bounds(NamedTuple):
    """Lower bounds of a number of each sample and class.

    Args:
        values: The bounds, over the square of the form's unit.
        off: What `sizes` is multiplied with, sample by sample.
        form: What they are of.
    """

    values: Float[Tensor, "b K"]
    off: Float[Tensor, "b 2"]
    form: "Form"

    def least(self) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        """The first class of the least bound, and the least bound of the others."""
        values, cpu = self.values, self.values.device.type == "cpu"  # where numpy is the faster
        found = torch.from_numpy(np.argmin(values.numpy(), 1)) if cpu else values.argmin(1)
        place = found[:, None]
        least = values.gather(1, place)
        values.scatter_(1, place, torch.inf)
        others = torch.from_numpy(values.numpy().min(1)) if cpu else values.amin(1)
        values.scatter_(1, place, least)
        return found, others

    def reached(
        self, values: Float[Tensor, " b"], most: Float[Tensor, " b"], tie: Float64[Tensor, "..."]
    ) -> Bool[Tensor, " b"]:
        """Whether numbers with such lower bounds may be at most so large, or larger by a tie."""
        reach = (most.double() + 1.001 * tie / self.form.unit**2).to(values)
        return ~(values > reach)

    def above(self, k: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What that of one class of each sample is at most."""
        value = self.values.gather(1, k[:, None])[:, 0]
        return value + 2 * (self.off * self.form.sizes[k]).sum(1) + LEAST


@dataclass(frozen=True, eq=False)
class Form:
    """A number of each sample and class as one product of what is known of both.

    Args:
        classes: What samples are multiplied with, less what that may round.
        sizes: What it may round of each class: of all samples, and times the samples' norms.
        unit: A power of two near the largest norm of the classes, over which single precision has room.
    """

    classes: Float[Tensor, "K C"]
    sizes: Float[Tensor, "K 2"]
    unit: Float64[Tensor, ""]

    @classmethod
    def of(
        cls,
        factors: Float64[Tensor, "K c"],
        constant: Float64[Tensor, " K"],
        sizes: tuple[Float64[Tensor, " K"], Float64[Tensor, " K"]],
        unit: Float64[Tensor, ""],
    ) -> "Form":
        """From factors of the samples' coordinates, what is added, and the sizes of all that."""
        share = (factors.shape[1] + 16) * torch.finfo(coarse(constant).dtype).eps
        off = share * torch.stack([sizes[0] / unit**2, sizes[1] / unit], 1)
        parts = [factors / unit, (constant / unit**2)[:, None], -off]
        return cls(coarse(torch.cat(parts, 1)), coarse(off), unit)

    @classmethod
    def gaps(cls, points: Float64[Tensor, "K c"], unit: Float64[Tensor, ""] | None = None) -> "Form":
        """Squared distances to points, less that to the origin."""
        n = points.norm(dim=1)
        return cls.of(-2 * points, n.square(), (n.square(), 2 * n), unit_of(n) if unit is None else unit)

    def bounds(self, z: Float64[Tensor, "b c"], norms: Float64[Tensor, " b"]) -> Bounds:
        """Lower bounds for samples of these coordinates and norms."""
        v = self.classes.new_empty(len(z), self.classes.shape[1])
        torch.div(z, self.unit, out=v[:, :-3])
        v[:, -3:-1], v[:, -1] = 1, norms / self.unit
        return Bounds(inner(v, self.classes), v[:, -2:], self)
