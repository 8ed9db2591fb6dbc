"""Thousands of batches: memory stays flat and no file stays open."""

import gc
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from loader_cases import loader_of, needs_dali
from training_fixtures import FOUR, write_store

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return write_store(tmp_path_factory.mktemp("soak") / "store", studies)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(steps: Iterable, settling: int, last: int) -> tuple[int, int]:
    """Bytes and open files that came to be held between step number `settling` and step number `last`, the loader's."""
    held = []
    for n, _ in enumerate(steps, 1):
        if n in (settling, last):  # while the loader is open: closing it would hide what it leaks
            gc.collect()  # what earlier tests left closes its files when it pleases
            held.append((resident(), len(os.listdir("/proc/self/fd"))))
    (memory, files), (memory_then, files_then) = held
    return memory_then - memory, files_then - files


@pytest.mark.parametrize(
    ("kind", "steps", "batch_size"),
    [
        ("torch", 1000, 2),
        pytest.param("torch", 10_000, 2, marks=pytest.mark.slow),
        pytest.param("dali", 300, 16, marks=needs_dali),
    ],
)
def test_memory_and_open_files_stay_as_they_are(store, kind, steps, batch_size):
    """A study is 7 kB or more: had one batch in ten stayed, it would show."""
    settling = steps // 3
    memory, files = growth(loader_of(kind, store, stop=steps, batch_size=batch_size), settling, steps)
    assert files <= 0
    assert memory < (steps - settling) * batch_size * 7e3 / 10


def test_a_leak_is_seen(store):
    """Of the measurement: batches that are kept, and a file that is."""
    kept, opened = [], []

    def leaking():
        for step in loader_of("torch", store, stop=300, batch_size=2):
            kept.append(step)
            if len(kept) == 200:
                opened.append(os.open(store / "index.json", os.O_RDONLY))
            yield step

    memory, files = growth(leaking(), 100, 300)
    os.close(opened[0])
    assert memory > 200 * 2 * 7e3 and files == 1
