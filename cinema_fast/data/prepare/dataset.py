"""The public data sets by name. A new one needs a file with a `Dataset`, and a line here.

A data set's file finds the studies of the folder that its archive unpacks to (`published.py` has what they share), with
their label maps, their frames ED and ES, their values for `table.csv`, and their part of the data split. Facts about
the layouts: docs/how-to/datasets.md.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal, NamedTuple

from ...common.structures import STRUCTURES

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig
    from ..prepare.sources import Sources

# a module is imported when it is needed
DATASETS = {
    "acdc": "cinema_fast.data.datasets.acdc:ACDC",
    "mnms": "cinema_fast.data.datasets.mnms:MNMS",
    "mnms2": "cinema_fast.data.datasets.mnms2:MNMS2",
    "kaggle": "cinema_fast.data.datasets.kaggle:KAGGLE",
    "rescan": "cinema_fast.data.datasets.rescan:RESCAN",
    "landmark": "cinema_fast.data.datasets.landmark:LANDMARK",
    "emidec": "cinema_fast.data.datasets.emidec:EMIDEC",
    "myops2020": "cinema_fast.data.datasets.myops2020:MYOPS2020",
    "cinema": "cinema_fast.data.datasets.cinema:CINEMA",
    "nnunet": "cinema_fast.data.datasets.nnunet:NNUNET",
}
DatasetName = Literal[tuple(DATASETS)]


class Dataset(NamedTuple):
    """A public data set.

    find: the studies in a folder, with a progress bar on stderr where a flag is set; raises ValueError where the folder
    is not the data set's. label_map: {value in its label files: label of this project}; empty: there are none.
    sax_spacing: mm of stored stacks, 0 as scanned. names: {label: name} of structures that are not among STRUCTURES.
    """

    find: Callable[["PrepareConfig", bool], "Sources"]
    label_map: Mapping[int, int] = {}
    sax_spacing: tuple[float, float, float] = (1.0, 1.0, 10.0)
    names: Mapping[int, str] = {}

    @property
    def structures(self) -> dict[int, str]:
        """{label of its stored maps: name}."""
        return {label: (STRUCTURES | dict(self.names))[label] for label in sorted(set(self.label_map.values()))}


def dataset_of(name: str, src: Path) -> Dataset:
    """The data set of this name in the folder `src`.

    A layout that many data sets share is a function of the folder in place of a `Dataset`: label map and spacing are
    those of the data set in it. Raises ValueError where the folder is not of that layout.
    """
    found = resolve_name(DATASETS[name])
    return found if isinstance(found, Dataset) else found(src)
