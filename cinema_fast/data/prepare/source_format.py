"""The formats of source files: a new one needs its reader, a module that finds its studies, and a line here."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from ..formats.cine import Cine
    from .prepare_config import PrepareConfig
    from .sources import Source, Sources

# in the order in which `--format auto` asks for them; nothing is imported before it is asked for
FORMATS = {
    "nifti": "cinema_fast.data.prepare.sources:NIFTI",
    "dicom": "cinema_fast.data.prepare.dicom_sources:DICOM",
}
FormatName = Literal[("auto", *FORMATS)]


class SourceFormat(NamedTuple):
    """A format of sources; every `Source.format` that it finds is its name in FORMATS.

    holds: whether config.src has such files. find: the studies of config.src (progress: a bar on stderr); raises
    ValueError for options that are not the format's. read: the cine of a view as it was scanned, with or without an
    axis of slices; raises CineError. contained: its decoders may crash a process, so a worker reads it.
    """

    holds: Callable[["PrepareConfig"], bool]
    find: Callable[["PrepareConfig", bool], "Sources"]
    read: Callable[["Source", bool], "Cine"]
    contained: bool = False


def format_of(name: str) -> SourceFormat:
    """The format of this name."""
    return resolve_name(FORMATS[name])


def find_studies(config: "PrepareConfig", progress: bool) -> "Sources":
    """The studies of `config.src`, in the format asked for, or the first that it holds. Raises ValueError."""
    held = (name for name in FORMATS if format_of(name).holds(config))
    return format_of(next(held, "nifti") if config.format == "auto" else config.format).find(config, progress)
