"""Cohorts of synthetic studies on disk, as NIfTI with their truth."""

import csv
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..common.output import new_folder
from ..common.pool import run_in_processes
from ..common.progress import progress_bar
from ..common.sequences import SEQUENCES
from ..common.shares import cut
from ..common.tables import LANDMARK_COLUMNS
from .nifti import write_view
from .study import INSERTIONS, LANDMARKS, check_options, make_study

S = TypeVar("S")
R = TypeVar("R")

TRUTH_COLUMNS = (
    "disease", "age", "sex", "bmi", "heart_rate", "ef", "edv_ml", "esv_ml", "rv_ef", "rv_edv_ml", "rv_esv_ml",
    "myocardial_mass_g", "scar_pattern", "scar_percent", "scar_ml", "no_reflow_ml", "oedema_ml",
    "heart_ef", "mass_to_volume", "hypertension", "diabetes", "event", "time_years", "log_hazard", "vendor",
)  # fmt: skip
_HELD_OUT = {"test": 0.2, "val": 0.15}  # shares as by default in fine-tuning


def write_cohort(
    dst: str | Path,
    n: int,
    seed: int,
    *,
    rescan: bool = False,
    workers: int = 1,
    progress: bool = False,
    **options: Any,
) -> list[str]:
    """Write `n` hearts as NIfTI with their truth, and return the ids of their studies, `heart-000000` onwards.

    Study i is `make_study((seed, i), **options)`, whatever `n` and `workers` are. DST gets files
    `{id}_{view}.nii.gz`: of a cine 4D int16 (X, Y, Z, T) with one slice for a long axis, of the other sequences, whose
    views are called lge_sax or t1map_lax_4c, 3D (X, Y, Z); mm and seconds, the scanner's affine. The label maps have
    the same names in `labels/`, uint8. The truth comes last:

    - `truth.json`: per study the disease, covariates, volumes (ml), ejection fractions (percent), myocardial mass (g),
      scar, heart rate, outcome and landmarks (voxels and mm).
    - `truth.csv`: its single numbers and words, a line per study. With `rescan` the column `heart` is the same for both
      studies of a heart.
    - `landmarks.csv`: the landmarks of all long axes and frames (from 0) in patient mm, RAS+, a line each, as
      `tables.read_landmarks` reads them.
    - `split.csv`, with `rescan`: parts of `finetune --split` (train, val, test) in which both studies of a heart are
      together, with the hearts that `finetune` would choose.
    - `rv_insertions.csv`: in the same columns and that of the slice (from 0) the right ventricle's insertion points in
      the short-axis cine.

    Args:
        dst: a folder that is empty or does not exist yet.
        n: number of hearts.
        seed: of the cohort, a non-negative integer.
        rescan: scan every heart a second time (`make_study(..., scan=1)`), as study `heart-000000-rescan`.
        workers: processes.
        progress: show a progress bar on stderr.
        options: keyword arguments of `make_study`, but for `scan`.

    Raises:
        FileExistsError: `dst` is not empty. OutputError: it cannot be written; no part of it is left.
        ValueError, TypeError: an argument out of range, or one that `make_study` does not know.
    """
    dst = Path(dst)
    inspect.signature(make_study).bind(seed, scan=0, **options)
    check_cohort(n, seed, workers, options)
    if not options.get("sequences", ("cine",)):
        raise ValueError(f"sequences must name at least one: choose of {', '.join(SEQUENCES)}")
    if options.get("atria") and "cine" not in options.get("sequences", ("cine",)):
        raise ValueError("atria is for label maps of cines; those of other sequences have atria anyway")
    written = ("heart-*.nii.gz", "labels", "truth.json", "truth.csv", "split.csv", "landmarks.csv", "rv_insertions.csv")
    called = {"n": n, "seed": seed, **options} | ({"rescan": True} if rescan else {})
    with new_folder(dst, "phantom", called, written):
        return _write_cohort(dst, n, seed, rescan, workers, progress, options)


def check_cohort(n: int, seed: int, workers: int, options: dict[str, Any]) -> None:
    """ValueError that names the first argument of a cohort out of range; `options` are those of `make_study`."""
    check_options(**options)
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _write_cohort(
    dst: Path, n: int, seed: int, rescan: bool, workers: int, progress: bool, options: dict[str, Any]
) -> list[str]:
    (dst / "labels").mkdir(parents=True, exist_ok=True)
    scans = [(i, scan) for i in range(n) for scan in range(1 + rescan)]
    truths = write_studies(partial(_write_study, dst, seed, options), scans, workers, progress)
    studies = {_study_id(*scan): truth for scan, truth in zip(scans, truths)}
    document = {"format": "cinema-fast phantom", "seed": seed, "options": options, "studies": studies}
    (dst / "truth.json").write_text(json.dumps(document, indent=1))
    columns = ("study", *["heart"] * rescan, *TRUTH_COLUMNS)
    rows = [truth | {"study": _study_id(*scan), "heart": _study_id(scan[0], 0)} for scan, truth in zip(scans, truths)]
    _write_lines(dst / "truth.csv", columns, ([row[name] for name in columns] for row in rows))
    if rescan:
        parts = cut([_study_id(i, 0) for i in range(n)], *_HELD_OUT.values())
        part_of = {heart: name for name, part in zip((*_HELD_OUT, "train"), parts) for heart in part}
        _write_lines(dst / "split.csv", ("study", "split"), ((row["study"], part_of[row["heart"]]) for row in rows))
    _write_lines(dst / "landmarks.csv", LANDMARK_COLUMNS, (
        (study, view, t, name, *_mm(point))
        for study, truth in studies.items() for view, frames in truth["landmarks_mm"].items()
        for t, points in enumerate(frames) for name, point in zip(LANDMARKS, points)
    ))  # fmt: skip
    _write_lines(dst / "rv_insertions.csv", (*LANDMARK_COLUMNS, "slice"), (
        (study, "sax", t, name, *_mm(point), z)
        for study, truth in studies.items() for t, slices in enumerate(truth["rv_insertions_mm"])
        for z, points in enumerate(slices) for name, point in zip(INSERTIONS, points) if point[0] is not None
    ))  # fmt: skip
    return list(studies)


def _write_lines(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(lines)


def _mm(point: Sequence[float]) -> list[str]:
    return [f"{value:.4f}" for value in point]


def write_studies(write: Callable[[S], R], studies: Sequence[S], workers: int, progress: bool) -> list[R]:
    """Call `write` for each of `studies` (hashable), in `workers` processes; what it returns, in their order."""
    written = {}
    with (progress_bar("making studies", len(studies), show=progress) as advance,
          closing(run_in_processes(write, studies, min(workers, len(studies)))) as results):
        for study, result in results:
            if isinstance(result, Exception):
                raise result
            written[study] = result
            advance()
    return [written[study] for study in studies]


def _study_id(i: int, scan: int) -> str:
    return f"heart-{i:06d}" + ("-rescan" if scan else "")


def _write_study(dst: Path, seed: int, options: dict[str, Any], of: tuple[int, int]) -> dict[str, Any]:
    """Make scan `of` (heart, number of its scan), write its images and labels, and return its entry in truth.json."""
    i, scan = of
    study = make_study((seed, i), scan=scan, **options)
    for view in study.images:
        name = f"{_study_id(i, scan)}_{view}.nii.gz"
        write_view(dst / name, study, view, study.images[view])
        write_view(dst / "labels" / name, study, view, study.labels[view])
    return study.truth()
