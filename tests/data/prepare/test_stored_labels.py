"""Label maps in a store: read, checked, mended, outlined; and a run that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from cine_files import write_cine, write_study
from label_files import PATTERN, again, drawn
from prepared import content, run

from cinema_fast.cli import main
from cinema_fast.data.store.check import check_store
from cinema_fast.data.store.inspect_store import COLOURS, contact_sheet, inspect_store, outline
from cinema_fast.data.store.store import CineStore, StoreError

FILE = "studies/p1/sax.labels.npy"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sources of three studies, two of which have labels of their SAX, and a store of them."""
    path = tmp_path_factory.mktemp("whole")
    for n in range(3):
        write_study(path / "src", f"p{n}", seed=n)
    for study in ("p0", "p1"):
        write_cine(path / f"src/labels/{study}_sax.nii.gz", *drawn(path / "src", study))
    assert run(path / "src", path / "store", labels=PATTERN).labelled == 2
    return path


@pytest.fixture
def prepared(whole, tmp_path):
    """Sources and store of one's own."""
    return shutil.copytree(whole / "src", tmp_path / "src"), shutil.copytree(whole / "store", tmp_path / "store")


def test_reading(whole):
    store = CineStore(whole / "store")
    info = store.info("p1", "sax")
    assert info.labels.frames == (0, 2) and info.labels.path == str(whole / "store" / FILE)
    stored = np.load(info.labels.path)
    assert stored.dtype == np.uint8 and stored.shape == (2, *info.shape[1:]) and set(np.unique(stored)) == {0, 2, 3}
    np.testing.assert_array_equal(store.read_labels("p1", "sax", 2), stored[1])
    with pytest.raises(StoreError, match=r"study 'p1', view 'sax': frame 1 is not labelled, only 0, 2"):
        store.read_labels("p1", "sax", 1)
    with pytest.raises(StoreError, match=r"study 'p2' has no labels of 'sax', so none of frame 0; .*--labels"):
        store.read_labels("p2", "sax", 0)
    with pytest.raises(IndexError, match="frame 4 of 4"):
        store.read_labels("p1", "sax", 4)
    record = json.loads((whole / "store/index.json").read_text())["studies"]["p1"]["sax"]["labels"]
    assert record == {"file": FILE, "sha256": info.labels.sha256, "frames": [0, 2], "values": [2, 3]}
    assert info.labels.values == (2, 3)


def test_the_index_is_the_same_without_labels(whole, tmp_path):
    """Programs from before labels see nothing that they do not know in a store that has none."""
    run(whole / "src", tmp_path / "store")
    text = (tmp_path / "store/index.json").read_text()
    assert text.count("labels") == 1 and '"labels": null' in text  # the option, as ever
    assert all(info.labels is None for info in (CineStore(tmp_path / "store").info(f"p{n}", "sax") for n in range(3)))


def test_changed_label_files_make_their_study_anew(prepared):
    src, store = prepared
    assert (again(src, store).prepared, again(src, store).unchanged) == (0, 3)
    os.utime(src / "labels/p0_sax.nii.gz")  # touched, not changed
    assert again(src, store).unchanged == 3
    write_cine(src / "labels/p1_sax.nii.gz", *drawn(src, "p1", low=12))
    report = again(src, store)
    assert (report.prepared, report.unchanged, report.labelled) == (1, 2, 2)
    write_cine(src / "labels/p2_sax.nii.gz", *drawn(src, "p2"))
    (src / "labels/p1_sax.nii.gz").unlink()
    report = again(src, store)
    assert (report.prepared, report.unchanged, report.labelled) == (2, 1, 2)
    opened = CineStore(store)
    assert opened.info("p1", "sax").labels is None and opened.read_labels("p2", "sax", 0).any()
    assert not (store / FILE).exists()


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def edit(path, **changes):
    records = json.loads((path.parent / "study.json").read_text())
    records["sax"]["labels"].update(changes)
    (path.parent / "study.json").write_text(json.dumps(records))


