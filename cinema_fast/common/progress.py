"""Progress of long work on stderr: a moving bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 30.0


@contextmanager
def progress_bar(description: str, total: int, *, show: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on stderr, or a line every LINE_EVERY_S where that is no terminal.

    Yields a function that advances it by one of `total`, or by the number given. A spinner and the elapsed time show
    that the work is running before the first item is done.
    """
    if not show or not total:
        yield lambda n=1: None
        return
    console = terminal()
    with _bar(console, description, total) if console else _lines(description, total) as advance:
        yield advance


def terminal():
    """The rich.console.Console of stderr; None where stderr is a file or a pipe, not a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _bar(console, description: str, total: int) -> Iterator[Callable[..., None]]:
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(SpinnerColumn(), *columns, console=console) as bar:
        row = bar.add_task(description, total=total)
        yield lambda n=1: bar.advance(row, n)


@contextmanager
def _lines(description: str, total: int) -> Iterator[Callable[..., None]]:
    began, done, ended = time.monotonic(), 0, threading.Event()

    def say() -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{description}: {done} of {total}, {minutes}:{seconds:02}", file=sys.stderr, flush=True)

    def say_now_and_then() -> None:
        while not ended.wait(LINE_EVERY_S):
            say()

    def advance(n: int = 1) -> None:
        nonlocal done
        done += n

    say()
    now_and_then = threading.Thread(target=say_now_and_then, daemon=True)
    now_and_then.start()
    try:
        yield advance
    finally:
        ended.set()
        now_and_then.join()
        say()
