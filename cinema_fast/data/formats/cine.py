"""A cine, whatever format it was read from: its volumes, and the checks of its geometry and values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

# No cine is larger (512 x 512 x 20 slices x 50 frames of float32 are 1 GiB); refuses files of compressed zeros.
MAX_BYTES = 4 << 30
# Frames 30-40 ms apart are more alike than slices 10 mm apart: on a real stack the mean change from frame to frame
# is 0.08 of that from slice to slice (ED against ES, the extreme: 0.4 to 0.65). Beyond this the axes are swapped.
MAX_TIME_CHANGE = 2.0
# On real cines of 25 frames the mean change from frame to frame is 0.3 to 0.7 of that from pixel to pixel, and 1 in
# pure noise. With only ED and ES it is up to 3.2, so with fewer frames than this it is not conclusive.
MANY_FRAMES = 32
# No cine has so few pixels along an in-plane axis and twice as many frames; a file with time in place of X or Y may.
FEW_PIXELS = 64

# Up to about this distance in mm, neighbouring slices differ more the further apart they are. The check corrects for
# thinner slices where there are few frames: ED and ES differ most.
THICK_SLICES_MM = 10.0
FEW_FRAMES = 4
# The axes of a scan are orthogonal. Rounded headers are off by 0.01 degrees in plane. Slices may shift a little between
# breath-holds: 10 degrees are 1.8 mm from one slice to the next.
MAX_SHEAR_IN_PLANE, MAX_SHEAR_OF_SLICES = 1.0, 10.0


class CineError(ValueError):
    """A file is not a usable cine. `reason` is the message without the file's name, one line: characters that
    cannot be printed, which a damaged header can hold, are written as escapes."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = Path(path), "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class IncompleteCine(CineError):
    """Images are missing, or one slice has more of them than others. `path` is a file that belongs to them."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Pixels and geometry of one file, or of a DICOM series, in its own dtype.

    data: array as in the file, axes (X, Y[, Z[, T ...]]), Fortran order, read-only use; values are
    `data * slope + inter`. affine: (4, 4) float64, voxel index -> scanner mm (RAS+). frame_time_ms: ms, or None
    where the header does not say. sha256: of the file's bytes. oriented: whether the header gives the axes' directions
    in the patient: an orientation code is set, and they are not just the scanner's axes. remark: how the header
    contradicts itself, or "".
    """

    data: np.ndarray
    slope: float
    inter: float
    affine: np.ndarray
    frame_time_ms: float | None
    sha256: str
    oriented: bool = True
    remark: str = ""

    def values(self, t: int | None = None) -> np.ndarray:
        """float32 values of frame `t` of the last axis, or of everything."""
        raw = self.data if t is None else self.data[..., t]
        with np.errstate(over="ignore", invalid="ignore"):
            values = raw.astype(np.float32)
            if (self.slope, self.inter) != (1.0, 0.0):
                values = values * np.float32(self.slope) + np.float32(self.inter)
        return values


@dataclass(frozen=True, slots=True)
class Cine:
    """A checked cine: `n_frames` frames of `shape` (X, Y, Z), Z = 1 for a long-axis view.

    volumes: one 4D volume, or one volume per frame. affine: (4, 4) float64, voxel index -> scanner mm (RAS+).
    frame_time_ms: ms or None. sha256: of the file; of several files, the SHA-256 of their joined hexadecimal digests.
    oriented: that of the (first) volume. remark: how contradictions of its headers were resolved, or "".
    """

    volumes: tuple[Volume, ...]
    shape: tuple[int, int, int]
    n_frames: int
    affine: np.ndarray
    frame_time_ms: float | None
    sha256: str
    oriented: bool = True
    remark: str = ""

    def at(self, frames: Sequence[int]) -> Cine:
        """These frames alone; the time between them is unknown."""
        whole, several = self.volumes[0], len(self.volumes) > 1
        volumes = tuple(
            self.volumes[t] if several else replace(whole, data=whole.data[..., t]) if whole.data.ndim == 4 else whole
            for t in frames
        )
        return replace(self, volumes=volumes, n_frames=len(frames), frame_time_ms=None)

    def frame(self, t: int) -> np.ndarray:
        """Frame `t` as float32 (X, Y, Z)."""
        volume, t = (self.volumes[0], t) if len(self.volumes) == 1 else (self.volumes[t], None)
        return volume.values(t if volume.data.ndim == 4 else None).reshape(self.shape, order="F")


def check_cine(cine: Cine, path: Path, *, stack: bool | None) -> None:
    """Raise CineError of `path` where the geometry or the values are not those of a cine, as in `read_cine`."""
    try:
        _check_geometry(cine, stack)
        _check_values(cine)
    except ValueError as err:
        raise CineError(path, str(err)) from None


