"""From NIfTI cines to a store: right frames, every failure reported, nothing half-done."""

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cine_files import BALL, VIEWS, grid_mm, write_cine, write_study
from prepared import assert_intensities_are_the_scans, content, run

from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.prepare import geometry
from cinema_fast.data.prepare.prepare import PrepareConfig
from cinema_fast.data.store.store import CineStore, StoreError


@pytest.fixture
def src(tmp_path):
    for n in range(3):
        write_study(tmp_path / "src", f"p{n}", seed=n)
    return tmp_path / "src"


def test_frames_are_centred_windowed_and_described(src, tmp_path):
    report = run(src, tmp_path / "store")
    assert (report.prepared, report.n_studies, report.failures, report.exit_code) == (3, 3, [], 0)
    store = CineStore(tmp_path / "store")
    index = json.loads((tmp_path / "store/index.json").read_text())
    assert (index["format"], index["version"]) == ("cinema-fast store", 3)
    assert index["prepare"]["sax_spacing"] == [1.0, 1.0, 10.0]
    for k, view in enumerate(VIEWS):
        info, record = store.info("p1", view), index["studies"]["p1"][view]
        centred_on = json.loads((tmp_path / "store/studies/p1/study.json").read_text())[view]["centred_on"]
        source = src / f"p1_{view}.nii.gz"
        assert info.shape == ((4, 32, 32, 4) if view == "sax" else (4, 40, 40))
        assert info.spacing_mm == ((1.0, 1.0, 10.0) if view == "sax" else (1.0, 1.0))
        assert info.frame_time_ms == 30.0 + k and centred_on == "planes"
        assert record["source"]["file"] == source.name
        assert record["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert info.sha256 == hashlib.sha256(Path(info.path).read_bytes()).hexdigest()
        frame = store.read_frame("p1", view, 1).reshape((*info.shape[1:], 1)[:3]).astype(float)
        # The brightness-weighted middle lies at the ball by the stored affine, and in the middle of the window.
        weight = np.where(frame > 128, frame, 0)
        middle = (grid_mm(frame.shape, info.affine) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
        assert np.linalg.norm((middle - BALL) @ (info.affine[:3, :2])) < 0.7
        at = geometry.to_index(info.affine, BALL)[:2]
        np.testing.assert_allclose(at, (np.array(info.shape[1:3]) - 1) / 2, atol=0.51)
        assert_intensities_are_the_scans(store, "p1", view, read_cine(source, stack=view == "sax"))


def test_labels_centre_the_view_and_bad_labels_are_reported(src, tmp_path):
    cine = read_cine(src / "p0_sax.nii.gz", stack=True)
    label = np.zeros((*cine.shape, 4), np.uint8)
    label[5:12, 20:31, 1:4, 0] = 3
    write_cine(src / "labels/p0_sax.nii.gz", label, cine.affine)
    (src / "labels/p1_sax.nii.gz").write_bytes(b"")
    write_cine(src / "labels/p2_sax.nii.gz", label, cine.affine + np.eye(4, k=3) * 500)
    report = run(src, tmp_path / "store", labels="labels/{id}_{view}.nii.gz")
    assert [f.file for f in report.failures] == ["labels/p1_sax.nii.gz", "labels/p2_sax.nii.gz"]
    assert report.failures[0].reason == "the file is empty (labels; the view was prepared without them)"
    records = [json.loads((tmp_path / f"store/studies/{study}/study.json").read_text()) for study in ("p0", "p1")]
    assert [record["sax"]["centred_on"] for record in records] == ["labels", "planes"]
    at = geometry.to_index(CineStore(tmp_path / "store").info("p0", "sax").affine, cine.affine[:3] @ [8, 25, 2, 1])
    np.testing.assert_allclose(at[:2], 15.5, atol=0.51)


def test_without_the_three_planes_the_image_is_centred(tmp_path):
    write_study(tmp_path / "src", "p", views=("sax", "lax_2c"))
    run(tmp_path / "src", tmp_path / "store")
    info = CineStore(tmp_path / "store").info("p", "lax_2c")
    cine = read_cine(tmp_path / "src/p_lax_2c.nii.gz", stack=False)
    at = geometry.to_index(info.affine, geometry.image_centre(cine.shape, cine.affine))
    np.testing.assert_allclose(at[:2], 19.5, atol=0.51)


def test_failures_are_reported_and_the_rest_goes_on(src, tmp_path):
    shutil.copy(src / "p0_sax.nii.gz", src / "p0_lax_3c.nii.gz")
    (src / "p0_sax.nii.gz").write_bytes((src / "p0_sax.nii.gz").read_bytes()[:-500])
    for view in VIEWS:
        (src / f"p1_{view}.nii.gz").write_bytes(b"")
    shutil.copy(src / "p2_sax.nii.gz", src / "p2_sax.nii")
    os.rename(src / "p2_sax.nii", src / "p2_stack.nii.gz")
    report = run(src, tmp_path / "store", aliases=("sax=stack",))
    assert (report.prepared, report.n_studies, report.exit_code) == (2, 2, 1)
    reasons = {failure.file: failure.reason for failure in report.failures}
    assert reasons.pop("p2_sax.nii.gz, p2_stack.nii.gz") == "more than one file for sax of 'p2'"
    assert reasons.pop("p0_sax.nii.gz").startswith("truncated")
    assert reasons.pop("p0_lax_3c.nii.gz").startswith("a long-axis view has one slice")
    assert reasons == {f"p1_{view}.nii.gz": "the file is empty" for view in VIEWS}
    for failure in report.failures:
        assert f"failed: {failure.file}: {failure.reason}" in str(report)
    lines = [json.loads(line) for line in (tmp_path / "store/failures.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [failure.file for failure in report.failures]
    assert set(lines[0]) == {"study", "view", "file", "reason"}
    store = CineStore(tmp_path / "store")
    assert {study: store.views(study) for study in store.ids} == dict.fromkeys(("p0", "p2"), ("lax_2c", "lax_4c"))


def test_nothing_prepared_is_another_exit_code(tmp_path):
    write_cine(tmp_path / "src/p_sax.nii.gz", np.zeros((20, 20, 3), np.int16), np.eye(4))
    report = run(tmp_path / "src", tmp_path / "store")
    assert report.exit_code == 3 and "not a cine: shape (20, 20, 3)" in report.failures[0].reason
    with pytest.raises(StoreError, match="holds no studies"):
        CineStore(tmp_path / "store")


def test_single_frames_become_a_cine(tmp_path):
    write_study(tmp_path / "cine", "p", views=("sax",))
    cine = read_cine(tmp_path / "cine/p_sax.nii.gz", stack=True)
    for name, t in (("es", 2), ("ed", 0)):
        write_cine(tmp_path / f"src/p_sax_{name}.nii.gz", cine.frame(t).astype(np.int16), cine.affine)
    assert run(tmp_path / "src", tmp_path / "store", pattern="{id}_{view}_{frame}.nii.gz").exit_code == 0
    run(tmp_path / "cine", tmp_path / "other")
    np.testing.assert_array_equal(CineStore(tmp_path / "store").read_frames("p", "sax", [0, 1]),
                                  CineStore(tmp_path / "other").read_frames("p", "sax", [0, 2]))


def test_unchanged_studies_are_kept_and_changed_ones_replaced(src, tmp_path):
    store = tmp_path / "store"
    run(src, store)
    before = {study: (store / f"studies/{study}/sax.npy").stat().st_ino for study in ("p0", "p1", "p2")}
    os.utime(src / "p0_sax.nii.gz")  # touched, content as it was
    write_study(src, "p1", views=("sax",), n_frames=6)  # another cine
    (store / "studies/p2/lax_2c.npy").unlink()  # damage in the store
    report = run(src, store)
    assert (report.prepared, report.unchanged, report.exit_code) == (2, 1, 0)
    after = {study: (store / f"studies/{study}/sax.npy").stat().st_ino for study in before}
    assert [before[study] == after[study] for study in before] == [True, False, False]
    assert CineStore(store).n_frames("p1", "sax") == 6
    for view in VIEWS:
        (src / f"p1_{view}.nii.gz").write_bytes(b"")
    report = run(src, store)
    assert (report.unchanged, len(report.failures)) == (2, 3)
    assert CineStore(store).ids == ["p0", "p1", "p2"], "what was prepared from an earlier source stays"


def test_another_content_of_the_same_size_is_noticed(tmp_path):
    write_study(tmp_path / "src", "p", views=("sax",))
    path = tmp_path / "src/p_sax.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    run(tmp_path / "src", tmp_path / "store")
    before = CineStore(tmp_path / "store").read_frames("p", "sax", range(4))
    path.write_bytes(path.read_bytes()[:-2000] + bytes(2000))
    os.utime(path)
    assert run(tmp_path / "src", tmp_path / "store").prepared == 1
    after = CineStore(tmp_path / "store").read_frames("p", "sax", range(4))
    assert [np.array_equal(a, b) for a, b in zip(before, after)] == [True, True, True, False]


def test_a_second_folder_adds_to_the_store(src, tmp_path):
    write_study(tmp_path / "more", "q", seed=9)
    run(src, tmp_path / "store")
    assert run(tmp_path / "more", tmp_path / "store").n_studies == 4
    assert CineStore(tmp_path / "store").ids == ["p0", "p1", "p2", "q"]


def test_other_options_and_other_folders_are_refused(src, tmp_path):
    run(src, tmp_path / "store")
    with pytest.raises(StoreError, match=r"lax_size=\[40, 40\] \(now \[48, 48\]\).*--overwrite"):
        run(src, tmp_path / "store", lax_size=(48, 48))
    (src / "p2_sax.nii.gz").unlink()
    assert run(src, tmp_path / "store", lax_size=(48, 48), overwrite=True).prepared == 3
    assert CineStore(tmp_path / "store").info("p0", "lax_2c").shape == (4, 48, 48)
    (tmp_path / "store/index.json").write_text("{")
    with pytest.raises(StoreError, match=r"its index is lost, and 3 of its 3 .*--overwrite to start the store over"):
        run(src, tmp_path / "store")
    assert run(src, tmp_path / "store", overwrite=True).prepared == 3
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"not empty and is not a cine store \(it holds 'thesis.tex'\)"):
            run(src, tmp_path / "home", overwrite=overwrite)
    with pytest.raises(ValueError, match="--lax-size must be positive"):
        PrepareConfig(src, tmp_path / "x", lax_size=(0, 4))


def test_workers_write_the_same_bytes(src, tmp_path):
    (src / "p1_sax.nii.gz").write_bytes(b"x")
    reports = [run(src, tmp_path / f"store{workers}", workers=workers) for workers in (1, 2)]
    assert [report.prepared for report in reports] == [3, 3]
    assert content(tmp_path / "store1") == content(tmp_path / "store2")
