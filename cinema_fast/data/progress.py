"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str, total: int, *, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yields what moves the bar on: by one of `total`, or by as many as it is called with."""
    if not show:
        yield lambda n=1: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(description, total=total)
        yield lambda n=1: bar.advance(row, n)
