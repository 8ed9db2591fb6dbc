"""Output folders: checked before the work, emptied after an error, and written again after a kill."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from .atomic import TEMPORARY
from .lock import hold_folder
from .parsed_file import read_json
from .renamed import current_options

UNFINISHED, LOCK = ".unfinished", ".lock"  # files in a folder that a command is writing, or was killed while writing
ANYWHERE = ("workers", "device")  # options that may differ when a killed command is repeated


class OutputError(OSError, ValueError):
    """A file or folder cannot be written; the message names it and says what to do."""


class OutputTaken(FileExistsError, OutputError):
    """The path to write to exists already."""


@contextmanager
def output_errors(out: Path, stays: str = "no half-written files remain") -> Iterator[None]:
    """Turns an OSError about `out`, or about a file in it, into an OutputError, whose message says what `stays`.

    An OSError about another file passes: it may be an input that cannot be read.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{named or out}: the disk is full; {stays}: free some space and run the same command "
                              f"again") from error
        if error.errno == errno.EFBIG or (named and out in (named, *named.parents)):
            raise OutputError(f"{named or out} cannot be written ({error.strerror}); {stays}: fix this, or choose "
                              f"another folder") from error
        raise


def check_outside_store(out: Path) -> None:
    """Raise OutputTaken where `out`, which need not exist, is a store or lies in one: only `prepare` writes there."""
    real = out.resolve()
    for folder in (real, *real.parents):
        if (folder / "index.json").is_file() and (folder / "studies").is_dir():
            where = "is a cine store" if folder == real else f"lies in the cine store {folder}"
            raise OutputTaken(f"{out} {where}: choose a place outside of it to write")


@contextmanager
def folder_for(out: Path, stays: str = "no half-written files remain") -> Iterator[None]:
    """A folder to write files into. A new one is removed again if nothing has been written.

    Raises OutputTaken where there is a file of this name, and OutputError where the folder cannot be written: before
    the block, or inside it as `output_errors`.
    """
    check_outside_store(out)
    there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputTaken(f"{there} is a file; expected a folder to write, which may be new")
    new = not out.exists()
    try:
        with output_errors(out, "nothing was written"):
            try:
                out.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=out) as trial:
                    trial.write(bytes(4096))
            except OSError as error:  # it may be about a folder above
                raise OSError(error.errno, error.strerror, str(out)) from error
        with output_errors(out, stays):
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()


@contextmanager
def new_folder(out: Path, command: str, options: Mapping[str, object], written: Sequence[str]) -> Iterator[None]:
    """A new or empty folder that only one `command` writes; after an error in the block it is removed or emptied.

    A killed command leaves its files and `.unfinished`, which holds its options. When it is repeated with the same
    options (ANYWHERE may differ) it starts over.

    Args:
        written: patterns of the names that the command writes there. Only these, and half-written files, are ever
            removed.

    Raises:
        OutputTaken: `out` is a file, or a folder that holds other files or those of another killed command.
        OutputError: the folder cannot be written, as `folder_for`, or another process is writing it.
    """
    call = {"command": command} | {name: str(value) for name, value in options.items() if name not in ANYWHERE}
    written = (*written, f"{TEMPORARY}*")
    with folder_for(out):
        if _others(out) and not (out / UNFINISHED).exists():
            raise OutputTaken(f"{out} is not empty: choose another folder to write")
        with hold_folder(out, "written", "wait for it, or choose another folder to write", OutputError, name=LOCK):
            if left := _others(out):
                _check_left(out, left, call, written)
                print(f"{out}: leftovers of an unfinished `cinema-fast {command}` are removed", file=sys.stderr)
                _remove(out, written)
            (out / UNFINISHED).write_text(json.dumps(call), encoding="utf-8")
            try:
                yield
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"stopped; {out} is unfinished: the same command starts over") from None
            except Exception:
                _remove(out, (*written, UNFINISHED, LOCK))
                raise
            _remove(out, (UNFINISHED, LOCK))


@contextmanager
def parts_folder(folder: Path) -> Iterator[None]:
    """A folder of files from which a killed or failed command continues, for one process only. Its files and
    `.unfinished` stay. Raises as `folder_for`, and OutputError where another process is writing it."""
    with folder_for(folder, "complete parts are kept"), hold_folder(
        folder, "written", "wait for it, or choose another file to write", OutputError, name=LOCK
    ):
        (folder / UNFINISHED).touch()
        try:
            yield
        except Exception:
            if not _others(folder):
                _remove(folder, (UNFINISHED, LOCK))
            raise
        _remove(folder, (UNFINISHED, LOCK))


def _others(out: Path) -> list[str]:
    """The files in a folder other than `.unfinished` and the lock."""
    return sorted(path.name for path in out.iterdir() if path.name not in (UNFINISHED, LOCK))


def _check_left(out: Path, left: list[str], call: dict[str, str], written: Sequence[str]) -> None:
    """Raise OutputTaken unless the files `left` in a folder are of the same command with the same options."""
    try:
        before = read_json(out / UNFINISHED)
        before = current_options(before["command"], before)  # it may be of an older version
        if before["command"] != call["command"]:
            raise OutputTaken(f"{out} holds leftovers of an unfinished `cinema-fast {before['command']}`: "
                              f"remove the folder, or choose another")
        differs = [f"{name}: was {before.get(name)}, now {now}" for name, now in call.items()
                   if before.get(name) != now]
    except OutputTaken:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise OutputTaken(f"{out} is not empty: choose another folder to write") from None
    if differs:
        raise OutputTaken(f"{out} holds leftovers of an unfinished command with other options:\n  "
                          + "\n  ".join(differs) + "\ngive the old values, remove the folder, or choose another")
    if strange := [name for name in left if not _matches(name, written)]:
        raise OutputTaken(f"{out} holds leftovers of an unfinished `cinema-fast {call['command']}`, and "
                          f"{strange[0]!r}, which does not belong to it: move that away, or choose another folder")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _remove(out: Path, patterns: Sequence[str]) -> None:
    for path in out.iterdir():
        if _matches(path.name, patterns):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
