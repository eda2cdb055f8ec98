"""One process at a time in a folder, by a lock that ends with its process."""

import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pfc.files import writing

NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep everyone else out of a folder while the block runs, other threads and loops of ours too.

    The lock is the operating system's, on the file `lock` in the folder. It ends with the process that
    holds it, however that dies; the file may then stay, which means nothing.

    Args:
        folder: Where; made if it is not there.

    Yields:
        Nothing.

    Raises:
        ValueError: If another holds the lock.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / NAME):
        file = _taken(folder / NAME)
    free = weakref.finalize(file, _remove, file.fileno(), folder / NAME, os.getpid())  # at exit, too
    try:
        yield
    finally:
        free()
        file.close()


def _taken(path: Path) -> BinaryIO:
    """The lock's file, opened, locked, and with our number in it."""
    while True:
        file = path.open("ab+", buffering=0)
        try:
            _lock(file.fileno(), path)
            if _stands(file.fileno(), path):  # not if its holder removed it since we opened it
                _sign(file.fileno())
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: int, path: Path) -> None:
    if sys.platform == "win32":  # has no flock: runs there are not kept apart
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        raise ValueError(
            f"{path.parent} is in use by {f'process {holder}' if holder else 'another process'}: "
            "wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:  # some network folders have no locks
        warnings.warn(
            f"{path.parent} can't be locked, so nothing else may use it: {error}", stacklevel=2
        )


def _stands(file: int, path: Path) -> bool:
    """Whether an opened file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    """Leave our number, which messages tell; the lock holds without it, also on a full disk."""
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())


def _remove(file: int, path: Path, holder: int) -> None:
    """Remove the lock's file while it is still locked; a child that was forked leaves it."""
    with suppress(OSError):  # the folder may be gone, or closed to writing
        if os.getpid() == holder and _stands(file, path):
            path.unlink()
