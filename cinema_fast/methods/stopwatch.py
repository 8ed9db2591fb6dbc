"""Measures the device's time for a part of each step; the host does not wait in between."""

import time

import torch


class Stopwatch:
    """A context manager that sums the device's time spent inside it; on a CPU, wall-clock time."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._total = 0.0
        self._open: list[tuple] = []  # pairs of CUDA events not yet added

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_) -> None:
        self._open.append((self._began, self._now()))

    def seconds(self) -> float:
        """Time spent inside so far; on a GPU it waits for the last work enqueued inside."""
        if self._on_gpu and self._open:
            self._open[-1][1].synchronize()
        for began, ended in self._open:
            self._total += began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began
        self._open.clear()
        return self._total
