"""From the grid that the model sees back to the voxels of the scan: label maps with their files, and points."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..formats.cine import Cine
from .geometry import Axis, Resampling, spacing_of
from .sources import Source

# The fields of a NIfTI header for the geometry of its voxels, their units and times.
_GEOMETRY = (
    "pixdim", "xyzt_units", "toffset", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_ROUNDING = 1e-3  # [stored voxels] affines come from float32 headers


def plan_return(
    stored_shape: Sequence[int], stored_affine: np.ndarray, shape: Sequence[int], affine: np.ndarray
) -> Resampling:
    """Resampling of maps (X, Y, Z) on the stored grid to the voxel centres of the grid they were prepared from.

    Linear. Voxels outside of the stored grid (the crop) become 0. Both grids have parallel axes: the scan's axes have
    been arranged like the store's before.

    Args:
        stored_affine, affine: (4, 4), voxel index -> scanner mm.

    Raises:
        ValueError: the two grids are rotated against each other.
    """
    across = np.linalg.solve(stored_affine, affine)  # index in the scan -> index in the store
    linear = across[:3, :3]
    if np.abs((linear - np.diag(np.diag(linear))) @ np.diag(shape)).max() > 0.1:
        raise ValueError(f"the stored grid is rotated against the scan's: {np.round(linear, 3).tolist()}")
    axes = []
    for n_stored, n, scale, start in zip(stored_shape, shape, np.diag(linear), across[:3, 3]):
        at = start + scale * np.arange(n)
        inside = (at > -0.5 - _ROUNDING) & (at < n_stored - 0.5 + _ROUNDING)
        at = np.clip(np.round(at, 4), 0, n_stored - 1)
        low = np.floor(at).astype(np.intp)
        weight = (at - low).astype(np.float32)
        axes.append(Axis(low, np.minimum(low + 1, n_stored - 1), weight, inside, float(scale), float(start)))
    return Resampling(tuple(axes), affine)


def label_map(probability: np.ndarray, back: Resampling) -> np.ndarray:
    """The likeliest class in every voxel of the scan: uint8 (X, Y, Z), background outside of the crop.

    probability: (classes, X, Y, Z) float32 on the stored grid; the first class is background.
    """
    return np.argmax(np.stack([back(shares) for shares in probability]), axis=0).astype(np.uint8)


def reaching_edge(labels: np.ndarray, back: Resampling) -> set[int]:
    """Labels of maps (T, X, Y, Z) on the scan's grid that touch an edge of the crop beyond which the scan continues.

    The structure may continue there too, outside of the model's input.
    """
    found = set()
    for k, axis in enumerate(back.axes):
        within = np.flatnonzero(axis.inside)
        for edge, end in ((within[0], 0), (within[-1], len(axis.inside) - 1)):
            if edge != end:
                found |= set(np.unique(np.take(labels, edge, axis=k + 1)).tolist()) - {0}
    return found


def voxel_size(affine: np.ndarray) -> tuple[float, float, float]:
    """(X, Y, Z) [mm] of a voxel of a (4, 4) affine; their product is its volume, even if it is not rectangular.

    The third is the distance between slices.
    """
    x, y, _ = spacing_of(affine)
    return float(x), float(y), float(abs(np.linalg.det(affine[:3, :3])) / (x * y))


def original_points(pixels: np.ndarray, stored_affine: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 2), pixels of a stored single slice, as (..., 3) voxel indices of the scan and scanner mm (RAS+)."""
    mm = pixels @ stored_affine[:3, :2].T + stored_affine[:3, 3]
    return np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3])[..., None])[..., 0], mm


def label_files(name: str, labels: np.ndarray, source: Source, cine: Cine) -> dict[str, bytes]:
    """{file name: compressed NIfTI} of label maps uint8 (T, X, Y, Z), one for each file of a NIfTI cine.

    Shape, affines with their codes, zooms and units are those of the cine's file; nothing else of its header is kept.
    For other formats there is one file, with the affine of the cine and the time in seconds. There is a file for each
    frame where `source.frames` names them.

    Raises:
        OSError: a file of the cine can no longer be read.
    """
    in_time = np.moveaxis(labels, 0, -1)
    parts = {f"{name}_{frame}_labels.nii.gz": labels[t] for t, frame in enumerate(source.frames)}
    parts = parts or {f"{name}_labels.nii.gz": in_time}
    if source.format != "nifti":
        return {file: _compressed(_with_affine(part, cine)) for file, part in parts.items()}
    return {file: _compressed(_like(path, part)) for (file, part), path in zip(parts.items(), source.files)}


def _with_affine(labels: np.ndarray, cine: Cine):
    """An image of labels (X, Y, Z[, T]) with the geometry of a cine."""
    image = nib.Nifti1Image(labels, cine.affine)
    image.set_sform(cine.affine, code="scanner")
    image.set_qform(cine.affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec" if cine.frame_time_ms else "unknown")
    image.header["pixdim"][4] = (cine.frame_time_ms or 0) / 1000
    return image


def _like(path: Path, labels: np.ndarray):
    """An image of labels with the shape and the geometry of a NIfTI file that was read as a cine before; (X, Y, Z) for
    one frame of several."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        start = (gzip.GzipFile(fileobj=raw) if compressed else raw).read(540)
    is_second = 540 in {int.from_bytes(start[:4], order) for order in ("little", "big")}
    kind, length = (nib.Nifti2Image, 540) if is_second else (nib.Nifti1Image, 348)
    found = kind.header_class(start[:length], check=False)
    header = kind.header_class()
    header.set_data_dtype(np.uint8)
    shape = found.get_data_shape()
    shape = shape if math.prod(shape) == labels.size else shape[:3]
    header.set_data_shape(shape)
    for field in _GEOMETRY:
        header[field] = found[field]
    return kind(labels.reshape(shape), None, header)


def _compressed(image) -> bytes:
    return gzip.compress(image.to_bytes(), 6, mtime=0)
