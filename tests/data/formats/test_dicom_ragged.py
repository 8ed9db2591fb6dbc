"""Of a ragged stack of DICOM slices the longest regular run is read, and what was left out is said."""

import numpy as np
import pytest
from cine_files import affine_of, ball_cine
from dicom_ball import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_files import set_pixels, write_series, write_slice

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.formats.dicom_ragged import LONGEST_RUN, LONGEST_RUN_FILLED

SHAPE = (20, 18, 7)
AFFINE = affine_of((0.1, 0.2, 1.0), (3.0, 2.6, 8.0), (0, 0, 20), SHAPE)
DATA = ball_cine(SHAPE, AFFINE, n_frames=5)
NORMAL = np.array([-1, -1, 1]) * AFFINE[:3, 2] / 8  # in DICOM's coordinates
TURNED = [float(v) for v in (np.diag([-1, -1, 1]) @ affine_of(
    (0.1, 0.2, 1.0), (1, 1, 1), (0, 0, 0), SHAPE, turn=0.4)[:3, :2]).T.ravel().round(9)]  # fmt: skip


def change_of(kind, z, t, dataset):
    """Spoil slice 2 (or what follows it) in one way."""
    if kind == "distance" and z > 2:
        dataset.ImagePositionPatient = (dataset.ImagePositionPatient + 4 * NORMAL).round(6).tolist()
    if z != 2:
        return
    if kind == "size":
        set_pixels(dataset, [np.ones((18, 19), np.int16)])
    elif kind == "orientation":
        dataset.ImageOrientationPatient = TURNED
    elif kind == "spacing":
        dataset.PixelSpacing = [3.1, 3.1]
    elif kind == "aside":
        across = np.array(dataset.ImageOrientationPatient[:3])
        dataset.ImagePositionPatient = (np.array(dataset.ImagePositionPatient) + 5 * across).round(6).tolist()


def joined(*lists):
    """The paths of some slices."""
    return [path for paths in lists for one in paths for path in one]


def run_affine(first, step=1):
    affine = AFFINE.copy()
    affine[:3, 3] += first * AFFINE[:3, 2]
    affine[:3, 2] *= step
    return affine


@pytest.mark.parametrize(("kind", "left_out"), [
    ("size", "2 at another distance or beside the line, 1 of another size"),
    ("orientation", "2 at another distance or beside the line, 1 of another orientation"),
    ("spacing", "2 at another distance or beside the line, 1 of another pixel spacing"),
    ("frames", "2 at another distance or beside the line, 1 with another number of frames"),
    ("distance", "3 at another distance or beside the line"), ("aside", "3 at another distance or beside the line"),
])  # fmt: skip
def test_the_longest_run_of_alike_slices(tmp_path, kind, left_out):
    paths = write_series(tmp_path, DATA, AFFINE, change=lambda d, z, t: change_of(kind, z, t, d))  # t major
    if kind == "frames":
        paths = [path for n, path in enumerate(paths) if n not in (2, 9)]
    affine = run_affine(3)
    affine[:3, 3] += 4 * AFFINE[:3, 2] / 8 * (kind == "distance")
    cine = read_dicom_cine(paths, stack=True, ragged=LONGEST_RUN)
    assert_same(cine, DATA[:, :, 3:], affine)
    assert cine.remark == ("of 7 slices the longest run of alike and evenly spaced ones is used, 4; left out: " +
                           left_out)  # fmt: skip
    with pytest.raises(CineError):
        read_dicom_cine(paths, stack=True)


