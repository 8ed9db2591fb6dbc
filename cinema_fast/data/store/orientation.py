"""Arranges the voxel axes of a view by their directions in the patient, whatever way a file stores them.

A file may hold a slice mirrored or transposed, or its slices in reverse; only the affine tells. (dcm2niix mirrors the
second axis of DICOM, other programs do not.) `patient_arrangement` chooses one arrangement per view:

- X and Y: of the eight ways to mirror and exchange the two in-plane axes, the one nearest to `_TOWARDS`, the usual
  directions of a scanner's rows and columns in that view. Directions of the view are used, not those of the body's
  planes: a two-chamber plane is near 45 degrees between sagittal and coronal, so by the nearest patient axis one
  patient's heart would be mirrored and another's not.
- slices of a stack in the short axis: from base to apex, as in public data sets.
- views whose name holds none of the four (`lge_sax` holds one): X towards the left, or the back where the plane is
  nearer to sagittal; Y towards the feet, or the back where it is nearer to transverse; slices of a stack towards the
  left, the back or the feet, whichever is nearest.

A NIfTI header without the patient's orientation (no code, or the scanner's own axes, as in ACDC) cannot be arranged;
its cine is kept as stored. DICOM always has the orientation.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Literal

import numpy as np

from ...common.naming import counted, named
from ...common.views import plane_of
from ..formats.cine import Cine, Volume
from .store import CineStore

# Directions of X and Y in (left, back, feet): rounded means of rows and columns of scanners at three sites (M&Ms,
# M&Ms-2 and a Siemens study). The anterior wall is then up in SAX, 2C and 3C, the apex left in 2C and 3C; in 4C the
# apex is up and the left ventricle on the right, as these views are usually shown.
_TOWARDS = {
    "sax": ((0.65, 0.50, -0.25), (0.15, 0.30, 0.75)),
    "lax_2c": ((-0.70, 0.70, 0.00), (0.00, -0.10, 1.00)),
    "lax_3c": ((0.10, 0.95, -0.10), (0.55, 0.05, 0.80)),
    "lax_4c": ((1.00, 0.00, 0.10), (0.10, 0.85, -0.30)),
}
_TO_APEX = (0.65, -0.60, 0.45)  # from the base of the heart, likewise
# Directions that decide between two equally near arrangements (a plane at 45 degrees); they have no symmetry.
_IN_A_TIE = np.array(((0.6131, 0.3719, 0.0), (0.2917, 0.5303, 0.0), (0.3571, 0.7937, 0.0)))
_LEFT_BACK_FEET = np.diag((-1.0, -1.0, -1.0))  # of RAS+
NO_ORIENTATION = ("orientation unknown (the header has no orientation code, or only the scanner's axes, as in ACDC): "
                  "axes kept as in the file")
AS_STORED_STORE = ("the store keeps the axes of its images as their files store them, as stores of earlier versions "
                   "do: predictions depend on the program that wrote the files. prepare --overwrite aligns the axes of "
                   "all studies")
AS_STORED_RUN = ("the run was trained on images with the axes that their files had (a store of an earlier version, or "
                 "--orientation stored), and these were predicted in the same way: the same scan written by another "
                 "program may give another result. A run trained on a newly prepared store does not depend on it")

Arrangement = tuple[int, int, int]
"""For each axis the axis of the file that it is taken from, counted from 1; minus: reversed. (1, 2, 3): no change."""
AS_STORED: Arrangement = (1, 2, 3)


def patient_arrangement(affine: np.ndarray, view: str, *, stack: bool = False) -> Arrangement:
    """The arrangement of a grid with this affine (4, 4) for a view, by the rule at the head of this file. stack: the
    grid has several slices."""
    towards, plane = np.zeros((3, 3)), plane_of(view)
    if plane:
        towards[:, :2] = np.transpose(_TOWARDS[plane])
    else:
        directions = _LEFT_BACK_FEET @ _directions(affine)
        # the nearest of the planes sagittal, coronal and transverse; of equal ones the first
        across = int(np.argmax(np.abs(np.cross(directions[:, 0], directions[:, 1])).round(3)))
        first, second = (axis for axis in range(3) if axis != across)
        towards[first, 0] = towards[second, 1] = 1.0
        towards[across, 2] = float(stack)
    if plane == "sax":
        towards[:, 2] = _TO_APEX
    return _nearest(affine, _LEFT_BACK_FEET @ towards)


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3): columns are the unit vectors of the axes."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def _nearest(affine: np.ndarray, towards: np.ndarray) -> Arrangement:
    """The arrangement whose axes have the largest sum of products with the columns of `towards` (3, 3)."""
    directions = _directions(affine)
    along, in_a_tie = (wanted.T @ directions for wanted in (towards, _LEFT_BACK_FEET @ _IN_A_TIE))

    def nearness(arrangement: Arrangement) -> tuple[float, float]:
        first, second = (sum(products[k, abs(axis) - 1] * np.sign(axis) for k, axis in enumerate(arrangement))
                         for products in (along, in_a_tie))  # of (wanted axis, axis of the file)
        return round(first, 6), second

    # a third axis without a direction is not changed: of equal ones `max` takes the first
    return max(((sx * x, sy * y, sz * 3) for x, y in permutations((1, 2)) for sx, sy, sz in product((1, -1), repeat=3)),
               key=nearness)


def arranged(array: np.ndarray, arrangement: Arrangement, first: int = 0) -> np.ndarray:
    """A view of an array whose axes `first`, `first` + 1 and `first` + 2 are those of a file, arranged."""
    axes = list(range(array.ndim))
    axes[first : first + 3] = [first + abs(axis) - 1 for axis in arrangement]
    reverse = [first + k for k, axis in enumerate(arrangement) if axis < 0]
    return np.flip(array.transpose(axes), reverse)


def arranged_affine(affine: np.ndarray, shape: Sequence[int], arrangement: Arrangement) -> np.ndarray:
    """The affine (4, 4) of an arranged grid; `shape` (X, Y, Z) is that before."""
    turned = affine.astype(np.float64)
    for k, axis in enumerate(arrangement):
        column = affine[:, abs(axis) - 1]
        turned[:, k] = np.sign(axis) * column
        if axis < 0:
            turned[:, 3] += column * (shape[abs(axis) - 1] - 1)
    return turned


def inverse(arrangement: Arrangement) -> Arrangement:
    """The inverse arrangement."""
    back = [0, 0, 0]
    for k, axis in enumerate(arrangement, start=1):
        back[abs(axis) - 1] = k if axis > 0 else -k
    return tuple(back)


def arrange(cine: Cine, arrangement: Arrangement) -> Cine:
    """The cine with its axes arranged; its pixels are not copied."""
    if arrangement == AS_STORED:
        return cine
    volumes = tuple(_arranged_volume(volume, arrangement) for volume in cine.volumes)
    shape = tuple(cine.shape[abs(axis) - 1] for axis in arrangement)
    return replace(cine, volumes=volumes, shape=shape, affine=arranged_affine(cine.affine, cine.shape, arrangement))


def _arranged_volume(volume: Volume, arrangement: Arrangement) -> Volume:
    shape = (*volume.data.shape, 1, 1)[:3]
    data = volume.data.reshape((*shape, *volume.data.shape[3:]), order="F")
    return replace(volume, data=arranged(data, arrangement), affine=arranged_affine(volume.affine, shape, arrangement))


def like(volume: Volume, cine: Cine) -> Volume:
    """A volume (X, Y[, Z[, ...]]) with its axes arranged like those of a cine: mirrored or exchanged in plane, slices
    reversed. Unchanged where either header lacks the orientation."""
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if not (volume.oriented and cine.oriented and np.isfinite(sizes).all() and sizes.all()):
        return volume
    return _arranged_volume(volume, _nearest(volume.affine, _directions(cine.affine)))


Orientation = Literal["patient", "stored"]
"""The axes of a store's images: arranged by the rule at the head of this file (patient), or as in their files."""


