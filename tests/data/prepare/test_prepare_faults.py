"""Preparation that is killed, runs out of disk, or runs twice; and preparation of real studies."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cine_files import write_study
from marks import slow
from prepared import SIZES, assert_intensities_are_the_scans, content, run, wait_for

from cinema_fast.cli import main
from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.prepare import geometry
from cinema_fast.data.prepare import prepare as prepare_module
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store import store as store_module
from cinema_fast.data.store.orientation import arranged
from cinema_fast.data.store.store import CineStore, StoreError

SCRIPT = """
import sys
from pathlib import Path
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
if __name__ == "__main__":
    options = dict(sax_size=(32, 32, 6), lax_size=(40, 40), workers=int(sys.argv[3]))
    print(prepare(PrepareConfig(Path(sys.argv[1]), Path(sys.argv[2]), **options), progress=False))
"""


@pytest.fixture
def start(tmp_path):
    """Starts `prepare` in a process of its own, which does not outlive the test."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(src, dst, workers=1):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, tmp_path / "script.py", src, dst, str(workers)]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("workers", [slow(1), 2])
def test_killed_in_the_middle_it_goes_on_from_there(tmp_path, start, workers):
    for n in range(30):
        write_study(tmp_path / "src", f"p{n:02}", n_frames=12, seed=n)
    store, studies = tmp_path / "store", tmp_path / "store/studies"
    process = start(tmp_path / "src", store, workers)
    wait_for(lambda: studies.is_dir() and len(list(studies.iterdir())) >= 4)
    process.kill()
    process.wait()
    whole = sorted(path.name for path in studies.iterdir())
    assert 4 <= len(whole) < 30, "too late to tell"
    for study in whole:
        records = json.loads((studies / study / "study.json").read_text())
        for view, record in records.items():
            assert np.load(studies / study / f"{view}.npy").shape == tuple(record["shape"])
    with pytest.raises(StoreError, match="holds no studies: its preparation has not finished"):
        CineStore(store)
    report = run(tmp_path / "src", store)  # the dead process's lock does not hold it up
    assert (report.unchanged, report.prepared) == (len(whole), 30 - len(whole))
    run(tmp_path / "src", tmp_path / "at once")
    assert content(store) == content(tmp_path / "at once")


def test_two_runs_on_one_store_refuse_each_other(tmp_path, start):
    for n in range(30):
        write_study(tmp_path / "src", f"p{n:02}", n_frames=12, seed=n)
    process = start(tmp_path / "src", tmp_path / "store")
    wait_for(lambda: (tmp_path / "store/studies").is_dir())
    with pytest.raises(StoreError, match=f"is being prepared by another process .pid {process.pid} on "):
        run(tmp_path / "src", tmp_path / "store")


@pytest.mark.parametrize("call", [7, 14, 17])
def test_full_disk_leaves_whole_studies_only(tmp_path, monkeypatch, call):
    """The disk fills up at some call of fsync: between the files of the second study, or in the third."""
    for n in range(3):
        write_study(tmp_path / "src", f"p{n}", seed=n)
    calls, fsync = [], os.fsync

    def full(fd):
        calls.append(fd)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", full)
        stays = r"disk is full; ([12] stud(y|ies) complete and kept|nothing was .* kept): free"
        with pytest.raises(StoreError, match=stays):
            run(tmp_path / "src", tmp_path / "store")
    studies = list((tmp_path / "store/studies").iterdir())
    assert all(len(list(study.iterdir())) == 4 for study in studies) and len(studies) < 3
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".lock", "index.json", "studies"]
    report = run(tmp_path / "src", tmp_path / "store")
    assert report.unchanged == len(studies) and CineStore(tmp_path / "store").ids == ["p0", "p1", "p2"]


@pytest.mark.parametrize("shard", [None, "1/1"])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch, call, shard):
    """Neither the folder of a store can be made nor its lock."""
    write_study(tmp_path / "src", "p0", views=("sax",))
    plain = getattr(Path, call)

    def full(path, *args, **kwargs):
        if call == "mkdir" or path.suffix == ".lock" or path.name == ".lock":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, full)
        with pytest.raises(StoreError, match=r"store: the disk is full; nothing was prepared, .* kept: free"):
            run(tmp_path / "src", tmp_path / "store", shard=shard)
    assert run(tmp_path / "src", tmp_path / "store", shard=shard).prepared == 1


