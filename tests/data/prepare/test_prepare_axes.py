"""Axes in another order than (X, Y, Z, T) are refused by name and reason, whatever the cine; true ones never are."""

from itertools import permutations

import nibabel as nib
import numpy as np
import pytest
from cine_files import write_cine
from marks import slow
from prepared import run

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.phantom.study import make_study

WHY = ("the time axis is not last", "axes in the wrong order", "has one slice", "not a cine: shape (")
IN_ORDER = ((0, 1, 2, 3), (1, 0, 2, 3))  # an image lying on its side is an image


def refused(path, data, affine, *, stack: bool) -> set[tuple[int, ...]]:
    """The orders of axes in which a cine (X, Y, Z, T) is refused, the header staying as it was."""
    found = set()
    for order in permutations(range(4)):
        write_cine(path, data.transpose(order), affine)
        try:
            read_cine(path, stack=stack)
        except CineError as err:
            assert err.path == path and any(part in err.reason for part in WHY)
            found.add(order)
    return found


EVERY_OTHER = {order for order in permutations(range(4)) if order not in IN_ORDER}


@pytest.mark.parametrize("n_frames", [2, 5, slow(25), slow(70)])
@pytest.mark.parametrize("view", ["sax", "lax_3c"])
def test_phantom(tmp_path, view, n_frames):
    study = make_study(n_frames, n_frames=n_frames, in_plane_mm=2.4, n_slices=6)
    data = study.images[view].reshape(*study.images[view].shape[:2], -1, n_frames).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 0.1 * data.std(), data.shape)
    for cine in (data, data + noise.astype(np.int16)):
        assert refused(tmp_path / "cine.nii", cine, study.affines[view], stack=view == "sax") == EVERY_OTHER


@pytest.mark.parametrize("view", ["sax", "lax_3c"])
def test_in_plane_axes_of_a_phantom_in_heavy_noise(tmp_path, view):
    """Where noise makes neighbours on every axis differ almost alike, the true order still passes, no other one does
    that puts the time in plane (time in the place of the slices shows only where slices differ)."""
    study = make_study(1, n_frames=40, in_plane_mm=2.4, n_slices=6)
    data = study.images[view].reshape(*study.images[view].shape[:2], -1, 40)
    data = (data + np.random.default_rng(0).normal(0, data.std(), data.shape)).astype(np.int16)
    found = refused(tmp_path / "cine.nii", data, study.affines[view], stack=view == "sax")
    assert found | {(0, 1, 3, 2), (1, 0, 3, 2)} == EVERY_OTHER


def test_hardly_moving_heart(tmp_path):
    study = make_study(2, n_frames=30, in_plane_mm=2.4, n_slices=6)
    still = np.repeat(study.images["lax_2c"][:, :, None, :1], 30, axis=3).astype(np.float32)
    still += np.random.default_rng(0).normal(0, 0.01 * still.std(), still.shape)
    assert refused(tmp_path / "cine.nii", still, study.affines["lax_2c"], stack=False) == EVERY_OTHER
    frozen = np.repeat(still[..., :1], 30, axis=3)
    assert not set(IN_ORDER) & refused(tmp_path / "cine.nii", frozen, study.affines["lax_2c"], stack=False)


def test_more_frames_than_pixels_is_a_cine_where_time_is_smoothest(tmp_path):
    study = make_study(3, n_frames=100, in_plane_mm=1.8, n_slices=2)
    cropped = study.images["lax_4c"][40:110, 50:120, None].astype(np.int16)
    assert refused(tmp_path / "cine.nii", cropped, study.affines["lax_4c"], stack=False) == EVERY_OTHER


@pytest.mark.parametrize("name", ["sax_4d_6slices", "Se6_4ch_or_3ch", "Se7_4ch_or_3ch", "Se8_2ch", "Se10_rvot"])
def test_real_cine(shared, tmp_path, name):
    image = nib.load(shared / f"data/cine/{name}.nii.gz")
    data, stack = np.asarray(image.dataobj), name.startswith("sax")
    for n_frames in (2, 3, 5, 25):
        frames = np.arange(n_frames) * 25 // n_frames
        path = write_cine(tmp_path / "cine.nii", data[..., frames], image.affine)
        assert read_cine(path, stack=stack).n_frames == n_frames
    assert refused(tmp_path / "cine.nii", data, image.affine, stack=stack) == EVERY_OTHER


def test_real_end_diastole_and_end_systole_in_one_file(shared, tmp_path):
    """Two frames that differ as much as two can: three times as much as neighbouring pixels."""
    for name in ("acdc_sax", "mnms_sax", "mnms2_sax", "mnms2_lax_4c"):
        first, last = (nib.load(shared / f"data/cmr/{name}_{frame}.nii.gz") for frame in ("ed", "es"))
        pair = np.stack([np.asarray(image.dataobj).reshape(*first.shape[:2], -1) for image in (first, last)], axis=-1)
        write_cine(tmp_path / "cine.nii", pair, first.affine)
        assert read_cine(tmp_path / "cine.nii", stack="sax" in name).n_frames == 2


def test_prepare_reports_time_in_the_place_of_x_and_goes_on(tmp_path):
    study = make_study(4, n_frames=20, in_plane_mm=2.4, n_slices=6)
    for view, axis in (("sax", 0), ("lax_2c", 1), ("lax_4c", None)):
        data = study.images[view].reshape(*study.images[view].shape[:2], -1, 20).astype(np.int16)
        data = data if axis is None else np.swapaxes(data, axis, 3)
        write_cine(tmp_path / f"src/p_{view}.nii.gz", data, study.affines[view])
    report = run(tmp_path / "src", tmp_path / "store")
    assert (report.prepared, report.exit_code) == (1, 1)
    reasons = {failure.file: failure.reason for failure in report.failures}
    assert reasons.keys() == {"p_sax.nii.gz", "p_lax_2c.nii.gz"}
    assert all(reason.startswith("the time axis is not last: shape (") for reason in reasons.values())
