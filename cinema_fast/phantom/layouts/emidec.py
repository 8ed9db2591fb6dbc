"""EMIDEC: a short-axis stack of late gadolinium enhancement a study, with clinical data (Lalande et al., Data 2020).

N cases are normal hearts and P cases have an acute infarct, one to two as published. The right ventricle is not drawn,
and oedema around an infarct counts as normal myocardium.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..nifti import write_view
from ..study import PhantomStudy
from .layout import Case, Layout, Part, Row, relabelled, table_numbers

_TRAINING, _TESTING = "emidec-dataset-1.0.1", "emidec-segmentation-testset-1.0.0"
_VIEW = "lge_sax"
_README = """These images are a synthetic heart, made by cinema-fast in the folder layout of EMIDEC.
They are no data of EMIDEC.
"""


def _name(part: str, place: int, group: str, i: int, seed: int) -> str:
    return f"Case_{group}{1 + place:03d}" if part == _TRAINING else f"Case_{101 + place}"


def _options(case: Case) -> dict[str, Any]:
    return {"sequences": ("lge",), "acute": True}


def _write_study(out: Path, case: Case, study: PhantomStudy) -> Row:
    name, folder = case.study, out / case.part / case.study
    (folder / "Images").mkdir(parents=True)
    write_view(folder / "Images" / f"{name}.nii.gz", study, _VIEW, study.images[_VIEW])
    if case.part == _TRAINING:
        (folder / "Contours").mkdir()
        labels = relabelled(study.labels[_VIEW], rv=0, myo=2, lv=1, scar=3, no_reflow=4, oedema=2)
        write_view(folder / "Contours" / f"{name}.nii.gz", study, _VIEW, labels)
        # In Mac OS Roman the dagger is the byte A0, which readers of Latin-1 strip as a space.
        text = _clinical_data(case, study)
        (out / case.part / f"{case.study.replace('_', ' ')}.txt").write_text(text, encoding="mac_roman")
    return {}


def _clinical_data(case: Case, study: PhantomStudy) -> str:
    ill, rng, who = case.group == "P", table_numbers(study), study.patient
    lines = {
        "Gap between slices\u2020": f"{study.spacing_mm[_VIEW][2]:.3g} mm",
        "Sex\u2020": who.sex[0].upper(),
        "Age ": round(who.age),
        "Tobacco ": rng.integers(1, 4),
        "Overweight ": "NY"[who.bmi > 25],
        "Arterial hypertension ": "NY"[study.outcome.hypertension],
        "Diabetes ": "NY"[study.outcome.diabetes],
        "Familial history of coronary artery disease": "NY"[rng.random() < 0.3],
        "ECG (ST +) ": "NY"[rng.random() < (0.7 if ill else 0.2)],
        "Troponin ": f"{rng.lognormal(np.log(40 if ill else 0.5), 0.8):.2f}",
        "Killip Max": rng.integers(1, 5) if ill else 1,
        "FEVG ": round(study.ef),
        "NTProBNP ": round(rng.lognormal(np.log(900 if ill else 100), 0.7)),
    }
    return f"{case.study.replace('_', ' ')}\n\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())


def _write_tables(out: Path, cases: list[Case], rows: list[Row]) -> None:
    (out / _TRAINING / "Readme.txt").write_text(_README, encoding="utf-8")


EMIDEC = Layout(
    parts=(Part(_TRAINING, 100, ("P", "N", "P")), Part(_TESTING, 50, ("P", "N", "P"))),
    diseases={"N": "normal", "P": "infarct"},
    study_name=_name,
    write_study=_write_study,
    written=(_TRAINING, _TESTING),
    write_tables=_write_tables,
    options=_options,
)
