"""Errors of code that is not ours, told as bad input with what ran; the original stays the cause."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tell what the code of others raises in the block.

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
        raise ValueError(f"{what}: {in_words(error)}") from error


def is_ours(error: Exception) -> bool:
    """Whether a line of this package refused something."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, ValueError) and raised_in.startswith("pfc.")


def in_words(error: Exception) -> str:
    """Kind and message of an error; of one that came from another process, what that raised."""
    try:
        message = str(error).strip()
    except Exception:  # whose own message fails
        message = ""
    if "Original Traceback" in message:  # a loader's worker sends its traceback as the message
        message = _raised(message)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _raised(trace: str) -> str:
    """The message at the end of a printed traceback, which may have several lines."""
    lines = trace.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("  File ")), default=-1)
    end = next((i for i in range(last + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
    return "\n".join(lines[end:]).partition(": ")[2].strip()
