"""Features whose squares would leave float64, measured over a power of two, exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pfc.moments import AT_HAND

SAFE = 400  # float64 features within 2^-400..2^400, about 1e120, are taken as they are; ours
FAR = 465  # beyond 2^465, about 1e140, squares and their sums would leave float64; ours


def exponent_of(size: float) -> int:
    """The power of two over which numbers of this size are taken: 0 where their squares are safe."""
    exponent = math.frexp(size)[1]
    return max(-1000, min(exponent, 1000)) if abs(exponent) > SAFE else 0


@dataclass
class Scale:
    """The power of two over which the features of a segment, or of a layer by itself, are measured.

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
        self, names: Sequence[str], batch: Sequence[Float[Tensor, "B D"]], number: int
    ) -> list[Float[Tensor, "B D"]]:
        """Scale a batch of features of these layers.

        Args:
            names: Of the layers.
            batch: The features of each.
            number: Of the batch.

        Returns:
            The features over the power of two.

        Raises:
            ValueError: If float64 features do not fit the power.
        """
        if all(H.dtype != torch.float64 for H in batch):
            return list(batch)
        for name, H in zip(names, batch, strict=True):
            size = H.abs().amax().double()
            self.sizes[name] = torch.fmax(self.sizes.get(name, size), size)
        if not self.settled:
            self._settle()
        if batch[0].device.type in AT_HAND:
            self._refuse_larger(f" on batch {number}")
        return [self.over(H) for H in batch]

    def _settle(self) -> None:
        largest = max(self.largest.values())
        if largest > 0:
            self.settled, self.exponent = True, exponent_of(largest)

    def _refuse_larger(self, where: str = "") -> None:
        for name, size in self.largest.items():
            if self._place(size) > FAR:
                raise ValueError(
                    f"layer {name!r} gave features of {size:.3g}{where}, the first were near "
                    f"{2.0**self.exponent:.3g}: float64 cannot square both; scale them"
                )

    def told(self) -> dict[str, Any]:
        """What the other processes are to know."""
        return {"exponent": self.exponent, "settled": self.settled, "largest": self.largest}

    def merge(self, told: Sequence[dict[str, Any]]) -> int:
        """Take the largest power of two of all processes; by which power ours was smaller."""
        exponent = max((each["exponent"] for each in told if each["settled"]), default=0)
        names = dict.fromkeys(name for each in told for name in each["largest"])
        self.sizes = {
            name: torch.tensor(max(each["largest"].get(name, 0.0) for each in told), dtype=torch.float64)
            for name in names
        }
        shift = exponent - self.exponent if self.settled else 0
        self.exponent, self.settled = exponent, any(each["settled"] for each in told)
        return shift

    def _place(self, size: float) -> int:
        return math.frexp(size)[1] - self.exponent

    def over(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Features over the power of two, exactly."""
        return H.double() * 2.0**-self.exponent if self.exponent else H

    def check(self) -> None:
        """Check that the features of each layer were of a size for their squares.

        Raises:
            ValueError: If those of one vanish beside those of another layer of the segment.
        """
        self._refuse_larger()
        for name, size in self.largest.items():
            if size and self._place(size) < -FAR:
                most = max(self.largest.values())
                raise ValueError(
                    f"layer {name!r} has features of at most {size:.3g}, another of its shape of "
                    f"{most:.3g}: float64 cannot square both; take segments=False"
                )
