"""The same pixels and results however a file stores its axes; nibabel's own reorientation stores them otherwise."""

import json
from itertools import permutations, product

import dicom_files
import nibabel as nib
import numpy as np
import pytest
import torch
from cine_files import BALL, affine_of, ball_cine, write_cine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from marks import slow
from nibabel.orientations import apply_orientation, inv_ornt_aff
from prediction_cases import STRUCTURES, Brightest, heart_cine, lines_of, oblique, predict_as, stand_in
from torch import nn

from cinema_fast.common.views import VIEWS
from cinema_fast.data.formats.nifti import read_nifti
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store import orientation
from cinema_fast.data.store.check import UNLISTED, check_store
from cinema_fast.data.store.inspect_store import describe
from cinema_fast.data.store.store import CineStore, write_index
from cinema_fast.tasks.landmarks import Landmarks
from cinema_fast.tasks.segmentation import Segmentation

STORAGES = [(order, signs) for order in permutations((0, 1)) for signs in product((1, -1), repeat=3)]
SHAPE = (90, 70, 9)
GRID = {"sax_size": (96, 80, 9), "sax_spacing": (1.0, 1.0, 8.0), "lax_size": (64, 64), "lax_spacing": (1.5, 1.5)}


def stored_as(data: np.ndarray, affine: np.ndarray, order, signs) -> tuple[np.ndarray, np.ndarray]:
    """Data (X, Y, Z, ...) and affine of the same image with its axes in another order and direction."""
    ornt = np.array([*zip(order, signs), (2, signs[2])])
    return apply_orientation(data, ornt), affine @ inv_ornt_aff(ornt, data.shape[:3])


def pixels(src, store, **options) -> dict[str, np.ndarray]:
    report = prepare(PrepareConfig(src, store, workers=1, **GRID, **options), progress=False)
    assert report.failures == []
    opened = CineStore(store)
    (study,) = opened.ids
    found = {view: opened.read_frames(study, view, range(opened.n_frames(study, view))) for view in opened.views(study)}
    for view in opened.views(study):
        if opened.info(study, view).labels:
            found[f"{view} labels"] = np.stack([opened.read_labels(study, view, t)
                                                for t in opened.info(study, view).labels.frames])
    return found


class Lopsided(nn.Module):
    """Says of a voxel what its brightness is, and where it lies: logits (B, 3, *size) that no mirror leaves alone."""

    def forward(self, images):
        found = {}
        for view, x in images.items():
            ramp = sum(torch.linspace(0, 0.4 * (k + 1), n).view([-1 if d == k else 1 for d in range(x.ndim - 2)])
                       for k, n in enumerate(x.shape[2:]))  # fmt: skip
            levels = torch.tensor([0.0, 0.6, 1.4]).view(1, 3, *[1] * (x.ndim - 2))
            found[view] = -10 * (x + ramp - levels).abs()
        return found


def run_of(task, model, sizes, **made_as):
    return stand_in(task, model, GRID | made_as, sizes)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """A folder of folders 0 to 15 of one study, stored in each of the sixteen ways."""
    folder = tmp_path_factory.mktemp("sixteen")
    affine = oblique(shape=SHAPE)
    cine, labels = heart_cine(SHAPE, affine)
    cine += np.random.default_rng(0).integers(0, 40, cine.shape, dtype=np.int16)
    flat = affine_of((0.8, 0.7, 0.1), (1.4, 1.2, 6.0), BALL, (60, 52, 1))
    lax = ball_cine((60, 52, 1), flat)
    for n, (order, signs) in enumerate(STORAGES):
        write_cine(folder / str(n) / "p_sax.nii.gz", *stored_as(cine, affine, order, signs))
        write_cine(folder / str(n) / "labels/p_sax.nii.gz", *stored_as(labels, affine, order, signs))
        write_cine(folder / str(n) / "p_lax_2c.nii.gz", *stored_as(lax, flat, order, (*signs[:2], 1)))
    return folder


