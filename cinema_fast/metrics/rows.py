"""rows.csv of an evaluation, from which all tables are computed: one line per study, view, frame and class or target.

Columns: kind, study, view, frame, name, then the values of all kinds; cells of other kinds are empty.

    segmentation  name: mask       dice, iou, hd95_mm, msd_mm, pred_ml, truth_ml, and stability where it is known
    function      name: quantity   pred, truth: at the ED and ES frames that are labelled
    cycle         name: quantity   pred, truth: over the whole predicted cycle, against reference values; in both kinds
                                   pred is inf where the prediction lacks a structure that the truth has
    regression    name: target     pred, truth
    retest        name: target     first, second: two measurements of one heart
    classification name: target    truth, decided: classes; p0, p1, ...: their probabilities
    landmarks     name: landmark   distance_mm, within_5_mm, ...
    long_axis     name: quantity   pred, truth: between the labelled frames of longest and shortest true length

Rows of a task's own kind (see score_kind.py) hold only numbers.

A value of kind function or cycle that is negative or implausible has its code in the column `flags` (see flags.py).
"""

import csv
import math
from collections.abc import Collection, Sequence
from pathlib import Path

KINDS = ("segmentation", "function", "cycle", "regression", "retest", "classification", "landmarks", "long_axis")
KEYS = ("kind", "study", "view", "frame", "name")
WORDS = ("truth", "decided")  # columns that hold words for a classification; for regression, truth is a number
FLAGS = "flags"  # words too, of any kind
Row = dict[str, str | float]


def new_row(kind: str, study: str, name: str, view: str = "", frame: int | str = "", **values: str | float) -> Row:
    return {"kind": kind, "study": study, "view": view, "frame": str(frame), "name": name} | values


def key(row: Row) -> tuple:
    """Identifies a row: two evaluations are paired by it."""
    return tuple(row[name] for name in KEYS)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows.csv. Numbers survive writing and reading unchanged; nan is undefined, inf a failure."""
    columns = list(dict.fromkeys([*KEYS, *(name for row in rows for name in row if name != FLAGS), FLAGS]))
    # names of files may hold bytes that are not text; surrogateescape preserves them
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: value if isinstance(value, str) else repr(float(value)) for name, value in row.items()}
                         for row in rows)  # fmt: skip


def read_rows(path: Path, kinds: Collection[str] = KINDS) -> list[Row]:
    """The rows of a rows.csv, each of one of the kinds. Raises ValueError naming file, line and column of an unreadable
    value."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if missing := [name for name in KEYS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"no column {', '.join(missing)}; expected a file that `evaluate` wrote")
            rows = [_read(line) for line in reader]
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    for number, row in enumerate(rows, start=2):
        if row["kind"] not in kinds:
            raise ValueError(f"{path}, row {number}: kind {row['kind']!r}; expected one of {', '.join(kinds)}")
    return rows


def _read(line: dict) -> Row:
    row: Row = {}
    if None in line or None in line.values():
        raise ValueError("has more or fewer cells than the head; the file was cut short or altered")
    for column, cell in line.items():
        if column in KEYS:
            row[column] = cell
        elif cell != "":
            word = column == FLAGS or (column in WORDS and line["kind"] == "classification")
            try:
                row[column] = cell if word else float(cell)
            except ValueError:
                raise ValueError(f"column {column}: {cell!r} is not a number") from None
    return row


def number(row: Row, name: str) -> float:
    """A value of a row, nan where it is missing."""
    return float(row.get(name, math.nan))
