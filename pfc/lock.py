"""An exclusive lock on a folder that ends with the process that holds it."""

import atexit
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pfc.files import writing

NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder while the block runs, against other processes and other threads of this one."""
    path = folder / NAME
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as end:
        with writing(path):
            path.open("ab").close()  # what fails here is about files; what fails below, about locks
            lock = _acquired(path)
            end.callback(_release, lock, path, path.stat(), os.getpid())
        atexit.register(end.close)  # for a generator left open; before filelock's own release at exit
        end.callback(atexit.unregister, end.close)
        yield


def _acquired(path: Path) -> FileLock:
    """The lock on a file; tried for a moment, since a holder that ends removes the file under it."""
    lock = FileLock(path, 0.1, thread_local=False, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{path.parent} is in use by {_holder(path)}: wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:  # some network folders have no locks
        warnings.warn(
            f"{path.parent} can't be locked, so nothing else may use it: {error}", stacklevel=2
        )
    return lock


def _holder(path: Path) -> str:
    with suppress(OSError):
        if number := path.read_text(errors="replace").strip():
            return f"process {number}"
    return "another process"


def _sign(file: int) -> None:
    """Write the number of this process for messages; without it, on a full disk, the lock holds too."""
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())


def _release(lock: FileLock, path: Path, mine: os.stat_result, holder: int) -> None:
    """Remove the lock's file if it is still ours, then release; a forked child does neither."""
    with suppress(OSError):  # the folder may be gone, or closed to writing
        if os.getpid() == holder and os.path.samestat(path.stat(), mine):
            path.unlink()
    lock.release()
