"""One study: its NIfTI or DICOM files become 8-bit frames on the model's grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import geometry
from .dicom_cine import read_dicom_cine
from .nifti import Cine, CineError, read_cine, read_nifti
from .sources import Source
from .store import write_study

if TYPE_CHECKING:
    from .prepare import PrepareConfig


@dataclass(frozen=True, slots=True)
class Failure:
    """One file that could not be prepared, or a whole study where `view` is None."""

    study: str
    view: str | None
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class StudyTask:
    """What a worker needs: the study's sources by view, the options, and where to put the finished study."""

    study: str
    sources: dict[str, Source]
    config: PrepareConfig
    folder: Path

    def failure(self, view: str | None, path: Path, reason: str) -> Failure:
        return Failure(self.study, view, path.relative_to(self.config.src).as_posix(), reason)


def prepare_study(task: StudyTask) -> tuple[dict[str, dict], list[Failure]]:
    """Write every view of a study that can be prepared to `task.folder`; records by view, and the failures.

    Where no view can be prepared there is no folder. Raises OSError where the folder cannot be written.
    """
    failures: list[Failure] = []
    cines: dict[str, Cine] = {}
    stats: dict[str, list] = {}
    for view, source in task.sources.items():
        try:
            stats[view] = file_stats(source.files, task.config.src)
            cines[view] = _read(source, stack=view == "sax")
        except CineError as err:
            failures.append(task.failure(view, err.path, err.reason))
        except (OSError, MemoryError) as err:
            failures.append(task.failure(view, source.files[0], f"cannot be read: {err or type(err).__name__}"))
    centres, label_failures = _centres(task, cines)
    failures += label_failures
    prepared = {}
    for view, cine in cines.items():
        centre_mm, centred_on = centres[view]
        source = task.sources[view]
        try:
            frames, record = _frames(cine, centre_mm, view == "sax", task.config)
        except ValueError as err:
            failures.append(task.failure(view, source.files[0], str(err)))
            continue
        record["source"] = {"file": stats[view][0][0], "sha256": cine.sha256, "files": stats[view]}
        prepared[view] = frames, {**record, "centred_on": centred_on, "prepare": task.config.shaping()}
    return write_study(task.folder, task.study, prepared) if prepared else {}, failures


def _read(source: Source, *, stack: bool) -> Cine:
    if source.format == "dicom":
        return read_dicom_cine(source.files, stack=stack)
    return read_cine(source.files if source.frames else source.files[0], stack=stack)


def file_stats(files: tuple[Path, ...], src: Path) -> list[list]:
    """[name relative to `src`, size in bytes, modification time in ns] of each file."""
    return [[path.relative_to(src).as_posix(), (info := path.stat()).st_size, info.st_mtime_ns] for path in files]


def _centres(task: StudyTask, cines: dict[str, Cine]) -> tuple[dict[str, tuple[np.ndarray, str]], list[Failure]]:
    """View -> (centre in scanner mm, what it is): the labelled left ventricle, where the planes meet, the image."""
    meeting = geometry.meeting_point({view: (cine.shape, cine.affine) for view, cine in cines.items()})
    centres, failures = {}, []
    for view, cine in cines.items():
        label = _label_file(task, task.sources[view])
        labelled = None
        if label is not None:
            try:
                labelled = _left_ventricle(label, task.config.lv_label, cine)
            except CineError as err:
                failures.append(task.failure(view, label, f"{err.reason} (label; the view was centred without it)"))
        if labelled is not None:
            centres[view] = labelled, "labels"
        elif meeting is not None and geometry.in_plane(cine.shape, cine.affine, meeting):
            centres[view] = meeting, "planes"
        else:
            centres[view] = geometry.image_centre(cine.shape, cine.affine), "image"
    return centres, failures


def _label_file(task: StudyTask, source: Source) -> Path | None:
    if task.config.labels is None:
        return None
    name = task.config.labels.replace("{id}", task.study).replace("{view}", source.spelling)
    path = task.config.src / name.replace("{frame}", source.frames[0] if source.frames else "")
    return path if path.exists() else None


def _left_ventricle(path: Path, lv_label: int, cine: Cine) -> np.ndarray:
    """(3,) scanner mm of the middle of the left ventricle in a cine's label file, over all its frames."""
    volume = read_nifti(path)
    shape = (*volume.data.shape, 1, 1, 1)[:3]
    mask = (np.rint(volume.values()) == lv_label).reshape((*shape, -1), order="F").any(-1)
    centre = geometry.label_centre(mask, volume.affine) if np.isfinite(volume.affine).all() else None
    if centre is None:
        raise CineError(path, f"no pixel with the label {lv_label}, or no usable affine")
    if not geometry.in_plane(cine.shape, cine.affine, centre):
        raise CineError(path, "the labelled left ventricle lies off the image")
    return centre


def _frames(cine: Cine, centre_mm: np.ndarray, stack: bool, config: PrepareConfig) -> tuple[np.ndarray, dict]:
    spacing, size = (config.sax_spacing, config.sax_size) if stack else (config.lax_spacing, config.lax_size)
    resample = geometry.plan_resampling(cine.shape, cine.affine, centre_mm, spacing=spacing, size=size)
    frames = np.empty((cine.n_frames, *resample.shape), np.uint8)
    window = []
    for t in range(cine.n_frames):
        try:
            frames[t], limits = geometry.to_uint8(resample(cine.frame(t)))
        except ValueError as err:
            raise ValueError(f"frame {t} of {cine.n_frames} {err}") from None
        window.append(limits)
    record = {"spacing_mm": list(spacing), "frame_time_ms": cine.frame_time_ms, "window": window,
              "affine": resample.affine.tolist()}
    return frames if stack else frames[..., 0], record
