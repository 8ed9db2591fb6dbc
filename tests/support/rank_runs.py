"""Runs of several processes under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

ONE = [
    "--preset", "cinema-tiny", "--seed", "5", "--log-every", "1", "--checkpoint-every", "3", "--device", "cpu",
    "--precision", "fp32",
]  # fmt: skip


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


AT_STEP = """
import os, signal, sys
import cinema_fast.train.loop as p
from cinema_fast.cli import main
make = p.make_train_step
def watched(*arguments, **options):
    train_step = make(*arguments, **options)
    def step(batches, number, lr):
        {then}
        return train_step(batches, number, lr)
    return step
p.make_train_step = watched
sys.exit(main())
"""


def torchrun(
    ranks: int, store, out: Path, *more, steps: int = 6, restarts: int = 0, at_step: str = "", timeout: float = 240,
    method: str = "pretrain",
):
    """`cinema-fast METHOD` in so many processes of one thread; each runs `at_step` before the step `number`."""
    command = words(ranks, store, out, *more, steps=steps, restarts=restarts, at_step=at_step, method=method)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def words(
    ranks: int, store, out: Path, *more, steps: int, restarts: int = 0, at_step: str = "", method: str = "pretrain"
) -> list[str]:
    """The command line of `torchrun`."""
    program = ["-m", "cinema_fast"]
    if at_step:
        program = [str(out.parent / "program.py")]
        Path(*program).write_text(AT_STEP.format(then=at_step))
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        "--max-restarts", str(restarts), *program, method, "--data", str(store), "--out", str(out),
        "--steps", str(steps), *ONE, *map(str, more),
    ]  # fmt: skip


def weights(out: Path, step: int = 6) -> dict:
    return load_file(out / "checkpoints" / f"step-{step:08d}.safetensors")
