"""The data that a task gets for an evaluation, and its results for a predicted study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.tables import Table
from ..data.formats.cine import Cine
from ..data.prepare.sources import Source
from ..data.store.records import CineInfo
from ..data.store.store import CineStore

Cell = str | int | float


class PredictedView(NamedTuple):
    """A predicted view of a study: the output of `Task.predict` per frame, its cine in the store, and its source files.

    found (T, ...). stored: the record of its stored grid. scan: its T frames, with the axes of the files in `source`.
    frames: their numbers in the cine; (0,) for the one answer of several channels.
    """

    view: str
    found: np.ndarray
    stored: CineInfo
    scan: Cine
    source: Source
    frames: tuple[int, ...]


@dataclass(frozen=True)
class EvaluationData:
    """The studies to evaluate, and their labels.

    labels: the file of labels, the run's or --table. table: its content, where it has a line per study. known:
    {study: {quantity: value}} of --known. positive, threshold: the options.
    """

    store: CineStore
    studies: tuple[str, ...]
    labels: Path | None
    table: Table | None
    known: Mapping[str, Mapping[str, float]]
    positive: str | None
    threshold: float | None


@dataclass
class StudyPrediction:
    """The prediction of a study.

    summary: its entry in results.json. row: its line of studies.csv, by column. lines: its lines in the table with
    several lines per study. files: {name in the study's folder: content}. flags: codes of `metrics.flags`. cut_off: for
    each view the structures that reach the edge of the model's image.
    """

    summary: dict = field(default_factory=dict)
    row: dict[str, Cell] = field(default_factory=dict)
    lines: list[dict[str, Cell]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tables:
    """Columns of studies.csv without the study; and name and columns of the other table, "" where there is none."""

    columns: tuple[str, ...]
    other: str = ""
    other_columns: tuple[str, ...] = ()
