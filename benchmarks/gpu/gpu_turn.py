"""One process at a time works on the GPU where times are taken: what compiles beside it waits with what it runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

lock: Path | None = None  # the file whose lock is the turn; None: there is no other process
waited = 0.0  # seconds, until now
_depth = 0


@contextmanager
def turn() -> Iterator[None]:
    """Inside it no other process has its turn. It may be entered again inside itself."""
    global waited, _depth
    if lock is None or _depth:
        yield
        return
    with lock.open("w") as file:
        before = time.monotonic()
        flock(file, LOCK_EX)
        waited += time.monotonic() - before
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
