"""A kind of scores in an evaluation: how its rows are summarised, and how the report shows them."""

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
    """Facts about a target besides its rows: classes and threshold of a classification, or the unit of a number."""

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
class ScoreKind:
    """A kind of scores: its rows, and how the report summarises and shows them.

    kind: its name in rows.csv. title, about: of its section in the report.
    measure: summarises the rows of one view and name; raises ValueError where they do not fit.
    words: the heading of a table, from the name and the target of its rows.
    derived: computes further sets of rows from those of this kind.
    badness: the number of a row by which the worst rows are listed (higher is worse, nan: not listed). worst: the
    heading of that number; empty: no list. one_scale: whether rows of several names can be ranked together.
    pictures: draws all sets of this kind. case: draws a case of the assessment's `galleries`: (exhibit, "VIEW, WHY of
    N") -> title, pictures, {name: number of its colour, from 0}.
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
