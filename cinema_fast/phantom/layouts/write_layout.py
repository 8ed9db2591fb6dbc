"""Write synthetic studies as a public data set, so that programs that read it can be tested without its data."""

import csv
import inspect
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ...common.output import new_folder
from ..cohort import TRUTH_COLUMNS, check_cohort, write_studies
from ..study import make_study
from .layout import Case, Layout, Row
from .registry import LAYOUTS


def write_layout(
    dst: str | Path, name: str, n: int, seed: int, *, workers: int = 1, progress: bool = False, **options: Any
) -> list[Case]:
    """Write `n` studies in the layout of a public data set, and return where each is.

    Study i is `make_study((seed, i), disease=..., **options)`, whatever `workers` is; its disease is that of its group
    in the data set, which may decide more, as the vendor; its part (training, testing ...) depends on `n`: see
    `layout.py`. `truth.csv` in DST, beside the
    data set's own files, has a line a study: its name, part, number i, its frames of end-diastole and end-systole
    (from 0), and the numbers and words of the default layout's `truth.csv`.

    Args:
        dst: a folder that is empty or does not exist yet.
        name: one of `LAYOUTS`.
        n: number of studies, at most as many as the data set has.
        seed: of the cohort, a non-negative integer.
        workers: processes.
        progress: show a progress bar on stderr.
        options: keyword arguments of `make_study`, but for those that the data set decides.

    Raises:
        FileExistsError: `dst` is not empty. OutputError: it cannot be written; no part of it is left.
        ValueError, TypeError: an argument out of range, or one that `make_study` does not know.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout ({name!r}; expected one of {', '.join(LAYOUTS)})")
    inspect.signature(make_study).bind(seed, disease=None, sequences=(), atria=False, scan=0, **options)
    check_cohort(n, seed, workers, options)
    dst, layout = Path(dst), resolve_name(LAYOUTS[name])
    cases = layout.cases(n, seed)
    if decided := sorted({option for case in cases for option in layout.options(case)} & options.keys()):
        raise TypeError(f"{', '.join(decided)} cannot be chosen: the layout {name} decides")
    called = {"layout": name, "n": n, "seed": seed, **options}
    with new_folder(dst, "phantom", called, (*layout.written, "truth.csv")):
        dst.mkdir(parents=True, exist_ok=True)
        written = write_studies(partial(_write_case, dst, layout, seed, options), cases, workers, progress)
        if layout.write_tables:
            layout.write_tables(dst, cases, [row for row, _ in written])
        with (dst / "truth.csv").open("w", newline="", encoding="utf-8") as file:
            columns = ["study", "part", "number", "ed_frame", "es_frame", *TRUTH_COLUMNS]
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows({"study": case.study, "part": case.part, "number": case.i, **truth}
                            for case, (_, truth) in zip(cases, written))
    return cases


def _write_case(
    dst: Path, layout: Layout, seed: int, options: dict[str, Any], case: Case
) -> tuple[Row, dict[str, Any]]:
    """Make and write a study: what the data set's tables say of it, and its truth."""
    study = make_study((seed, case.i), disease=layout.diseases.get(case.group), **layout.options(case), **options)
    return layout.write_study(dst, case, study), study.truth()
