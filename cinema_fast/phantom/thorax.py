"""The static surroundings of the synthetic heart: chest wall, lungs, liver, spine, vessels, and the coil's bias.

Patient coordinates are those of NIfTI (RAS+): x to the right, y to the front, z to the head, mm. All functions take
the three coordinates as arrays of one shape, so that every view samples the same body.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .sequences import CINE, Palette

Image = NDArray[np.float32]
Paint = Callable[[Image, Image | float], None]

# The brightness of tissues and their textures are written as in the standard cine; a palette's tone of each tissue
# turns them into those of another sequence.
LUNG, MUSCLE, LIVER, FAT = (CINE[name] for name in ("lung", "muscle", "liver", "fat"))


def soft(depth: Image, width: float) -> Image:
    """Coverage of a pixel by a region, from the depth (mm, positive inside) of its centre below the region's edge."""
    return np.clip(0.5 + depth / width, 0, 1)


class Waves:
    """Smooth random field of mean 0 and variance 1: a sum of plane waves with wavelengths around `length_mm`."""

    def __init__(self, rng: np.random.Generator, length_mm: float, n: int = 5):
        direction = rng.standard_normal((n, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self._k = (2 * math.pi / length_mm * rng.uniform(0.7, 1.4, (n, 1)) * direction).astype(np.float32)
        self._phase = rng.uniform(0, 2 * math.pi, n).astype(np.float32)

    def __call__(self, x: Image, y: Image, z: Image) -> Image:
        waves = (np.sin(k[0] * x + (k[1] * y + (k[2] * z + f))) for k, f in zip(self._k, self._phase))
        return sum(waves) * np.float32(math.sqrt(2 / len(self._phase)))


class Thorax:
    """One body. `bmi` in kg/m^2 sets its width and the layer of fat under the skin."""

    def __init__(self, rng: np.random.Generator, *, bmi: float):
        self._fat = 5 + 1.0 * (bmi - 18) + rng.uniform(0, 4)
        self._half = 150 + 2.2 * (bmi - 24) + rng.uniform(-8, 8), 107 + 1.2 * (bmi - 24) + rng.uniform(-5, 5)
        self._front = rng.uniform(-2, 4)
        self._liver = rng.uniform(-10, 6)
        self._aorta = rng.uniform(10, 13)
        self._coarse, self._middle, self._fine = Waves(rng, 60), Waves(rng, 26), Waves(rng, 13)
        self._bias = rng.uniform(0.25, 0.8), rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)

    def bias(self, x: Image, y: Image, z: Image) -> Image:
        """Relative sensitivity of the receive coils: strongest at the front of the chest."""
        front, side, head = self._bias
        u, v, w = x / 150, y / 100, z / 150
        return 1 + front * v * (1 + 0.4 * v) + side * u + head * w + 0.1 * u * u

    def signal(self, x: Image, y: Image, z: Image, edge_mm: float, palette: Palette) -> Image:
        """Noise-free signal, float32; edges are blurred over `edge_mm`."""
        tone = palette.tone
        coarse, middle, fine = self._coarse(x, y, z), self._middle(x, y, z), self._fine(x, y, z)
        half_x, half_y = self._half
        u2, v2 = (x / half_x) ** 2, ((y - self._front) / half_y) ** 2
        # Between an ellipse and a box; the depth is in mm at the front and the back, more at the sides.
        depth = (1 - np.sqrt(np.sqrt(u2 * u2 + v2 * v2 + u2 * v2))) * half_y
        image = np.zeros(x.shape, np.float32)

        def paint(depth: Image, value: Image | float) -> None:
            image[...] += soft(depth, edge_mm) * (value - image)

        skin = self._fat * (1 + 0.14 * coarse)
        wall = skin + 13 + 2 * middle
        paint(depth, 0.85 * FAT * (1 + 0.05 * middle) * tone("fat"))
        paint(depth - skin, np.where(fine + middle > 2.2, 260.0 * tone("fat"), (MUSCLE + 9 * fine) * tone("muscle")))
        # Ribs slope down to the front, one every 27 mm.
        rib = 7 * np.cos((z + 0.45 * y) * (2 * math.pi / 27)) - 2.5
        inside_wall = np.minimum(depth - skin - 3, wall - 2 - depth)
        paint(np.minimum(rib, inside_wall), palette["bone"])
        paint(np.minimum(rib, inside_wall) - 1.8, palette["marrow"])
        paint(depth - wall, palette["pleura"])
        from_hilum = np.hypot(np.hypot(np.abs(x) - 48, y + 8), z - 12)
        vessel = soft(fine + 0.8 * middle + 0.4 * coarse - 1.6 - 0.02 * from_hilum, 0.5)
        paint(depth - wall - 2.5, LUNG * (1 + 0.3 * middle) * tone("lung") + 250 * vessel * tone("blood"))
        self._paint_middle(paint, x, y, coarse, middle, fine, palette)
        self._paint_abdomen(paint, x, y, z, depth - wall, coarse, middle, fine, palette)
        self._paint_spine(paint, x, y, z, fine, palette)
        return image

    def _paint_middle(
        self, paint: Paint, x: Image, y: Image, coarse: Image, middle: Image, fine: Image, palette: Palette
    ) -> None:
        """Mediastinum: a column of fat and soft tissue behind and beside the heart."""
        column = 30 + 5 * coarse - np.hypot(x + 4, 0.42 * (y + 10))
        paint(column, (100 + 60 * np.clip(middle + 0.5 * fine, -0.8, 2)) * palette.tone("connective"))

    def _paint_abdomen(
        self,
        paint: Paint,
        x: Image,
        y: Image,
        z: Image,
        inside: Image,
        coarse: Image,
        middle: Image,
        fine: Image,
        palette: Palette,
    ) -> None:
        """Below the diaphragm: liver on the right, stomach and spleen on the left, fat between them."""
        tone = palette.tone
        right = 46 * np.exp(-(((x - 70) / 62) ** 2) - ((y + 5) / 85) ** 2)
        left = 34 * np.exp(-(((x + 92) / 50) ** 2) - ((y + 15) / 75) ** 2)
        below = np.minimum(right + left - 52 + self._liver - z, inside)
        paint(below, 45.0 * tone("muscle"))
        bowel = np.where(middle + coarse > 1.0, 300.0 * tone("fat"), (55 + 15 * fine) * tone("muscle"))
        vessel = 90 * soft(fine + 0.9 * middle + 0.5 * coarse - 2.7, 0.7)
        liver = (LIVER + 4 * middle) * tone("liver") + vessel * tone("blood")
        paint(below - 2.5, np.where(x + 6 * coarse > -38, liver, bowel))

    def _paint_spine(self, paint: Paint, x: Image, y: Image, z: Image, fine: Image, palette: Palette) -> None:
        """Vertebrae with discs, the canal with its cord, the muscles beside them, the descending aorta, the cava."""
        tone = palette.tone
        paint(24 - np.hypot(np.abs(x) - 27, 0.8 * (y + 86)), (MUSCLE + 8 * fine) * tone("muscle"))
        disc = np.clip(np.cos(z * (2 * math.pi / 27)) * 4 - 2.6, 0, 1)
        paint(19 - np.hypot(0.85 * x, y + 56), (125 - 60 * disc + 8 * fine) * tone("marrow"))
        canal = np.hypot(x, y + 84)
        paint(10.5 - canal, 50.0 * tone("muscle"))
        paint(8 - canal, palette["fluid"])
        paint(4.5 - canal, palette["cord"])
        aorta = np.hypot(x + 27, y + 46)
        paint(self._aorta + 2 - aorta, 60.0 * tone("muscle"))
        paint(self._aorta - aorta, palette["blood"])
        paint(10 - np.hypot(x - 26, 1.2 * (y + 22) - 0.15 * z), 0.9 * palette["blood"])