def test_a_regular_stack_is_whole(tmp_path):
    paths = write_series(tmp_path, DATA, AFFINE)
    for rule in (LONGEST_RUN, LONGEST_RUN_FILLED):
        cine = read_dicom_cine(paths[::-1], stack=True, ragged=rule)
        assert_same(cine, DATA, AFFINE)
        assert cine.remark == ""


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Files of each slice, good and with a size of its own."""
    folder = tmp_path_factory.mktemp("slices")
    small = [DATA[: 18 - z] for z in range(7)]
    return [[write_slice(folder / f"{name}{z}", data[z], AFFINE, z) for z in range(7)]
            for name, data in (("good", [DATA] * 7), ("bad", small))]  # fmt: skip


def longest_progression(numbers):
    """(first, step, n) of the longest run of neighbours with one difference, the smallest, then the first."""
    best = (1, 0, 0)
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            if len(set(np.diff(numbers[i : j + 1]))) == 1:
                best = max(best, (j - i + 1, numbers[i] - numbers[i + 1], -i))
    n, step, at = best
    return numbers[-at], -step, n


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=7, max_size=7), st.randoms())
def test_any_slices_may_be_spoilt(slices, bad, random):
    good, paths = [z for z in range(7) if not bad[z]], [p for z in range(7) for p in slices[bad[z]][z]]
    random.shuffle(paths)
    if len(good) < 2:
        with pytest.raises(CineError, match="no stack: of 7 slices no two are alike in size"):
            read_dicom_cine(paths, stack=True, ragged=LONGEST_RUN)
        return
    first, step, n = longest_progression(good)
    cine = read_dicom_cine(paths, stack=True, ragged=LONGEST_RUN)
    assert_same(cine, DATA[:, :, first : first + step * n : step], run_affine(first, step))
    assert (cine.remark == "") == (n == 7)


def test_of_repeated_slices_the_last_counts(tmp_path):
    again = DATA[:, :, ::-1] + 7
    first = [write_slice(tmp_path / f"a{z}", DATA, AFFINE, z) for z in range(7)]
    second = [write_slice(tmp_path / f"b{z}", again, AFFINE, z) for z in (1, 2)]
    third = write_slice(tmp_path / "c1", DATA, AFFINE, 1)
    cine = read_dicom_cine(joined(first, second), stack=True, ragged=LONGEST_RUN)
    expected = DATA.copy()
    expected[:, :, 1:3] = again[:, :, 1:3]
    assert_same(cine, expected, AFFINE)
    assert cine.remark == "2 slices left out, taken again later (the last one counts)"
    assert_same(read_dicom_cine(joined(second, first), stack=True, ragged=LONGEST_RUN), DATA, AFFINE)
    expected[:, :, 1] = DATA[:, :, 1]  # taken three times
    assert_same(read_dicom_cine(joined(first, second, [third]), stack=True, ragged=LONGEST_RUN), expected, AFFINE)
    broken_off = write_slice(tmp_path / "d1", DATA[..., :2], AFFINE, 1)  # no slice of 5 frames: the one before counts
    cine = read_dicom_cine(joined(first, [broken_off]), stack=True, ragged=LONGEST_RUN)
    assert_same(cine, DATA, AFFINE)
    assert cine.remark.endswith("is used, 7; left out: 1 with another number of frames")


@pytest.mark.parametrize("longer", [0.0, 3.0])
def test_a_slice_taken_again_within_its_series(tmp_path, longer):
    """With the same trigger times, or those of a longer beat; instance numbers go on."""
    def phases(dataset, z, t):
        dataset.CardiacNumberOfImages = 5

    options = {"series": "1.2.3.4", "change": phases}
    later = [write_slice(tmp_path, DATA + 7, AFFINE, z, first=10, frame_ms=40.0 + longer, **options) for z in range(3)]
    paths = joined(later, [write_slice(tmp_path, DATA, AFFINE, z, **options) for z in range(3)])
    cine = read_dicom_cine(paths, stack=True, ragged=LONGEST_RUN)
    assert_same(cine, DATA[:, :, :3] + 7, AFFINE, frame_ms=40.0 + longer)
    assert cine.remark == "3 slices left out, taken again later (the last one counts)"


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_the_frame_before_stands_in_for_a_missing_one(tmp_path, missing):
    def phases(dataset, z, t):
        dataset.CardiacNumberOfImages = 5

    paths = write_series(tmp_path, DATA, AFFINE, change=phases)
    lacking = [path for n, path in enumerate(paths) if n != 7 * missing + 5]
    expected = DATA.copy()
    expected[:, :, 5, missing] = expected[:, :, 5, missing - 1]
    cine = read_dicom_cine(lacking, stack=True, ragged=LONGEST_RUN_FILLED)
    assert_same(cine, expected, AFFINE)
    assert cine.remark == "a frame is missing in 1 slice: the frame before stands in"
    assert_same(read_dicom_cine(lacking, stack=True, ragged=LONGEST_RUN), DATA[:, :, :5], AFFINE)
    two = [path for n, path in enumerate(paths) if n not in (7 * missing + 5, 5)]
    cine = read_dicom_cine(two, stack=True, ragged=LONGEST_RUN_FILLED)
    assert_same(cine, DATA[:, :, :5], AFFINE)
    assert cine.remark.endswith("left out: 1 at another distance or beside the line, 1 with another number of frames")
