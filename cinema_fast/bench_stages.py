"""The stages that `bench data` times."""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import torch

from .bench_data import BenchDataConfig, DataReport, Stage, limit
from .common.naming import count_studies, counted
from .common.views import CLIP
from .data.loading.augment import model_input
from .data.loading.batch import Batch
from .data.loading.dali import make_loader, pick_loader, why_not_dali
from .data.loading.loader import Loader, read_batch
from .data.loading.sampler import Draw, Sampler, frame_at
from .data.store.clips import ClipStore
from .data.store.store import CineStore
from .models.config import CineMAConfig, preset
from .train.setup import fit_to_store, pick_device


def time_stages(config: BenchDataConfig) -> DataReport:
    """Time all stages on the studies that share the store's most frequent set of views.

    Raises:
        ValueError: a store, preset or loader that cannot be used (includes StoreError and LoaderError).
        OSError: `config.out` cannot be written.
    """
    base = preset(config.preset)
    if not isinstance(base, CineMAConfig):
        raise ValueError(f"--preset {config.preset}: bench data times the stages of CineMA and HeartMAE alone; for a "
                         "run of DINO see data_wait in its metrics.jsonl")
    device = pick_device(config.device)
    chosen, why = pick_loader(config.loader, device)
    began = time.perf_counter()
    cines = CineStore(config.store)
    opening = (time.perf_counter() - began) * 1e3
    model_config = fit_to_store(base, cines, config.views, config.preset)
    store = ClipStore(cines, config.views) if CLIP in model_config.views else cines
    usable = {study: tuple(view for view in store.views(study) if view in model_config.views) for study in store.ids}
    views, _ = Counter(has for has in usable.values() if has).most_common(1)[0]
    usable = {study: has for study, has in usable.items() if has == views}
    planes = {study: len(store.planes(study)) for study in usable} if CLIP in views else None
    sampler = Sampler(usable, seed=0, batch_size=config.batch_size, augment=config.augment, planes=planes)
    draws = [sampler.draw(step) for step in range(config.batches)]
    frames = config.batch_size * sum(model_config.image_size[view][0] if view == CLIP else 1 for view in views)
    stages = {"open the store": Stage("open the store", opening, 0, f"once, {count_studies(len(cines.ids))}")}

    def add(name: str, seconds: float, note: str = "") -> None:
        stages[name] = Stage(name, seconds * 1e3, frames, note)

    def loader_of(name: str, stop: int) -> Loader:
        return make_loader(
            name, store, sampler, model_config.image_size, device=device, start=0, stop=stop, workers=config.workers
        )

    drop_from_cache(path for draw in draws for path in _files(cines, store, draw))
    start = io_counts()
    cold, wanted = _timed(lambda: sum(_read(store, draw, model_config.image_size) for draw in draws))
    half = io_counts()
    warm, _ = _timed(lambda: sum(_read(store, draw, model_config.image_size) for draw in draws))
    asked, from_disk = io_counts()[0] - half[0], half[1] - start[1]
    origin = f"{from_disk / 2**20:.0f} MiB from the disk" if from_disk else "no byte from the disk: not a cold read"
    add("read, cold", cold / len(draws), f"one thread, after posix_fadvise DONTNEED: {origin}")
    add("read, warm", warm / len(draws), "one thread")

    remembered = _Remembered(store)
    batch = read_batch(remembered, draws[0], model_config.image_size, pin=device.type == "cuda")
    copied = _median(lambda: read_batch(remembered, draws[0], model_config.image_size), config.batches, device)
    add("pad and copy", copied, "one thread")
    if device.type == "cuda":
        add("transfer", _median(lambda: batch.to(device), config.batches, device), "from page-locked memory")
    moved = batch.to(device)
    add("augmentation", _median(lambda: _augment(moved), config.batches, device), f"on {device.type}")

    for name in ("torch", *(["dali"] if not why_not_dali() else [])):
        first, each, _ = _deliver(loader_of, name, config, lambda batch: _arrived(batch, device))
        add(f"loader {name}", each, f"warm, {counted(config.workers, 'worker')}; the first batch after {first:.2f} s")
    _, each, wait = _deliver(loader_of, chosen, config, _dummy_step(config.step_ms, device))
    add(f"{chosen} with a step", each, f"augmentation and {config.step_ms:g} ms; {wait:.1%} waiting for data")
    facts = {
        "store": str(config.store), "device": device.type, "views": ", ".join(views), "batch size": config.batch_size,
        "loader": f"{chosen} ({why})", "bytes read per byte of frames": round(asked / wanted, 4),
        "bytes from the disk when cold": from_disk,
    }  # fmt: skip
    report = DataReport(stages, wait, limit(stages, chosen, wait, config.workers, config.step_ms), facts)
    if config.out:
        config.out.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return report


