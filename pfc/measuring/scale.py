"""Features whose squares would leave float64, measured divided by a power of two, exactly."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pfc.device import SYNCHRONOUS_DEVICES

SAFE = 400  # float64 features within 2^-400..2^400, about 1e120, are taken as they are; ours
FAR = 465  # beyond 2^465, about 1e140, squares and their sums would leave float64; ours

Origin = int | Int64[Tensor, " B"]  # the batch that features are of, or that of each row


def exponent_of(size: float) -> int:
    """The power of two by which numbers of this size are divided: 0 where their squares are safe."""
    exponent = math.frexp(size)[1]
    return max(-1000, min(exponent, 1000)) if abs(exponent) > SAFE else 0


@dataclass
class Scale:
    """The power of two by which the features of a segment, or of a layer by itself, are divided.

    It is 0 unless they are float64 and so large or small that their squares would overflow or vanish;
    then the first batch that is not all zeros settles it.

    Args:
        exponent: The power.
        settled: Whether it stands.
        sizes: Of each layer, the largest size seen; on the features' device, which is seldom asked.
    """

    exponent: int = 0
    settled: bool = False
    sizes: dict[str, Float64[Tensor, ""]] = field(default_factory=dict)

    @property
    def largest(self) -> dict[str, float]:
        """Of each layer, the largest size seen."""
        return {name: float(size) for name, size in self.sizes.items()}

    def fit(
        self, names: Sequence[str], batch: Sequence[Float[Tensor, "B D"]], origin: Origin
    ) -> Sequence[Float[Tensor, "B D"]]:
        """Rescale a batch of features of these layers, or refuse float64 features that do not fit."""
        if torch.float64 not in [H.dtype for H in batch]:
            return batch
        for name, H in zip(names, batch, strict=True):
            size = H.abs().amax().double()
            self.sizes[name] = torch.fmax(self.sizes.get(name, size), size)
        if not self.settled:
            self._settle(batch, origin)
        if batch[0].device.type in SYNCHRONOUS_DEVICES:
            for name, H in zip(names, batch, strict=True):
                self.refuse_larger(name, partial(_batch_of, origin, H))
        return [self.rescaled(H) for H in batch]

    def _settle(self, batch: Sequence[Float[Tensor, "B D"]], origin: Origin) -> None:
        """Take the power of two of the first batch that is not all zeros."""
        sizes = torch.stack([H.abs().amax(1) for H in batch]).amax(0)
        if isinstance(origin, Tensor):  # rows of several batches
            sizes = sizes[origin == origin[(sizes > 0).int().argmax()]]
        if (largest := float(sizes.amax())) > 0:
            self.settled, self.exponent = True, exponent_of(largest)

    def rescaled(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Features divided by the power of two, exactly."""
        return H.double() * 2.0**-self.exponent if self.exponent else H

    def check(self) -> None:
        """Refuse layers whose features' squares overflowed, or vanish beside another layer's."""
        for name, size in self.largest.items():
            self.refuse_larger(name)
            if size and self._place(size) < -FAR:
                most = max(self.largest.values())
                raise ValueError(
                    f"layer {name!r} has features of at most {size:.3g}, another of its shape of "
                    f"{most:.3g}: float64 cannot square both; take segments=False"
                )

    def refuse_larger(self, name: str, batch: Callable[[], int] | None = None) -> None:
        """Refuse a layer whose features' squares overflowed; `batch` finds out where."""
        if name in self.sizes and self._place(size := float(self.sizes[name])) > FAR:
            where = "" if batch is None else f" on batch {batch()}"
            raise ValueError(
                f"layer {name!r} gave features of {size:.3g}{where}, the first were near "
                f"{2.0**self.exponent:.3g}: float64 cannot square both; scale them"
            )

    def _place(self, size: float) -> int:
        return math.frexp(size)[1] - self.exponent

    def to_dict(self) -> dict[str, Any]:
        """What other processes are to know."""
        return {"exponent": self.exponent, "settled": self.settled, "largest": self.largest}

    def merge(self, each: Sequence[dict[str, Any]]) -> int:
        """Take the largest power of two of all processes; by which power ours was smaller."""
        exponent = max((other["exponent"] for other in each if other["settled"]), default=0)
        largest: dict[str, float] = {}
        for name, size in (item for other in each for item in other["largest"].items()):
            largest[name] = max(size, largest.get(name, 0.0))
        self.sizes = {
            name: torch.tensor(x, dtype=torch.float64, device="cpu") for name, x in largest.items()
        }
        shift = exponent - self.exponent if self.settled else 0
        self.exponent, self.settled = exponent, any(other["settled"] for other in each)
        return shift


def _batch_of(origin: Origin, H: Float[Tensor, "B D"]) -> int:
    """The batch of the largest feature."""
    return origin if isinstance(origin, int) else int(origin[H.abs().amax(1).argmax()])
