"""From a scanner's voxel grid to the model's grid: centring, resampling, intensity window.

It follows the CineMA reference (Fu et al. 2025, "Preparation of raw studies"): resample linearly to a fixed spacing,
centre where the two-chamber, four-chamber and short-axis planes meet, crop or pad to a fixed size, clip each frame to
percentiles and rescale to 8 bits. As in the reference, no low-pass filter precedes the resampling: pixels of 0.7-1.9 mm
become 1 mm, so little is lost, and the published weights were trained on images made this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PERCENTILES = (0.95, 99.5)
# |det| of the three planes' unit normals: 1 where they are orthogonal, as in a planned study; below this two of
# them are nearly parallel (a mislabelled view, a header without orientation) and their meeting point is arbitrary.
MIN_NORMALS_DET = 0.1
# Labels are sampled this part of a voxel beside their position. Exactly midway between two voxels, where regular grids
# often meet, two classes would tie, and the one that wins ties would grow on all sides.
_BESIDE = np.float32(1e-4)


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) mm between neighbouring voxels along each axis of a (4, 4) affine."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def to_index(affine: np.ndarray, point_mm: np.ndarray) -> np.ndarray:
    """(3,) fractional voxel index of a point in scanner mm."""
    return np.linalg.solve(affine[:3, :3], point_mm - affine[:3, 3])


def image_centre(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """(3,) scanner mm of the middle of a grid of `shape` (X, Y, Z)."""
    return affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]


def in_plane(shape: Sequence[int], affine: np.ndarray, point_mm: np.ndarray) -> bool:
    """Whether a point, projected onto the image plane, lies on the pixels of the image."""
    index = to_index(affine, point_mm)[:2]
    return bool(np.all(index > -0.5) and np.all(index < np.asarray(shape[:2]) - 0.5))


def meeting_point(grids: dict[str, tuple[Sequence[int], np.ndarray]]) -> np.ndarray | None:
    """(3,) scanner mm where the planes of `lax_2c`, `lax_4c` and the middle of the `sax` stack meet.

    grids: view -> (shape (X, Y, Z), affine (4, 4)). None where one of the three views is missing, where two of the
    planes are nearly parallel, or where the point is off one of the images.
    """
    planes = [grids[view] for view in ("lax_2c", "lax_4c", "sax") if view in grids]
    if len(planes) < 3:
        return None
    normals = np.stack([np.cross(affine[:3, 0], affine[:3, 1]) for _, affine in planes])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    if abs(np.linalg.det(normals)) < MIN_NORMALS_DET:
        return None
    on_plane = np.stack([image_centre(shape, affine) for shape, affine in planes])
    point = np.linalg.solve(normals, (normals * on_plane).sum(1))
    return point if all(in_plane(shape, affine, point) for shape, affine in planes) else None


def label_centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """(3,) scanner mm of the middle of the bounding box of a mask (X, Y, Z); None for an empty mask."""
    voxels = np.argwhere(mask)
    if not len(voxels):
        return None
    return affine[:3, :3] @ ((voxels.min(0) + voxels.max(0)) / 2) + affine[:3, 3]


@dataclass(frozen=True, slots=True)
class Axis:
    """Linear interpolation along one axis: out[j] = a[low[j]] * (1 - weight[j]) + a[high[j]] * weight[j]."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    inside: np.ndarray  # False where the output lies off the image: padding
    scale: float  # input voxels per output voxel
    start: float  # input index of output 0


def _axis(n: int, spacing: float, target: float, size: int, centre: float, *, pad: bool) -> Axis:
    """The window of `size` outputs around input index `centre`, on the grid of the whole resampled axis.

    That grid begins at the image's outer edge (not at the first voxel's centre) and has round(n * spacing / target)
    voxels; a single voxel lies in the middle. Without `pad` the window is at most as long as that grid, and is
    shifted to lie on it.
    """
    scale = target / spacing
    n_resampled = max(1, round(round(n / scale, 6)))
    first = 0.5 * scale - 0.5 if n_resampled > 1 else (n - 1) / 2  # input index of the grid's voxel 0
    if not pad:
        size = min(size, n_resampled)
    # rounded: a centre is often in the middle of a voxel or between two, where the affine's noise would decide
    start = int(np.floor(np.round((centre - first) / scale - (size - 1) / 2 + 0.5, 3)))
    if not pad:
        start = min(max(start, 0), n_resampled - size)
    out = start + np.arange(size)
    # rounded, so that an affine's float32 noise does not blur a grid that already has the target spacing
    at = np.clip(np.round(first + out * scale, 4), 0, n - 1)
    low = np.floor(at).astype(np.intp)
    return Axis(low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32), (out >= 0) & (out < n_resampled),
                scale, first + start * scale)


