"""Headers that contradict themselves, or that describe no right-angled grid: refused, or resolved by a stated rule."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from cine_files import BALL, affine_of, ball_cine
from scipy.ndimage import zoom

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare

SHAPE = (70, 66, 6)
AFFINE = affine_of((0.4, -0.5, 0.7), (1.4, 1.4, 9.0), BALL, SHAPE)
SLICE = (70, 66, 1)


def image_of(affine=AFFINE, data=None):
    image = nib.Nifti1Image(ball_cine(SHAPE, AFFINE) if data is None else data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.04
    return image


def sheared(first: int, second: int, degrees: float) -> np.ndarray:
    """The affine with one axis leant towards another, its spacing kept."""
    affine = AFFINE.copy()
    one, other = affine[:3, first].copy(), affine[:3, second].copy()
    turn = np.radians(degrees)
    direction = np.cos(turn) * one / np.linalg.norm(one) + np.sin(turn) * other / np.linalg.norm(other)
    affine[:3, first] = direction * np.linalg.norm(one)
    return affine


@pytest.mark.parametrize(("affine", "told"), [
    (sheared(0, 1, 31), r"sheared: X and Y are at 59 degrees"), (sheared(1, 0, -1.2), "sheared: X and Y are at 88"),
    (sheared(2, 0, 31), r"sheared: the slice direction is at 31 degrees to the normal"),
    (sheared(0, 1, 0.8), None), (sheared(2, 1, 9), None),
])  # fmt: skip
def test_sheared_grids(tmp_path, affine, told):
    nib.save(image_of(affine), tmp_path / "c.nii")
    if told is None:
        read_cine(tmp_path / "c.nii", stack=True)
        return
    with pytest.raises(CineError, match=told):
        read_cine(tmp_path / "c.nii", stack=True)


@pytest.mark.parametrize(("axis", "size"), [(1, 0.7), (3, 8.0)])
def test_voxel_sizes_of_affine_and_pixdim_that_differ_are_refused(tmp_path, axis, size):
    image = image_of()
    image.set_sform(AFFINE, 1)
    image.header["pixdim"][axis] = size
    nib.save(image, tmp_path / "c.nii")
    with pytest.raises(CineError, match=rf"contradicts itself: voxels of 1\.4 x 1\.4 x 9 by its sform, of .*{size:g}"):
        read_cine(tmp_path / "c.nii", stack=True)


def test_one_slice_may_have_any_thickness(tmp_path):
    affine = affine_of((0.4, -0.5, 0.7), (1.4, 1.4, 6.0), BALL, SLICE)
    image = image_of(affine, ball_cine(SLICE, affine))
    image.header["pixdim"][3] = 0.5
    nib.save(image, tmp_path / "c.nii")
    assert read_cine(tmp_path / "c.nii", stack=False).shape == SLICE


def test_of_sform_and_qform_the_sform_is_taken_and_reported(tmp_path):
    image = image_of()
    image.set_qform(AFFINE @ np.diag([1, -1, 1, 1]), 1)
    image.set_sform(AFFINE, 1)
    nib.save(image, tmp_path / "p_sax.nii.gz")
    cine = read_cine(tmp_path / "p_sax.nii.gz", stack=True)
    np.testing.assert_allclose(cine.affine, AFFINE, atol=1e-4)
    assert cine.remark == "its sform and qform differ, by up to 130 pixels: its sform is used"  # 2 x 65, mirrored
    report = prepare(PrepareConfig(tmp_path, tmp_path / "store", workers=1), progress=False)
    assert report.exit_code == 0 and f"1 cine (p sax): {cine.remark}" in str(report)


def test_ed_and_es_interpolated_to_thin_slices_are_a_cine(tmp_path):
    """Neighbours in space are as alike as slices of 0.9 mm are, ED and ES are not; slices in the place of time are
    still found out."""
    ball = ball_cine(SHAPE, AFFINE, n_frames=16).astype(np.float32)
    ball[..., 8] = np.roll(ball[..., 8], 6, axis=0)  # they differ as much as they do at most
    pair = ball[..., [0, 8]]
    fine = zoom(pair, (1, 1, 10, 1), order=1)
    thin = AFFINE @ np.diag([1, 1, 0.1, 1])
    nib.save(image_of(thin, fine.astype(np.int16)), tmp_path / "c.nii")
    assert read_cine(tmp_path / "c.nii", stack=True).shape == (70, 66, 60)
    thick = nib.Nifti1Image(fine.astype(np.int16), AFFINE)  # slices said to be 9 mm apart cannot be that alike
    thick.header.set_xyzt_units("mm", "sec")
    nib.save(thick, tmp_path / "thick.nii")
    with pytest.raises(CineError, match="the time axis is not last"):
        read_cine(tmp_path / "thick.nii", stack=True)


def test_an_unknown_datatype_and_bytes_after_the_compressed_data_are_named(tmp_path):
    nib.save(image_of(), tmp_path / "c.nii")
    content = bytearray((tmp_path / "c.nii").read_bytes())
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(content)) + b"garbage" * 20)
    content[70:72] = (999).to_bytes(2, "little")
    (tmp_path / "c.nii").write_bytes(content)
    with pytest.raises(CineError, match="unreadable NIfTI header: pixels of the unknown datatype 999"):
        read_cine(tmp_path / "c.nii", stack=True)
    with pytest.raises(CineError, match="data that is not gzip follows the compressed data"):
        read_cine(tmp_path / "c.nii.gz", stack=True)


def test_a_qform_that_cannot_be_read_gives_way_to_the_sform(tmp_path):
    """The standard takes a pixdim[0] of 0 for 1; another number than -1 and 1 says nothing of the third axis."""
    for qfac, remark in ((0.0, ""), (0.5, "its qform cannot be read: its sform is used")):
        image = image_of()
        image.set_qform(AFFINE, 1)
        image.set_sform(AFFINE, 1)
        image.header["pixdim"][0] = qfac
        nib.save(image, tmp_path / "c.nii")
        content = bytearray((tmp_path / "c.nii").read_bytes())
        content[76:80] = np.float32(qfac).tobytes()
        (tmp_path / "c.nii").write_bytes(content)
        cine = read_cine(tmp_path / "c.nii", stack=True)
        np.testing.assert_allclose(cine.affine, AFFINE, atol=1e-4)
        assert cine.remark == remark


def test_negative_voxel_sizes_without_an_sform_are_refused(tmp_path):
    image = image_of()
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "c.nii")
    content = bytearray((tmp_path / "c.nii").read_bytes())
    content[80:84] = np.float32(-1.4).tobytes()
    (tmp_path / "c.nii").write_bytes(content)
    with pytest.raises(CineError, match=r"voxels of -1\.4 x 1\.4 x 9 by its pixdim: sizes must be above 0"):
        read_cine(tmp_path / "c.nii", stack=True)


def test_remarks_of_label_files_are_reported(tmp_path):
    cine = image_of()
    nib.save(cine, tmp_path / "p_sax.nii.gz")
    labels = image_of(data=np.full((*SHAPE, 4), 3, np.uint8))
    labels.set_qform(AFFINE @ np.diag([1, -1, 1, 1]), 1)
    labels.set_sform(AFFINE, 1)
    (tmp_path / "labels").mkdir()
    nib.save(labels, tmp_path / "labels/p_sax.nii.gz")
    config = PrepareConfig(tmp_path, tmp_path / "store", workers=1, labels="labels/{id}_{view}.nii.gz",
                           sax_size=(112, 112, 16))  # fmt: skip
    assert "1 cine (p sax): label maps: its sform and qform differ" in str(prepare(config, progress=False))
