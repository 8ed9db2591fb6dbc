"""A store that was damaged: what notices it, and that preparing again mends it and keeps what is whole."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from prepared import content, overwrite, run

from cinema_fast.cli import main
from cinema_fast.data.store.check import UNLISTED, check_store
from cinema_fast.data.store.store import CineStore, StoreError, read_index, write_index


def replace(path, make):
    path.unlink()
    make(path)


def edit_record(folder, **changes):
    records = json.loads((folder / "study.json").read_text())
    records["sax"] |= changes
    (folder / "study.json").write_text(json.dumps(records))


DAMAGE = {
    "header of zeros": lambda f: overwrite(f / "sax.npy", 0, bytes(128)),
    "header of another shape": lambda f: np.save(f / "sax.npy", np.load(f / "sax.npy").swapaxes(0, 1)),
    "header of another type": lambda f: np.save(f / "sax.npy", np.load(f / "sax.npy").view(np.int8)),
    "short file": lambda f: os.truncate(f / "sax.npy", 1000),
    "no file": lambda f: (f / "sax.npy").unlink(),
    "no study.json": lambda f: (f / "study.json").unlink(),
    "half a study.json": lambda f: os.truncate(f / "study.json", 300),
    "empty study.json": lambda f: (f / "study.json").write_text("{}"),
    "other json": lambda f: (f / "study.json").write_text("[7]"),
    "another shape": lambda f: edit_record(f, shape=[4, 32, 32, 3]),
    "another study's file": lambda f: edit_record(f, file="studies/p0/sax.npy"),
    "a pipe": lambda f: replace(f / "sax.npy", os.mkfifo),
    "a folder": lambda f: replace(f / "sax.npy", os.mkdir),
    "study.json a pipe": lambda f: replace(f / "study.json", os.mkfifo),
    "a window lost": lambda f: edit_record(f, window=[[0, 1]]),
    "no affine": lambda f: edit_record(f, affine=None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_preparing_again_mends_a_study_that_is_not_whole(prepared, kind):
    src, store = prepared
    before = content(store)
    DAMAGE[kind](store / "studies/p1")
    report = run(src, store)
    assert (report.prepared, report.unchanged, report.exit_code) == (1, 2, 0)
    assert content(store) == before


def test_a_damaged_study_without_sources_is_reported(prepared, tmp_path):
    src, store = prepared
    overwrite(store / "studies/p1/sax.npy", 0, bytes(128))
    for path in src.glob("p1_*"):
        path.unlink()
    report = run(src, store)
    assert (report.unchanged, report.n_studies, report.exit_code) == (2, 2, 1)
    (failure,) = report.failures
    assert (failure.study, failure.file) == ("p1", "studies/p1") and "p1/sax.npy: not the .npy file" in failure.reason
    assert CineStore(store).ids == ["p0", "p2"] and (store / "studies/p1/sax.npy").exists()


INDEX = {
    "lost": lambda file: file.unlink(),
    "empty": lambda file: file.write_text(""),
    "cut short": lambda file: os.truncate(file, 900),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\0" * 50),
    "odd studies": lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), "studies": [1]})),
    "odd record": lambda file: file.write_text(file.read_text().replace('"shape": [4, 40, 40]', '"shape": "big"')),
}


@pytest.mark.parametrize("kind", INDEX)
def test_preparing_again_rebuilds_the_index(prepared, kind):
    """From whole studies, which are kept; not with other options than theirs."""
    src, store = prepared
    before = content(store)
    inode = (store / "studies/p1/sax.npy").stat().st_ino
    INDEX[kind](store / "index.json")
    with pytest.raises(StoreError, match="prepare"):
        CineStore(store)
    spoilt = content(store)
    with pytest.raises(StoreError, match=r"3 of its 3 studies were prepared with lax_size=\[40, 40\] \(now"):
        run(src, store, lax_size=(48, 48))
    assert content(store) == spoilt
    report = run(src, store)
    assert (report.prepared, report.unchanged, report.exit_code) == (0, 3, 0)
    assert content(store) == before and (store / "studies/p1/sax.npy").stat().st_ino == inode


def test_rebuilding_prepares_what_is_missing(prepared):
    src, store = prepared
    before = content(store)
    (store / "index.json").write_text("{")
    shutil.rmtree(store / "studies/p0")
    edit_record(store / "studies/p2", shape=None)
    assert (run(src, store).prepared, content(store)) == (2, before)


def test_studies_that_do_not_say_their_options_are_not_trusted_without_an_index(prepared):
    """As version 1 wrote them."""
    src, store = prepared
    for study in ("p0", "p1", "p2"):
        records = json.loads((store / f"studies/{study}/study.json").read_text())
        for record in records.values():
            del record["prepare"]
        (store / f"studies/{study}/study.json").write_text(json.dumps(records))
    assert run(src, store).unchanged == 3
    (store / "index.json").unlink()
    with pytest.raises(StoreError, match=r"3 of its 3 studies were prepared with unknown options.*--overwrite"):
        run(src, store)
    assert run(src, store, overwrite=True).prepared == 3


def test_killed_before_the_first_index_it_begins_anew(prepared, tmp_path):
    (tmp_path / "new/studies").mkdir(parents=True)
    assert run(prepared[0], tmp_path / "new").prepared == 3


def test_altered_pixels_are_found_and_mended(prepared, monkeypatch, capfd):
    """A changed byte in a file of the right size: `verify` names it, `prepare --repair` makes the study anew."""
    src, store = prepared
    before = content(store)
    assert check_store(store, progress=False).faults == [] and main(["verify", str(store)]) == 0
    assert "3 studies" in capfd.readouterr().out
    for file in ("p1/sax.npy", "p1/lax_2c.npy", "p2/lax_4c.npy"):
        path = store / "studies" / file
        overwrite(path, 4000, bytes([path.read_bytes()[4000] ^ 1]))
    CineStore(store).read_frames("p1", "sax", range(4))  # not noticed by reading, which reads single frames
    assert run(src, store).unchanged == 3  # nor by preparing, which reads no pixels of what is there
    faults = check_store(store, workers=2, progress=False).faults
    assert [(f.study, f.file) for f in faults] == [
        ("p1", "studies/p1/lax_2c.npy"), ("p1", "studies/p1/sax.npy"), ("p2", "studies/p2/lax_4c.npy")]
    assert main(["verify", str(store)]) == 1
    out = capfd.readouterr().out
    assert "studies/p1/sax.npy: " in out and "studies/p2/lax_4c.npy: " in out and "prepare SRC" in out
    report = run(src, store, repair=True)
    assert (report.prepared, report.unchanged, report.exit_code) == (2, 1, 0)
    assert content(store) == before and check_store(store, progress=False).faults == []


def test_everything_else_that_is_wrong_is_found_too(prepared):
    _, store = prepared
    (store / "studies/p0/sax.npy").unlink()
    os.truncate(store / "studies/p1/sax.npy", 1000)
    edit_record(store / "studies/p2", sha256="0" * 64)
    faults = {fault.file: fault.reason for fault in check_store(store, progress=False).faults}
    assert faults.keys() == {"studies/p0/sax.npy", "studies/p1/sax.npy", "studies/p2/study.json"}
    assert "No such file" in faults["studies/p0/sax.npy"] and "index" in faults["studies/p2/study.json"]
    with pytest.raises(StoreError, match="not a cine store"):
        check_store(store / "studies", progress=False)


ALTERED = {
    "a spacing": lambda index: index["studies"]["p1"]["sax"].update(spacing_mm=[2.0, 2.0, 10.0]),
    "a shape of the same size": lambda index: index["studies"]["p1"]["lax_2c"].update(shape=[2, 80, 40]),
    "a frame time": lambda index: index["studies"]["p1"]["lax_2c"].update(frame_time_ms=1.0),
    "the source": lambda index: index["studies"]["p1"]["sax"]["source"].update(file="other.nii.gz"),
    "a key that no program knows": lambda index: index["studies"]["p1"]["sax"].update(later=1),
    "an option": lambda index: index["prepare"].update(sax_spacing=[2.0, 2.0, 10.0]),
    "a study gone": lambda index: index["studies"].pop("p2"),
}


@pytest.mark.parametrize("kind", ALTERED)
@pytest.mark.parametrize("summed", [True, False], ids=["", "of a store from before"])
def test_an_altered_index_is_found(prepared, kind, summed):
    """By its own checksum; in a store from before, which has none, by the studies' records, as far as they tell."""
    store = prepared[1]
    index = json.loads((store / "index.json").read_text())
    if not summed:
        del index["sha256"]
        (store / "index.json").write_text(json.dumps(index))
        report = check_store(store, progress=False)
        assert report.exit_code == 0 and "the index itself has no checksum: the next `cinema-fast prep" in str(report)
    ALTERED[kind](index)
    (store / "index.json").write_text(json.dumps(index))
    of_study = kind in ("a spacing", "a shape of the same size", "a frame time", "the source")
    files = ["index.json"] * summed + ["studies/p1/study.json"] * of_study
    if kind == "an option" and not summed:
        files = [f"studies/p{n}/study.json" for n in range(3)]
    if kind == "a study gone":
        files = [*files, "studies/p2/study.json"]
    report = check_store(store, progress=False)
    assert [fault.file for fault in report.faults] == files and report.exit_code == bool(files)
    if kind == "a spacing":
        assert "spacing_mm of sax is (1.0, 1.0, 10.0) here, (2.0, 2.0, 10.0) in the index" in str(report)
    if summed:
        assert "to rebuild the index" in str(report) or of_study or kind == "a study gone"


