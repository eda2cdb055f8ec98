"""Progress of long work: a bar on a terminal or in a notebook, a plain line now and then elsewhere."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Protocol, runtime_checkable

QUIET_SECONDS = 10.0  # between plain lines where no terminal can show a bar


@runtime_checkable
class Step(Protocol):
    """Reports progress."""

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
    elif _can_draw():
        with _bar(title, total) as step:
            yield step
    else:
        yield _lines(title, total)


def _can_draw() -> bool:
    """Whether the standard error is a terminal or the cell of a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream"


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Step]:
    with warnings.catch_warnings(action="ignore"):  # a notebook without widgets gets a bar of text
        from tqdm.auto import tqdm
        from tqdm.contrib import DummyTqdmFile as AboveBar

    if isinstance(sys.stderr, AboveBar):
        yield _lines(title, total)
        return
    bar = tqdm(desc=title, total=total, leave=False, miniters=0, dynamic_ncols=True)

    def step(done: int, note: str = "") -> None:
        renamed = note != bar.postfix
        bar.set_postfix_str(note, refresh=False)
        if not bar.update(done - bar.n) and renamed:
            bar.refresh()  # at once, since what a note names may take long

    above = AboveBar(sys.stderr)  # what others print meanwhile, whole lines
    with redirect_stderr(above), redirect_stdout(above if sys.stdout.isatty() else sys.stdout):
        try:
            yield step
        finally:
            bar.total = None  # else a notebook keeps a bar that ends before its total
            bar.close()


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
