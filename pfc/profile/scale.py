"""Features whose squares would leave float64, measured over a power of two, exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SAFE = 400  # float64 features within 2^-400..2^400, about 1e120, are taken as they are; ours
FAR = 465  # beyond 2^465, about 1e140, squares and their sums would leave float64; ours


@dataclass
class Scale:
    """The power of two over which the features of a segment, or of a layer by itself, are measured.

    It is 0 unless they are float64 and so large or small that their squares would overflow or vanish;
    then the first batch that is not all zeros settles it.

    Args:
        exponent: The power.
        settled: Whether it stands.
        largest: Of each layer, the largest size seen.
    """

    exponent: int = 0
    settled: bool = False
    largest: dict[str, float] = field(default_factory=dict)

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
            self.largest[name] = max(self.largest.get(name, 0.0), float(H.abs().amax()))
        if not self.settled and any(self.largest.values()):
            self.settled, exponent = True, math.frexp(max(self.largest.values()))[1]
            self.exponent = max(-1000, min(exponent, 1000)) if abs(exponent) > SAFE else 0
        for name in names:
            if self._place(name) > FAR:
                raise ValueError(
                    f"layer {name!r} gave features of {self.largest[name]:.3g} on batch {number}, the "
                    f"first were near {2.0**self.exponent:.3g}: float64 cannot square both; scale them"
                )
        return [self.over(H) for H in batch]

    def told(self) -> dict[str, Any]:
        """What the other processes are to know."""
        return {"exponent": self.exponent, "settled": self.settled, "largest": self.largest}

    def merge(self, told: Sequence[dict[str, Any]]) -> int:
        """Take the largest power of two of all processes; by which power ours was smaller."""
        exponent = max((each["exponent"] for each in told if each["settled"]), default=0)
        for each in told:
            for name, size in each["largest"].items():
                self.largest[name] = max(self.largest.get(name, 0.0), size)
        shift = exponent - self.exponent if self.settled else 0
        self.exponent, self.settled = exponent, any(each["settled"] for each in told)
        return shift

    def _place(self, name: str) -> int:
        return math.frexp(self.largest[name])[1] - self.exponent

    def over(self, H: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Features over the power of two, exactly."""
        return H.double() * 2.0**-self.exponent if self.exponent else H

    def check(self) -> None:
        """Check that the features of each layer were large enough for their squares.

        Raises:
            ValueError: If those of one vanish beside those of another layer of the segment.
        """
        for name, size in self.largest.items():
            if size and self._place(name) < -FAR:
                most = max(self.largest.values())
                raise ValueError(
                    f"layer {name!r} has features of at most {size:.3g}, another of its shape of "
                    f"{most:.3g}: float64 cannot square both; take segments=False"
                )
