"""Small volumes and cines as public data sets hold them, and the failures of a preparation."""

import csv

import nibabel as nib
import numpy as np
from scipy import ndimage

AFFINE = np.diag([1.0, 1.0, 10.0, 1.0])


def smooth(shape, seed: int = 0) -> np.ndarray:
    """uint8 of this shape, smooth in plane and over time, 0 to 255."""
    values = np.random.default_rng(seed).normal(size=shape)
    values = ndimage.gaussian_filter(values, (3, 3, 0.5, 1)[: len(shape)], mode="wrap")
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(255 * values).astype(np.uint8)


def drawn(shape, labels=(1, 2, 3), grow: int = 0) -> np.ndarray:
    """uint8 label map (X, Y, Z): boxes of the labels side by side; the last, in the middle, is wider by 2 * `grow`."""
    maps = np.zeros(shape, np.uint8)
    x, y = shape[0] // 2, shape[1] // 2
    maps[x - 5 - grow : x + 5 + grow, y - 3 : y + 3] = labels[-1]
    for n, label in enumerate(labels[:-1]):
        maps[x - 5 : x + 5, y - 6 - n : y - 5 - n] = label
    return maps


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def write_csv(path, rows) -> None:
    """rows: dictionaries with the same keys, the columns."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def rows_of(path, key: str = "study") -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def reasons(report) -> dict[tuple[str, str], str]:
    """{(study, file): reason} of the failures."""
    return {(failure.study, failure.file): failure.reason for failure in report.failures}
