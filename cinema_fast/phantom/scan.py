"""The synthetic scanner: positions of a study's image planes, and acquisition of a view."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.views import VIEWS
from .patient import Patient
from .render import HeartRenderer, Plane
from .thorax import Thorax

# Angle of each long-axis plane around the axis, from the middle of the septum to the inferior wall, and the patient
# directions (RAS+) that point right and down in the image.
LAX_ANGLE = {"lax_2c": math.radians(-105), "lax_3c": math.radians(-45), "lax_4c": math.radians(15)}
_TO_THE_BACK, _TO_THE_FEET, _TO_THE_LEFT = (0, -1, 0), (0, 0, -1), (-1, 0, 0)
_RIGHT_DOWN = {
    "sax": (_TO_THE_LEFT, (0, -1, -0.4)),
    "lax_2c": (_TO_THE_BACK, _TO_THE_FEET),
    "lax_3c": (_TO_THE_BACK, _TO_THE_FEET),
    "lax_4c": (_TO_THE_LEFT, _TO_THE_BACK),
}
_LAX_THICKNESS_MM = 6.0
_FRAMES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ViewGrid:
    """Voxel grid of a view: `axes` (3, 3), rows the unit vectors of X, Y, Z in the patient; `origin` voxel 0, mm."""

    axes: NDArray[np.float64]
    origin: NDArray[np.float64]
    spacing: tuple[float, float, float]
    size: int
    n_slices: int

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to patient mm, (4, 4)."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes.T * self.spacing
        affine[:3, 3] = self.origin
        return affine

    def plane(self, z: int, shift: NDArray[np.float64], patient: Patient) -> Plane:
        """Slice `z` in heart coordinates; the body is displaced by `shift` mm from the position the scanner assumes."""
        corner = self.origin + z * self.spacing[2] * self.axes[2] - shift
        step = self.spacing[0] * self.axes[:2] @ patient.axes.T
        return Plane(patient.axes @ (corner - patient.apex_mm), step[0], step[1], self.size)

    def points(self, z: int, shift: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """Patient coordinates of slice `z`, float32 arrays (y, x)."""
        corner = self.origin + z * self.spacing[2] * self.axes[2] - shift
        return Plane(corner, *(self.spacing[0] * self.axes[:2]), self.size).points(0, self.size, 0, self.size)


def view_grids(
    patient: Patient, rng: np.random.Generator, *, size: int, in_plane_mm: float, n_slices: int
) -> dict[str, ViewGrid]:
    """Plan the four views on the patient's heart, with the variation of a radiographer.

    The short-axis stack runs from base to apex and covers the ventricles and a margin whatever `n_slices` is.
    """
    septum, inferior, base = patient.axes
    length, wall = patient.heart.length_mm, patient.heart.wall_mm
    grids = {}
    for view in VIEWS:
        turn, off = rng.normal(0, math.radians(6)), rng.normal(0, 6, 2)
        if view == "sax":
            across, normal = septum, -base
        else:
            across = math.cos(LAX_ANGLE[view]) * septum + math.sin(LAX_ANGLE[view]) * inferior
            normal = np.cross(across, base)
        right, down = (np.array(a, float) for a in _RIGHT_DOWN[view])
        down -= normal * (normal @ down)
        u = np.cross(down, normal)
        u *= np.sign(u @ right) / np.linalg.norm(u)
        down /= np.linalg.norm(down)
        u, v = math.cos(turn) * u + math.sin(turn) * down, math.cos(turn) * down - math.sin(turn) * u
        centre = patient.apex_mm + 0.62 * length * base + 12 * across * (view != "lax_2c") + off[0] * u + off[1] * v
        if view == "sax":
            bottom, top = -wall - 4, length + 11
            thickness, slices = (top - bottom) / n_slices, n_slices
            centre += (top - thickness / 2 - 0.62 * length) * base
        else:
            thickness, slices = _LAX_THICKNESS_MM, 1
        corner = centre - (size - 1) / 2 * in_plane_mm * (u + v)
        axes = np.stack([u, v, normal])
        grids[view] = ViewGrid(axes, corner, (in_plane_mm, in_plane_mm, thickness), size, slices)
    return grids


def acquire(
    grid: ViewGrid,
    patient: Patient,
    renderer: HeartRenderer,
    thorax: Thorax,
    phases: NDArray[np.float64],
    shifts: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    gain: float,
    noise_sd: float,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Image and labels of a view, (T, Z, Y, X); `shifts` (Z, 3) are the breath-holds' positions in mm."""
    shape = (len(phases), grid.n_slices, grid.size, grid.size)
    image, label = np.empty(shape, np.uint16), np.zeros(shape, np.uint8)
    for z, shift in enumerate(shifts):
        points = grid.points(z, shift)
        plane = grid.plane(z, shift, patient)
        box = renderer.box(plane)
        static = thorax.signal(*points, 1.2 * grid.spacing[0])
        renderer.surround(plane, static)
        bias = thorax.bias(*points) * np.float32(gain)
        for t in range(0, len(phases), _FRAMES_AT_ONCE):
            now = phases[t : t + _FRAMES_AT_ONCE]
            signal = np.repeat(static[None], len(now), axis=0)
            renderer.draw(plane, box, now, signal, label[t : t + len(now), z])
            signal *= bias
            image[t : t + len(now), z] = add_rician_noise(signal, noise_sd * gain, rng) + np.float32(0.5)
    return image, label


def add_rician_noise(
    signal: NDArray[np.float32], sd: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Magnitude of `signal` plus complex Gaussian noise of standard deviation `sd` a channel.

    |s + r e^{i a}| with r Rayleigh and a uniform: the noise in polar form (Box and Muller), which costs one cosine.
    """
    r2 = rng.random(signal.shape, np.float32)
    np.log(np.subtract(1, r2, out=r2), out=r2)
    r2 *= -2 * sd * sd
    cosine = rng.random(signal.shape, np.float32)
    cosine *= np.float32(2 * math.pi)
    np.cos(cosine, out=cosine)
    cosine *= np.sqrt(r2)
    cosine *= 2
    cosine += signal
    cosine *= signal
    cosine += r2
    return np.sqrt(np.maximum(cosine, 0, out=cosine), out=cosine)
