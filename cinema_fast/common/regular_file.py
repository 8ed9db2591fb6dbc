"""Opens only regular files: a named pipe is refused, for which open() would wait for a writer."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file to read in binary. Raises OSError, at once for a pipe or device."""
    return open(path, "rb", opener=_open)


def read_regular(path: Path | str) -> bytes:
    """The bytes of a regular file. Raises OSError, at once for a pipe or device."""
    with open_regular(path) as file:
        return file.read()


def _open(path: str, flags: int) -> int:
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", str(path))
