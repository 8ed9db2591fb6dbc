"""From rows to tables: every number of an evaluation with its interval, over all studies and by subgroup."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.tables import is_number
from ..metrics.bootstrap import RESAMPLES, Estimate, estimate
from ..metrics.characteristics import WORDS
from ..metrics.judgement import Judgement, Target
from ..metrics.rows import Row
from .judgements import JUDGEMENTS

FEW = 5  # numbers of so few different values are names of groups


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
    judgements: Mapping[str, Judgement] = JUDGEMENTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Table]:
    """Tables of all rows, then by subgroup: groups {column: {study: group}}; studies without a group are in none.

    judgements: by the kind of the rows.
    """
    sets = list(row_sets(rows, judgements))
    tables = []
    for column, group_of in ("", {}), *groups.items():
        for label in dict.fromkeys(group_of.values()) if column else [""]:
            for (kind, view, name), found in sets:
                chosen = [row for row in found if not column or group_of.get(row["study"]) == label]
                if chosen:
                    measure = judgements[kind].measure(chosen, targets.get(name, Target()))
                    numbers = estimate(measure, [row["study"] for row in chosen], resamples=resamples, seed=seed)
                    tables.append(Table(kind, view, name, numbers, column, label))
    return tables


def row_sets(
    rows: Sequence[Row], judgements: Mapping[str, Judgement] = JUDGEMENTS
) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    """((kind, view, name), its rows), in the order of the judgements; with what follows from them."""
    sets: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        sets[row["kind"], row["view"], row["name"]].append(row)
    for kind, judgement in judgements.items():
        of_kind = {where: found for where, found in sets.items() if where[0] == kind}
        yield from of_kind.items()
        yield from judgement.derived(of_kind).items()


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
            raise ValueError(f"--subgroups {column}: {some}, {other}; expected numbers or words, not both "
                             f"({len(sides[True])} of {len(cells)} are numbers). Leave the cell empty where a number "
                             "is unknown, or name every group by a word")  # fmt: skip
        if not sides[True] and (different := len(set(cells.values()))) > WORDS:
            raise ValueError(f"--subgroups {column}: {different} different words, each of which would be a group; "
                             f"expected a column of numbers, or of at most {WORDS} words")  # fmt: skip


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
