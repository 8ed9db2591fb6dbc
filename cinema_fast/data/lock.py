"""One process at a time writes a folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_folder(
    path: Path, doing: str, advice: str, error: type[ValueError], say: Callable[[str], None]
) -> Iterator[None]:
    """Hold an existing folder for this process. The lock is the kernel's: it ends with the process, killed or not.

    Where the file system knows no locks, that is said and the block runs all the same.
    Raises `error` with what another process is `doing` there, which one it is, and `advice`.
    """
    import fcntl

    with (path / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "?"
            raise error(f"{path} is being {doing} by another process (pid {holder}): {advice}") from None
        except OSError as reason:
            say(f"{path} cannot be locked ({reason.strerror}): see that no other process writes there")
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
