"""Stores that are prepared from small cines, and what is in them."""

import hashlib
import time

import numpy as np
from cine_files import grid_mm
from scipy import ndimage

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare

SIZES = {"sax_size": (32, 32, 6), "lax_size": (40, 40), "workers": 1}


def run(src, dst, **options):
    return prepare(PrepareConfig(src, dst, **{**SIZES, **options}), progress=False)


def content(store) -> dict[str, str]:
    """Everything in a store but the index's dates of sources: name -> digest."""
    files = [path for path in store.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_intensities_are_the_scans(store, study, view, cine):
    """Stored levels, through their window, are the scan's linear interpolation where the stored affine puts them."""
    info = store.info(study, view)
    shape = (*info.shape[1:], 1)[:3]
    source = np.linalg.solve(cine.affine, np.c_[grid_mm(shape, info.affine).reshape(-1, 3), np.ones(np.prod(shape))].T)
    in_plane = np.array(cine.shape[:2])[:, None]
    assert ((source[:2] > -0.5) & (source[:2] < in_plane - 0.5)).all(), "this check knows no padding"
    for t in range(cine.n_frames):
        low, high = info.window[t]
        expected = ndimage.map_coordinates(cine.frame(t), source[:3].round(6), order=1, mode="nearest").reshape(shape)
        np.testing.assert_allclose(
            (low, high), np.percentile(expected.astype(np.float64), (0.95, 99.5)), rtol=1e-3)
        back = low + store.read_frame(study, view, t).reshape(shape) * (high - low) / 255.0
        np.testing.assert_allclose(back, expected.clip(low, high), atol=0.55 * (high - low) / 255)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
