"""All figures of a profile, and of a run: a figure is one function and its line here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pfc.figures.axes import save
from pfc.figures.paper import layers, training
from pfc.figures.theory import certificates, path

if TYPE_CHECKING:
    from pfc.line import End
    from pfc.profile import Profile
    from pfc.profile.segment import Position
    from pfc.theory.transport import Gap

    class Run(Protocol):
        """What a run must have for its figures, as `pfc.training.Run` has."""

        @property
        def folder(self) -> Path:
            """Where it is kept."""

        @property
        def profiles(self) -> Mapping[int, Profile]:
            """By epoch."""

        @property
        def theory_file(self) -> Path:
            """Where what theory says of the last profile is kept."""


# Figures by the names of their files: of the profiles of a run by epoch, of a profile, and of a profile
# whose segment theory speaks of. Each is given all that `of_profile` is asked for.
OF_RUN: dict[str, Callable[..., Any]] = {"training": training}
OF_PROFILE: dict[str, Callable[..., Any]] = {
    "layers": lambda profile, position, end, **_: layers(profile, position=position, end=end),
}
OF_THEORY: dict[str, Callable[..., Any]] = {
    "path": lambda profile, **_: path(profile),
    "certificates": lambda profile, transport, **_: certificates(profile, transport=transport),
}


def of_profile(
    profile: "Profile",
    folder: str | Path,
    *,
    stem: str = "",
    position: "Position" = "path",
    end: "End" = "measured",
    theory: bool = True,
    transport: "Gap | None" = None,
) -> list[Path]:
    """Draw all figures of a profile, each written as PNG and SVG.

    Args:
        profile: What was measured.
        folder: Where the figures are written; it is made.
        stem: What the names of the files begin with.
        position: Where layers stand, as for `Segment.position`.
        end: What stands at the end of the predicted line, as for `Segment.line`.
        theory: Draw the predicted line, the path and the certificates.
        transport: What `pfc.theory.transport.gap` found of the last segment, drawn with the
            certificates.

    Returns:
        The paths of the files.

    Raises:
        ValueError: If the kind of position or the end is unknown.

    Example:
        >>> import pfc, tempfile, torch
        >>> digits, _ = pfc.data.load("digits", limit=40), torch.manual_seed(0)
        >>> net = pfc.FCResNet(features=64, classes=10, width=8, blocks=2)
        >>> profile = pfc.measure(net, digits.batches(), progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in of_profile(profile, folder, stem="net-", theory=False)]
        ['net-layers.png', 'net-layers.svg']
    """
    how = {"position": position, "end": end if theory else None, "transport": transport}
    chosen = OF_PROFILE | (OF_THEORY if theory and profile.segments else {})
    return [
        file
        for name, draw in chosen.items()
        for file in save(draw(profile, **how), Path(folder) / f"{stem}{name}")
    ]


def of_run(
    run: "Run",
    folder: str | Path | None = None,
    *,
    position: "Position" = "path",
    end: "End" = "measured",
    theory: bool = True,
) -> list[Path]:
    """Draw all figures of a run, over its epochs and of its last profile, each written as PNG and SVG.

    Args:
        run: A `pfc.training.Run`.
        folder: Where the figures are written; `figures` in the run's own folder if `None`.
        position: As for `of_profile`.
        end: As for `of_profile`.
        theory: As for `of_profile`; the transport drawn is the one that was kept with the run.

    Returns:
        The paths of the files.

    Raises:
        ValueError: If the run has no profile, a file of it is damaged, or the kind of position or the
            end is unknown.
    """
    from pfc.profile import load_transport

    folder = run.folder / "figures" if folder is None else Path(folder)
    epochs = run.profiles
    last = epochs[max(epochs)]
    files = [file for name, draw in OF_RUN.items() for file in save(draw(epochs), folder / name)]
    transport = load_transport(run.theory_file, last) if theory else None
    how: dict[str, Any] = {"position": position, "end": end, "theory": theory, "transport": transport}
    return files + of_profile(last, folder, **how)
