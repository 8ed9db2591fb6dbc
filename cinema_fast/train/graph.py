"""A training step as CUDA graphs, each replayed by one call of the host.

A replayed graph repeats the captured work on the same addresses. Everything that changes from step to step (the batch
with its augmentation parameters, the step's number, the learning rate) is therefore in tensors that are written in
place before each replay. Batches of other views or shapes have their own graphs.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..data.loading.batch import Batch

WARM_UP = 3  # steps of each kind before its capture, in which kernels compile and the optimiser creates its state

Work = Callable[[], Tensor]


class Capture(Protocol):
    """Records work, to be replayed."""

    def warm_up(self, work: Work) -> Tensor:
        """Do the work, in the place (stream) where it will be captured."""

    def __call__(self, work: Work) -> tuple[Callable[[], None], Tensor]:
        """Record the work without doing it. Returns a function that does it, and the result, which it overwrites."""


class CudaCapture:
    """Captures on one stream and in one memory pool, for graphs that are replayed one after another."""

    def __init__(self, device: torch.device):
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work) -> Tensor:
        """Do the work on the stream of the captures, ordered with work before and after."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def __call__(self, work: Work) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local, because threads that read ahead may allocate during the capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class GraphedStep:
    """`work(batches)` on fixed device tensors, captured once for each kind of batches, then replayed.

    work: a step that computes with the tensors of its batches and others of fixed address, never waits for the device,
        and returns one tensor. capture: see `CudaCapture`.
    """

    def __init__(self, work: Callable[[Sequence[Batch]], Tensor], capture: Capture):
        self._work, self._capture = work, capture
        self._seen: dict[tuple, int] = {}
        self._captured: dict[tuple, tuple[list[Tensor], Callable[[], None], Tensor]] = {}

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """The step's result; `batches` are on the device."""
        tensors = [tensor for batch in batches for tensor in batch.tensors()]
        kind = tuple(batch.draw.views for batch in batches), tuple((x.shape, x.dtype) for x in tensors)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= WARM_UP:
            return self._capture.warm_up(lambda: self._work(batches))
        if kind not in self._captured:
            placed = [batch.map(torch.clone) for batch in batches]
            self._captured[kind] = [t for batch in placed for t in batch.tensors()], *self._capture(
                lambda: self._work(placed)
            )
        places, replay, result = self._captured[kind]
        for place, tensor in zip(places, tensors):
            place.copy_(tensor)
        replay()
        return result.clone()
