"""Kaggle: the Second Annual Data Science Bowl (2015), DICOM cines of 1140 patients with LV volumes at ED and ES.

    train/train/1/study/sax_10/*.dcm      a slice; the number has no meaning
                        2ch_21/*.dcm, 4ch_14/*.dcm
    validate/validate/501/study/...       test/test/701/study/...
    train.csv, validate.csv               Id,Systole,Diastole      volumes [ml]
    solution.csv                          Id,Volume ...            of test; Id is 701_Diastole or 701_Systole

Headers name no series, so a folder is one, and are not read before a study is prepared. Slices may differ, be taken
more than once, or miss a frame: `formats/dicom_ragged.py` has the rule. There are no label maps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.cine import CineError
from ..formats.dicom_file import read_header, require_pydicom, text
from ..formats.dicom_ragged import LONGEST_RUN_FILLED
from ..prepare.dataset import Dataset
from ..prepare.sources import Source, Sources
from .published import Published, number, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

PARTS = {"train": "train", "validate": "val", "test": "test"}
TABLES = {"train": "train.csv", "validate": "validate.csv", "test": "solution.csv"}
# prefix of a folder -> its view. All folders of a stack count; of a long axis the first, as in the CineMA reference.
VIEWS = {"sax": "sax", "2ch": "lax_2c", "4ch": "lax_4c"}
VOLUMES = {"Diastole": "lv_edv_ml", "Systole": "lv_esv_ml"}
UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # of PatientAge, in years


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The patients of Kaggle. Raises ValueError where the folder is not that of Kaggle, or pydicom is not installed."""
    require_pydicom()
    root = root_of(config.src, *PARTS, name="Kaggle", expected="train/train/1/study/sax_10/*.dcm")
    found = Published(config.src)
    for folder, part in PARTS.items():
        inner = root / folder / folder
        home = inner if inner.is_dir() else root / folder
        if not home.is_dir():
            continue
        studies = {}
        for patient in found.folders(home, "[0-9]+"):
            study = str(int(patient.name))
            if study in found.sources.studies:
                there = found.sources.split[study]
                found.refuse(patient, f"a second folder of the study {study}, which is in the part {there} already: it "
                                      "is left out", study)  # fmt: skip
            elif first := _add(found, patient, study, part):
                studies[study] = first
        table = root / TABLES[folder]
        volumes = _volumes_of_test(found, table) if folder == "test" else _volumes(found, table)
        for study in studies.keys() & volumes.keys():
            found.set(study, **_values(found, table, study, *volumes[study]))
        found.check_listed(table, volumes, list(studies))
        for study, file in studies.items() if config.part is None else ():  # a shard writes no table
            found.set(study, **_patient(file))
    return found.sources


def _add(found: Published, patient: Path, study: str, part: str) -> Path | None:
    """Enter the views of a patient; returns a file of them, or None where there is none."""
    files: dict[str, list[Path]] = {}
    for folder in found.folders(patient / "study"):
        prefix = re.match(r"(?i)([a-z0-9]+?)(_[0-9]+)?$", folder.name)
        prefix = prefix[1].lower() if prefix else folder.name
        view, images = VIEWS.get(prefix), list(found.files(folder, r"(?i).*\.dcm"))
        if view is None:
            found.sources.series[folder.name, None, "no view of Kaggle"] += 1
        elif not images:
            found.refuse(folder, "holds no .dcm file: its slice is missing", study, view)
        elif view in files and view != "sax":
            found.sources.series[f"{prefix}_*", None, "not the first of its study"] += 1
        else:
            found.sources.series[f"{prefix}_*", view, ""] += 1
            files.setdefault(view, []).extend(images)
    for view, paths in files.items():
        found.add(study, view, Source(tuple(paths), view, format="dicom", ragged=LONGEST_RUN_FILLED), part)
    if "sax" not in files:
        found.refuse(patient, "no study/sax_* folder with .dcm files: the stack is missing", study, "sax")
    return next((paths[0] for paths in files.values()), None)


def _volumes(found: Published, path: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """{study: (place of its line, its cells)} of train.csv or validate.csv."""
    return found.rows(path, "Id", *VOLUMES)


def _volumes_of_test(found: Published, path: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """The same of solution.csv, which has two lines a study; the place is that of the first."""
    volumes: dict[str, tuple[str, dict[str, str]]] = {}
    for name, (place, row) in found.rows(path, "Id", "Volume").items():
        study, _, phase = name.partition("_")
        if study.isdecimal() and phase in VOLUMES:
            volumes.setdefault(study, (place, {}))[1][phase] = row["Volume"]
        else:
            line = place.rpartition(", ")[2]
            found.refuse(path, f"{line}: Id is {name!r}, expected one such as 701_Diastole or 701_Systole; the line is "
                               "left out")  # fmt: skip
    return volumes


def _values(found: Published, path: Path, study: str, place: str, cells: dict[str, str]) -> dict[str, float]:
    """Volumes and ejection fraction by column, as far as they are known."""
    line, values = place.rpartition(", ")[2], {}
    for name, column in VOLUMES.items():
        volume = number(cells.get(name, ""))
        if volume is not None and volume > 0:
            values[column] = volume
        else:
            given = repr(cells[name]) if name in cells else "missing"
            found.refuse(path, f"{line}: {name} of the study {study} is {given}, expected a volume in ml; it stays "
                               "unknown", study)  # fmt: skip
    if len(values) == len(VOLUMES):
        edv, esv = (values[column] for column in VOLUMES.values())
        if esv > edv:
            found.refuse(path, f"{line}: of the study {study} Systole {esv:g} is larger than Diastole {edv:g}: its "
                               "values stay unknown", study)  # fmt: skip
            return {}
        values["lv_ef"] = 100 * (edv - esv) / edv
    return values


def _patient(file: Path) -> dict[str, str | float | None]:
    """Age [years] and sex, as far as the header of a file says."""
    try:
        header = read_header(file)
    except CineError:
        return {}  # reported when its view is read
    age = re.fullmatch("([0-9]{1,3})([YMWD])", text(header, "PatientAge"))
    return {"age": int(age[1]) * UNITS[age[2]] if age else None, "sex": text(header, "PatientSex")}


KAGGLE = Dataset(find)