def file_sha256(paths: Sequence[Path]) -> str:
    """The `Cine.sha256` of a cine read from these files."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return joined_sha256(digests)


def joined_sha256(digests: list[str]) -> str:
    """The `Cine.sha256` of a cine from files with these digests, in their order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _check_geometry(cine: Cine, stack: bool | None) -> None:
    (x, y, z), linear = cine.shape, cine.affine[:3, :3]
    if not np.isfinite(cine.affine).all():
        raise ValueError("the affine holds values that are not finite")
    spacing = np.linalg.norm(linear, axis=0)
    # volume of the unit cell relative to a box: 1 for a rectangular grid, 0 for axes in one plane
    if spacing.min() == 0 or abs(np.linalg.det(linear / spacing)) < 0.1:
        raise ValueError(f"the affine is singular: voxel axes {linear.T.round(3).tolist()} do not span space")
    _check_angles(linear / spacing, z)
    if stack is False and z != 1:
        raise ValueError(f"a long-axis view has one slice, (X, Y, 1, T) with time last; this one has {z} "
                         f"(shape {(*cine.shape, cine.n_frames)})")
    if z > min(x, y):
        raise ValueError(f"axes in the wrong order: {z} slices of {x} x {y} pixels; expected (X, Y, Z, T)")
    if min(x, y) < FEW_PIXELS and cine.n_frames >= 2 * min(x, y):
        raise ValueError(f"the time axis is not last: shape {(*cine.shape, cine.n_frames)} would be {cine.n_frames} "
                         f"frames of {x} x {y} pixels; expected (X, Y, Z, T)")
    text = " x ".join(f"{mm:g}" for mm in spacing)
    if max(spacing[:2]) > 2 * min(spacing[:2]) or (z > 1 and spacing[2] < max(spacing[:2]) / 2):
        raise ValueError(f"axes in the wrong order: voxels of {text} mm; expected (X, Y, Z, T), slices third")
    if spacing.min() < 0.05 or spacing.max() > 200:
        raise ValueError(f"voxels of {text} mm are not those of a cine (units of the header?)")


def _check_angles(directions: np.ndarray, n_slices: int) -> None:
    """Raise ValueError where the axes, columns of `directions` (3, 3), do not stand at right angles."""
    x, y, z = directions.T
    shear = np.degrees(np.arcsin(min(abs(x @ y), 1.0)))
    if shear > MAX_SHEAR_IN_PLANE:
        raise ValueError(f"the affine is sheared: X and Y are at {90 - shear:.3g} degrees to each other, not at 90; "
                         f"resample the file to a rectangular grid, or correct its header")
    normal = np.cross(x, y)
    tilt = np.degrees(np.arccos(min(abs(normal @ z) / np.linalg.norm(normal), 1.0)))
    if n_slices > 1 and tilt > MAX_SHEAR_OF_SLICES:
        raise ValueError(f"the affine is sheared: the slice direction is at {tilt:.3g} degrees to the normal, "
                         f"expected {MAX_SHEAR_OF_SLICES:g} at most; resample the file to a rectangular grid, or "
                         f"correct its header")


def _check_values(cine: Cine) -> None:
    bad, constant = [], []
    for t in range(cine.n_frames):
        frame = cine.frame(t)
        low, high = float(frame.min()), float(frame.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad.append(t)
        elif low == high:
            constant.append(t)
    for frames, what in ((bad, "values that are not finite"), (constant, "one constant value")):
        if frames:
            which = "every frame" if len(frames) == cine.n_frames else f"frame {', '.join(map(str, frames[:5]))}"
            more = f" and {len(frames) - 5} more" if 5 < len(frames) < cine.n_frames else ""
            raise ValueError(f"{which}{more} of {cine.n_frames} holds {what}")


def check_time_axis(cine: Cine) -> None:
    """Raise ValueError where the last axis of a file is not time: another axis is smoother."""
    n_frames, shape = cine.n_frames, (*cine.shape, cine.n_frames)
    *over_space, over_time = _mean_changes(cine)
    thinness = max(1.0, THICK_SLICES_MM / float(np.linalg.norm(cine.affine[:3, 2]))) if n_frames <= FEW_FRAMES else 1.0
    for axis, n, change in zip(("first", "second", "third"), cine.shape, over_space):
        if axis == "third":
            swapped = 0 < MAX_TIME_CHANGE * thinness * change < over_time  # identical slices are not a time axis
        elif n_frames > n:  # in doubt the smoother axis is time
            swapped = change < over_time
        else:
            swapped = n_frames >= MANY_FRAMES and MAX_TIME_CHANGE * change < over_time
        if swapped:
            raise ValueError(f"the time axis is not last: shape {shape}, but neighbours on the last axis differ by "
                             f"{over_time:.3g} on average, those on the {axis} by only {change:.3g}")


@np.errstate(over="ignore")
def _mean_changes(cine: Cine) -> tuple[float, float, float, float]:
    """Mean |difference| between neighbours along X, Y, Z and T, on a sixteenth of the pixels; 0 along one slice."""
    changes = np.zeros(4)
    before = None
    for t in range(cine.n_frames):
        frame = cine.frame(t)
        here = frame[:-1:4, :-1:4]
        changes[0] += np.abs(frame[1::4, :-1:4] - here).mean() / cine.n_frames
        changes[1] += np.abs(frame[:-1:4, 1::4] - here).mean() / cine.n_frames
        if cine.shape[2] > 1:
            changes[2] += np.abs(np.diff(here, axis=2)).mean() / cine.n_frames
        if before is not None:
            changes[3] += np.abs(here - before).mean() / (cine.n_frames - 1)
        before = here
    return tuple(changes.tolist())
