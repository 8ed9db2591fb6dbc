"""From rows to tables: every number of an evaluation with its interval, over all studies and by subgroup."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.tables import is_number
from ..metrics.bootstrap import RESAMPLES, Estimate, estimate
from ..metrics.characteristics import WORDS
from ..metrics.rows import Row
from ..metrics.score_kind import ScoreKind, Target
from .score_kinds import SCORE_KINDS

FEW = 5  # a column of numbers with so few different values is used as groups


@dataclass(frozen=True)
class Table:
    """Scores of one class, quantity, target or landmark. column, group: the subgroup, "" for all studies."""

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
    score_kinds: Mapping[str, ScoreKind] = SCORE_KINDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Table]:
    """Tables of all rows, then by subgroup. groups: {column: {study: group}}; studies without a group are in none.

    score_kinds: by name.
    """
    sets = list(row_sets(rows, score_kinds))
    tables = []
    for column, group_of in ("", {}), *groups.items():
        for label in dict.fromkeys(group_of.values()) if column else [""]:
            for (kind, view, name), found in sets:
                chosen = [row for row in found if not column or group_of.get(row["study"]) == label]
                if chosen:
                    measure = score_kinds[kind].measure(chosen, targets.get(name, Target()))
                    numbers = estimate(measure, [row["study"] for row in chosen], resamples=resamples, seed=seed)
                    tables.append(Table(kind, view, name, numbers, column, label))
    return tables


def row_sets(
    rows: Sequence[Row], score_kinds: Mapping[str, ScoreKind] = SCORE_KINDS
) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    """((kind, view, name), its rows), in the order of `score_kinds`, with the derived rows."""
    sets: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        sets[row["kind"], row["view"], row["name"]].append(row)
    for kind, score_kind in score_kinds.items():
        of_kind = {where: found for where, found in sets.items() if where[0] == kind}
        yield from of_kind.items()
        yield from score_kind.derived(of_kind).items()


def check_groups(groups: Mapping[str, Mapping[str, str]], studies: Collection[str]) -> None:
    """Raise ValueError where a column of groups, {column: {study: cell}}, would give nearly every study a group of its
    own: it mixes numbers and words, or has more than WORDS different words."""
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
    """{study: group} of a table's column {study: cell}: numbers are cut into thirds, each word is a group.

    Numbers with up to FEW different values are groups too. Empty cells are in no group. Groups are sorted.
    `check_groups` tells before the work whether a column can make groups.
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
