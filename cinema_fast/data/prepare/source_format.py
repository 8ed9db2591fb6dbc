"""The formats of source files. A new format needs a reader, a module that finds its studies, and a line here."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..datasets.dataset import dataset_of

if TYPE_CHECKING:
    from ..formats.cine import Cine
    from .prepare_config import PrepareConfig
    from .sources import Source, Sources

# in the order in which `--format auto` tries them; a module is imported when it is needed
FORMATS = {
    "nifti": "cinema_fast.data.prepare.sources:NIFTI",
    "dicom": "cinema_fast.data.prepare.dicom_sources:DICOM",
}
FormatName = Literal[("auto", *FORMATS)]


class SourceFormat(NamedTuple):
    """A format of source files. `Source.format` is its name in FORMATS.

    holds: whether config.src has such files. find: finds the studies of config.src (progress: a bar on stderr); raises
    ValueError for options of other formats. read: reads the cine of a view as it was scanned, as a stack of slices, a
    single slice, or (None) either; raises CineError. contained: decoders may crash a process, so a worker process reads
    it.
    """

    holds: Callable[["PrepareConfig"], bool]
    find: Callable[["PrepareConfig", bool], "Sources"]
    read: Callable[["Source", bool | None], "Cine"]
    contained: bool = False


def format_of(name: str) -> SourceFormat:
    """The format of this name."""
    return resolve_name(FORMATS[name])


def find_studies(config: "PrepareConfig", progress: bool) -> "Sources":
    """The studies of `config.src`: of the data set that it holds, or in the requested format, or the first one it
    holds. Raises ValueError."""
    if config.dataset:
        return dataset_of(config.dataset, config.src).find(config, progress)
    held = (name for name in FORMATS if format_of(name).holds(config))
    return format_of(next(held, "nifti") if config.format == "auto" else config.format).find(config, progress)
