"""What theory says of a profile: printed, kept as JSON, drawn."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cyclopts import Parameter
from torch import nn

from pfc import data as sets
from pfc import figures as draw
from pfc.files import read_json, sealed, write_json
from pfc.line import End
from pfc.measuring import transport as transport_of
from pfc.profile import Profile
from pfc.profile.segment import Position
from pfc.schema import TEXT, form_of, maybe, rows, table

if TYPE_CHECKING:
    from pfc.theory.transport import Gap

THEORY = "pfc-theory-1"  # format of what theory said, as JSON


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Theory:
    """What theory says of the last run of layers of one shape.

    Args:
        theory: Also print the theorems' certificates, the path, the law of data separation and the
            optimal transport, draw them, and keep them as JSON.
        transport: Samples of the exact optimal transport, at most 5,000; 0 leaves transport out.
    """

    theory: bool = True
    transport: int = 2000


ALL_THEORY = Theory()
MOST = 2**27  # numbers of a layer's features that are collected for transport: 512 MB; ours


def check(theory: Theory) -> None:
    """Refuse before hours are spent."""
    if theory.transport == 1 or not 0 <= theory.transport <= 5000:
        raise ValueError(f"--transport must be 0 or from 2 to 5000 samples, got {theory.transport}")


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
        most = MOST // prod(profile.shapes[profile.segment().start])
        few = fair(images, max(most, len(images.classes)), profile.about["weighting"])
        exact = max(asked.transport, len(images.classes))
        found = transport_of(model, few.batches(), profile, exact=exact, device=device)
    prediction = profile.prediction(transport=found)
    print(prediction)
    if path is not None:
        write_json(path, {"format": THEORY, "profile": _mark(profile), **prediction.told()})


def _mark(profile: Profile) -> str:
    """What tells a profile from others: a checksum of its columns."""
    return str(sealed({"layers": profile.layers, "columns": profile.columns})["checksum"])


def fair(images: sets.Images, most: int, weighting: str) -> sets.Images:
    """So many images at most: as equal a class as can be, or any, as the classes are weighted."""
    if len(images) <= most or weighting == "class":
        return sets.subset(images, most)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most].sort().values
    return replace(images, images=images.images[some], labels=images.labels[some])


def draw_profile(
    profile: Profile,
    position: Position,
    end: End,
    theory: bool,
    told: Path,
    folder: Path,
    stem: str = "",
) -> Iterator[Path]:
    """Figures of one profile in a folder, each name after the stem."""
    figure = draw.layers(profile, position=position, end=end if theory else None)
    yield from draw.save(figure, folder / f"{stem}layers")
    if theory and profile.segments:
        found = _kept_transport(told, profile)
        yield from draw.save(draw.path(profile), folder / f"{stem}path")
        certified = draw.certificates(profile, transport=found)
        yield from draw.save(certified, folder / f"{stem}certificates")


def _kept_transport(path: Path, profile: Profile) -> "Gap | None":
    """The transport that was computed with a profile, if it was."""
    from pfc.theory.transport import Gap, restored

    if not path.exists():
        return None
    parts = {"layers": rows(TEXT), "sentences": rows(TEXT), "transport": maybe(form_of(Gap))}
    content = read_json(path, THEORY, table(parts, optional={"profile": TEXT}))
    if content.get("profile") not in {None, _mark(profile)}:  # one of the two was written later
        warnings.warn(
            f"{path} tells of another profile, so it is not drawn: measure again", stacklevel=3
        )
        return None
    told = content["transport"]
    try:
        return None if told is None else restored(told)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
