"""Predicts columns of a table from whole studies: numbers, classes, or several of both, by ConvViT or a ResNet."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..common.naming import named
from ..common.tables import Table, check_matches, means_number, read_named
from ..common.views import CLIP, PHASES
from ..data.loading.batch import Batch
from ..data.loading.loader import LoaderError
from ..data.prepare.sources import Source
from ..data.store.clips import ClipStore, clip_frames
from ..data.store.records import CineInfo
from ..data.store.store import CineStore, StoreError
from ..metrics.assessment import Assessment
from ..models.config import CineMAConfig
from ..train.setup import fit_to_store
from .augment_targets import cut_boxes
from .context import EvaluationData, StudyPrediction, Tables
from .losses import balanced, target_loss
from .networks import vit_of
from .read_together import GIVE_PHASES, common_channels, mismatch, other_kind, phase_frames, unknown_phases
from .split import Split
from .table_columns import Target, check_parts, drop_unknown, number_of, of_studies, target_of_column
from .task import Task, TaskSetup, refuse_unknown_classes, used_of

if TYPE_CHECKING:
    from .finetune_config import FinetuneConfig
    from .finetuned_run import FinetunedRun


class TableLabels:
    """Values of the targets by study. views_of: {study with at least one value: its views among `views`}."""

    def __init__(
        self,
        store: CineStore | ClipStore,
        views: Sequence[str],
        targets: Sequence[Target],
        values: Mapping[str, Mapping[str, str]],
        n_frames: int,
        frames: Sequence[str] = (),
    ):
        self._store, self._n_frames, self._frames = store, n_frames, frames
        self._rows = {}
        for study in store.ids:
            row = [number_of(target, values[target.name].get(study)) for target in targets]
            if not all(map(math.isnan, row)):
                self._rows[study] = np.array(row, np.float32)
        labelled = {study: _readable(store, study, views, frames) for study in self._rows}
        self.views_of = {study: has for study, has in labelled.items() if has}

    def frames_of(self, study: str, view: str, _phase: float) -> tuple[int, ...]:
        """As `frames_read`."""
        return frames_read(self._store.info(study, view), self._n_frames, self._frames)

    def target_of(self, study: str, shown: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """{"values": (targets,) float32}: standardised numbers, or indices of classes; NaN where unknown."""
        return {"values": self._rows[study]}


def frames_read(info: CineInfo, n_frames: int, frames: Sequence[str] = ()) -> tuple[int, ...]:
    """The frames of a view that are read together: those of `frames`, its ED and ES, else n_frames spread evenly over
    the cycle from the first on, which are all channels of a view with so many."""
    if frames:
        return phase_frames(info, frames)
    return tuple(clip_frames(0.0, n_frames, info.shape[0]).tolist())


@dataclass(frozen=True)
class TableTask(Task):
    """kind: regression, classification or multitask. n_frames: read together, 1 for clips. reduce: of ConvViT.

    balance, weights: of several losses; no weights where uncertainties are learned.
    labels_sha256: of the values, so that a run is not resumed with others.
    frames: names of the frames that are read, in this order, and scaled together; empty: n_frames over the cycle.
    channels: {view: its channels} of views that are no cines.
    """

    kind: str
    targets: tuple[Target, ...]
    views: tuple[str, ...]
    n_frames: int
    reduce: str
    balance: str
    weights: tuple[float, ...]
    labels_sha256: str
    frames: tuple[str, ...] = ()
    channels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    fuses_views = True

    @classmethod
    def check(cls, config: "FinetuneConfig") -> None:
        """Raise ValueError where the options do not name suitable target columns."""
        if not (config.table and config.targets):
            raise ValueError(f"--task {config.task} needs --table CSV and --targets COLUMN ..., the columns to learn")
        if config.task != "multitask" and len(config.targets) > 1:
            raise ValueError(
                f"--task {config.task} learns one column, got {len(config.targets)}: use --task multitask"
            )
        if config.task == "regression":
            refuse_unknown_classes(config)
        if config.network == "baseline" and config.batch_size == 1:
            raise ValueError("--batch-size 1: --network baseline normalises over the studies of a step, and needs two")
        if taken := {"study", "views"}.intersection(config.targets):
            raise ValueError(f"--targets {taken.pop()}: `predict` writes a column of that name: rename yours")

    @classmethod
    def set_up(
        cls, config: "FinetuneConfig", cines: CineStore, base: CineMAConfig, split: Split, *, min_frames: int
    ) -> TaskSetup:
        """As `Task.set_up`. Classes, means and standard deviations come only from the training studies whose labels are
        used. Raises ValueError naming a column, a study or a class that does not fit."""
        model_config = fit_to_store(base, cines, config.views, config.preset)
        views, clips = model_config.views, base.views == (CLIP,)
        if clips and config.frames:
            raise ValueError(f"--frames {' '.join(config.frames)} is for models over frames, and {config.preset} reads "
                             "clips of the whole cycle")  # fmt: skip
        store = ClipStore(cines, config.views, min_frames=min_frames) if clips else cines
        table = read_named("--table", config.table)
        values = {name: of_studies(table, name, store) for name in config.targets}
        shown = {study for study in store.ids if _readable(store, study, views, config.frames)}
        if config.frames and not shown.intersection(split.train):
            raise ValueError(f"--frames {' '.join(config.frames)}: {store.path} has no training study (of "
                             f"{len(split.train)}) whose ED and ES are known: {GIVE_PHASES}")  # fmt: skip
        labelled = set().union(*values.values())
        remarks = _without_phases(store, sorted(labelled), views) if config.frames else []
        split = split.labelled(shown & labelled, config.task)
        check_matches(table.path, table.rows, store.ids, store.path)
        classified = {name: _is_classified(config, table, name, values[name]) for name in config.targets}
        for name in (name for name in config.targets if classified[name]):
            table.check_classes(name, values[name])
        (first, *others), class_of = config.targets, None
        if classified[first] and not others:
            class_of = {study: values[first][study] for study in split.train}
        used = used_of(config, split.train, class_of)
        if config.classes_unknown == "drop":
            remarks += drop_unknown(values, [name for name in config.targets if classified[name]], split, used)
        for name in config.targets:
            remarks += check_parts(
                table, name, values[name], split, classified=classified[name], given=config.split is not None
            )
        targets = tuple(
            target_of_column(table, name, values[name], split._replace(train=used), classified=classified[name])
            for name in config.targets
        )
        n_frames = 1 if clips else len(config.frames) or config.n_frames
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        weights = () if config.balance == "uncertainty" else config.loss_weights or (1.0,) * len(targets)
        labels = TableLabels(store, views, targets, values, n_frames, config.frames)
        channels = {} if clips else common_channels(cines, labels.views_of)
        for view, names in channels.items():
            if 1 < len(names) != n_frames:  # a single volume is repeated
                raise ValueError(f"--n-frames {n_frames}: {view} of {store.path} has {len(names)} channels, which are "
                                 f"read together ({', '.join(names)}): give --n-frames {len(names)}, or other --views")
        task = cls(config.task, targets, views, n_frames, config.reduce, config.balance, weights, digest, config.frames,
                   channels)  # fmt: skip
        split = split.labelled(labels.views_of, config.task)
        return TaskSetup(task, labels, model_config, store, split, used, tuple(remarks))

    @classmethod
    def from_dict(cls, values: Mapping) -> "TableTask":
        """As `Task.from_dict`."""
        targets = tuple(Target(**t | {"classes": tuple(t["classes"])}) for t in values["targets"])
        return super().from_dict(values | {"targets": targets})

    def network(self, model_config: CineMAConfig, config: "FinetuneConfig") -> nn.Module:
        """A network from images to (B, outputs of all targets). With several losses to balance it also has the learned
        uncertainties `log_variance` (targets,)."""
        model = vit_of(model_config, sum(target.width for target in self.targets), self.n_frames, config)
        if len(self.targets) > 1 and self.balance == "uncertainty":
            model.log_variance = nn.Parameter(torch.zeros(len(self.targets)))
        return model

    def outputs(self, model: nn.Module, images: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """For each target (B, 1) standardised numbers, or (B, classes) logits."""
        out = model(images, self.reduce) if hasattr(model, "encoder") else model(images)
        return out.split([target.width for target in self.targets], dim=1)

    def loss(self, model: nn.Module, batch: Batch, cutout: float) -> Tensor:
        """The balanced sum of the targets' losses over the studies that have a value."""
        images = {view: cut_boxes(image, cutout) for view, image in batch.images(joint=self.joint_range).items()}
        values = batch.target["values"].unbind(1)
        losses = [
            target_loss(out, known, classified=bool(target.classes))
            for target, out, known in zip(self.targets, self.outputs(model, images), values)
        ]
        if hasattr(model, "log_variance"):
            known = torch.stack([~value.isnan().all() for value in values])
            return balanced(torch.stack(losses), model.log_variance, [bool(t.classes) for t in self.targets], known)
        weights = self.weights or (1.0,) * len(losses)
        return torch.stack([weight * loss for weight, loss in zip(weights, losses)]).sum()

    def predict(self, model: nn.Module, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """{target: (B,) float32 in the column's unit, or (B, classes) probabilities}."""
        found = {}
        for target, out in zip(self.targets, self.outputs(model, images)):
            out = out.float()
            found[target.name] = out.softmax(1) if target.classes else out[:, 0] * target.sd + target.mean
        return found

    def validate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """score: minus the mean over the targets of cross-entropy, or of absolute error over standard deviation.

        Probabilities and numbers are averaged over the clips of a study.
        """
        shown, values = defaultdict(list), {}
        for batch in batches:
            outputs = zip(self.targets, self.outputs(model, batch.images(joint=self.joint_range)))
            parts = [out.float().softmax(1) if target.classes else out.float() for target, out in outputs]
            for study, row, known in zip(batch.draw.ids, torch.cat(parts, 1), batch.target["values"]):
                shown[study].append(row)
                values[study] = known
        predicted = torch.stack([torch.stack(rows).mean(0) for rows in shown.values()])
        predicted = predicted.split([target.width for target in self.targets], dim=1)
        line, losses = {}, []
        for target, out, value in zip(self.targets, predicted, torch.stack(list(values.values())).unbind(1)):
            here = ~value.isnan()
            out, value = out[here], value[here]
            if target.classes:
                surprise = nn.functional.nll_loss(out.clamp(min=torch.finfo(out.dtype).tiny).log(), value.long())
                losses.append(surprise.item())
                line[f"val_{target.name}_accuracy"] = (out.argmax(1) == value).float().mean().item()
            else:
                losses.append((out[:, 0] - value).abs().mean().item())
                line[f"val_{target.name}_mae"] = losses[-1] * target.sd
        return {"score": -math.fsum(losses) / len(losses), **line}

    @property
    def joint_range(self) -> bool:
        """ED and ES are scaled together, as the channels of an image in the reference."""
        return bool(self.frames)

    def frames_of(self, info: CineInfo) -> tuple[int, ...]:
        """As `frames_read`."""
        return frames_read(info, self.n_frames, self.frames)

    def unreadable(self, view: str, info: CineInfo) -> str:
        """Its channels are others than in training, or its ED and ES are unknown."""
        return mismatch(view, info, self.channels) or unknown_phases(view, info, self.frames)

    def remark(self, view: str, info: CineInfo) -> str:
        """It is another kind of image than in training."""
        return other_kind(view, info, self.channels)

    def check_frames(self, frames: Sequence[str]) -> None:
        """Raise ValueError where `--frames` is not what the run was trained on."""
        if frames and tuple(frames) != self.frames:
            trained = " ".join(self.frames) or ("clips" if CLIP in self.views else f"{self.n_frames} over the cycle")
            raise ValueError(f"--frames {' '.join(frames)}: the run was trained on other frames ({trained})")

    def check_retest(self, masks: Collection[str] = ()) -> None:
        """No error: predicted numbers are compared, if there are any."""

    def check_decisions(self, threshold: float | None, positive: str | None) -> None:
        """As `Task.check_decisions`."""
        classes = [name for target in self.targets if len(target.classes) == 2 for name in target.classes]
        if not classes:
            found = "; ".join(f"{t.name}: {', '.join(t.classes) or 'a number'}" for t in self.targets)
            self._refuse_decisions(threshold, positive, found)
        elif positive is not None and positive not in classes:
            raise ValueError(f"--positive {positive!r} is no class of a two-class target: expected one of "
                             f"{', '.join(classes)}")  # fmt: skip

    def evaluator(
        self, run: "FinetunedRun", data: EvaluationData, assessment: Assessment
    ) -> Callable[[str], dict[str, float]]:
        """Evaluates every target of a study that has a value; returns the predicted numbers."""
        store = ClipStore(data.store, run.reads, min_frames=run.min_frames) if run.clips else data.store
        for target in (target for target in self.targets if target.classes):
            data.table.check_classes(target.name, data.studies)
        truth = {target.name: data.table.values(target.name) if target.classes else data.table.numeric(target.name)
                 for target in self.targets}  # fmt: skip
        return partial(self._judge, run, data, store, truth, assessment)

    def _judge(
        self, run: "FinetunedRun", data: EvaluationData, store: CineStore | ClipStore, truth: Mapping,
        assessment: Assessment, study: str,
    ) -> dict[str, float]:  # fmt: skip
        predicted: dict[str, float] = {}
        views = tuple(v for v in store.views(study) if v in run.model_config.views)
        unread = {} if run.clips else {v: why for v in views if (why := self.unreadable(v, store.info(study, v)))}
        views = tuple(v for v in views if v not in unread)
        if not views:
            reads = f"views {', '.join(run.model_config.views)}"
            why = f"no cine of {run.min_frames} frames or more" if run.clips else f"none of the {reads}"
            assessment.leave_out(study, "; ".join(unread.values()) or why)
            return predicted
        try:
            found = run.predict_study(store, study, views)
        except (StoreError, LoaderError, OSError) as error:
            assessment.leave_out(study, str(error))
            return predicted
        if missing := run.missing_views(views):
            assessment.flag(study, "missing_views", " ".join(missing))
        if few := [v for v in views if not run.clips and run.has_few_slices(v, store.info(study, v).shape)]:
            assessment.flag(study, "few_slices", " ".join(few))
        for target in self.targets:
            value, right = found[target.name], truth[target.name].get(study)
            if not target.classes:
                predicted[target.name] = float(value)
            if right is None:
                assessment.leave_out(study, f"no value of {target.name} in {data.table.path.name}")
            elif target.classes:
                if right not in target.classes:
                    assessment.leave_out(study, f"{target.name} {right!r}, which the training data lack")
                    continue
                shares, classes = (value.double() / value.double().sum()).tolist(), target.classes
                if len(classes) == 2 and classes[0] == data.positive:
                    shares, classes = shares[::-1], classes[::-1]  # the second is the positive one
                threshold = 0.5 if data.threshold is None else data.threshold
                assessment.add_classification(study, target.name, shares, right, classes, threshold)
            else:
                assessment.add_regression(study, target.name, float(value), right)
        return predicted

    @property
    def tables(self) -> Tables:
        """A line per study."""
        columns = []
        for target in self.targets:
            columns += [target.name, *(f"{target.name}: {name}" for name in target.classes)]
        return Tables(("views", self.flags_column, *columns))

    @property
    def flags_column(self) -> str:
        """"flags", or another name where a target has this one."""
        name, taken = super().flags_column, {target.name for target in self.targets}
        while name in taken:
            name = f"predict_{name}"
        return name

    def export(
        self, run: "FinetunedRun", store: CineStore, study: str, sources: Mapping[str, Source]
    ) -> StudyPrediction:
        """The predicted numbers, classes and their probabilities."""
        shown = run.views_of(store, study)
        if run.clips:
            found = run.predict_study(ClipStore(store, shown, min_frames=run.min_frames), study, (CLIP,))
        else:
            found = run.predict_study(store, study, shown)
        made = StudyPrediction({"views": list(shown), "predictions": {}}, {"views": " ".join(shown)})
        few = not run.clips and any(run.has_few_slices(view, store.info(study, view).shape) for view in shown)
        made.flags += ["few_slices"] * few
        for target in self.targets:
            value = found[target.name].double()
            if not target.classes:
                made.summary["predictions"][target.name] = made.row[target.name] = float(value)
                continue
            shares = dict(zip(target.classes, (value / value.sum()).tolist()))
            likeliest = max(shares, key=shares.get)
            made.summary["predictions"][target.name] = {"class": likeliest, "probabilities": shares}
            made.row |= {target.name: likeliest, **{f"{target.name}: {name}": p for name, p in shares.items()}}
        return made


def _readable(
    store: CineStore | ClipStore, study: str, views: Sequence[str], frames: Sequence[str]
) -> tuple[str, ...]:
    """The views of a study among `views`; where ED and ES are read, those whose ED and ES are known."""
    shown = (view for view in store.views(study) if view in views)
    return tuple(view for view in shown if not frames or not unknown_phases(view, store.info(study, view), frames))


def _without_phases(store: CineStore, labelled: Sequence[str], views: Sequence[str]) -> list[str]:
    """A line on the labelled studies and their views that --frames leaves out, if there are any."""
    left_out = []
    for study in labelled:
        have, known = (_readable(store, study, views, frames) for frames in ((), PHASES))
        if unknown := [view for view in have if view not in known]:
            left_out.append(f"{study} ({', '.join(unknown)})" if known else study)
    return [f"left out, since ED and ES are unknown: {len(left_out)} of the {len(labelled)} studies with a value (or "
            f"the views in brackets): {named(left_out)}; {GIVE_PHASES}"] * bool(left_out)  # fmt: skip


def _is_classified(config: "FinetuneConfig", table: Table, name: str, values: dict[str, str]) -> bool:
    """Whether a column holds classes. Raises ValueError where the task or its other cells contradict."""
    if config.task == "classification" or name in config.classes:
        if config.task == "regression":
            raise ValueError(f"--task regression: {name!r} is among --classes; use --task classification")
        return True
    numbers = sum(map(means_number, values.values()))
    if config.task == "regression" or numbers:
        try:
            table.numeric(name)
        except ValueError as error:
            raise ValueError(f"{error}. Leave the cell empty where a number is unknown; columns of classes are named "
                             "by --classes, or by --task classification") from None
    return not numbers
