"""`pfc figures`: the figures of a run, or of a profile."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pfc import figures as draw
from pfc.files import expanded
from pfc.line import End
from pfc.profile import load, load_transport
from pfc.profile.segment import Position
from pfc.training import Run


def figures(
    source: Path,
    /,
    *others: Annotated[Path, Parameter(show=False)],
    out: Path | None = None,
    position: Position = "path",
    end: End = "measured",
    theory: bool = True,
) -> None:
    """Draw metrics over epochs and over layers, the path and the certificates, as PNG and SVG.

    Args:
        source: A run's folder, or a profile's .json file.
        others: None: figures are of one run or profile.
        out: Folder of the figures; `figures` in the run, or beside the profile.
        position: Where a layer stands on the axis from the first to the last of its segment.
        end: What stands at the end of the predicted line: the measured features, their class means, or
            the simplex ETF nearest to these.
        theory: Draw the predicted line, the path and the certificates.

    Raises:
        ValueError: If there are several sources.
    """
    if others:
        each = "; ".join(f"pfc figures {path}" for path in (source, *others))
        raise ValueError(f"figures are of one run or profile, got {1 + len(others)}: {each}")
    source, out = expanded(source), None if out is None else expanded(out)
    how: dict[str, Any] = {"position": position, "end": end, "theory": theory}
    if source.suffix == ".json":
        profile, beside = load(source), source.with_name(f"{source.stem}-theory.json")
        kept = load_transport(beside, profile) if theory else None
        how |= {"stem": f"{source.stem}-", "transport": kept}
        paths = draw.of_profile(profile, out or source.parent, **how)
    else:
        paths = draw.of_run(Run(source), out, **how)
    print(*paths, sep="\n")