def drop_from_cache(paths: Iterable[str]) -> None:
    """Drop files from the page cache, so that the next read is from disk; some file systems ignore it."""
    for path in set(paths):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # pages that are not on the disk yet cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def io_counts() -> tuple[int, int]:
    """Bytes that this process has read so far, and how many of them came from a disk (/proc/self/io).

    Raises ValueError where the system has no such file.
    """
    if not Path("/proc/self/io").exists() or not hasattr(os, "posix_fadvise"):
        raise ValueError("bench data counts what is read by Linux's /proc/self/io, which is not there on this system")
    values = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(values["rchar"]), int(values["read_bytes"])


def _files(cines: CineStore, store: CineStore | ClipStore, draw: Draw) -> list[str]:
    if store is cines:
        return [cines.info(study, view).path for study in draw.ids for view in draw.views]
    planes = [store.planes(study)[plane] for study, plane in zip(draw.ids, draw.plane)]
    return [cines.info(study, plane.view).path for study, plane in zip(draw.ids, planes)]


def _read(store: CineStore | ClipStore, draw: Draw, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Read the frames of a draw; returns the number of bytes."""
    n_bytes = 0
    for study, phase, plane in zip(draw.ids, draw.phase, draw.plane):
        for view in draw.views:
            if view == CLIP:
                image = store.read_clip(study, int(plane), float(phase), sizes[view])
            else:
                image = store.read_frame(study, view, frame_at(phase, store.n_frames(study, view)))
            n_bytes += image.nbytes
    return n_bytes


class _Remembered:
    """A store that answers repeated reads from memory, to time the stages after reading."""

    def __init__(self, store: CineStore | ClipStore):
        self._store, self._answers = store, {}

    def __getattr__(self, name: str) -> Callable:
        def answer(*question):
            key = name, *question
            if key not in self._answers:
                self._answers[key] = getattr(self._store, name)(*question)
            return self._answers[key]

        return answer


def _augment(batch: Batch) -> list[torch.Tensor]:
    return [model_input(x, batch.extent[v], batch.augment[v], clip=v == CLIP) for v, x in batch.frames.items()]


def _arrived(batch: Batch, device: torch.device) -> None:
    """Wait until the batch is on the device, whichever loader it is from."""
    batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dummy_step(ms: float, device: torch.device) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        _augment(batch.to(device))
        time.sleep(ms / 1e3)

    return step


def _deliver(
    loader_of: Callable[[str, int], Loader], name: str, config: BenchDataConfig, step: Callable[[Batch], None]
) -> tuple[float, float, float]:
    """Seconds to the first batch, seconds per batch in the steady state, and the share of these spent waiting."""
    settling = 1 + 4 * config.workers  # more than are read ahead, and so ready before anybody asks
    loader = loader_of(name, settling + config.batches + 1)
    with closing(iter(loader)) as steps:
        (batch,) = next(steps)
        first = loader.waited
        for _ in range(1, settling):
            step(batch)
            (batch,) = next(steps)
        began, waited = time.perf_counter(), loader.waited
        for _ in range(config.batches):
            step(batch)
            (batch,) = next(steps)
        seconds = time.perf_counter() - began
    return first, seconds / config.batches, (loader.waited - waited) / seconds


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _median(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of a call, after one that is not timed."""
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
