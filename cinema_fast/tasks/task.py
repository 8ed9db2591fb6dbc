"""The `Task` interface: what fine-tuning, `evaluate` and `predict` need of a task.

A new task is one file with a frozen dataclass that derives from `Task`, and a line in registry.py. Its fields are saved
in config.yaml. It may import metrics, figures, data, models, train and methods. A task with its own scores, such as the
concordance of survival times, declares a `ScoreKind` in its file (metrics/score_kind.py: how its rows are summarised
and shown in the report), names it in `score_kinds`, and adds rows by `assessment.add`.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from ..common.views import CLIP
from ..data.loading import loader
from ..data.loading.batch import Batch
from ..data.prepare.sources import Source
from ..data.store.clips import ClipStore, clip_frames
from ..data.store.records import CineInfo
from ..data.store.store import CineStore
from ..metrics.assessment import Assessment
from ..metrics.map_options import EmptyDice
from ..metrics.map_scoring import MapScoring
from ..metrics.score_kind import ScoreKind
from ..models.config import CineMAConfig
from .context import EvaluationData, StudyPrediction, Tables
from .split import Split, subsample

if TYPE_CHECKING:
    from .finetune_config import FinetuneConfig
    from .finetuned_run import FinetunedRun


class Labels(loader.Labels, Protocol):
    """The labels of the studies. views_of: {labelled study: its views that have labels}.

    `frames_of` returns the task's `n_frames` frames.
    """

    views_of: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class TaskSetup:
    """A task with its labels, its model's configuration, the store of its images, and the data split.

    split: of the labelled studies. used: the training studies whose labels are used. remarks: lines for run.log on
    studies that were left out.
    Raises ValueError where no study of `used` has a label of one of the model's views.
    """

    task: "Task"
    labels: Labels
    model_config: CineMAConfig
    store: CineStore | ClipStore
    split: Split
    used: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def __post_init__(self):
        shown = {view for study in self.used for view in self.labels.views_of[study]}
        views = self.model_config.views
        if absent := [view for view in views if view not in shown]:
            raise ValueError(
                f"no labelled training study in use (of {len(self.used)}) has {absent[0]} with a label: "
                f"choose the others by --views ({' '.join(v for v in views if v in shown)}), or use other "
                "studies (--split, --label-fraction, --shots)"
            )

    @property
    def view_sets(self) -> dict[tuple[str, ...], int]:
        """{views: number of used studies that have exactly these views of the model}, the most frequent first."""
        return dict(Counter(self.labels.views_of[study] for study in self.used).most_common())

    @property
    def fewest_slices(self) -> dict[str, int]:
        """{view of stacks: slices of the smallest stack in the labelled training and validation studies}; empty for a
        model over clips."""
        found: dict[str, int] = {}
        for study in (*self.split.train, *self.split.val) if isinstance(self.store, CineStore) else ():
            for view in self.labels.views_of[study]:
                shape = self.store.info(study, view).shape
                if len(shape) == 4:
                    found[view] = min(shape[3], found.get(view, shape[3]))
        return found

    @property
    def planes(self) -> dict[str, int] | None:
        """{labelled study: number of image planes for its clips}; None for a model over frames."""
        if CLIP not in self.model_config.views:
            return None
        return {study: len(self.store.planes(study)) for study in self.labels.views_of}


class Task(ABC):
    """A supervised task. Subclasses are frozen dataclasses whose fields are plain values, tuples and dicts.

    kind: the name in registry.py.
    n_frames: frames of a view that are read together, 1 for clips.
    joint_range: whether the frames that are read together are scaled by their common range.
    validation_phases: phases in [0, 1) at which validation reads `Labels.frames_of` (only 0: frames over the cycle).
    fuses_views: whether all views of a study give one answer.
    predicts_maps: whether `predict` gives maps {view: (B, channels, *size)} on the grid of its images.
    table_of_studies: whether --table has a line per study.
    warning_at_zero: as in `Validation`.
    score_kinds: its own kinds of scores.
    """

    kind: str
    views: tuple[str, ...]
    n_frames: int
    score_kinds: ClassVar[tuple[ScoreKind, ...]] = ()
    joint_range: bool = False
    validation_phases: ClassVar[tuple[float, ...]] = (0.0,)
    fuses_views: ClassVar[bool] = False
    predicts_maps: ClassVar[bool] = False
    table_of_studies: ClassVar[bool] = True
    warning_at_zero: ClassVar[str] = ""

    @classmethod
    def check(cls, config: "FinetuneConfig") -> None:
        """Raise ValueError for options of `finetune` that do not fit the task; by default for those of tables."""
        if config.targets:
            raise ValueError(f"--targets has no effect for --task {config.task}")
        if config.frames:
            raise ValueError(f"--frames {' '.join(config.frames)} is for targets of a table: the model of --task "
                             f"{config.task} reads labelled frames one by one")  # fmt: skip
        refuse_unknown_classes(config)

    @classmethod
    @abstractmethod
    def set_up(
        cls, config: "FinetuneConfig", cines: CineStore, base: CineMAConfig, split: Split, *, min_frames: int
    ) -> TaskSetup:
        """Check labels and options against the store, before anything is built; returns the task and its setup.

        Args:
            base: the model's configuration, before it is fitted to the store (train.setup.fit_to_store).
            split: of all studies.
            min_frames: clips are drawn from cines with at least so many frames.

        Raises:
            ValueError: names a view, column, label or part of the split that does not fit.
        """

    def to_dict(self) -> dict:
        """Plain values for config.yaml. Fields that later versions added are left out where they are empty, so that
        runs of earlier versions compare equal."""
        required = {field.name for field in dataclasses.fields(self)
                    if field.default is field.default_factory is dataclasses.MISSING}  # fmt: skip
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"kind": self.kind} | {name: value for name, value in values.items() if value or name in required}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Task":
        """The task with these saved values. Raises TypeError or KeyError where they do not fit."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: _tuples(value) for name, value in values.items() if name in known or name != "kind"})

    @abstractmethod
    def network(self, model_config: CineMAConfig, config: "FinetuneConfig") -> nn.Module:
        """The model, with all other trained parameters. Raises ValueError for options that do not fit it."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, cutout: float) -> Tensor:
        """The loss () of a batch. cutout: side of the boxes that `cut_boxes` sets to zero.

        It may be recorded into a CUDA graph, so it must not make tensors from Python numbers or read any back.
        """

    @abstractmethod
    def predict(self, model: nn.Module, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name of a view or a target: (B, ...)} of images {view: (B, n_frames, *size) float32 in [0, 1]}."""

    @abstractmethod
    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics by name, `score` (higher is better) among them; none where nothing can be evaluated."""

    def frames_of(self, info: CineInfo) -> tuple[int, ...]:
        """The frames of a view that are read together for one answer; by default spread evenly over the cycle."""
        return tuple(clip_frames(0.0, self.n_frames, info.shape[0]).tolist())

    def unreadable(self, view: str, info: CineInfo) -> str:
        """Why the model cannot read a view of a study; "" where it can."""
        return ""

    def remark(self, view: str, info: CineInfo) -> str:
        """What may be wrong with a view that is predicted all the same; "" where nothing is."""
        return ""

    def check_frames(self, frames: Sequence[str]) -> None:
        """Raise ValueError where `--frames` of evaluate and predict does not fit the task."""
        if frames:
            raise ValueError(f"--frames {' '.join(frames)} is for segmentation and for targets of a table, and the run "
                             f"is of {self.kind}")

    def map_scoring(self, regions: Sequence[str], empty_dice: EmptyDice, min_component: Sequence[str]) -> MapScoring:
        """How `evaluate` scores label maps with these options. Raises ValueError where the task predicts none, and for
        labels that it does not predict."""
        empty = (empty_dice,) if empty_dice == "one" else ()
        for option, values in ("--regions", regions), ("--min-component", min_component), ("--empty-dice", empty):
            if values:
                raise ValueError(f"{option} {' '.join(values)} is for label maps, and the run predicts {self.kind}")
        return MapScoring()

    def check_known(self, quantities: Iterable[str], masks: Collection[str] = ()) -> None:
        """Raise ValueError where the task does not measure one of the quantities of `evaluate --known`. masks: names of
        what is scored of label maps."""
        for name in quantities:
            raise ValueError(f"--known {name} is measured by segmentation, and the run is of {self.kind}")

    def check_retest(self, masks: Collection[str] = ()) -> None:
        """Raise ValueError where the task has no numbers for `evaluate --retest` to compare. masks: as above."""
        raise ValueError(f"--retest compares numbers of two scans of a heart, and the run predicts {self.kind}")

    def check_decisions(self, threshold: float | None, positive: str | None) -> None:
        """Raise ValueError where `evaluate --threshold` or --positive is given, and no target of two classes fits."""
        self._refuse_decisions(threshold, positive, self.kind)

    def _refuse_decisions(self, threshold: float | None, positive: str | None, predicted: str) -> None:
        for option, given in (("--threshold", threshold), ("--positive", positive)):
            if given is not None:
                raise ValueError(f"{option} {given} is for targets of two classes, and the run predicts {predicted}")

    @abstractmethod
    def evaluator(
        self, run: "FinetunedRun", data: EvaluationData, assessment: Assessment
    ) -> Callable[[str], dict[str, float]]:
        """A function that evaluates a study by its name: it fills the assessment and returns {quantity: number} for
        --retest, empty where there is none. Raises ValueError for labels that do not fit, before the work."""

    @property
    @abstractmethod
    def tables(self) -> Tables:
        """Which tables `predict` writes."""

    @property
    def flags_column(self) -> str:
        """The name of the column of flags in studies.csv."""
        return "flags"

    @abstractmethod
    def export(
        self, run: "FinetunedRun", store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> StudyPrediction:
        """Predict a study of a store, in the geometry of its source files; sources: {view: source}.

        Raises ValueError where the model reads none of its views, or where a file has changed since it was prepared;
        OSError where a file can no longer be read.
        """


def refuse_unknown_classes(config: "FinetuneConfig") -> None:
    """Raise ValueError for --classes-unknown of a task without classes."""
    if config.classes_unknown != "refuse":
        raise ValueError(f"--classes-unknown {config.classes_unknown} has no effect for --task {config.task}")


def model_over_frames(config: "FinetuneConfig", base: CineMAConfig) -> None:
    """Raise ValueError where the model reads clips."""
    if base.views == (CLIP,):
        raise ValueError(f"--task {config.task} needs a model over frames, and this one is over clips")


def used_of(
    config: "FinetuneConfig", studies: Sequence[str], class_of: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The training studies whose labels are used, according to the options. Raises ValueError where there are too
    few."""
    return subsample(
        studies, fraction=config.label_fraction, shots=config.shots, seed=config.subset_seed, class_of=class_of
    )


def _tuples(value):
    """Converts lists to tuples, also inside dicts and lists."""
    if isinstance(value, Mapping):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
