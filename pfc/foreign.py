"""Errors of code that is not ours, told as bad input with what ran; the original stays the cause."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

DATA = "the data failed"
SOON, SHORT = 1.0, 0.1  # seconds to wait for a sign of death, and for the end after it; ours


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tell what the code of others raises in the block.

    Torch raises its word of a loader's worker that died at whatever line runs then: it is of the data.

    Args:
        what: What failed, such as `"the data failed at batch 3"`.

    Yields:
        Nothing.

    Raises:
        ValueError: That says what failed, and why; our own errors come through as they are.
    """
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        what = DATA if of_worker(error) and not what.startswith(DATA) else what
        raise ValueError(f"{what}: {in_words(error)}") from error


def attribute(owner: object, name: str) -> Any:
    """An attribute of an object of others, `None` if there is none; what its property raises is told."""
    with told(f"{name!r} of {type(owner).__name__} failed"):
        return getattr(owner, name, None)


@contextmanager
def workers_told() -> Iterator[None]:
    """Tell torch's word of a loader's worker that died, which it raises at whatever line runs then."""
    try:
        yield
    except RuntimeError as error:
        if not of_worker(error):
            raise
        raise ValueError(f"{DATA}: {in_words(error)}") from error


def of_worker(error: Exception) -> bool:
    """Whether it is torch's word of a loader's worker that died."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid ")


def is_ours(error: Exception) -> bool:
    """Whether a line of this package refused something."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, ValueError) and raised_in.startswith("pfc.")


def in_words(error: Exception) -> str:
    """Kind and message of an error, of ours the message; of another process's what that raised."""
    try:
        message = str(error).strip()
    except Exception:  # whose own message fails
        message = ""
    if is_ours(error):
        return message
    dead = ""
    if "Original Traceback" in message:  # a loader's worker sends its traceback as the message
        message = _raised(message)
    else:
        dead = _dead_workers(error)
    return dead + (f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _raised(trace: str) -> str:
    """The message at the end of a printed traceback, which may have several lines."""
    lines = trace.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("  File ")), default=-1)
    end = next((i for i in range(last + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
    return "\n".join(lines[end:]).partition(": ")[2].strip()


def _dead_workers(error: Exception) -> str:
    """Which workers of a torch loader died while it waited, in words; what it raises seldom says it."""
    workers: list[Any] = []
    trace = error.__traceback__
    while trace is not None:
        loader: Any = trace.tb_frame.f_locals.get("self")
        if type(loader).__name__ == "_MultiProcessingDataLoaderIter":
            workers = loader._workers
        trace = trace.tb_next
    _await_end(workers)
    ends = [(worker.pid, worker.exitcode) for worker in workers if worker.exitcode is not None]
    died = [f"worker process {pid} died ({_end(code)})" for pid, code in ends]
    return f"{', '.join(died)}; with num_workers=0 it shows where: " if died else ""


def _await_end(workers: list[Any]) -> None:
    """Wait until a worker that is dying has died, if one is; torch's word of it may cut that short."""
    for _ in range(2 if workers else 0):
        with suppress(RuntimeError):
            if wait([worker.sentinel for worker in workers], timeout=SOON):
                for worker in workers:
                    worker.join(SHORT)
            return


def _end(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
