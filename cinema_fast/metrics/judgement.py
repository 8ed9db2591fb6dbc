"""Kinds of scores of an evaluation: how the rows of a kind are summarised, and how the report shows them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .bootstrap import Measure
from .means import Means
from .rows import Row, number

Sets = Mapping[tuple[str, str, str], Sequence[Row]]  # {(kind, view, name): rows}


@dataclass(frozen=True)
class Target:
    """What is known of a target beside its rows: of a classification its classes and threshold, else its unit."""

    classes: tuple[str, ...] = ()
    threshold: float = 0.5
    unit: str = ""


class Picture(NamedTuple):
    """data: a PNG or GIF file. alt: what it shows."""

    data: bytes
    alt: str


def means(rows: Sequence[Row], target: Target) -> Measure:
    """The mean of every number that rows have."""
    names = dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], str))
    return Means({name: [number(row, name) for row in rows] for name in names})


def with_unit(name: str, target: Target) -> str:
    """The name of a target in words."""
    return f"{name} ({target.unit})" if target.unit else name


@dataclass(frozen=True)
class Judgement:
    """A kind of scores: its rows, and how the report summarises and shows them.

    kind: its name in rows.csv. title, about: of its section in the report.
    measure: summarises the rows of one view and name; raises ValueError where they do not fit.
    words: the heading of a table, from the name and the target of its rows.
    derived: further sets of rows that are computed from those of the kind.
    worst, badness: heading of the number by which the worst rows are listed, and that number of a row (higher is worse,
    nan: not listed). No list where `worst` is empty. one_scale: whether rows of several names can be put in one
    order by it.
    pictures: of all sets of the kind. case: (exhibit, "VIEW, WHY of N") -> title, pictures, and {name: number of its
    colour, from 0}, of a case that the assessment's `galleries` keep.
    """

    kind: str
    title: str
    about: str = ""
    measure: Callable[[Sequence[Row], Target], Measure] = means
    words: Callable[[str, Target], str] = with_unit
    derived: Callable[[Sets], Sets] = lambda sets: {}
    worst: str = ""
    badness: Callable[[Row], float] = lambda row: math.nan
    one_scale: bool = True
    pictures: Callable[[Sets, Mapping[str, Target]], Iterable[Picture]] = lambda sets, targets: ()
    case: Callable[[object, str], tuple[str, list[Picture], Mapping[str, int]]] | None = None