def orientation_of(prepare: dict) -> Orientation:
    """The orientation of a store, from the options of its preparation; earlier versions wrote no such option."""
    return prepare.get("orientation", "stored")


def check_orientation(store: CineStore, run: Path, there: Orientation) -> None:
    """Raise ValueError where the orientation of a store differs from `there`, that of the run's training images."""
    here = orientation_of(store.prepare)
    if here != there:
        raise ValueError(f"{store.path} was prepared with --orientation {here}, and the store that {run} was trained "
                         f"on with {there}: its images may look mirrored or rotated to the model; prepare the studies "
                         f"with --orientation {there}")


def orientation_remarks(start: Path, there: Orientation, now: Orientation) -> list[str]:
    """A warning where the run `start`, from which weights are taken, was trained on images with other axes."""
    return [f"warning: {start} was trained on images with other axes (prepare --orientation {there}; this store: "
            f"{now}), so its features may transfer less well"] * (there != now)


def gather_remarks(remarks: dict[str, list[str]], studies: dict[str, dict[str, dict]]) -> None:
    """Add the remarks of the records (study -> view -> record) to `remarks`, {remark: ["study view"]}."""
    for study, views in sorted(studies.items()):
        for view, record in views.items():
            for remark in record.get("remarks", ()):
                remarks.setdefault(remark, []).append(f"{study} {view}")


def remark_lines(remarks: dict[str, list[str]]) -> list[str]:
    """A line for each remark, with the number of its cines and the names of some."""
    return [f"{counted(len(cines), 'cine')} ({named(cines)}): {remark}" for remark, cines in remarks.items()]
