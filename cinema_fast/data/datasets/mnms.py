"""M&Ms: cine short-axis stacks of 345 patients from six centres and four vendors (Campello et al., IEEE TMI 2021).

    OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv
                Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz       the cine
                                        A0S9V9_sa_gt.nii.gz    label maps of all frames, drawn at ED and ES alone
                Training/Unlabeled/ID/  Validation/ID/  Testing/ID/

Earlier releases have a table of another name, such as 201014_M&Ms_Dataset_Information_-_opendataset.csv; the last one
by name is read. Labels of the files are 1 LV, 2 MYO, 3 RV. The split is that of the folders; the unlabelled studies are
training studies without label maps (their _gt files are empty). The table gives ED and ES as frames from 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..prepare.dataset import Dataset
from ..prepare.sources import Phases, Source, Sources
from .published import Published, bmi, image, root_of, whole

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

PARTS = {"Training/Labeled": "train", "Training/Unlabeled": "train", "Validation": "val", "Testing": "test"}
UNLABELLED = "Training/Unlabeled"
TABLES = r"(?i)[0-9]*_M&Ms_Dataset_information.*opendataset\.csv"
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
VALUES = {  # column of table.csv: column of TABLE
    "pathology": "Pathology", "vendor": "Vendor", "vendor_name": "VendorName", "centre": "Centre", "sex": "Sex",
    "age": "Age", "height": "Height", "weight": "Weight",
}  # fmt: skip
NUMBERS = ("age", "height", "weight")


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The studies of M&Ms. Raises ValueError where the folder is not that of M&Ms."""
    root = root_of(config.src, "Training", "Validation", "Testing", name="M&Ms",
                   expected="OpenDataset/Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz")  # fmt: skip
    found = Published(config.src)
    table = [root / TABLE, *found.files(root, TABLES)][-1]
    rows = found.rows(table, "External code", "ED", "ES")
    there = next(iter(rows.values()), (table, dict.fromkeys(VALUES.values())))[1]
    if absent := [column for column in VALUES.values() if column not in there]:
        found.refuse(table, f"no column {', '.join(absent)}: these values stay unknown")
    for folder, part in PARTS.items():
        for study in found.folders(root / folder):
            _add(found, study, part, rows.get(study.name), table, labelled=folder != UNLABELLED)
    found.check_listed(table, rows)
    return found.sources


def _add(
    found: Published, folder: Path, part: str, line: tuple[str, dict[str, str]] | None, table: Path, *, labelled: bool
) -> None:
    study = folder.name
    cine, labels = image(folder, f"{study}_sa"), image(folder, f"{study}_sa_gt")
    if not cine.exists():
        found.refuse(cine, "is missing: it is the cine of the study", study, "sax")
        return
    if labelled and not labels.exists():
        found.refuse(labels, "is missing: the study is prepared without label maps (labels)", study, "sax")
    values, phases = {}, None
    if line:
        where, row = line
        place = where.rpartition(", ")[2]
        values = {name: row.get(column, "") for name, column in VALUES.items()}
        values |= {name: found.measured(table, place, study, name, values[name]) for name in NUMBERS}
        values["bmi"] = bmi(values["height"], values["weight"])
        ends = [whole(row[key]) for key in ("ED", "ES")]
        if all(text.isdecimal() for text in ends):
            phases = Phases(*map(int, ends), where)
        elif any(ends):
            found.refuse(table, f"{place}: ED {ends[0]!r}, ES {ends[1]!r} of {study}, expected frames from 0: they are "
                                "looked for in the label maps", study)  # fmt: skip
    drawn = (labels,) if labelled and labels.exists() else ()
    found.add(study, "sax", Source((cine,), "sa", labels=drawn, phases=phases), part, **values)


MNMS = Dataset(find, label_map={1: 3, 2: 2, 3: 1})
