"""Files and folders that are the old one or the new one, whole, at whatever moment a process is killed.

`durable` writes and `sync_*` reach the disk, and so last through a crash of the machine too.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import IO

TEMPORARY = ".tmp-"  # before the name of a file that is being written, or was when its process was killed


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name beside `path`, with its suffix, to write under: the file gets its own when the block ends without an
    error, and is removed otherwise.

    Permissions are those of a file opened here, also where the block writes by a library that has its own.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        if os.path.lexists(temporary):  # of a killed process, with permissions that may be other
            temporary.unlink()
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        with temporary.open("rb") as file:
            if os.fstat(file.fileno()).st_mode != mode:  # else left alone: not every file system lets it be set
                os.fchmod(file.fileno(), S_IMODE(mode))
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def replace_folder(source: Path, target: Path) -> None:
    """Move a folder that is complete and on disk to where it belongs, in the place of an earlier one.

    A kill in between leaves none there; `source` and the earlier one, SOURCE.old, lie on the same disk.
    """
    old = source.with_name(f"{source.name}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def move_into(folder: Path, files: Iterable[Path]) -> None:
    """Move files that are complete and on disk into a folder on the same disk, in the place of those of their names."""
    for file in files:
        os.replace(file, folder / file.name)
    sync_folder(folder)


def sync_file(file: IO) -> None:
    """Force what was written to an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force to disk which files a folder holds, and their names."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
