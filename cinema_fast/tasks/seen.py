"""The studies that a model was trained on, through all runs that its weights come from."""

from collections.abc import Collection, Sequence
from pathlib import Path

from ..common.views import CLIP
from ..data.loading.sampler import held_out
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore, StoreError
from ..train.run_info import LabelInfo, RunInfo, read_run_info
from ..train.setup import store_fingerprint


def seen_by(source: Path, cines: CineStore) -> tuple[set[str], list[str]]:
    """Ids of the studies on which weights were trained or validated, and reasons why there may be others, one per line.

    Args:
        source: folder of a run of `pretrain` or `finetune`, or a file of weights.
        cines: used to look up the studies of a run of `pretrain`, if it was on the same store or its own is missing.
    """
    before = read_run_info(source) if source.is_dir() else None
    if before is None:
        return set(), [f"{source} does not say which studies it was trained on"]
    if before.labels:
        seen = seen_of(before.labels)
        return set(seen["studies"]), list(seen["unknown"])
    seen, unknown = _pretrained_on(source, before, cines)
    if start := before.options.get("init_from"):
        earlier, more = seen_by(Path(start), cines)
        seen, unknown = seen | earlier, unknown + more
    return seen, unknown


def seen_of(labels: LabelInfo) -> dict[str, list[str]]:
    """`LabelInfo.seen` of a fine-tuned run; for a run of an older version, its own studies."""
    own = {"studies": [*labels.used, *labels.split["val"]], "unknown": ["the run is of an older version"]}
    return own if labels.seen is None else labels.seen


def seen_among(info: RunInfo, studies: Sequence[str]) -> str:
    """In words, how many of the evaluated studies were used to train a run's initial weights.

    The run's own training and validation studies are not counted.
    """
    if not info.options["init_from"]:
        return "none: the run began from random weights"
    own = {*info.labels.used, *info.labels.split["val"]}
    seen = seen_of(info.labels)
    return "; ".join([f"{len(set(studies).intersection(seen['studies']) - own)} of {len(studies)}", *seen["unknown"]])


def _pretrained_on(source: Path, before: RunInfo, cines: CineStore) -> tuple[set[str], list[str]]:
    """The training studies of a run of `pretrain`, found from its store and --holdout or --split."""
    if store_fingerprint(cines) != before.store.sha256:
        try:
            cines = CineStore(before.options["data"])
        except StoreError:
            return set(), [f"the store of {source}, {before.options['data']}, is not here"]
        if store_fingerprint(cines) != before.store.sha256:
            return set(), [f"the store of {source}, {before.options['data']}, has changed since"]
    views = before.model["views"]
    clips = CLIP in views
    store = ClipStore(cines, before.options["views"], min_frames=before.min_frames) if clips else cines
    usable = {study for study in store.ids if set(views).intersection(store.views(study))}
    held = held_out(usable, before.options["holdout"]) if before.held_out is None else set(before.held_out)
    return usable - held, []


def seen_remarks(
    source: Path, *, studies: Collection[str], unknown: Sequence[str], test: Sequence[str], hold_out: str
) -> list[str]:
    """Warnings for run.log about `test` studies that were, or may have been, used to train the weights of `source`.

    Args:
        studies, unknown: from `seen_by`; they may include the run's own training studies. hold_out: the options of
            `pretrain` that hold out the test studies.
    """
    remarks = [f"it is not fully known whether {source} was trained on test studies: {why}" for why in unknown]
    if both := set(studies).intersection(test):
        remarks.append(
            f"warning: {source}, or a run it started from, has used {len(both)} of the {len(test)} test studies for "
            f"training or validation, so test scores may be too good. To avoid this, pre-train with {hold_out}"
        )
    return remarks
