"""One frame of a cine at a random time, as the model's input: from the store, and from `.nii.gz` by nibabel, SimpleITK.

The same synthetic studies in both forms, short-axis stacks of 25 x 192 x 192 x 12, one thread: `frames/s` is a core's.
"read" ends in a padded batch, "read and augment" also goes through the whole augmentation, by the same code for all,
which wants 8 bits: what is read from `.nii.gz` is scaled to them first.
"cold" forgets the files before each round, "warm" has read them before. SimpleITK is used where it is installed, and
so are DALI's own readers of .npy, of files of one frame and of whole cines (`dali_readers.py`): these take threads of
their own, and a core's frames/s is what the CPU time allows.

    pytest benchmarks --benchmark-only -k bench_data        # how many times faster stands after the tables
    pytest benchmarks --benchmark-only -k bench_data --results benchmarks/results     # also as reading-<date>.json

On a GPU `gpu_report.py --only data` times the loaders themselves, `data_rows` below.
"""

import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import checkout  # noqa: F401
import numpy as np
import pytest
import torch
from conditions import commit, cpu_model, now, versions, write_json
from dali_readers import DALI_WAYS, NumpyReader, why_not
from report_schema import DataRow
from torch import Tensor
from workload import GateError

import cinema_fast as cf
from cinema_fast.bench_data import BenchDataConfig
from cinema_fast.bench_stages import drop_from_cache, io_counts, time_stages
from cinema_fast.common.views import VIEWS
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.loading.dali import make_loader, why_not_dali
from cinema_fast.data.loading.loader import augmentation_tensors, read_batch
from cinema_fast.data.loading.sampler import Sampler, frame_at
from cinema_fast.data.store.store import CineStore, write_index, write_study

AUGMENT = AugmentConfig(rotation=20, translation=10, flip=0.5, gamma=(0.7, 1.4), noise=0.05)
TARGETS = {"read": 30, "read and augment": 10}  # times faster than the fastest peer
FULL = {"n": 4, "n_frames": 25, "size": 192, "n_slices": 12, "in_plane_mm": 1.0}
TOY = {"n": 2, "n_frames": 4, "size": 64, "n_slices": 3, "in_plane_mm": 3.0}
OURS, NIBABEL, EXTRACT, WHOLE = "cinema-fast", "nibabel", "SimpleITK, one frame", "SimpleITK, whole file"
WAYS = [OURS, NIBABEL, *([EXTRACT, WHOLE] if importlib.util.find_spec("SimpleITK") else [])]
CASES = [(cache, task, way) for cache in ("cold", "warm") for task in TARGETS for way in WAYS]
CASES += [("warm", "read", way) for way in DALI_WAYS]


def by_nibabel(path: Path, t: int) -> np.ndarray:
    """(X, Y, Z) of one frame; what comes before it is decompressed too."""
    import nibabel

    return np.asarray(nibabel.load(path).dataobj[..., t])


def by_extraction(path: Path, t: int) -> np.ndarray:
    """(X, Y, Z) of one frame, the only one that is kept."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    reader.SetExtractIndex((0, 0, 0, t))
    reader.SetExtractSize((*reader.GetSize()[:3], 0))
    return SimpleITK.GetArrayFromImage(reader.Execute()).T


def by_whole_file(path: Path, t: int) -> np.ndarray:
    """(X, Y, Z) of one frame of a file that is read as a whole."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[t].T


READERS = {NIBABEL: by_nibabel, EXTRACT: by_extraction, WHOLE: by_whole_file}


