"""The command line in processes of their own that can be signalled and killed, without the seconds of importing torch.

A server process imports what all of them need and forks. It has one thread, so that a fork is safe. It starts when this
module is imported, before any test has changed the environment. The processes end as those of multiprocessing do:
functions of `atexit` do not run.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import tempfile
import weakref
from multiprocessing import forkserver
from pathlib import Path

from forked_child import run_code

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "pytest", "tyro", "matplotlib.pyplot", "torch.distributed.fsdp", "torch.distributed.checkpoint",
    "cinema_fast.bench_data", "cinema_fast.methods.pretrain", "cinema_fast.methods.mae", "cinema_fast.methods.dino",
    "cinema_fast.tasks.finetune",
])  # fmt: skip
forkserver.ensure_running()
COMMAND = "import sys; from cinema_fast.cli import main\n{code}\nsys.exit(main())"
_STARTED: weakref.WeakSet = weakref.WeakSet()


class Forked:
    """`cinema-fast ARGUMENTS` in a process, as subprocess.Popen has it; `code` runs before it in the same process."""

    def __init__(self, *arguments, code: str | None = None, **environment: str):
        self._folder = tempfile.TemporaryDirectory()
        code, words = COMMAND.format(code=code or ""), [str(word) for word in arguments]
        environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | environment
        given = code, words, environment, self._folder.name, os.getcwd()
        self._process = CONTEXT.Process(target=run_code, args=given)
        self._process.start()
        self.pid = self._process.pid
        _STARTED.add(self)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("cinema-fast", timeout, *self._printed())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, and its errors, once it has ended."""
        self.wait(timeout)
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        paths = [Path(self._folder.name) / name for name in ("out", "err")]
        return tuple(path.read_text() if path.exists() else "" for path in paths)

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@atexit.register
def kill_all() -> None:
    """Before multiprocessing, at the end, waits for those that a failed test has left."""
    for process in list(_STARTED):
        process.kill()


def run(*arguments, code: str | None = None, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run `cinema-fast` to its end, which comes by a kill after `timeout` seconds."""
    process = Forked(*arguments, code=code, **environment)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
