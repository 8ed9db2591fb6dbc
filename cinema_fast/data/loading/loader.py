"""Batches of stored frames, or clips of them, read ahead by threads.

Threads are enough: a batch is made of `pread` calls and copies of contiguous bytes, both of which release the
interpreter's lock, and frames are stored ready to use, so that no Python work is left to spread over processes. The
sampler is a pure function, so batches are the same, in the same order, for any number of threads.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...common.views import CLIP
from ..store.clips import ClipStore
from ..store.store import CineStore, StoreError
from .augmentation import Augmentation
from .sampler import Draw, Sampler, exchanged, frame_at

T = TypeVar("T")
R = TypeVar("R")

REPLACEMENTS = 8  # studies of its group tried, of however many, in place of one that cannot be read


class LoaderError(ValueError):
    """A study cannot be read, and strict reading was asked for or nothing else of its batch and group can be."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its way to the device.

    draw: what it is made of; where a study was replaced, it is the replacement's `ids`, `phase`, `plane`, `augment`.
    frames: {view: (B, *size) uint8}, zeros beyond each frame's extent, or {"clip": (B, T, X, Y) uint8}.
    extent: {view: (B, axes) int64}.
    augment: {view: what is done to each of its images}, as tensors. slot (B,) int64.
    notes: a line for each study that could not be read.
    motion: the stored motion maps where they were asked for, padded as the frames: {view: (B, *size) uint8}, for clips
        {"clip": (B, X, Y) uint8}.
    replaced: the study of each note.
    """

    draw: Draw
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    augment: dict[str, Augmentation]
    slot: Tensor
    notes: tuple[str, ...] = ()
    motion: dict[str, Tensor] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` of each of its tensors."""
        frames, extent, motion = (
            {view: change(tensor) for view, tensor in part.items()} for part in (self.frames, self.extent, self.motion)
        )
        augment = {view: drawn.map(change) for view, drawn in self.augment.items()}
        return replace(self, frames=frames, extent=extent, augment=augment, slot=change(self.slot), motion=motion)

    def tensors(self) -> list[Tensor]:
        """All its tensors, in an order that depends on what there is alone."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the copy from pinned memory does not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def augmentation_tensors(draw: Draw, *, pin: bool = False) -> dict[str, Augmentation]:
    """What was drawn for the images of a batch, {view: tensors} on the CPU; pin: in page-locked memory."""
    return {
        view: drawn.map(lambda values: torch.tensor(values, pin_memory=pin)) for view, drawn in draw.augment.items()
    }


def read_batch(
    store: CineStore | ClipStore,
    draw: Draw,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    sampler: Sampler | None = None,
    pin: bool = False,
    motion: bool = False,
) -> Batch:
    """Read the frames of a draw, or its clips.

    Args:
        store: of frames, or of clips where the draw's view is `clip`.
        sizes: {view: the model's image size}; frames are padded to it with zeros at the end of each axis.
        sampler: where given, a study that cannot be read is replaced by another of its group, and where none of those
            tried can be read either, by another sample of the batch; else it is an error.
        pin: use page-locked memory, from which a copy to a GPU runs by itself.
        motion: read the motion maps too; a study that lacks one cannot be read.

    Raises:
        LoaderError: names the study, the file and the reason.
    """
    batch = len(draw.ids)
    frames = {view: torch.zeros((batch, *sizes[view]), dtype=torch.uint8, pin_memory=pin) for view in draw.views}
    extent = {view: torch.zeros((batch, len(sizes[view])), dtype=torch.int64, pin_memory=pin) for view in draw.views}
    spaces = {view: sizes[view][1:] if view == CLIP else sizes[view] for view in draw.views if motion}
    maps = {view: torch.zeros((batch, *size), dtype=torch.uint8, pin_memory=pin) for view, size in spaces.items()}
    read, notes, replaced, lost = draw, [], [], {}
    for sample in range(batch):
        others = islice(sampler.replacements(draw, sample), REPLACEMENTS) if sampler else ()
        for attempt, one in enumerate(chain([None], others)):  # the drawn sample itself, then its replacements
            read = exchanged(read, sample, one) if one else read
            study, phase, plane = read.ids[sample], float(read.phase[sample]), int(read.plane[sample])
            try:
                _read_study(store, study, phase, plane, frames, extent, maps, sample)
                break
            except (StoreError, OSError) as error:
                for tensor in (*frames.values(), *maps.values()):
                    tensor[sample] = 0  # views that were read before the one that cannot be
                if sampler is None:
                    raise LoaderError(f"study {study}: {error}") from error
                notes.append(f"step {draw.step + 1}: study {study} replaced: {error}")
                replaced.append(study)
                lost_with = f"{attempt} drawn in its place cannot be read; the last, {study}: {error}"
        else:
            lost[sample] = f"study {draw.ids[sample]} and {lost_with}"
    readable = [sample for sample in range(batch) if sample not in lost]
    for sample, why in lost.items():
        if not readable:
            raise LoaderError(why)
        # a file cut short still has its first frames: better twice in a batch than the end of the run
        twin = readable[sample % len(readable)]
        read = exchanged(read, sample, read, twin)
        for tensor in (*frames.values(), *extent.values(), *maps.values()):
            tensor[sample] = tensor[twin]
    slot = torch.tensor(draw.slot, pin_memory=pin)
    augment = augmentation_tensors(read, pin=pin)
    return Batch(read, frames, extent, augment, slot, tuple(notes), maps, tuple(replaced))


def _read_study(store, study: str, phase: float, plane: int, frames, extent, maps, sample: int) -> None:
    for view, target in frames.items():
        size = tuple(target.shape[1:])
        if view == CLIP:
            image = store.read_clip(study, plane, phase, size)
        else:
            image = _read_frame(store, study, view, phase, size)
        _fill(target[sample], image)
        extent[view][sample] = torch.tensor(image.shape)
        if view in maps:
            at = (plane, size) if view == CLIP else (view,)
            _fill(maps[view][sample], store.read_motion(study, *at))


def _fill(target: Tensor, image: np.ndarray) -> None:
    target.numpy()[tuple(slice(n) for n in image.shape)] = image  # half of the time that PyTorch takes


def _read_frame(store: CineStore, study: str, view: str, phase: float, room: tuple[int, ...]) -> np.ndarray:
    info = store.info(study, view)
    size = tuple(info.shape[1:])
    if len(size) != len(room) or any(n > most for n, most in zip(size, room)):
        raise StoreError(
            f"{info.path}: frames of {size} do not fit the model's {view} size {room}; "
            "prepare the store again with that size"
        )
    return store.read_frame(study, view, frame_at(phase, info.shape[0]))


def read_ahead(read: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int) -> Iterator[R]:
    """`read(item)` of each item, in order, with up to `ahead` of them under way in `workers` threads."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cine-reader")
    todo = iter(items)
    queue: deque[Future[R]] = deque()
    try:
        while True:
            while len(queue) < ahead and (item := next(todo, None)) is not None:
                queue.append(pool.submit(read, item))
            if not queue:
                return
            yield queue.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Loader:
    """Iterates over the steps [start, stop) of a sampler: each item is the tuple of a step's micro-batches.

    Args:
        sizes: {view: the model's image size}. rank: whose share to read. workers: reading threads.
        strict: a study that cannot be read ends the run (LoaderError) instead of being replaced with a note.
        pin: use page-locked memory. motion: read the motion maps too.

    `waited` is the time in seconds for which the consumer has waited for data so far.
    """

    def __init__(
        self,
        store: CineStore | ClipStore,
        sampler: Sampler,
        sizes: Mapping[str, tuple[int, ...]],
        *,
        start: int,
        stop: int,
        rank: int = 0,
        workers: int = 2,
        strict: bool = False,
        pin: bool = False,
        motion: bool = False,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.store, self.sampler, self.sizes = store, sampler, sizes
        self.start, self.stop, self.rank, self.workers = start, stop, rank, workers
        self.strict, self.pin, self.motion = strict, pin, motion
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        micros = self.sampler.accumulate
        ahead = 2 * max(self.workers, micros)  # enough to keep every thread busy while a step's batches are used up
        todo = ((step, micro) for step in range(self.start, self.stop) for micro in range(micros))
        batches = read_ahead(self._read, todo, workers=self.workers, ahead=ahead)
        with closing(batches):
            for _ in range(self.start, self.stop):
                asked = time.perf_counter()
                ready = tuple(islice(batches, micros))
                self.waited += time.perf_counter() - asked
                yield ready

    def _read(self, at: tuple[int, int]) -> Batch:
        step, micro = at
        draw = self.sampler.draw(step, rank=self.rank, micro=micro)
        sampler = None if self.strict else self.sampler
        return read_batch(self.store, draw, self.sizes, sampler=sampler, pin=self.pin, motion=self.motion)
