"""The content of a run's config.yaml: options, model, store, labels. Reads files of earlier versions too."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..common.atomic import whole_file
from ..common.parsed_file import parse_yaml
from ..common.regular_file import read_regular
from ..common.renamed import current_options
from ..common.views import CLIP
from ..data.store.clips import MIN_FRAMES
from ..data.store.orientation import Orientation, orientation_of

# 1 (not written in files): no kind; runs of `finetune` have a task. 2: options under the old names of RENAMED
FORMAT = 3


@dataclass(frozen=True)
class StoreInfo:
    """The store of a run.

    studies: their number. sha256: `store_fingerprint`. orientation: of its images. prepare: the options of its
    preparation; runs of `pretrain` have none.
    """

    studies: int
    sha256: str
    orientation: Orientation
    prepare: dict | None = None

    def to_dict(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LabelInfo:
    """The task of a run of `finetune`, and its studies.

    task: as `task_from_dict` takes it. split: the labelled studies under train, val and test. used: the training
    studies whose labels are used. view_sets: [{"views": [...], "studies": number of `used` with these views}].
    fewest_slices: {view: slices of the smallest stack of training and validation}. seen: {"studies": ids that this run
    and the runs before it were trained on, "unknown": reasons why there may be others}. Values that older versions did
    not save are None.
    """

    task: dict
    split: dict[str, list[str]]
    used: list[str]
    view_sets: list[dict] | None = None
    fewest_slices: dict[str, int] | None = None
    seen: dict[str, list[str]] | None = None

    def difference(self, before: "LabelInfo | None") -> str:
        """Which of task, split and used differs from `before`; "" where none does."""
        parts = ("task", "split", "used")
        return next((part for part in parts if before is None or getattr(self, part) != getattr(before, part)), "")


@dataclass(frozen=True)
class RunInfo:
    """A run: its options, model, store, labels (only `finetune`) and the versions it was computed with.

    options: those of the command line, and `ranks`. model: as `config_from_dict` takes it. min_frames: clips are drawn
    from cines with at least so many frames; None for models of single frames. held_out: the studies that `pretrain
    --split` holds out; None without it. All are plain values for YAML.
    """

    options: dict
    model: dict
    store: StoreInfo
    versions: dict[str, str]
    min_frames: int | None = None
    labels: LabelInfo | None = None
    held_out: tuple[str, ...] | None = None

    @property
    def kind(self) -> Literal["pretrain", "finetune"]:
        return "finetune" if self.labels else "pretrain"

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        values = {"format": FORMAT, "kind": self.kind, "run": self.options, "model": self.model}
        values["store"] = self.store.to_dict()
        labels = asdict(self.labels) if self.labels else {}
        values |= {name: value for name, value in labels.items() if value is not None}
        values |= {} if self.held_out is None else {"held_out": list(self.held_out)}
        values["versions"] = self.versions
        return values if self.min_frames is None else values | {"min_frames": self.min_frames}

    @classmethod
    def from_dict(cls, values: object, source: str) -> "RunInfo":
        """The RunInfo from the result of `to_dict`, of this or an earlier version. Raises ValueError naming `source`
        where it is damaged, or of a newer version."""
        try:
            of_run = _typed({"content": values}, "content", dict)
            form = _typed(of_run, "format", int, 1)
            if form <= FORMAT:
                return cls._from_dict(of_run)
        except ValueError as error:
            raise _damaged(source, str(error)) from None
        raise ValueError(f"{source} is of format {form}, which a newer version of cinema-fast wrote; this one reads up "
                         f"to {FORMAT}: update cinema-fast")

    @classmethod
    def _from_dict(cls, values: dict) -> "RunInfo":
        options, model, store = (_typed(values, part, dict) for part in ("run", "model", "store"))
        kind = _typed(values, "kind", str, "finetune" if "task" in values else "pretrain")
        if kind not in ("pretrain", "finetune"):
            raise ValueError(f"kind is {kind!r}, expected pretrain or finetune")
        # runs of older versions also used cines of two frames, and continue to
        least = _typed(values, "min_frames", int, 2 if CLIP in _typed(model, "views", list, []) else None)
        labels = _labels(values) if kind == "finetune" else None
        options = current_options(kind, options)
        held_out = tuple(_typed(values, "held_out", list)) if "held_out" in values else None
        return cls(options, model, _store(store), _typed(values, "versions", dict, {}), least, labels, held_out)


def read_run_info(folder: Path) -> RunInfo | None:
    """The RunInfo of the run in a folder, None where there is no config.yaml. Raises ValueError as
    `RunInfo.from_dict`, and OSError."""
    import yaml

    path = folder / "config.yaml"
    if not path.exists():
        return None
    try:
        values = parse_yaml(read_regular(path).decode())
    except (yaml.YAMLError, ValueError) as error:
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from None
    return RunInfo.from_dict(values, str(path))


def write_run_info(folder: Path, info: RunInfo) -> None:
    """Write config.yaml atomically."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "config.yaml", durable=True) as file:
        file.write_text(yaml.safe_dump(info.to_dict(), sort_keys=False), encoding="utf-8")


def min_frames_of(before: RunInfo | None) -> int:
    """Least number of frames of cines for clips; before: of a resumed run, None for a new one."""
    return MIN_FRAMES if before is None or before.min_frames is None else before.min_frames


def _store(values: dict) -> StoreInfo:
    prepare = _typed(values, "prepare", dict, None)
    orientation = _typed(values, "orientation", str, orientation_of(prepare or {}))
    return StoreInfo(_typed(values, "studies", int), _typed(values, "sha256", str), orientation, prepare)


def _labels(values: dict) -> LabelInfo:
    split = _typed(values, "split", dict)
    return LabelInfo(
        task=_typed(values, "task", dict),
        split={part: _typed(split, part, list) for part in ("train", "val", "test")},
        used=_typed(values, "used", list),
        view_sets=_typed(values, "view_sets", list, None),
        fewest_slices=_typed(values, "fewest_slices", dict, None),
        seen=_typed(values, "seen", dict, None),
    )


def _typed(values: dict, name: str, kind: type, *default):
    """A value of this type; `default` where it is missing. Raises ValueError saying what is wrong."""
    if name not in values and default:
        return default[0]
    if name not in values:
        raise ValueError(f"{name} is missing")
    if not isinstance(values[name], kind):
        raise ValueError(f"{name} is not of type {kind.__name__}")
    return values[name]


def _damaged(source: str, reason: str) -> ValueError:
    return ValueError(f"{source} is damaged ({reason}); start another run, or restore the file")
