"""M&Ms-2: short-axis and four-chamber cines, ED and ES drawn (Martin-Isla et al., IEEE JBHI 2023).

A study is in the style of its vendor. Of the pathologies the phantom has HCM, LV, NOR and RV (dilated left or right
ventricle); RV is in validation and testing only, as published.
"""

import csv
from pathlib import Path
from typing import Any

from ..nifti import write_view
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, relabelled, table_numbers

_DISEASES = {"LV": "dilated", "HCM": "hypertrophic", "NOR": "normal", "RV": "rv_abnormal"}
_FIRST = {"training": 1, "validation": 161, "testing": 201}
_VIEWS = {"SA": "sax", "LA": "lax_4c"}
_SCANNERS = {"SIEMENS": "Avanto", "Philips Medical Systems": "Achieva", "GE MEDICAL SYSTEMS": "SIGNA EXCITE"}
_STYLES = {"SIEMENS": "siemens", "Philips Medical Systems": "philips", "GE MEDICAL SYSTEMS": "ge"}


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return f"{_FIRST[part] + place:03d}"


def _vendor(case: Case) -> str:
    return case.in_turn(tuple(_SCANNERS))


def _options(case: Case) -> dict[str, Any]:
    return {"vendor": _STYLES[_vendor(case)]}


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    folder = out / "MnM2" / "dataset" / case.study
    folder.mkdir(parents=True)
    for short, view in _VIEWS.items():
        name = f"{case.study}_{short}"
        write_view(folder / f"{name}_CINE.nii.gz", study, view, study.images[view])
        labels = relabelled(study.labels[view], rv=3, myo=2, lv=1)
        for frame, t in (("ED", study.ed_frame), ("ES", study.es_frame)):
            write_view(folder / f"{name}_{frame}.nii.gz", study, view, study.images[view][..., t])
            write_view(folder / f"{name}_{frame}_gt.nii.gz", study, view, labels[..., t])
    vendor = _vendor(case)
    return {
        "SUBJECT_CODE": int(case.study), "DISEASE": case.group, "VENDOR": vendor, "SCANNER": _SCANNERS[vendor],
        "FIELD": table_numbers(study).choice(["1.5", "3.0"]),
    }  # fmt: skip


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    with (out / "MnM2" / "dataset_information.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


MNMS2 = Layout(
    parts=(
        Part("training", 160, tuple(_DISEASES)[:3]), Part("validation", 40, tuple(_DISEASES)),
        Part("testing", 160, tuple(_DISEASES)),
    ),
    diseases=_DISEASES,
    study_name=_name,
    write_study=_write_study,
    written=("MnM2",),
    write_tables=_write_tables,
    options=_options,
)  # fmt: skip
