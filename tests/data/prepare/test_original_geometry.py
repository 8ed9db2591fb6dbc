"""Label maps and points brought back to the scan: rotated, anisotropic, cropped, flipped, of frames, of DICOM."""

import dicom_files
import nibabel as nib
import numpy as np
import pytest
from cine_files import BALL, grid_mm, write_cine
from nibabel.affines import apply_affine
from prediction_cases import OBLIQUE, assert_aligned, heart_cine, oblique, predict_as, segmenter, truth_of, write_heart
from scipy.ndimage import binary_dilation, map_coordinates

from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.prepare.geometry import plan_resampling
from cinema_fast.data.prepare.original_geometry import label_map, original_points, plan_return, voxel_size

SHAPE = OBLIQUE[0]
# Pixels of 1.2 and 1.6 mm become 1 mm and come back, slices stay: outlines move by less than half a pixel, to either
# side alike, and a tenth of that shift would show (the cavity's disc has 400 voxels).
FINE = {"middle": 0.05, "volume": 0.01}
# With slices of 10 mm for those of 8, a structure may end half a slice off; the cavity has 4 or 5.
COARSE = {"middle": 0.5, "volume": 0.25}


@pytest.mark.parametrize("flip", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_a_rotated_anisotropic_study_comes_back_aligned(monkeypatch, tmp_path, flip):
    affine = oblique(flip)
    truth = write_heart(tmp_path / "src", affine)
    for name, run, allowed in (("fine", segmenter(), FINE),
                               ("coarse", segmenter((64, 64, 8), spacing=(2.0, 2.0, 10.0)), COARSE)):  # fmt: skip
        report = predict_as(monkeypatch, run, tmp_path / "src", tmp_path / name)
        assert report.exit_code == 0 and not report.cut_off, report
        image = nib.load(tmp_path / name / "studies" / "heart" / "sax_labels.nii.gz")
        assert_aligned(np.asarray(image.dataobj), truth, **allowed)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_outside_of_the_crop_is_background_and_inside_is_aligned(monkeypatch, tmp_path):
    """The crop, of 40 mm in all directions, goes through the heart of 60 mm."""
    affine = oblique()
    truth = write_heart(tmp_path / "src", affine)
    run = segmenter(sax=(40, 40, 5))
    report = predict_as(monkeypatch, run, tmp_path / "src", tmp_path / "out")
    found = np.asarray(nib.load(tmp_path / "out" / "studies" / "heart" / "sax_labels.nii.gz").dataobj)
    stored = plan_resampling(SHAPE, affine, affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + affine[:3, 3],
                             spacing=(1.0, 1.0, 8.0), size=(40, 40, 5)).affine  # fmt: skip
    index = apply_affine(np.linalg.inv(stored), grid_mm(SHAPE, affine))  # of every voxel, in the stored grid
    rim = 0.5 + 2e-3  # a voxel whose centre is on the very edge is inside
    inside = np.all((index > -rim) & (index < np.array([40, 40, 5]) - 1 + rim), axis=-1)[..., None]
    assert not (found * ~inside).any() and 0.05 < inside.mean() < 0.5 and (truth * ~inside).any()
    assert_aligned(found * inside, truth * inside, **FINE)
    edge = inside & binary_dilation(~inside, np.ones((3, 3, 3, 1)))
    assert report.cut_off == {"heart": "sax: MYO, LV"} and set(found[edge[..., 0]].ravel()) == {0, 1, 2}


def test_dicom_comes_back_to_the_affine_of_the_reader(monkeypatch, tmp_path):
    affine = oblique((1,))
    cine, truth = heart_cine(SHAPE, affine)
    paths = dicom_files.write_series(tmp_path / "src" / "a", cine, affine, frame_ms=50.0)
    report = predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "out")
    assert report.exit_code == 0, report
    (file,) = (tmp_path / "out").glob("studies/P-1_*/sax_labels.nii.gz")
    image = nib.load(file)
    np.testing.assert_allclose(image.affine, read_dicom_cine(paths, stack=True).affine, atol=1e-4)
    assert image.header.get_xyzt_units() == ("mm", "sec") and image.header["sform_code"] == 1
    assert image.header.get_zooms()[3] == pytest.approx(0.05)
    # the reader may turn the stack round: compared where the voxels are
    right = np.stack([truth_of(image.shape[:3], image.affine, t) for t in range(4)], axis=-1)
    assert right.sum() == truth.sum()
    assert_aligned(np.asarray(image.dataobj), right, **FINE)


