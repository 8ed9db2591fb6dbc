"""Segmentation: a label for every pixel, by ConvUNetR or a U-Net, trained on the label maps in the store."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.formats.cine import Cine
from ..data.loading.batch import Batch
from ..data.loading.loader import LabelError
from ..data.loading.sampler import frame_at
from ..data.prepare.original_geometry import label_files, label_map, plan_return, reaching_edge, voxel_size
from ..data.prepare.sources import Source
from ..data.store.orientation import arrange, arranged, inverse
from ..data.store.records import CineInfo
from ..data.store.store import CineStore, StoreError
from ..figures.prediction import outlines_gif, volume_png
from ..metrics.assessment import Assessment
from ..metrics.cases import NEEDED, SegmentationCase, missing_structures
from ..metrics.flags import cycle_flags, in_order
from ..metrics.function import (
    QUANTITIES,
    VENTRICLES,
    CycleFunction,
    cycle_function,
    has_volumes,
    volume_curves,
)
from ..metrics.map_options import EmptyDice
from ..metrics.map_scoring import MapScoring, map_scoring
from ..metrics.segmentation import stability_score
from ..models.config import CineMAConfig
from ..train.setup import fit_to_store
from .augment_targets import cut_boxes, move_labels
from .context import EvaluationData, PredictedView, StudyPrediction, Tables
from .losses import segmentation_loss
from .networks import unet_of
from .read_together import common_channels, mismatch, other_kind, unknown_phases
from .split import Split
from .structures import names_of, structures_of, unused_labels
from .task import Task, TaskSetup, model_over_frames, used_of

if TYPE_CHECKING:
    from .finetune_config import FinetuneConfig
    from .finetuned_run import FinetunedRun

# columns of ED and ES, and of frames without the ventricle; where only the RV is segmented it uses those of the LV
ENDS = {"LV": ("ed_frame", "es_frame"), "RV": ("rv_ed_frame", "rv_es_frame")}
EMPTY = {"LV": "empty_frames", "RV": "rv_empty_frames"}
FRAME = ("study", "view", "frame", "time_ms")  # columns of the table of frames before the volumes


class SegmentationLabels:
    """The label maps of a store. views_of: {study: its views with label maps}."""

    def __init__(self, store: CineStore, views: Sequence[str], structures: Sequence[str]):
        self._store, self._structures = store, structures
        labelled = {
            study: tuple(v for v in store.views(study) if v in views and store.info(study, v).labels)
            for study in store.ids
        }
        self.views_of = {study: has for study, has in labelled.items() if has}

    def frames_of(self, study: str, view: str, phase: float) -> tuple[int, ...]:
        """The labelled frame at a phase in [0, 1) of all labelled frames; all channels of a view that is no cine."""
        info = self._store.info(study, view)
        if info.channels:
            return tuple(range(len(info.channels)))
        return (info.labels.frames[frame_at(phase, len(info.labels.frames))],)

    def target_of(self, study: str, shown: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """{view: (*size) uint8} of the frame, for channels of the first one. Raises LabelError for a label without a
        name."""
        found = {view: self._store.read_labels(study, view, frames[0]) for view, frames in shown.items()}
        for view, labels in found.items():
            unused = [label for label in unused_labels(self._structures) if (labels == label).any()]
            self._check_named(study, view, [int(labels.max()), *unused])
        return found

    def _check_named(self, study: str, view: str, labels: Iterable[int]) -> None:
        label = max(set(labels) - {0} - names_of(self._structures).keys(), default=0)
        if label in unused_labels(self._structures):
            raise LabelError(
                f"study {study}: its {view} label maps hold the label {label}, which has no name among the structures "
                f"{' '.join(self._structures)}: --structures of finetune gives it one"
            )
        if label:
            raise LabelError(
                f"study {study}: its {view} label maps hold the label {label}, and the structures are "
                f"{len(self._structures)}: {', '.join(self._structures)} (1 to {len(self._structures)}; --structures "
                "of finetune names them)"
            )

    def sha256(self) -> str:
        """SHA-256 of the labelled frames and their labels."""
        plain = [
            [study, view, maps.sha256, maps.frames]
            for study, views in self.views_of.items()
            for view in views
            if (maps := self._store.info(study, view).labels)
        ]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def values_of(self, studies: Sequence[str], workers: int) -> dict[str, set[int]]:
        """{study: the labels in its maps}, of labelled studies, from the index.

        The index of an older store lacks them: then two maps of every view are read, the first and the middle one.
        Raises ValueError for a label without a name.
        """

        def look(study: str) -> set[int]:
            found = set()
            try:
                for view in self.views_of[study]:
                    values = self._store.info(study, view).labels.values
                    if values is None:
                        maps = [self.target_of(study, {view: self.frames_of(study, view, at)}) for at in (0.0, 0.5)]
                        values = np.unique(np.stack([one[view] for one in maps])).tolist()
                    self._check_named(study, view, values)
                    found.update(values)
            except StoreError as error:
                raise ValueError(f"study {study}: {error}") from error
            return found

        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(studies, pool.map(look, studies)))

    def check(self, used: Sequence[str], workers: int) -> list[str]:
        """Raise ValueError for a label without a name; returns the structures that none of the studies `used` has, in
        words."""
        values_of = self.values_of(tuple(self.views_of), workers)
        seen = set().union(*(values_of[study] for study in used))
        return [
            f"no labelled training study in use (of {len(used)}) has the label {label} ({name}) in its label maps"
            for label, name in names_of(self._structures).items() if label not in seen
        ]  # fmt: skip


@dataclass(frozen=True)
class Segmentation(Task):
    """structures: names of the labels 1, 2, ..., UNUSED for one that no study has; views: those with label maps, in the
    model's order.

    labels_sha256: of the label maps, so that a run is not resumed with others. channels: {view: its channels}, which
    are read together; empty where frames are read one by one.
    """

    structures: tuple[str, ...]
    views: tuple[str, ...]
    labels_sha256: str
    channels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    kind = "segmentation"
    predicts_maps = True
    validation_phases = (0.0, 0.25, 0.5, 0.75)  # among a study's labelled frames; of two frames both are read
    warning_at_zero = (
        "the best validation has a Dice near 0, so the model has not learned to segment: train longer (--steps), start "
        "from pre-trained weights (--init-from), or check the labels with `cinema-fast inspect STORE --out FOLDER`"
    )

    @property
    def n_frames(self) -> int:
        """Images that are read together: the channels of each view, else 1."""
        return max(map(len, self.channels.values()), default=1)

    @classmethod
    def check(cls, config: "FinetuneConfig") -> None:
        """Raise ValueError for options of tables."""
        super().check(config)
        if config.table:
            raise ValueError("--table has no effect for --task segmentation: its labels are in the store")

    @classmethod
    def set_up(
        cls, config: "FinetuneConfig", cines: CineStore, base: CineMAConfig, split: Split, *, min_frames: int
    ) -> TaskSetup:
        """As `Task.set_up`. Raises ValueError where a view has no label maps, and for labels that do not fit."""
        model_over_frames(config, base)
        views = tuple(dict.fromkeys(view for study in cines.ids for view in cines.views(study)))
        structures = structures_of(cines, config.structures)
        labels = SegmentationLabels(cines, config.views or views, structures)
        found = {view for has in labels.views_of.values() for view in has}
        if missing := [view for view in config.views if view not in found]:
            if missing[0] not in views:
                raise ValueError(f"--views {missing[0]}: {cines.path} has no such view; it has {', '.join(views)}")
            raise ValueError(f"--task segmentation: {cines.path} has no label maps of {missing[0]}: {_PREPARE}")
        if not found:
            raise ValueError(f"--task segmentation: {cines.path} holds no label maps: {_PREPARE}")
        channels = common_channels(cines, labels.views_of)
        counts = {view: len(channels.get(view, "1")) for view in views if view in found}
        if len(set(counts.values())) > 1:
            each = ", ".join(f"{view} {n}" for view, n in counts.items())
            raise ValueError(f"--task segmentation: the views of a run need the same number of channels, and those of "
                             f"{cines.path} have {each}: choose by --views")  # fmt: skip
        task = cls(structures, tuple(v for v in views if v in found), labels.sha256(), channels)
        model_config = fit_to_store(base, cines, task.views, config.preset, named=config.views)
        split = split.labelled(labels.views_of, config.task)
        used = used_of(config, split.train)
        unseen = labels.check(used, config.workers)
        if unseen and structures == config.structures:
            raise ValueError(f"{unseen[0]}: correct --structures, or choose other studies (--split, --label-fraction, "
                             "--shots)")  # fmt: skip
        remarks = tuple(f"warning: {line}: the model does not learn it" for line in unseen)
        return TaskSetup(task, labels, model_config, cines, split, used, remarks)

    def network(self, model_config: CineMAConfig, config: "FinetuneConfig") -> nn.Module:
        """A network from images to {view: logits (B, 1 + structures, *size)}."""
        return unet_of(model_config, 1 + len(self.structures), config, self.n_frames)

    def unreadable(self, view: str, info: CineInfo) -> str:
        """Its channels are others than in training."""
        return mismatch(view, info, self.channels)

    def remark(self, view: str, info: CineInfo) -> str:
        """It is another kind of image than in training."""
        return other_kind(view, info, self.channels)

    def check_frames(self, frames: Sequence[str]) -> None:
        """No error: ED and ES alone are predicted."""

    def loss(self, model: nn.Module, batch: Batch, cutout: float) -> Tensor:
        """Mean over the views of soft Dice plus cross-entropy."""
        images = {view: cut_boxes(image, cutout) for view, image in batch.images().items()}
        n_classes = 1 + len(self.structures)
        losses = []
        for view, logits in model(images).items():
            labels = move_labels(batch.target[view], batch.extent[view], batch.augment[view], n_classes)
            losses.append(segmentation_loss(logits, labels))
        return torch.stack(losses).mean()

    def predict(self, model: nn.Module, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """{view: (B, 1 + structures, *size) float32 probabilities}, 0 for a label that no study has."""
        found = {view: logits.float() for view, logits in model(images).items()}
        if unused := unused_labels(self.structures):
            found = {view: logits.index_fill(1, torch.tensor(unused, device=logits.device), -torch.inf)
                     for view, logits in found.items()}  # fmt: skip
        return {view: logits.softmax(1) for view, logits in found.items()}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """score: mean Dice over structures and label maps; a structure that is in neither map does not count."""
        found = []
        for batch in batches:
            for view, probability in self.predict(model, batch.images()).items():
                labels, predicted = batch.target[view], probability.argmax(1)
                for value in range(1, 1 + len(self.structures)):
                    of_labels, of_prediction = (labels == value).flatten(1), (predicted == value).flatten(1)
                    total = of_labels.sum(1) + of_prediction.sum(1)
                    dice = 2 * (of_labels & of_prediction).sum(1) / total.clamp(min=1)
                    found.append(torch.stack([dice * (total > 0), (total > 0).float()], 1))
        dice, counted = torch.cat(found).sum(0).tolist()
        return {"score": dice / max(counted, 1.0), "val_dice": dice / max(counted, 1.0)}

    def map_scoring(self, regions: Sequence[str], empty_dice: EmptyDice, min_component: Sequence[str]) -> MapScoring:
        """As `Task.map_scoring`."""
        return map_scoring(names_of(self.structures), regions, empty_dice, min_component)

    def check_known(self, quantities: Iterable[str], masks: Collection[str] = ()) -> None:
        """Raise ValueError where a quantity is measured from other structures."""
        for name in quantities:
            if absent := missing_structures(name, masks):
                raise ValueError(f"--known {name}: the run segments {', '.join(self.structures)}, not "
                                 f"{', '.join(absent)}. {NEEDED}")  # fmt: skip

    def check_retest(self, masks: Collection[str] = ()) -> None:
        """Raise ValueError where nothing can be measured from the structures."""
        if not set(VENTRICLES) & set(masks):
            raise ValueError(f"--retest: the run segments {', '.join(self.structures)}. {NEEDED}")

    def evaluator(
        self, run: "FinetunedRun", data: EvaluationData, assessment: Assessment
    ) -> Callable[[str], dict[str, float]]:
        """Evaluates every view of a study over its whole cycle; returns the measurements of stacks."""
        maps = SegmentationLabels(data.store, self.views, self.structures)
        maps.values_of([study for study in data.studies if study in maps.views_of], workers=2)
        return partial(self._judge, run, data, assessment)

    def _judge(self, run: "FinetunedRun", data: EvaluationData, assessment: Assessment, study: str) -> dict[str, float]:
        store, known, measured = data.store, data.known.get(study, {}), {}
        for view in (v for v in store.views(study) if v in self.views):
            info = store.info(study, view)
            if why := self.unreadable(view, info) or unknown_phases(view, info, run.frames):
                assessment.leave_out(study, why)
                continue
            shown = tuple(sorted(set(run.shown(info))))
            try:
                frames = store.read_frames(study, view, shown if self.n_frames == 1 else range(self.n_frames))
                labelled = info.labels.frames if info.labels else ()
                truth = {t: store.read_labels(study, view, t) for t in labelled if t in shown}
            except (StoreError, OSError) as error:
                assessment.leave_out(study, f"view {view}: {error}")
                continue
            probability = run.predict_frames(view, frames)
            pred = assessment.maps.cleaned(probability.argmax(1).byte().numpy())
            volumes, place = has_volumes(pred.shape), [shown.index(t) for t in truth]
            case = SegmentationCase(
                study=study,
                view=view,
                spacing_mm=info.spacing_mm,
                image=frames[: len(pred)],
                pred=pred,
                truth=truth,
                frames=shown,
                known=known if volumes else {},
                stability={shown[k]: scores for k, scores in self.stability(probability, place).items()},
                frame_time_ms=info.frame_time_ms,
            )
            assessment.add_segmentation(case)
            if run.has_few_slices(view, info.shape):
                assessment.flag(study, "few_slices", view)
            if pred.ndim == 4 and not volumes and known:
                assessment.leave_out(study, f"view {view}: a single slice has no {', '.join(known)}")
            if volumes:
                function = case.cycle(assessment.maps).function
                measured = {name: function.get(name, math.nan) for name in QUANTITIES
                            if not missing_structures(name, assessment.maps.masks)}  # fmt: skip
        return measured

    def stability(self, probability: Tensor, labelled: Iterable[int]) -> dict[int, dict[str, float]]:
        """{labelled frame: {structure: score}} of probabilities (T, 1 + structures, ...). Their logarithms are the
        logits up to a constant, which the score subtracts."""
        if not (at := sorted(labelled)):
            return {}
        scores = stability_score(probability[at].clamp(min=torch.finfo(torch.float32).tiny).log())[:, 1:].tolist()
        return {t: dict(zip(self.structures, row)) for t, row in zip(at, scores)}

    @property
    def tables(self) -> Tables:
        """A line per study, with the volumes of single volumes; and for stacks a line per frame."""
        volumes = tuple(f"{name}_ml" for name in names_of(self.structures).values())
        found = ["frames", "flags", "cut_off", *(f"{view}_{name}" for view in self.channels for name in volumes)]
        if len(self.channels) < len(self.views):  # cines
            found += [*EMPTY.values(), *(column for pair in ENDS.values() for column in pair), *QUANTITIES]
        return Tables(tuple(found), "frames.csv", (*FRAME, *volumes))

    def export(
        self, run: "FinetunedRun", store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> StudyPrediction:
        """Label maps and pictures, and for stacks volumes, function and curves."""
        made = StudyPrediction({"views": {}})
        for predicted in run.predict_scan(store, study, sources):
            few = run.has_few_slices(predicted.view, predicted.stored.shape)
            self._export_view(made, study, predicted, few)
        return made

    def _export_view(self, made: StudyPrediction, study: str, predicted: PredictedView, few: bool) -> None:
        view, probability, stored, scan, source, numbers = predicted
        probability = probability.reshape(*probability.shape[:4], -1)
        cine = arrange(scan, stored.arrangement)
        back = plan_return(probability.shape[2:], stored.affine, cine.shape, cine.affine)
        labels = np.stack([label_map(frame, back) for frame in probability])
        names = names_of(self.structures)
        files = label_files(view, arranged(labels, inverse(stored.arrangement), first=1), source, scan)
        made.files |= files
        summary = {
            "label_maps": list(files), "frames": cine.n_frames, "frame_time_ms": cine.frame_time_ms,
            "slices": cine.shape[2], "voxel_mm": list(voxel_size(cine.affine)),
            "cut_off": [names[label] for label in sorted(reaching_edge(labels, back))],
        }  # fmt: skip
        made.summary["views"][view] = summary
        made.cut_off += [f"{view}: {', '.join(summary['cut_off'])}"] * bool(summary["cut_off"])
        flags = ["nothing_found"] * (not labels.any()) + ["few_slices"] * few + ["cut_off"] * bool(summary["cut_off"])
        marks: dict[int, list[str]] = {}  # {frame: its names}
        if has_volumes(labels.shape):
            curves = volume_curves(labels, voxel_size(cine.affine), names)
            cycle = cycle_function(curves)
            flags = in_order([*flags, *cycle_flags(cycle, cine.n_frames), *_named_otherwise(source, cycle)])
            for ventricle, (ed, es) in cycle.frames.items():
                marks.setdefault(ed, []).append(f"{ventricle} ED")
                marks.setdefault(es, []).append(f"{ventricle} ES")
            _add_lines(made, summary, study, view, curves, cine, numbers)
            if view not in self.channels:
                _add_function(made, summary, cycle, numbers)
            elif cine.n_frames == 1:
                made.row |= {f"{view}_{name}_ml": float(curve[0]) for name, curve in curves.items()}
            made.row |= {"frames": cine.n_frames, "cut_off": " ".join(summary["cut_off"])}
            made.files[f"{view}_volumes.png"] = volume_png(curves, cycle, cine.frame_time_ms, study, flags)
        summary["flags"] = flags
        made.flags += flags
        made.files[f"{view}.gif"] = outlines_gif(
            cine, labels, voxel_size(cine.affine), [names.get(k + 1, "") for k in range(len(self.structures))],
            marks=marks, flags=flags,
        )  # fmt: skip


_PREPARE = "store them by `cinema-fast prepare SRC STORE --labels PATTERN`"


def _add_lines(
    made: StudyPrediction, summary: dict, study: str, view: str, curves: Mapping[str, np.ndarray], cine: Cine,
    numbers: Sequence[int],
) -> None:  # fmt: skip
    """Add the volumes of a stack to its summary, and a line per frame. numbers: of its frames in the scan."""
    summary["volumes_ml"] = {name: curve.tolist() for name, curve in curves.items()}
    made.lines += [
        {"study": study, "view": view, "frame": t, "time_ms": t * cine.frame_time_ms if cine.frame_time_ms else ""}
        | {f"{name}_ml": float(curve[k]) for name, curve in curves.items()}
        for k, t in enumerate(numbers)
    ]


def _add_function(made: StudyPrediction, summary: dict, cycle: CycleFunction, numbers: Sequence[int]) -> None:
    """Add ED, ES and the function of a cine to its summary and to its line of studies.csv."""
    place = {ventricle: "LV" if ventricle == cycle.guide else ventricle for ventricle in cycle.empty}
    ends = {
        column: numbers[k]
        for ventricle, frames in cycle.frames.items() for column, k in zip(ENDS[place[ventricle]], frames)
    }
    if cycle.function:
        summary |= {**ends, "function": cycle.function}
    empty = {EMPTY[place[ventricle]]: [numbers[k] for k in frames] for ventricle, frames in cycle.empty.items()}
    summary |= empty
    made.row |= {**ends, **cycle.function}
    made.row |= {column: " ".join(map(str, frames)) for column, frames in empty.items()}


def _named_otherwise(source: Source, cycle: CycleFunction) -> list[str]:
    """The flag of a cine with a file per frame, two of them named ed and es, whose LV is larger in es."""
    names = [frame.lower() for frame in source.frames]
    if "LV" not in cycle.frames or not {"ed", "es"} <= set(names):
        return []
    return ["ed_es_swapped"] * (cycle.frames["LV"] == (names.index("es"), names.index("ed")))
