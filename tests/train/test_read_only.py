"""Run folders that may not be written to, from the start or from some step on."""

import re

import pytest
from forked import run
from killed_pretrain import AT_STEP, QUIET, last_line

from cinema_fast.train.checkpoint import CheckpointError, newest_checkpoint, save_checkpoint

# who runs the tests as root may write everywhere: the process gives that up
MORTAL = "import ctypes, os; ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())"
OPTIONS = (
    "--steps", 9, "--preset", "cinema-tiny", "--batch-size", 2, "--views", "lax_2c", "--seed", 5, "--log-every", 3,
    "--checkpoint-every", 3, "--device", "cpu", "--precision", "fp32",
)  # fmt: skip


def pretrain(store, out, *more, code=""):
    return run("pretrain", "--data", store, "--out", out, *OPTIONS, *more, code=f"{QUIET}\n{MORTAL}\n{code}")


@pytest.fixture
def closed():
    """Makes a folder read-only until the test ends."""
    folders = []

    def close(folder):
        folder.chmod(0o555)
        folders.append(folder)

    yield close
    for folder in folders:
        folder.chmod(0o755)


def test_from_the_start(tiny_store, tmp_path, closed):
    closed(tmp_path)
    ended = pretrain(tiny_store, tmp_path / "run")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert re.fullmatch(rf"cinema-fast: .*Permission denied: '{tmp_path}/run'", last_line(ended))


def test_in_the_middle(tiny_store, tmp_path):
    """What was saved stays as it is."""
    folder = tmp_path / "run" / "checkpoints"
    close = AT_STEP.format(number=4, action=f"os.chmod({str(folder)!r}, 0o555)")
    ended = pretrain(tiny_store, tmp_path / "run", code=close)
    folder.chmod(0o755)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    said = last_line(ended)
    assert re.fullmatch(r"cinema-fast: the checkpoint of step 6 could not be .*Permission denied.*--resume", said), said
    assert newest_checkpoint(folder, pytest.fail).step == 3


def test_in_a_write(tmp_path, monkeypatch):
    """What is half-written cannot even be removed; the next save does."""
    save_checkpoint(tmp_path, 1, {}, {}, keep=2)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as closed:
        closed.setattr("os.replace", refuse)
        closed.setattr("pathlib.Path.unlink", refuse)
        with pytest.raises(CheckpointError, match=r"step 2 could not be .*Permission denied"):
            save_checkpoint(tmp_path, 2, {}, {}, keep=2)
    assert list(tmp_path.glob(".tmp-*")) and newest_checkpoint(tmp_path, pytest.fail).step == 1
    save_checkpoint(tmp_path, 2, {}, {}, keep=2)
    assert not list(tmp_path.glob(".tmp-*")) and newest_checkpoint(tmp_path, pytest.fail).step == 2