def test_the_header_is_that_of_the_source(monkeypatch, tmp_path):
    affine = oblique()
    cine, _ = heart_cine(SHAPE, affine)
    for kind, order in ((nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<")):
        image = kind(cine, affine, kind.header_class(endianness=order))
        image.set_sform(affine, code=3)
        image.set_qform(affine, code=2)
        image.header.set_xyzt_units("mm", "msec")
        image.header["pixdim"][4] = 31.5
        image.header["descrip"] = b"Name of a patient"
        src, out = (tmp_path / f"{part}{kind.__name__}{order == '<'}" for part in ("src", "out"))
        src.mkdir()
        image.to_filename(src / "a_sax.nii.gz")
        predict_as(monkeypatch, segmenter(), src, out)
        written = out / "studies" / "a" / "sax_labels.nii.gz"
        ours, source = nib.load(written), nib.load(src / "a_sax.nii.gz")
        assert type(ours) is kind and ours.shape == source.shape and b"patient" not in ours.to_bytes()
        for field in ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
                      "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):  # fmt: skip
            np.testing.assert_array_equal(ours.header[field], source.header[field])


def test_frames_in_files_of_their_own_come_back_as_files(monkeypatch, tmp_path):
    affine, truth = oblique(), []
    for t, name in ((0, "ed"), (2, "es")):
        labels = truth_of(SHAPE, affine, t)
        truth.append(labels)
        write_cine(tmp_path / "src" / f"a_sax_{name}.nii.gz", 300 * labels.astype(np.int16), affine)
    predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "out", pattern="{id}_{view}_{frame}.nii.gz")
    for name, right in zip(("ed", "es"), truth):
        image = nib.load(tmp_path / "out" / "studies" / "a" / f"sax_{name}_labels.nii.gz")
        assert image.shape == SHAPE
        assert_aligned(np.asarray(image.dataobj)[..., None], right[..., None], **FINE)


def test_a_single_slice_comes_back_aligned(monkeypatch, tmp_path):
    shape = (70, 60, 1)
    affine = oblique((0,), shape, (1.3, 1.3, 6.0), (1.0, 0.3, 0.2))
    truth = write_heart(tmp_path / "src", affine, shape, "a_lax_4c.nii.gz")
    predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "out")
    found = np.asarray(nib.load(tmp_path / "out" / "studies" / "a" / "lax_4c_labels.nii.gz").dataobj)
    assert_aligned(found, truth, **FINE)


def test_return_agrees_with_interpolation_by_scipy():
    """Smooth shares at random, of any two grids with common axes."""
    rng = np.random.default_rng(0)
    affine = oblique((2,), (12, 14, 5))
    plan = plan_resampling((12, 14, 5), affine, BALL, spacing=(2.1, 1.1, 10.0), size=(9, 10, 3))
    shares = rng.random((3, *plan.shape), dtype=np.float32)
    back = plan_return(plan.shape, plan.affine, (12, 14, 5), affine)
    index = apply_affine(np.linalg.inv(plan.affine), grid_mm((12, 14, 5), affine))
    inside = np.all((index > -0.5) & (index < np.array(plan.shape) - 0.5), axis=-1)
    right = np.stack([map_coordinates(s, np.moveaxis(index, -1, 0), order=1, mode="nearest") for s in shares]) * inside
    for ours, scipys in zip(map(back, shares), right):
        np.testing.assert_allclose(ours, scipys, atol=2e-4)
    np.testing.assert_array_equal(label_map(shares, back)[inside], right.argmax(0)[inside])
    assert 0 < inside.sum() < inside.size and not label_map(shares, back)[~inside].any()
    turned = plan.affine @ np.diag([1.0, 1.0, 1.0, 1.0])[[1, 0, 2, 3]]
    with pytest.raises(ValueError, match="rotated against the scan"):
        plan_return(plan.shape, turned, (12, 14, 5), affine)


def test_points_and_volume_of_a_voxel():
    affine, rng = oblique((0, 2)), np.random.default_rng(1)
    stored = plan_resampling(SHAPE, affine, BALL, spacing=(1.0, 1.0), size=(40, 40)).affine
    pixels = rng.uniform(0, 40, (5, 2, 2))
    voxels, mm = original_points(pixels, stored, affine)
    np.testing.assert_allclose(apply_affine(affine, voxels), mm, atol=1e-9)
    np.testing.assert_allclose(apply_affine(np.linalg.inv(stored), mm)[..., :2], pixels, atol=1e-9)
    np.testing.assert_allclose(voxels[..., 2], 0, atol=1e-9)
    assert voxel_size(affine) == pytest.approx(OBLIQUE[1])
    sheared = affine.copy()
    sheared[:3, 2] += 3 * affine[:3, 0]  # slices that lie beside each other
    assert np.prod(voxel_size(sheared)) == pytest.approx(np.prod(OBLIQUE[1]))


def test_series_that_no_rule_takes_are_reported(monkeypatch, tmp_path):
    affine = oblique()
    cine, _ = heart_cine(SHAPE, affine)
    for n, description in enumerate(("cine SAX", "localizer")):
        options = {"description": description, "study": f"1.2.{n}"}
        dicom_files.write_series(tmp_path / f"src/{n}", cine[..., :2], affine, **options)
    report = predict_as(monkeypatch, segmenter(), tmp_path / "src", tmp_path / "out", format="dicom")
    assert report.studies == 1 and "left out (localizer): 1 series 'localizer'" in str(report)
