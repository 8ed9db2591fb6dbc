"""Files are the old one or the new one, whole, whatever happens while they are written; one module sees to that."""

import ast
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from machine import ROOT

from cinema_fast.common.atomic import move_into, replace_folder, sync_file, whole_file

PACKAGE = ROOT / "cinema_fast"
ELSEWHERE = {
    ("bench_stages.py", "os.fsync"),  # so that the system can forget a file; nothing is written there
}


def calls_by(tree: ast.AST) -> set[str]:
    """What renames a file, or forces it to disk; `Path.replace` is told from that of a text by its one argument."""
    nodes = list(ast.walk(tree))
    attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    of_paths = {ast.unparse(node) for node in nodes
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("replace", "rename")
                and len(node.args) == 1 and not node.keywords}
    return of_paths | attributes & {"os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move"}


def test_one_module_renames_and_syncs():
    found = {(file.relative_to(PACKAGE).as_posix(), call)
             for file in PACKAGE.rglob("*.py") for call in calls_by(ast.parse(file.read_text(encoding="utf-8")))}
    home = {one for one in found if one[0] == "common/atomic.py"}
    assert {call for _, call in home} == {"os.replace", "os.rename", "os.fsync"}
    assert found - home == ELSEWHERE


def test_the_search_sees_them():
    seen = calls_by(ast.parse("path.replace(other); path.rename(other); os.replace(a, b); text.replace('a', 'b')"))
    assert seen == {"path.replace(other)", "path.rename(other)", "os.replace"}


def contents(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """The files and folders that were forced to disk, in their order."""
    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    return seen


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("before", [{}, {"a.png": "old"}])
def test_an_error_leaves_what_was_there(tmp_path, before, durable, error):
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(type(error)), whole_file(tmp_path / "a.png", durable=durable) as file:
        file.write_text("ha")
        raise error
    assert contents(tmp_path) == before and file.suffix == ".png"
    with whole_file(tmp_path / "a.png", durable=durable) as file:
        file.write_text("new")
        assert contents(tmp_path).get("a.png") == before.get("a.png")
    assert contents(tmp_path) == {"a.png": "new"}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_the_disk_fails_at_the_end(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_text("old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"), whole_file(tmp_path / "a", durable=True) as file:
        file.write_text("new")
    assert contents(tmp_path) == {"a": "old"}


def test_what_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ValueError, match="first"), whole_file(tmp_path / "a"):
        raise ValueError("first")


def test_a_kill_leaves_the_old_file_and_the_next_write_clears_up(tmp_path):
    (tmp_path / "a").write_text("old")
    code = ("import os, sys; from pathlib import Path; from cinema_fast.common.atomic import whole_file\n"
            "with whole_file(Path(sys.argv[1]), durable=True) as file:\n"
            "    file.write_text('half')\n    file.chmod(0o400)\n    os.kill(os.getpid(), 9)")
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert contents(tmp_path) == {"a": "old", ".tmp-a": "half"}
    with whole_file(tmp_path / "a") as file:
        file.write_text("new")
    assert contents(tmp_path) == {"a": "new"} and stat.S_IMODE((tmp_path / "a").stat().st_mode) != 0o400


def test_only_durable_writes_wait_for_the_disk(tmp_path, synced):
    with whole_file(tmp_path / "a") as file:
        file.write_text("a")
    assert synced == []
    with whole_file(tmp_path / "a", durable=True) as file:
        file.write_text("b")
    assert synced == [file, tmp_path]  # under its temporary name, then the name
    with file.open("w") as opened:
        opened.write("c")
        sync_file(opened)
        assert file.read_text() == "c"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_file_opened_plainly(tmp_path, umask):
    """Also where the block puts a file of its own there, as safetensors does, which nobody else may read."""
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        with whole_file(tmp_path / "a") as file:
            file.write_text("a")
        with whole_file(tmp_path / "b") as file:
            (tmp_path / "private").touch(0o600)
            os.replace(tmp_path / "private", file)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_folder_in_the_place_of_another(tmp_path, synced):
    (tmp_path / "studies").mkdir()
    for text in ("first", "second"):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / text).write_text(text)
        replace_folder(tmp_path / "made", tmp_path / "studies" / "s1")
        assert contents(tmp_path / "studies" / "s1") == {text: text}
        assert synced.pop() == tmp_path / "studies" and not synced
    assert [path.name for path in tmp_path.iterdir()] == ["studies"]


def test_files_into_a_folder(tmp_path, synced):
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    move_into(tmp_path / "to", [tmp_path / "from" / "a"])
    assert contents(tmp_path / "to") == {"a": "from"} and not contents(tmp_path / "from")
    assert synced == [tmp_path / "to"]
