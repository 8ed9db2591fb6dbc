"""ACDC: cine short-axis stacks of 150 patients in five groups, labelled at ED and ES (Bernard et al., IEEE TMI 2018).

    database/training/patient001/Info.cfg                             lines KEY: VALUE
                                 patient001_4d.nii.gz                 the cine
                                 patient001_frame01_gt.nii.gz         label map of a frame, counted from 1
    database/testing/patient101/...

Labels are 1 RV, 2 MYO, 3 LV. The test part is official. The validation part is that of the CineMA reference
(cinema/data/acdc): two patients of each group, drawn from the training part by a generator with the seed 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...common.regular_file import read_regular
from ..prepare.dataset import Dataset
from ..prepare.sources import Phases, Source, Sources
from .published import Published, bmi, image, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

PARTS = {"training": "train", "testing": "test"}
VALIDATION = 2  # patients of each group


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The patients of ACDC. Raises ValueError where the folder is not that of ACDC."""
    root = root_of(config.src, *PARTS, name="ACDC", expected="database/training/patient001/patient001_4d.nii.gz")
    found = Published(config.src)
    for folder, part in PARTS.items():
        for patient in found.folders(root / folder):
            _add(found, patient, part)
    group_of = {study: found.sources.table[study].get("pathology", "")
                for study, part in found.sources.split.items() if part == "train"}  # fmt: skip
    found.sources.split |= dict.fromkeys(validation_of(group_of), "val")
    return found.sources


def _add(found: Published, folder: Path, part: str) -> None:
    study = folder.name
    cine, info = image(folder, f"{study}_4d"), folder / "Info.cfg"
    if not cine.exists():
        found.refuse(cine, "is missing: it is the cine of the patient", study, "sax")
        return
    facts = _read_info(found, info, study)
    ed, es = (_frame(found, info, facts, key, study) for key in ("ED", "ES"))
    phases = Phases(ed - 1, es - 1, info.relative_to(found.src).as_posix()) if ed and es else None
    labels = list(found.files(folder, rf"{re.escape(study)}_frame[0-9]+_gt\.nii(\.gz)?"))
    frames = [re.search(r"_frame([0-9]+)_gt", path.name)[1] for path in labels]
    for key, t in (("ED", ed), ("ES", es)):
        if t and labels and t not in map(int, frames):
            expected = image(folder, f"{study}_frame{t:02d}_gt")
            found.refuse(expected, f"is missing: {info.name} says {key}: {t} (labels)", study, "sax")
    height, weight = (found.measured(info, "", study, key.lower(), facts.get(key, "")) for key in ("Height", "Weight"))
    if facts and not facts.get("Group"):
        found.refuse(info, "has no Group: the pathology of the patient stays unknown", study)
    source = Source((cine,), "4d", labels=tuple(labels), label_frames=tuple(frames), phases=phases)
    found.add(study, "sax", source, part, pathology=facts.get("Group"), height=height, weight=weight,
              bmi=bmi(height, weight))  # fmt: skip


def _read_info(found: Published, path: Path, study: str) -> dict[str, str]:
    try:
        lines = read_regular(path).decode("utf-8-sig", errors="replace").splitlines()
    except OSError as err:
        found.refuse(path, f"cannot be read ({err.strerror}): the group of the patient stays unknown; ED and ES are "
                           "looked for in the label maps", study)  # fmt: skip
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _frame(found: Published, path: Path, facts: dict[str, str], key: str, study: str) -> int | None:
    """The frame, from 1, that a key gives."""
    text = facts.get(key)
    if text is not None and not (text.isdecimal() and int(text)):
        found.refuse(path, f"{key} is {text!r}, expected the number of a frame from 1: ED and ES are looked for in the "
                           "label maps", study)  # fmt: skip
        return None
    return int(text) if text else None


def validation_of(group_of: dict[str, str]) -> list[str]:
    """The validation patients of {training patient: group}: VALIDATION of each group, as pandas draws them from the
    table sorted by patient (`groupby(...).sample(n=2, random_state=0)`).

    A group that is too small gives none, or, where otherwise no patient would be left to train on, all but one.
    """
    rng, groups = np.random.RandomState(0), {}
    for study in sorted(group_of):
        groups.setdefault(group_of[study], []).append(study)
    groups = {name: groups[name] for name in sorted(groups) if name}
    if all(len(studies) <= VALIDATION for studies in groups.values()):
        return [study for studies in groups.values() for study in studies[1:]]
    drawn = [rng.choice(len(studies), VALIDATION, replace=False) if len(studies) >= VALIDATION else ()
             for studies in groups.values()]  # fmt: skip
    return [studies[n] for studies, chosen in zip(groups.values(), drawn) for n in chosen]


ACDC = Dataset(find, label_map={1: 1, 2: 2, 3: 3})
