"""Worker processes: results, exceptions, workers that die, and a parent that dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from pool_tasks import work

from cinema_fast.common.pool import run_in_processes

SLEEPING = """import sys
from cinema_fast.common.pool import run_in_processes
from pool_tasks import sleep
if __name__ == '__main__':"""


def test_results_and_exceptions_in_process_and_in_workers():
    for workers in (1, 2):
        results = dict(run_in_processes(work, [0, 1, 2, 3, 4], workers))
        assert isinstance(results.pop(3), ValueError)
        assert results == {0: 0, 1: 1, 2: 4, 4: 16}


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_task_that_kills_its_worker_is_lost(workers):
    results = dict(run_in_processes(work, [5, 0, 1, 2, 4, 6], workers, contained=workers == 1))
    assert "terminated abruptly" in str(results.pop(5))
    assert results == {0: 0, 1: 1, 2: 4, 4: 16, 6: 36}


def test_leaving_early_ends_the_workers():
    results = run_in_processes(work, range(10, 100), 2)
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_ctrl_c_ends_the_workers_at_once_and_only_the_parent_hears_of_it():
    code = f"{SLEEPING}\n try: list(run_in_processes(sleep, [1, 2], 2))\n except KeyboardInterrupt: sys.exit(130)"
    for starting in (True, False):
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, start_new_session=True, env=with_tests(), preexec_fn=heard)
        deadline = time.monotonic() + 20
        while starting and not children(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert starting or parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGINT)
        _, err = parent.communicate(timeout=20)
        assert (parent.returncode, err) == (130, "")


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_while_a_pool_is_made_leaves_nothing_behind(threads):
    """With other threads too, such as that of a progress bar, which may get the signal."""
    code = f"""if __name__ == '__main__':
    import os, signal, sys, threading, time
    for _ in range({threads}):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    from multiprocessing import resource_tracker
    register = resource_tracker.register
    def interrupted(*args):
        register(*args)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
    resource_tracker.register = interrupted
    from cinema_fast.common.pool import run_in_processes
    try: list(run_in_processes(abs, [1, 2], 2))
    except KeyboardInterrupt: sys.exit(130)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=heard)
    assert (run.returncode, run.stderr) == (130, "")


def heard() -> None:
    """A job in the background begins with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read()
    except FileNotFoundError:
        return "unknown"


def with_tests() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_workers_end_with_their_parent():
    code = f"{SLEEPING} list(run_in_processes(sleep, [1, 2], 2))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=with_tests())
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not os.path.isdir("/proc/self")
