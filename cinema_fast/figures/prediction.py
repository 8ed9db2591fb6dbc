"""Pictures of a predicted study: its animated cine with outlines or landmarks, and volumes over the cycle."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.naming import printable
from ..data.formats.cine import Cine
from ..data.prepare.geometry import to_uint8
from ..metrics.function import CycleFunction
from .canvas import new_figure
from .overlays import COLOURS, PANEL, WHITE, colour_of, draw_cross, moving, outline, under_words, zoom_to

MARGIN_MM = 25.0  # margin around the labels
WIDTH, LARGE = 960, 160  # pixels: largest width of a row of slices; images of this size are not enlarged
_BORDER = 4  # pixels between slices
STEP_MS = 40.0  # time per frame where it is unknown


def outlines_gif(
    cine: Cine,
    labels: np.ndarray,
    spacing_mm: tuple[float, ...],
    names: Sequence[str],
    *,
    marks: Mapping[int, Sequence[str]],
    flags: Sequence[str] = (),
) -> bytes:
    """A GIF of one heartbeat with the outlines of label maps (T, X, Y, Z) uint8 on the grid of the scan.

    All slices side by side, cropped to the labels of all frames. names: of the labels 1, 2, ..., written in their
    colours; "" for a label that does not occur. marks: {frame: its name, such as ED}. flags: each on its own line.
    """
    x, y = (
        _around(labels.any(axis=tuple({0, 1, 2, 3} - {k + 1})), MARGIN_MM / spacing_mm[k]) for k in range(2)
    )
    shape = x.stop - x.start, y.stop - y.start
    zoom = zoom_to(PANEL, shape) if labels.shape[3] == 1 else 1 + (max(shape) <= LARGE)
    frames = []
    for t, frame in enumerate(labels):
        image = to_uint8(cine.frame(t))[0][x, y]
        sheet = _tiles([outline(image[..., z], frame[x, y, z], zoom) for z in range(image.shape[2])])
        for flag in reversed(flags):
            sheet = under_words(sheet, [(f"flag: {flag}", WHITE)])
        frames.append(under_words(sheet, _words(t, len(labels), names, marks.get(t, ()))))
    return moving(frames, cine.frame_time_ms or STEP_MS)


def landmarks_gif(cine: Cine, points: np.ndarray, names: Sequence[str]) -> bytes:
    """A GIF of one heartbeat of a single slice with crosses at points (T, landmarks, 2), voxels of the scan.

    names: of the landmarks, written in their colours.
    """
    zoom = zoom_to(PANEL, cine.shape[:2])
    frames = []
    for t, places in enumerate(points):
        image = to_uint8(cine.frame(t))[0][..., 0]
        picture = outline(image, np.zeros_like(image), zoom)
        for k, place in enumerate(places):
            draw_cross(picture, (place + 0.5) * zoom, colour_of(k))
        frames.append(under_words(picture, _words(t, len(points), names)))
    return moving(frames, cine.frame_time_ms or STEP_MS)


def volume_png(
    curves: Mapping[str, np.ndarray], cycle: CycleFunction, frame_time_ms: float | None, title: str,
    flags: Sequence[str] = (),
) -> bytes:  # fmt: skip
    """Volumes (T,) [ml] by structure over the cycle, ED and ES of each ventricle, ejection fractions, and flags."""
    figure = new_figure(5.6, 3.6 + 0.2 * len(flags))
    axes = figure.subplots()
    for k, (name, curve) in enumerate(curves.items()):
        at = np.arange(len(curve)) * (frame_time_ms or 1.0)
        colour = tuple(value / 255 for value in COLOURS[k % len(COLOURS)])
        axes.plot(at, curve, ".-" if len(curve) > 2 else "o", color=colour, label=f" {name}")
        for what, t in zip(("ED", "ES"), cycle.frames.get(name, ())):
            axes.plot(at[t], curve[t], "o", color=colour, markersize=8, fillstyle="none")
            where = {"textcoords": "offset points", "xytext": (0, 7 if what == "ED" else -15), "ha": "center"}
            axes.annotate(what, (at[t], curve[t]), color=colour, **where)
    axes.set(xlabel="time (ms)" if frame_time_ms else "frame", ylabel="volume (ml)")
    axes.set_ylim(0, 1.15 * max([float(curve.max()) for curve in curves.values()] + [1e-3]))
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    known = [f"{v.upper()} EF {cycle.function[f'{v}_ef']:.1f} %" for v in ("lv", "rv") if f"{v}_ef" in cycle.function]
    lines = ["  ".join([printable(title)[:60], *known]), *(f"flag: {flag}" for flag in flags)]
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _around(holds: np.ndarray, margin: float) -> slice:
    """The part of an axis where `holds` (n,) bool is true, with a margin; the whole axis where it never is."""
    found = np.flatnonzero(holds)
    if not len(found):
        return slice(0, len(holds))
    return slice(max(0, found[0] - round(margin)), min(len(holds), found[-1] + 1 + round(margin)))


def _words(t: int, n_frames: int, names: Sequence[str], marks: Sequence[str] = ()) -> list[tuple[str, int]]:
    """The words above frame t of n_frames: its number, the names in their colours, and its marks."""
    coloured = ((name, colour_of(k)) for k, name in enumerate(names) if name)
    return [(f"frame {t} of {n_frames}", WHITE), *coloured, *((mark, WHITE) for mark in marks)]


def _tiles(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of one size in rows of at most WIDTH pixels, the last row filled up with black."""
    width, height = (n + _BORDER for n in pictures[0].shape)
    columns = max(1, min(len(pictures), WIDTH // width))
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((columns * width - _BORDER, rows * height - _BORDER), np.uint8)
    for k, picture in enumerate(pictures):
        x, y = k % columns * width, k // columns * height
        sheet[x : x + picture.shape[0], y : y + picture.shape[1]] = picture
    return sheet
