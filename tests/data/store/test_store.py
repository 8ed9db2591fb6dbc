"""The cine store: exact frames by exact reads, and errors that name the file."""

import json
import os
import pickle
import shutil
import tracemalloc
from threading import Barrier, Thread

import numpy as np
import pytest

from cinema_fast.common.atomic import replace_folder
from cinema_fast.data.prepare.shards import hold_store
from cinema_fast.data.store import store as store_module
from cinema_fast.data.store.store import (
    CineStore,
    StoreError,
    write_index,
    write_study,
)

SHAPES = {"lax_4c": (3, 14, 12), "sax": (5, 12, 10, 4), "rvot": (2, 9, 9), "lax_2c": (3, 14, 12)}


def frames_of(study: str, view: str) -> np.ndarray:
    seed = sum(map(ord, study + view))
    return np.random.default_rng(seed).integers(0, 256, SHAPES[view], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A store of two studies, written as `prepare` writes it."""
    path, studies = tmp_path / "a störe", {}
    (path / "studies").mkdir(parents=True)
    for study, views in (("p2", ("lax_4c", "rvot", "sax", "lax_2c")), ("p1", ("lax_4c",))):
        cines = {}
        for view in views:
            record = {"spacing_mm": [1.0, 1.0, 10.0][: len(SHAPES[view]) - 1], "frame_time_ms": 31.5,
                      "window": [[t, 100 + t] for t in range(SHAPES[view][0])], "affine": np.eye(4).tolist(),
                      "source": {"file": f"{study}_{view}.nii.gz", "sha256": "0", "files": []}}
            cines[view] = frames_of(study, view), record
        studies[study] = write_study(path / "tmp", study, cines)
        replace_folder(path / "tmp", path / "studies" / study)
    write_index(path, {"lax_size": [14, 12]}, studies)
    return path


def linked(folder, study: str, names: list[str]) -> list[str]:
    """The names, each then that of a link to the study's folder."""
    for name in names:
        (folder / "studies" / name).symlink_to(study)
    return names


def test_reads_what_was_written(folder):
    store = pickle.loads(pickle.dumps(CineStore(folder)))
    assert store.ids == ["p1", "p2"] and store.prepare == {"lax_size": [14, 12]}
    assert store.views("p2") == ("sax", "lax_2c", "lax_4c", "rvot")
    info = store.info("p2", "sax")
    assert (info.shape, info.spacing_mm, info.frame_time_ms) == ((5, 12, 10, 4), (1.0, 1.0, 10.0), 31.5)
    assert info.window.tolist() == [[t, 100 + t] for t in range(5)] and info.source == "p2_sax.nii.gz"
    for study in store.ids:
        for view in store.views(study):
            expected = frames_of(study, view)
            np.testing.assert_array_equal(np.load(store.info(study, view).path), expected)
            assert store.n_frames(study, view) == len(expected)
            for t in range(len(expected)):
                np.testing.assert_array_equal(store.read_frame(study, view, t), expected[t])
    np.testing.assert_array_equal(store.read_frames("p2", "sax", [4, 0, 4]), frames_of("p2", "sax")[[4, 0, 4]])
    assert store.read_frames("p2", "sax", []).shape == (0, 12, 10, 4)


def test_index_holds_little_and_opens_with_little(folder):
    """A line of the index per study, and memory for its text and a tuple a view: 70,000 studies fit into 300 MB."""
    index = json.loads((folder / "index.json").read_text())
    assert len((folder / "index.json").read_text().splitlines()) == 4
    record = index["studies"]["p2"]["sax"]
    assert set(record) == {"file", "shape", "spacing_mm", "frame_time_ms", "sha256", "source"}
    names = linked(folder, "p2", [f"{n:07}" for n in range(4000)])
    studies = {name: {"sax": {**record, "file": f"studies/{name}/sax.npy", "sha256": f"{int(name):064x}",
                              "frame_time_ms": int(name) / 7}} for name in names}
    write_index(folder, {}, studies)
    tracemalloc.start()
    assert len(CineStore(folder).ids) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 1800


def test_window_and_affine_are_read_when_asked_for(folder):
    info = CineStore(folder).info("p2", "lax_4c")
    assert info.window.tolist() == [[t, 100 + t] for t in range(3)] and (info.affine == np.eye(4)).all()
    file = folder / "studies/p2/study.json"
    records = json.loads(file.read_text())
    for change in ({"window": [[0, 1]]}, {"window": None}, {"sha256": "0"}):
        file.write_text(json.dumps({**records, "lax_4c": {**records["lax_4c"], **change}}))
        with pytest.raises(StoreError, match=r"p2/study\.json: no window of lax_4c\.npy .* run prepare again"):
            _ = info.window
    file.unlink()
    with pytest.raises(StoreError, match=r"p2/study\.json: no affine .*No such file"):
        _ = info.affine


def test_version_1_is_read(folder):
    """Its index held what study.json holds."""
    now = CineStore(folder)
    studies = {study: json.loads((folder / f"studies/{study}/study.json").read_text()) for study in ("p1", "p2")}
    edit_index(folder, version=1, studies=studies)
    before = CineStore(folder)
    assert [before.info("p2", v) for v in before.views("p2")] == [now.info("p2", v) for v in now.views("p2")]
    np.testing.assert_array_equal(before.info("p2", "sax").window, now.info("p2", "sax").window)


def test_files_on_a_slow_disk_are_looked_for_many_at_a_time(folder, monkeypatch):
    record = json.loads((folder / "index.json").read_text())["studies"]["p1"]["lax_4c"]
    names = linked(folder, "p1", [f"{n:04}" for n in range(2500)])
    studies = {name: {"lax_4c": {**record, "file": f"studies/{name}/lax_4c.npy"}} for name in names}
    (folder / "studies/0777").unlink()
    write_index(folder, {}, studies)
    seconds, together, wrong_sizes = iter(range(9)), Barrier(3), store_module.wrong_sizes

    def wait_for_others(files):
        if len(files) != 200:  # of the other 2300 three parts are made; one that is alone waits in vain
            together.wait(30)
        return wrong_sizes(files)

    monkeypatch.setattr(store_module, "wrong_sizes", wait_for_others)
    monkeypatch.setattr(store_module.time, "perf_counter", lambda: next(seconds))
    with pytest.raises(StoreError, match=r"1 file does not match the index:\n.*0777/lax_4c\.npy: No such file"):
        CineStore(folder)


def test_one_frame_is_read_without_touching_the_others(folder, monkeypatch):
    store = CineStore(folder)
    store.read_frame("p2", "sax", 0)  # the first read also checks the header
    calls, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: calls.append((n, at)) or pread(fd, n, at))
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("nothing else is to be read"))
    frame = store.read_frame("p2", "sax", 3)
    assert calls == [(frame.nbytes, 128 + 3 * frame.nbytes)]
    frame[:] = 0  # the caller's own


