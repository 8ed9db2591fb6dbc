"""Runs that are killed, stopped or cut off, in processes of their own: what goes on equals what was never stopped."""

import re
import shutil
import signal
import time

import pytest
from killed_pretrain import AT_STEP, OPTIONS, last_line, pretrain, started
from marks import slow
from tiny_runs import FOUR, metrics, write_store

from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.pretrain import pretrain as run_in_process
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.run_info import read_run_info
from cinema_fast.train.setup import store_fingerprint

# Ends the process, or signals it, just before a file gets its name or a step is taken.
AT_FILE = """
import os, signal, resource
replace = os.replace
def watched(source, target):
    if str(target).endswith({name!r}):
        {action}
    return replace(source, target)
os.replace = watched
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory):
    """A run that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = pretrain(tiny_store, out)
    assert ended.returncode == 0, ended.stderr
    return out


def assert_equal_runs(found, expected):
    """The same lines but for timings, and the same weights to the last bit."""
    assert metrics(found) == metrics(expected)
    weights = [out / "checkpoints" / "step-00000020.safetensors" for out in (found, expected)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_killed_three_times_and_stopped_once(tiny_store, undisturbed, tmp_path):
    out = tmp_path / "run"
    # killed with half of the first checkpoint written: nothing to go on from yet
    ended = pretrain(tiny_store, out, code=AT_FILE.format(name="00000004.json", action=KILL))
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "checkpoints" / "step-00000004.json").exists()
    # killed between the files of a later checkpoint
    ended = pretrain(tiny_store, out, "--resume", code=AT_FILE.format(name="00000012.pt", action=KILL))
    assert ended.returncode == -signal.SIGKILL and "no checkpoint yet" in ended.stderr
    assert [line["step"] for line in metrics(out)] == [3, 6, 9, 12]
    # stopped between checkpoints and between lines
    stop = AT_STEP.format(number=13, action="os.kill(os.getpid(), signal.SIGTERM)")
    ended = pretrain(tiny_store, out, "--resume", code=stop)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "resuming from step 8" in ended.stderr and "after step 14 and saved" in ended.stderr
    # killed between checkpoints; meanwhile more threads read, and lines and checkpoints stay where they were
    kill = AT_STEP.format(number=18, action=KILL)
    ended = pretrain(tiny_store, out, "--resume", "--workers", "3", code=kill)
    assert ended.returncode == -signal.SIGKILL and "resuming from step 14" in ended.stderr
    ended = pretrain(tiny_store, out, "--resume")
    assert ended.returncode == 0 and "resuming from step 16" in ended.stderr
    assert_equal_runs(out, undisturbed)


@pytest.mark.slow
def test_a_full_disk_and_then_a_damaged_checkpoint(tiny_store, undisturbed, tmp_path):
    out = tmp_path / "run"
    # files of at most 1 MB from the second checkpoint on: the limit strikes inside the write
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    ended = pretrain(tiny_store, out, code=AT_FILE.format(name="00000004.json", action=limit))
    assert ended.returncode == 1
    assert re.fullmatch(r"cinema-fast: the checkpoint of step 8 could not .*File too large.*", last_line(ended))
    kill = AT_STEP.format(number=18, action=KILL)
    ended = pretrain(tiny_store, out, "--resume", code=kill)
    assert ended.returncode == -signal.SIGKILL and "resuming from step 4" in ended.stderr
    newest = out / "checkpoints" / "step-00000016.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # as if the power had failed in the middle of a line
    ended = pretrain(tiny_store, out, "--resume")
    assert ended.returncode == 0
    assert "step-00000016 is damaged" in ended.stderr and "resuming from step 12" in ended.stderr
    assert_equal_runs(out, undisturbed)


@pytest.mark.parametrize(("signum", "status"), [slow(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_from_outside(tiny_store, tmp_path, signum, status):
    process = started(tiny_store, tmp_path / "run")
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in errors and "--resume" in errors
    step = int(re.search(r"after step (\d+) and saved", errors)[1])
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}.json").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tiny_store, tmp_path):
    # in pieces: a signal that another thread gets does not wake the main one
    slow = AT_STEP.format(number=2, action="[time.sleep(0.05) for _ in range(6000)]")
    process = started(tiny_store, tmp_path / "run", code=slow)
    while len(metrics(tmp_path / "run")) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None  # the first waits for the step, and what comes with it is no other
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in errors


def test_what_may_not_change(tiny_store, undisturbed):
    options = OPTIONS | {"data": tiny_store, "out": undisturbed}
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds a run: .*--resume"):
        run_in_process(PretrainConfig(**options))
    options |= {"lr": 0.01, "preset": "cinema-demo", "batch_size": 1, "resume": True}
    with pytest.raises(ValueError, match="was started with other options") as refusal:
        run_in_process(PretrainConfig(**options))
    together = "batch_size x accumulate x ranks: was 2, now 1"
    differences = ("lr: was 0.001, now 0.01", together, "enc_embed_dim: was 16, now 128")
    assert all(line in str(refusal.value) for line in (*differences, "--init-from"))
    assert before == {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}


def test_another_store_may_not_take_the_place_of_the_first(tiny_store, undisturbed, tmp_path):
    other = write_store(tmp_path / "store", {"s00": ("sax",), "s01": FOUR})
    options = OPTIONS | {"data": other, "out": undisturbed, "resume": True}
    with pytest.raises(ValueError, match="12 studies then, 2 studies now"):
        run_in_process(PretrainConfig(**options))
    moved = shutil.copytree(tiny_store, tmp_path / "moved")  # the same studies in another place are the same
    info = read_run_info(undisturbed)
    assert info.store.sha256 == store_fingerprint(CineStore(moved))
