"""Prepares one study: its files are resampled to 8-bit frames on the model's grid, its label maps with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...common.views import is_stack
from ..formats.cine import Cine, CineError, IncompleteCine
from ..store.orientation import AS_STORED, NO_ORIENTATION, Arrangement, arrange, arranged, patient_arrangement
from ..store.store import write_study
from . import geometry
from .failure import Failure
from .label_measures import find_phases, label_counts, undrawn, volumes_ml
from .labels import read_label_maps
from .prepare_config import PrepareConfig
from .source_format import format_of
from .sources import Source, with_volumes

# (label maps (X, Y, Z) of a view by frame, with the axes of the store; the record of their files; a remark about their
# headers, or "")
Labels = tuple[dict[int, np.ndarray], dict, str]


@dataclass(frozen=True, slots=True)
class StudyTask:
    """The task of a worker: the study's sources by view, the options, and the folder for the finished study."""

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
    task = replace(task, sources=with_volumes(task.sources))
    failures: list[Failure] = []
    scans: dict[str, Cine] = {}
    stats: dict[str, list] = {}
    for view, source in task.sources.items():
        try:
            stats[view] = file_stats(source.files, task.config.src)
            scans[view] = read_source(source, view)
        except CineError as err:
            path, reason = err.path, err.reason
            if isinstance(err, IncompleteCine) and source.broken:
                path, more = source.broken[0], len(source.broken) - 1
                reason = (f"its header cannot be read{f', nor those of {more} files beside it' * bool(more)}, and "
                          f"without it {view} is incomplete: {reason} ({err.path.name})")
            failures.append(task.failure(view, path, reason))
        except (OSError, MemoryError) as err:
            failures.append(task.failure(view, source.files[0], f"cannot be read: {err or type(err).__name__}"))
    arrangements = {view: _arrangement(scan, view, task.config.orientation) for view, scan in scans.items()}
    cines = {view: arrange(scan, arrangements[view]) for view, scan in scans.items()}
    labels, label_failures = _read_labels(task, scans, arrangements)
    centres, centre_failures = _centres(task, cines, labels)
    failures += label_failures + centre_failures
    prepared, prepared_labels = {}, {}
    for view, cine in cines.items():
        centre_mm, centred_on = centres[view]
        source, stack, config = task.sources[view], is_stack(view), task.config
        stack = cine.shape[2] > 1 if stack is None else stack
        spacing, size = (config.sax_spacing, config.sax_size) if stack else (config.lax_spacing, config.lax_size)
        scanned = geometry.spacing_of(cine.affine).round(4).tolist()
        spacing = [mm or at_scan for mm, at_scan in zip(spacing, scanned)]
        resample = geometry.plan_resampling(cine.shape, cine.affine, centre_mm, spacing=spacing, size=size)
        try:
            frames, window = _frames(cine, resample, stack)
        except ValueError as err:
            failures.append(task.failure(view, source.files[0], str(err)))
            continue
        prepared[view] = frames, {
            "spacing_mm": spacing, "frame_time_ms": cine.frame_time_ms, "window": window,
            "affine": resample.affine.tolist(), "arrangement": list(arrangements[view]),
            **_remarks(scans[view], config.orientation, labels.get(view)), "centred_on": centred_on,
            **({"channels": list(source.channels)} if source.channels else {}),
            "prepare": config.shaping(),
            "source": {"file": stats[view][0][0], "sha256": cine.sha256, "files": stats[view]},
        }  # fmt: skip
        counts = {t: label_counts(labels_at) for t, labels_at in labels[view][0].items()} if view in labels else {}
        phases, fault = find_phases(source, cine.n_frames, counts, config.lv_label)
        prepared[view][1].update(phases)
        if fault:
            failures.append(task.failure(view, source.files[0], fault))
        if view in labels:
            maps, label_source, _ = labels[view]
            if config.dataset and not source.label_frames and phases and (note := undrawn(source.phases, maps)):
                failures.append(task.failure(view, source.labels[0], note))
            stored, cut, note = _cropped(maps, resample)
            if note:
                failures.append(task.failure(view, source.labels[0], note))
            if stored:
                stacked = np.stack(list(stored.values())).reshape(-1, *frames.shape[1:])
                record = {"frames": list(stored), "source": label_source} | ({"cut": cut} if cut else {})
                if cine.shape[2] > 1:
                    record["volumes_ml"] = volumes_ml(counts, cine.affine)
                prepared_labels[view] = stacked, record
    return write_study(task.folder, task.study, prepared, prepared_labels) if prepared else {}, failures


def _arrangement(scan: Cine, view: str, orientation: str) -> Arrangement:
    if orientation == "stored" or not scan.oriented:
        return AS_STORED
    return patient_arrangement(scan.affine, view, stack=scan.shape[2] > 1)


