"""Shows a cine store: a page of numbers, a contact sheet of its studies, and one of them moving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...common.atomic import whole_file
from ...common.naming import count_studies
from ...common.output import folder_for
from ...common.views import views_in_order
from .describe_store import describe, labelled_studies
from .store import CineStore

TILE = 192  # pixels of an image in a picture, at most, on its longer side
LINE, GAP = 14, 4  # pixels of a line of text, and between images
MAX_TITLE = 360  # a study's name widens a sheet of narrow images up to so many pixels
COLOURS = ((0, 114, 255), (0, 220, 90), (255, 60, 60), (255, 200, 0), (220, 80, 255), (0, 220, 220))  # of classes
MAX_STUDIES, MAX_GIF_FRAMES = 12, 60


def inspect_store(path: Path | str, out: Path | None = None) -> str:
    """Describe a store in a page of text, and with `out` draw OUT/contact_sheet.png and OUT/study.gif.

    Raises StoreError where it is not a store or is damaged, OutputError where OUT cannot be written.
    """
    store = CineStore(path)
    if out is None:
        return describe(store)
    with folder_for(out):
        return f"{describe(store)}\n{_draw(store, out)}"


def _draw(store: CineStore, out: Path) -> str:
    """Draw the pictures; returns a line about each."""
    shown = store.ids[:: -(-len(store.ids) // MAX_STUDIES)]
    with whole_file(out / "contact_sheet.png") as file:
        contact_sheet(store, shown).save(file)
    study = max(store.ids, key=lambda study: len(store.views(study)))  # the first study with the most views
    first, *others = moving_study(store, study)
    with whole_file(out / "study.gif") as file:
        first.save(file, save_all=True, append_images=others, duration=_gif_step(store, study), loop=0)
    outlines = ", labels outlined at the first frame that has them" if labelled_studies(store) else ""
    return (f"{out / 'contact_sheet.png'}: {count_studies(len(shown))} at their first frame, SAX in its middle slice"
            f"{outlines}\n{out / 'study.gif'}: {study}")


def contact_sheet(store: CineStore, studies: list[str]):
    """PIL image: a row per study, a column per view, each at its first frame (ED where gating begins at the R wave).

    A view with labels is shown at its first labelled frame, with the outline of each class in its own colour.
    """
    present = {view for study in studies for view in store.views(study)}
    columns = views_in_order(present)
    rows = []
    for study in studies:
        images = {view: _still(store, study, view) for view in store.views(study)}
        rows.append((study, [images.get(view) for view in columns]))
    return _grid(columns, rows)


def _still(store: CineStore, study: str, view: str) -> np.ndarray:
    """uint8 (X, Y), or (X, Y, 3) with outlines."""
    labels = store.info(study, view).labels
    if labels is None:
        return _middle(store.read_frame(study, view, 0))
    t = labels.frames[0]
    return outline(_middle(store.read_frame(study, view, t)), _middle(store.read_labels(study, view, t)))


def outline(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 (X, Y, 3): a frame uint8 (X, Y) on which the outermost pixels of every class have its colour."""
    shown = np.repeat(frame[..., None], 3, axis=-1)
    around = np.pad(labels, 1)
    beside = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    edge = (labels > 0) & np.any([labels != other for other in beside], axis=0)
    shown[edge] = np.array(COLOURS, np.uint8)[(labels[edge] - 1) % len(COLOURS)]
    return shown


def moving_study(store: CineStore, study: str) -> list:
    """PIL images: the views of a study side by side over one cycle, SAX at its middle slice.

    Views may differ in their number of frames: each is shown at the same part of its cycle.
    """
    views = store.views(study)
    n = min(max(store.n_frames(study, view) for view in views), MAX_GIF_FRAMES)
    pictures = []
    for t in range(n):
        row = [_middle(store.read_frame(study, view, t * store.n_frames(study, view) // n)) for view in views]
        pictures.append(_grid(views, [(study, row)]))
    return pictures


def _gif_step(store: CineStore, study: str) -> int:
    """ms that a picture of `moving_study` is shown: the heart's own pace if known, in GIF's steps of 10 ms."""
    views = store.views(study)
    longest = max(views, key=lambda view: store.n_frames(study, view))
    n, ms = store.n_frames(study, longest), store.info(study, longest).frame_time_ms or 40.0
    return max(20, 10 * round(ms * n / min(n, MAX_GIF_FRAMES) / 10))


def _middle(frame: np.ndarray) -> np.ndarray:
    return frame[..., frame.shape[2] // 2] if frame.ndim == 3 else frame


def _grid(columns: Sequence[str], rows: list[tuple[str, list[np.ndarray | None]]]):
    """PIL image: the columns' names, and for each row its title and images, uint8 (X, Y) or (X, Y, 3), or None.

    A column is as wide as its widest image or its name, a row as high as its highest image. The result is in colour if
    any image is.
    """
    from PIL import Image, ImageDraw

    tiles = [[None if frame is None else _tile(frame) for frame in frames] for _, frames in rows]
    coloured = any(tile.mode == "RGB" for row in tiles for tile in row if tile)
    measure = ImageDraw.Draw(Image.new("L", (1, 1))).textlength
    columns, titles = [_plain(name) for name in columns], [_plain(title) for title, _ in rows]
    widths = [max([math.ceil(measure(name)), *(tile.width for tile in column if tile)])
              for name, column in zip(columns, zip(*tiles))]
    lefts = [GAP + sum(widths[:n]) + n * GAP for n in range(len(widths) + 1)]
    heights = [max(tile.height for tile in row if tile) for row in tiles]
    across = max(lefts[-1], 2 * GAP + math.ceil(min(max(map(measure, titles)), MAX_TITLE)))
    sheet = Image.new("RGB" if coloured else "L", (across, LINE + sum(LINE + height + GAP for height in heights)))
    draw = ImageDraw.Draw(sheet)
    for left, name in zip(lefts, columns):
        draw.text((left, 1), name, fill="white")
    top = LINE
    for title, row, height in zip(titles, tiles, heights):
        draw.text((GAP, top + 1), _shortened(title, across - 2 * GAP, measure), fill="white")
        for left, tile in zip(lefts, row):
            if tile:
                sheet.paste(tile, (left, top + LINE))
            else:
                draw.text((left, top + LINE), "none", fill="white")
        top += LINE + height + GAP
    return sheet


def _tile(frame: np.ndarray):
    from PIL import Image

    tile = Image.fromarray(np.ascontiguousarray(frame.swapaxes(0, 1)))
    tile.thumbnail((TILE, TILE))
    return tile


def _plain(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)  # the built-in font has only ASCII


def _shortened(text: str, width: int, measure: Callable[[str], float]) -> str:
    """The text, without its middle where it is wider than `width` pixels: names often differ at their ends."""
    short = text
    while measure(short) > width and len(text) > 2:
        text = text[: (len(text) - 1) // 2] + text[(len(text) + 1) // 2 :]
        short = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    return short
