"""Batches of stored frames, read ahead by threads.

Threads are enough: a batch is made of `pread` calls and copies of contiguous bytes, both of which release the
interpreter's lock, and frames are stored ready to use, so that no Python work is left to spread over processes. The
sampler is a pure function, so batches are the same, in the same order, for any number of threads.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .sampler import Draw, Sampler, frame_at
from .store import CineStore, StoreError

REPLACEMENTS = 8  # studies tried in place of one that cannot be read


class LoaderError(ValueError):
    """A study cannot be read, and strict reading was asked for or too many of its group fail as well."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its way to the device.

    draw: what it is made of; `ids` of studies that were replaced are those of the replacements.
    frames: {view: (B, *size) uint8}, zeros beyond each frame's extent. extent: {view: (B, axes) int64}.
    zoom: {view: (B,) float32}. slot (B,) int64. notes: a line for each study that could not be read.
    """

    draw: Draw
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    zoom: dict[str, Tensor]
    slot: Tensor
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the copy from pinned memory does not wait."""
        moved = [
            {view: tensor.to(device, non_blocking=True) for view, tensor in part.items()}
            for part in (self.frames, self.extent, self.zoom)
        ]
        return Batch(self.draw, *moved, self.slot.to(device, non_blocking=True), self.notes)


def read_batch(
    store: CineStore,
    draw: Draw,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    sampler: Sampler | None = None,
    pin: bool = False,
) -> Batch:
    """Read the frames of a draw.

    Args:
        sizes: {view: the model's image size}; frames are padded to it with zeros at the end of each axis.
        sampler: where given, a study that cannot be read is replaced by another of its group; else it is an error.
        pin: use page-locked memory, from which a copy to a GPU runs by itself.

    Raises:
        LoaderError: names the study, the file and the reason.
    """
    batch = len(draw.ids)
    frames = {view: torch.zeros((batch, *sizes[view]), dtype=torch.uint8, pin_memory=pin) for view in draw.views}
    extent = {view: torch.zeros((batch, len(sizes[view])), dtype=torch.int64, pin_memory=pin) for view in draw.views}
    zoom = {view: torch.tensor(draw.zoom[view], pin_memory=pin) for view in draw.views}
    slot = torch.tensor(draw.slot, pin_memory=pin)
    ids, notes = list(draw.ids), []
    for sample in range(batch):
        one = None  # the drawn sample itself, then its replacements
        for attempt in range(REPLACEMENTS + 1):
            study, phase = (draw.ids[sample], draw.phase[sample]) if one is None else (one.ids[0], one.phase[0])
            try:
                _read_study(store, study, float(phase), frames, extent, sample)
                break
            except (StoreError, OSError) as error:
                if sampler is None:
                    raise LoaderError(f"study {study}: {error}") from error
                if attempt == REPLACEMENTS:
                    raise LoaderError(
                        f"study {draw.ids[sample]} and {REPLACEMENTS} drawn in its place cannot be read; the last, "
                        f"{study}: {error}"
                    ) from error
                notes.append(f"step {draw.step + 1}: study {study} replaced: {error}")
                one = sampler.replacement(draw, sample, attempt)
        if one is not None:
            ids[sample] = one.ids[0]
            for view in draw.views:
                zoom[view][sample] = float(one.zoom[view][0])
    read = Draw(draw.step, tuple(ids), draw.views, draw.epoch, draw.phase, draw.zoom, draw.slot)
    return Batch(read, frames, extent, zoom, slot, tuple(notes))


def _read_study(store, study: str, phase: float, frames, extent, sample: int) -> None:
    for view, target in frames.items():
        info = store.info(study, view)
        size = tuple(info.shape[1:])
        if len(size) != target.ndim - 1 or any(s > t for s, t in zip(size, target.shape[1:])):
            raise StoreError(
                f"{info.path}: frames of {size} do not fit the model's {view} size {tuple(target.shape[1:])}; "
                "prepare the store again with that size"
            )
        frame = torch.from_numpy(store.read_frame(study, view, frame_at(phase, info.shape[0])))
        target[sample].zero_()  # a study that failed half-way may have left bytes here
        target[sample][tuple(slice(s) for s in size)] = frame
        extent[view][sample] = torch.tensor(size)


class Loader:
    """Iterates over the steps [start, stop) of a sampler: each item is the tuple of a step's micro-batches.

    Args:
        sizes: {view: the model's image size}. rank: whose share to read. workers: reading threads.
        strict: a study that cannot be read ends the run (LoaderError) instead of being replaced with a note.
        pin: use page-locked memory.

    `waited` is the time in seconds for which the consumer has waited for data so far.
    """

    def __init__(
        self,
        store: CineStore,
        sampler: Sampler,
        sizes: Mapping[str, tuple[int, ...]],
        *,
        start: int,
        stop: int,
        rank: int = 0,
        workers: int = 2,
        strict: bool = False,
        pin: bool = False,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.store, self.sampler, self.sizes = store, sampler, sizes
        self.start, self.stop, self.rank, self.workers = start, stop, rank, workers
        self.strict, self.pin = strict, pin
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="cine-reader")
        micros = self.sampler.accumulate
        ahead = 2 * max(self.workers, micros)  # enough to keep every thread busy while a step's batches are used up
        todo = ((step, micro) for step in range(self.start, self.stop) for micro in range(micros))
        queue: deque[Future[Batch]] = deque()
        try:
            for _ in range(self.start, self.stop):
                ready = []
                for _ in range(micros):
                    while len(queue) < ahead and (item := next(todo, None)) is not None:
                        queue.append(pool.submit(self._read, *item))
                    asked = time.perf_counter()
                    ready.append(queue.popleft().result())
                    self.waited += time.perf_counter() - asked
                yield tuple(ready)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int, micro: int) -> Batch:
        draw = self.sampler.draw(step, rank=self.rank, micro=micro)
        return read_batch(self.store, draw, self.sizes, sampler=None if self.strict else self.sampler, pin=self.pin)
