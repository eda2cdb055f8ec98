"""What exits with any threshold do to data, from the margins and answers at every exit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pfc.acting.heldout import Change, Noted, dealt, too_few
from pfc.schema import short
from pfc.theory.coefficients import several

if TYPE_CHECKING:
    import pandas as pd

STEPS = 101  # thresholds between which is chosen: quantiles of the margins; ours


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What exits do to data: with any threshold the answers and what they cost follow from this.

    Args:
        layers: Names of the L exits.
        noted: Labels and hashes of the samples.
        margins: Of each sample at each exit.
        nearest: Class of the nearest mean there.
        final: What the network answers.
        spent: Operations of a sample up to each exit, and all the way.
        whole: Operations of a sample of the network without exits.
    """

    layers: tuple[str, ...]
    noted: Noted
    margins: Float[Tensor, "N L"]
    nearest: Int64[Tensor, "N L"]
    final: Int64[Tensor, " N"]
    spent: list[int]
    whole: int

    def calibration(self, eps: float, seed: int) -> "Calibration":
        """The smallest threshold that one half of the samples allows, and what the other says of it."""
        choose, report = dealt(self.y, 2, seed)
        found, tried = math.inf, self.thresholds(choose)
        for threshold in reversed(tried):
            if self.change(threshold, choose).low < -eps:
                break
            found = threshold
        return Calibration(
            threshold=found,
            eps=eps,
            change=self.change(found, report),
            share=self.share(found, report),
            exits=self.exits(found, report),
            chosen=self.change(found, choose),
            curve=self.curve(tried, report, threshold=found),
        )

    @property
    def y(self) -> Int64[Tensor, " N"]:
        """Class of each sample."""
        return self.noted.samples.y

    def place(self, threshold: float, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """Number of the exit of each sample; L if it goes all the way."""
        out = self.margins[rows] > threshold
        return torch.where(out.any(1), out.byte().argmax(1), len(self.layers))

    def change(self, threshold: float, rows: Int64[Tensor, " n"]) -> Change:
        """How the accuracy of some samples changes."""
        if math.isinf(threshold):
            return Change.none(self.final[rows] == self.y[rows])
        answers = torch.cat([self.nearest[rows], self.final[rows, None]], dim=1)
        at = answers.gather(1, self.place(threshold, rows)[:, None])[:, 0]
        return Change.of(self.final[rows] == self.y[rows], at == self.y[rows])

    def share(self, threshold: float, rows: Int64[Tensor, " n"]) -> float:
        """Mean operations of a sample over those without exits; an infinite threshold adds none."""
        if math.isinf(threshold):
            return 1.0
        spent = torch.tensor(self.spent, dtype=torch.float64, device="cpu")
        return float(spent[self.place(threshold, rows)].mean()) / max(self.whole, 1)

    def exits(self, threshold: float, rows: Int64[Tensor, " n"]) -> dict[str, float]:
        """Part of the samples that exit at each layer."""
        counts = torch.bincount(self.place(threshold, rows), minlength=len(self.layers) + 1)
        return {name: int(n) / len(rows) for name, n in zip(self.layers, counts.tolist(), strict=False)}

    def thresholds(self, rows: Int64[Tensor, " n"]) -> list[float]:
        """Quantiles of the largest margins of the samples, ascending, and infinity."""
        largest = self.margins[rows].nan_to_num(0.0).amax(1).double()
        at = torch.linspace(0, 1, STEPS, dtype=torch.float64, device="cpu")
        values = {0.0, *torch.quantile(largest, at).tolist()}
        return [*sorted(values), math.inf]

    def curve(
        self, thresholds: Sequence[float], rows: Int64[Tensor, " n"], **attrs: Any
    ) -> "pd.DataFrame":
        """The numbers of several thresholds, a row each, of some samples."""
        import pandas as pd

        table = pd.DataFrame([self.row(each, rows) for each in thresholds]).set_index("threshold")
        table.attrs |= {"samples": len(rows), **attrs}
        return table

    def row(self, threshold: float, rows: Int64[Tensor, " n"]) -> dict[str, float]:
        """The numbers of a threshold."""
        change, early = self.change(threshold, rows), sum(self.exits(threshold, rows).values())
        known = {"threshold": threshold, "accuracy": change.after}
        known |= {"change": change.after - change.before, "low": change.low, "high": change.high}
        return known | {"share": self.share(threshold, rows), "early": early}


@dataclass(frozen=True)
class Calibration:
    """The threshold that was chosen, and what came of it.

    Args:
        threshold: Margin above which a sample exits; infinite where no exit is sure enough.
        eps: The loss of accuracy that was tolerated.
        change: Of the accuracy on the reporting half.
        share: Mean operations of a sample of that half over those of the network without exits.
        exits: Part of the samples of that half that exit at each layer.
        chosen: The change of accuracy on the choosing half.
        curve: What each threshold that was tried does to the reporting half, as `EarlyExit.curve` tells.
    """

    threshold: float
    eps: float
    change: Change
    share: float
    exits: Mapping[str, float]
    chosen: Change
    curve: "pd.DataFrame" = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the curve, as JSON can hold it; an infinite threshold is null."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        told = {name: value for name, value in vars(self).items() if name != "curve"}
        changes = {name: asdict(told[name]) for name in ("change", "chosen")}
        return told | changes | {"threshold": threshold, "exits": dict(self.exits)}

    def __str__(self) -> str:
        if math.isinf(self.threshold):
            return (
                f"no exit is sure to lose at most {self.eps:g} of the accuracy; the network's is "
                f"{self.change.before:.4f}{too_few(self.chosen.samples, self.eps)}"
            )
        return (
            f"threshold {self.threshold:.4g}: {sum(self.exits.values()):.1%} of the samples exit early, "
            f"{self.share:.1%} of the operations\n{self.change}"
        )


def is_threshold(value: Any) -> bool:
    """Whether it is a number from 0 on."""
    return type(value) is not bool and isinstance(value, Real) and float(value) >= 0


def ascending(thresholds: Any) -> list[float]:
    """Thresholds in their order, if they are some."""
    known = several("thresholds", thresholds)
    if not known:
        raise ValueError("thresholds are none: give one or more, or None for quantiles of the margins")
    if not all(map(is_threshold, known)):
        raise ValueError(f"thresholds must be at least 0, got {short(known)}")
    return sorted(map(float, known))
