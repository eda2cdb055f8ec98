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
    message = str(error).strip()
    if "Original Traceback" in message:  # a loader's worker sends its traceback as the message
        message = message.splitlines()[-1].partition(": ")[2]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
