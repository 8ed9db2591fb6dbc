"""MyoPS 2020: three aligned short-axis volumes a study, C0 (bSSFP), DE (LGE) and T2 (Zhuang, IEEE TPAMI 2019).

All three are of the heart at end-diastole, on the grid of the cine. All hearts have an acute infarct; its no-reflow
counts as scar.
"""

from pathlib import Path
from typing import Any

from ..nifti import write_view
from ..scanner import STANDARD
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, relabelled, table_numbers

_KINDS = {"train25": ("training", 101), "test20": ("test", 201)}  # part -> word in its files' names, first number
_SCANS = {"C0": "cine", "DE": "lge", "T2": "t2w"}


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return str(_KINDS[part][1] + place)


def _options(case: Case) -> dict[str, Any]:
    return {"sequences": (), "acute": True}  # only frames on the cine's grid are taken


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    name, t = f"myops_{_KINDS[case.part][0]}_{case.study}", study.ed_frame
    (out / case.part).mkdir(exist_ok=True)
    rng, labels = table_numbers(study), {}
    for k, (channel, sequence) in enumerate(_SCANS.items()):
        gain, noise_sd = rng.uniform(*STANDARD.gain), rng.uniform(*STANDARD.noise_sd)
        image, labels[channel] = study.scan_again("sax", t, k, sequence=sequence, gain=gain, noise_sd=noise_sd)
        write_view(out / case.part / f"{name}_{channel}.nii.gz", study, "sax", image)
    if case.part == "train25":
        (out / "train25_myops_gd").mkdir(exist_ok=True)
        drawn = relabelled(labels["DE"], rv=600, myo=200, lv=500, scar=2221, no_reflow=2221, oedema=1220)
        write_view(out / "train25_myops_gd" / f"{name}_gd.nii.gz", study, "sax", drawn)
    return {}


MYOPS2020 = Layout(
    parts=(Part("train25", 25, ("infarct",)), Part("test20", 20, ("infarct",))),
    diseases={"infarct": "infarct"},
    study_name=_name,
    write_study=_write_study,
    written=("train25", "train25_myops_gd", "test20"),
    options=_options,
)
