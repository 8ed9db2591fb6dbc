"""From SIGTERM to the end, saved: no longer than what is under way takes, wherever the signal strikes.

That is, at most, the wait for a batch, a step, and two checkpoints (one that was begun, and the last one): well within
the 30 seconds that Slurm and Kubernetes leave a job, wherever these take less.
"""

import re
import signal
import time

import pytest
from killed_pretrain import started
from tiny_runs import metrics

pytestmark = pytest.mark.slow  # a minute

SLOW = 3.0  # seconds that a batch or a checkpoint takes
REST = 8.0  # seconds for a step and the end of the process, on a machine that does other things
READING = f"""
import time
from cinema_fast.data.loading.loader import Loader
read = Loader._read
def slow(self, at):
    if at[0] >= 3:
        time.sleep({SLOW})
    return read(self, at)
Loader._read = slow
"""
WRITING = f"""
import os, time
from cinema_fast.train import checkpoint
write = checkpoint.write_file
def slow(path, writer):
    if path.suffix == '.pt':
        open(path.parent.parent / 'writing', 'w').close()
        time.sleep({SLOW})
    return write(path, writer)
checkpoint.write_file = slow
"""
BEHIND = f"""{WRITING}
class Behind(p.WholeCheckpoints):
    def __init__(self, *arguments, async_save, **options):
        super().__init__(*arguments, async_save=True, **options)
p.WholeCheckpoints = Behind
"""


@pytest.mark.parametrize(
    ("code", "longest"),
    # threads that read ahead end with the batch that they have in hand
    [(READING, 2 * SLOW), (WRITING, 2 * SLOW), (BEHIND, 2 * SLOW)],
    ids=["while it waits for a batch", "in a checkpoint", "while one is written asynchronously"],
)
def test_terminated(tiny_store, tmp_path, code, longest):
    out = tmp_path / "run"
    process = started(tiny_store, out, *([] if code == READING else ["--checkpoint-every", "3"]), code=code)
    deadline = time.monotonic() + 60
    while not ((out / "writing").exists() if code != READING else len(metrics(out)) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(SLOW / 3)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < longest + REST
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    step = int(re.search(r"after step (\d+) and saved", errors)[1])
    assert (out / "checkpoints" / f"step-{step:08d}.json").exists()
