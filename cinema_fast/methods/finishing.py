"""Errors of evaluations and pictures, which do not end a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..data.loading.loader import LoaderError


@contextmanager
def survived(what: str, say: Callable[[str], None], *, strict: bool) -> Iterator[None]:
    """Say that `what` failed and continue, where the block raises an error. With `strict` a LoaderError is raised."""
    try:
        yield
    except Exception as error:
        if strict and isinstance(error, LoaderError):
            raise
        say(f"{what} failed: {type(error).__name__}: {error}")
