"""The studies that a pre-training run trains on and holds out: --split or --holdout."""

from collections.abc import Collection
from pathlib import Path

from ..common.naming import named
from ..common.tables import check_matches, read_named, read_split
from ..data.loading.sampler import held_out
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from .pretrain_config import PretrainConfig


def split_studies(
    store: CineStore | ClipStore, views: tuple[str, ...], options: PretrainConfig
) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
    """{training study: its views among `views`}, the studies held out, and the views that only these have.

    A study with none of the views is in neither. Raises ValueError where no held-out study could be evaluated, or none
    is left to train on.
    """
    usable = {study: tuple(v for v in store.views(study) if v in views) for study in store.ids}
    usable = {study: has for study, has in usable.items() if has}
    if options.split:
        by, held = f"--split {options.split}", _named_studies(options.split, usable, store)
    else:
        by, held = f"--holdout {options.holdout:g}", sorted(held_out(usable, options.holdout))
    training = {study: has for study, has in usable.items() if study not in held}
    trained = {view for has in training.values() for view in has}
    if held and not any(trained.intersection(usable[study]) for study in held):
        raise ValueError(
            f"{by}: no held-out study ({named(held)}) has a view of "
            f"the training studies ({', '.join(v for v in views if v in trained)}); hold out others"
        )
    unseen = {view for study in held for view in usable[study]} - trained
    return training, held, [view for view in views if view in unseen]


def _named_studies(path: Path, usable: Collection[str], store: CineStore | ClipStore) -> list[str]:
    """The studies that a split holds out of training. Raises ValueError where it cannot be read, names none of the
    studies, or leaves none."""
    parts = read_named("--split", path, read_split)
    check_matches(path, parts, sorted(usable), store.path, store.ids)
    held = sorted(study for study in usable if parts.get(study, "train") != "train")
    if len(held) == len(usable):
        raise ValueError(f"--split {path}: all {len(held)} studies are of val or test, so none is left to train on")
    return held
