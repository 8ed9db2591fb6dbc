"""Small folders in the layouts of public data sets: a left ventricle in its wall beside a right one, that beat."""

from pathlib import Path

import numpy as np
from cine_files import affine_of, write_cine

SHAPE, SPACING = (24, 22, 4), (2.0, 2.0, 8.0)
AFFINE = affine_of((0.1, 0.2, 1.0), SPACING, (5.0, -3.0, 10.0), SHAPE)
VOXEL_ML = 2.0 * 2.0 * 8.0 / 1000
RV, MYO, LV = 1, 2, 3


def labels_at(t: int, n_frames: int, shape=SHAPE) -> np.ndarray:
    """uint8 (X, Y, Z), labels of this project: both ventricles are smaller in the middle of the cycle than in the other
    frames, and every slice is 2 pixels beside the one before."""
    half = 3 if t == n_frames // 2 else 4
    labels = np.zeros(shape, np.uint8)
    for z in range(shape[2]):
        at = 2 * z + 3 * (shape[2] == 1)
        labels[3:13, at + 3 : at + 13, z] = MYO
        labels[8 - half : 8 + half, at + 8 - half : at + 8 + half, z] = LV
        labels[15 : 16 + half, at + 4 : at + 12, z] = RV
    return labels


def frames(n_frames: int, seed: int, shape=SHAPE) -> np.ndarray:
    """int16 (X, Y, Z, T) whose blood is bright."""
    noise = np.random.default_rng(seed).normal(0, 3, (*shape, n_frames))
    labels = np.stack([labels_at(t, n_frames, shape) for t in range(n_frames)], axis=-1)
    return (100 + noise + 200 * np.isin(labels, (LV, RV)) + 60 * (labels == MYO)).astype(np.int16)


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return write_cine(path, data, affine)


def renamed(labels: np.ndarray, value_of: dict[int, int], dtype=np.uint8) -> np.ndarray:
    """The labels by the values that a data set writes."""
    values = np.zeros(labels.shape, dtype)
    for label, value in value_of.items():
        values[labels == label] = value
    return values
