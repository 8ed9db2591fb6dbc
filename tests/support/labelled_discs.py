"""A store of discs that beat, with all that there is to learn of them: label maps, a table, landmarks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cinema_fast.data.store import store as cine_store
from cinema_fast.data.store.store import read_index, write_index, write_study
from cinema_fast.tasks.finetune_config import RECIPE, FinetuneConfig

SIZES = {"sax": (32, 32, 3), "lax_4c": (32, 28)}  # one of them is padded to the model's size
FRAMES, LABELLED = 4, (0, 2)
SPACING = {"sax": (1.5, 1.5, 10.0), "lax_4c": (1.5, 1.2)}
HEAD = "study,view,frame,landmark,x_mm,y_mm,z_mm"
# what every fit of the tests has in common: seconds on one core
QUICK = {
    "preset": "cinema-demo", "decoder_channels": (8, 16, 32), "device": "cpu", "precision": "fp32", "workers": 1,
    "n_frames": 2, "val": 0.25, "test": 0.25, "batch_size": 3, "log_every": 5,
    "augment": replace(RECIPE, translation=4.0),
}  # fmt: skip


def affine_of(view: str) -> np.ndarray:
    """Voxel to mm: the view's spacing, turned about x by a right angle, and moved."""
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    affine[:3, :3] *= (*SPACING[view], 10.0)[:3]
    affine[:3, 3] = 5, -7, 11
    return affine


DISTINCT = 6  # study 6 is the same as study 0, and so on


def heart(number: int, view: str) -> tuple[np.ndarray, float]:
    """Middle [pixels] and radius of study number `number` at its largest."""
    number %= DISTINCT
    rng = np.random.default_rng([number, len(view)])
    return np.array([15.5, 13.5]) + rng.uniform(-3, 3, 2), 5.0 + (number % 6)


def drawn(number: int, view: str) -> tuple[np.ndarray, np.ndarray]:
    """(cine, label maps of all frames), uint8 (T, X, Y[, Z]): a bright pool (3), a dark wall (2), a grey pouch (1)."""
    (x, y), radius = heart(number, view)
    grid = np.meshgrid(*(np.arange(n) for n in SIZES[view]), indexing="ij")
    distance, pouch = np.hypot(grid[0] - x, grid[1] - y), np.hypot(grid[0] - x, grid[1] - y + radius)
    maps = []
    for t in range(FRAMES):
        r = radius * (1 - 0.25 * np.sin(np.pi * t / FRAMES))
        maps.append(np.select([distance < 0.65 * r, distance < r, pouch < 0.7 * radius], [3, 2, 1], 0).astype(np.uint8))
    maps = np.stack(maps)
    noise = np.random.default_rng(number % DISTINCT).integers(0, 8, maps.shape)
    return (np.array([60, 160, 20, 240])[maps] + noise).astype(np.uint8), maps


def write_discs(path: Path, n: int = 12, *, views=tuple(SIZES), labels=LABELLED, last_view_of=None) -> Path:
    """Store of studies s00...; labels: frames with label maps. last_view_of: so many studies have the last view too."""
    index = {}
    for number in range(n):
        cines, maps, study = {}, {}, f"s{number:02d}"
        for view in views if last_view_of is None or number < last_view_of else views[:-1]:
            cine, of_frames = drawn(number, view)
            record = {
                "spacing_mm": list(SPACING[view]), "frame_time_ms": 30.0, "window": [[0, 255]] * FRAMES,
                "source": {"file": f"{study}_{view}.nii.gz", "sha256": "0" * 64, "files": []},
                "affine": affine_of(view).tolist(), "centred_on": "image",
            }  # fmt: skip
            cines[view] = (cine, record)
            if labels:
                maps[view] = (of_frames[list(labels)], {"frames": list(labels)})
        index[study] = cine_store.write_study(path / "studies" / study, study, cines, maps)
    cine_store.write_index(path, {"sax_size": [32, 32, 4], "lax_size": [32, 32]}, index)
    return path


def write_table(path: Path, n: int = 12) -> Path:
    """Of each study: radius, size (small, middle, large), big (no, yes), and `some`, the radius of every second one."""
    lines = ["study,radius,size,big,some,heart"]
    for number in range(n):
        _, radius = heart(number, "sax")
        size, big = ("small", "middle", "large")[int(radius - 5) // 2], ("no", "yes")[radius > 7]
        lines.append(f"s{number:02d},{radius:g},{size},{big},{f'{radius:g}' * (number % 2)},h{number // 2}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_points(path: Path, n: int = 12, *, views=("lax_4c",), frames=LABELLED) -> Path:
    """Landmarks: the middle of each disc and the outer end of its pouch."""
    lines = [HEAD]
    for number in range(n):
        for view in views:
            (x, y), radius = heart(number, view)
            for name, at in (("middle", (x, y)), ("tip", (x, y - 0.7 * radius))):
                mm = affine_of(view) @ [*at, 0, 1]
                lines += [f"s{number:02d},{view},{t},{name},{mm[0]:.6f},{mm[1]:.6f},{mm[2]:.6f}" for t in frames]
    path.write_text("\n".join(lines) + "\n")
    return path


def by_brightness(self, view, frames):
    """Probabilities of a model that finds everything, by the grey levels of the discs."""
    levels = torch.tensor([60.0, 160.0, 20.0, 240.0]).view(1, 4, *[1] * (frames.ndim - 1))
    return (-(torch.from_numpy(frames)[:, None] - levels).abs()).softmax(1)


class Discs:
    """The folder of a store, a table and landmarks, and configurations of runs on them."""

    def __init__(self, folder: Path):
        self.folder, self.store = folder, write_discs(folder / "store")
        self.table, self.points = write_table(folder / "table.csv"), write_points(folder / "points.csv")

    def config(self, out: Path, task: str, **options) -> FinetuneConfig:
        own = {
            "segmentation": {},
            "landmarks": {"table": self.points},
            "regression": {"table": self.table, "targets": ("radius",)},
            "classification": {"table": self.table, "targets": ("big",)},
            "multitask": {"table": self.table, "targets": ("radius", "size", "some")},
        }[task]
        return FinetuneConfig(**{"data": self.store, "out": out, "task": task, "steps": 4, **QUICK, **own, **options})


def rewrite(store, study: str, view: str, change) -> None:
    """Store a study with other label maps of one view."""
    cines, labels = {}, {}
    folder = store / "studies" / study
    for name, record in json.loads((folder / "study.json").read_text()).items():
        maps, kept = np.load(folder / f"{name}.labels.npy"), record.pop("labels")
        labels[name] = (change(maps) if name == view else maps).astype(np.uint8), {"frames": kept["frames"]}
        cines[name] = np.load(folder / f"{name}.npy"), {k: v for k, v in record.items() if k != "sha256"}
    write_study(folder, study, cines, labels)
    records = {s.name: json.loads((s / "study.json").read_text()) for s in (store / "studies").iterdir()}
    write_index(store, read_index(store)["prepare"], records)
