"""M&Ms-2: ED and ES of the short-axis stack and the four-chamber view of 360 patients (Martin-Isla et al., 2023).

    MnM2/dataset_information.csv
         dataset/001/001_SA_ED.nii.gz  001_SA_ED_gt.nii.gz  001_SA_ES.nii.gz  001_SA_ES_gt.nii.gz
                     001_LA_ED.nii.gz  001_LA_ED_gt.nii.gz  001_LA_ES.nii.gz  001_LA_ES_gt.nii.gz
                     001_SA_CINE.nii.gz  001_LA_CINE.nii.gz      not read: nothing tells which frames are ED and ES

Each view becomes a cine of two frames, ED and ES. Labels of the files are 1 LV, 2 MYO, 3 RV. The split goes by the
number of the patient: train to 160, val to 200, test to 360.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..prepare.dataset import Dataset
from ..prepare.sources import Source, Sources, phases_of_names
from .published import Published, image, root_of, whole

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

VIEWS = {"sax": "SA", "lax_4c": "LA"}
FRAMES = ("ED", "ES")
TABLE = "dataset_information.csv"
VALUES = {"pathology": "DISEASE", "vendor": "VENDOR", "scanner": "SCANNER", "field": "FIELD"}
LAST = {"train": 160, "val": 200}  # number of the last patient of a part


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The patients of M&Ms-2. Raises ValueError where the folder is not that of M&Ms-2."""
    root = root_of(config.src, "dataset", name="M&Ms-2", expected="MnM2/dataset/001/001_SA_ED.nii.gz")
    found = Published(config.src)
    table = root / TABLE
    rows = found.rows(table, "SUBJECT_CODE", *VALUES.values(), study_of=lambda code: code and whole(code).zfill(3))
    for patient in found.folders(root / "dataset"):
        if not patient.name.isdecimal():
            found.refuse(patient, "is not the folder of a patient: expected a number such as 001")
            continue
        part = next((part for part, last in LAST.items() if int(patient.name) <= last), "test")
        for view, spelling in VIEWS.items():
            _add(found, patient, view, spelling, part)
        if patient.name in rows and patient.name in found.sources.studies:
            row = rows[patient.name][1]
            found.set(patient.name, **{name: row[column] for name, column in VALUES.items()})
    found.check_listed(table, rows)
    return found.sources


def _add(found: Published, folder: Path, view: str, spelling: str, part: str) -> None:
    study = folder.name
    files = [image(folder, f"{study}_{spelling}_{frame}") for frame in FRAMES]
    for path in (path for path in files if not path.exists()):
        found.refuse(path, "is missing: the view is prepared without this frame", study, view)
    frames = tuple(frame for frame, path in zip(FRAMES, files) if path.exists())
    if not frames:
        return
    labels = {frame: image(folder, f"{study}_{spelling}_{frame}_gt") for frame in frames}
    for path in (path for path in labels.values() if not path.exists()):
        found.refuse(path, "is missing: its frame is prepared without a label map (labels)", study, view)
    labels = {frame: path for frame, path in labels.items() if path.exists()}
    source = Source(
        tuple(path for path in files if path.exists()), spelling, frames, labels=tuple(labels.values()),
        label_frames=tuple(labels), phases=phases_of_names(frames),
    )  # fmt: skip
    found.add(study, view, source, part)


MNMS2 = Dataset(find, label_map={1: 3, 2: 2, 3: 1})
