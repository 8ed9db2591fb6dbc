"""MyoPS 2020: bSSFP, late enhancement and T2 of the short axis, aligned on one grid (Li et al., Med. Image Anal. 2023).

    train25/myops_training_101_C0.nii.gz  ..._DE.nii.gz  ..._T2.nii.gz     25 patients, 101 to 125
    train25_myops_gd/myops_training_101_gd.nii.gz                          their label maps
    test20/myops_test_201_C0.nii.gz ...                                    20 patients; label maps are encrypted

The three volumes of a patient are the channels of one view. Label maps hold 200 normal myocardium, 500 LV, 600 RV, 1220
oedema and 2221 scar. Voxels are not resampled, since scores are on the grid of the scan. Validation is that of the
CineMA reference (cinema/data/myops2020): 5 of the training patients, drawn by a generator with the seed 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..prepare.dataset import Dataset
from ..prepare.sources import Source, Sources
from .published import Published, image, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

CHANNELS = ("C0", "DE", "T2")
PARTS = {"train25": "train", "test20": "test"}
LABELS = "train25_myops_gd"
VALIDATION = 5


def find(config: PrepareConfig, progress: bool) -> Sources:
    """The patients of MyoPS 2020. Raises ValueError where the folder is not that of MyoPS 2020."""
    root = root_of(config.src, *PARTS, name="MyoPS 2020", expected="train25/myops_training_101_C0.nii.gz")
    found = Published(config.src)
    for folder, part in PARTS.items():
        patients: dict[str, str] = {}  # {number: stem of its files}
        for path in found.files(root / folder, r"myops_[a-z]+_[0-9]+_[A-Z0-9]+\.nii(\.gz)?"):
            stem = re.match(r"myops_[a-z]+_([0-9]+)", path.name)
            patients[stem[1]] = stem[0]
        for study, stem in patients.items():
            _add(found, root, study, stem, folder, part)
    train = sorted(study for study, part in found.sources.split.items() if part == "train")
    found.sources.split |= dict.fromkeys(validation_of(train), "val")
    return found.sources


def _add(found: Published, root: Path, study: str, stem: str, folder: str, part: str) -> None:
    volumes = [image(root / folder, f"{stem}_{channel}") for channel in CHANNELS]
    if missing := [path for path in volumes if not path.exists()]:
        found.refuse(missing[0], "is missing: a patient needs C0, DE and T2", study, "sax")
        return
    labels = image(root / LABELS, f"{stem}_gd")
    if part == "train" and not labels.exists():
        found.refuse(labels, "is missing: the patient is prepared without a label map (labels)", study, "sax")
    drawn = (labels,) if part == "train" and labels.exists() else ()
    found.add(study, "sax", Source(tuple(volumes), "C0", channels=CHANNELS, labels=drawn), part)


def validation_of(train: list[str]) -> list[str]:
    """VALIDATION of the training patients, sorted, as pandas draws them (`sample(n=5, random_state=0)`); of 5 or fewer
    patients one, so that others are left to train on."""
    n = VALIDATION if len(train) > VALIDATION else min(1, len(train) - 1)
    if n < 1:
        return []
    return [train[k] for k in np.random.RandomState(0).choice(len(train), n, replace=False)]


MYOPS2020 = Dataset(find, label_map={200: 2, 500: 3, 600: 1, 1220: 6, 2221: 4}, sax_spacing=(0.0, 0.0, 0.0))