class Studies:
    """Synthetic studies as `.nii.gz` and as a store, and one draw of a frame of each."""

    def __init__(self, folder: Path, smoke: bool):
        from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
        from cinema_fast.phantom.cohort import write_cohort

        options = dict(TOY if smoke else FULL)
        self.folder, self.nifti = folder, folder / "nifti"
        ids = write_cohort(self.nifti, options.pop("n"), 0, **options)
        size, spacing = (options["size"], options["size"], 16), (options["in_plane_mm"], options["in_plane_mm"], 10.0)
        prepare(PrepareConfig(self.nifti, folder / "store", sax_size=size, sax_spacing=spacing, workers=1))
        self.store = CineStore(folder / "store")
        self.size = {"sax": size}
        sampler = Sampler({study: ("sax",) for study in ids}, seed=0, batch_size=len(ids), augment=AUGMENT)
        self.draw = sampler.draw(0)
        self.at = [frame_at(phase, options["n_frames"]) for phase in self.draw.phase]
        self.readers: dict[str, NumpyReader] = {}

    def files(self, way: str) -> list[Path]:
        """What a way reads."""
        if way == OURS or way in DALI_WAYS:
            return [Path(self.store.info(study, "sax").path) for study in self.draw.ids]
        return [self.nifti / f"{study}_sax.nii.gz" for study in self.draw.ids]

    def images(self, way: str) -> list[np.ndarray]:
        """The frames, before padding."""
        if way in DALI_WAYS:
            return self.reader(way).images()
        return [READERS[way](path, t) for path, t in zip(self.files(way), self.at)]

    def reader(self, way: str) -> NumpyReader:
        """DALI's reader of one of its ways, made at first use."""
        if way not in self.readers:
            self.readers[way] = NumpyReader(way, self.files(way), self.at, self.folder)
        return self.readers[way]

    def read(self, way: str) -> tuple[Tensor, Tensor]:
        """Frames (B, *size), zeros beyond the extent (B, 3)."""
        if way == OURS:
            batch = read_batch(self.store, self.draw, self.size)
            return batch.frames["sax"], batch.extent["sax"]
        images = self.images(way)
        dtype = np.uint8 if images[0].dtype == np.uint8 else np.float32
        frames = torch.from_numpy(np.zeros((len(images), *self.size["sax"]), dtype))
        for target, image in zip(frames, images):
            target[tuple(slice(n) for n in image.shape)] = torch.from_numpy(image.astype(dtype, copy=False))
        return frames, torch.tensor([image.shape for image in images])

    def read_and_augment(self, way: str) -> Tensor:
        """(B, 1, *size) float32 in [0, 1]."""
        frames, extent = self.read(way)
        if frames.dtype != torch.uint8:
            frames = (frames * (255 / frames.amax((1, 2, 3), keepdim=True))).to(torch.uint8)
        return model_input(frames, extent, augmentation_tensors(self.draw)["sax"])

    def frame_bytes(self, way: str) -> int:
        """Bytes of the frames as they are stored: of 8 bits in ours, of 16 in `.nii.gz`, decompressed."""
        if way == OURS:
            return sum(math.prod(self.store.info(study, "sax").shape[1:]) for study in self.draw.ids)
        return sum(image.nbytes for image in self.images(NIBABEL))

    def check(self, way: str) -> None:
        """GateError unless a way reads the frames that were drawn."""
        if way == OURS:
            frames, extent = self.read(way)
            found = [x[tuple(slice(n) for n in size)].numpy() for x, size in zip(frames, extent.tolist())]
        else:
            found = self.images(way)
        if way == OURS or way in DALI_WAYS:
            wanted = [np.load(path)[t] for path, t in zip(self.files(OURS), self.at)]
        else:
            wanted = self.images(NIBABEL)
        if not all(np.array_equal(a, b) for a, b in zip(found, wanted)):
            raise GateError(f"{way} reads other pixels than are in the file")


@pytest.fixture(scope="module")
def studies(request, tmp_path_factory):
    """The studies, of toy size with --smoke."""
    return Studies(tmp_path_factory.mktemp("data"), request.config.getoption("--smoke"))


@pytest.fixture(scope="module")
def rates(request, summary, studies):
    """{(cache, task, way): frames/s}; at the end ours are set against the fastest peer's, and written for --results."""
    found: dict[tuple[str, str, str], float] = {}
    yield found
    if (folder := request.config.getoption("--results")) and not request.config.getoption("--smoke"):
        if missing := {case for case in CASES if case[2] not in DALI_WAYS} - set(found):
            pytest.fail(f"--results needs every case, but this one was not timed: {', '.join(min(missing))}")
        about = {"date": now(), "commit": commit(), "cpu": cpu_model(), "versions": versions(), **FULL}
        rows = [{"cache": c, "task": t, "way": way, "frames_per_s": rate} for (c, t, way), rate in found.items()]
        write_json(Path(folder) / f"reading-{about['date']}.json", {"conditions": about, "rows": rows})
    for cache, task in dict.fromkeys(key[:2] for key in found):
        rate = {way: value for (c, k, way), value in found.items() if (c, k) == (cache, task)}
        peers = {way: value for way, value in rate.items() if way != OURS}
        if OURS in rate and peers:
            times = {way: rate[OURS] / value for way, value in peers.items()}
            told = ", ".join(f"{way} {factor:.1f}" for way, factor in times.items())
            verdict = "met" if min(times.values()) >= TARGETS[task] else "missed"
            summary.append(f"{task}, {cache}: times as fast as {told} (target {TARGETS[task]}: {verdict})")


