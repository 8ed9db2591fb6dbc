"""The labels of nnU-Net's data sets as labels of this project, by their names in dataset.json."""

import re
from pathlib import Path
from typing import Any

from ...common.structures import STRUCTURES
from ..prepare.labels import MOST_VALUE

# label of this project: its names, in small letters without signs and words such as "left ventricular"
NAMES = {
    1: ("rv", "rvc", "rvbp", "rightventricle", "rightventricularcavity", "rightventricularbloodpool"),
    2: ("myo", "mlv", "lvm", "lvmyo", "myocardium", "lvmyocardium", "normalmyocardium", "leftventricularmyocardium"),
    3: ("lv", "lvc", "lvbp", "leftventricle", "cavity", "lvcavity", "leftventricularcavity",
        "leftventricularbloodpool"),
    4: ("scar", "infarct", "infarction", "lvscar", "myocardialinfarction"),
    5: ("mvo", "noreflow", "microvascularobstruction"),
    6: ("edema", "oedema", "lvedema", "lvoedema"),
    7: ("la", "lac", "leftatrium", "leftatrialcavity"),
    8: ("ra", "rac", "rightatrium", "rightatrialcavity"),
}  # fmt: skip
LABEL_OF = {name: label for label, names in NAMES.items() for name in names}
FIRST, MOST = max(STRUCTURES) + 1, 255  # labels of structures without one in this project


def label_map_of(path: Path, labels: Any) -> tuple[dict[int, int], dict[int, str]]:
    """{value in the label files: label of this project} of the entry `labels` of a dataset.json, and {label: name} of
    the structures that have none in this project.

    Structures of this project are known by their names; others keep their number where it is no structure's, else they
    take the smallest free one after those. Of a region (region-based training: a list of values)
    the values are the labels; they have a name where the list is of one value. Voxels to be ignored have no label: maps
    that hold them are refused when they are read.

    Args:
        labels: {"0": "background", "1": "RV"} (version 1) or {"background": 0, "RV": 1, "heart": [1, 2]} (version 2).

    Raises:
        ValueError: another form, a value that is named twice, two names of one structure, one name of two, no
            structure, or too many.
    """
    if not isinstance(labels, dict):
        raise ValueError(f'{path}: labels is {labels!r}, expected names and values: {{"background": 0, "RV": 1}}')
    name_of: dict[int, str] = {}
    unnamed: set[int] = set()
    for key, entry in labels.items():
        name, values = (entry, [key]) if isinstance(entry, str) else (key, entry)
        values = values if isinstance(values, list) else [values]
        if not all(re.fullmatch("[0-9]{1,5}", str(value)) for value in values):
            raise ValueError(f"{path}: the label {key!r} is {entry!r}, expected a name and a whole number from 0")
        if name.lower() == "ignore":
            continue
        if len(values) != 1:
            unnamed |= {int(value) for value in values}
        elif (value := int(values[0])) in name_of:
            raise ValueError(f"{path}: the label {value} has two names, {name_of[value]!r} and {name!r}")
        else:
            name_of[value] = name
    found: dict[int, int] = {}
    for value, name in name_of.items():
        label = LABEL_OF.get(re.sub("[^a-z]", "", name.lower()))
        if label and label in found.values():
            other = next(name_of[one] for one, there in found.items() if there == label)
            raise ValueError(f"{path}: two labels are one structure, {other!r} and {name!r}: merge them, or rename one")
        if label and value:
            found[value] = label
    others = sorted((name_of.keys() | unnamed) - found.keys() - {0})
    if not 0 < len(found) + len(others) <= MOST - FIRST or max([*found, *others]) > MOST_VALUE:
        raise ValueError(f"{path}: labels names {len(found) + len(others)} structures, expected 1 to {MOST - FIRST}, "
                         f"with values to {MOST_VALUE}")  # fmt: skip
    kept = {value for value in others if FIRST <= value <= MOST}
    free = (label for label in range(FIRST, MOST + 1) if label not in kept)
    label_of_other = {value: value if value in kept else next(free) for value in others}
    names = {label: name_of.get(value, f"label-{value}") for value, label in label_of_other.items()}
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise ValueError(f"{path}: two labels have the name {twice[0]!r}: merge them, or rename one")
    return dict(sorted((found | label_of_other).items())), names
