"""The data split into training, validation and test studies, and subsampling of the training studies."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..common.naming import count_studies
from ..common.shares import cut, digest
from ..common.tables import PARTS, check_matches, read_named, read_split


class Split(NamedTuple):
    """Ids of studies, each sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def labelled(self, studies: Collection[str], task: str) -> "Split":
        """The split, restricted to `studies`, which have labels for a task.

        Raises ValueError where no training study is left, or none of the validation studies.
        """
        split = Split(*(tuple(study for study in part if study in studies) for part in self))
        for part, word in (("train", "training"), ("val", "validation")):
            if getattr(self, part) and not getattr(split, part):
                n = len(getattr(self, part))
                raise ValueError(f"no {word} study (of {n}) has images and labels for --task {task}")
        return split


def split_studies(studies: Collection[str], *, val: float, test: float, path: Path | None = None) -> Split:
    """Split all studies of a store into training, validation and test.

    A function of the ids alone: studies are cut in the order of the SHA-256 of their ids. The first ones are the test
    studies, so `pretrain --holdout` with at least this share held them out; the validation studies come next.

    Args:
        val, test: shares. path: a CSV with the columns study and split, used instead.

    Raises:
        ValueError: a part that would be empty although its share is above 0, or an unknown split in the CSV.
    """
    if path is not None:
        listed = read_named("--split", path, read_split)
        split = Split(*(tuple(sorted(s for s in studies if listed.get(s) == part)) for part in PARTS))
        if not split.train:
            if not listed.keys() & set(studies):
                raise ValueError(f"{path}: names no study of the store (its first study is {next(iter(listed), '')!r}, "
                                 f"the store's {min(studies)!r})")  # fmt: skip
            here = Counter(listed.get(study, "none") for study in studies)
            counted = ", ".join(f"{part} {n}" for part, n in sorted(here.items()))
            raise ValueError(f"{path}: no study of the store has the split train; they have: {counted}")
        check_matches(path, listed, studies, "the store")
        return split
    of_test, of_val, training = cut(studies, test, val)
    if not training:
        raise ValueError(
            f"{count_studies(len(studies))} cannot be split with --val {val:g} --test {test:g}: none is left for "
            "training; lower one of the two"
        )
    return Split(*(tuple(sorted(part)) for part in (training, of_val, of_test)))


def subsample(
    studies: Sequence[str],
    *,
    fraction: float,
    shots: int | None,
    seed: int,
    class_of: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """The studies whose labels are used: a fraction of them, or `shots` of them, per class where classes are given.

    They are taken in the order of the SHA-256 of seed and id, so a smaller subsample is part of a larger one.
    Raises ValueError where there are fewer than `shots`.
    """
    order = sorted(studies, key=lambda study: digest(f"{seed}:{study}"))
    if shots is None:
        return tuple(sorted(order[: max(round(fraction * len(order)), 1)]))
    classes = class_of or dict.fromkeys(studies, "")
    have = Counter(classes[study] for study in studies)
    for name, n in have.items():
        if n < shots:
            of = f" of class {name!r}" if name else ""
            raise ValueError(f"--shots {shots}: only {n} labelled training {'study' if n == 1 else 'studies'}{of}")
    taken: Counter[str] = Counter()
    chosen = []
    for study in order:
        if taken[classes[study]] < shots:
            taken[classes[study]] += 1
            chosen.append(study)
    return tuple(sorted(chosen))
