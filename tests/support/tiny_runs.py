"""A small cine store and the command line, for the tests of the loader and of training."""

import json
from pathlib import Path

import numpy as np

from cinema_fast.data.store import store as cine_store

SIZES = {"sax": (32, 32, 3), "lax_2c": (32, 32), "lax_3c": (32, 32), "lax_4c": (32, 32)}
FOUR = tuple(SIZES)
MEASURED = ("studies_per_s", "tflops", "peak_mib", "data_wait", "guidance")  # of a line: other in every run


def write_store(path: Path, studies: dict[str, tuple[str, ...]], *, frames: int = 4, seed: int = 0) -> Path:
    """A store of smooth discs that beat; frame t of study number s has brightest pixel 200 + 10 s + t (mod 56)."""
    index = {}
    rng = np.random.default_rng(seed)
    for number, (study, views) in enumerate(studies.items()):
        cines = {}
        for view in views:
            grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZES[view]), indexing="ij")
            centre, radius = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.4, 0.7)
            distance = np.hypot(grid[0] - centre[0], grid[1] - centre[1])
            radii = radius * (1 - 0.3 * np.sin(np.pi * np.arange(frames) / frames))
            cine = np.stack([1 / (1 + np.exp(20 * (distance - r))) for r in radii])
            top = 200 + (10 * number + np.arange(frames)) % 56
            axes = tuple(range(1, cine.ndim))
            cine = (cine / cine.max(axes, keepdims=True) * top.reshape(-1, *[1] * len(axes))).astype(np.uint8)
            source = {"file": f"{study}_{view}.nii.gz", "sha256": "0" * 64, "files": []}
            record = {
                "spacing_mm": [1.0, 1.0, 10.0][: len(axes)], "frame_time_ms": 30.0, "window": [[0, 1000]] * frames,
                "source": source, "affine": np.eye(4).tolist(), "centred_on": "image",
            }  # fmt: skip
            cines[view] = (cine, record)
        index[study] = cine_store.write_study(path / "studies" / study, study, cines)
    cine_store.write_index(path, {"sax_size": [32, 32, 4], "lax_size": [32, 32]}, index)
    return path


def metrics(out: Path) -> list[dict]:
    """The lines of a run without its timings."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]
