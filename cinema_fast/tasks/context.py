"""What a task is handed of a run and of an evaluation, and what it gives back of a study that is predicted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..common.tables import Table
from ..data.formats.nifti import Cine
from ..data.prepare.sources import Source
from ..data.store.clips import ClipStore
from ..data.store.records import CineInfo
from ..data.store.store import CineStore
from ..metrics.cases import SegmentationCase
from ..metrics.judgement import Judgement
from ..models.config import CineMAConfig

Cell = str | int | float


class PredictedView(NamedTuple):
    """A cine of a study: what `Task.predict` says of each frame, as the store has it, and as its files have it.

    found (T, ...). stored: on which grid. scan: with the axes of its files, which `source` names.
    """

    view: str
    found: np.ndarray
    stored: CineInfo
    scan: Cine
    source: Source


class Predictor(Protocol):
    """What a task is handed of a fine-tuned run (a `FinetunedRun`, which says more of each)."""

    shape: CineMAConfig
    clips: bool
    reads: Sequence[str]
    min_frames: int

    def views_of(self, store: CineStore, study: str) -> tuple[str, ...]:
        """The views of a study that the model reads. Raises ValueError where there is none."""

    def predict_frames(self, view: str, frames: np.ndarray) -> Tensor:
        """`Task.predict` of each frame of a cine (T, *size) uint8."""

    def predict_study(self, store: CineStore | ClipStore, study: str, views: Sequence[str]) -> dict[str, Tensor]:
        """`Task.predict` of a whole study, without the axis of the batch."""

    def predict_scan(
        self, store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> Iterator[PredictedView]:
        """Every view of a study that the model reads, each by itself. Raises as `Task.export`."""

    def has_few_slices(self, view: str, shape: Sequence[int]) -> bool:
        """Whether cines of a shape (T, X, Y[, Z]) have fewer slices than any of training and validation."""

    def missing_views(self, views: Sequence[str]) -> tuple[str, ...]:
        """Those of the views that one answer is made of that are not among `views`."""


@dataclass(frozen=True)
class EvaluationData:
    """What is judged, by what. labels: the file of labels, the run's or --table. table: that file where it has a line
    per study. known: {study: {quantity: value}} of --known. positive, threshold: the options."""

    store: CineStore
    studies: tuple[str, ...]
    labels: Path | None
    table: Table | None
    known: Mapping[str, Mapping[str, float]]
    positive: str | None
    threshold: float | None


class Assessor(Protocol):
    """What a task tells its findings to: an `evaluation.assessment.Assessment`, which says more of each method.

    classes: names of the labels of label maps; a task that predicts some sets them before the first.
    """

    classes: dict[int, str]

    def add_segmentation(self, case: SegmentationCase) -> None:
        """A segmented cine."""

    def add_regression(self, study: str, target: str, pred: float, truth: float, unit: str = "") -> None:
        """A number."""

    def add_classification(
        self, study: str, target: str, probabilities: Sequence[float], truth: str, classes: Sequence[str],
        threshold: float = 0.5,
    ) -> None:  # fmt: skip
        """Probabilities of classes."""

    def add_landmarks(
        self, study: str, view: str, frame: int, pred_mm: Mapping[str, Sequence[float]],
        truth_mm: Mapping[str, Sequence[float]], *, image: np.ndarray | None = None, spacing_mm: Sequence[float] = (),
    ) -> None:  # fmt: skip
        """Positions in one frame."""

    def add(
        self, judgement: Judgement, study: str, name: str, view: str = "", frame: int | str = "", **values: float
    ) -> None:
        """A row of a kind of the task's own: numbers."""

    def flag(self, study: str, code: str, view: str = "") -> None:
        """A study to look at again; code of metrics.flags."""

    def leave_out(self, study: str, why: str) -> None:
        """What could not be judged."""


@dataclass
class StudyPrediction:
    """summary: what results.json holds of the study. row: its line of studies.csv, by column. lines: those of the table
    that has more than one line for a study. files: {name in the study's folder: content}. flags: what is to be looked
    at again, codes of `metrics.flags`. cut_off: what reaches the edge of what the model sees, of each view."""

    summary: dict = field(default_factory=dict)
    row: dict[str, Cell] = field(default_factory=dict)
    lines: list[dict[str, Cell]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tables:
    """Columns of studies.csv, besides the study; name of the other table, "" where there is none, and its columns."""

    columns: tuple[str, ...]
    other: str = ""
    other_columns: tuple[str, ...] = ()
