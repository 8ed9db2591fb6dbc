"""Label maps drawn over images: animated over the cycle, and truth above prediction on the labelled frames.

All pictures share one palette, grey levels followed by a colour per class, so that a GIF needs no palette per frame.
"""

import io
from collections.abc import Sequence

import numpy as np

from ..common.naming import printable
from ..metrics.cases import Exhibit, LandmarkExhibit

COLOURS = ((66, 135, 245), (70, 200, 90), (240, 70, 70), (240, 190, 40), (180, 90, 230), (60, 200, 210))
WHITE = 31  # palette number of the lightest grey
PANEL, STILL = 320, 240  # least pixels of a picture's larger side: of an animation, and of stills in a row
_GREYS = 32
_BORDER, _ARM = 4, 8  # pixels between pictures, and of the arms of a landmark's cross or ring
_STRIP = 14  # height in pixels of the words above a picture


def colour_of(k):
    """Palette number of class k, from 0; k may be an array."""
    return _GREYS + k % len(COLOURS)


def zoom_to(size: int, shape: Sequence[int]) -> int:
    """The whole factor that enlarges an image to at least `size` pixels on its larger side."""
    return max(-(-size // max(shape)), 1)


def outline(image: np.ndarray, labels: np.ndarray, zoom: int) -> np.ndarray:
    """Palette numbers (X * zoom, Y * zoom) uint8 of an image with the outlines of its labels, both (X, Y) uint8.

    An outline consists of the pixels of a class, after enlargement, that touch another class or background.
    """
    grey, big = (np.kron(part, np.ones((zoom, zoom), np.uint8)) for part in (image // (256 // _GREYS), labels))
    padded = np.pad(big, 1)
    inside = np.ones(big.shape, bool)
    for x, y in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inside &= padded[x : x + big.shape[0], y : y + big.shape[1]] == big
    drawn = (big > 0) & ~inside
    grey[drawn] = colour_of(big[drawn] - 1)
    return grey


def draw_cross(picture: np.ndarray, at: np.ndarray, colour: int) -> None:
    """Draw an upright cross at position `at` (2,) of a picture in palette numbers; nothing if it is not finite."""
    reach = range(-_ARM, _ARM + 1)
    _draw(picture, at, [(k, 0) for k in reach] + [(0, k) for k in reach], colour)


def draw_ring(picture: np.ndarray, at: np.ndarray, colour: int) -> None:
    """Draw a ring around position `at` (2,) of a picture in palette numbers; nothing if it is not finite."""
    reach = range(-_ARM, _ARM + 1)
    _draw(picture, at, [(i, j) for i in reach for j in reach if _ARM - 1.5 < np.hypot(i, j) <= _ARM + 0.5], colour)


def _draw(picture: np.ndarray, at: np.ndarray, shape: Sequence[tuple[int, int]], colour: int) -> None:
    if not np.isfinite(at).all():
        return
    x, y = (int(value) for value in np.floor(np.clip(at, -1e6, 1e6)))
    for i, j in shape:
        if 0 <= x + i < picture.shape[0] and 0 <= y + j < picture.shape[1]:
            picture[x + i, y + j] = colour


def landmarks_png(exhibit: LandmarkExhibit) -> bytes:
    """A PNG of a frame with its landmarks, true ones as rings and predicted ones as crosses, named in their colours."""
    zoom = zoom_to(PANEL, exhibit.image.shape)
    picture = outline(exhibit.image, np.zeros_like(exhibit.image), zoom)
    for k, (pred, truth) in enumerate(exhibit.points.values()):
        draw_ring(picture, (truth + 0.5) * zoom, colour_of(k))
        draw_cross(picture, (pred + 0.5) * zoom, colour_of(k))
    file = io.BytesIO()
    words = [(name, colour_of(k)) for k, name in enumerate(exhibit.points)]
    _picture(under_words(under_words(picture, words), [("ring: true, cross: predicted", WHITE)])).save(file, "PNG")
    return file.getvalue()


def cycle_gif(exhibit: Exhibit) -> bytes:
    """An animated GIF of one heartbeat: a slice with the predicted outlines, at the heart's own pace where known."""
    zoom = zoom_to(PANEL, exhibit.cycle.shape[1:])
    frames = [outline(image, pred, zoom) for image, pred in zip(exhibit.cycle, exhibit.cycle_pred)]
    span = (exhibit.frames[-1] - exhibit.frames[0] + 1) * (exhibit.frame_time_ms or 40.0)
    return moving(frames, span / len(frames))


def moving(frames: Sequence[np.ndarray], step_ms: float) -> bytes:
    """An endless GIF of pictures in palette numbers, each shown for about `step_ms` (GIF viewers limit it)."""
    first, *others = (_picture(frame) for frame in frames)
    step = min(max(20, 10 * round(step_ms / 10)), 1000)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=step, loop=0)
    return file.getvalue()


def stills_png(stills: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """A PNG of stills of an exhibit side by side, truth above prediction."""
    zoom = zoom_to(STILL, stills[0][1].shape)
    rows = [[outline(image, (truth, pred)[row], zoom) for _, image, pred, truth in stills] for row in range(2)]
    file = io.BytesIO()
    _picture(np.concatenate([_row(row) for row in rows], axis=1)).save(file, "PNG")
    return file.getvalue()


def under_words(picture: np.ndarray, words: Sequence[tuple[str, int]]) -> np.ndarray:
    """A picture with a strip of words above it, each (text, palette number); too long words are cut."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("L", (picture.shape[0], _STRIP))
    draw = ImageDraw.Draw(strip)
    draw.fontmode = "1"  # no anti-aliasing: its greys would be other colours of the palette
    at, font = 2, ImageFont.load_default()
    for name, colour in words:
        text = " ".join(printable(name).split())  # names of a table may hold line breaks, which Pillow cannot measure
        draw.text((at, 1), text, fill=colour, font=font)
        at += draw.textlength(text, font=font) + 10
    return np.concatenate([np.asarray(strip).T, picture], axis=1)


def _row(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size side by side along X, with a border."""
    return np.concatenate([np.pad(part, ((0, _BORDER), (0, _BORDER))) for part in parts])


def _picture(numbers: np.ndarray):
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(numbers.T))
    image.putpalette([value for grey in range(_GREYS) for value in [grey * 255 // (_GREYS - 1)] * 3]
                     + [value for colour in COLOURS for value in colour])  # fmt: skip
    return image
