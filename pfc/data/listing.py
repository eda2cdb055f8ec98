"""What lies in a folder, link by link: nothing is passed over but hidden names."""

import os
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from pfc.schema import nfc, quoted, some


@dataclass(frozen=True)
class File:
    """A regular file below a folder, perhaps at the end of a link.

    Args:
        path: As it was reached.
        parts: The names from the folder on, each in its Unicode form NFC.
        stat: What the system says of it.
    """

    path: Path
    parts: tuple[str, ...]
    stat: os.stat_result

    @property
    def name(self) -> str:
        """Its path below the folder."""
        return "/".join(self.parts)

    @property
    def suffix(self) -> str:
        """What its name ends in, in small letters."""
        return self.path.suffix.lower()


@dataclass(frozen=True)
class Listing:
    """All that lies below a folder, hidden names apart.

    Args:
        root: The folder.
        files: In the order of their names.
        folders: All folders below it, links to folders among them.
        odd: What can't be read as a file, and links that lead back to a folder above them.
    """

    root: Path
    files: tuple[File, ...]
    folders: tuple[Path, ...]
    odd: tuple[Path, ...]

    @classmethod
    def of(cls, root: Path) -> "Listing":
        """List a folder; links are followed, but never in a circle."""
        files: list[File] = []
        folders: list[Path] = []
        odd: list[Path] = []
        waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
        while waiting:
            place, above = waiting.pop()
            around = above | {_identity(_stat(place))}
            for path in _entries(place):
                about = _stat(path)
                if stat.S_ISREG(about.st_mode):
                    parts = path.relative_to(root).parts
                    files.append(File(path, tuple(map(nfc, parts)), about))
                elif stat.S_ISDIR(about.st_mode) and _identity(about) not in around:
                    folders.append(path)
                    waiting.append((path, around))
                else:
                    odd.append(path)
        files.sort(key=lambda file: (file.parts, file.path))
        return cls(root, tuple(files), tuple(sorted(folders)), tuple(sorted(odd)))

    def inside(self, folder: Path) -> list[Path]:
        """The folders directly in one."""
        return self._inside.get(folder, [])

    @cached_property
    def _inside(self) -> dict[Path, list[Path]]:
        found: dict[Path, list[Path]] = {}
        for path in self.folders:
            found.setdefault(path.parent, []).append(path)
        return found

    def name(self, path: Path) -> str:
        """A path below the folder, for a message."""
        return quoted(path.relative_to(self.root).as_posix())


def _entries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ValueError(f"folder {quoted(folder)} can't be read: {error.strerror or error}") from error
    paths = [folder / name for name in names if not name.startswith(".")]
    for path in paths:
        if quoted(path.name).startswith("b"):
            raise ValueError(
                f"the name of {quoted(path)} is no UTF-8 (an archive from another system?): rename it"
            )
    return paths


def _stat(path: Path) -> os.stat_result:
    """What a path is, at the end of its links."""
    try:
        return path.stat()
    except OSError as error:
        what = "link" if path.is_symlink() else "file"
        where = " leads nowhere" if path.is_symlink() else " can't be read"
        raise ValueError(f"{what} {quoted(path)}{where}: {error.strerror or error}") from error


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def left_out(listing: Listing, read: Container[Path]) -> Iterator[str]:
    """A sentence on the files that are not read; those that tell of a set in words are none of them."""
    rest = [file.path for file in listing.files if file.path not in read and not _document(file.path)]
    rest = sorted([*rest, *listing.odd])
    if rest:
        whole = len(listing.files) + len(listing.odd)
        yield (
            f"{len(rest):,} of {whole:,} files in {quoted(listing.root)} are not read: "
            f"{some(map(listing.name, rest))}"
        )


def _document(path: Path) -> bool:
    return path.suffix.lower() == ".md" or path.stem.lower() in {"readme", "license", "licence"}


def stamp(files: Sequence[File]) -> list[list[object]]:
    """Plain JSON that changes whenever the files, their names or their places do."""
    about = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return [[str(file.path.absolute()), *(getattr(file.stat, name) for name in about)] for file in files]


def fingerprint(files: Sequence[File], root: Path) -> str:
    """The names below a folder and the sizes of files, wherever the folder lies."""
    skipped = len(root.parts)
    names = sorted(
        f"{'/'.join(map(nfc, file.path.parts[skipped:]))} {file.stat.st_size}" for file in files
    )
    return sha256("\n".join(names).encode()).hexdigest()[:16]