@dataclass(frozen=True, slots=True)
class Resampling:
    """How one view's frames (X, Y, Z) become frames of `shape`; `affine`: stored voxel index -> scanner mm."""

    axes: tuple[Axis, Axis, Axis]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(len(axis.low) for axis in self.axes)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Resample and crop one frame (X, Y, Z) float32; padding is 0, or the frame's minimum if that is below."""
        out = frame.T  # a NIfTI's own order of memory: rows of x
        for k, axis in zip((2, 1, 0), self.axes):
            weight = axis.weight.reshape([-1 if d == k else 1 for d in range(3)])
            out = np.take(out, axis.low, axis=k) * (1 - weight) + np.take(out, axis.high, axis=k) * weight
        out = out.T
        inside = np.ix_(*(axis.inside for axis in self.axes))
        if all(axis.inside.all() for axis in self.axes):
            return out
        padded = np.full(self.shape, min(np.float32(0), frame.min()), np.float32)
        padded[inside] = out[inside]
        return padded

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Resample and crop a label map uint8 (X, Y, Z): each voxel gets the class, or background, with most weight.

        Each class is resampled as a mask, like a frame. Outlines then lie where linear interpolation puts them, walls
        one voxel thick stay closed, and volumes are kept better than by nearest-neighbour resampling. Padding is 0.
        """
        out = np.zeros(self.shape, np.uint8)
        if not labels.any():
            return out
        box, window, axes = [], [], []  # bounding box of the labels, its place in the output, and the axes between them
        for k, axis in enumerate(self.axes):
            at = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {k})))
            first, last = max(at[0] - 1, 0), min(at[-1] + 1, labels.shape[k] - 1)
            near = np.flatnonzero((axis.high >= at[0]) & (axis.low <= at[-1]) & axis.inside)
            box.append(slice(first, last + 1))
            window.append(near)
            axes.append(replace(axis, low=axis.low[near] - first, high=axis.high[near] - first,
                                weight=axis.weight[near] - _BESIDE, inside=axis.inside[near]))
        beside, labels = replace(self, axes=tuple(axes)), labels[tuple(box)]
        classes = np.flatnonzero(np.bincount(labels.ravel(order="K"))[1:]) + 1
        shares = [beside((labels == value).astype(np.float32)) for value in classes]
        shares.insert(0, 1 - sum(shares))
        out[np.ix_(*window)] = np.array([0, *classes], np.uint8)[np.argmax(shares, axis=0)]
        return out


    def cut(self, labels: np.ndarray) -> tuple[int, int]:
        """(labelled voxels of a map (X, Y, Z), those of them whose centre lies outside the window)."""
        inside = []
        for n, axis in zip(labels.shape, self.axes):
            at = np.round((np.arange(n) - axis.start) / axis.scale, 4)  # in voxels of the window
            inside.append((at >= -0.5) & (at <= len(axis.low) - 0.5))
        labelled = int(np.count_nonzero(labels))
        return labelled, labelled - int(np.count_nonzero(labels[np.ix_(*inside)]))


def plan_resampling(
    shape: Sequence[int], affine: np.ndarray, centre_mm: np.ndarray, *, spacing: Sequence[float], size: Sequence[int]
) -> Resampling:
    """Resampling of a grid (X, Y, Z) to `spacing` mm and `size` around a point in scanner mm.

    In plane the window is exactly `size`, padded where it leaves the image. With three spacings and sizes (a stack)
    slices are resampled too, to at most size[2]; they are not padded here but at loading. With two the third axis is
    left as it is.
    """
    centre = to_index(affine, centre_mm)
    source = spacing_of(affine)
    n_target = len(size)
    axes = tuple(
        _axis(shape[k], source[k], spacing[k], size[k], centre[k], pad=k < 2) if k < n_target
        else _axis(shape[k], 1.0, 1.0, shape[k], 0.0, pad=False)
        for k in range(3)
    )
    stored = affine.copy()
    stored[:3, 3] = affine[:3, :3] @ [axis.start for axis in axes] + affine[:3, 3]
    stored[:3, :3] = affine[:3, :3] * [axis.scale for axis in axes]
    return Resampling(axes, stored)


def to_uint8(frame: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Clip to the 0.95th and 99.5th percentile of the frame (padding included) and rescale to 0..255, rounded.

    Returns the uint8 frame and (low, high), the intensities that became 0 and 255. Where the two percentiles are
    equal (a frame nearly all background) they are the frame's minimum and maximum.

    Raises:
        ValueError: the frame is constant.
    """
    low, high = np.percentile(frame, PERCENTILES).astype(np.float32)
    if low == high:
        low, high = frame.min(), frame.max()
    if low == high:
        raise ValueError(f"is constant ({low:g}) inside the cropped window")
    scaled = (np.clip(frame, low, high) - low) / (high - low)
    return np.rint(scaled * 255).astype(np.uint8), (float(f"{low:.9g}"), float(f"{high:.9g}"))
