"""What theory says of a profile, as an option of the commands that measure."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc.measuring import transport
from pfc.models import Samples
from pfc.profile import Prediction, Profile

if TYPE_CHECKING:
    from pfc.theory.transport import Gap

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


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TheoryIfAsked(Theory):
    """What theory says of the last run of layers of one shape, if that is asked for.

    Args:
        theory: Also print the theorems' certificates, the path, the law of data separation and the
            optimal transport, and keep them as JSON beside --out.
        transport: With --theory, samples of the exact optimal transport, at most 5,000; 0 leaves
            transport out.

    Raises:
        ValueError: If there can't be so many samples, or theory is not asked for.
    """

    theory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.theory and self.transport != Theory.transport:
            raise ValueError("--transport is a part of what theory says: give --theory too")


ALL_THEORY = Theory()
NO_THEORY = TheoryIfAsked()


GapOf = Callable[[int], "Gap | None"]  # from samples of the exact part to what was found


def predicted(profile: Profile, asked: Theory, path: Path | None, gap: GapOf) -> Prediction | None:
    """What theory says of the last segment, kept as JSON; `None` if nobody asked or there is none."""
    if not asked.theory or not profile.segments:
        return None
    found = gap(max(asked.transport, profile.about["classes"])) if asked.transport else None
    prediction = profile.prediction(transport=found)
    if path is not None:
        prediction.save(path, profile)
    return prediction


def of_model(
    profile: Profile,
    model: nn.Module,
    samples: sets.Images | Samples,
    device: str | torch.device | None,
    batch_size: int = 256,
) -> GapOf:
    """The transport of the last segment, of a stratified part of the samples."""

    def gap(exact: int) -> "Gap":
        most = MOST // prod(profile.shapes[profile.segment().start])
        weighting = profile.about["weighting"]
        few = sets.stratified(samples, max(most, len(samples.classes)), weighting)
        return transport(model, few.batches(batch_size), profile, exact=exact, device=device)

    return gap


def of_arrays(profile: Profile, features: Mapping[str, Any], y: Any) -> GapOf:
    """The transport of the last segment of features at hand; of features too large for it none."""

    def gap(exact: int) -> "Gap | None":
        from pfc.theory.transport import gap as transport_gap

        segment = profile.segment()
        if profile.about["samples"] * prod(profile.shapes[segment.start]) > MOST:
            print("transport is left out: the features are more than 512 MB a layer", file=sys.stderr)
            return None
        start, end = (features[segment.layers[l]][:] for l in (0, -1))
        first, last = start.reshape(len(start), -1), end.reshape(len(end), -1)
        return transport_gap(first, last, y, weighting=segment.weighting, exact=exact)

    return gap
