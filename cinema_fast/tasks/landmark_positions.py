"""Checks that a table's landmarks are scanner mm (RAS+): each must lie in the plane of its image, and near it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..data.store.store import CineStore

# A point drawn on a single slice lies in its plane; a point found in 3D is at most half a slice (3 to 8 mm) off.
MAX_OFF_PLANE_MM = 10.0
# An apex or annulus may lie outside of the stored crop, but at most half a field of view away.
MAX_OFF_IMAGE_MM = 100.0


def check_positions(table: Path, store: CineStore, points: Mapping, cines: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError where points of the (study, view) `cines` are not scanner mm in RAS+; it names the point that is
    farthest off and the most likely convention.

    points: study -> view -> frame -> landmark -> mm (3,).
    """
    names, off, lps, indices = [], [], [], []
    for study, view in cines:
        known = points[study][view]
        if not (here := [(t, name) for t in sorted(known) for name in known[t]]):
            continue
        mm = np.array([known[t][name] for t, name in here])
        info = store.info(study, view)
        names += [f"{name} of frame {t} of {view} of {study}" for t, name in here]
        off.append(_off(mm, info.affine, info.shape[1:]))
        lps.append(_off(mm * (-1, -1, 1), info.affine, info.shape[1:]))
        indices.append(((mm >= 0) & (mm <= 1024)).all(1) & (np.abs(mm[:, 2]) < 1))
    if not names:
        return
    off, lps = np.concatenate(off), np.concatenate(lps)
    limits = MAX_OFF_PLANE_MM, MAX_OFF_IMAGE_MM
    right = (off <= limits).all(1)
    if right.all():
        return
    flipped = int((lps <= limits).all(1).sum())
    worst = int(np.argmax((off / limits).max(1)))
    plane, image = off[worst]
    if np.concatenate(indices).all():
        likely = "they look like voxel indices: multiply each by the affine of its image's file"
    elif flipped > right.sum():
        likely = "they are in DICOM's LPS+: change the signs of x_mm and y_mm"
    else:
        likely = "they may be of another scan or view"
    raise ValueError(
        f"{table}: {names[worst]} lies {plane:.0f} mm off the plane of its image (allowed: {MAX_OFF_PLANE_MM:g}) and "
        f"{image:.0f} mm beside the image (allowed: {MAX_OFF_IMAGE_MM:g}). Positions are scanner mm, RAS+, which "
        f"{right.sum()} of {len(names)} fit; with the signs of x and y flipped {flipped} fit: {likely}"
    )


def _off(mm: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n, 2) [mm]: distances of points (n, 3) from the plane of a single slice (X, Y), and from its pixels in plane."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    plane = np.abs((mm - affine[:3, 3]) @ normal) / np.linalg.norm(normal)
    voxels = np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3]).T).T[:, :2]
    beyond = np.maximum(np.maximum(-0.5 - voxels, voxels - np.array(shape) + 0.5), 0)
    return np.stack([plane, np.linalg.norm(beyond * np.linalg.norm(affine[:3, :2], axis=0), axis=1)], axis=1)