def test_sixteen_ways_to_store_a_study_give_equal_pixels_and_labels(sixteen, tmp_path):
    first = None
    for n in range(len(STORAGES)):
        found = pixels(sixteen / str(n), tmp_path / str(n), labels="labels/{id}_{view}.nii.gz", lv_label=2)
        first = first or found
        assert found.keys() == first.keys() == {"sax", "sax labels", "lax_2c"}
        for name in first:
            np.testing.assert_array_equal(found[name], first[name], err_msg=f"{name} of {STORAGES[n]}")
    # a map that is stored otherwise than its cine is one of the same voxels
    (tmp_path / "mixed/labels").mkdir(parents=True)
    for name, n in (("p_sax.nii.gz", 0), ("p_lax_2c.nii.gz", 0), ("labels/p_sax.nii.gz", 13)):
        (tmp_path / "mixed" / name).symlink_to(sixteen / str(n) / name)
    mixed = pixels(tmp_path / "mixed", tmp_path / "of_mixed", labels="labels/{id}_{view}.nii.gz", lv_label=2)
    np.testing.assert_array_equal(mixed["sax labels"], first["sax labels"])


@pytest.mark.parametrize("every", [5, slow(1)])
def test_sixteen_ways_to_store_a_study_give_equal_predictions(sixteen, tmp_path, monkeypatch, every):
    """Label maps, volumes and landmarks come back to the voxels they belong to, in each file's own geometry."""
    segmenter = run_of(Segmentation(STRUCTURES, ("sax",), "0"), Lopsided(), {"sax": GRID["sax_size"]},
                       orientation="patient")
    marker = run_of(Landmarks(("apex", "b", "c"), "coordinates", ("lax_2c",), {"lax_2c": ("apex", "b", "c")}, "0"),
                    Brightest(), {"lax_2c": GRID["lax_size"]}, orientation="patient")
    first, points = None, None
    for n in range(0, len(STORAGES), every):
        order, signs = STORAGES[n]
        out, src = tmp_path / f"seg{n}", sixteen / str(n)
        assert predict_as(monkeypatch, segmenter, src, out).exit_code == 0
        image = nib.load(out / "studies/p/sax_labels.nii.gz")
        np.testing.assert_allclose(image.affine, nib.load(src / "p_sax.nii.gz").affine, atol=1e-4)
        back, _ = stored_as(np.asarray(image.dataobj), image.affine, np.argsort(order),
                            (*np.take(signs, np.argsort(order)), signs[2]))
        first = back if first is None else first
        assert back.any()
        np.testing.assert_array_equal(back, first, err_msg=str(STORAGES[n]))
        assert (out / "frames.csv").read_text() == (tmp_path / "seg0/frames.csv").read_text()
        assert predict_as(monkeypatch, marker, src, tmp_path / f"mark{n}").exit_code == 0
        lines = lines_of(tmp_path / f"mark{n}/landmarks.csv")
        mm, voxels = (np.array([[float(line[f"{axis}_{unit}"]) for axis in "xyz"] for line in lines])
                      for unit in ("mm", "voxel"))
        points = mm if points is None else points
        np.testing.assert_allclose(mm, points, atol=1e-3)
        own = nib.load(src / "p_lax_2c.nii.gz").affine
        np.testing.assert_allclose(nib.affines.apply_affine(own, voxels), mm, atol=1e-3)
    assert len(np.unique(first)) == 3  # the model tells the sides of its image apart
    assert not (np.array_equal(first, first[::-1]) or np.array_equal(first, first[:, ::-1]))


def test_dicom_gives_the_pixels_of_nifti(tmp_path):
    shape = (64, 56, 6)
    affine = affine_of((0.5, -0.6, 0.4), (1.40625, 1.40625, 9.0), BALL, shape)
    data = ball_cine(shape, affine, n_frames=3)
    dicom_files.write_series(tmp_path / "dicom/sax", data, affine, description="cine_sa")
    mirrored = stored_as(data, affine, (0, 1), (1, -1, 1))  # as dcm2niix writes it
    write_cine(tmp_path / "nifti/p_sax.nii.gz", *mirrored)
    ours, others = (pixels(tmp_path / kind, tmp_path / f"of_{kind}")["sax"].astype(int) for kind in ("nifti", "dicom"))
    assert np.abs(ours - others).max() <= 1 and np.mean(ours != others) <= 1e-4