def test_full_disk_while_the_index_is_written_keeps_the_old_one(tmp_path, monkeypatch):
    write_study(tmp_path / "src", "p0")
    run(tmp_path / "src", tmp_path / "store")
    write_study(tmp_path / "src", "p1")
    replace = os.replace

    def full(source, target):
        if target.name == "index.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="the disk is full"):
        patch.setattr(store_module.os, "replace", full)
        run(tmp_path / "src", tmp_path / "store")
    assert CineStore(tmp_path / "store").ids == ["p0"]
    assert run(tmp_path / "src", tmp_path / "store").unchanged == 2
    assert CineStore(tmp_path / "store").ids == ["p0", "p1"]


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch, capfd):
    for n in range(3):
        write_study(tmp_path / "src", f"p{n}")
    command = ["prepare", str(tmp_path / "src"), str(tmp_path / "store"), "--workers", "1"]
    publish = prepare_module.replace_folder
    for kept, studies, options, words in ((0, [], [], "was prepared, existing files are kept: the same command"),
                                          (2, ["p0", "p1"], [], "2 studies complete and kept: the same command"),
                                          (1, ["p0"], ["--overwrite"], "the same command without --overwrite")):
        def stopped(folder, target, studies=studies):
            if target.name not in studies:
                raise KeyboardInterrupt
            publish(folder, target)

        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "replace_folder", stopped)
            assert main(command + options) == 130
        said = capfd.readouterr().err.splitlines()[-1]
        assert said.startswith("cinema-fast: stopped; ") and said.endswith(f"{words} continues from there")
        assert len(list((tmp_path / "store/studies").iterdir())) == kept
        assert not (tmp_path / "store/.preparing").exists()
    assert main(command) == 0
    assert "2 studies prepared, 1 unchanged" in capfd.readouterr().out


def test_store_in_the_place_of_a_file(tmp_path):
    write_study(tmp_path / "src", "p0")
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        run(tmp_path / "src", tmp_path / "src/p0_sax.nii.gz")


@pytest.mark.slow
def test_real_study_of_every_view(shared, tmp_path):
    aliases = ("sax=sax_4d_6slices", "lax_2c=Se8_2ch", "lax_3c=Se7_4ch_or_3ch", "lax_4c=Se6_4ch_or_3ch")
    config = PrepareConfig(shared / "data/cine", tmp_path, pattern="{view}.nii.gz", aliases=aliases, workers=1)
    report = prepare(config, progress=False)
    assert (report.prepared, report.unmatched, report.exit_code) == (1, 2, 0)
    assert "sax: 1 file from 1 study (in file names: 'sax_4d_6slices')" in str(report) and all(
        name in str(report) for name in report.unmatched_files)
    store = CineStore(tmp_path)
    records = json.loads((tmp_path / "studies/cine/study.json").read_text())
    assert store.views("cine") == ("sax", "lax_2c", "lax_3c", "lax_4c")
    assert store.info("cine", "sax").shape == (25, 192, 192, 11)
    expected_ms = {"sax": 34.4, "lax_2c": 39.0, "lax_3c": 36.96, "lax_4c": 35.04}
    point = None
    for alias in aliases:
        view, name = alias.split("=")
        info = store.info("cine", view)
        assert info.frame_time_ms == pytest.approx(expected_ms[view]) and records[view]["centred_on"] == "planes"
        cine = read_cine(shared / f"data/cine/{name}.nii.gz", stack=view == "sax")
        if view == "sax":
            assert_intensities_are_the_scans(store, "cine", view, cine)
        # All views are centred on one point of the scanner: where the long axes cross, in the blood of the ventricle.
        middle = info.affine @ [*((np.array(info.shape[1:3]) - 1) / 2), 0, 1]
        if view == "lax_2c":
            point = middle[:3]
        elif view == "lax_4c":
            away = geometry.to_index(info.affine, point)[:2] - (np.array(info.shape[1:3]) - 1) / 2
            assert np.abs(away).max() < 1.5
    x = store.read_frame("cine", "sax", 0)[:, :, 5].astype(float)
    assert x[90:102, 90:102].mean() > 1.5 * x.mean(), "the blood pool, brighter than the rest, is in the middle"


def test_real_single_frames(shared, tmp_path):
    config = PrepareConfig(shared / "data/cmr", tmp_path / "store", pattern="{id}_{view}_{frame}.nii.gz", workers=1)
    assert prepare(config, progress=False).exit_code == 0
    store = CineStore(tmp_path / "store")
    assert {study: store.views(study) for study in store.ids} == {
        "acdc": ("sax",), "mnms": ("sax",), "mnms2": ("sax", "lax_4c")}
    for study, view, slices in (("acdc", "sax", 10), ("mnms", "sax", 14), ("mnms2", "lax_4c", 1)):
        assert store.info(study, view).shape[1:] == ((192, 192, slices) if view == "sax" else (256, 256))
        for t, name in enumerate(("ed", "es")):
            cine = read_cine([shared / f"data/cmr/{study}_{view}_{name}.nii.gz"], stack=view == "sax")
            low, high = np.percentile(cine.frame(0), (0.95, 99.5))
            # These frames lie on the grid already, so only the window is applied.
            expected = (np.clip(cine.frame(0), low, high) - low) / (high - low) * 255
            stored = store.read_frame(study, view, t)
            expected = arranged(expected, store.info(study, view).arrangement).reshape(stored.shape)
            assert np.abs(stored - expected).max() <= 0.51
    with pytest.raises(ValueError, match=r"no file in .* matches"):
        prepare(PrepareConfig(shared / "data/cmr", tmp_path / "other", **SIZES), progress=False)
