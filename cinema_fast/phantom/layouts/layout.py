"""What a layout is: how a public data set names its folders, files, labels and tables.

Synthetic studies are shared out over the parts of a data set (training, testing ...) in proportion to its own numbers,
with at least one study a part as long as there are any, in the order of `Layout.parts`. Within a part the groups
(diagnoses) take turns; a part of k studies has the first k / 2 of its groups, and two at least, so that even small
cohorts have several patients a group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..study import PhantomStudy

_OF_TABLES = 100  # a stream of a study's seed that `make_study` does not use
Row = dict[str, Any]  # a line of a table, or what the data set's tables say of a study


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a data set: its name (its folder), its number of studies as published, and the diagnoses in it.

    `in_blocks`: the groups follow each other instead of taking turns, from two studies a group on.
    """

    name: str
    size: int
    groups: tuple[str, ...] = ("",)
    in_blocks: bool = False

    def group_of(self, n: int) -> list[str]:
        """The group of each of `n` studies of this part."""
        found = list(islice(cycle(self.groups[: max(2, n // 2)]), n))
        return sorted(found, key=self.groups.index) if self.in_blocks and n >= 2 * len(self.groups) else found


@dataclass(frozen=True, slots=True)
class Case:
    """Study `i` of a cohort in a data set: the `place`-th (from 0) of the `of` studies of its part."""

    i: int
    part: str
    place: int
    of: int
    group: str
    study: str  # its name in the data set

    def in_turn(self, choices: Sequence[str]) -> str:
        """One of `choices`, which follow each other in blocks of about the same size over the part."""
        return choices[self.place * len(choices) // self.of]


@dataclass(frozen=True, slots=True)
class Layout:
    """How studies are written as a data set.

    Attributes:
        parts: in the order in which the first studies fill them.
        diseases: group -> disease of `make_study`; a group that is not here gets a disease drawn by its seed.
        options: case -> the other arguments of `make_study` that the data set decides, as the vendor or the sequences.
        study_name: (part, place in it from 0, group, number in the cohort, seed) -> name of the study in the data set.
        write_study: (OUT, case, study) writes its files below OUT and returns what the tables say of it.
        written: the names that it writes in OUT.
        write_tables: (OUT, cases, what write_study returned for each) writes what concerns several studies, if any.
    """

    parts: tuple[Part, ...]
    diseases: Mapping[str, str]
    study_name: Callable[[str, int, str, int, int], str]
    write_study: Callable[[Path, Case, PhantomStudy], Row]
    written: tuple[str, ...]
    write_tables: Callable[[Path, list[Case], list[Row]], None] | None = None
    options: Callable[[Case], dict[str, Any]] = lambda case: {}

    def cases(self, n: int, seed: int) -> list[Case]:
        """The `n` studies of a cohort. Raises ValueError where the data set is smaller."""
        cases: list[Case] = []
        for part, count in zip(self.parts, _share_out(n, [part.size for part in self.parts])):
            for place, group in enumerate(part.group_of(count)):
                i = len(cases)
                name = self.study_name(part.name, place, group, i, seed)
                cases.append(Case(i, part.name, place, count, group, name))
        return cases


def _share_out(n: int, sizes: list[int]) -> list[int]:
    """`n` things over parts of `sizes`: the first one a part, the others where a part is furthest below its share."""
    if n > sum(sizes):
        raise ValueError(f"n must be at most {sum(sizes)}, the number of studies in the layout's data set, got {n}")
    counts = [int(k < n) for k in range(len(sizes))]
    for _ in range(n - sum(counts)):
        behind = [n * size / sum(sizes) - count for size, count in zip(sizes, counts)]
        counts[behind.index(max(behind))] += 1
    return counts


def relabelled(
    labels: NDArray[np.uint8], *, rv: int, myo: int, lv: int, scar: int = 0, no_reflow: int = 0, oedema: int = 0
) -> NDArray[np.integer]:
    """The phantom's label map with a data set's values for the right ventricle, the myocardium, the left ventricle and
    injured muscle; the atria become background. uint8, or int16 where a value is above 255."""
    values = np.array([0, rv, myo, lv, scar, no_reflow, oedema, 0, 0])
    return values.astype(np.uint8 if values.max() < 256 else np.int16)[labels]


def draw_size(study: PhantomStudy, rng: np.random.Generator) -> tuple[float, float]:
    """Height (cm) and weight (kg) that give the BMI of the study's patient, to 0.1."""
    height = round(float(np.clip(rng.normal(176 if study.patient.sex == "male" else 163, 7), 145, 205)), 1)
    return height, round(study.patient.bmi * (height / 100) ** 2, 1)


def table_numbers(study: PhantomStudy) -> np.random.Generator:
    """Random numbers of a study for what the phantom lacks and a table has, independent of those of its images."""
    return np.random.default_rng(np.random.SeedSequence(study.seed, spawn_key=(_OF_TABLES,)))
