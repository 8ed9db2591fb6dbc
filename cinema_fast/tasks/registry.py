"""The tasks by name: what is learnt, settled from the labels before training, or read back from a run."""

import dataclasses
from collections import Counter

from ..data.store.clips import CLIP, MIN_FRAMES, ClipStore
from ..data.store.store import CineStore
from ..models.config import CineMAConfig
from ..train.setup import fit_to_store
from .finetune_config import FinetuneConfig
from .landmarks import LandmarkLabels, Landmarks
from .segmentation import Segmentation, SegmentationLabels
from .split import Split, fewer
from .table_targets import TableLabels, TableTask, Target

Task = Segmentation | Landmarks | TableTask
Labels = SegmentationLabels | LandmarkLabels | TableLabels


@dataclasses.dataclass(frozen=True)
class Settled:
    """A task with its labels, the shape of its model, where its images are, and who is for what.

    split: of the studies that have labels. used: those of its training studies whose labels are used.
    """

    task: Task
    labels: Labels
    shape: CineMAConfig
    store: CineStore | ClipStore
    split: Split
    used: tuple[str, ...]

    @property
    def view_sets(self) -> dict[tuple[str, ...], int]:
        """{views: how many of the studies used show these and no others of the model's}, the most frequent first."""
        return dict(Counter(self.labels.views_of[study] for study in self.used).most_common())

    @property
    def fewest_slices(self) -> dict[str, int]:
        """{view of stacks: slices of the smallest one among all labelled studies of training and validation}; none for
        a model over clips."""
        found: dict[str, int] = {}
        for study in (*self.split.train, *self.split.val) if isinstance(self.store, CineStore) else ():
            for view in self.labels.views_of[study]:
                shape = self.store.info(study, view).shape
                if len(shape) == 4:
                    found[view] = min(shape[3], found.get(view, shape[3]))
        return found

    @property
    def planes(self) -> dict[str, int] | None:
        """{labelled study: the image planes that its clips are of}, None for a model over frames."""
        if CLIP not in self.shape.views:
            return None
        return {study: len(self.store.planes(study)) for study in self.labels.views_of}


def settle(
    config: FinetuneConfig, cines: CineStore, base: CineMAConfig, split: Split, *, min_frames: int = MIN_FRAMES
) -> Settled:
    """What a run is about. base: the model's shape, before it is fitted to the store. split: of all studies.
    min_frames: of a cine that clips are drawn from.

    Raises ValueError naming what does not fit: a view, a column, a label, a part of the split that has no labels.
    """
    clips = base.views == (CLIP,)
    if clips and config.task in ("segmentation", "landmarks"):
        raise ValueError(f"--task {config.task} wants a model over frames, and this one is over clips")
    if config.task == "segmentation":
        task, labels = Segmentation.settle(config, cines)
    elif config.task == "landmarks":
        task, labels = Landmarks.settle(config, cines)
    if config.task in ("segmentation", "landmarks"):
        shape = fit_to_store(base, cines, task.views, config.preset)
        store = cines
        labelled = split.labelled(labels.views_of, config.task)
        used = fewer(
            labelled.train,
            fraction=config.label_fraction,
            shots=config.shots,
            seed=config.subset_seed,
        )
        if config.task == "segmentation":
            labels.check(used, config.workers)
        else:
            labels.check(config.table, used, labelled.val)
    else:
        shape = fit_to_store(base, cines, config.views, config.preset)
        store = ClipStore(cines, config.views, min_frames=min_frames) if clips else cines
        task, labels, used = TableTask.settle(config, store, shape.views, split)
    shown = {view for study in used for view in labels.views_of[study]}
    if absent := [view for view in shape.views if view not in shown]:
        raise ValueError(
            f"none of the {len(used)} training studies whose labels are used has {absent[0]} with a label: name the "
            f"others by --views ({' '.join(v for v in shape.views if v in shown)}), or take other studies (--split, "
            "--label-fraction, --shots)"
        )
    return Settled(task, labels, shape, store, split.labelled(labels.views_of, config.task), used)


def task_from_dict(values: dict) -> Task:
    """The task of a run's config.yaml. Raises ValueError where it is none."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    kind = values.pop("kind", None)
    try:
        if kind == "segmentation":
            return Segmentation(**values)
        if kind == "landmarks":
            of_view = {view: tuple(names) for view, names in values["of_view"].items()}
            return Landmarks(**values | {"of_view": of_view})
        values["targets"] = tuple(Target(**t | {"classes": tuple(t["classes"])}) for t in values["targets"])
        return TableTask(kind=kind, **values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no task that is known ({error})") from error
