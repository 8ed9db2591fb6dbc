"""Cohorts of synthetic studies on disk: NIfTI headers, labels, truth, and what is refused."""

import csv
import json

import nibabel
import numpy as np
import pytest

from cinema_fast.common.views import VIEWS
from cinema_fast.phantom.cohort import write_cohort
from cinema_fast.phantom.figure import draw_phantom
from cinema_fast.phantom.study import make_study

SMALL = {"n_frames": 4, "in_plane_mm": 4.0, "n_slices": 4}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "new"
    return folder, write_cohort(folder, 3, 21, **SMALL)


def test_files_and_ids(cohort):
    folder, ids = cohort
    assert ids == ["heart-000000", "heart-000001", "heart-000002"]
    names = {f"{i}_{view}.nii.gz" for i in ids for view in VIEWS}
    assert {p.name for p in folder.iterdir()} == names | {
        "labels", "truth.json", "truth.csv", "landmarks.csv", "rv_insertions.csv",
    }  # fmt: skip
    assert {p.name for p in (folder / "labels").iterdir()} == names


def test_nifti_round_trip(cohort):
    folder, _ = cohort
    study = make_study((21, 2), **SMALL)
    for view in VIEWS:
        name = f"heart-000002_{view}.nii.gz"
        for path, voxels, kind in (
            (folder / name, study.images[view], np.int16),
            (folder / "labels" / name, study.labels[view], np.uint8),
        ):
            nifti = nibabel.load(path)
            assert nifti.get_data_dtype() == kind and nifti.ndim == 4 and nifti.shape[3] == 4
            expected = voxels if view == "sax" else voxels[:, :, None]
            np.testing.assert_array_equal(np.asanyarray(nifti.dataobj), expected)
            np.testing.assert_allclose(nifti.affine, study.affines[view], atol=1e-3)
            np.testing.assert_allclose(nifti.get_qform(), study.affines[view], atol=1e-3)
            assert nifti.header.get_xyzt_units() == ("mm", "sec")
            zooms = (*study.spacing_mm[view], study.frame_time_ms / 1000)
            np.testing.assert_allclose(nifti.header.get_zooms(), zooms, rtol=1e-5)


def test_truth_tells_what_the_labels_show(cohort):
    folder, ids = cohort
    document = json.loads((folder / "truth.json").read_text())
    with (folder / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("study") for row in rows] == list(document["studies"])
    for row, study in zip(rows, document["studies"].values()):
        assert {"disease", "ef", "edv_ml", "age"} < row.keys() and row == {key: str(study[key]) for key in row}
    assert document["format"] == "cinema-fast phantom" and list(document["studies"]) == ids
    for i, name in enumerate(ids):
        truth = document["studies"][name]
        assert truth == json.loads(json.dumps(make_study((21, i), **SMALL).truth()))
        assert truth["ef"] == pytest.approx(100 * (truth["edv_ml"] - truth["esv_ml"]) / truth["edv_ml"])
        assert truth["frame_time_ms"] * 4 == pytest.approx(60e3 / truth["heart_rate"])
        assert np.shape(truth["landmarks"]["lax_4c"]) == (4, 3, 2)
        label = nibabel.load(folder / "labels" / f"{name}_lax_4c.nii.gz").get_fdata()[:, :, 0, 0]
        x, y = np.mean(truth["landmarks"]["lax_4c"][0], axis=0)  # between annulus and apex is the cavity
        assert label[round(x), round(y)] == 3
    assert len({document["studies"][name]["edv_ml"] for name in ids}) == 3


def test_a_study_depends_on_its_number_only(cohort, tmp_path):
    folder, _ = cohort
    write_cohort(tmp_path, 2, 21, workers=2, **SMALL)
    for path in tmp_path.glob("*_sax.nii.gz"):
        np.testing.assert_array_equal(
            np.asanyarray(nibabel.load(path).dataobj), np.asanyarray(nibabel.load(folder / path.name).dataobj)
        )
    truth = [json.loads((f / "truth.json").read_text())["studies"] for f in (folder, tmp_path)]
    assert truth[1].items() <= truth[0].items()


def test_refuses_a_folder_that_is_not_empty(cohort):
    folder, _ = cohort
    before = (folder / "truth.json").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty: choose another folder"):
        write_cohort(folder, 1, 0, **SMALL)
    with pytest.raises(FileExistsError, match=r"truth\.json"):
        write_cohort(folder / "truth.json", 1, 0, **SMALL)
    assert (folder / "truth.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "word", "n", "options"),
    [
        (ValueError, "n must be at least 1, got 0", 0, {}),
        (ValueError, "workers must be at least 1, got 0", 1, {"workers": 0}),
        (ValueError, "n_frames", 1, {"n_frames": 1}),
        (TypeError, "frames", 1, {"frames": 20}),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, error, word, n, options):
    with pytest.raises(error, match=word):
        write_cohort(tmp_path / "new", n, 0, **options)
    assert not (tmp_path / "new").exists()


def test_picture(tmp_path):
    from PIL import Image

    draw_phantom(make_study(1, **SMALL), tmp_path / "heart.png")
    with Image.open(tmp_path / "heart.png") as picture:
        assert picture.width > 900 and len(np.unique(np.asarray(picture.convert("L")))) > 50
