"""EMIDEC: short-axis late gadolinium enhancement of 150 patients, one volume each (Lalande et al., Data 2020).

    emidec-dataset-1.0.1/Case N006.txt                           clinical data, lines KEY : VALUE
                         Case_N006/Images/Case_N006.nii.gz       the volume
                         Case_N006/Contours/Case_N006.nii.gz     its label map
    emidec-segmentation-testset-1.0.0/Case_.../Images/...        without label maps

N is normal, P pathological. Labels of the files are 1 cavity, 2 normal myocardium, 3 infarction, 4 no-reflow. The
studies with a letter are split as the CineMA reference does (cinema/data/emidec): of each class, sorted by number and
shuffled, the last fifth is for testing, the fifth before it for validation. Studies of the test set are test studies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...common.regular_file import read_regular
from ..prepare.dataset import Dataset
from ..prepare.sources import Source, Sources
from .published import Published, by_number, image, number

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

SHARE = 0.2  # of a class, for validation and for testing
WORDS = {  # column of table.csv: key of the text
    "sex": "Sex", "tobacco": "Tobacco", "overweight": "Overweight", "hypertension": "Arterial hypertension",
    "diabetes": "Diabetes", "family_history": "Familial history of coronary artery disease", "ecg_st": "ECG (ST +)",
}  # fmt: skip
NUMBERS = {
    "age": "Age", "troponin": "Troponin", "killip_max": "Killip Max", "echo_ef": "FEVG", "ntprobnp": "NTProBNP",
}  # fmt: skip
TOBACCO = {"1": "yes", "2": "no", "3": "former"}
VOLUMES, TESTSET = "Case_*/Images", "testset"


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The cases of EMIDEC. Raises ValueError where the folder is not that of EMIDEC."""
    src, found = config.src, Published(config.src)
    roots = [folder for folder in (src, *sorted(src.glob("*")), *sorted(src.glob("*/*"))) if any(folder.glob(VOLUMES))]
    if not roots:
        raise ValueError(f"{src} is not EMIDEC as unpacked: expected emidec-dataset-1.0.1/Case_N006/Images/ in it")
    for root in roots:
        for case in found.folders(root, "Case_.+"):
            _add(found, case)
    cases = [study for study, views in found.sources.studies.items() if TESTSET not in views["sax"].files[0].parts[-4]]
    found.sources.split |= split_of(cases)
    return found.sources


def _add(found: Published, folder: Path) -> None:
    study = folder.name
    volume, labels = (image(folder / kind, study) for kind in ("Images", "Contours"))
    if not volume.exists():
        found.refuse(volume, "is missing: it is the volume of the case", study, "sax")
        return
    has_labels = labels.exists()
    letter = study.removeprefix("Case_")[:1]
    if not has_labels and (letter in ("N", "P") or labels.parent.is_dir()):  # names of the test set have no letter
        found.refuse(labels, "is missing: the case is prepared without a label map (labels)", study, "sax")
    values = {"pathology": letter if letter in ("N", "P") else None}
    text = folder.with_name(f"{study.replace('_', ' ', 1)}.txt")
    if text.exists():
        facts = _read(found, text, study)
        values |= {name: facts.get(key) for name, key in WORDS.items()}
        values["tobacco"] = TOBACCO.get(values["tobacco"], values["tobacco"])
        for name, key in NUMBERS.items():
            values[name] = number(facts.get(key, ""))
            if facts.get(key) and values[name] is None:
                found.refuse(text, f"{key} is {facts[key]!r}, not a number: it stays unknown", study)
    elif has_labels:
        found.refuse(text, "is missing: the clinical data of the case stay unknown", study)
    source = Source((volume,), "Images", channels=("LGE",), labels=(labels,) if has_labels else ())
    found.add(study, "sax", source, "test", **values)


def _read(found: Published, path: Path, study: str) -> dict[str, str]:
    """The values by key, without signs such as the dagger that follows some keys."""
    try:
        lines = read_regular(path).decode("latin-1").splitlines()
    except OSError as err:
        found.refuse(path, f"cannot be read ({err.strerror}): the clinical data of the case stay unknown", study)
        return {}
    pairs = (line.partition(":") for line in lines)
    return {re.sub(r"\\x[0-9a-f]{2}|[^\x20-\x7e]", "", key).strip(): value.strip() for key, colon, value in pairs
            if colon and value.strip()}  # fmt: skip


def split_of(studies: list[str]) -> dict[str, str]:
    """{study: train, val or test} of the studies with an N or a P, by the rule of the reference."""
    parts = {}
    for letter in ("N", "P"):
        cases = sorted((study for study in studies if study.startswith(f"Case_{letter}")), key=by_number)
        np.random.default_rng(0).shuffle(cases)
        n = int(SHARE * len(cases))
        train = len(cases) - 2 * n
        parts |= dict.fromkeys(cases[:train], "train") | dict.fromkeys(cases[train : train + n], "val")
        parts |= dict.fromkeys(cases[train + n :], "test")
    return parts


EMIDEC = Dataset(find, label_map={1: 3, 2: 2, 3: 4, 4: 5}, sax_spacing=(1.458, 1.458, 10.0))
