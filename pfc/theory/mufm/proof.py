"""What is known of a solution and what it proves, in words."""

from dataclasses import dataclass
from typing import Any

from pfc.theory.mufm.search import PROVEN
from pfc.warning import warn

STATIONARY = 1e-6  # what the gradient may add to the relative gap at a point called stationary; ours
NEAR = 0.1  # relative gap that is worth telling where it is no proof; ours
APART = 1e-6  # relative spread over the starts that is worth a warning; ours


class SpuriousMinimaWarning(UserWarning):
    """Spurious minima are known for such a problem, and the one found is not proven to be global."""


@dataclass(frozen=True)
class Proof:
    """Numbers that tell how good a solution is.

    Args:
        gap: A bound of (F - F*)/F, rounding included.
        certificate: Least eigenvalue of Lambda over lW, less its rounding.
        gradient_norm: Of the objective.
        residue: What the gradient may add to the relative gap.
        starts: How many starts were made.
        spread: Relative distance of the worst start's objective from the best's.
    """

    gap: float
    certificate: float
    gradient_norm: float
    residue: float
    starts: int
    spread: float

    @property
    def words(self) -> str:
        """What is proven, and where nothing is, how the starts ended."""
        told, apart = f"certificate {self.certificate:+.2g}", self.spread > APART
        ran = f"best of {self.starts} starts, {'which disagree: ' * apart}spread {self.spread:.1e}"
        ran = ran if self.starts > 1 else "one start"
        if self.gap <= NEAR:
            known = f"within a relative {self.gap:.1e} of the global minimum"
            known = f"global minimum to a relative {PROVEN:.0e}" if self.gap <= PROVEN else known
            return f"{known} ({told}; {ran})" if apart else f"{known} ({told})"
        if self.residue <= STATIONARY:
            return f"stationary point; not certified: {told}, gap {self.gap:.2g}, {ran}"
        return f"not converged: gradient norm {self.gradient_norm:.1e}; {told}, {ran}"

    def to_dict(self) -> dict[str, Any]:
        """By their names in a solution."""
        names = ("gradient_norm", "certificate", "gap", "spread", "starts")
        return {name: getattr(self, name) for name in names} | {"proven": self.words}

    def warn(self, *, square: bool) -> None:
        """Warn where spurious minima are known: as many features as classes, or starts that disagree."""
        if self.gap <= PROVEN or self.certificate >= 0 or not (square or self.spread > APART):
            return
        why = "as many features as classes" if square else "starts that end in different minima"
        warn(
            f"a problem with {why}, and the best of {self.starts} starts (spread {self.spread:.1e}) "
            f"is not certified ({self.certificate:+.2g}); raise restarts to look further",
            SpuriousMinimaWarning,
        )
