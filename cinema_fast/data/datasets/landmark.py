"""Landmark: frames of two- and four-chamber views with the mitral annulus and the apex (CineMA, cinema/data/landmark).

    raw/lax_2c.csv                         without names of columns: cohort, uid, view, number of the landmark, x, y
        lax_2c/images/0001__00.png         frame 00 of the patient 0001
               masks/0001__00.png          0, and 85, 170 and 255 for the landmarks 1, 2 and 3
        lax_4c.csv, lax_4c/...

A study is a patient, its frames of a view a cine in the order of their numbers (`formats/landmark_png.py` reads it).
Positions are those of the masks; they go to STORE/landmarks.csv. The split is that of the reference: patients in order
of their first line, shuffled with the seed 0, the last fifth for testing, the fifth before it for validation. It draws
each view by itself, so that a patient may be trained on in one view and tested in the other; here the part is that of
lax_4c, and that of lax_2c for patients without lax_4c.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...common.progress import progress_bar
from ..formats.cine import CineError
from ..formats.landmark_png import (
    LANDMARKS,
    is_mirrored,
    mask_of,
    read_landmarks_of_mask,
    read_png_cine,
    scaled,
    turns_clockwise,
)
from ..prepare.dataset import Dataset
from ..prepare.source_format import SourceFormat
from ..prepare.sources import Source, Sources
from .published import Published, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

VIEWS = ("lax_4c", "lax_2c")  # in the order in which they decide on the split
COLUMNS = ("cohort", "uid", "view", "number", "x", "y")
UID = re.compile("([^_/.][^_/]*)_(?:[^/]*_)?([0-9]{1,9})")  # patient, frame; no path
SHARE = 0.2  # of the patients, for validation and for testing


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The patients of Landmark. Raises ValueError where the folder is not that of Landmark."""
    root = root_of(config.src, *(f"{view}.csv" for view in VIEWS), name="Landmark",
                   expected="raw/lax_2c.csv and raw/lax_2c/images/0001__00.png")  # fmt: skip
    found = Published(config.src)
    parts: dict[str, str] = {}
    for view in VIEWS:
        if not (root / f"{view}.csv").exists() and not (root / view).exists():
            continue
        patients: dict[str, dict[int, Path]] = {}  # {patient: its frames}
        cohort_of = _read_table(found, root, view)
        for uid in cohort_of:
            path = root / view / "images" / f"{uid}.png"
            patient, number = UID.fullmatch(uid).groups()
            frames = patients.setdefault(patient, {})
            if not path.exists():
                found.refuse(path, f"is missing: {view}.csv lists it", patient, view)
            elif int(number) in frames:
                found.refuse(path, f"is a second frame {int(number)}: {frames[int(number)].name}", patient, view)
            else:
                frames[int(number)] = path
        for path in found.files(root / view / "images", r".+\.png"):
            if path.stem not in cohort_of:
                patient = path.stem.split("_")[0]
                found.refuse(path, f"{view}.csv has no line of it: the frame is left out", patient, view)
        parts = split_of(list(patients)) | parts
        with progress_bar(f"reading masks of {view}", len(patients), show=progress) as advance:
            for patient, frames in patients.items():
                _add(found, patient, view, [frames[number] for number in sorted(frames)], parts[patient], cohort_of)
                advance()
    return found.sources


def _read_table(found: Published, root: Path, view: str) -> dict[str, str]:
    """{uid: cohort} in the order of the lines."""
    path, cohort_of, seen = root / f"{view}.csv", {}, {}
    for line, row in _lines(found, path):
        uid = row["uid"]
        if not UID.fullmatch(uid):
            found.refuse(path, f"line {line}: the uid {uid!r}, expected PATIENT__FRAME, such as 0001__00")
        elif (uid, row["number"]) in seen:
            where = seen[uid, row["number"]]
            found.refuse(path, f"line {line}: landmark {row['number']} of {uid} is on line {where} already",
                         uid.split("_")[0], view)  # fmt: skip
        else:
            seen[uid, row["number"]] = line
            cohort_of.setdefault(uid, row["cohort"])
    return cohort_of


def _lines(found: Published, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table without names of columns; a fault ends it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            for cells in lines:
                if len(cells) not in (0, len(COLUMNS)):
                    raise ValueError(f"line {lines.line_num}: {len(cells)} fields, expected {', '.join(COLUMNS)}")
                if cells:
                    yield lines.line_num, dict(zip(COLUMNS, map(str.strip, cells)))
    except (OSError, ValueError, csv.Error) as err:
        reason = getattr(err, "strerror", None) or str(err)
        found.refuse(path, f"{reason} (frames of this table are left out from there on)")


def _add(
    found: Published, patient: str, view: str, paths: list[Path], part: str, cohort_of: dict[str, str]
) -> None:
    """Enter the frames whose masks can be read, and their landmarks."""
    there: dict[Path, tuple[np.ndarray, tuple[int, int]]] = {}
    for path in paths:
        try:
            there[path] = read_landmarks_of_mask(mask_of(path))
        except CineError as err:
            found.refuse(err.path, f"{err.reason}: the frame is left out", patient, view)
    if not there:
        return
    mirrored = is_mirrored([points for points, _ in there.values()], view)
    for t, (path, (points, (_, height))) in enumerate(there.items()):
        if is_mirrored([points], view) != mirrored and turns_clockwise(points):
            found.refuse(mask_of(path), "its landmarks turn the other way than in the other frames of the cine: "
                                        "correct it (the frame is kept)", patient, view)  # fmt: skip
        for name, (x, y) in zip(LANDMARKS.values(), scaled(points, height, mirrored).tolist()):
            found.sources.landmarks.append((patient, view, t, name, x, y, 0.0))
    source = Source(tuple(there), view, format="png")
    found.add(patient, view, source, part, cohort=cohort_of[next(iter(there)).stem])


def split_of(patients: list[str]) -> dict[str, str]:
    """{patient: train, val or test}, by the rule of the reference for patients in this order."""
    shuffled = list(patients)
    np.random.default_rng(0).shuffle(shuffled)
    n = int(SHARE * len(shuffled))
    train = len(shuffled) - 2 * n
    return {patient: "train" if k < train else "val" if k < train + n else "test" for k, patient in enumerate(shuffled)}


LANDMARK = Dataset(find)
PNG = SourceFormat(read=lambda source, stack: read_png_cine(source.files, source.spelling))
