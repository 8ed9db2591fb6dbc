"""Batches read by processes and copied to the device by NVIDIA DALI, in parallel with the training step.

The batches equal those of `loader.Loader` to the bit: the same code reads them, in processes that DALI starts
(`external_source(parallel=True)`). A process gets the number of a micro-batch and asks the sampler, a pure function,
for its samples. DALI draws and shuffles nothing and computes nothing on the pixels; `augment.py` augments on the
device, whichever loader read the frames.

A micro-batch is sent as one block of bytes, with all tensors of the `Batch` one after another, and a small header with
their positions. Views may therefore change from step to step although the outputs of a DALI pipeline may not, absent
views cost nothing, and a micro-batch is one copy to the device instead of one per tensor. On a GPU this copy runs on
DALI's own stream while the previous step computes. The tensors of the batch are views of the block on the device,
ordered on PyTorch's stream, without a further copy. On a CPU the same pipeline copies the block out of the shared
memory, which DALI reuses.

Reading processes are spawned, not forked: when reading begins, CUDA is initialised and threads are running, and neither
survives a fork. Spawned processes import PyTorch again, which takes a few seconds at the start of a run.
"""

import io
import math
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from queue import Empty, SimpleQueue

import numpy as np
import torch
from torch import Tensor

from ...common.pool import begin_worker
from .batch import Batch
from .loader import Loader, LoaderError

END = object()
WATCH = 0.2  # seconds between two checks of the processes
ALIGN = 256  # bytes: alignment of a device's own allocations
INSTALL = (
    "pip install --no-deps nvidia-dali-cuda130, then pip install optree astunparse gast six packaging nvtx makefun "
    "'libcst~=1.8'; or, with everything that it could decode, pip install 'cinema-fast[dali]'"
)
EXIT_HINTS = {
    signal.SIGBUS: "shared memory is full: enlarge /dev/shm, or lower --batch-size or --workers",
    signal.SIGKILL: "out of memory, or killed from outside",
}


def pick_loader(name: str, device: torch.device) -> tuple[str, str]:
    """The loader for `--loader`: "dali" or "torch", and why. Raises ValueError where dali is requested but missing."""
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return "torch", "requested" if name == "torch" else "on a CPU, reading threads are faster than DALI"
    missing = why_not_dali()
    if not missing:
        return "dali", "requested" if name == "dali" else "a GPU, and DALI is installed: reading overlaps with the step"
    if name == "dali":
        raise ValueError(f"--loader dali: the extra dali is not installed ({missing}): {INSTALL}")
    return "torch", f"the extra dali is not installed ({missing})"


def make_loader(name: str, *args, device: torch.device, **options) -> Loader:
    """The loader of this name for batches on `device`; other arguments as for `Loader`."""
    if name == "dali":
        return DaliLoader(*args, device=device, **options)
    return Loader(*args, pin=device.type == "cuda", **options)


