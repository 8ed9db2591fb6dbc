"""The formats of source files. A new format needs a reader, a module that finds its studies, and a line here."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..formats.nifti import read_nifti

if TYPE_CHECKING:
    from ..formats.cine import Cine, Volume
    from .prepare_config import PrepareConfig
    from .sources import Source, Sources

# in the order in which `--format auto` tries them; a module is imported when it is needed
FORMATS = {
    "nifti": "cinema_fast.data.prepare.sources:NIFTI",
    "dicom": "cinema_fast.data.prepare.dicom_sources:DICOM",
}
FormatName = Literal[("auto", *FORMATS)]
# formats of one public data set, whose reader finds the files
OF_DATASETS = {
    "rescan": "cinema_fast.data.datasets.rescan:PICKLES",
    "png": "cinema_fast.data.datasets.landmark:PNG",
}


class SourceFormat(NamedTuple):
    """A format of source files. `Source.format` is its name in FORMATS or OF_DATASETS.

    read: reads the cine of a view as it was scanned, as a stack of slices, a single slice, or (None) either; raises
    CineError. holds: whether config.src has such files. find: finds the studies of config.src (progress: a bar on
    stderr); raises ValueError for options of other formats; both None in OF_DATASETS. read_labels: reads a file of
    label maps of a cine; raises CineError. contained: decoders may crash a process, so a worker process reads it.
    """

    read: Callable[["Source", bool | None], "Cine"]
    holds: Callable[["PrepareConfig"], bool] | None = None
    find: Callable[["PrepareConfig", bool], "Sources"] | None = None
    read_labels: Callable[[Path, "Cine"], "Volume"] = lambda path, cine: read_nifti(path)
    contained: bool = False


def format_of(name: str) -> SourceFormat:
    """The format of this name."""
    return resolve_name((FORMATS | OF_DATASETS)[name])


def find_studies(config: "PrepareConfig", progress: bool) -> "Sources":
    """The studies of `config.src`: of the data set that it holds, or in the requested format, or the first one it
    holds. Raises ValueError."""
    if config.published:
        return config.published.find(config, progress)
    held = (name for name in FORMATS if format_of(name).holds(config))
    return format_of(next(held, "nifti") if config.format == "auto" else config.format).find(config, progress)
