"""Atomic writes: at whatever moment a process is killed, a file or folder is either the old or the new one, complete.

`durable` writes and `sync_*` reach the disk, so they survive a crash of the machine too.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import IO

TEMPORARY = ".tmp-"  # prefix of files that are being written, or were when their process was killed


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix, to write to. The file is renamed to `path` when the
    block ends without an error, and removed otherwise.

    Its permissions are those of a file opened here, even where a library writes it with other permissions.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        if os.path.lexists(temporary):  # left by a killed process, maybe with other permissions
            temporary.unlink()
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        with temporary.open("rb") as file:
            if os.fstat(file.fileno()).st_mode != mode:  # not every file system allows chmod
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
    """Move a complete folder to `target` on the same disk, and remove an earlier folder there.

    A kill in between leaves no folder at `target`; then `source` and the earlier one, SOURCE.old, still exist.
    """
    old = source.with_name(f"{source.name}.old")
    if target.exists():
        os.rename(target, old)
    os.rename(source, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def move_into(folder: Path, files: Iterable[Path]) -> None:
    """Move complete files, already on disk, into a folder on the same disk; files of the same names are replaced."""
    for file in files:
        os.replace(file, folder / file.name)
    sync_folder(folder)


def sync_file(file: IO) -> None:
    """Force what was written to an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's list of files to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