def test_an_altered_index_is_made_anew(prepared):
    src, store = prepared
    before = content(store)
    index = json.loads((store / "index.json").read_text())
    for change in (ALTERED["a spacing"], lambda index: index["studies"]["p1"]["sax"].update(file="../x.npy")):
        changed = json.loads(json.dumps(index))
        change(changed)
        (store / "index.json").write_text(json.dumps(changed))
        assert run(src, store).unchanged == 3 and content(store) == before


@pytest.mark.parametrize("tail", ['{before}, "prepare": {{}}}}\n', "{whole} ", '{whole}\n'])
def test_what_is_appended_to_an_index_is_found(prepared, tail):
    file = prepared[1] / "index.json"
    whole = file.read_text()
    file.write_text(tail.format(whole=whole, before=whole.rstrip()[:-1]))
    assert [fault.file for fault in check_store(prepared[1], progress=False).faults] == ["index.json"]


def test_altered_pixels_without_sources_are_reported(prepared):
    src, store = prepared
    overwrite(store / "studies/p1/sax.npy", 4000, b"\1\2\3\4")
    for path in src.glob("p1_*"):
        path.unlink()
    report = run(src, store, repair=True)
    assert (report.unchanged, report.n_studies, report.exit_code) == (2, 2, 1)
    assert [f.file for f in report.failures] == ["studies/p1"] and "p1/sax.npy" in report.failures[0].reason


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_mended(prepared, make):
    """A pipe would never let go of who opens it: neither the check nor preparing with --repair may wait."""
    src, store = prepared
    before = content(store)
    replace(store / "studies/p1/sax.npy", make)
    replace(store / "studies/p2/study.json", make)
    code = "import sys; from cinema_fast.cli import main; sys.exit(main())"
    verified = subprocess.run([sys.executable, "-c", code, "verify", store], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 1 and "studies/p1/sax.npy: not a regular file" in verified.stdout
    assert "studies/p2/study.json: cannot be read ([Errno 22] not a regular file" in verified.stdout
    report = run(src, store, repair=True)
    assert (report.prepared, report.unchanged, report.exit_code) == (2, 1, 0) and content(store) == before


def test_a_store_whose_preparation_has_not_ended_is_not_sound(prepared):
    """As a kill leaves it: studies that the index does not know yet, or none at all."""
    src, store = prepared
    index = read_index(store)
    write_index(store, index["prepare"], {})
    faults = check_store(store, progress=False).faults
    assert [(fault.study, fault.reason) for fault in faults] == [
        (study, UNLISTED) for study in ("p0", "p1", "p2")]  # fmt: skip
    assert run(src, store).exit_code == 0 and check_store(store, progress=False).exit_code == 0
    shutil.rmtree(store / "studies")
    write_index(store, index["prepare"], {})
    with pytest.raises(StoreError, match="holds no studies: its preparation has not finished"):
        check_store(store, progress=False)
