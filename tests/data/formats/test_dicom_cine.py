"""DICOM files of a view become the array and the affine that they were made from, or a named error."""

import hashlib

import nibabel as nib
import numpy as np
import pytest
from cine_files import affine_of
from dicom_ball import AFFINE, DATA, SHAPE, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_files import save, set_pixels, write_enhanced, write_series
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from cinema_fast.data.formats.cine import CineError, file_sha256
from cinema_fast.data.formats.dicom_cine import read_dicom_cine


def test_single_frame_files_in_any_order(tmp_path):
    paths = write_series(tmp_path, DATA, AFFINE)
    np.random.default_rng(0).shuffle(paths)
    cine = read_dicom_cine(paths, stack=True)
    assert_same(cine)
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert cine.sha256 == hashlib.sha256(digests.encode()).hexdigest() == file_sha256(paths)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda n: np.linalg.norm(n) > 0.3), st.randoms(),
       st.sampled_from(["u1", "u2", "i2"]), st.booleans())
def test_every_orientation_and_order(tmp_path_factory, normal, random, dtype, enhanced):
    folder = tmp_path_factory.mktemp("any")
    affine = affine_of(normal, (1.5, 1.3, 8.0), (3, -40, 20), SHAPE, turn=random.random())
    data = (DATA // 4).astype(dtype)
    if enhanced:
        order = [(z, t) for z in range(4) for t in range(5)]
        random.shuffle(order)
        path = write_enhanced(folder / "a.dcm", data, affine, order=order)
        assert_same(read_dicom_cine([path], stack=True), data, affine, slope=2.0, inter=-5.0)
    else:
        paths = write_series(folder, data, affine)
        random.shuffle(paths)
        assert_same(read_dicom_cine(paths, stack=True), data, affine)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
                                    RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_every_transfer_syntax(tmp_path, syntax):
    data = DATA.astype(np.uint16)
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    assert_same(read_dicom_cine(write_series(tmp_path, data, AFFINE, syntax=syntax), stack=True), data)
    path = write_enhanced(tmp_path / "e.dcm", data, AFFINE, syntax=syntax)
    assert_same(read_dicom_cine([path], stack=True), data, slope=2.0, inter=-5.0)


def test_slices_that_are_series_of_their_own(tmp_path):
    """As scanners write a stack that takes one breath-hold per slice, each with its own length of the cycle."""
    paths = []
    for z in (2, 0, 3, 1):
        affine = AFFINE.copy()
        affine[:3, 3] += z * AFFINE[:3, 2]
        affine[:3, 2] *= 6 / 8  # of a single slice the header knows the thickness, which leaves gaps
        paths += write_series(tmp_path, DATA[:, :, z : z + 1], affine, frame_ms=38.0 + z, number=z)
    assert_same(read_dicom_cine(paths, stack=True), frame_ms=39.5)


def without(*names):
    def change(dataset, z, t):
        for name in names:
            delattr(dataset, name)
    return change


def test_clocks_in_the_order_of_their_worth(tmp_path):
    def acquisition(dataset, z, t):
        del dataset.TriggerTime, dataset.InstanceNumber
        dataset.AcquisitionNumber, dataset.NominalInterval = 10 - t, 900

    def still(dataset, z, t):
        dataset.TriggerTime, dataset.FrameTime = 0.0, 31.0

    numbered = write_series(tmp_path / "n", DATA, AFFINE, change=without("TriggerTime"))
    assert_same(read_dicom_cine(numbered, stack=True), frame_ms=None)
    assert_same(read_dicom_cine(write_series(tmp_path / "s", DATA, AFFINE, change=still), stack=True), frame_ms=31.0)
    backwards = write_series(tmp_path / "a", DATA, AFFINE, change=acquisition)
    assert_same(read_dicom_cine(backwards, stack=True), DATA[..., ::-1], frame_ms=180.0)
    unordered = write_series(tmp_path / "u", DATA, AFFINE, change=without("TriggerTime", "InstanceNumber"))
    with pytest.raises(CineError, match="the order of the frames is unknown"):
        read_dicom_cine(unordered, stack=True)


def test_rescaling_of_each_slice_and_bits_beside_the_stored_ones(tmp_path):
    def change(dataset, z, t):
        set_pixels(dataset, [((DATA[:, :, z, t].T.astype(np.uint16) & 0x3FF) << 2) | 0xF001])
        dataset.BitsStored, dataset.HighBit = 10, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = z + 1, -z

    cine = read_dicom_cine(write_series(tmp_path, DATA, AFFINE, change=change), stack=True)
    np.testing.assert_array_equal(cine.frame(3), (DATA[..., 3] & 0x3FF) * np.arange(1, 5) - np.arange(4))


def spoilt(tmp_path, kind):
    """Paths of a stack with one thing wrong."""
    def change(dataset, z, t):
        at = (z, t) == (2, 3)
        if kind == "rows" and at:
            set_pixels(dataset, [np.ones((36, 41), np.int16)])
        elif kind == "spacing" and at:
            dataset.PixelSpacing = [1.3, 1.7]
        elif kind == "tilted" and at:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        elif kind == "skew" and at:
            dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
        elif kind == "same time" and t == 3:
            dataset.TriggerTime = 80.0
        elif kind == "phases":
            dataset.CardiacNumberOfImages = 6
        elif kind == "no position" and at:
            del dataset.ImagePositionPatient
        elif kind == "uneven" and z == 3:
            dataset.ImagePositionPatient = np.add(dataset.ImagePositionPatient, [0, 0, 8]).round(5).tolist()
        elif kind == "aside" and at:
            across = np.array(dataset.ImageOrientationPatient[:3])
            dataset.ImagePositionPatient = (np.array(dataset.ImagePositionPatient) + 5 * across).round(5).tolist()
        elif kind == "colour" and at:
            dataset.SamplesPerPixel = 3
        elif kind == "inverse" and at:
            dataset.PhotometricInterpretation = "MONOCHROME1"
        elif kind == "bits" and at:
            dataset.BitsAllocated = 12
        elif kind == "short" and at:
            dataset.PixelData = dataset.PixelData[:-100]
        elif kind == "nothing" and at:
            del dataset.PixelData
        elif kind == "huge" and at:
            dataset.NumberOfFrames = 2_000_000_000
        elif kind == "nan" and at:
            dataset.RescaleSlope = float("nan")

    return write_series(tmp_path, DATA, AFFINE, change=change)


@pytest.mark.parametrize(("kind", "reason"), [
    ("rows", "sizes differ: 41 x 36 pixels, in .* 40 x 36"), ("spacing", r"spacing \[1.3, 1.7\] differs"),
    ("tilted", "orientation .* differs"), ("skew", "not a pair of orthogonal unit vectors"),
    ("same time", "taken more than once: two of its images have the trigger 80"),
    ("phases", "frames are missing: 5 images a slice, the header says 6"), ("no position", "no position, orientation"),
    ("uneven", "slices are missing or unevenly spaced: steps of 8.00 to 1[56]"),
    ("aside", "lies 5.0 mm beside the line"),
    ("colour", "expected MONOCHROME2 with one sample"), ("inverse", "pixels are MONOCHROME1"),
    ("bits", "12 bits allocated"), ("short", "2780 bytes of pixels, 1 images of 40 x 36 pixels of 16 bits are 2880"),
    ("nothing", "no pixels"), ("huge", "claims 2000000000 images"), ("nan", "RescaleSlope is nan"),
])  # fmt: skip
def test_stack_with_one_thing_wrong_is_refused(tmp_path, kind, reason):
    with pytest.raises(CineError, match=reason) as caught:
        read_dicom_cine(spoilt(tmp_path, kind), stack=True)
    assert caught.value.path.parent == tmp_path


def test_missing_and_repeated_files_are_named(tmp_path):
    paths = write_series(tmp_path / "a", DATA, AFFINE)  # t major: z fastest
    for without_them, reason in (
        ([6], "frames are missing: slice 3 of 4 has 4 images, most have 5"),
        (range(1, 20, 4), "slices are missing or unevenly spaced: steps of 8.00 to 16.00 mm, the longest after sl"),
        (range(8, 12), "frames are missing: 80 ms pass after trigger time 40 ms, 40 between others"),
        (range(4, 20), "not a cine: one image of each of 4 slices"),
    ):
        with pytest.raises(CineError, match=reason):
            read_dicom_cine([path for n, path in enumerate(paths) if n not in without_them], stack=True)
    again = write_series(tmp_path / "b", DATA[:, :, :1], AFFINE, number=2)
    with pytest.raises(CineError, match="one slice was taken more than once: slice 1 of 4 has 10 images, most have 5"):
        read_dicom_cine(paths + again, stack=True)
    with pytest.raises(CineError, match=r"a long-axis view has one slice.*this one has 4"):
        read_dicom_cine(paths, stack=False)
    (tmp_path / "a/gone").mkdir()
    with pytest.raises(CineError, match="cannot be read"):
        read_dicom_cine([tmp_path / "a/gone"], stack=True)


def test_enhanced_file_that_describes_other_images_than_it_has(tmp_path):
    def fewer(dataset):
        dataset.NumberOfFrames = 19

    path = write_enhanced(tmp_path / "e.dcm", DATA, AFFINE, change=fewer)
    with pytest.raises(CineError, match=r"claims 19 images \(NumberOfFrames\) and describes 20"):
        read_dicom_cine([path], stack=True)


def test_multi_frame_file_without_functional_groups(tmp_path):
    """Its images lie at one place, one after the other in time."""
    dataset = dcmread(write_series(tmp_path, DATA[:, :, :1], AFFINE)[0])
    del dataset.TriggerTime
    dataset.NumberOfFrames, dataset.FrameTime = 5, 33.0
    set_pixels(dataset, [DATA[:, :, 0, t].T for t in range(5)])
    assert_same(read_dicom_cine([save(dataset, tmp_path / "m.dcm")], stack=False), DATA[:, :, :1], frame_ms=33.0)


def test_real_series_is_the_slice_of_the_real_nifti(shared):
    paths = sorted((shared / "data/cine/dicom_Se11_slim").iterdir())
    cine = read_dicom_cine(paths, stack=True)
    image = nib.load(shared / "data/cine/sax_4d_6slices.nii.gz")
    pixels = np.asanyarray(image.dataobj)[:, :, 5]
    assert cine.shape == (256, 208, 1) and cine.frame_time_ms == 34.52
    for t in range(25):
        np.testing.assert_array_equal(cine.frame(t)[..., 0], pixels[..., t])
    np.testing.assert_allclose(cine.affine[:, :2], image.affine[:, :2], atol=1e-5)
    np.testing.assert_allclose(cine.affine[:3, 3], (image.affine @ [0, 0, 5, 1])[:3], atol=1e-3)
    direction = cine.affine[:3, 2] / np.linalg.norm(cine.affine[:3, 2])
    np.testing.assert_allclose(direction, image.affine[:3, 2] / np.linalg.norm(image.affine[:3, 2]), atol=1e-4)
