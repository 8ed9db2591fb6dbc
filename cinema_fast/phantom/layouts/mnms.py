"""M&Ms: short-axis cines of four vendors, ED and ES drawn (Campello et al., IEEE TMI 2021).

A study is in the style of its vendor; Canon's is the standard style, in which no other vendor's studies are. Of the
pathologies the phantom has DCM, HCM, NOR, ARV and IHD; IHD is in validation and testing only, as published.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ..nifti import write_view
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, draw_size, relabelled, table_numbers

_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
_DISEASES = {
    "DCM": "dilated", "HCM": "hypertrophic", "NOR": "normal", "ARV": "rv_abnormal", "IHD": "infarct",
}  # fmt: skip
_LABELED, _UNLABELED = "Training/Labeled", "Training/Unlabeled"
_TRAINED = tuple(_DISEASES)[:4]
_VENDORS = {_LABELED: "AB", "Validation": "ABCD", "Testing": "DCBA", _UNLABELED: "C"}
_VENDOR_NAMES = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
_STYLES = {"A": "siemens", "B": "philips", "C": "ge", "D": None}
_CENTRES = {"A": (1, 6), "B": (2, 3), "C": (4,), "D": (5,)}
_LETTERS, _DIGITS = 26, 10
_CODES = (_LETTERS * _DIGITS) ** 3
_STEP = 10_862_567  # has no divisor in common with _CODES, so that the codes of a cohort differ


def _code(part: str, place: int, group: str, i: int, seed: int) -> str:
    """Three times a letter and a digit, as A0S9V9."""
    number, code = (np.random.default_rng(seed).integers(_CODES).item() + i * _STEP) % _CODES, ""
    for _ in range(3):
        number, digit = divmod(number, _DIGITS)
        number, letter = divmod(number, _LETTERS)
        code += f"{chr(ord('A') + letter)}{digit}"
    return code


def _vendor(case: Case) -> str:
    return case.in_turn(_VENDORS[case.part])


def _options(case: Case) -> dict[str, Any]:
    return {"vendor": _STYLES[_vendor(case)]}


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    folder = out / "OpenDataset" / case.part / case.study
    folder.mkdir(parents=True)
    labels = np.zeros_like(study.labels["sax"])
    drawn = [study.ed_frame, study.es_frame]
    if case.part != _UNLABELED:
        labels[..., drawn] = relabelled(study.labels["sax"][..., drawn], rv=3, myo=2, lv=1)
    write_view(folder / f"{case.study}_sa.nii.gz", study, "sax", study.images["sax"])
    write_view(folder / f"{case.study}_sa_gt.nii.gz", study, "sax", labels)
    vendor = _vendor(case)
    height, weight = draw_size(study, table_numbers(study)) if case.i % 4 != 1 else ("", "")
    return {
        "External code": case.study, "VendorName": _VENDOR_NAMES[vendor], "Vendor": vendor,
        "Centre": _CENTRES[vendor][case.place % len(_CENTRES[vendor])], "ED": study.ed_frame, "ES": study.es_frame,
        "Age": round(study.patient.age), "Pathology": case.group, "Sex": study.patient.sex[0].upper(),
        "Height": height, "Weight": weight,
    }  # fmt: skip


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    with (out / "OpenDataset" / _TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["", *rows[0]])
        table.writeheader()
        table.writerows({"": i, **row} for i, row in enumerate(rows))


MNMS = Layout(
    parts=(
        Part(_LABELED, 150, _TRAINED), Part("Validation", 34, tuple(_DISEASES)), Part("Testing", 136, tuple(_DISEASES)),
        Part(_UNLABELED, 25, _TRAINED),
    ),
    diseases=_DISEASES,
    study_name=_code,
    write_study=_write_study,
    written=("OpenDataset",),
    write_tables=_write_tables,
    options=_options,
)  # fmt: skip
