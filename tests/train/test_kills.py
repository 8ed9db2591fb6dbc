"""Fifty small runs are killed at random moments and resumed until they are done: each ends as one left in peace does.

The moments are drawn from a seed, as shares of the time that a whole run takes on the machine as it is. 46 runs are
forks of a process that has imported everything (killed_runs.py), in two lanes; four are interpreters of their own, from
the command line on, as is the run that they are all compared with.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from forked import COMMAND
from killed_pretrain import QUIET
from killed_runs import MOST, strike, wait
from machine import ROOT
from tiny_runs import metrics

STEPS = 12
OPTIONS = [
    "--steps", STEPS, "--preset", "cinema-tiny", "--views", "lax_2c", "lax_4c", "--batch-size", "1", "--seed", "5",
    "--log-every", "1", "--checkpoint-every", "3", "--device", "cpu", "--precision", "fp32",
]  # fmt: skip
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def started(store: Path, out: Path) -> subprocess.Popen:
    """A run in an interpreter of its own; what it says goes to a file beside its folder."""
    options = ["--data", store, "--out", out, "--resume", *OPTIONS]
    words = [sys.executable, "-c", COMMAND.format(code=QUIET), "pretrain", *map(str, options)]
    with out.with_suffix(".txt").open("a") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, env=ONE_THREAD)


def ended(out: Path) -> tuple[list[dict], bytes]:
    """What a finished run computed: its lines without timings, and its weights."""
    return metrics(out), (out / "checkpoints" / f"step-{STEPS:08d}.safetensors").read_bytes()


def kill_in_interpreters(store: Path, folder: Path, numbers: range, longest: float) -> list[str]:
    """Runs that are interpreters of their own, killed up to MOST times each; where the kills struck."""
    struck = []
    for number in numbers:
        rng, out = random.Random(number), folder / f"run-{number}"
        for _ in range(MOST):
            log = out / "run.log"
            before = log.stat().st_size if log.exists() else 0
            process = started(store, out)
            if wait(process.poll, rng.uniform(0, longest)) is None:
                process.kill()
                assert process.wait() == -signal.SIGKILL
                struck.append(strike(out, before))
        assert started(store, out).wait() == 0, out.with_suffix(".txt").read_text()
    return struck


@pytest.mark.slow  # some 140 kills: two to six minutes
def test_killed_at_random_moments(tiny_store, tmp_path):
    begun = time.monotonic()
    assert started(tiny_store, tmp_path / "undisturbed").wait() == 0
    longest = time.monotonic() - begun
    program = [sys.executable, ROOT / "tests" / "support" / "killed_runs.py", tiny_store, tmp_path]
    lanes = [
        subprocess.Popen([*program, *bounds, *map(str, OPTIONS)], stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
        for bounds in (("0", "23"), ("23", "46"))
    ]
    try:
        struck = kill_in_interpreters(tiny_store, tmp_path, range(46, 50), longest)
        told = [lane.communicate()[0] for lane in lanes]
    finally:
        for lane in lanes:
            lane.kill()
    assert [lane.returncode for lane in lanes] == [0, 0]
    made = [json.loads(line) for text in told for line in text.splitlines()]
    assert len(made) == 46
    where = Counter(struck + [place for run in made for place in run])
    assert min(where[place] for place in ("start-up", "checkpoint", "between checkpoints")) >= 3, where
    expected = ended(tmp_path / "undisturbed")
    assert [line["step"] for line in expected[0]] == list(range(1, STEPS + 1))
    for number in range(50):
        assert ended(tmp_path / f"run-{number}") == expected, number