def test_stores_and_runs_of_earlier_versions_keep_the_axes_of_their_files(sixteen, tmp_path, monkeypatch):
    before = pixels(sixteen / "3", tmp_path / "old", orientation="stored")["sax"]
    # such a store has no word of orientation in its options, as those of earlier versions
    index = json.loads((tmp_path / "old/index.json").read_text())
    assert "orientation" not in index["prepare"]
    (sixteen / "3/q_sax.nii.gz").symlink_to(sixteen / "0/p_sax.nii.gz")
    try:
        for _ in range(2):
            report = prepare(PrepareConfig(sixteen / "3", tmp_path / "old", workers=1, **GRID), progress=False)
            assert report.failures == [] and orientation.AS_STORED_STORE in str(report)
            (tmp_path / "old/index.json").unlink()  # the next time it is told by the studies
    finally:
        (sixteen / "3/q_sax.nii.gz").unlink()
    prepare(PrepareConfig(sixteen / "3", tmp_path / "old", workers=1, **GRID), progress=False)
    both = CineStore(tmp_path / "old")
    stored, other = both.read_frames("p", "sax", range(4)), both.read_frames("q", "sax", range(4))
    np.testing.assert_array_equal(stored, before)
    assert not np.array_equal(stored, other)  # one scan, stored in two ways
    with pytest.raises(ValueError, match=r"orientation='stored' \(now 'patient'\)"):
        prepare(PrepareConfig(sixteen / "3", tmp_path / "old", workers=1, orientation="patient", **GRID))
    assert "  axes: as in the source files" in describe(both)
    run = run_of(Segmentation(STRUCTURES, ("sax",), "0"), Lopsided(), {"sax": GRID["sax_size"]})
    report = predict_as(monkeypatch, run, sixteen / "3", tmp_path / "out")
    assert orientation.AS_STORED_RUN in str(report)
    with pytest.raises(ValueError, match=r"was prepared with --orientation stored, and .* with patient"):
        orientation.check_orientation(both, tmp_path / "run", "patient")


@pytest.mark.parametrize("axes", [(-1, -1, 1), (1, 1, 1)], ids=str)
def test_a_header_without_orientation_is_taken_as_stored_and_reported_once(tmp_path, axes):
    """As ACDC's: axes along the scanner's own."""
    shape, affine = (60, 50, 6), np.diag([*(np.array(axes) * (1.5, 1.5, 9.0)), 1.0])
    affine[:3, 3] = BALL - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    data = ball_cine(shape, affine, 3)
    for name in "ab":
        write_cine(tmp_path / f"src/{name}_sax.nii.gz", data, affine)
    config = PrepareConfig(tmp_path / "src", tmp_path / "store", workers=1, **GRID)
    for _ in range(2):  # a second run, which finds everything there, says it too
        report = str(prepare(config, progress=False))
        assert report.count(orientation.NO_ORIENTATION) == 1 and "2 cines (a sax, b sax): orientation unknown" in report
    config = PrepareConfig(tmp_path / "src", tmp_path / "stored", workers=1, orientation="stored", **GRID)
    assert orientation.NO_ORIENTATION not in str(prepare(config, progress=False))
    pairs = [CineStore(tmp_path / store).read_frames("a", "sax", range(3)) for store in ("store", "stored")]
    np.testing.assert_array_equal(*pairs)


ROTATIONS = arrays(float, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1)


@settings(max_examples=60, deadline=None)
@example(np.array((1.0, 0.0, 1.0, 1.0)), "sax", STORAGES[8])  # two ways that are as near as each other
@example(np.array((1.0, 0.0, 0.0, np.tan(np.pi / 8))), "rvot", STORAGES[10])
@given(ROTATIONS, st.sampled_from([*VIEWS, "rvot"]), st.sampled_from(STORAGES))
def test_arrangements(quaternion, view, storage):
    """Any storage leads to the same directions; arranging moves no voxel in the patient; the inverse leads back."""
    affine = np.eye(4)
    affine[:3, :3] = nib.quaternions.quat2mat(quaternion) * (1.4, 1.1, 8.0)
    affine[:3, 3] = 10, -20, 30
    data = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    other, turned = stored_as(data, affine, *storage)
    found, image = [], []
    for array, matrix in ((data, affine), (other, turned)):
        how = orientation.patient_arrangement(matrix, view)
        found.append(orientation.arranged_affine(matrix, array.shape, how))
        image.append(orientation.arranged(array, how))
        np.testing.assert_array_equal(orientation.arranged(image[-1], orientation.inverse(how)), array)
        at = np.argwhere(array == 17)[0], np.argwhere(image[-1] == 17)[0]
        np.testing.assert_allclose(matrix @ [*at[0], 1], found[-1] @ [*at[1], 1], atol=1e-9)
    np.testing.assert_allclose(found[0][:3, :2], found[1][:3, :2], atol=1e-9)
    if view == "sax":
        np.testing.assert_allclose(found[0], found[1], atol=1e-9)
        np.testing.assert_array_equal(*image)


