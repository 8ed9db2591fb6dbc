"""Runs that are killed at random moments and resumed until they are done; a program of its own, see test_kills.py.

    python killed_runs.py STORE FOLDER FIRST LAST OPTION ...

makes the runs FIRST to LAST - 1 as FOLDER/run-N with these options of `cinema-fast pretrain`, and prints a JSON line of
each: where its kills struck. Every attempt is a fork of this process, which has imported everything and started no
thread: a fresh interpreter would import torch for longer than the run takes.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

MOST = 3  # kills a run


def strike(out: Path, log_before: int) -> str:
    """What a killed run was doing, from what it left behind."""
    checkpoints = out / "checkpoints"
    if not (out / "run.log").exists() or (out / "run.log").stat().st_size == log_before:
        return "start-up"
    names = {path.name for path in checkpoints.glob("*")}
    counting = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    if any(name.split(".")[0] not in counting for name in names):
        return "checkpoint"
    newest = max((int(name.removeprefix("step-")) for name in counting), default=0)
    lines = (out / "metrics.jsonl").read_text().count("\n")  # a line a step
    return "between checkpoints" if lines > newest else "elsewhere"


def begin(arguments: list[str], output: Path) -> int:
    """`cinema-fast` in a fork of this process; its pid."""
    from cinema_fast.cli import main

    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        status = main(arguments)
    finally:
        os._exit(status)


def ended(pid: int) -> int | None:
    """The exit status of a child, or None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(poll: Callable[[], int | None], seconds: float) -> int | None:
    """The exit status that `poll` gives, or None after so many seconds."""
    deadline = time.monotonic() + seconds
    while (status := poll()) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return status


def make(out: Path, arguments: list[str], rng: random.Random, longest: float) -> list[str]:
    """One run, killed up to MOST times within `longest` seconds of an attempt's start; where the kills struck."""
    struck, output = [], out.with_suffix(".txt")
    while True:
        log = out / "run.log"
        before = log.stat().st_size if log.exists() else 0
        pid = begin(arguments, output)
        poll = partial(ended, pid)
        status = wait(poll, rng.uniform(0, longest) if len(struck) < MOST else 300)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = wait(poll, 60)
        if status == -signal.SIGKILL:
            struck.append(strike(out, before))
            continue
        assert status == 0, output.read_text()
        return struck


def main() -> None:
    import torch._dynamo  # noqa: F401  # which optimisers import

    from cinema_fast.methods import mae
    from cinema_fast.train import loop

    mae.write_report = lambda *_, **__: []
    inline = loop.WholeCheckpoints

    class Behind(inline):
        """Checkpoints as a GPU's run writes them, while the steps go on."""

        def __init__(self, *arguments, async_save: bool, **options):
            super().__init__(*arguments, async_save=True, **options)

    store, folder, first, last, *options = sys.argv[1:]

    def arguments(out: Path) -> list[str]:
        return ["pretrain", "--data", store, "--out", str(out), "--resume", *options]

    trial = Path(folder) / f"trial-{first}"
    begun = time.monotonic()
    status = wait(partial(ended, begin(arguments(trial), trial.with_suffix(".txt"))), 300)
    assert status == 0, trial.with_suffix(".txt").read_text()
    longest = time.monotonic() - begun
    for number in range(int(first), int(last)):
        rng = random.Random(number)
        loop.WholeCheckpoints = Behind if number % 2 else inline
        out = Path(folder) / f"run-{number}"
        every = ["--checkpoint-every", str(rng.choice([1, 2, 3, 5]))]
        print(json.dumps(make(out, [*arguments(out), *every], rng, longest)), flush=True)


if __name__ == "__main__":
    main()
