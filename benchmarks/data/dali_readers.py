"""DALI's own reader of `.npy` files, `fn.readers.numpy`, for rows of `bench_data.py` beside our way of reading a store.

It reads files in an order that is fixed when the pipeline is built, a batch ahead and in threads of its own, so that
its cost is CPU time, and what a first, cold read takes cannot be told. With GPUDirect Storage the file goes to the
GPU's memory without passing the host's.
"""

import ctypes
from pathlib import Path

import numpy as np
import torch

from cinema_fast.data.loading.dali import why_not_dali

ONE_FILE, REGION, WHOLE = "DALI, a file a frame", "DALI, a region of the cine", "DALI, the whole cine"
DIRECT = "DALI, a file a frame by GPUDirect Storage"
DALI_WAYS = [] if why_not_dali() else [ONE_FILE, REGION, WHOLE, DIRECT]


def why_not(way: str) -> str:
    """What keeps one of DALI_WAYS from being timed here; empty where nothing does."""
    if way != DIRECT:
        return ""
    if not torch.cuda.is_available():
        return "GPUDirect Storage reads into a GPU, and PyTorch sees none"
    try:
        ctypes.CDLL("libcufile.so.0")
    except OSError as error:
        return f"GPUDirect Storage needs cuFile ({error})"
    return ""


class NumpyReader:
    """One frame of each of some cines, the same ones at every call.

    Args:
        way: one of DALI_WAYS, for which `why_not` has no reason.
        files: the cines, (T, *size) each; at: the number of the frame.
        folder: where a file for each of these frames may be written, for the ways that read such.
    """

    def __init__(self, way: str, files: list[Path], at: list[int], folder: Path):
        from nvidia.dali import Pipeline, fn

        options, self.at = {}, [0] * len(at)
        if way in (ONE_FILE, DIRECT):
            cut = [folder / f"frame {n}.npy" for n in range(len(at))]
            for path, file, t in zip(cut, files, at):
                np.save(path, np.load(file, mmap_mode="r")[t : t + 1])
            files = cut
        elif way == WHOLE:
            self.at = at
        on_gpu = way == DIRECT
        self._pipeline = Pipeline(len(files), num_threads=1, device_id=0 if on_gpu else None, prefetch_queue_depth=1)
        with self._pipeline:
            if way == REGION:
                starts = [np.array([t], np.int32) for t in at]
                options = dict(roi_start=fn.external_source(lambda: starts), roi_shape=[1], roi_axes=[0])
            names = [str(file) for file in files]
            read = fn.readers.numpy(device="gpu" if on_gpu else "cpu", files=names, **options)
            self._pipeline.set_outputs(read)

    def read(self) -> list:
        """What the pipeline gives: (T or 1, *size) each, where it was read to."""
        (out,) = self._pipeline.run()
        if self._pipeline.device_id is not None:
            torch.cuda.synchronize()
        return out

    def images(self) -> list[np.ndarray]:
        """The frames, on the host."""
        out = self.read()
        return [np.array(out[n].as_cpu())[t] for n, t in enumerate(self.at)]
