"""One of two ranks is killed: torchrun starts both again, and they go on from the newest checkpoint."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rank_runs import torchrun, weights
from tiny_runs import metrics

STEPS = 30
OPTIONS = ("--batch-size", 1, "--views", "lax_2c", "lax_4c")  # test_ranks has a checkpoint every 3 steps, a line each


def pid_of(rank: int, out: Path) -> int:
    """The process that is this rank of the run in `out`."""
    for process in Path("/proc").iterdir():
        try:
            words, environment = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # no process, ended, or another's
            continue
        if os.fsencode(out) in words and b"RANK=%d" % rank in environment:
            return int(process.name)
    raise LookupError(f"no rank {rank} of {out}")


def kill(rank: int, out: Path) -> int:
    """Kill a rank once the run is between two checkpoints; returns the steps that were made."""
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(metrics(out)) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pid_of(rank, out), signal.SIGKILL)
    return len(metrics(out))


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory):
    """By how the ranks share the model: a run of two that nothing happens to."""
    made = {}

    def of(parallel: str) -> Path:
        if parallel not in made:
            made[parallel] = tmp_path_factory.mktemp("two") / "run"
            ended = torchrun(2, tiny_store, made[parallel], *OPTIONS, "--parallel", parallel, steps=STEPS)
            assert ended.returncode == 0, ended.stderr
        return made[parallel]

    return of


@pytest.mark.slow  # two minutes
@pytest.mark.parametrize(("parallel", "rank"), [("ddp", 0), ("ddp", 1), ("fsdp", 1)])
def test_training_goes_on_from_the_last_checkpoint(tiny_store, tmp_path, undisturbed, parallel, rank):
    expected, out = undisturbed(parallel), tmp_path / "run"
    with ThreadPoolExecutor(1) as beside:
        made = beside.submit(kill, rank, out)
        # begun with --resume, as torchrun repeats the command line
        options = (*OPTIONS, "--parallel", parallel, "--resume")
        ended = torchrun(2, tiny_store, out, *options, steps=STEPS, restarts=1, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert 8 <= made.result() < STEPS
    log = (out / "run.log").read_text()
    assert log.count("no checkpoint yet: starting from the first step") == 1
    (step,) = re.findall(r"resuming from step (\d+)", log)
    # a regular one, every 3 steps, or what the main rank saved when gloo told it of the other's end
    assert 3 <= int(step) < STEPS
    assert metrics(out) == metrics(expected)
    found, wanted = weights(out, STEPS), weights(expected, STEPS)
    assert all((found[name] == wanted[name]).all() for name in wanted | found)
