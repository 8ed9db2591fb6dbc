"""Runs of several processes under torchrun."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from forked import COMMAND, Forked
from safetensors.torch import load_file

ONE = [
    "--preset", "cinema-tiny", "--seed", "5", "--log-every", "1", "--checkpoint-every", "3", "--device", "cpu",
    "--precision", "fp32",
]  # fmt: skip


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


AT_STEP = """
import os, signal
import cinema_fast.train.loop as p
make = p.make_train_step
def watched(*arguments, **options):
    train_step = make(*arguments, **options)
    def step(batches, number, lr):
        {then}
        return train_step(batches, number, lr)
    return step
p.make_train_step = watched
"""


def torchrun(
    ranks: int, store, out: Path, *more, steps: int = 6, restarts: int = 0, at_step: str = "", timeout: float = 240,
    method: str = "pretrain",
):
    """`cinema-fast METHOD` in so many processes of one thread; each runs `at_step` before the step `number`."""
    command = words(ranks, store, out, *more, steps=steps, restarts=restarts, at_step=at_step, method=method)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def forked_ranks(
    ranks: int, store, out: Path, *more, steps: int = 6, restarts: int = 0, at_step: str = "", timeout: float = 240,
    method: str = "pretrain", before: str = "",
) -> subprocess.CompletedProcess:
    """As `torchrun`, but the ranks are forked and have no agent: when one has failed, all are killed. `before` runs
    before the command."""
    arguments = (method, "--data", store, "--out", out, "--steps", steps, *ONE, *more)
    out, err, deadline = "", "", time.monotonic() + timeout
    for attempt in range(restarts + 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }  # fmt: skip
        code = f"{before}\n" + (AT_STEP.format(then=at_step) if at_step else "")
        started = [Forked(*arguments, code=code, **environment, RANK=str(n), LOCAL_RANK=str(n)) for n in range(ranks)]
        while None in (ends := [process.poll() for process in started]) and not any(ends):
            if time.monotonic() > deadline:
                for process in started:
                    process.kill()
                raise AssertionError("the ranks have not ended")
            time.sleep(0.02)
        for process in started:
            try:
                process.wait(10 if any(ends) else None)
            except subprocess.TimeoutExpired:
                process.kill()
            printed = process.communicate(10)
            out, err = out + printed[0], err + printed[1]
        status = next((end for end in ends if end), 0)  # of the one that failed first
        if not status:
            break
    return subprocess.CompletedProcess(arguments, status, out, err)


def words(
    ranks: int, store, out: Path, *more, steps: int, restarts: int = 0, at_step: str = "", method: str = "pretrain"
) -> list[str]:
    """The command line of `torchrun`."""
    program = ["-m", "cinema_fast"]
    if at_step:
        program = [str(out.parent / "program.py")]
        Path(*program).write_text(COMMAND.format(code=AT_STEP.format(then=at_step)))
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        "--max-restarts", str(restarts), *program, method, "--data", str(store), "--out", str(out),
        "--steps", str(steps), *ONE, *map(str, more),
    ]  # fmt: skip


def weights(out: Path, step: int = 6) -> dict:
    return load_file(out / "checkpoints" / f"step-{step:08d}.safetensors")
