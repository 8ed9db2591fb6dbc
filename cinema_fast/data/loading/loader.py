"""Batches of stored frames, or clips of them, read ahead by threads.

Threads are enough: reading a batch is `pread` calls and copies of contiguous bytes, which release the interpreter's
lock. Frames are stored ready to use, so hardly any work is left in Python. The sampler is a pure function, so batches
are the same, in the same order, for any number of threads.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...common.views import CLIP
from ..store.clips import ClipStore
from ..store.store import CineStore, StoreError
from .augmentation import Augmentation
from .batch import Batch
from .sampler import Draw, Sampler, exchanged, frame_at

T = TypeVar("T")
R = TypeVar("R")

REPLACEMENTS = 8  # at most this many studies of its group are tried in place of one that cannot be read


class LoaderError(ValueError):
    """A study cannot be read, and --strict is set or no study that could replace it can be read."""


class LabelError(LoaderError):
    """The labels of a study are wrong; it is not replaced by another."""


class Labels(Protocol):
    """The frames to read of labelled studies, and their targets."""

    def frames_of(self, study: str, view: str, phase: float) -> Sequence[int]:
        """Frames of a view that are read together at a phase in [0, 1), the same number for all studies; for clips
        none."""

    def target_of(self, study: str, shown: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """The targets for {view: its frames}. Under the name of a view: a map on the stored grid, which a batch pads to
        the model's size. Under any other name: an array of one shape for all studies.

        Raises StoreError where it cannot be read, LabelError where it is wrong.
        """


def augmentation_tensors(draw: Draw, *, pin: bool = False) -> dict[str, Augmentation]:
    """The augmentation drawn for the images of a batch, {view: tensors} on the CPU; pin: in page-locked memory."""
    return {
        view: drawn.map(lambda values: torch.tensor(values, pin_memory=pin)) for view, drawn in draw.augment.items()
    }


def read_batch(
    store: CineStore | ClipStore,
    draw: Draw,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    labels: Labels | None = None,
    sampler: Sampler | None = None,
    pin: bool = False,
    motion: bool = False,
) -> Batch:
    """Read the frames of a draw, or its clips.

    Args:
        store: a CineStore, or a ClipStore where the draw's view is `clip`.
        sizes: {view: the model's image size}; frames are padded to it with zeros at the end of each axis.
        labels: which frames are read together, and their targets; None: one frame and no target.
        sampler: if given, a study that cannot be read is replaced by another of its group; if none of those tried can
            be read either, by another sample of the batch. Without a sampler it is an error.
        pin: use page-locked memory, from which copies to a GPU are asynchronous.
        motion: read the motion maps too; a study that lacks one cannot be read.

    Raises:
        LoaderError: names the study, the file and the reason.
    """
    batch = len(draw.ids)
    room = _Room(batch, draw.views, sizes, pin=pin, motion=motion)
    read, notes, replaced, lost = draw, [], [], {}
    for sample in range(batch):
        others = islice(sampler.replacements(draw, sample), REPLACEMENTS) if sampler else ()
        for attempt, one in enumerate(chain([None], others)):  # the drawn sample itself, then its replacements
            read = exchanged(read, sample, one) if one else read
            study, phase, plane = read.ids[sample], float(read.phase[sample]), int(read.plane[sample])
            try:
                room.read(store, study, phase, plane, labels, sample)
                break
            except (StoreError, OSError) as error:
                room.clear(sample)  # of views that were read before the one that failed
                if sampler is None:
                    raise LoaderError(f"study {study}: {error}") from error
                notes.append(f"step {draw.step + 1}: study {study} replaced: {error}")
                replaced.append(study)
                lost_with = f"{attempt} drawn instead cannot be read; the last was {study}: {error}"
        else:
            lost[sample] = f"study {draw.ids[sample]} and {lost_with}"
    readable = [sample for sample in range(batch) if sample not in lost]
    for sample, why in lost.items():
        if not readable:
            raise LoaderError(why)
        # a sample twice in a batch is better than the end of the run
        twin = readable[sample % len(readable)]
        read = exchanged(read, sample, read, twin)
        room.copy(twin, sample)
    slot = torch.tensor(draw.slot, pin_memory=pin)
    augment = augmentation_tensors(read, pin=pin)
    return Batch(
        read, room.frames, room.extent, augment, slot, tuple(notes), room.motion, tuple(replaced), room.target()
    )


class _Room:
    """The tensors of a batch, filled sample by sample."""

    def __init__(self, batch: int, views: Sequence[str], sizes: Mapping[str, tuple[int, ...]], *, pin: bool, motion):
        self._batch, self._sizes, self._pin = batch, sizes, pin
        self.extent = {view: self._zeros(len(sizes[view]), dtype=torch.int64) for view in views}
        self.motion = {view: self._zeros(*sizes[view][view == CLIP :]) for view in views if motion}
        self.frames: dict[str, Tensor] = {}
        self._views, self._targets = views, {}  # targets by sample

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.zeros((self._batch, *shape), dtype=dtype, pin_memory=self._pin)

    def read(self, store, study: str, phase: float, plane: int, labels: Labels | None, sample: int) -> None:
        """Read a study into its place. Raises StoreError or OSError where it cannot be."""
        shown = {}
        for view in self._views:
            size = self._sizes[view]
            if labels and view != CLIP:
                shown[view] = labels.frames_of(study, view, phase)
                image = store.read_frames(study, view, shown[view])
            elif labels:
                image = store.read_clip(study, plane, 0.0, size)[None]
            elif view == CLIP:
                image = store.read_clip(study, plane, phase, size)
            else:
                image = store.read_frame(study, view, frame_at(phase, store.n_frames(study, view)))
            lead = image.shape[:1] if labels else ()
            have = image.shape[len(lead) :]
            if len(have) != len(size) or any(n > most for n, most in zip(have, size)):
                raise StoreError(
                    f"{store.info(study, view).path}: frames of {have} do not fit the model's {view} size {size}; "
                    "prepare the store again with that size"
                )
            if view not in self.frames:
                self.frames[view] = self._zeros(*lead, *size)
            _fill(self.frames[view][sample], image)
            self.extent[view][sample] = torch.tensor(have)
            if view in self.motion:
                at = (plane, size) if view == CLIP else (view,)
                _fill(self.motion[view][sample], store.read_motion(study, *at))
        if labels:
            self._targets[sample] = labels.target_of(study, shown)

    def clear(self, sample: int) -> None:
        for tensor in (*self.frames.values(), *self.motion.values()):
            tensor[sample] = 0

    def copy(self, source: int, sample: int) -> None:
        for tensor in (*self.frames.values(), *self.extent.values(), *self.motion.values()):
            tensor[sample] = tensor[source]
        if source in self._targets:
            self._targets[sample] = self._targets[source]

    def target(self) -> dict[str, Tensor]:
        """The targets of the batch; maps are padded with zeros at the end of each axis to the view's size."""
        found = {}
        for name in self._targets.get(0, {}):
            arrays = [self._targets[sample][name] for sample in range(self._batch)]
            shape = self._sizes.get(name, arrays[0].shape)
            dtype = torch.from_numpy(arrays[0]).dtype
            found[name] = self._zeros(*(shape if len(shape) == arrays[0].ndim else arrays[0].shape), dtype=dtype)
            for place, array in zip(found[name], arrays):
                _fill(place, array)
        return found


def _fill(target: Tensor, image: np.ndarray) -> None:
    target.numpy()[(..., *(slice(n) for n in image.shape))] = image  # twice as fast as PyTorch's assignment


def read_ahead(read: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int) -> Iterator[R]:
    """Yield `read(item)` for each item, in order; `workers` threads read up to `ahead` items in advance."""
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
        sizes: {view: the model's image size}. rank: the rank whose share is read. workers: reading threads.
        strict: a study that cannot be read ends the run (LoaderError) instead of being replaced with a note.
        pin: use page-locked memory. motion: read the motion maps too. labels: as for `read_batch`.

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
        labels: Labels | None = None,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.store, self.sampler, self.sizes = store, sampler, sizes
        self.start, self.stop, self.rank, self.workers = start, stop, rank, workers
        self.strict, self.pin, self.motion, self.labels = strict, pin, motion, labels
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        micros = self.sampler.accumulate
        ahead = 2 * max(self.workers, micros)  # enough to keep all threads busy while a step's batches are consumed
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
        return read_batch(
            self.store, draw, self.sizes, labels=self.labels, sampler=sampler, pin=self.pin, motion=self.motion
        )
