"""What theory says of a profile, as an option of the commands that measure."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc.measuring import transport
from pfc.profile import Profile

MOST = 2**27  # numbers of a layer's features that are collected for transport: 512 MB; ours


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Theory:
    """What theory says of the last run of layers of one shape.

    Args:
        theory: Also print the theorems' certificates, the path, the law of data separation and the
            optimal transport, draw them, and keep them as JSON.
        transport: Samples of the exact optimal transport, at most 5,000; 0 leaves transport out.

    Raises:
        ValueError: If there can't be so many samples.
    """

    theory: bool = True
    transport: int = 2000

    def __post_init__(self) -> None:
        if self.transport == 1 or not 0 <= self.transport <= 5000:
            raise ValueError(f"--transport must be 0 or from 2 to 5000 samples, got {self.transport}")


ALL_THEORY = Theory()


def tell(
    profile: Profile,
    model: nn.Module,
    images: sets.Images,
    asked: Theory,
    device: str | None,
    path: Path | None,
) -> None:
    """Print what theory says of the last segment, and keep it as JSON."""
    if not asked.theory or not profile.segments:
        return
    found = None
    if asked.transport:
        K, weighting = len(images.classes), profile.about["weighting"]
        most = MOST // prod(profile.shapes[profile.segment().start])
        few = sets.stratified(images, max(most, K), weighting)
        exact = max(asked.transport, K)
        found = transport(model, few.batches(), profile, exact=exact, device=device)
    prediction = profile.prediction(transport=found)
    print(prediction)
    if path is not None:
        prediction.save(path, profile)
