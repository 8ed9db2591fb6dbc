"""Ten thousand batches, and loaders opened again and again: memory stays flat and nothing stays open or behind.

Of this process and of those that read for DALI. Those marked slow are the whole length; a short form runs always.
"""

import gc
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from loader_cases import loader_of, needs_dali, readers
from marks import slow
from tiny_runs import FOUR, write_store

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
KINDS = ["torch", pytest.param("dali", marks=needs_dali)]
# Over the short form's 300 batches that is 3.5 kB each: the smallest batch here, two stacks, has 6 kB of pixels. Over
# 5000 batches it is 210 bytes each: less than a tensor takes without its pixels. Measured: 0.1 MiB.
MAX_GROWTH = 1 << 20
WINDOW = 20  # steps over which the least is taken: at any one a thread may have a file open that it closes at once


class Held(NamedTuple):
    """What a process holds."""

    memory: int  # bytes, resident
    files: int


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    studies = {f"s{i}": FOUR if i % 3 else ("sax",) for i in range(6)}
    return write_store(tmp_path_factory.mktemp("soak") / "store", studies)


def held(pid: int) -> Held:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Held(1024 * int(lines["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")))


def growth(steps: Iterable, settled: int, last: int, others: Callable[[], list[int]] = readers) -> list[Held]:
    """What came to be held between step number `settled` and step number `last`, the loader's: by this process, then
    by each of the others."""
    seen: dict[int, dict[int, list[Held]]] = {settled: {}, last: {}}
    for n, _ in enumerate(steps, 1):
        end = settled if n <= settled else last
        if end - WINDOW < n <= end:  # while the loader is open: closing it would hide what it leaks
            if n == end - WINDOW + 1:
                gc.collect()  # what earlier tests left closes its files when it pleases
            for pid in (os.getpid(), *others()):
                seen[end].setdefault(pid, []).append(held(pid))
    before, after = ({pid: Held(*map(min, zip(*all))) for pid, all in seen[end].items()} for end in (settled, last))
    assert before.keys() == after.keys()
    return [Held(after[pid].memory - before[pid].memory, after[pid].files - before[pid].files) for pid in before]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [600, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_and_open_files_stay_as_they_are(store, kind, steps):
    grown = growth(loader_of(kind, store, stop=steps, batch_size=2, workers=2), steps // 2, steps)
    assert len(grown) == (3 if kind == "dali" else 1)
    for process in grown:
        assert process.files <= 0 and process.memory < MAX_GROWTH, grown


@pytest.mark.slow
def test_a_leak_is_seen(store):
    """Of the measurement: batches that are kept and a file that is, in this process and in another."""
    leaks = "import sys; kept = [(open(sys.executable), bytearray(7000)) for _ in sys.stdin]"
    other = subprocess.Popen([sys.executable, "-c", leaks], stdin=subprocess.PIPE, text=True, bufsize=1)
    kept, opened = [], []

    def leaking():
        for step in loader_of("torch", store, stop=400, batch_size=2):
            kept.append(step)
            other.stdin.write("\n")
            if len(kept) == 200:
                opened.append(os.open(store / "index.json", os.O_RDONLY))
            yield step

    own, child = growth(leaking(), 100, 400, lambda: [other.pid])
    os.close(opened[0])
    other.stdin.close()
    other.wait()
    assert own.files == 1 and child.files > 200
    assert own.memory > MAX_GROWTH and child.memory > MAX_GROWTH


def shared_names() -> set[Path]:
    """The names under which this process has memory that others could map too: DALI's blocks, semaphores."""
    return {Path(name) for name in re.findall(r"(/dev/shm/\S+)", Path("/proc/self/maps").read_text())}


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        slow("torch", 10),
        pytest.param("torch", 200, marks=pytest.mark.slow),
        pytest.param("dali", 12, marks=[needs_dali, pytest.mark.slow]),
    ],
)
def test_what_is_opened_again_and_again_leaves_nothing_behind(store, kind, times):
    """Every other loader is left in the middle, with batches read ahead, as by a run that is interrupted."""
    before, already = (multiprocessing.active_children(), threading.enumerate()), shared_names()
    files = []
    for n in range(times):
        loader = iter(loader_of(kind, store, stop=9 if n % 2 else 1000, workers=2))
        list(itertools.islice(loader, 3))
        names = shared_names() - already
        assert len(names) > 1 if kind == "dali" else len(threading.enumerate()) > len(before[1])
        list(loader) if n % 2 else loader.close()
        assert (multiprocessing.active_children(), threading.enumerate()) == before
        gc.collect()
        assert shared_names() <= already and not any(map(Path.exists, names))
        files.append(held(os.getpid()).files)
    # DALI keeps the pipes of one pool until the next; more than that does not pile up
    assert max(files[times // 2 :]) <= max(files[: times // 2]), files
