"""Pre-training in processes of their own, which can be killed at a chosen step."""

import subprocess
import time

from forked import Forked, run

OPTIONS = {
    "steps": 20, "preset": "cinema-tiny", "batch_size": 2, "seed": 5, "log_every": 3, "checkpoint_every": 4,
    "device": "cpu",
}  # fmt: skip


RUN = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


QUIET = "import cinema_fast.methods.mae as m, cinema_fast.train.loop as p; m.write_report = lambda *a, **k: []"


AT_STEP = """
import os, signal, time
make = p.make_train_step
def watched(*arguments, **options):
    train_step = make(*arguments, **options)
    def step(batches, number, lr):
        if number == {number}:
            {action}
        return train_step(batches, number, lr)
    return step
p.make_train_step = watched
"""


def pretrain(store, out, *more, code="", arguments=RUN):
    return run("pretrain", "--data", store, "--out", out, *arguments, *more, code=f"{QUIET}\n{code}")


def last_line(ended: subprocess.CompletedProcess) -> str:
    return ended.stderr.strip().splitlines()[-1]


def started(store, out, *more, code=""):
    """A long run in the background, once it has made a step."""
    arguments = [*RUN, "--steps", "100000", "--log-every", "1", "--checkpoint-every", "50000", *more]
    process = Forked("pretrain", "--data", store, "--out", out, *arguments, code=f"{QUIET}\n{code}")
    deadline = time.monotonic() + 60
    while not ((out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size):
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            raise AssertionError(process.communicate(10))
        time.sleep(0.05)
    return process
