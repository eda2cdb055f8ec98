"""`pfc report`: one page of runs and profiles."""

from pathlib import Path

from pfc.report import write


def report(*sources: Path, out: Path | None = None) -> None:
    """Write one page of runs and profiles, which needs no server and no network.

    Args:
        sources: Folders of runs, .json files of profiles, and globs of them.
        out: The page, an .html file; report.html in the run's folder, and of several in this one.
    """
    print(write(sources, out))
