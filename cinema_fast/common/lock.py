"""An exclusive or shared lock on a folder: either one process writes it, or several write different parts of it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def hold_folder(
    path: Path, doing: str, advice: str, error: type[ValueError], warn: Callable[[str], None] = _warn, *,
    name: str = ".lock", shared: bool = False,
) -> Iterator[None]:
    """Lock an existing folder for this process, by `flock`: the lock ends with the process, killed or not.

    Where the file system has no locks, `warn` is called and the block runs without one.
    name: of the file in the folder that is locked. shared: allow other shared locks, but no exclusive one.
    Raises `error`, with what another process is `doing` there, its process id, and `advice`.
    """
    import fcntl

    with (path / name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "?"
            raise error(f"{path} is being {doing} by another process (pid {holder}): {advice}") from None
        except OSError as reason:
            warn(f"{path} cannot be locked ({reason.strerror}): make sure that no other process writes there")
        if not os.fstat(file.fileno()).st_nlink:  # the previous holder removed it after it was opened here
            raise error(f"{path} was being {doing} by another process until now: repeat the command")
        file.truncate(0)
        if not shared:
            file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds this lock file; False where that cannot be determined. Does not change the file."""
    import fcntl

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