DAMAGE = {
    "no file": lambda f: f.unlink(),
    "short file": lambda f: os.truncate(f, 1000),
    "header of zeros": lambda f: overwrite(f, 0, bytes(128)),
    "header of another type": lambda f: np.save(f, np.load(f).view(np.int8)),
    "no frames": lambda f: edit(f, frames=[]),
    "a frame that is not there": lambda f: edit(f, frames=[0, 4]),
    "frames in no order": lambda f: edit(f, frames=[2, 0]),
    "another file": lambda f: edit(f, file="studies/p0/sax.labels.npy"),
    "no source": lambda f: edit(f, source=None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_preparing_again_mends_damaged_labels(prepared, kind):
    src, store = prepared
    before = content(store)
    DAMAGE[kind](store / FILE)
    if "header" in kind:
        with pytest.raises(StoreError, match=r"p1/sax\.labels\.npy: .*run prepare again$"):
            CineStore(store).read_labels("p1", "sax", 0)
    elif "file" in kind and "another" not in kind:
        with pytest.raises(StoreError, match=r"(?s)1 file does not match .*p1/sax\.labels\.npy"):
            CineStore(store)
    if kind not in ("no source",):
        assert {fault.study for fault in check_store(store, progress=False).faults} == {"p1"}
    report = again(src, store)
    assert (report.prepared, report.unchanged, report.exit_code) == (1, 2, 0) and content(store) == before


def test_an_altered_label_is_found_and_mended(prepared, capfd):
    src, store = prepared
    before = content(store)
    overwrite(store / FILE, 3000, bytes([(store / FILE).read_bytes()[3000] ^ 1]))
    assert again(src, store).unchanged == 3  # reads nothing that is there
    assert main(["verify", str(store)]) == 1
    assert f"{FILE}: altered" in capfd.readouterr().out
    report = again(src, store, repair=True)
    assert (report.prepared, report.exit_code) == (1, 0) and content(store) == before
    assert main(["verify", str(store)]) == 0


def test_motion_maps_leave_labels_as_they_are(tmp_path):
    src, store = tmp_path / "src", tmp_path / "store"
    write_study(src, "p1", views=("sax",))
    write_cine(src / "labels/p1_sax.nii.gz", *drawn(src, "p1"))
    again(src, store)
    before = (store / FILE).read_bytes()
    assert again(src, store, motion=True).motion_maps == 1
    info = CineStore(store).info("p1", "sax")
    assert info.motion and info.labels.frames == (0, 2) and (store / FILE).read_bytes() == before
    os.truncate(store / "studies/p1/sax.motion.npy", 100)
    assert again(src, store).unchanged == 1 and CineStore(store).info("p1", "sax").labels
    os.truncate(store / FILE, 100)
    assert (again(src, store).prepared, check_store(store, progress=False).faults) == (1, [])


SCRIPT = """
import os, signal, sys
from pathlib import Path
from cinema_fast.data.prepare import prepare
from cinema_fast.data.store import store
write = store.write_array
def half(path, array):
    if "labels" in path.name and "/1/" in str(path):
        path.write_bytes(bytes(100))
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, array)
store.write_array = half
options = dict(sax_size=(32, 32, 6), lax_size=(40, 40), workers=1, labels="labels/{id}_{view}.nii.gz")
prepare.prepare(prepare.PrepareConfig(Path(sys.argv[1]), Path(sys.argv[2]), **options), progress=False)
"""


def test_killed_while_labels_are_written_it_goes_on(whole, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(whole / "src"), str(tmp_path / "store")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=env, timeout=120).returncode == -signal.SIGKILL
    assert not (tmp_path / "store/studies/p1").exists()
    report = again(whole / "src", tmp_path / "store")
    assert (report.prepared, report.unchanged) == (2, 1) and content(tmp_path / "store") == content(whole / "store")


def test_labels_are_outlined_and_counted(whole, tmp_path):
    text = inspect_store(whole / "store", tmp_path / "out")
    for part in ("  2 studies with labels", "  labels of 2 of 3 cines, 2 frames each", "outlined"):
        assert part in text
    labels = np.zeros((9, 8), np.uint8)
    labels[1:8, 2:7], labels[3:6, 4:5] = 2, 3
    frame = np.full(labels.shape, 90, np.uint8)
    shown = outline(frame, labels)
    inside = np.zeros(labels.shape, bool)
    inside[2, 3:6] = inside[6, 3:6] = inside[2:7, 3] = inside[2:7, 5] = True  # of class 2, no neighbour of another
    inside[3:6, 3] = inside[3:6, 5] = inside[2, 4] = inside[6, 4] = False
    assert (shown[(labels == 2) & ~inside] == COLOURS[1]).all() and (shown[labels == 3] == COLOURS[2]).all()
    assert (shown[inside | (labels == 0)] == 90).all() and inside.sum() == 4
    sheet = contact_sheet(CineStore(whole / "store"), ["p1", "p2"])
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert sheet.mode == "RGB" and {COLOURS[1], COLOURS[2]} <= colours
