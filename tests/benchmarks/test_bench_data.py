"""`cinema-fast bench data`: what it writes adds up, and the limit that it names follows from it. No time is judged."""

import json
import math
from pathlib import Path

import pytest
from forked import run

from cinema_fast.bench_data import BenchDataConfig, Stage, limit
from cinema_fast.bench_stages import drop_from_cache, io_counts, time_stages
from cinema_fast.data.loading.dali import why_not_dali
from cinema_fast.data.store.store import CineStore


def test_every_stage_is_timed_and_bytes_are_counted(tiny_store, tmp_path):
    out = tmp_path / "data.json"
    options = ("--preset", "cinema-demo", "--batch-size", 4, "--batches", 2, "--step-ms", 30, "--out", out)
    done = run("bench", "data", tiny_store, *options, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    stages = {stage["name"]: stage for stage in found["stages"]}
    installed = ["loader dali"] * (not why_not_dali())
    names = ["open the store", "read, cold", "read, warm", "pad and copy", "augmentation", "loader torch", *installed]
    assert list(stages) == [*names, "torch with a step"]
    for name in names[1:]:
        stage = stages[name]
        assert stage["frames"] == 4 * 4  # studies by views of the most frequent set
        assert stage["frames_per_s"] == pytest.approx(stage["frames"] / stage["ms"] * 1e3)
        assert f"\n{name} " in done.stdout
    assert stages["torch with a step"]["ms"] >= 30 and 0 <= found["wait"] < 1
    assert 1 <= found["bytes read per byte of frames"] < 1.1
    assert done.stdout.rstrip().endswith(f"limit: {found['limit']}")


def test_bytes_are_those_that_were_asked_for(tiny_store):
    """One frame of a file: its own bytes, and at most a header more."""
    store = CineStore(tiny_store)
    drop_from_cache([store.info("s01", "sax").path])
    before = io_counts()[0]
    frame = store.read_frame("s01", "sax", 2)
    asked = io_counts()[0] - before
    own = len(Path("/proc/self/io").read_text())  # which the count before it was asked for as well
    assert frame.nbytes <= asked <= frame.nbytes + 128 + 2 * own


def stages_of(**ms) -> dict[str, Stage]:
    names = {"cold": "read, cold", "warm": "read, warm", "pad": "pad and copy", "loader": "loader torch"}
    return {names.get(key, key): Stage(names.get(key, key), value, 64) for key, value in ms.items()}


@pytest.mark.parametrize(
    ("wait", "ms", "expected"),
    [
        (0.0, {"augmentation": 20}, "the step (100.0 ms a batch); the loader alone takes 50.0"),
        (0.01, {"augmentation": 300}, "augmentation (300.0 ms a batch); the loader alone takes 50.0"),
        (0.4, {"augmentation": 20}, "mostly read, warm (30.0 ms with 2 workers); reading from a cold cache takes 200"),
        (0.4, {"augmentation": 20, "pad": 80}, "mostly pad and copy (40.0 ms with 2 workers)"),
        (0.4, {"augmentation": 20, "transfer": 70}, "mostly transfer (70.0 ms"),
    ],
)
def test_limit(wait, ms, expected):
    stages = stages_of(**{"cold": 400, "warm": 60, "pad": 10, "loader": 50} | ms)
    told = limit(stages, "torch", wait, 2, 100.0)
    assert expected in told and told.startswith("data: the step waited 40 %" if wait > 0.1 else expected)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"^--preset cmrfm-demo: bench data times the stages of CineMA and HeartMAE"):
        time_stages(BenchDataConfig("data", tmp_path, preset="cmrfm-demo"))
    with pytest.raises(ValueError, match=r"--batch-size must be at least 1, got 0"):
        BenchDataConfig("data", tmp_path, batch_size=0)
    for value in (-1, math.inf):
        with pytest.raises(ValueError, match=rf"--step-ms must be finite and not negative, got {value}"):
            BenchDataConfig("data", tmp_path, step_ms=value)
    done = run("bench", "data", tmp_path / "none")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "does not exist" in done.stderr
