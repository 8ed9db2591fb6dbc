"""What is in a cine store: a page of numbers, a contact sheet of its studies, and one of them moving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .output import folder_for, whole_file
from .parsed_file import parse_json
from .regular_file import read_regular
from .store import VIEWS, CineInfo, CineStore

TILE = 192  # pixels of an image in a picture, at most, on its longer side
MARGIN = 14  # pixels of the line of text above it
COLOURS = ((0, 114, 255), (0, 220, 90), (255, 60, 60), (255, 200, 0), (220, 80, 255), (0, 220, 220))  # of classes
MAX_STUDIES, MAX_GIF_FRAMES, LISTED = 12, 60, 5


def inspect_store(path: Path | str, out: Path | None = None) -> str:
    """Describe a store in a page of text, and with `out` draw OUT/contact_sheet.png and OUT/study.gif.

    Raises StoreError for what is no store or damaged, OutputError where OUT cannot be written.
    """
    store = CineStore(path)
    if out is None:
        return describe(store)
    with folder_for(out):
        return f"{describe(store)}\n{_draw(store, out)}"


def _draw(store: CineStore, out: Path) -> str:
    """The pictures, and a line about each."""
    shown = store.ids[:: -(-len(store.ids) // MAX_STUDIES)]
    with whole_file(out / "contact_sheet.png") as file:
        contact_sheet(store, shown).save(file)
    study = max(store.ids, key=lambda study: len(store.views(study)))  # of those with most views the first
    first, *others = moving_study(store, study)
    with whole_file(out / "study.gif") as file:
        first.save(file, save_all=True, append_images=others, duration=_gif_step(store, study), loop=0)
    outlines = ", labels outlined at the first frame that has them" if _labelled(store) else ""
    return (f"{out / 'contact_sheet.png'}: {len(shown)} studies at their first frame, SAX in its middle slice"
            f"{outlines}\n{out / 'study.gif'}: {study}")


def describe(store: CineStore) -> str:
    """Studies, views, sizes, times, bytes, motion maps, labels and failures of a store, one line each."""
    views = {study: store.views(study) for study in store.ids}
    infos: dict[str, list[CineInfo]] = {}
    for study, names in views.items():
        for view in names:
            infos.setdefault(view, []).append(store.info(study, view))
    every = [info for one in infos.values() for info in one]
    n_bytes = sum(Path(path).stat().st_size for info in every for path, _ in info.files)
    lines = [f"{store.path}: {len(views)} studies, {len(every)} cines, {sum(info.shape[0] for info in every)} frames, "
             f"{n_bytes / 1e6:.1f} MB"]
    for names, n in Counter(views.values()).most_common():
        lines.append(f"  {n} studies have {', '.join(names)}")
    if labelled := _labelled(store):
        lines.append(f"  {labelled} studies have labels")
    for view in sorted(infos, key=lambda view: (VIEWS.index(view) if view in VIEWS else len(VIEWS), view)):
        lines += [f"{view}: {len(infos[view])} cines", *_describe_view(infos[view])]
    return "\n".join([*lines, *_failures(store.path)])


def _labelled(store: CineStore) -> int:
    """Number of studies with a labelled view."""
    return sum(any(store.info(study, view).labels for view in store.views(study)) for study in store.ids)


def _describe_view(infos: list[CineInfo]) -> list[str]:
    times = [info.frame_time_ms for info in infos if info.frame_time_ms is not None]
    unknown = f", {len(infos) - len(times)} unknown" if len(times) < len(infos) else ""
    maps = [info.motion.max_px for info in infos if info.motion]
    motion = f", up to {_range(maps)} pixels a frame" if maps else ""
    labelled = [len(info.labels.frames) for info in infos if info.labels]
    labels = [f"  labels {len(labelled)} of {len(infos)}, of {_range(labelled)} frames"] if labelled else []
    return [
        f"  size {_common(' x '.join(map(str, info.shape[1:])) for info in infos)}",
        f"  spacing {_common(' x '.join(f'{mm:g}' for mm in info.spacing_mm) for info in infos)} mm",
        f"  frames {_range([info.shape[0] for info in infos])}",
        f"  ms from frame to frame {_range(times) if times else 'unknown'}{unknown if times else ''}",
        f"  motion maps {len(maps)} of {len(infos)}{motion}",
        *labels,
    ]


def _common(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    shown = ", ".join(value if len(counts) == 1 else f"{value} ({n})" for value, n in counts[:LISTED])
    return shown + (f" and {len(counts) - LISTED} others" if len(counts) > LISTED else "")


def _range(values: list[float]) -> str:
    low, middle, high = np.percentile(values, (0, 50, 100))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g} (median {middle:.4g})"


def _failures(path: Path) -> list[str]:
    try:
        failures = [parse_json(line) for line in read_regular(path / "failures.jsonl").decode().splitlines()]
        lines = [f"  {failure['file']}: {failure['reason']}" for failure in failures[:LISTED]]
    except FileNotFoundError:
        return ["failures: no failures.jsonl"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        return [f"failures: failures.jsonl cannot be read ({err})"]
    more = [f"  and {len(failures) - LISTED} more in failures.jsonl"] if len(failures) > LISTED else []
    return [f"failures when it was prepared: {len(failures)}", *lines, *more]


def contact_sheet(store: CineStore, studies: list[str]):
    """PIL image: a row per study, a column per view, each at its first frame (ED where gating begins at the R wave).

    A view with labels is at its first labelled frame, with the outline of each class in a colour of its own.
    """
    present = {view for study in studies for view in store.views(study)}
    columns = [view for view in VIEWS if view in present] + sorted(present - set(VIEWS))
    rows = []
    for study in studies:
        images = {view: _still(store, study, view) for view in store.views(study)}
        names = [f"{study[:20]} {columns[0]}", *columns[1:]]
        rows.append([(name, images.get(view)) for name, view in zip(names, columns)])
    return _grid(rows)


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
        row = []
        for view in views:
            at = t * store.n_frames(study, view) // n
            row.append((view, _middle(store.read_frame(study, view, at))))
        pictures.append(_grid([row]))
    return pictures


def _gif_step(store: CineStore, study: str) -> int:
    """ms that a picture of `moving_study` stays: as the heart beat, where that is known. The format counts in 10 ms."""
    views = store.views(study)
    longest = max(views, key=lambda view: store.n_frames(study, view))
    n, ms = store.n_frames(study, longest), store.info(study, longest).frame_time_ms or 40.0
    return max(20, 10 * round(ms * n / min(n, MAX_GIF_FRAMES) / 10))


def _middle(frame: np.ndarray) -> np.ndarray:
    return frame[..., frame.shape[2] // 2] if frame.ndim == 3 else frame


def _grid(rows: list[list[tuple[str, np.ndarray | None]]]):
    """PIL image of (caption, image uint8 (X, Y) or (X, Y, 3), or None) in rows; in colour where an image is."""
    from PIL import Image, ImageDraw

    coloured = any(frame is not None and frame.ndim == 3 for row in rows for _, frame in row)
    sheet = Image.new("RGB" if coloured else "L", (len(rows[0]) * TILE, len(rows) * (TILE + MARGIN)))
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (caption, frame) in enumerate(row):
            corner = j * TILE, i * (TILE + MARGIN)
            if frame is not None:
                tile = Image.fromarray(np.ascontiguousarray(frame.swapaxes(0, 1)))
                tile.thumbnail((TILE, TILE))
                sheet.paste(tile, (corner[0] + (TILE - tile.width) // 2, corner[1] + MARGIN))
            plain = "".join(c if " " <= c <= "~" else "?" for c in caption)  # what the built-in letters know
            draw.text((corner[0] + 2, corner[1] + 1), plain if frame is not None else f"{plain}: none", fill="white")
    return sheet
