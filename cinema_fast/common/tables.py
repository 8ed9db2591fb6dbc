"""CSV tables about the studies of a store: one line per study, or one per landmark."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from .naming import named

LANDMARK_COLUMNS = ("study", "view", "frame", "landmark", "x_mm", "y_mm", "z_mm")
T = TypeVar("T")
PARTS = ("train", "val", "test")  # of a data split
MOST = float(np.finfo(np.float32).max)  # models compute in float32


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a line per study. columns: names, without the column of studies. rows: study -> column -> text,
    without surrounding spaces; "" where a cell is empty. lines: study -> number of its line in the file."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]
    lines: dict[str, int]

    def values(self, column: str) -> dict[str, str]:
        """study -> text of a column, where it is not empty. Raises ValueError where there is no such column."""
        if column not in self.columns:
            raise ValueError(_no_column(self.path, column, self.columns))
        return {study: row[column] for study, row in self.rows.items() if row[column]}

    def numeric(self, column: str) -> dict[str, float]:
        """study -> finite number of a column, where there is one.

        Raises:
            ValueError: no such column, a value that is not a number (nan and inf are refused; leave unknown values
                empty), or one beyond MOST.
        """
        return {study: _number(self.path, self.lines[study], column, text)
                for study, text in self.values(column).items()}

    def check_classes(self, column: str, studies: Collection[str]) -> None:
        """Raise ValueError where two classes of a column, over `studies`, are one class: they differ only in case or
        spaces, or are the same number."""
        studies, first = set(studies), {}
        for study, text in self.values(column).items():
            if study not in studies:
                continue
            one = first.setdefault(float(text) if is_number(text) else "".join(text.casefold().split()), study)
            if (other := self.rows[one][column]) != text:
                raise ValueError(
                    f"{self.path}: {column} is {other!r} on line {self.lines[one]} and {text!r} on line "
                    f"{self.lines[study]}, which would be two classes: spell it in one way"
                )


def is_number(text: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return "_" not in text and math.isfinite(float(text))  # Python would read 1_000
    except ValueError:
        return False


def means_number(text: str) -> bool:
    """Whether a cell is a number, or would be one without decimal comma, thousands separators or percent sign."""
    return is_number(text) or _as_number(text) is not None


def _as_number(text: str) -> str | None:
    bare = text.removesuffix("%").strip()
    found = bare.replace(",", "") if "." in bare or bare.count(",") > 1 else bare.replace(",", ".")
    return found if found != text and is_number(found) else None


def check_matches(
    path: Path, listed: Collection[str], studies: Collection[str], where: Path | str, whole: Collection[str] = ()
) -> None:
    """Report on stderr where a table does not list exactly the `studies` of `where`: how many it lists, how many are
    missing, how many others it lists, and some names. whole: studies that it may list as well, such as a store's
    others. Raises ValueError where it lists none of the studies.
    """
    there, known = set(listed), {*studies, *whole}
    lacking, other = [one for one in studies if one not in there], [one for one in listed if one not in known]
    if len(lacking) == len(studies):
        raise ValueError(f"{path}: none of the {len(studies)} studies of {where} is in it: they are {_named(lacking)}; "
                         f"it has {_named(list(listed))}")
    parts = [f"it lists {len(studies) - len(lacking)} of the {len(studies)} studies of {where}"]
    parts += [f"missing from the table ({len(lacking)}): {_named(lacking)}"] if lacking else []
    parts += [f"only in the table ({len(other)} of {len(listed)}): {_named(other)}"] if other else []
    if len(parts) > 1:
        print(f"{path}: {'; '.join(parts)}", file=sys.stderr)


def _named(studies: Sequence[str]) -> str:
    return named([repr(study) for study in studies])


def read_table(path: Path | str, column: str = "study") -> Table:
    """Read a CSV table with a line per study, and a first line of names.

    UTF-8 with or without a byte order mark, any line ends, fields in quotes where they hold a comma; empty lines are
    skipped. The caller checks whether the studies are those of a store.

    Args:
        column: name of the column of studies.

    Raises:
        ValueError: no such column, a column name that occurs twice, a line with too many or too few fields, a study
            that is named twice or not at all, no study, text that is not UTF-8, a delimiter other than the comma.
        OSError: the file cannot be read.
    """
    path = Path(path)
    columns, lines = read_lines(path, (column,))
    rows: dict[str, dict[str, str]] = {}
    numbers: dict[str, int] = {}
    for number, row in lines:
        study = row.pop(column)
        if not study:
            raise ValueError(f"{path}, line {number}: no study name in the column {column!r}")
        if study in rows:
            raise ValueError(f"{path}, line {number}: the study {study!r} is on line {numbers[study]} already; "
                             f"a table has one line per study")
        rows[study], numbers[study] = row, number
    if not rows:
        raise ValueError(f"{path}: no studies in it, only the names of columns")
    return Table(path, tuple(name for name in columns if name != column), rows, numbers)


def read_named(option: str, path: Path, read: Callable[[Path], T] = read_table) -> T:
    """`read(path)`, of a file given by an option. Raises ValueError naming the option where it cannot be read."""
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror or error}") from None


def read_split(path: Path | str) -> dict[str, str]:
    """Read a data split: study -> its part, one of PARTS. A CSV table with the columns study and split.

    Raises:
        ValueError: as `read_table`; another part. OSError: the file cannot be read.
    """
    listed = read_table(path).values("split")
    for study, part in listed.items():
        if part not in PARTS:
            raise ValueError(f"{path}: study {study} has the split {part!r}; expected one of {', '.join(PARTS)}")
    return listed


def read_landmarks(path: Path | str) -> dict[str, dict[str, dict[int, dict[str, np.ndarray]]]]:
    """Read landmarks in scanner mm (RAS+): study -> view -> frame -> landmark -> float64 (3,).

    A CSV table with the columns `LANDMARK_COLUMNS` and a line per landmark, as `cinema-fast phantom` writes it; frames
    are counted from 0, as in the store. `landmark_voxels` converts them to positions in stored images.

    Raises:
        ValueError: as `read_table`; a coordinate or a frame that is not a number; a landmark that is given twice.
        OSError: the file cannot be read.
    """
    path = Path(path)
    found: dict[str, dict[str, dict[int, dict[str, np.ndarray]]]] = {}
    for number, row in read_lines(path, LANDMARK_COLUMNS)[1]:
        if empty := [name for name in ("study", "view", "landmark") if not row[name]]:
            raise ValueError(f"{path}, line {number}: no {empty[0]}")
        if not re.fullmatch("[0-9]{1,9}", row["frame"]):
            raise ValueError(f"{path}, line {number}: frame is {row['frame']!r}, not a whole number from 0")
        points = found.setdefault(row["study"], {}).setdefault(row["view"], {}).setdefault(int(row["frame"]), {})
        if row["landmark"] in points:
            raise ValueError(f"{path}, line {number}: {row['landmark']!r} of frame {row['frame']} of {row['study']!r}, "
                             f"{row['view']!r} is there already")
        points[row["landmark"]] = np.array([_number(path, number, name, row[name]) for name in LANDMARK_COLUMNS[4:]])
    if not found:
        raise ValueError(f"{path}: no landmarks in it, only the names of columns")
    return found


def read_lines(path: Path, wanted: tuple[str, ...]) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, str]]]]:
    """The column names, which must include `wanted`; and (line number, name -> text) for each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: byte {err.start} is not UTF-8; save the table as CSV in UTF-8") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(name.strip() for name in next(lines, []))
    except csv.Error as err:
        raise ValueError(f"{path}, line {lines.line_num}: {err}") from None
    for name in wanted:
        if name not in columns:
            every = f"; expected the columns {', '.join(wanted)}" if len(wanted) > 1 else ""
            raise ValueError(_no_column(path, name, columns) + every)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"{path}: two columns are named {twice[0]!r}")
    return columns, _rows(path, columns, lines)


