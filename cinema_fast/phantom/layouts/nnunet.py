"""nnU-Net (version 2): a raw data set of short-axis frames, ED and ES of a study each a case (Isensee et al., Nature
Methods 2021). OUT is its folder, `DatasetXXX_NAME` in nnUNet_raw. The hearts are those of the default layout.
"""

import json
from pathlib import Path

from ..nifti import write_view
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, relabelled

_LABELS = {"RV": 1, "MYO": 2, "LV": 3}


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return f"heart-{i:06d}"


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    folders = ("imagesTr", "labelsTr") if case.part == "training" else ("imagesTs",)
    for folder in folders:
        (out / folder).mkdir(exist_ok=True)
    labels = relabelled(study.labels["sax"], rv=_LABELS["RV"], myo=_LABELS["MYO"], lv=_LABELS["LV"])
    for frame, t in (("ED", study.ed_frame), ("ES", study.es_frame)):
        name = f"{case.study}_{frame}"
        write_view(out / folders[0] / f"{name}_0000.nii.gz", study, "sax", study.images["sax"][..., t])
        if case.part == "training":
            write_view(out / "labelsTr" / f"{name}.nii.gz", study, "sax", labels[..., t])
    return {}


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    document = {
        "name": "synthetic hearts",
        "channel_names": {"0": "cine MRI"},
        "labels": {"background": 0, **_LABELS},
        "numTraining": 2 * sum(case.part == "training" for case in cases),
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(document, indent=4), encoding="utf-8")


NNUNET = Layout(
    parts=(Part("training", 800_000), Part("testing", 200_000)),
    diseases={},
    study_name=_name,
    write_study=_write_study,
    written=("imagesTr", "labelsTr", "imagesTs", "dataset.json"),
    write_tables=_write_tables,
)
