"""One process at a time writes a run folder, and nothing else than a folder is taken for one."""

import errno
import fcntl
import os
import signal

import pytest
from forked import Forked
from killed_pretrain import AT_STEP, last_line, pretrain, started
from tiny_runs import metrics

from cinema_fast.common.output import new_folder
from cinema_fast.methods.pretrain import pretrain as run_in_process
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.run_folder import lock_run_folder


@pytest.fixture
def alive(tiny_store, tmp_path):
    """The folder of a run that another process is making, and that process."""
    process = started(tiny_store, tmp_path / "run")
    yield tmp_path / "run", process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tiny_store, alive):
    out, process = alive
    again = ("--resume", "--steps", "100000")
    ended = pretrain(tiny_store, out, *again)
    assert ended.returncode == 1
    holder = f"pid {process.pid} on {os.uname().nodename}"
    assert f"{out} is being written by another process ({holder})" in last_line(ended)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    stop = AT_STEP.format(number=2, action="os.kill(os.getpid(), signal.SIGTERM)")
    ended = pretrain(tiny_store, out, *again, code=stop)
    assert ended.returncode == 128 + signal.SIGTERM and "after step 3 and saved" in ended.stderr


def test_of_two_new_runs_that_begin_at_once_one_is_made(tiny_store, tmp_path):
    out = tmp_path / "run"
    arguments = ("--data", tiny_store, "--out", out, "--steps", 3, "--preset", "cinema-tiny", "--batch-size", 2)
    both = [Forked("pretrain", *arguments) for _ in range(2)]
    errors = {process.communicate(timeout=120)[1]: process.returncode for process in both}
    assert sorted(errors.values()) == [0, 1]
    refused = next(error for error, status in errors.items() if status == 1)
    assert "is being written by another process" in refused or "already holds a run" in refused
    assert [line["step"] for line in metrics(out)] == [3]


def test_what_begins_between_the_check_and_the_lock_is_seen(tiny_store, tmp_path, monkeypatch):
    """Another run that came and went while this one built its model is not written over."""
    config = PretrainConfig(data=tiny_store, out=tmp_path / "run", steps=1, preset="cinema-tiny", batch_size=2)

    def slow(*_):
        monkeypatch.undo()
        run_in_process(config)
        return build(*_)

    from cinema_fast.methods import mae as module

    build = module.CineMA
    monkeypatch.setattr(module, "CineMA", slow)
    with pytest.raises(ValueError, match="already holds a run"):
        run_in_process(config)


@pytest.mark.parametrize("mark", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_any_part_of_a_run_is_one(tiny_store, tmp_path, mark):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mark).write_text("kept")
    with pytest.raises(ValueError, match="already holds a run"):
        run_in_process(PretrainConfig(data=tiny_store, out=tmp_path / "run", steps=1, preset="cinema-tiny"))
    assert (tmp_path / "run" / mark).read_text() == "kept"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    said = []
    with lock_run_folder(tmp_path / "run", said.append):
        pass
    assert len(said) == 1 and "cannot be locked (No locks available)" in said[0]


@pytest.mark.parametrize(("below", "told"), [((), "is a cine store"), (("a", "b"), "lies in the cine store")])
def test_a_store_is_no_place_for_results(tiny_store, below, told):
    out, before = tiny_store.joinpath(*below), sorted(tiny_store.rglob("*"))
    with pytest.raises(ValueError, match=f"{out} {told}.*: choose a place outside"):
        run_in_process(PretrainConfig(data=tiny_store, out=out, steps=1, preset="cinema-tiny", batch_size=2))
    with pytest.raises(ValueError, match=f"{out} {told}.*: choose a place outside"), new_folder(out, "predict", {}, ()):
        pass
    assert sorted(tiny_store.rglob("*")) == before


@pytest.mark.parametrize("below", [(), ("run",), ("a", "b")])
@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_no_run_folder(tiny_store, tmp_path, below, resume):
    file = tmp_path / "file"
    file.write_text("mine")
    config = PretrainConfig(
        data=tiny_store, out=file.joinpath(*below), steps=1, preset="cinema-tiny", batch_size=2, resume=resume
    )
    with pytest.raises(ValueError, match=rf"--out {config.out}: {file} is a file; expected a folder"):
        run_in_process(config)
    assert file.read_text() == "mine"