def why_not_dali() -> str:
    """Why DALI cannot be imported; empty where it can."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


class DaliLoader(Loader):
    """A `Loader` whose batches are read by processes, and are already on `device`.

    Arguments as for `Loader`; workers: reading processes. A process that dies ends the iteration with a LoaderError.
    All processes end with the iteration, and with this process, however it ends.
    """

    def __init__(self, *args, device: torch.device, **options):
        super().__init__(*args, **options)
        self.device = device

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        micros = self.sampler.accumulate
        asked = time.perf_counter()
        with closing(_Watched(self._pipeline(ahead=2 * max(self.workers, micros)))) as pipeline:
            for _ in range(self.start, self.stop):
                ready = tuple(self._take(pipeline) for _ in range(micros))
                self.waited += time.perf_counter() - asked
                yield ready
                asked = time.perf_counter()

    def _pipeline(self, ahead: int):
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self.device.type == "cuda"
        index = torch.empty(0, device=self.device).get_device() if on_gpu else None
        pipeline = Pipeline(
            batch_size=1, num_threads=1, device_id=index, prefetch_queue_depth=2,
            py_num_workers=self.workers, py_start_method="spawn",
        )  # fmt: skip
        with pipeline:
            header, block = fn.external_source(
                _Source(self), num_outputs=2, parallel=True, batch=False, prefetch_queue_depth=ahead,
                dtype=types.UINT8, ndim=1,
            )  # fmt: skip
            # copied, because the memory shared with the reading processes is reused
            pipeline.set_outputs(header, block.gpu() if on_gpu else fn.copy(block))
        return pipeline

    def _take(self, pipeline: "_Watched") -> Batch:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        header, block = pipeline.run(stream)
        batch = unpack(np.asarray(header.at(0)), torch.from_dlpack(block.as_tensor())[0])
        if isinstance(batch, LoaderError):
            raise batch
        return batch


class _Watched:
    """Runs a pipeline in a thread and watches its reading processes.

    A killed process may hold a lock of their queues, for which DALI would wait for ever.
    """

    def __init__(self, pipeline):
        self._pipeline = pipeline
        self._others = multiprocessing.active_children()
        self._readers: list[multiprocessing.Process] = []
        self._runs, self._results = SimpleQueue(), SimpleQueue()
        threading.Thread(target=self._work, name="dali", daemon=True).start()

    def run(self, stream: torch.cuda.Stream | None) -> tuple:
        """The next outputs, on a stream; LoaderError where a process has died."""
        self._runs.put(stream)
        while True:
            try:
                result = self._results.get(timeout=WATCH)
            except Empty:
                result = None
            self._look_for_readers()
            if isinstance(result, tuple):
                return result
            if died := self._died():
                raise LoaderError("; ".join(map(_describe_exit, died))) from result
            if result:
                raise result

    def close(self) -> None:
        """End the processes; and the thread, if it is not waiting for a dead process."""
        self._runs.put(END)
        pool = self._pipeline._py_pool  # DALI ends it only at garbage collection, which a traceback would delay
        if pool and not self._died():
            pool.close()
            return
        self._look_for_readers()
        for process in self._readers:  # they ignore SIGTERM, by which DALI would end them
            process.kill()
            _wait_for(process)
        if pool:
            pool.pool._observer = None  # closing it at the end of the program would wait for the lock, too

    def _work(self) -> None:
        while (stream := self._runs.get()) is not END:
            try:
                self._results.put(self._pipeline.run(stream))
            except Exception as error:
                self._results.put(error)

    def _look_for_readers(self) -> None:
        if len(self._readers) < self._pipeline.py_num_workers:
            known = [*self._others, *self._readers]
            self._readers += [process for process in multiprocessing.active_children() if process not in known]

    def _died(self) -> list[multiprocessing.Process]:
        return [process for process in self._readers if process.exitcode is not None]


class _Source:
    """Runs in the reading processes: reads micro-batch number n of a loader and packs it."""

    def __init__(self, loader: Loader):
        self.loader = Loader(
            loader.store, loader.sampler, loader.sizes, start=loader.start, stop=loader.stop, rank=loader.rank,
            strict=loader.strict, motion=loader.motion, labels=loader.labels,
        )  # fmt: skip

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        begin_worker()
        torch.set_num_threads(1)

    def __call__(self, sample) -> tuple[np.ndarray, np.ndarray]:
        # SIGTERM goes to all processes of a job; the training process finishes its step, saves, and ends the others
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        after, micro = divmod(sample.iteration, self.loader.sampler.accumulate)
        step = self.loader.start + after
        if step >= self.loader.stop:
            raise StopIteration
        try:
            return pack(self.loader._read((step, micro)))
        except LoaderError as error:
            return pack(error)


def _wait_for(process: multiprocessing.Process) -> None:
    """Wait until the exit status of a killed process is known.

    A thread of DALI waits for the process as well. The system reports its end to one of the two; `join` of the other
    returns at once, before the exit status is recorded.
    """
    process.join()
    while process.exitcode is None:
        time.sleep(0.001)


def _describe_exit(process: multiprocessing.Process) -> str:
    code = process.exitcode
    how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
    hint = EXIT_HINTS.get(-code, "see its output above")
    return f"a process that reads the store died ({process.pid}, {how}): {hint}"


class _Packer(pickle.Pickler):
    """Pickles everything but tensors, which it lists with their positions in the block."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.end = 0

    def persistent_id(self, value: object) -> tuple | None:
        if not isinstance(value, Tensor):
            return None
        at = self.end
        self.tensors.append((at, value))
        self.end += math.ceil(value.nbytes / ALIGN) * ALIGN
        return at, value.dtype, tuple(value.shape)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor):
        super().__init__(file)
        self.block = block

    def persistent_load(self, place: tuple) -> Tensor:
        at, dtype, shape = place
        return self.block[at : at + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def pack(content: object) -> tuple[np.ndarray, np.ndarray]:
    """(header, block) uint8: the pickled content without its tensors, and the tensors' bytes."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(content)
    block = np.empty(max(packer.end, 1), np.uint8)
    for at, tensor in packer.tensors:
        block[at : at + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return np.frombuffer(file.getvalue(), np.uint8), block


def unpack(header: np.ndarray, block: Tensor) -> object:
    """The packed content; its tensors are views of the block, on the block's device."""
    return _Unpacker(io.BytesIO(header.tobytes()), block).load()
