"""Label maps of cines: finds their files, and checks that they fit their cine.

A label map is a NIfTI file, or one of the cine's own format, on the grid of its cine, with a whole number from 0
(background) to 255 in each voxel; with a map from values to labels, values to 65,535. One 4D file may hold the maps of
all frames. Public data sets label ED and ES and leave the other frames empty, so a frame without any label counts as
unlabelled. Alternatively there is a file for each labelled frame (`PrepareConfig.labels` gives their names).
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from ..formats.cine import Cine, CineError, Volume, joined_sha256
from ..store.orientation import like
from .source_format import format_of
from .sources import Source, Sources

MOST_VALUE = 65535  # of a label file


def find_labels(sources: Sources, src: Path, pattern: str) -> None:
    """Enter the label files of every cine in `sources`, and remove them from the unmatched files.

    Args:
        pattern: as `PrepareConfig.labels`.

    Raises:
        ValueError: an absolute path, a placeholder other than {id}, {view} and {frame}, {frame} in the name of a
            folder, or no such file of any cine.
    """
    if Path(pattern).is_absolute():
        raise ValueError(f"--labels {pattern!r}: give the files relative to {src} (../ leads out of it)")
    unknown = set(re.findall(r"\{[^}]*\}|\*", pattern)) - {"{id}", "{view}", "{frame}"}
    if unknown or "{frame}" in pattern.rpartition("/")[0]:
        what = f"{min(unknown)} is not understood there" if unknown else "{frame} belongs in the name of the file"
        raise ValueError(f"--labels {pattern!r}: {what}; it may hold {{id}}, {{view}}, and {{frame}} after the last /")
    listings: dict[Path, list[str]] = {}
    found, named = set(), ""
    for study, views in sources.studies.items():
        for view, source in views.items():
            named = pattern.replace("{id}", study).replace("{view}", source.spelling)
            files = _label_files(src, named, source, listings)
            if files:
                frames, paths = zip(*files)
                views[view] = replace(source, labels=paths, label_frames=frames if "{frame}" in pattern else ())
                found.update(paths)
    if named and not found:
        raise ValueError(f"--labels {pattern!r}: {src} has no such file of any of the {len(sources.studies)} studies "
                         f"(the last looked for was {named})")  # fmt: skip
    sources.unmatched = [path for path in sources.unmatched if path not in found]


def _label_files(
    src: Path, pattern: str, source: Source, listings: dict[Path, list[str]]
) -> list[tuple[str, Path]]:
    """({frame} or "", file) of the existing label files, in the order of the cine's frames or of their names."""
    if source.frames or "{frame}" not in pattern:
        frames = source.frames if "{frame}" in pattern else ("",)
        files = [(frame, src / pattern.replace("{frame}", frame)) for frame in frames]
        return [(frame, path) for frame, path in files if path.exists()]
    folder, (before, after) = (src / pattern).parent, Path(pattern).name.split("{frame}", 1)
    if folder not in listings:
        listings[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
    listing, files = listings[folder], []
    for name in listing[bisect_left(listing, before) :]:
        if not name.startswith(before):
            break
        frame = name[len(before) : len(name) - len(after)]
        if name == f"{before}{frame}{after}" and re.fullmatch("[^_]+", frame):
            files.append((frame, folder / name))
    return files


def read_label_maps(
    source: Source, cine: Cine, label_of: Mapping[int, int] | None = None
) -> tuple[dict[int, np.ndarray], str, str]:
    """The label maps in the label files of a cine, uint8 (X, Y, Z) by frame, ascending; `file_sha256` of the files; and
    a remark where one of their headers contradicts itself, else "". The map of a view of channels is that of frame 0.

    A file's axes may be mirrored or exchanged in plane, or its slices reversed, according to its affine; the maps are
    returned with the axes of the cine.

    Args:
        label_of: {value in the files: label}; None: values are labels.

    Raises:
        CineError: as `SourceFormat.read_labels`; a map of another shape, or whose affine puts a voxel half a pixel or
            more from its place in the cine; a number of maps other than that of the frames, or frames that the cine
            does not have; values other than whole numbers from 0 to 255, or those of `label_of` and 0; no label at all.
    """
    maps: dict[int, np.ndarray] = {}
    digests, remark = [], ""
    for n, path in enumerate(source.labels):
        volume = like(format_of(source.format).read_labels(path, cine), cine)
        digests.append(volume.sha256)
        remark = remark or volume.remark
        _check_grid(path, volume, cine)
        n_maps = int(np.prod(volume.data.shape[3:]))
        if source.label_frames:
            t = _frame_index(path, source.label_frames[n], source, cine.n_frames)
            if n_maps != 1:
                raise CineError(path, f"{n_maps} label maps in a file whose name gives one frame")
            if t in maps:
                raise CineError(path, f"a second label map of frame {source.label_frames[n]}")
            maps[t] = _labels(path, volume, cine.shape, 0, label_of)
        elif source.channels:
            if n_maps != 1 or maps:
                raise CineError(path, f"{n_maps + len(maps)} label maps for single volumes, expected 1")
            maps[0] = _labels(path, volume, cine.shape, 0, label_of)
        elif n_maps != cine.n_frames:
            raise CineError(path, f"{n_maps} label maps for a cine of {cine.n_frames} frames; if a file holds one "
                                  f"of them, --labels needs {{frame}} in its place")
        else:
            maps = {t: _labels(path, volume, cine.shape, t, label_of) for t in range(n_maps)}
    labelled = {t: maps[t] for t in sorted(maps) if maps[t].any()}
    if not labelled:
        raise CineError(source.labels[0], "no voxel is labelled")
    return labelled, joined_sha256(digests), remark


def _frame_index(path: Path, frame: str, source: Source, n_frames: int) -> int:
    """The frame of the cine, from 0, that a label file's name gives: as in the cine's own file names, or as a number
    from 1."""
    if source.frames:
        return source.frames.index(frame)
    if not re.fullmatch("[0-9]{1,6}", frame) or not 1 <= int(frame) <= n_frames:
        raise CineError(path, f"frame {frame!r} does not exist: the frames of the cine are numbered 1 to {n_frames}")
    return int(frame) - 1


def _check_grid(path: Path, volume: Volume, cine: Cine) -> None:
    shape = (*volume.data.shape, 1, 1, 1)[:3]
    if shape != cine.shape:
        raise CineError(path, f"a label map of {' x '.join(map(str, shape))} voxels, "
                              f"its cine has {' x '.join(map(str, cine.shape))}")
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))])
    with np.errstate(all="ignore"):
        offset = np.linalg.norm(corners @ (volume.affine - cine.affine).T, axis=1).max()
    # headers are rounded, some to 0.001; below this offset every label still lies on the voxel it was drawn on
    allowed = np.linalg.norm(cine.affine[:3, :2], axis=0).min() / 2
    if not offset < allowed:
        raise CineError(path, f"its affine puts a voxel {offset:.3g} mm from where its cine has it, and may differ by "
                              f"less than half a pixel, {allowed:.3g} mm")


