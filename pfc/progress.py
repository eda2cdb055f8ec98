"""One way to show that long work goes on: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

QUIET_SECONDS = 10.0  # between plain lines where no terminal can show a bar


@runtime_checkable
class Step(Protocol):
    """Tells how far the work has come."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report that `done` units are done, with a short note such as the loss."""


@contextmanager
def shown(title: str, total: int | None, *, enabled: bool = True) -> Iterator[Step]:
    """Show progress of `total` units on the standard error while the block runs.

    Args:
        title: What is done, in a few words.
        total: Units in all, or `None` where nobody knows.
        enabled: Show nothing if false.

    Yields:
        A function to be called with the units done so far and a note.
    """
    if not enabled:
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        with _bar(title, total) as step:
            yield step
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, note="": progress.update(task, completed=done, note=note)


def _lines(title: str, total: int | None) -> Step:
    started = last = time.monotonic()

    def step(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < QUIET_SECONDS:
            return
        last = now
        left = f", {(now - started) / done * (total - done):.0f} s left" if total and done else ""
        of = f" of {total}" if total else ""
        print(f"{title}: {done}{of} {note}{left}", file=sys.stderr, flush=True)

    return step