def _remarks(scan: Cine, orientation: str, labels: Labels | None) -> dict[str, list[str]]:
    """{"remarks": remarks about the headers of a scan and its label maps}, or {} without any."""
    remarks = [scan.remark] if scan.remark else []
    if labels and labels[2]:
        remarks.append(f"label maps: {labels[2]}")
    if orientation != "stored" and not scan.oriented:
        remarks.append(NO_ORIENTATION)
    return {"remarks": remarks} if remarks else {}


def read_source(source: Source, view: str) -> Cine:
    """The cine of one view as it was scanned. Raises CineError."""
    return format_of(source.format).read(source, is_stack(view))


def file_stats(files: tuple[Path, ...], src: Path) -> list[list]:
    """[name relative to `src`, size in bytes, modification time in ns] of each file."""
    return [[path.relative_to(src).as_posix(), (info := path.stat()).st_size, info.st_mtime_ns] for path in files]


def _read_labels(
    task: StudyTask, scans: dict[str, Cine], arrangements: dict[str, Arrangement]
) -> tuple[dict[str, Labels], list[Failure]]:
    """The label maps of each view that has any that fit, and the failures."""
    labels, failures = {}, []
    for view, scan in scans.items():
        source = task.sources[view]
        if not source.labels:
            continue
        without = "(labels; the view was prepared without them)"
        try:
            stats = file_stats(source.labels, task.config.src)
            maps, sha256, remark = read_label_maps(source, scan, task.config.label_of)
            maps = {t: arranged(one, arrangements[view]) for t, one in maps.items()}
            labels[view] = maps, {"file": stats[0][0], "sha256": sha256, "files": stats}, remark
        except CineError as err:
            failures.append(task.failure(view, err.path, f"{err.reason} {without}"))
        except (OSError, MemoryError) as err:
            reason = f"cannot be read: {err or type(err).__name__} {without}"
            failures.append(task.failure(view, source.labels[0], reason))
    return labels, failures


def _centres(
    task: StudyTask, cines: dict[str, Cine], labels: dict[str, Labels]
) -> tuple[dict[str, tuple[np.ndarray, str]], list[Failure]]:
    """View -> (centre in scanner mm, its kind): the middle of the labelled left ventricle over all its frames, else the
    point where the planes meet, else the image's centre."""
    meeting = geometry.meeting_point({view: (cine.shape, cine.affine) for view, cine in cines.items()})
    centres, failures = {}, []
    for view, cine in cines.items():
        labelled = None
        if view in labels:
            mask = np.any([one == task.config.lv_label for one in labels[view][0].values()], axis=0)
            labelled = geometry.label_centre(mask, cine.affine)
            if labelled is None and _maps_lv(task.config):
                reason = f"no voxel with the label {task.config.lv_label} (the view was centred without it)"
                failures.append(task.failure(view, task.sources[view].labels[0], reason))
        if labelled is not None:
            centres[view] = labelled, "labels"
        elif meeting is not None and geometry.in_plane(cine.shape, cine.affine, meeting):
            centres[view] = meeting, "planes"
        else:
            centres[view] = geometry.image_centre(cine.shape, cine.affine), "image"
    return centres, failures


def _maps_lv(config: PrepareConfig) -> bool:
    """Whether label maps may hold the left ventricle."""
    return config.label_of is None or config.lv_label in config.label_of.values()


def _cropped(
    maps: dict[int, np.ndarray], resample: geometry.Resampling
) -> tuple[dict[int, np.ndarray], float, str]:
    """The label maps as they are stored, without those that the crop leaves empty; the share of the labelled volume
    that the crop cuts off; and a note about empty maps, or ""."""
    stored = {t: small for t, one in maps.items() if (small := resample.labels(one)).any()}
    labelled, lost = np.sum([resample.cut(one) for one in maps.values()], axis=0).tolist()
    note = ""
    if emptied := [t for t in maps if t not in stored]:
        size = " x ".join(map(str, resample.shape))
        note = (f"the crop to {size} voxels cuts off {100 * lost / labelled:.3g} % of the labelled volume; "
                f"{len(emptied)} of its {len(maps)} labelled frames have no label left and count as unlabelled (the "
                f"first is frame {emptied[0]}) (labels)")  # fmt: skip
    return stored, lost / labelled, note


def _frames(cine: Cine, resample: geometry.Resampling, stack: bool) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """uint8 (T, X, Y[, Z]), and for each frame the raw intensities that became 0 and 255. Raises ValueError."""
    frames = np.empty((cine.n_frames, *resample.shape), np.uint8)
    window = []
    for t in range(cine.n_frames):
        try:
            frames[t], limits = geometry.to_uint8(resample(cine.frame(t)))
        except ValueError as err:
            raise ValueError(f"frame {t} of {cine.n_frames} {err}") from None
        window.append(limits)
    return frames if stack else frames[..., 0], window
