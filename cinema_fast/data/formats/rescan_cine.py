"""Cines and label maps in the pickles of the Rescan data set: dictionaries with arrays and attributes of DICOM."""

from pathlib import Path
from typing import Any

import numpy as np

from .cine import Cine, CineError, Volume, check_cine
from .plain_pickle import read_plain_pickle

_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
_LAX_THICKNESS = 1.0  # mm; the files do not give it
_LENGTH = 0.01  # largest difference of a direction's length from 1


def read_rescan_cine(path: Path, *, stack: bool) -> Cine:
    """Read and check a view: a stack of slices (SAX.pickle) or a single slice (2C.pickle, 4C.pickle).

    `image_voxels` is (z, t, y, x) or (t, y, x). Slices come in reverse, from the last of `ImagePositionPatient`, along
    the cross product of the two directions of `ImageOrientationPatient` (LPS), `SliceSpacing` apart. `PixelSpacing` is
    that of DICOM: between rows, then between columns.

    Raises:
        CineError: as `read_plain_pickle` and `check_cine`; a value that is missing or of another size; slices half a
            distance or more from where they are expected.
    """
    content, sha256 = read_plain_pickle(path)
    data = _frames(path, content, "image_voxels", stack)
    row, column = _numbers(path, content, "ImageOrientationPatient", (2, 3))
    between_rows, between_columns = _numbers(path, content, "PixelSpacing", (2,))
    if abs(np.linalg.norm([row, column], axis=1) - 1).max() > _LENGTH:
        raise CineError(path, "ImageOrientationPatient holds directions whose length is not 1")
    positions = _numbers(path, content, "ImagePositionPatient", (data.shape[2], 3) if stack else (1, 3))
    apart = float(_numbers(path, content, "SliceSpacing", (1,))[0]) if stack else _LAX_THICKNESS
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * between_columns, column * between_rows, np.cross(row, column) * apart])
    affine[:3, 3] = positions[-1]
    expected = positions[-1] + np.outer(np.arange(len(positions)), affine[:3, 2])
    off = np.linalg.norm(expected - positions[::-1], axis=1).max()
    if not off < apart / 2:
        raise CineError(path, f"ImagePositionPatient puts a slice {off:.3g} mm from where its number, SliceSpacing and "
                              f"ImageOrientationPatient do, expected less than {apart / 2:.3g} mm")  # fmt: skip
    affine = _LPS_TO_RAS @ affine
    volume = Volume(data, 1.0, 0.0, affine, None, sha256)
    cine = Cine((volume,), data.shape[:3], data.shape[3], affine, None, sha256)
    check_cine(cine, path, stack=stack)
    return cine


def read_rescan_labels(path: Path, cine: Cine) -> Volume:
    """The label maps of a stack (SAX_segs.pickle), `image_segmentation` (z, t, y, x), on the grid of its cine."""
    content, sha256 = read_plain_pickle(path)
    return Volume(_frames(path, content, "image_segmentation", True), 1.0, 0.0, cine.affine, None, sha256)


def _frames(path: Path, content: dict[str, Any], key: str, stack: bool) -> np.ndarray:
    """(X, Y, Z, T) of an array (z, t, y, x), slices reversed, or (t, y, x)."""
    axes = "(z, t, y, x)" if stack else "(t, y, x)"
    data = content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != len(axes.split(",")) or not data.size:
        found = f"an array of the shape {data.shape}" if isinstance(data, np.ndarray) else "no array"
        raise CineError(path, f"{key} is {found}, expected an array {axes}")
    return np.asfortranarray(data[::-1].transpose(3, 2, 0, 1) if stack else data.transpose(2, 1, 0)[:, :, None])


def _numbers(path: Path, content: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 of this shape: a number, an array, or a sequence of numbers or arrays."""
    value = content.get(key)
    parts = [part if isinstance(part, (np.ndarray, list, tuple)) else (part,)
             for part in (value if isinstance(value, tuple) else (value,))]  # fmt: skip
    try:
        if sum(np.prod(part.shape) if isinstance(part, np.ndarray) else len(part) for part in parts) != np.prod(shape):
            raise ValueError
        found = np.array([float(one) for part in parts for one in getattr(part, "flat", part)]).reshape(shape)
        if not np.isfinite(found).all():
            raise ValueError
        return found
    except (TypeError, ValueError, OverflowError):
        size = " x ".join(map(str, shape))
        raise CineError(path, f"{key} is missing, or not {size} finite numbers") from None
