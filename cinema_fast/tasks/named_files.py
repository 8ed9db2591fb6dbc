"""Reads a file given by an option; errors name the option."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..common.tables import read_table

T = TypeVar("T")


def read_named(option: str, path: Path, read: Callable[[Path], T] = read_table) -> T:
    """`read(path)`. Raises ValueError naming the option where the file cannot be read."""
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror or error}") from None
