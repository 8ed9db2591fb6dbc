"""The images of DICOM files as slices: which are alike, which lie at one place, and whether slices make a stack."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .cine import CineError, IncompleteCine
from .dicom_file import ImageHeader

# Slices of a cine are 4 mm apart or more; the same slice has the same position to a hundredth of a millimetre.
SAME_PLACE_MM = 0.5
# Largest minus smallest slice distance of a complete stack, relative to the median.
MAX_UNEVENNESS = 0.1
# A time step this many times the median means that a frame is missing.
LONG_STEP = 1.6
# The attributes of `ImageHeader` that may give the order of frames, in the order of their worth.
CLOCKS = ("trigger_ms", "temporal", "instance", "acquisition")


class Image(NamedTuple):
    """An image, and the file that it comes from. series: `dicom_file.series_of`, "" where it does not matter. pixels:
    (Rows, Columns)."""

    path: Path
    series: str
    header: ImageHeader
    pixels: np.ndarray


def difference(first: Image, image: Image) -> str:
    """What keeps two images from being slices of one stack: size, orientation or spacing; "" if nothing does."""
    if image.pixels.shape != first.pixels.shape:
        return "size"
    # differences up to these limits move the far corner of an image by less than a pixel
    for name, limit in (("orientation", 1e-3), ("spacing", 1e-3)):
        if np.abs(np.subtract(getattr(image.header, name), getattr(first.header, name))).max() > limit:
            return name
    return ""


def by_place(images: list[Image]) -> list[list[Image]]:
    """The images of each slice, ordered along the normal. All images have one orientation."""
    normal = images[0].header.normal
    ordered = sorted(images, key=lambda image: float(normal @ image.header.position))
    slices = [[ordered[0]]]
    for before, image in pairwise(ordered):
        if normal @ np.subtract(image.header.position, before.header.position) > SAME_PLACE_MM:
            slices.append([])
        slices[-1].append(image)
    return slices


def affine_of(slices: list[list[Image]]) -> np.ndarray:
    """(4, 4) voxel index -> mm, RAS+; the third axis steps by the slice distance, or by a single slice's thickness."""
    header = slices[0][0].header
    row, column = np.reshape(header.orientation, (2, 3))
    rows_mm, columns_mm = header.spacing
    first, last = (np.array(images[0].header.position) for images in (slices[0], slices[-1]))
    step = (last - first) / (len(slices) - 1) if len(slices) > 1 else header.normal * (header.thickness or 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([row * columns_mm, column * rows_mm, step, first], axis=1)
    affine[:2] *= -1  # LPS+ of DICOM to RAS+ of NIfTI
    return affine


def check_places(slices: list[list[Image]], affine: np.ndarray) -> None:
    """Raise CineError where the slices, each of equally many images, are not evenly spaced along one line."""
    normal = slices[0][0].header.normal
    places = np.array([[image.header.position for image in images] for images in slices])  # (Z, T, 3)
    along = places[:, 0] @ normal
    steps = np.diff(along)
    if len(steps) and np.ptp(steps) > MAX_UNEVENNESS * np.median(steps):
        k = int(steps.argmax())
        raise IncompleteCine(slices[k][0].path, f"slices are missing or unevenly spaced: steps of {steps.min():.2f} to "
                                                f"{steps.max():.2f} mm, the longest after slice {k + 1} of "
                                                f"{len(slices)}")
    expected = places[0, 0] + np.arange(len(slices))[:, None] * (affine[:3, 2] * (-1, -1, 1))
    off = places - expected[:, None]
    shift = np.linalg.norm(off - (off @ normal)[..., None] * normal, axis=-1)
    if shift.max() > 1.0:
        k, t = np.unravel_index(shift.argmax(), shift.shape)
        raise CineError(slices[k][t].path, f"slice {k + 1} of {len(slices)} lies {shift.max():.1f} mm beside the line "
                                           f"of the others")
