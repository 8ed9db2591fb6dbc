"""A named pipe in the place of a file that somebody else wrote is refused by name, and not waited for."""

import os
from threading import Thread

import pytest

from cinema_fast.common.regular_file import read_regular
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.compare_runs import read_run
from cinema_fast.train.checkpoint import newest_checkpoint, save_checkpoint
from cinema_fast.train.run_info import read_run_info


def outcome(act) -> list:
    """What `act` gives, or the words of its error; nothing where it does not end."""
    said = []

    def run() -> None:
        try:
            said.append(act())
        except (OSError, ValueError) as error:
            said.append(str(error))

    (beside := Thread(target=run, daemon=True)).start()
    beside.join(timeout=10)
    return said


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("index.json", CineStore),
        ("config.yaml", read_run_info),
        ("metrics.jsonl", lambda folder: read_run(folder, "a")),
        ("anything", lambda folder: read_regular(folder / "anything")),
    ],
    ids=["store", "run", "compare", "any"],
)
def test_it_is_refused(tmp_path, name, read):
    (tmp_path / "config.yaml").write_text("{run: {}, model: {}, store: {studies: 1, sha256: ab}}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    (words,) = outcome(lambda: read(tmp_path))
    assert name in words and "not a regular file" in words


@pytest.mark.parametrize("kind", ["json", "safetensors", "pt"])
def test_a_checkpoint_is_skipped(tmp_path, kind):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}, {}, keep=2)
    path, said = tmp_path / f"step-00000002.{kind}", []
    path.unlink()
    os.mkfifo(path)
    (found,) = outcome(lambda: newest_checkpoint(tmp_path, said.append))
    assert found.step == 1 and len(said) == 1 and "step-00000002 is damaged" in said[0]


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)))
    assert read_regular(tmp_path / "a") == read_regular(str(tmp_path / "a")) == bytes(range(256))
