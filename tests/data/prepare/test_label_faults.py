"""Label files that do not fit their cine: named failures of that view's labels; the cine is prepared all the same."""

import re

import numpy as np
import pytest
from cine_files import write_cine, write_study
from label_files import again, drawn
from prepared import run

from cinema_fast.data.store.store import CineStore

WRONG = {  # message: what becomes of right label maps and their affine
    r"a label map of 40 x 44 x 4 voxels, its cine has 40 x 44 x 5": lambda a, m: (a[:, :, :4], m),
    r"a label map of 44 x 40 x 5 voxels": lambda a, m: (a.swapaxes(0, 1), m),
    r"its affine puts a voxel 0\.8 mm from where its cine has it, .* half a pixel, 0\.75 mm":
        lambda a, m: (a, m + 0.8 * np.eye(4, k=3)),
    r"its affine puts a voxel": lambda a, m: (a, m @ np.diag([-1, 1, 1, 1])),
    r"holds the value 2\.5; labels are whole numbers from 0 to 255":
        lambda a, m: (np.where(a == 2, np.float32(2.5), a).astype(np.float32), m),
    r"holds the value 256; ": lambda a, m: (np.where(a == 2, np.int16(256), a), m),
    r"holds the value -1; ": lambda a, m: (np.where(a == 2, np.int16(-1), a), m),
    r"holds the value nan; ": lambda a, m: (np.where(a == 2, np.nan, a).astype(np.float32), m),
    r"2 label maps for a cine of 4 frames; .*--labels needs \{frame\}": lambda a, m: (a[..., ::2], m),
    r"1 label maps for a cine of 4 frames": lambda a, m: (a[..., 0], m),
    r"no voxel is labelled": lambda a, m: (0 * a, m),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_labels_that_do_not_fit_are_named_and_their_cine_is_kept(tmp_path, message):
    src, store = tmp_path / "src", tmp_path / "store"
    write_study(src, "p0", views=("sax",))
    write_cine(src / "labels/p0_sax.nii.gz", *WRONG[message](*drawn(src, "p0")))
    for _ in range(2):  # it is not forgotten the next time
        report = again(src, store)
        (failure,) = report.failures
        assert (report.prepared, report.labelled, report.exit_code) == (1, 0, 1)
        assert (failure.study, failure.view, failure.file) == ("p0", "sax", "labels/p0_sax.nii.gz")
        assert failure.reason.endswith(" (labels; the view was prepared without them)")
        assert re.search(message, failure.reason), failure.reason
    assert failure.reason in (store / "failures.jsonl").read_text().replace('\\"', '"')
    assert CineStore(store).read_frame("p0", "sax", 0).any()


def test_a_header_that_is_not_finite(tmp_path):
    write_study(tmp_path / "src", "p0", views=("sax",))
    path = write_cine(tmp_path / "src/labels/p0_sax.nii", *drawn(tmp_path / "src", "p0"))
    with path.open("r+b") as file:
        file.seek(280)  # the first row of the affine
        file.write(np.full(4, np.nan, np.float32).tobytes())
    (failure,) = run(tmp_path / "src", tmp_path / "store", labels="labels/{id}_{view}.nii").failures
    assert failure.reason.startswith("its affine puts a voxel nan mm from where its cine has it")


@pytest.mark.parametrize(("names", "message"), [
    (("00",), "frame '00' does not exist: the frames of the cine are numbered 1 to 4"),
    (("5",), "frame '5' does not exist"),
    (("ED",), "frame 'ED' does not exist"), (("2", "02"), "a second label map of frame 2"),
])  # fmt: skip
def test_numbers_of_frames_that_the_cine_has_not(tmp_path, names, message):
    src = tmp_path / "src"
    write_study(src, "p0", views=("sax",))
    labels, affine = drawn(src, "p0")
    for name in names:
        write_cine(src / f"labels/p0_{name}.nii.gz", labels[..., 0], affine)
    (failure,) = run(src, tmp_path / "store", labels="labels/{id}_{frame}.nii.gz").failures
    assert failure.reason.startswith(message)


def test_a_small_shift_of_the_header_is_rounding(tmp_path):
    write_study(tmp_path / "src", "p0", views=("sax",))
    labels, affine = drawn(tmp_path / "src", "p0")
    write_cine(tmp_path / "src/labels/p0_sax.nii.gz", labels, affine.round(3))
    assert again(tmp_path / "src", tmp_path / "store").failures == []


def test_labels_without_the_left_ventricle_are_stored(tmp_path):
    write_study(tmp_path / "src", "p0", views=("sax",))
    write_cine(tmp_path / "src/labels/p0_sax.nii.gz", *drawn(tmp_path / "src", "p0"))
    report = again(tmp_path / "src", tmp_path / "store", lv_label=7, sax_size=(64, 64, 6))
    (failure,) = report.failures
    assert failure.reason == "no voxel with the label 7 (the view was centred without it)" and report.labelled == 1


def test_labels_that_the_crop_cuts_off(tmp_path):
    """The share is that of the voxels whose middle the window leaves out; frames left empty are no longer labelled."""
    src, store = tmp_path / "src", tmp_path / "store"
    write_study(src, "p0", views=("sax",))
    labels, affine = drawn(src, "p0")
    labels[..., 2] = 0
    labels[0:2, :, :, 2] = 1  # far from the left ventricle that the crop is about
    labels[..., 3] = labels[..., 0]
    write_cine(src / "labels/p0_sax.nii.gz", labels, affine)
    same = {"sax_spacing": (1.5, 1.5, 8.0), "labels": "labels/{id}_{view}.nii.gz"}
    report = run(src, store, sax_size=(20, 20, 5), **same)
    info = CineStore(store).info("p0", "sax")
    kept = sum(np.count_nonzero(CineStore(store).read_labels("p0", "sax", t)) for t in (0, 3))
    (failure,) = report.failures
    percent = 100 * (1 - kept / np.count_nonzero(labels))
    assert failure.reason == (
        f"the crop to 20 x 20 x 5 voxels cuts off {percent:.3g} % of the labelled volume; 1 of its 3 labelled frames "
        "have no label left and count as unlabelled (the first is frame 2) (labels)"
    )
    assert info.labels.frames == (0, 3) and info.labels.values == (2, 3) and report.exit_code == 1
    said = (f"labels are cut off by the crop in 1 study (share of the labelled volume lost: p0 sax {percent:.3g} %). "
            "To keep them, prepare with a larger --sax-size or --lax-size")  # fmt: skip
    assert said in str(report)
    second = run(src, store, sax_size=(20, 20, 5), **same)
    assert second.unchanged == 1 and said in str(second)  # told of the next time, too
    whole = run(src, tmp_path / "whole", sax_size=(60, 60, 5), **same)
    assert whole.failures == [] and whole.cut == [] and "crop" not in str(whole)


def test_a_crop_that_leaves_labels_of_every_frame_is_no_failure(tmp_path):
    """What it cuts off is told of the most affected views, every time."""
    src, same = tmp_path / "src", {"sax_spacing": (1.5, 1.5, 8.0), "labels": "labels/{id}_{view}.nii.gz"}
    for n in range(8):
        write_study(src, f"p{n}", views=("sax",))
        labels, affine = drawn(src, f"p{n}")
        write_cine(src / f"labels/p{n}_sax.nii.gz", labels, affine)
    for _ in range(2):
        report = run(src, tmp_path / "store", sax_size=(8, 8, 5), **same)
        assert report.exit_code == 0 and report.failures == [] and report.labelled == 8
        assert "labels are cut off by the crop in 8 studies" in str(report) and str(report).count(" %, ") == 6
        assert ", ...). To keep them" in str(report)


def test_labels_of_which_the_crop_leaves_none(tmp_path):
    src, store = tmp_path / "src", tmp_path / "store"
    write_study(src, "p0", views=("sax",))
    labels, affine = drawn(src, "p0")
    labels[:] = 0
    labels[0, 0], labels[-1, -1] = 3, 3  # the middle of both has none
    write_cine(src / "labels/p0_sax.nii.gz", labels, affine)
    for _ in range(2):
        report = run(src, store, sax_size=(20, 20, 5), labels="labels/{id}_{view}.nii.gz")
        assert [f.reason.partition(";")[0] for f in report.failures] == [
            "the crop to 20 x 20 x 4 voxels cuts off 100 % of the labelled volume"
        ]
    assert report.labelled == 0 and CineStore(store).read_frame("p0", "sax", 0).any()
