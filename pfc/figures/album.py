"""All figures of a profile, and of a run: a figure is one function and its line here."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pfc.figures.axes import save
from pfc.figures.familiar import tunnel
from pfc.figures.paper import layers, training
from pfc.figures.theory import certificates, path
from pfc.foreign import in_words, is_ours
from pfc.warning import warn

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


# Figures by the names of their files: of the profiles of a run by epoch, of a profile, of one with a
# linear probe, and of one whose segment theory speaks of. Each is given all that `of_profile` is asked
# for.
OF_RUN: dict[str, Callable[..., Any]] = {"training": training}
OF_PROFILE: dict[str, Callable[..., Any]] = {
    "layers": lambda profile, position, end, **_: layers(profile, position=position, end=end),
}
OF_PROBE: dict[str, Callable[..., Any]] = {"tunnel": lambda profile, **_: tunnel(profile)}
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
        The paths of the files; a figure that matplotlib can't draw is left out, with a warning.

    Raises:
        ValueError: If the kind of position or the end is unknown.

    Examples:
        >>> import pfc, tempfile, torch
        >>> digits, _ = pfc.data.load("digits", limit=40), torch.manual_seed(0)
        >>> net = pfc.FCResNet(features=64, classes=10, width=8, blocks=2)
        >>> profile = pfc.measure(net, digits.batches(), progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in of_profile(profile, folder, stem="net-", theory=False)]
        ['net-layers.png', 'net-layers.svg']
    """
    how = {"position": position, "end": end if theory else None, "transport": transport}
    chosen = OF_PROFILE | (OF_PROBE if "probe" in profile.columns else {})
    chosen |= OF_THEORY if theory and profile.segments else {}
    named = {f"{stem}{name}": partial(draw, profile, **how) for name, draw in chosen.items()}
    return _drawn(named, folder)


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
        The paths of the files; a figure that matplotlib can't draw is left out, with a warning.

    Raises:
        ValueError: If the run has no profile, a file of it is damaged, or the kind of position or the
            end is unknown.
    """
    from pfc.profile import load_transport

    folder = run.folder / "figures" if folder is None else folder
    epochs = run.profiles
    last = epochs[max(epochs)]
    files = _drawn({name: partial(draw, epochs) for name, draw in OF_RUN.items()}, folder)
    transport = load_transport(run.theory_file, last) if theory else None
    how: dict[str, Any] = {"position": position, "end": end, "theory": theory, "transport": transport}
    return files + of_profile(last, folder, **how)


def _drawn(figures: Mapping[str, Callable[[], Any]], folder: str | Path) -> list[Path]:
    """Draw and write figures by name; one that fails, as by one's own settings, costs only itself."""
    from pfc.files import expanded

    folder = expanded(folder)
    files: list[Path] = []
    for name, draw in figures.items():
        try:
            files += save(draw(), folder / name)
        except Exception as error:
            if isinstance(error, OSError) or is_ours(error):
                raise
            warn(f"figure {name} is left out, since matplotlib can't draw it: {in_words(error)}")
    return files