@settings(max_examples=40, deadline=None)
@given(ROTATIONS, st.sampled_from(STORAGES))
def test_stacks_under_other_names(quaternion, storage):
    """By the plane in the name, as that plane; without one the slices too go towards the left, the back or the feet."""
    affine = np.eye(4)
    affine[:3, :3] = nib.quaternions.quat2mat(quaternion) * (1.4, 1.1, 8.0)
    for view, plane in (("lge_sax", "sax"), ("t1_lax_2c", "lax_2c")):
        how = orientation.patient_arrangement(affine, view, stack=plane == "sax")
        assert how == orientation.patient_arrangement(affine, plane, stack=plane == "sax")
    _, turned = stored_as(np.zeros((4, 5, 3)), affine, *storage)
    found = [orientation.arranged_affine(matrix, (4, 5, 3), orientation.patient_arrangement(matrix, "lge", stack=True))
             for matrix in (affine, turned)]  # fmt: skip
    np.testing.assert_allclose(found[0][:3, :3], found[1][:3, :3], atol=1e-9)
    slices = -found[0][:3, 2]  # towards left, back and feet
    assert slices[np.abs(slices).argmax()] > 0
    alone = orientation.patient_arrangement(affine, "lge")
    assert alone[2] == 3  # the axis of a single slice is not turned


def test_two_chamber_planes_on_both_sides_of_45_degrees_are_not_mirrored(shared):
    """The real study's two, at 52 and 42 degrees from sagittal: by the nearest patient axis they would be."""
    first, second = (read_nifti(shared / f"data/cine/{name}_2ch.nii.gz") for name in ("Se8", "Se9"))
    across = [orientation.arranged_affine(volume.affine, volume.data.shape[:3],
                                          orientation.patient_arrangement(volume.affine, "lax_2c"))[:3, 0]
              for volume in (first, second)]  # fmt: skip
    assert across[0] @ across[1] > 0.9 * 1.40625**2
    assert first.affine[:3, 0] @ second.affine[:3, 0] < 0


def test_an_overwrite_that_was_stopped_mixes_nothing(sixteen, tmp_path):
    """Its index is of the new options already, its studies are still those of before."""
    src = tmp_path / "src"
    src.mkdir()
    for study, storage in (("a", 3), ("b", 13), ("gone", 3)):
        (src / f"{study}_sax.nii.gz").symlink_to(sixteen / f"{storage}/p_sax.nii.gz")
    options = {"workers": 1, **GRID}
    store = tmp_path / "store"
    prepare(PrepareConfig(src, store, orientation="stored", **options), progress=False)
    (src / "gone_sax.nii.gz").unlink()
    new = PrepareConfig(src, store, orientation="patient", **options)
    write_index(store, new.shaping(), {})
    report = prepare(PrepareConfig(src, store, **options), progress=False)
    assert (report.prepared, report.unchanged, CineStore(store).ids) == (2, 0, ["a", "b"])
    (failure,) = report.failures
    assert failure.study == "gone" and "orientation='stored' (now 'patient')" in failure.reason
    opened = CineStore(store)
    np.testing.assert_array_equal(opened.read_frames("a", "sax", range(4)), opened.read_frames("b", "sax", range(4)))
    # and where it is not prepared again, it is found out
    record = json.loads((store / "studies/a/study.json").read_text())
    del record["sax"]["prepare"]["orientation"]
    (store / "studies/a/study.json").write_text(json.dumps(record))
    assert {fault.study: fault.reason for fault in check_store(store, progress=False).faults} == {
        "a": "was prepared with other options than those of the index",
        "gone": UNLISTED}  # fmt: skip


def test_dicom_of_a_transverse_plane_says_how_it_lies(tmp_path):
    """NIfTI of it does not: a program that knows no orientation would write the same."""
    shape, affine = (64, 56, 6), np.diag([-1.4, -1.4, 9.0, 1.0])
    affine[:3, 3] = BALL - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    data = ball_cine(shape, affine, n_frames=3)
    dicom_files.write_series(tmp_path / "dicom/sax", data, affine, description="cine_sa")
    write_cine(tmp_path / "nifti/p_sax.nii.gz", data, affine)
    for kind, told in (("dicom", False), ("nifti", True)):
        report = prepare(PrepareConfig(tmp_path / kind, tmp_path / f"of_{kind}", workers=1, **GRID), progress=False)
        assert report.exit_code == 0 and (orientation.NO_ORIENTATION in str(report)) == told
    (study,) = CineStore(tmp_path / "of_dicom").ids
    assert CineStore(tmp_path / "of_dicom").info(study, "sax").arrangement != (1, 2, 3)
