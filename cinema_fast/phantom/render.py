"""Cuts of the beating heart: from an image plane and the moments of its frames to signal and labels."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.structures import STRUCTURES
from .heart import Array, Beat, BeatingHeart, Located
from .injury import Injury
from .sequences import Palette
from .thorax import FAT, soft

RV, MYO, LV, LA, RA = 1, 2, 3, 7, 8  # label values
AORTA_ANGLE = math.radians(-45.0)  # of the aortic root around the axis, from the middle of the septum
_CHUNK = 131072  # points worked on at once: temporaries stay in the second-level cache


@dataclass(frozen=True, slots=True)
class Plane:
    """A square image plane in heart coordinates (mm): centre of pixel (0, 0), and the steps per pixel."""

    origin: NDArray[np.float64]
    step_x: NDArray[np.float64]
    step_y: NDArray[np.float64]
    size: int

    def points(self, x0: int, x1: int, y0: int, y1: int) -> tuple[NDArray[np.float32], ...]:
        """Heart coordinates of pixels [x0, x1) x [y0, y1), float32 arrays (y, x)."""
        i = np.arange(x0, x1, dtype=np.float32)
        j = np.arange(y0, y1, dtype=np.float32)[:, None]
        return tuple(
            np.float32(o) + np.float32(a) * i + np.float32(b) * j
            for o, a, b in zip(self.origin, self.step_x, self.step_y)
        )


class HeartRenderer:
    """Draws one heart; made once a study. `rng` draws textures, trabeculae and papillary muscles."""

    def __init__(self, heart: BeatingHeart, rng: np.random.Generator, injury: Injury | None = None):
        self.heart, self.injury = heart, injury
        # float32, so that no product with an image widens it
        self._texture = rng.uniform(0.08, 0.22, (2, 3)).astype(np.float32), rng.uniform(0, 6.28, 2).astype(np.float32)
        self._trabeculae = float(rng.uniform(0.9, 1.8)), float(rng.uniform(0, 6.28))
        angles = np.deg2rad([-125.0, 125.0]) + rng.normal(0, 0.12, 2)
        self._papillary = angles.tolist(), rng.uniform(4.0, 6.5, 2).tolist()
        self._cloud = self._surface_points()

    def _surface_points(self) -> NDArray[np.float64]:
        """Points (n, 3) of the heart's outer surface through the cycle, to bound its image."""
        heart = self.heart
        h = np.linspace(heart.bottom + 0.5, heart.top - 0.5, 48)[:, None]
        theta = np.linspace(0, 2 * np.pi, 60, endpoint=False)[None]
        h, theta = np.broadcast_arrays(h, theta)
        r = heart.outer_radius(h, np.cos(theta), np.sin(theta)) * (1 - 1e-9)
        beats = (heart.beat(p * heart.parameters.systole) for p in (0.0, 0.4, 0.7, 1.0))
        moved = [heart.deform(r * np.cos(theta), r * np.sin(theta), h, b) for b in beats]
        return np.stack(moved).transpose(0, 2, 3, 1).reshape(-1, 3)

    def box(self, plane: Plane) -> tuple[int, int, int, int]:
        """Pixels (x0, x1, y0, y1) outside of which the heart never comes; empty where the plane misses it."""
        pixel = np.linalg.norm(plane.step_x)
        u, v = plane.step_x / pixel, plane.step_y / pixel
        offset = self._cloud - plane.origin
        near = offset[np.abs(offset @ np.cross(u, v)) < 8]
        if not len(near):
            return 0, 0, 0, 0
        i, j = near @ u / pixel, near @ v / pixel
        margin = 4 / pixel + 1
        low = np.floor([i.min() - margin, j.min() - margin]).astype(int).clip(0, plane.size)
        high = np.ceil([i.max() + margin, j.max() + margin]).astype(int).clip(0, plane.size)
        return low[0], high[0], low[1], high[1]

    def surround(self, plane: Plane, static: NDArray[np.float32], edge: float, palette: Palette) -> None:
        """Paint the pericardial fat and the great vessels, which do not move, onto `static` (y, x)."""
        x, y, h = plane.points(0, plane.size, 0, plane.size)
        found = self.heart.locate(x, y, h, self.heart.beat(0.0))
        patchy = np.sin(0.09 * x + 0.05 * h) * np.sin(0.08 * y - 0.06 * h)
        outside = found.outside[4]
        beside = (110 + 50 * patchy) * palette.tone("connective")  # seen where the heart withdraws
        static += soft(-outside, edge) * (beside - static)
        fat = 0.85 * FAT * palette.tone("fat")
        static += soft(np.minimum(1.5 + 4 * patchy - outside, outside + 1), 2 * edge) * (fat - static)
        self._paint_aorta(static, x, y, h, edge, palette["blood"], palette["myocardium"])

    def draw(
        self,
        plane: Plane,
        box: tuple[int, int, int, int],
        phases: NDArray[np.float64],
        image: NDArray[np.float32],
        label: NDArray[np.uint8],
        edge: float,
        palette: Palette,
        *,
        injured: bool,
    ) -> None:
        """Draw the heart at `phases` (T,) over the static `image` (T, y, x) and its labels into `label`.

        `box` is the result of `box(plane)`. Edges are blurred over `edge` mm. Without `injured`, injured muscle is
        drawn and labelled as healthy one.
        """
        x0, x1, y0, y1 = box
        if x0 >= x1 or y0 >= y1:
            return
        x, y, h = (a[None] for a in plane.points(x0, x1, y0, y1))
        if max(abs(plane.step_x[2]), abs(plane.step_y[2])) < 1e-9:  # a short-axis slice: one height
            h = h[:, :1, :1]
        chunk = max(1, _CHUNK // x[0].size)
        for t in range(0, len(phases), chunk):
            beat = self.heart.beat(phases[t : t + chunk, None, None])
            beat = Beat(*(a.astype(np.float32) for a in beat))
            found = self.heart.locate(x, y, h, beat)
            window = np.s_[t : t + chunk, y0:y1, x0:x1]
            injury = self.injury.inside(found.x, found.y, found.h) if injured and self.injury else {}
            self._label(found, injury, label[window])
            self._signal(found, injury, beat, edge, palette, image[window])

    def _label(self, found: Located, injury: dict[int, Array], label: NDArray[np.uint8]) -> None:
        heart, d, h = self.heart, found.outside, found.h
        ventricle = (h <= heart.length) & (h >= heart.bottom)
        label[...] = np.where(ventricle & (d[1] < 0), np.uint8(MYO), np.uint8(0))
        for value, inside in injury.items():
            label[(label != 0) & (inside > 0)] = value
        label[(d[0] < 0) & (h >= 0) & ventricle] = LV
        right = (d[1] >= 0) & (d[2] < 0)
        label[right & (h <= heart.tricuspid) & ventricle] = RV
        if np.max(h) > heart.tricuspid:
            label[(d[0] < 0) & (h > heart.length)] = LA
            label[right & (h > heart.tricuspid)] = RA

    def _signal(
        self,
        found: Located,
        injury: dict[int, Array],
        beat: Beat,
        edge: float,
        palette: Palette,
        image: NDArray[np.float32],
    ) -> None:
        """Blend the layers by their coverage of each pixel; every texture is carried by the tissue."""
        heart = self.heart
        x, y, h = found.x, found.y, found.h
        d1, d2, d3, d4, d5 = found.outside
        rough = self._roughness(x, y, h)
        m1 = soft(d1 + rough, edge)
        m2, m3, m4, m5 = soft(d2, edge), soft(d3 + 0.7 * rough, edge), soft(d4, edge), soft(d5, edge)
        muscle = m1 - m2 + m3
        muscle += (1 - m1) * self._papillary_muscles(x, y, h, edge)
        k, f = self._texture
        mottle = np.sin(k[0, 0] * x + k[0, 1] * y + (k[0, 2] * h + f[0]))
        mottle *= np.sin(k[1, 0] * x - k[1, 1] * y + (k[1, 2] * h + f[1]))
        blood, healthy = palette["blood"] * (1 + 0.05 * mottle), palette["myocardium"]
        wall = healthy
        for value, inside in injury.items():
            wall = wall + soft(inside, edge) * (palette[STRUCTURES[value]] - wall)
        signal = blood + muscle * (wall * (1 - 0.08 * mottle) - blood)
        if h.max() > heart.length - 30:
            self._paint_valves(signal, x, y, h, d2, d3, beat, edge, healthy)
        signal += m4 * (FAT * palette.tone("fat") - healthy)
        if h.max() > heart.length:
            self._paint_aorta(signal, x, y, h, edge, blood, healthy)
        image += (1 - m5) * (signal - image)

    def _roughness(self, x: Array, y: Array, h: Array) -> Array:
        """Depth (mm) by which trabeculae enter the cavity: ridges around the axis that wind along it."""
        r = np.sqrt(x * x + y * y) + 1e-3
        c, s = x / r, y / r
        c2, s2 = c * c - s * s, 2 * c * s
        c4, s4 = c2 * c2 - s2 * s2, 2 * c2 * s2
        c5, s5 = c4 * c - s4 * s, s4 * c + c4 * s
        c9, s9 = c4 * c5 - s4 * s5, s4 * c5 + c4 * s5
        wind, start = self._trabeculae
        turn = wind * 0.1 * h + start
        cos, sin = np.cos(turn), np.sin(turn)
        fade = np.clip((0.85 * self.heart.length - h) / 20, 0, 1)
        return np.clip(c9 * cos + s9 * sin + c5 * sin - s5 * cos + 0.3 * c2 - 0.2, 0, 2) * (1.2 * fade)

    def _papillary_muscles(self, x: Array, y: Array, h: Array, edge: float) -> Array:
        """Coverage by the two papillary muscles, spindles that stand off the wall."""
        up = h / self.heart.length
        cavity = self.heart.radius * np.sqrt(np.clip(up * 1.45 * (2 - up * 1.45), 0, 1))
        thick = np.clip(1 - ((up - 0.44) / 0.26) ** 2, 0, 1)
        cover = np.zeros_like(x)
        for angle, radius in zip(*self._papillary):
            dx, dy = x - cavity * (0.68 * math.cos(angle)), y - cavity * (0.68 * math.sin(angle))
            square = radius * radius * thick
            cover += np.clip((square - dx * dx - dy * dy) / (2 * radius * edge) + 0.5 * (thick > 0), 0, 1)
        return cover

    def _paint_valves(
        self, signal: Array, x: Array, y: Array, h: Array, d2: Array, d3: Array, beat: Beat, edge: float, muscle: float
    ) -> None:
        """Mitral leaflets, a cone that opens towards the apex, and the closed tricuspid valve: thin and grey."""
        heart, opening = self.heart, 1 - beat.systole
        ring = 0.9 * heart.radius
        reach_r, reach_h = ring * (1 - 0.6 * opening), 6 + 13 * opening  # from the annulus to the leaflets' edge
        dr, dh = ring - np.sqrt(x * x + y * y), heart.length - h
        along = np.clip((dr * reach_r + dh * reach_h) / (reach_r**2 + reach_h**2), 0, 1)
        distance = np.hypot(dr - along * reach_r, dh - along * reach_h)
        cover = soft(0.9 - distance, edge) * (d2 < 0)
        closed = soft(0.9 - np.abs(h - heart.tricuspid), edge) * beat.systole * ((d2 > 0) & (d3 < 0))
        signal += 0.5 * (cover + closed) * (muscle - signal)

    def _paint_aorta(
        self, signal: Array, x: Array, y: Array, h: Array, edge: float, blood: Array | float, muscle: float
    ) -> None:
        """The aortic root and the vessel above it: a tube that leaves the base beside the septum."""
        p = self.heart.parameters
        above = h - self.heart.length
        axis = 0.76 * self.heart.radius + 0.22 * above
        arch = np.maximum(above - 22, 0) ** 2 * 0.008  # leaves the three-chamber plane on its way up
        cos, sin = math.cos(AORTA_ANGLE), math.sin(AORTA_ANGLE)
        distance = np.hypot(x - axis * cos + arch * sin, y - axis * sin - arch * cos)
        radius = p.aorta_mm * (1 + 0.2 * np.clip(1 - ((above - 14) / 10) ** 2, 0, 1))
        here = np.clip(above + 0.5, 0, 1) * (above < 85)
        signal += soft(radius + 1.5 - distance, edge) * here * (muscle - signal)
        signal += soft(radius - distance, edge) * here * (blood - signal)
