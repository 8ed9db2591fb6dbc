"""Errors after the last step of a run, which is finished and saved by then."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..data.loading.loader import LoaderError
from ..train.log import RunLog


@contextmanager
def survived(what: str, log: RunLog, *, strict: bool) -> Iterator[None]:
    """Log an error in the block and continue. With `strict` a LoaderError is raised. what: the evaluation, or the
    report."""
    try:
        yield
    except Exception as error:
        if strict and isinstance(error, LoaderError):
            raise
        log.say(f"the run is finished and saved, but its {what} failed: {type(error).__name__}: {error}")