def test_holds_no_file_open(folder):
    store = CineStore(folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(50):
        store.read_frame("p1", "lax_4c", 1)
    (folder / "studies/p1/lax_4c.npy").unlink()
    for _ in range(50):
        with pytest.raises(StoreError, match=r"p1/lax_4c\.npy: No such file"):
            store.read_frame("p1", "lax_4c", 1)
    assert before is None or len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_there(folder):
    store = CineStore(folder)
    with pytest.raises(StoreError, match="has no study 'p3'"):
        store.read_frame("p3", "sax", 0)
    with pytest.raises(StoreError, match=r"study 'p1' has no view 'sax', only \('lax_4c',\)"):
        store.info("p1", "sax")
    for t in (-1, 3):
        with pytest.raises(IndexError, match=f"frame {t} of 3"):
            store.read_frame("p1", "lax_4c", t)


def edit_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


def edit_record(folder, key, value):
    index = json.loads((folder / "index.json").read_text())
    index["studies"]["p1"]["lax_4c"][key] = value
    (folder / "index.json").write_text(json.dumps(index))


NPY = "studies/p1/lax_4c.npy"
AT_OPEN = {
    "missing folder": (shutil.rmtree, "does not exist: make one with `cinema-fast prepare"),
    "no index": (lambda f: (f / "index.json").unlink(), "not a cine store"),
    "no json": (lambda f: (f / "index.json").write_text('{"format": '), "index.json: unreadable index"),
    "other json": (lambda f: (f / "index.json").write_text("[1]"), "is not the index of a cine store"),
    "other format": (lambda f: edit_index(f, format="zarr"), "is not the index of a cine store"),
    "other version": (lambda f: edit_index(f, version=4), "index.json: version 4 of the store format.*reads 1, 2, 3"),
    "no studies": (lambda f: edit_index(f, studies={}), "holds no studies"),
    "odd studies": (lambda f: edit_index(f, studies=[]), "damaged index"),
    "odd record": (lambda f: edit_record(f, "shape", "big"), "record of study 'p1', view 'lax_4c' is damaged"),
    "odd shape": (lambda f: edit_record(f, "shape", [3, 14]), r"'p1', view 'lax_4c' is damaged .*\(3, 14\)"),
    "odd motion map": (lambda f: edit_record(f, "motion", {}), "'p1', view 'lax_4c' is damaged .KeyError: 'file'"),
    "no record": (lambda f: edit_index(f, studies={"p9": {"sax": 7}}), "study 'p9', view 'sax' is damaged .no record"),
    "missing file": (lambda f: (f / NPY).unlink(), r"1 file does not match the index:\n.*p1/lax_4c.npy: No such file"),
    "short file": (lambda f: os.truncate(f / NPY, 500), r"lax_4c\.npy: 500 bytes, expected 632 for the shape \(3, 14"),
    "long file": (lambda f: os.truncate(f / NPY, 700), "700 bytes, expected 632"),
}


@pytest.mark.parametrize("kind", AT_OPEN)
def test_altered_store_is_named_when_opened(folder, kind):
    spoil, message = AT_OPEN[kind]
    spoil(folder)
    with pytest.raises(StoreError, match=message) as caught:
        CineStore(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((3, 12, 14), np.uint8), r"holds uint8 \(3, 12, 14\), the index says uint8 \(3, 14, 12\)"),
    (np.zeros((3, 14, 12), np.int8), "holds int8"),
    (np.zeros((3, 14, 6), np.uint16), "holds uint16"),
    (np.zeros((3, 14, 12), np.uint8, order="F"), "in Fortran order"),
])  # fmt: skip
def test_file_replaced_by_one_of_the_same_size(folder, array, message):
    store = CineStore(folder)
    store.read_frame("p1", "lax_4c", 0)
    np.save(folder / NPY, array)
    for opened in (store, CineStore(folder)):  # changed under a running reader, and before it opened the store
        with pytest.raises(StoreError, match=message) as caught:
            opened.read_frame("p1", "lax_4c", 0)
        assert NPY in str(caught.value)


