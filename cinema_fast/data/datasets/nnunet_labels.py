"""The labels of nnU-Net's data sets as labels of this project, by their names in dataset.json."""

import re
from pathlib import Path
from typing import Any

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
}  # fmt: skip
LABEL_OF = {name: label for label, names in NAMES.items() for name in names}
MOST = 255


def label_map_of(path: Path, labels: Any) -> dict[int, int]:
    """{value in the label files: label of this project} of the entry `labels` of a dataset.json.

    RV 1, MYO 2, LV 3, scar 4, no-reflow 5, oedema 6 by their names; other structures, such as the atria, keep their
    number, or take the smallest free one where it is another's. Of a region (region-based training: a list of values)
    the values are the labels; they have a name where the list is of one value. Voxels to be ignored have no label: maps
    that hold them are refused when they are read.

    Args:
        labels: {"0": "background", "1": "RV"} (version 1) or {"background": 0, "RV": 1, "heart": [1, 2]} (version 2).

    Raises:
        ValueError: another form, a value that is named twice, two names of one structure, no structure, or too many.
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
    if not 0 < len(found) + len(others) <= MOST or max([*found, *others]) > MOST_VALUE:
        raise ValueError(f"{path}: labels names {len(found) + len(others)} structures, expected 1 to {MOST}, with "
                         f"values to {MOST_VALUE}")  # fmt: skip
    taken = set(found.values())
    kept = {value for value in others if value <= MOST and value not in taken}
    free = (label for label in range(1, MOST + 1) if label not in taken | kept)
    found |= {value: value if value in kept else next(free) for value in others}
    return dict(sorted(found.items()))