def _labels(
    path: Path, volume: Volume, shape: tuple[int, int, int], n: int, label_of: Mapping[int, int] | None
) -> np.ndarray:
    """Map number `n` of a label file, uint8 (X, Y, Z)."""
    data = volume.data.reshape((*shape, -1), order="F")[..., n]
    values = replace(volume, data=data).values()
    most = MOST_VALUE if label_of else 255
    wrong = ~((values >= 0) & (values <= most) & (values == np.rint(values)))
    if wrong.any():
        hint = "; --label-map VALUE=LABEL maps values to 65535 to labels" * (not label_of)
        raise CineError(path, f"holds the value {values[wrong][0]:g}; labels are whole numbers from 0 to {most}{hint}")
    if label_of is None:
        return values.astype(np.uint8)
    known, label = np.zeros(MOST_VALUE + 1, bool), np.zeros(MOST_VALUE + 1, np.uint8)
    known[[0, *label_of]], label[list(label_of)] = True, list(label_of.values())
    index = values.astype(np.intp)
    if not (there := known[index]).all():
        listed = " ".join(f"{value}={label}" for value, label in label_of.items())
        raise CineError(path, f"holds the value {values[~there][0]:g}, which is outside of the label map {listed}: "
                              f"correct the file or the map")
    return label[index]
