"""Loads a fine-tuning run: its task, its model with the best weights, and the preparation of its studies."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..common.views import CLIP
from ..data.loading.batch import padded_input
from ..data.prepare.sources import Source
from ..data.prepare.study import read_source
from ..data.store.clips import ClipStore
from ..data.store.records import CineInfo
from ..data.store.store import CineStore
from ..models.config import CineMAConfig, config_class, config_from_dict
from ..models.precision import autocast
from ..models.weights import load_cinema_weights
from ..train.checkpoint import newest_checkpoint
from ..train.run_info import RunInfo, min_frames_of, read_run_info
from ..train.setup import pick_device, pick_precision
from .context import PredictedView
from .finetune_config import NOT_YET, FinetuneConfig
from .read_together import phase_frames, unknown_phases
from .registry import task_from_dict
from .split import Split
from .task import Task

BATCH = 8  # frames at a time


@dataclass(frozen=True)
class FinetunedRun:
    """A loaded run. folder: its path. step: of the best weights. info: its RunInfo. model: on the device, in eval
    mode. frames: those of a cine that segmentation predicts, ED and ES; empty: all."""

    folder: Path
    step: int
    info: RunInfo
    model_config: CineMAConfig
    task: Task
    model: nn.Module
    device: torch.device
    precision: torch.dtype
    frames: tuple[str, ...] = ()

    def at_frames(self, frames: tuple[str, ...]) -> "FinetunedRun":
        """The run with --frames. Raises ValueError where they do not fit the task."""
        self.task.check_frames(frames)
        return replace(self, frames=frames)

    @property
    def split(self) -> Split:
        """The run's data split."""
        return Split(**{part: tuple(self.info.labels.split[part]) for part in Split._fields})

    @property
    def clips(self) -> bool:
        """Whether the model reads clips instead of frames."""
        return CLIP in self.model_config.views

    @property
    def reads(self) -> tuple[str, ...]:
        """The views of a scan that the model reads; empty for clips of any view."""
        return tuple(self.info.options["views"] if self.clips else self.model_config.views)

    @property
    def min_frames(self) -> int:
        """Clips are drawn from cines with at least so many frames."""
        return min_frames_of(self.info)

    @property
    def fused_views(self) -> tuple[str, ...]:
        """The views that are fused into one prediction; empty where each view, or clip, is predicted separately."""
        return tuple(self.model_config.views) if self.task.fuses_views and not self.clips else ()

    def missing_views(self, views: Sequence[str]) -> tuple[str, ...]:
        """The fused views that are not among `views`."""
        return tuple(view for view in self.fused_views if view not in views)

    def trained_views(self) -> str:
        """In words, how many training studies had which of the fused views; "" where there is at most one."""
        if len(self.fused_views) < 2:
            return ""
        sets = self.info.labels.view_sets
        if sets is None:
            return "it is unknown which views the training studies had: the run is of an older version"
        whole = [one for one in sets if set(one["views"]) == set(self.fused_views)]
        parts = [f"{one['studies']} with all of the views" for one in whole]
        parts += [f"{one['studies']} with {', '.join(one['views'])} only" for one in sets if one not in whole]
        never = "; the model was never trained on a study that lacks one" * (len(whole) == len(sets))
        return f"training studies of the model: {'; '.join(parts)}{never}"

    @torch.no_grad()
    def predict(self, frames: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Predictions for {view: (B, n, *size) uint8}: stored frames, no larger than the model's image size.

        n: the task's n_frames, 1 for clips. Returns the result of the task's `predict`, on the CPU; maps have the size
        of the given frames. Raises ValueError naming the view whose frames do not fit.
        """
        images = {}
        for view, values in frames.items():
            size = self.model_config.image_size[view]
            if len(values.shape) != 2 + len(size) or any(n > most for n, most in zip(values.shape[2:], size)):
                raise ValueError(
                    f"{view}: frames of {values.shape[2:]} do not fit the model's size {size}; prepare them as the "
                    f"run's store was ({self.info.store.prepare})"
                )
            images[view] = padded_input(values, size, self.device, view, joint=self.task.joint_range)
        with autocast(self.device, self.precision):
            found = self.task.predict(self.model, images)
        if self.task.predicts_maps:
            inside = {view: tuple(slice(n) for n in values.shape[2:]) for view, values in frames.items()}
            found = {view: maps[(slice(None), slice(None), *inside[view])] for view, maps in found.items()}
        return {name: values.cpu() for name, values in found.items()}

    def has_few_slices(self, view: str, shape: Sequence[int]) -> bool:
        """Whether a cine of shape (T, X, Y[, Z]) is a stack with fewer slices than any of training and validation.

        A run of an older version does not hold their numbers; there only a single slice counts as few.
        """
        return len(shape) == 4 and shape[3] < self._fewest_slices(view)

    def is_part(self, view: str, shape: Sequence[int]) -> bool:
        """Whether a cine of shape (T, X, Y[, Z]) is a stack with at most half of the slices of any of training and
        validation, too few for a whole heart; for a run of an older version, whether it is a single slice."""
        return len(shape) == 4 and shape[3] <= self._fewest_slices(view) // 2

    def _fewest_slices(self, view: str) -> int:
        return (self.info.labels.fewest_slices or {}).get(view, 2)

    def shown(self, info: CineInfo) -> tuple[int, ...]:
        """The numbers of the frames of a view that are predicted one by one; (0,) for channels, which have one answer.
        With --frames the view's ED and ES must be known."""
        if self.frames:
            return phase_frames(info, self.frames)
        return tuple(range(info.shape[0] // self.task.n_frames))

    def predict_frames(self, view: str, frames: np.ndarray) -> Tensor:
        """Predictions for frames of a cine (T, *size) uint8, a few at a time: (T, 1 + structures, *size) float32
        probabilities, or (T, landmarks, 2) float64 pixels. Where a model reads n channels together, frames has T n.

        A stack that shows only a part of a heart is padded to the model's depth by repeating its outermost slices. In
        training, zeros occur only beyond whole stacks, so the model would take slices next to them for base or apex.
        """
        before, n = 0, frames.shape[-1]
        if self.is_part(view, frames.shape):
            before = (self.model_config.image_size[view][2] - n) // 2
            beyond = before, self.model_config.image_size[view][2] - n - before
            frames = np.pad(frames, ((0, 0), (0, 0), (0, 0), beyond), mode="edge")
        groups = frames.reshape(-1, self.task.n_frames, *frames.shape[1:])
        parts = [self.predict({view: groups[i : i + BATCH]})[view] for i in range(0, len(groups), BATCH)]
        found = torch.cat(parts)
        return found[..., before : before + n] if frames.ndim == 4 else found

    def views_of(self, store: CineStore, study: str) -> tuple[str, ...]:
        """The views of a study that the model reads; for clips, those with enough frames. Raises ValueError where there
        is none, or where a view that is predicted by itself cannot be read."""
        if self.clips:
            infos = {v: store.info(study, v) for v in store.views(study) if v in (self.reads or [v])}
            found = tuple(v for v, info in infos.items() if info.shape[0] >= self.min_frames and info.is_cine)
            if not found:
                raise ValueError(f"the model reads clips of the cycle, and no {' or '.join(self.reads) or 'view'} has "
                                 f"{self.min_frames} frames or more: give cines, not ED and ES alone")  # fmt: skip
            return found
        found = tuple(view for view in store.views(study) if view in self.reads)
        if not found:
            have, read = ", ".join(store.views(study)), ", ".join(self.reads)
            raise ValueError(f"none of the views that the model reads: {read}; it has {have}")
        unread = {view: why for view in found if (why := self.task.unreadable(view, store.info(study, view)))}
        if unread and (not self.task.fuses_views or len(unread) == len(found)):
            raise ValueError("; ".join(unread.values()))
        return tuple(view for view in found if view not in unread)

    def predict_scan(
        self, store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> Iterator[PredictedView]:
        """Every view of a study that the model reads, predicted separately, with its source files.

        Raises ValueError where there is none, or where a file has changed since it was prepared; OSError where one
        cannot be read.
        """
        for view in self.views_of(store, study):
            scan, info, source = read_source(sources[view], view), store.info(study, view), sources[view]
            if why := unknown_phases(view, info, self.frames):
                raise ValueError(why)
            shown = self.shown(info)
            if self.frames:
                files = tuple(source.files[t] if source.frames else source.files[0] for t in shown)
                source = replace(source, files=files, frames=self.frames)
            read = shown if self.task.n_frames == 1 else range(info.shape[0])
            found = self.predict_frames(view, store.read_frames(study, view, read)).numpy()
            scan = scan if shown == tuple(range(scan.n_frames)) else scan.at(shown)
            yield PredictedView(view, found, info, scan, source, shown)

    def predict_study(
        self, store: CineStore | ClipStore, study: str, views: Sequence[str]
    ) -> dict[str, Tensor]:
        """{target: number, or probabilities (classes,)} of a study from its `views`; for clips the mean over planes.

        Raises StoreError or OSError where it cannot be read.
        """
        if CLIP in views:
            size = self.model_config.image_size[CLIP]
            clips = np.stack([store.read_clip(study, plane, 0.0, size) for plane in range(len(store.planes(study)))])
            parts = [self.predict({CLIP: clips[i : i + BATCH, None]}) for i in range(0, len(clips), BATCH)]
            return {name: torch.cat([part[name] for part in parts]).mean(0) for name in parts[0]}
        frames = {}
        for view in views:
            frames[view] = store.read_frames(study, view, self.task.frames_of(store.info(study, view)))[None]
        return {name: values[0] for name, values in self.predict(frames).items()}


def load_run(folder: Path, *, device: str = "auto", precision: str | None = None) -> FinetunedRun:
    """Read a run of `finetune`.

    Args:
        precision: of activations; None: the run's own.

    Raises:
        ValueError: no such run, no validation yet, or a damaged file.
    """
    info = _read(folder)
    best = newest_checkpoint(folder / "best", lambda note: print(note, file=sys.stderr))
    if best is None:
        first = info.options["validate_every"]
        raise ValueError(f"{folder} has no weights yet: its first validation is at step {first}")
    task, model_config = task_from_dict(info.labels.task), config_from_dict(info.model)
    model = task.network(model_config, _options(info.options))
    load_cinema_weights(model, best.weights)
    where = pick_device(device)
    arithmetic = pick_precision(precision or info.options["precision"], where)
    return FinetunedRun(folder, best.step, info, model_config, task, model.to(where).eval(), where, arithmetic)


def _read(folder: Path) -> RunInfo:
    """The RunInfo of a run of `finetune`. Raises ValueError where there is none."""
    info = read_run_info(folder)
    if info is None:
        raise ValueError(f"{folder} holds no run (no config.yaml); make one with `cinema-fast finetune`")
    if not info.labels and config_class(info.model) is not CineMAConfig:
        raise ValueError(f"{folder} is a run of pretrain with --preset {info.options['preset']}, which predicts no "
                         f"task: {NOT_YET}")  # fmt: skip
    if not info.labels:
        raise ValueError(f"{folder} is a run of pretrain: fine-tune it by `cinema-fast finetune --init-from {folder}`")
    if info.store.prepare is None:
        raise ValueError(f"{folder} is of a version that did not save how its store was prepared: fine-tune again")
    return info


def task_of(folder: Path) -> Task:
    """The task of a run of `finetune`. Raises ValueError as `load_run`."""
    return task_from_dict(_read(folder).labels.task)


def _options(saved: dict) -> FinetuneConfig:
    """The options with which the run's network was built."""
    known = {field.name for field in fields(FinetuneConfig)} - {"augment"}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items() if name in known}
    paths = ("data", "out", "table", "init_from", "split")
    return FinetuneConfig(**values | {name: Path(values[name]) for name in paths if values.get(name)})
