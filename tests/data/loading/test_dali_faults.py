"""The DALI loader and what goes wrong with its processes: killed ones, signals, and programs that just end.

What goes wrong with files: test_loader_faults.py.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from loader_cases import loader_of, needs_dali, readers
from machine import ROOT

from cinema_fast.data.loading.dali import _wait_for
from cinema_fast.data.loading.loader import LoaderError

pytestmark = needs_dali


@pytest.mark.slow
def test_damage_ends_a_strict_run_by_name_in_its_turn(mapped, tmp_path):
    path = shutil.copytree(mapped, tmp_path / "store")
    loader, plain = (loader_of(kind, path, stop=40, strict=True) for kind in ("dali", "torch"))
    (path / "studies" / "s0" / "sax.npy").unlink()
    told = []
    for each in (loader, plain):
        steps = []
        with pytest.raises(LoaderError, match=r"study s0: .*sax\.npy: No such file") as caught:
            steps.extend(each)
        told.append((str(caught.value), len(steps)))
    assert told[0] == told[1] and readers() == []


def test_a_process_that_another_thread_waits_for_as_well_is_known_to_have_ended(monkeypatch):
    """DALI's thread may be the one that hears of it, and be slow to write it down."""
    waitpid = os.waitpid

    def late(pid, options):
        in_main = threading.current_thread() is threading.main_thread()
        time.sleep(0.2 if in_main and not options else 0)
        told = waitpid(pid, options)
        time.sleep(0 if in_main else 0.4)
        return told

    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    process.start()
    monkeypatch.setattr(os, "waitpid", late)
    other = threading.Thread(target=process.join)
    other.start()
    process.kill()
    _wait_for(process)
    assert process.exitcode == -signal.SIGKILL and process not in multiprocessing.active_children()
    other.join()


@pytest.mark.slow
def test_damage_and_death_under_a_running_loader(mapped, tmp_path):
    """A file that goes in the middle of a run is named and replaced; a process that goes, named with its signal."""
    path = shutil.copytree(mapped, tmp_path / "store")
    batches = iter(loader_of("dali", path, stop=10_000))
    next(batches)
    (path / "studies" / "s1" / "lax_3c.npy").unlink()
    notes = []
    while not notes:
        (batch,) = next(batches)
        notes += batch.notes
    assert "study s1 replaced: " in notes[0] and "lax_3c.npy: No such file" in notes[0]
    pid = readers()[0]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match=rf"reads the store died \({pid}, SIGKILL\): out of memory, or killed"):
        for _ in batches:
            pass
    assert readers() == []


@pytest.mark.slow
def test_signals_to_a_whole_job_leave_the_readers_to_the_one_that_trains(mapped):
    """Ctrl-C and SIGTERM reach every process of a job; batches go on until the iteration is closed."""
    batches = iter(loader_of("dali", mapped, stop=300))
    next(batches)
    for pid in readers():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        next(batches)
    batches.close()
    assert readers() == []


SCRIPT = """
import multiprocessing, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
sys.path.insert(0, {tests!r})
from pathlib import Path
from loader_cases import loader_of
if __name__ == "__main__":
    batches = iter(loader_of("dali", Path({store!r}), stop=10**6))
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    {then}
"""
ENDS = {"an error": "raise ValueError", "a wait": "time.sleep(100)"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "signum"), [("an error", None), ("a wait", signal.SIGINT), ("a wait", signal.SIGKILL)]
)
def test_no_process_is_left_however_the_program_ends(mapped, tmp_path, then, signum):
    """With the iteration still open."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests" / "support"), store=str(mapped), then=ENDS[then]))
    program = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids = [int(word) for word in program.stdout.readline().split()]
    if signum:
        program.send_signal(signum)
    program.communicate(timeout=60)  # ends when the last process that holds its output has ended
    assert len(pids) == 2
    assert program.returncode == (-signum if signum else 1)