def _rows(path: Path, columns: tuple[str, ...], lines) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        for fields in lines:
            if len(fields) not in (0, len(columns)):
                raise ValueError(f"{path}, line {lines.line_num}: {len(fields)} fields, expected {len(columns)} "
                                 f"({', '.join(columns)}); a field that holds a comma needs quotes")
            if any(field.strip() for field in fields):
                yield lines.line_num, dict(zip(columns, map(str.strip, fields)))
    except csv.Error as err:
        raise ValueError(f"{path}, line {lines.line_num}: {err}") from None


def _no_column(path: Path, name: str, columns: tuple[str, ...]) -> str:
    for delimiter, spoken in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and delimiter in columns[0]:
            return f"{path}: fields are separated by {spoken}; save the table with commas"
    spelt = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), spelt, n=1)
    hint = f"; did you mean {spelt[near[0]]!r}?" if near else ""
    return f"{path}: no column {name!r}{hint} (it has {', '.join(map(repr, columns)) or 'nothing'})"


def _number(path: Path, line: int, column: str, text: str) -> float:
    if not is_number(text):
        plain = _as_number(text)
        if re.fullmatch(r"-?\d{1,3},\d{3}", text):  # a decimal comma or a thousands separator
            plain = f"{plain} or {text.replace(',', '')}"
        hint = f": write {plain}, with a decimal point and no other signs" if plain else ""
        raise ValueError(f"{path}, line {line}: {column} is {text!r}, not a number{hint}")
    value = float(text)
    if abs(value) > MOST:
        raise ValueError(f"{path}, line {line}: {column} is {text!r}, beyond {MOST:.2g}, the most that can be computed "
                         "with: correct it")
    return value
