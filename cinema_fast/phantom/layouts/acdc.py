"""ACDC: short-axis cines, ED and ES drawn; 100 training and 50 testing patients (Bernard et al., IEEE TMI 2018).

As in its files, the NIfTI headers do not say how the heart lies in the patient: the axes are the scanner's.
"""

from pathlib import Path

import numpy as np

from ..nifti import write_view
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, draw_size, relabelled, table_numbers

ACDC_GROUPS = {
    "DCM": "dilated", "HCM": "hypertrophic", "MINF": "infarct", "NOR": "normal", "RV": "rv_abnormal",
}  # fmt: skip
_FIRST = {"training": 1, "testing": 101}
_CITATION = """These images are a synthetic heart, made by cinema-fast in the folder layout of ACDC.
They are no data of ACDC: do not cite ACDC for them.
"""


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return f"patient{_FIRST[part] + place:03d}"


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    folder = out / "database" / case.part / case.study
    folder.mkdir(parents=True)
    affine = np.diag([*study.spacing_mm["sax"], 1.0])
    labels = relabelled(study.labels["sax"], rv=1, myo=2, lv=3)
    write_view(folder / f"{case.study}_4d.nii.gz", study, "sax", study.images["sax"], affine)
    for t in (study.ed_frame, study.es_frame):
        name = f"{case.study}_frame{t + 1:02d}"
        write_view(folder / f"{name}.nii.gz", study, "sax", study.images["sax"][..., t], affine)
        write_view(folder / f"{name}_gt.nii.gz", study, "sax", labels[..., t], affine)
    height, weight = draw_size(study, table_numbers(study))
    info = {
        "ED": study.ed_frame + 1, "ES": study.es_frame + 1, "Group": case.group, "Height": height,
        "NbFrame": study.n_frames, "Weight": weight,
    }  # fmt: skip
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()), encoding="utf-8")
    (folder / "MANDATORY_CITATION.md").write_text(_CITATION, encoding="utf-8")
    return {}


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    (out / "database" / "MANDATORY_CITATION.md").write_text(_CITATION, encoding="utf-8")


ACDC = Layout(
    parts=(Part("training", 100, tuple(ACDC_GROUPS), in_blocks=True), Part("testing", 50, tuple(ACDC_GROUPS))),
    diseases=ACDC_GROUPS,
    study_name=_name,
    write_study=_write_study,
    written=("database",),
    write_tables=_write_tables,
)
