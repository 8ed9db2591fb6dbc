"""Columns of a table as targets: which of their cells count, and whether the parts of the data split have what a task
needs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.naming import counted
from ..common.tables import Table, is_number
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from .split import Split


@dataclass(frozen=True)
class Target:
    """A target column. classes: their names, empty for a number. mean, sd: of the training studies' numbers."""

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @property
    def width(self) -> int:
        """Number of outputs for the target."""
        return max(len(self.classes), 1)


def drop_unknown(
    values: dict[str, dict[str, str]], columns: Sequence[str], split: Split, used: Sequence[str]
) -> list[str]:
    """Remove from {column: {study: cell}} the classes of validation and test studies that none of the training studies
    `used` has; a line for each column that counts them."""
    remarks = []
    for name in columns:
        known = {values[name][study] for study in used if study in values[name]}
        unknown = {study: value for study in (*split.val, *split.test)
                   if (value := values[name].get(study)) is not None and value not in known}  # fmt: skip
        values[name] = {study: value for study, value in values[name].items() if study not in unknown}
        counts = ", ".join(f"{value} {n}" for value, n in sorted(Counter(unknown.values()).items()))
        remarks += [f"{name}: {counted(len(unknown), 'validation or test study', 'validation and test studies')} left "
                    f"out, whose class no training study in use has ({counts})"] * bool(unknown)  # fmt: skip
    return remarks


def of_studies(table: Table, column: str, store: CineStore | ClipStore) -> dict[str, str]:
    """{study of the store: its cell in the column}."""
    values = table.values(column)
    if not values:
        filled = [name for name in table.columns if table.values(name)]
        raise ValueError(f"{table.path}: the column {column!r} is empty; with values: {', '.join(filled) or 'none'}")
    here = {study: values[study] for study in store.ids if study in values}
    if not here:
        raise ValueError(
            f"{table.path}: no study of {store.path} has a value in the column {column!r} (the table's first study is "
            f"{next(iter(table.rows))!r}, the store's {store.ids[0]!r})"
        )
    return here


def check_parts(
    table: Table, name: str, values: dict[str, str], split: Split, *, classified: bool, given: bool
) -> list[str]:
    """Raise ValueError where training or validation studies have no value of a column, or all have the same class. If
    the split is `given`, validation studies of one class are no error but a remark, which is returned."""
    remarks = []
    for part, word in (("train", "training"), ("val", "validation")):
        here = [values[study] for study in getattr(split, part) if study in values]
        if getattr(split, part) and not here:
            raise ValueError(f"{table.path}: no {word} study that has images has a value in the column {name!r}")
        if classified and len(set(here)) == 1:
            if given and part == "val":
                remarks.append(f"warning: all validation studies ({len(here)}) have {name!r} = {here[0]!r}: how well "
                               "the other classes are told apart is not validated")  # fmt: skip
                continue
            raise ValueError(
                f"{table.path}: all {word} studies ({len(here)}) have {name!r} = {here[0]!r}: change --val or --test, "
                "or give --split"
            )
    if classified and len(classes := set(values.values())) > max(len(values) // 2, 2):
        hint = "; for numbers use --task regression or multitask" if all(map(is_number, classes)) else ""
        raise ValueError(f"{table.path}: {name!r} has {len(classes)} classes in {len(values)} studies{hint}")
    return remarks


def target_of_column(table: Table, name: str, values: dict[str, str], split: Split, *, classified: bool) -> Target:
    """The target of a column, from the studies of split.train."""
    parts = {part: [values[s] for s in studies if s in values] for part, studies in split._asdict().items()}
    train = parts["train"]
    few = f"the labelled training studies in use ({len(split.train)})"
    others = "choose other studies (--label-fraction, --shots, --subset-seed, --split) or another target"
    if not train:
        raise ValueError(f"{table.path}: none of {few} has a value in the column {name!r}")
    if not classified:
        known = np.array([float(text) for text in train])
        if known.min() == known.max():  # compared exactly, since their standard deviation may be a rounding error
            raise ValueError(f"{table.path}: {name!r} is {known[0]:g} for all of {few}: {others}")
        return Target(name, mean=float(known.mean()), sd=float(known.std()))
    numbers = all(map(is_number, train))
    classes = sorted(set(train), key=lambda text: (float(text), text) if numbers else text)
    for part in ("val", "test"):
        if unknown := sorted(set(parts[part]) - set(classes)):
            raise ValueError(f"{table.path}: {name!r} {unknown[0]!r} is in the {part} studies and in none of {few}: "
                             "choose other studies (--label-fraction, --shots, --subset-seed, --split)")  # fmt: skip
    if len(classes) < 2:
        raise ValueError(f"{table.path}: {name!r} is {classes[0]!r} for all of {few}: {others}")
    return Target(name, tuple(classes))


def number_of(target: Target, text: str | None) -> float:
    """A cell as a standardised number, or the index of its class; nan where it is empty or of an unknown class."""
    if text is None or (target.classes and text not in target.classes):
        return math.nan
    return float(target.classes.index(text)) if target.classes else (float(text) - target.mean) / target.sd
