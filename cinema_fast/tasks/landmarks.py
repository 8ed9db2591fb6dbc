"""Landmarks of long-axis views: as maxima of heatmaps by ConvUNetR, or as coordinates by ConvViT."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..common.tables import LANDMARK_COLUMNS, read_landmarks, read_named
from ..data.loading.batch import Batch
from ..data.loading.sampler import frame_at
from ..data.prepare.geometry import spacing_of
from ..data.prepare.original_geometry import original_points
from ..data.prepare.sources import Source
from ..data.store.landmarks import check_landmarks, landmark_voxels
from ..data.store.orientation import arrange
from ..data.store.store import CineStore, StoreError
from ..figures.prediction import landmarks_gif
from ..metrics.assessment import Assessment
from ..metrics.long_axis import AXIS, LONG_AXIS, annulus_to_apex, long_axis_function, longest_and_shortest
from ..models.config import CineMAConfig
from ..train.setup import fit_to_store
from .augment_targets import cut_boxes, move_points
from .context import EvaluationData, PredictedView, StudyPrediction, Tables
from .heatmaps import gaussian_maps, peaks
from .landmark_positions import check_positions
from .losses import heatmap_loss
from .networks import unet_of, vit_of
from .split import Split
from .task import Task, TaskSetup, model_over_frames, used_of

if TYPE_CHECKING:
    from .finetune_config import FinetuneConfig
    from .finetuned_run import FinetunedRun


class LandmarkLabels:
    """The landmarks as labels. views_of: {study: its views with landmarks}."""

    def __init__(self, store: CineStore, points: Mapping, names: Sequence[str], views: Sequence[str]):
        self._store, self._points, self._names = store, points, names
        labelled = {
            study: tuple(v for v in store.views(study) if v in views and v in points.get(study, {}))
            for study in store.ids
        }
        self.views_of = {study: has for study, has in labelled.items() if has}

    def frames_of(self, study: str, view: str, phase: float) -> tuple[int, ...]:
        """The frame at a phase in [0, 1) among the frames with landmarks."""
        frames = sorted(self._points[study][view])
        return (frames[frame_at(phase, len(frames))],)

    def on_image(self) -> dict[str, set[tuple[str, str]]]:
        """{study: the (view, landmark) that lie on one of its images}."""
        found: dict[str, set[tuple[str, str]]] = {}
        for study, views in self.views_of.items():
            found[study] = set()
            for view in views:
                for t in self._points[study][view]:
                    points = self.target_of(study, {view: (t,)})[f"points {view}"]
                    found[study].update((view, name) for name, at in zip(self._names, points) if not np.isnan(at).any())
        return found

    def check(self, table: Path, used: Sequence[str], val: Sequence[str]) -> None:
        """Raise ValueError where none of the studies `used` shows a landmark of a view, where the validation studies
        show no landmark, or where no point of a view lies on its image."""
        found = self.on_image()
        everything = set().union(*found.values())
        for view in dict.fromkeys(view for views in self.views_of.values() for view in views):
            if view not in {view for view, _ in everything}:
                raise ValueError(
                    f"{table}: no landmark of {view} lies on its image: prepare the store with a larger --lax-size, or "
                    "leave out the view (--views)"
                )
        learnt = set().union(*(found[study] for study in used))
        for view, name in sorted(everything - learnt):
            raise ValueError(
                f"{table}: {name} of {view} is on no image of the labelled training studies in use ({len(used)}): "
                "choose other studies (--split, --label-fraction, --shots), or leave out the view (--views) or landmark"
            )
        if val and not any(found[study] for study in val):
            raise ValueError(
                f"{table}: no landmark is on an image of the validation studies ({len(val)}): choose others by --val "
                "or --split"
            )

    def target_of(self, study: str, shown: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """{"points VIEW": (landmarks, 2) float64 pixels, NaN where unknown; "spacing VIEW": (2,) mm a pixel}.

        A landmark outside of the stored image is unknown.
        """
        found = {}
        for view, frames in shown.items():
            info, known = self._store.info(study, view), self._points[study][view][frames[0]]
            points = np.full((len(self._names), 2), np.nan)
            for row, name in enumerate(self._names):
                if name in known:
                    points[row] = landmark_voxels(info, known[name])[0]
            points[((points < 0) | (points > np.array(info.shape[1:]) - 1)).any(1)] = np.nan
            found[f"points {view}"], found[f"spacing {view}"] = points, np.array(info.spacing_mm)
        return found


def sigma_of(maps: Tensor) -> float:
    """Sigma [pixels] of the heatmaps of a view (B, C, X, Y): 4 for 256 pixels, and at least 1 so that no peak is
    missed."""
    return max(maps.shape[2] / 64, 1.0)


@dataclass(frozen=True)
class Landmarks(Task):
    """names: in the order of the outputs. how: "heatmap" or "coordinates". labels_sha256: of the points.

    of_view: {view: the names with labels in it}; outputs for other names are meaningless.
    """

    names: tuple[str, ...]
    how: str
    views: tuple[str, ...]
    of_view: dict[str, tuple[str, ...]]
    labels_sha256: str

    kind = "landmarks"
    n_frames = 1
    validation_phases = (0.0, 0.25, 0.5, 0.75)  # among the frames with landmarks
    table_of_studies = False  # a line per point

    @classmethod
    def check(cls, config: "FinetuneConfig") -> None:
        """Raise ValueError where there is no --table, and for options of columns."""
        super().check(config)
        if not config.table:
            raise ValueError(
                "--task landmarks needs --table CSV with the columns study, view, frame, landmark, x_mm, y_mm, z_mm"
            )

    @classmethod
    def set_up(
        cls, config: "FinetuneConfig", cines: CineStore, base: CineMAConfig, split: Split, *, min_frames: int
    ) -> TaskSetup:
        """As `Task.set_up`. Raises ValueError naming the view, study or frame that does not fit."""
        model_over_frames(config, base)
        points = read_named("--table", config.table, read_landmarks)
        check_landmarks(config.table, points, {s: cines.views(s) for s in cines.ids}, cines.ids, cines.path)
        every = [(study, view) for study in cines.ids for view in points.get(study, {}) if view in cines.views(study)]
        found = dict.fromkeys(view for _, view in every)
        stacks = {view for study, view in every if len(cines.info(study, view).shape) != 3}
        single = [view for view in found if view not in stacks]
        if stacks and single and not config.views:
            print(f"{config.table}: landmarks of stacks are left out: {', '.join(sorted(stacks))}", file=sys.stderr)
        views = tuple(view for view in config.views or single or found if view in found)
        missing = [view for view in config.views if view not in found]
        if missing or not found:
            which = missing[0] if missing else "any view"
            raise ValueError(
                f"{config.table}: no landmarks of {which} of a study of {cines.path} (the table's first study is "
                f"{next(iter(points), None)!r}, the store's {cines.ids[0]!r}; of views of the store the table has "
                f"{', '.join(found) or 'none'})"
            )
        chosen = [(study, view) for study, view in every if view in views]
        for study, view in chosen:
            info = cines.info(study, view)
            if len(info.shape) != 3:
                raise ValueError(f"{config.table}: landmarks are of long-axis views, and {view} of {study} is a stack: "
                                 "name long-axis views by --views")
            if (last := max(points[study][view])) >= info.shape[0]:
                raise ValueError(f"{config.table}: frame {last} of {view} of {study}, which has {info.shape[0]} "
                                 "frames, counted from 0")
        check_positions(config.table, cines, points, chosen)
        if config.landmarks == "coordinates" and len(views) > 1:
            raise ValueError(
                f"--landmarks coordinates is for one view, and there are landmarks of {', '.join(views)}: name one by "
                "--views"
            )
        names = sorted({name for s, v in chosen for known in points[s][v].values() for name in known})
        plain = [[s, v, t, name, *mm] for s, v in chosen for t, known in points[s][v].items()
                 for name, mm in known.items()]  # fmt: skip
        digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
        order = tuple(v for v in dict.fromkeys(v for s in cines.ids for v in cines.views(s)) if v in views)
        labels = LandmarkLabels(cines, points, names, views)
        there = set().union(*labels.on_image().values())
        of_view = {view: tuple(name for name in names if (view, name) in there) for view in order}
        task = cls(tuple(names), config.landmarks, order, of_view, digest)
        model_config = fit_to_store(base, cines, task.views, config.preset)
        split = split.labelled(labels.views_of, config.task)
        used = used_of(config, split.train)
        labels.check(config.table, used, split.val)
        return TaskSetup(task, labels, model_config, cines, split, used)

    def network(self, model_config: CineMAConfig, config: "FinetuneConfig") -> nn.Module:
        """A network from images to {view: (B, landmarks, X, Y)}, or for coordinates to (B, 2 landmarks)."""
        if self.how == "heatmap":
            return unet_of(model_config, len(self.names), config)
        return vit_of(model_config, 2 * len(self.names), 1, config)

    def loss(self, model: nn.Module, batch: Batch, cutout: float) -> Tensor:
        """Mean over the views of soft Dice plus binary cross-entropy of heatmaps, or squared error of coordinates.

        Coordinates are fractions of the model's image size. A landmark moved off the image by augmentation is unknown.
        """
        images = {view: cut_boxes(image, cutout) for view, image in batch.images().items()}
        out, losses = model(images), []
        for view, image in images.items():
            extent = batch.extent[view]
            points = move_points(batch.target[f"points {view}"], extent, batch.augment[view])
            known = ((points >= 0) & (points <= extent[:, None] - 1)).all(-1)  # false for NaN
            if self.how == "heatmap":
                maps = gaussian_maps(points, tuple(image.shape[2:]), sigma_of(image))
                losses.append(heatmap_loss(out[view], maps, known))
            else:
                share = torch.stack([at / n for at, n in zip(points.unbind(-1), image.shape[2:])], -1)
                error = out.float().unflatten(1, (-1, 2)) - share.nan_to_num(0.0).float()
                losses.append((error.square().mean(-1) * known).sum() / known.sum().clamp(min=1))
        return torch.stack(losses).mean()

    def predict(self, model: nn.Module, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """{view: (B, landmarks, 2) float64 pixels}."""
        out = model(images)
        if self.how == "heatmap":
            return {view: peaks(maps.float().sigmoid(), sigma_of(maps)) for view, maps in out.items()}
        (view, image), = images.items()
        size = torch.tensor(image.shape[2:], device=image.device)
        return {view: out.double().unflatten(1, (-1, 2)) * size}

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """score: minus the mean distance in mm; nothing where no landmark is known."""
        found = []
        for batch in batches:
            for view, points in self.predict(model, batch.images()).items():
                off = (points - batch.target[f"points {view}"]) * batch.target[f"spacing {view}"][:, None]
                found.append(off.square().sum(-1).sqrt().flatten())
        distance = torch.cat(found).nanmean().item()
        return {} if math.isnan(distance) else {"score": -distance, "val_distance_mm": distance}

    def evaluator(
        self, run: "FinetunedRun", data: EvaluationData, assessment: Assessment
    ) -> Callable[[str], dict[str, float]]:
        """Evaluates every frame with landmarks of a study, and the long axis between them; returns no numbers."""
        points, store = read_named("--table", data.labels, read_landmarks), data.store
        judged = [(study, view) for study in data.studies for view in store.views(study)
                  if view in self.views and view in points.get(study, {})]  # fmt: skip
        check_positions(data.labels, store, points, judged)
        every = {study: store.views(study) for study in store.ids}
        check_landmarks(data.labels, points, every, data.studies, store.path)
        return partial(self._judge, run, store, points, assessment)

    def _judge(
        self, run: "FinetunedRun", store: CineStore, points: Mapping, assessment: Assessment, study: str
    ) -> dict[str, float]:
        for view in (v for v in store.views(study) if v in self.views and v in points.get(study, {})):
            info, known = store.info(study, view), points[study][view]
            frames = [t for t in sorted(known) if t < info.shape[0]]
            if absent := sorted(set(known) - set(frames)):
                assessment.leave_out(study, f"view {view}: landmarks of frame {absent[0]}, of {info.shape[0]} frames")
            if not frames:
                continue
            try:
                images = store.read_frames(study, view, frames)
                found = run.predict_frames(view, images)
            except (StoreError, OSError) as error:
                assessment.leave_out(study, f"view {view}: {error}")
                continue
            spacing, along = np.array(info.spacing_mm), []
            for t, image, row in zip(frames, images, found.numpy()):
                pred = {name: at * spacing for name, at in zip(self.names, row)}
                right = {name: landmark_voxels(info, mm)[0] * spacing for name, mm in known[t].items()
                         if name in self.of_view[view]}  # fmt: skip
                if unknown := sorted(set(known[t]) - set(right)):
                    why = f"view {view}, frame {t}: {unknown[0]}, which the training data lack there"
                    assessment.leave_out(study, why)
                assessment.add_landmarks(study, view, t, pred, right, image=image, spacing_mm=spacing)
                if _has_axis(right):
                    along.append((pred, right))
            if len(along) > 1:
                both = ({name: np.stack([of[name] for of in side]) for name in AXIS} for side in zip(*along))
                assessment.add_long_axis(study, view, *both)
        return {}

    @property
    def tables(self) -> Tables:
        """A line per study, and one per landmark and frame."""
        along = (view for view in self.views if _has_axis(self.of_view[view]))
        lengths = tuple(f"{view}_{name}" for view in along for name in LONG_AXIS)
        points = (*LANDMARK_COLUMNS, "x_voxel", "y_voxel", "z_voxel")
        return Tables(("flags", "landmarks", *lengths), "landmarks.csv", points)

    def export(
        self, run: "FinetunedRun", store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> StudyPrediction:
        """Positions in scanner mm and voxels, pictures, and function along the line from annulus to apex."""
        made = StudyPrediction({"views": {}})
        for predicted in run.predict_scan(store, study, sources):
            self._export_view(made, study, predicted)
        return made

    def _export_view(self, made: StudyPrediction, study: str, predicted: PredictedView) -> None:
        view, pixels, stored, scan, source, _ = predicted
        names = self.of_view[view]
        pixels = pixels[:, [self.names.index(name) for name in names]]
        voxels, mm = (np.round(found, 6) + 0.0 for found in original_points(pixels, stored.affine, scan.affine))
        cine = arrange(scan, stored.arrangement)
        made.files[f"{view}.gif"] = landmarks_gif(cine, original_points(pixels, stored.affine, cine.affine)[0][..., :2],
                                                  names)  # fmt: skip
        summary = {
            "files": [path.name for path in source.files], "frames": cine.n_frames, "frame_time_ms": cine.frame_time_ms,
            "pixel_mm": spacing_of(scan.affine)[:2].tolist(),
            "landmarks": {
                name: {"mm": mm[:, k].tolist(), "voxel": voxels[:, k].tolist()} for k, name in enumerate(names)
            },
        }  # fmt: skip
        made.summary["views"][view] = summary
        made.row["landmarks"] = int(made.row.get("landmarks", 0)) + mm.shape[0] * mm.shape[1]
        for t in range(cine.n_frames):
            for k, name in enumerate(names):
                values = dict(zip((*LANDMARK_COLUMNS[4:], "x_voxel", "y_voxel", "z_voxel"), (*mm[t, k], *voxels[t, k])))
                made.lines.append({"study": study, "view": view, "frame": t, "landmark": name}
                                  | {column: float(value) for column, value in values.items()})  # fmt: skip
        if _has_axis(names) and cine.n_frames > 1:
            of_axis = {name: mm[:, names.index(name)] for name in AXIS}
            function = long_axis_function(of_axis, *longest_and_shortest(of_axis))
            summary |= {"annulus_to_apex_mm": annulus_to_apex(of_axis).tolist(), **function}
            made.row |= {f"{view}_{name}": value for name, value in function.items()}


def _has_axis(names: Iterable[str]) -> bool:
    return set(AXIS) <= set(names)