@pytest.mark.parametrize(("cache", "task", "way"), CASES)
def test_data(benchmark, summary, rates, studies, cache, task, way, request):
    if reason := why_not(way):
        pytest.skip(reason)
    smoke = request.config.getoption("--smoke")
    work = studies.read if task == "read" else studies.read_and_augment
    studies.check(way)
    frames = len(studies.draw.ids)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work(way)  # imports what it needs at first use
    before = io_counts()
    studies.read(way)
    asked = io_counts()[0] - before[0]
    benchmark.group = f"data-{task}-{cache}"
    drop = (lambda: drop_from_cache(studies.files(way))) if cache == "cold" else None
    rounds, warm_up = 1 if smoke else 10, 0 if drop else 1
    used = time.process_time()
    benchmark.pedantic(work, args=(way,), setup=drop, rounds=rounds, warmup_rounds=warm_up)
    used = time.process_time() - used
    torch.set_num_threads(threads)
    if benchmark.stats is None:  # --benchmark-disable
        return
    rate = frames / benchmark.stats.stats.median
    benchmark.extra_info["frames/s"] = rate
    if way in DALI_WAYS:  # files are mapped, of which the system keeps no count
        a_core = benchmark.extra_info["frames/s and core"] = frames * (rounds + warm_up) / used
        summary.append(f"{benchmark.group} {way}: {rate:.1f} frames/s, {a_core:.1f} a core")
        return
    rates[cache, task, way] = rate
    read = benchmark.extra_info["bytes read per byte of the frame"] = asked / studies.frame_bytes(way)
    summary.append(f"{benchmark.group} {way}: {rate:.1f} frames/s, {read:.3f} bytes read per byte of the frame")


def data_names() -> list[str]:
    """The names of the rows that `data_rows` gives here."""
    return ["data torch", *([] if why_not_dali() else ["data dali"])]


@contextmanager
def at_most(cores: int) -> Iterator[int]:
    """Keep this process and those that it starts to so many cores; gives how many they are."""
    allowed = os.sched_getaffinity(0)
    kept = sorted(allowed)[:cores]
    os.sched_setaffinity(0, kept)
    try:
        yield len(kept)
    finally:
        os.sched_setaffinity(0, allowed)


def data_rows(device: str, smoke: bool) -> Iterator[tuple[str, DataRow]]:
    """The rows of `gpu_report.py`: each loader that is installed, alone, warm, on frames of noise, with four cores."""
    preset, batch, workers, batches = ("cinema-demo", 2, 1, 1) if smoke else ("cinema-base", 64, 4, 32)
    with tempfile.TemporaryDirectory() as folder:
        store = noise_store(Path(folder), *((2, (32, 32, 3), (32, 32)) if smoke else (24, (192, 192, 12), (256, 256))))
        config = BenchDataConfig(
            "data", store, preset, batch_size=batch, workers=workers, batches=batches, step_ms=0, device=device
        )
        for name in data_names():
            check_loader(name.removeprefix("data "), store, preset, batch, device)
        with at_most(4) as cores:
            stages = time_stages(config).stages
    for name in data_names():
        transfer = stages.get("transfer")
        yield name, DataRow(
            loader=name.removeprefix("data "), preset=preset, batch=batch, workers=workers, cores=cores,
            studies_per_s=1e3 * batch / stages[name.replace("data", "loader")].ms,
            augmentation_ms=stages["augmentation"].ms, transfer_ms=transfer and transfer.ms,
        )  # fmt: skip


def check_loader(kind: str, path: Path, preset: str, batch: int, device: str) -> None:
    """GateError unless a loader's batches hold, on the device and to the end, what `read_batch` reads."""
    store, sizes, target = CineStore(path), cf.preset(preset).image_size, torch.device(device)
    sampler = Sampler({study: store.views(study) for study in store.ids}, seed=1, batch_size=batch)
    kept = list(make_loader(kind, store, sampler, sizes, device=target, start=3, stop=11, workers=2))
    for step, (found,) in enumerate(kept, 3):
        found, wanted = found.to(target), read_batch(store, sampler.draw(step), sizes).to(target)
        parts = [(found.frames, wanted.frames), (found.extent, wanted.extent), ({"": found.slot}, {"": wanted.slot})]
        if not all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b) for a, b in parts):
            raise GateError(f"loader {kind}: step {step} is not what read_batch reads")


def noise_store(path: Path, studies: int, sax: tuple[int, ...], lax: tuple[int, ...], n_frames: int = 8) -> Path:
    """A store of studies with all views, made without what reads NIfTI."""
    rng = np.random.default_rng(0)
    index = {}
    for study in (f"s{i:03d}" for i in range(studies)):
        cines = {}
        for view in VIEWS:
            shape = sax if view == "sax" else lax
            record = {
                "spacing_mm": [1.0, 1.0, 10.0][: len(shape)], "frame_time_ms": 40.0, "window": [[0, 1]] * n_frames,
                "source": {"file": f"{study}_{view}", "sha256": "0" * 64, "files": []}, "affine": np.eye(4).tolist(),
                "centred_on": "image",
            }  # fmt: skip
            cines[view] = rng.integers(0, 256, (n_frames, *shape), dtype=np.uint8), record
        index[study] = write_study(path / "studies" / study, study, cines)
    write_index(path, {"sax_size": [*sax[:2], -(-sax[2] // 4) * 4], "lax_size": list(lax)}, index)
    return path
