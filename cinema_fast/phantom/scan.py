"""Acquisition: positions of a study's image planes, and the images and labels of a view in one of the sequences."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..common.views import VIEWS
from .injury import OEDEMA
from .patient import Patient
from .render import HeartRenderer, Plane
from .scanner import Scanner
from .sequences import PROTOCOLS, Palette, map_palettes, signals
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
SLICE_MM = 10.0  # a usual distance of slices; stacks are moved by a part of it at most, so that they cover the heart
_FRAMES_AT_ONCE = 8
_LARGEST = np.float32(32767)  # images are written as int16
_EDGE = 1.2  # pixels over which an edge is blurred
_MAP_NOISE = 4.0  # of a map, relative to its value, in multiples of the noise of an image over its signal
_MAP_FLOOR = 30.0  # signal that is added where there is nothing to measure: noise of all values


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
    patient: Patient,
    rng: np.random.Generator,
    *,
    size: int,
    in_plane_mm: float,
    n_slices: int,
    along_mm: float = 0.0,
) -> dict[str, ViewGrid]:
    """Plan the four views on the patient's heart, with the variation of a radiographer.

    The short-axis stack runs from base to apex and covers the ventricles and a margin whatever `n_slices` is. It is
    moved towards the base by `along_mm`.
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
            centre += (top - thickness / 2 - 0.62 * length + along_mm) * base
        else:
            thickness, slices = _LAX_THICKNESS_MM, 1
        corner = centre - (size - 1) / 2 * in_plane_mm * (u + v)
        axes = np.stack([u, v, normal])
        grids[view] = ViewGrid(axes, corner, (in_plane_mm, in_plane_mm, thickness), size, slices)
    return grids


def sequence_grid(grid: ViewGrid, sequence: str, patient: Patient, rng: np.random.Generator) -> ViewGrid:
    """The grid of a sequence, planned on that of the cine: a stack has slices at other places, an image another middle.

    A stack of three slices shows the base, the middle and the apex.
    """
    n_slices, distance = grid.n_slices, grid.spacing[2]
    origin = grid.origin + rng.normal(0, 3, 2) @ grid.axes[:2]
    along = rng.uniform(-0.3, 0.3) * min(distance, SLICE_MM)
    if grid.n_slices > 1 and (slices := PROTOCOLS[sequence].slices):
        length = patient.heart.length_mm
        height = (grid.origin - patient.apex_mm) @ patient.axes[2]  # of the first slice
        n_slices, distance, along = slices, length / (slices + 1), along + height - length * slices / (slices + 1)
    if grid.n_slices > 1:
        origin = origin + along * grid.axes[2]
    return replace(grid, origin=origin, spacing=(*grid.spacing[:2], distance), n_slices=n_slices)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Takes images of one body on one scanner."""

    patient: Patient
    renderer: HeartRenderer
    thorax: Thorax
    scanner: Scanner

    def __call__(
        self,
        grid: ViewGrid,
        sequence: str,
        phases: NDArray[np.float64],
        shifts: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        gain: float,
        noise_sd: float,
        atria: bool,
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Image and labels of a view at `phases` (T,), (T, Z, Y, X) each; a map in ms.

        Args:
            shifts: (Z, 3), the breath-holds' positions in mm.
            gain: of the coil; maps have none.
            noise_sd: of each of the two channels before the gain, the blood of a cine being 400.
            atria: also label the atria.
        """
        shape = (len(phases), grid.n_slices, grid.size, grid.size)
        image, label = np.empty(shape, np.uint16), np.zeros(shape, np.uint8)
        is_map = PROTOCOLS[sequence].value_ms is not None
        palettes = map_palettes(sequence) if is_map else (Palette(signals(sequence, self.scanner)),)
        for z, shift in enumerate(shifts):
            points = grid.points(z, shift)
            plane = grid.plane(z, shift, self.patient)
            box = self.renderer.box(plane)
            statics = [self._static(plane, points, palette) for palette in palettes]
            bias = self.thorax.bias(*points) * np.float32(gain)
            for t in range(0, len(phases), _FRAMES_AT_ONCE):
                now = np.s_[t : t + _FRAMES_AT_ONCE]
                drawn = []
                for static, palette in zip(statics, palettes):
                    drawn.append(np.repeat(static[None], len(phases[now]), axis=0))
                    self.renderer.draw(plane, box, phases[now], drawn[-1], label[now, z], self._edge(plane), palette,
                                       injured=sequence != "cine")  # fmt: skip
                if is_map:
                    noisy = _with_map_noise(*drawn, noise_sd, rng)
                else:
                    drawn[0] *= bias
                    add_noise = _add_clipped_noise if sequence == "lge" else add_rician_noise
                    noisy = add_noise(drawn[0], noise_sd * gain, rng)
                image[now, z] = np.minimum(noisy + np.float32(0.5), _LARGEST)
        if not atria:
            label[label > OEDEMA] = 0
        return image, label

    def _edge(self, plane: Plane) -> float:
        return _EDGE * self.scanner.blur * float(np.linalg.norm(plane.step_x))

    def _static(
        self, plane: Plane, points: tuple[NDArray[np.float32], ...], palette: Palette
    ) -> NDArray[np.float32]:
        static = self.thorax.signal(*points, self._edge(plane), palette)
        self.renderer.surround(plane, static, self._edge(plane), palette)
        return static


def _with_map_noise(
    protons: NDArray[np.float32], weighted: NDArray[np.float32], sd: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The map (ms) of proton densities and proton densities x values, with the noise of a fit to noisy images."""
    value = weighted / np.maximum(protons, 1e-3)
    noise = rng.standard_normal(value.shape, np.float32)
    noise *= _MAP_NOISE * sd * np.maximum(value, value.mean()) / (protons + _MAP_FLOOR)
    return np.abs(value + noise)


def _add_clipped_noise(
    signal: NDArray[np.float32], sd: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Noise of a phase-sensitive image; values below 0 are shown as 0."""
    return np.maximum(signal + np.float32(sd) * rng.standard_normal(signal.shape, np.float32), 0)


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