def test_file_that_shrinks_or_becomes_something_else_under_a_reader(folder):
    store = CineStore(folder)
    store.read_frame("p1", "lax_4c", 2)
    os.truncate(folder / NPY, 600)
    np.testing.assert_array_equal(store.read_frame("p1", "lax_4c", 1), frames_of("p1", "lax_4c")[1])
    with pytest.raises(StoreError, match=r"frame 2 has 136 bytes, expected 168: the file was cut short"):
        store.read_frame("p1", "lax_4c", 2)
    (folder / NPY).write_bytes(b"\0" * 632)
    with pytest.raises(StoreError, match=r"not the \.npy file that was prepared"):
        store.read_frame("p1", "lax_4c", 0)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_waited_for(folder, make):
    """A named pipe that nobody writes into would never let go of who opens it."""
    store, said = CineStore(folder), []
    (folder / NPY).unlink()
    make(folder / NPY)

    def read() -> None:
        with pytest.raises(StoreError) as caught:
            store.read_frame("p1", "lax_4c", 2)
        said.append(str(caught.value))

    (reader := Thread(target=read, daemon=True)).start()
    reader.join(timeout=10)
    assert said == [f"{folder / NPY}: not a regular file; run prepare again"]


def test_index_survives_a_failed_replacement(folder, monkeypatch):
    before = (folder / "index.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for broken in ("os.replace", "os.fsync"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(store_module.os, broken.removeprefix("os."), full)
            write_index(folder, {}, {})
        assert (folder / "index.json").read_bytes() == before and CineStore(folder).ids == ["p1", "p2"]


def test_lock_excludes_and_ends(tmp_path):
    refused = pytest.raises(StoreError, match=f"being prepared by another process .pid {os.getpid()} ")
    with hold_store(tmp_path, None), refused, hold_store(tmp_path, None):
        pass
    with hold_store(tmp_path, None):
        pass
