"""Motion maps that are damaged, or whose making was killed: what notices it, and that --motion mends it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from cine_files import write_study
from marks import slow
from prepared import content, run

from cinema_fast.cli import main
from cinema_fast.data.prepare import motion
from cinema_fast.data.store import store as store_module
from cinema_fast.data.store.check import check_store
from cinema_fast.data.store.store import CineStore, StoreError

FILE = "studies/p1/sax.motion.npy"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sources of three studies and a store of them with nine motion maps, which the tests copy."""
    path = tmp_path_factory.mktemp("whole")
    for n in range(3):
        write_study(path / "src", f"p{n}", seed=n)
    assert run(path / "src", path / "store", motion=True).motion_maps == 9
    return path


@pytest.fixture
def prepared(whole, tmp_path):
    """The sources, and a store of one's own."""
    return whole / "src", shutil.copytree(whole / "store", tmp_path / "store")


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGE = {
    "no file": lambda f: f.unlink(),
    "short file": lambda f: os.truncate(f, 1000),
    "long file": lambda f: os.truncate(f, 100_000),
    "header of zeros": lambda f: overwrite(f, 0, bytes(128)),
    "header of another shape": lambda f: np.save(f, np.load(f).swapaxes(0, 2)),
    "header of another type": lambda f: np.save(f, np.load(f).view(np.int8)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_map_is_made_anew_and_its_study_is_not(prepared, kind):
    src, store = prepared
    before, inode = content(store), (store / "studies/p1/sax.npy").stat().st_ino
    DAMAGE[kind](store / FILE)
    faults = check_store(store, progress=False).faults
    assert [(fault.study, fault.file) for fault in faults] == [("p1", FILE)]
    if "header" in kind:
        opened = CineStore(store)
        with pytest.raises(StoreError, match=r"p1/sax\.motion\.npy: .*run prepare again with --motion"):
            opened.read_motion("p1", "sax")
    else:
        with pytest.raises(StoreError, match=r"(?s)1 file does not match .*p1/sax\.motion\.npy: .*--motion for motion"):
            CineStore(store)
    report = run(src, store)  # without --motion it leaves the index, and all else can be read
    assert (report.prepared, report.unchanged, report.without_motion, report.exit_code) == (0, 3, 1, 0)
    opened = CineStore(store)
    assert opened.info("p1", "sax").motion is None and opened.read_motion("p1", "lax_2c").any()
    report = run(src, store, motion=True)
    assert (report.prepared, report.unchanged, report.motion_maps, report.exit_code) == (0, 3, 1, 0)
    assert content(store) == before and (store / "studies/p1/sax.npy").stat().st_ino == inode


def test_altered_pixels_are_found_and_mended(prepared, capfd):
    """A changed byte: `verify` names it, `prepare --repair` too, and with --motion makes the map anew."""
    src, store = prepared
    before = content(store)
    overwrite(store / FILE, 4000, bytes([(store / FILE).read_bytes()[4000] ^ 1]))
    assert run(src, store, motion=True).motion_maps == 0  # reads nothing that is there
    assert main(["verify", str(store)]) == 1
    out = capfd.readouterr().out
    assert f"{FILE}: altered" in out and "STORE --repair --motion`" in out and "to restore these motion maps" in out
    report = run(src, store, repair=True)
    assert [(f.view, f.file) for f in report.failures] == [("sax", FILE)] and report.exit_code == 1
    assert "--motion computes it again" in report.failures[0].reason and CineStore(store).info("p1", "sax").motion
    report = run(src, store, repair=True, motion=True)
    assert (report.unchanged, report.motion_maps, report.exit_code) == (3, 1, 0)
    assert content(store) == before and main(["verify", str(store)]) == 0


def test_an_altered_cine_and_its_map_are_both_made_anew(prepared, capfd):
    src, store = prepared
    before = content(store)
    for file in (FILE, "studies/p1/sax.npy"):
        overwrite(store / file, 4000, b"\1\2\3\4")
    assert main(["verify", str(store)]) == 1
    assert "to restore these studies and motion maps" in capfd.readouterr().out
    report = run(src, store, repair=True, motion=True)
    assert (report.prepared, report.unchanged, report.motion_maps, report.exit_code) == (1, 2, 3, 0)
    assert content(store) == before


@pytest.mark.parametrize("record", [7, None, {}, {"file": "studies/p0/sax.motion.npy", "sha256": "0", "max_px": 1.0}])
def test_a_damaged_record_is_made_anew(prepared, record):
    """With its study, for a study.json that tells of such a map was not written here."""
    src, store = prepared
    before = content(store)
    file = store / "studies/p1/study.json"
    records = json.loads(file.read_text())
    records["sax"]["motion"] = record
    file.write_text(json.dumps(records))
    report = run(src, store, motion=True)
    assert (report.prepared, report.motion_maps, report.exit_code) == (1, 3, 0)
    assert content(store) == before


KILLED = {  # what the process does when it is killed, maps that are then left to make
    "a map half written": (
        "def half(path, array):\n    path.write_bytes(bytes(100))\n    kill()\n"
        "calls, write = [], motion.write_array\n"
        "motion.write_array = lambda *a: (calls.append(a), write if len(calls) < 5 else half)[1](*a)", 6),
    "between the maps and study.json": (
        "calls, write = [], motion.whole_file\n"
        "motion.whole_file = lambda *a, **k: (calls.append(a), write if len(calls) < 2 else kill)[1](*a, **k)", 6),
    "while study.json is replaced": (
        "replace = os.replace\n"
        "store.os.replace = lambda a, b: kill() if 'p2' in str(b) and str(b).endswith('.json') else replace(a, b)", 3),
    "between study.json and the index": (
        "calls, write = [], prepare.write_index\n"
        "prepare.write_index = lambda *a: (calls.append(a), write if len(calls) < 2 else kill)[1](*a)", 0),
}  # fmt: skip
SCRIPT = """
import os, signal, sys
from pathlib import Path
from cinema_fast.data.prepare import motion, prepare
from cinema_fast.data.store import store
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
{change}
options = dict(sax_size=(32, 32, 6), lax_size=(40, 40), workers=1, motion=True)
prepare.prepare(prepare.PrepareConfig(Path(sys.argv[1]), Path(sys.argv[2]), **options), progress=False)
"""


@pytest.mark.parametrize("moment", [slow(moment) if "index" not in moment else moment for moment in KILLED])
def test_killed_it_goes_on_from_there(whole, tmp_path, moment):
    """Meanwhile the store can be used as it was without maps, and nothing in it is wrong."""
    change, left = KILLED[moment]
    store = tmp_path / "store"
    run(whole / "src", store)
    command = [sys.executable, "-c", SCRIPT.format(change=change), str(whole / "src"), str(store)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=env, timeout=120).returncode == -signal.SIGKILL
    opened = CineStore(store)
    assert opened.ids == ["p0", "p1", "p2"] and not any(opened.info(s, "sax").motion for s in opened.ids)
    assert check_store(store, progress=False).faults == []
    report = run(whole / "src", store, motion=True)
    assert (report.unchanged, report.motion_maps, report.exit_code) == (3, left, 0)
    assert content(store) == content(whole / "store")


def test_a_study_that_fails_is_reported_and_the_rest_goes_on(whole, tmp_path, monkeypatch):
    levels, calls = motion.motion_levels, []

    def failing(frames, device):
        calls.append(frames)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return levels(frames, device)

    with monkeypatch.context() as patch:
        patch.setattr(motion, "motion_levels", failing)
        report = run(whole / "src", tmp_path / "store", motion=True)
    assert (report.prepared, report.motion_maps, report.exit_code) == (3, 6, 1)
    (failure,) = report.failures
    assert (failure.study, failure.file) == ("p1", "studies/p1") and "RuntimeError: out of memory" in failure.reason
    assert "studies/p1" in (tmp_path / "store/failures.jsonl").read_text()
    opened = CineStore(tmp_path / "store")
    assert [opened.info(study, "sax").motion is None for study in opened.ids] == [False, True, False]
    assert run(whole / "src", tmp_path / "store", motion=True).motion_maps == 3
    assert content(tmp_path / "store") == content(whole / "store")


def test_a_cine_that_cannot_be_read_is_named(whole, tmp_path):
    src, store = whole / "src", tmp_path / "store"
    run(src, store)
    task = motion.MotionTask(store, "p1", ("sax",), "cpu", tmp_path / "t")
    (store / "studies/p1/sax.npy").unlink()
    with pytest.raises(StoreError, match=r"p1/sax\.npy: No such file"):
        motion.map_study(task)


@pytest.mark.parametrize("call", [2, 5])
def test_full_disk_keeps_what_is_finished(prepared, tmp_path, monkeypatch, call):
    """While the first study's maps are written, and before its study.json is."""
    src, full_store = prepared
    store = tmp_path / "new"
    run(src, store)
    calls, fsync = [], os.fsync

    def full(fd):
        if "motion" in os.readlink(f"/proc/self/fd/{fd}") or calls:
            calls.append(fd)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="disk is full; 3 studies complete and kept"):
        patch.setattr(store_module.os, "fsync", full)
        run(src, store, motion=True)
    assert CineStore(store).ids == ["p0", "p1", "p2"] and not (store / ".preparing").exists()
    assert run(src, store, motion=True).motion_maps == 9 and content(store) == content(full_store)
