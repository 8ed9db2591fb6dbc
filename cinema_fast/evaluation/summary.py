"""From rows to tables: every number of an evaluation with its interval, over all studies and by subgroup."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.tables import is_number
from ..metrics.bootstrap import RESAMPLES, Estimate, Measure, estimate
from ..metrics.characteristics import WORDS
from ..metrics.classification import Classification
from ..metrics.function import EF_CLASSES, ef_class
from ..metrics.means import Means
from ..metrics.regression import Agreement, Repeatability
from ..metrics.rows import KINDS, Row, new_row, number

ALL_CLASSES = "all classes"
OVERLAP = ("dice", "iou", "hd95_mm", "msd_mm", "stability")
FEW = 5  # numbers of so few different values are names of groups


@dataclass(frozen=True)
class Target:
    """What is known of a target beside its rows: of a classification its classes and threshold, else its unit."""

    classes: tuple[str, ...] = ()
    threshold: float = 0.5
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers of one class, quantity, target or landmark. column, group: the subgroup, "" for all studies."""

    kind: str
    view: str
    name: str
    numbers: dict[str, Estimate]
    column: str = ""
    group: str = ""

    @property
    def title(self) -> str:
        return ", ".join(part for part in (self.view, self.name) if part)


def summarise(
    rows: Sequence[Row],
    targets: Mapping[str, Target],
    groups: Mapping[str, Mapping[str, str]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Table]:
    """Tables of all rows, then by subgroup: groups {column: {study: group}}; studies without a group are in none."""
    sets = list(row_sets(rows))
    tables = []
    for column, group_of in ("", {}), *groups.items():
        for label in dict.fromkeys(group_of.values()) if column else [""]:
            for (kind, view, name), found in sets:
                chosen = [row for row in found if not column or group_of.get(row["study"]) == label]
                if chosen:
                    measure = measure_of(kind, chosen, targets.get(name, Target()))
                    numbers = estimate(measure, [row["study"] for row in chosen], resamples=resamples, seed=seed)
                    tables.append(Table(kind, view, name, numbers, column, label))
    return tables


def row_sets(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    """((kind, view, name), its rows), in the order of KINDS; with what follows from them: the mean over the classes
    of a label map, and the classes of ejection fractions, of kind ef_class."""
    sets: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        sets[row["kind"], row["view"], row["name"]].append(row)
    for kind in KINDS:
        of_kind = {where: found for where, found in sets.items() if where[0] == kind}
        if kind == "segmentation":
            of_kind |= _over_classes(of_kind)
        yield from of_kind.items()
        for (_, view, name), found in of_kind.items():
            if kind in ("function", "cycle") and name == "lv_ef":
                defined = [row for row in found if math.isfinite(number(row, "pred") + number(row, "truth"))]
                title = "lv_ef" if kind == "function" else "lv_ef of the cycle"
                if defined:
                    yield ("ef_class", view, title), [_ef_class_row(row, title) for row in defined]


def measure_of(kind: str, rows: Sequence[Row], target: Target) -> Measure:
    """The numbers that a kind of rows is judged by. Raises ValueError where the rows do not fit the target."""
    if kind in ("segmentation", "landmarks"):
        names = dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], str))
        shown = [name for name in names if kind == "landmarks" or name in OVERLAP]
        return Means({name: [number(row, name) for row in rows] for name in shown})
    if kind in ("function", "cycle", "regression"):
        return Agreement(*([number(row, name) for row in rows] for name in ("pred", "truth")))
    if kind == "retest":
        return Repeatability(*([number(row, name) for row in rows] for name in ("first", "second")))
    classes = EF_CLASSES if kind == "ef_class" else target.classes
    unknown = sorted({str(row[name]) for row in rows for name in ("truth", "decided")} - set(classes))
    if unknown:
        raise ValueError(f"{rows[0]['name']}: class {', '.join(unknown)}; want one of {', '.join(classes)}")
    truth, decided = ([classes.index(row[name]) for row in rows] for name in ("truth", "decided"))
    probable = [[number(row, f"p{i}") for i in range(len(classes))] for row in rows]
    probabilities = None if np.isnan(probable).all() else np.array(probable)
    return Classification(truth, classes, probabilities, decided, target.threshold)


def check_groups(groups: Mapping[str, Mapping[str, str]], studies: Collection[str]) -> None:
    """Raise ValueError where a column of groups {column: {study: cell}} would make a group of nearly every one of the
    studies: some of its cells are numbers and others not, or it has more than WORDS different words."""
    for column, values in groups.items():
        cells = {study: values[study] for study in studies if values.get(study, "").strip()}
        sides = {True: [], False: []}
        for study, cell in cells.items():
            sides[is_number(cell)].append(study)
        if all(sides.values()):
            some, other = (f"study {study!r} has {cells[study]!r}" for study in (sides[True][0], sides[False][0]))
            raise ValueError(f"--subgroups {column}: {some}, {other}; want numbers or words, not both "
                             f"({len(sides[True])} of {len(cells)} are numbers). Leave the cell empty where a number "
                             "is unknown, or name every group by a word")  # fmt: skip
        if not sides[True] and (different := len(set(cells.values()))) > WORDS:
            raise ValueError(f"--subgroups {column}: {different} different words, each of which would be a group; want "
                             f"a column of numbers, or of at most {WORDS} words")  # fmt: skip


def subgroups(values: Mapping[str, str]) -> dict[str, str]:
    """{study: group} of a column of a table {study: cell}: numbers are cut into thirds, words are groups as they are.

    Numbers of up to FEW different values are groups as they are too. Empty cells are in no group. Groups come in order.
    Whether a column is fit for groups is for `check_groups` to say, before the work.
    """
    cells = {study: cell for study, cell in values.items() if cell.strip()}
    numeric = all(map(is_number, cells.values()))
    numbers = {study: float(cell) for study, cell in cells.items()} if numeric else {}
    if not numeric or len(set(numbers.values())) <= FEW:
        order = (lambda item: numbers[item[0]]) if numeric else (lambda item: item[1])
        return dict(sorted(cells.items(), key=order))
    low, high = np.quantile(list(numbers.values()), (1 / 3, 2 / 3))
    names = (f"up to {low:.4g}", f"{low:.4g} to {high:.4g}", f"above {high:.4g}")
    return {
        study: names[int(value > low) + int(value > high)]
        for study, value in sorted(numbers.items(), key=lambda item: item[1])
    }


def _over_classes(sets: Mapping[tuple, Sequence[Row]]) -> dict[tuple, list[Row]]:
    """Rows of the mean over the classes of a frame that have a score."""
    frames: dict[tuple, list[Row]] = defaultdict(list)
    for found in sets.values():
        for row in found:
            frames[row["view"], row["study"], row["frame"]].append(row)
    means = defaultdict(list)
    for (view, study, frame), found in frames.items():
        known = [name for name in OVERLAP if any(name in row for row in found)]
        scores = {name: _mean([number(row, name) for row in found]) for name in known}
        mean = new_row("segmentation", study, ALL_CLASSES, view, frame, **scores)
        means["segmentation", view, ALL_CLASSES].append(mean)
    return means


def _mean(values: Sequence[float]) -> float:
    """Of those that are not nan; inf where one of them failed."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _ef_class_row(row: Row, name: str) -> Row:
    classes = {"truth": ef_class(row["truth"]), "decided": ef_class(row["pred"])}
    return new_row("ef_class", row["study"], name, row["view"], **classes)
