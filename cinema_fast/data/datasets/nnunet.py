"""nnU-Net's raw data sets, of versions 1 and 2 (Isensee et al., Nature Methods 2021).

    dataset.json                           names of channels and labels
    splits_final.json                      optional: nnU-Net's own split, of which the first fold is used
    imagesTr/CASE_0000.nii.gz ...          a single volume of each channel
    labelsTr/CASE.nii.gz                   its label map
    imagesTs/CASE_0000.nii.gz ...          test cases; labelsTs/ may lie beside them

Each case is a study with the view sax. Labels become this project's by their names (`nnunet_labels.py`). Validation is
fold 0 of nnU-Net's default split: five folds of the sorted cases, shuffled with the seed 12345. Cases of one patient,
whose names differ only in an ending _ED, _ES or _frame01, go to one part: here the folds are of patients. nnU-Net makes
them of cases, which puts ED of a patient into training and ES into validation.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.parsed_file import read_json
from ..prepare.dataset import Dataset
from ..prepare.sources import Source, Sources
from .nnunet_labels import label_map_of
from .published import ENDINGS, Published, image, root_of

if TYPE_CHECKING:
    from ..prepare.prepare_config import PrepareConfig

FOLDERS = {"imagesTr": ("labelsTr", "train"), "imagesTs": ("labelsTs", "test")}
DESCRIPTION, SPLITS = "dataset.json", "splits_final.json"
FOLDS, SEED = 5, 12345


def in_folder(src: Path) -> Dataset:
    """The data set in the folder. Raises ValueError where there is none, or its dataset.json cannot be used."""
    root = root_of(src, DESCRIPTION, name="a raw data set of nnU-Net",
                   expected="dataset.json, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz")  # fmt: skip
    path = root / DESCRIPTION
    description = _read(path)
    if not isinstance(description, dict):
        raise ValueError(f"{path} is not nnU-Net's: expected an object with the entries channel_names and labels")
    ending = description.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise ValueError(f"{path}: file_ending is {ending!r}, expected {' or '.join(ENDINGS)}: convert the images to "
                         "NIfTI (SimpleITK.WriteImage(SimpleITK.ReadImage(FILE), NEW)) and correct file_ending")
    named = description.get("channel_names", description.get("modality"))
    if not isinstance(named, dict) or sorted(named) != sorted(str(n) for n in range(len(named))) or not named:
        raise ValueError(f'{path}: channel_names (or modality) is {named!r}, expected names by number: {{"0": "LGE"}}')
    names = tuple(str(named[str(n)]) for n in range(len(named)))
    if len(set(names)) < len(names) or not all(names):
        names = tuple(f"{n:04d}" for n in range(len(names)))
    label_map, others = label_map_of(path, description.get("labels"))
    return Dataset(partial(find, root, names), label_map, names=others)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as err:
        raise ValueError(f"{path} cannot be read as JSON: {err}") from None


def find(root: Path, channels: tuple[str, ...], config: PrepareConfig, progress: bool) -> Sources:
    """The cases of a raw data set of nnU-Net."""
    found = Published(config.src)
    for folder, (folder_of_maps, _) in FOLDERS.items():
        cases: dict[str, set[int]] = {}
        for path in found.files(root / folder):
            if match := re.fullmatch(r"(.+)_([0-9]{4})\.nii(\.gz)?", path.name):
                cases.setdefault(match[1], set()).add(int(match[2]))
            else:
                found.refuse(path, "is not named CASE_0000.nii.gz (case, channel), the ending .nii.gz or .nii")
        for case, numbers in cases.items():
            _add(found, root, folder, case, numbers, channels)
        for path in found.files(root / folder_of_maps, r".+\.nii(\.gz)?"):
            if (case := re.sub(r"\.nii(\.gz)?$", "", path.name)) not in cases:
                found.refuse(path, f"is a label map without images: {folder} has no {case}_0000", case, "sax")
    train = sorted(study for study, part in found.sources.split.items() if part == "train")
    if (root / SPLITS).exists():
        _split_by_file(found, root / SPLITS, train)
    else:
        found.sources.split |= dict.fromkeys(validation_of(train), "val")
    return found.sources


def _add(found: Published, root: Path, folder: str, case: str, numbers: set[int], channels: tuple[str, ...]) -> None:
    files = [image(root / folder, f"{case}_{n:04d}") for n in range(len(channels))]
    if missing := [path for path in files if not path.exists()]:
        found.refuse(missing[0], f"is missing: {DESCRIPTION} names {len(channels)} channels", case, "sax")
        return
    for n in sorted(numbers - set(range(len(channels)))):
        extra = image(root / folder, f"{case}_{n:04d}")
        found.refuse(extra, f"is not read: {DESCRIPTION} names {len(channels)} channels", case, "sax")
    folder_of_maps, part = FOLDERS[folder]
    labels = image(root / folder_of_maps, case)
    if not labels.exists() and (part == "train" or labels.parent.is_dir()):
        found.refuse(labels, "is missing: the case is prepared without a label map (labels)", case, "sax")
    drawn = (labels,) if labels.exists() else ()
    found.add(case, "sax", Source(tuple(files), "0000", channels=channels, labels=drawn), part)


def _split_by_file(found: Published, path: Path, train: list[str]) -> None:
    """Take the first fold of a splits_final.json; cases that are in neither of its parts get none."""
    try:
        fold = _read(path)[0]
        parts = {case: part for part in ("train", "val") for case in map(str, fold[part])}
    except (ValueError, LookupError, TypeError) as err:
        found.refuse(path, f"is not a list of folds with train and val ({err}): the default split is used")
        found.sources.split |= dict.fromkeys(validation_of(train), "val")
        return
    for case in (case for case in parts if case not in train):
        found.refuse(path, f"{parts[case]} of the first fold: imagesTr has no usable case {case}", case)
    for case in train:
        if case in parts:
            found.sources.split[case] = parts[case]
        else:
            del found.sources.split[case]
            found.refuse(path, f"its first fold lacks {case}: the case is in no part of the split", case)


def validation_of(cases: list[str]) -> list[str]:
    """The validation cases of sorted training cases: those of the first of FOLDS folds of patients, as scikit-learn's
    KFold(5, shuffle=True, random_state=12345) makes them; of fewer than FOLDS patients none."""
    patients = sorted({patient_of(case) for case in cases})
    if len(patients) < FOLDS:
        return []
    order = np.random.RandomState(SEED).permutation(len(patients))
    fold = {patients[k] for k in order[: -(-len(patients) // FOLDS)]}
    return [case for case in cases if patient_of(case) in fold]


def patient_of(case: str) -> str:
    """The name of a case without an ending _ED, _ES or _frame01."""
    return re.sub("_(ed|es|frame[0-9]+)$", "", case, flags=re.IGNORECASE)


NNUNET = in_folder
