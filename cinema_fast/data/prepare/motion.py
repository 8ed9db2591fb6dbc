"""Motion maps of a store: how much each pixel of a cine moves over the heart's cycle, in 8 bits beside its frames.

A map is the mean magnitude of the optical flow between consecutive stored frames, scaled so that 255 is its largest
value; that value in pixels is stored as `max_px`. The map has the stored grid, so it is augmented like its image. A
view of one frame, or one in which nothing moves, has a map of zeros and a `max_px` of 0.

Maps are computed study by study in worker processes, or by one process on a GPU that can run the flow's kernels, and
written to a temporary folder. Only this process moves them to their study and then replaces study.json. A killed run
therefore leaves at most a map without a record, which the next run computes again.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.atomic import move_into, whole_file
from ...common.parsed_file import read_json
from ...common.pool import available_cores, run_in_processes
from ...common.progress import progress_bar
from ..store.store import StoreError, motion_file, write_array
from .failure import Failure


@dataclass(frozen=True, slots=True)
class MotionTask:
    """The task of a worker: the store, the study, its views that need a map, the device to compute on, and the folder
    for the maps."""

    store: Path
    study: str
    views: tuple[str, ...]
    device: str
    folder: Path


def add_motion_maps(
    store: Path, studies: dict[str, dict[str, dict]], temporary: Path, *, workers: int, progress: bool
) -> tuple[int, list[Failure]]:
    """Compute the missing motion maps, and enter them in study.json and in `studies`: id -> view -> record.

    Args:
        temporary: folder on the store's disk. workers: processes where there is no GPU; 0: one per core.

    Returns the number of maps computed, and the studies that failed. Raises OSError where the store cannot be written.
    """
    wanting = {study: tuple(view for view, record in views.items() if not {"motion", "channels"} & record.keys())
               for study, views in studies.items()}
    wanting = {study: views for study, views in wanting.items() if views}
    if not wanting:
        return 0, []
    device, workers = ("cuda", 1) if _gpu_kernels_run() else ("cpu", workers or available_cores())
    tasks = [MotionTask(store, study, views, device, temporary / f"motion {n}")
             for n, (study, views) in enumerate(wanting.items())]
    made, failures = 0, []
    results = run_in_processes(map_study, tasks, min(workers, len(tasks)))
    with progress_bar("motion maps", len(tasks), show=progress) as advance, closing(results):
        for task, result in results:
            if isinstance(result, OSError):
                raise result  # the store cannot be written, so other studies would fail too
            if isinstance(result, Exception):
                reason = f"no motion map ({type(result).__name__}: {result})"
                failures.append(Failure(task.study, None, f"studies/{task.study}", reason))
            else:
                _publish(task, result)
                for view, record in result.items():
                    studies[task.study][view]["motion"] = record
                made += len(result)
            advance()
    return made, failures


def _gpu_kernels_run() -> bool:
    """Whether the flow's CUDA kernels run here; the PyTorch form on a GPU is slower than the C++ form on the CPU."""
    import torch

    from ...kernels.native import cuda_unsupported

    return torch.cuda.is_available() and not cuda_unsupported(torch.empty(0, device="cuda"))


def map_study(task: MotionTask) -> dict[str, dict]:
    """Write the motion maps of a study to `task.folder`, synced to disk; the record `motion` of each view.

    Raises StoreError where a cine cannot be read, OSError where the folder cannot be written.
    """
    import torch

    shutil.rmtree(task.folder, ignore_errors=True)  # left by a worker that died
    task.folder.mkdir(parents=True)
    records, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # other workers use the other cores
    try:
        for view in task.views:
            cine = task.store / "studies" / task.study / f"{view}.npy"
            try:
                frames = np.load(cine)
            except OSError as err:
                raise StoreError(f"{cine}: {err.strerror}") from err
            levels, max_px = motion_levels(frames, task.device)
            file = motion_file(task.study, view)
            sha256 = write_array(task.folder / Path(file).name, levels)
            records[view] = {"file": file, "sha256": sha256, "max_px": max_px}
    finally:
        torch.set_num_threads(threads)
    return records


def motion_levels(frames: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, float]:
    """Stored frames uint8 (T, X, Y[, Z]) -> map uint8 (X, Y[, Z]), and the motion in pixels of the value 255."""
    import torch

    from ...kernels import motion_map

    pixels = motion_map(torch.from_numpy(frames)[None].to(device))[0].cpu().numpy()
    max_px = float(pixels.max())
    levels = np.rint(pixels * (255 / max_px if max_px else 0.0)).astype(np.uint8)
    return levels, max_px


def _publish(task: MotionTask, maps: dict[str, dict]) -> None:
    target = task.store / "studies" / task.study
    move_into(target, (task.folder / Path(record["file"]).name for record in maps.values()))
    records = read_json(target / "study.json")
    for view, record in maps.items():
        records[view]["motion"] = record
    with whole_file(target / "study.json", durable=True) as file:
        file.write_text(json.dumps(records), encoding="utf-8")
    task.folder.rmdir()
