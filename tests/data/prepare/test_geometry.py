"""The grid that frames are stored on, against closed forms in scanner mm."""

import numpy as np
import pytest
from cine_files import affine_of, grid_mm
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.data.prepare import geometry

spacings = st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5), st.floats(3.0, 18.0))
normals = st.tuples(*[st.floats(-1, 1)] * 2, st.floats(0.5, 1))


@settings(max_examples=40, deadline=None)
@given(spacings, normals, st.tuples(st.integers(12, 40), st.integers(12, 40), st.integers(1, 12)),
       st.tuples(*[st.floats(-15, 15)] * 3), st.integers(8, 48))
def test_linear_ramp_stays_the_same_ramp_in_mm(spacing, normal, shape, shift, size):
    """Linear interpolation is exact on a linear function, so every stored voxel must hold the function's value at the
    place where the stored affine puts it."""
    affine = affine_of(normal, spacing, (5.0, -3.0, 8.0), shape)
    slope = np.array([0.7, -1.1, 0.4])
    centre = geometry.image_centre(shape, affine) + affine[:3, 0] / spacing[0] * shift[0]
    resample = geometry.plan_resampling(shape, affine, centre, spacing=(1.0, 1.0, 10.0), size=(size, size, 6))
    out = resample((grid_mm(shape, affine) @ slope + 500).astype(np.float32))
    mm = grid_mm(out.shape, resample.affine)
    source = np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3])[..., None])[..., 0]
    among_centres = np.all((source >= 0) & (source <= np.array(shape) - 1), axis=-1)
    np.testing.assert_allclose(out[among_centres], (mm @ slope + 500)[among_centres], atol=0.02)
    off_image = np.any((source < -1e-3 - 0.5) | (source > np.array(shape) - 0.5 + 1e-3), axis=-1)
    assert (out[off_image] == 0).all()
    slices = round(round(shape[2] * spacing[2] / 10, 6))
    assert out.shape == (size, size, min(6, max(1, slices)))
    np.testing.assert_allclose(geometry.spacing_of(resample.affine), (1, 1, 10), rtol=1e-6)


def test_sphere_keeps_its_place_in_mm():
    shape, ball = (60, 50, 9), np.array([3.0, 4.0, -5.0])
    affine = affine_of((0.3, -0.2, 1.0), (1.4, 1.4, 6.0), ball + np.array([7, -5, 4]), shape)
    frame = np.exp(-(np.linalg.norm(grid_mm(shape, affine) - ball, axis=-1) ** 2) / (2 * 9**2)).astype(np.float32)
    resample = geometry.plan_resampling(shape, affine, ball, spacing=(1, 1, 10), size=(64, 64, 16))
    out = resample(frame)
    centroid = (grid_mm(out.shape, resample.affine) * out[..., None]).sum((0, 1, 2)) / out.sum()
    before = (grid_mm(shape, affine) * frame[..., None]).sum((0, 1, 2)) / frame.sum()
    assert np.linalg.norm(centroid - before) < 0.3
    np.testing.assert_allclose(geometry.to_index(resample.affine, ball)[:2], 31.5, atol=0.5 + 1e-6)


def test_image_already_on_the_grid_is_untouched():
    shape = (192, 192, 12)
    affine = np.diag([1.0000001, 0.9999999, 10.000001, 1.0])
    frame = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    resample = geometry.plan_resampling(
        shape, affine, geometry.image_centre(shape, affine), spacing=(1, 1, 10), size=(192, 192, 16))
    np.testing.assert_array_equal(resample(frame), frame)
    np.testing.assert_allclose(resample.affine, affine, atol=1e-4)


def test_grid_begins_at_the_outer_edge_of_the_image():
    """12 pixels of 2 mm are 24 of 1 mm: the first lies half a millimetre, not one, from the image's edge."""
    affine = np.diag([2.0, 2.0, 6.0, 1.0])
    frame = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 12, 5))
    centre = geometry.image_centre(frame.shape, affine)
    resample = geometry.plan_resampling(frame.shape, affine, centre, spacing=(1, 1, 10), size=(24, 24, 16))
    np.testing.assert_allclose(resample.affine[:3, 3], (-0.5, -0.5, 2.0))
    np.testing.assert_allclose(resample(frame)[:, 3, 1], np.clip(np.arange(24) / 2 - 0.25, 0, 11))


def test_small_image_is_padded_around_it_and_a_long_stack_keeps_its_middle():
    frame = np.full((20, 30, 24), 7, np.float32) + np.arange(24, dtype=np.float32)
    affine = np.diag([1.0, 1.0, 10.0, 1.0])
    resample = geometry.plan_resampling(
        frame.shape, affine, geometry.image_centre(frame.shape, affine), spacing=(1, 1, 10), size=(32, 32, 16))
    out = resample(frame)
    expected = np.zeros((32, 32, 16), np.float32)
    expected[6:26, 1:31] = frame[:, :, 4:20]
    np.testing.assert_array_equal(out, expected)
    assert resample(frame - 100)[0, 0, 0] == -93, "padding must be as dark as the darkest tissue"


def test_single_slice_keeps_its_third_axis():
    affine = affine_of((1, 0, 0), (1.4, 1.4, 6.0), (0, 0, 0), (50, 40, 1))
    resample = geometry.plan_resampling((50, 40, 1), affine, np.zeros(3), spacing=(1, 1), size=(64, 64))
    assert resample.shape == (64, 64, 1)
    np.testing.assert_allclose(resample.affine[:3, 2], affine[:3, 2])


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(-40, 40)] * 3), st.floats(0, 6), st.integers(0, 1000))
def test_planes_meet_at_the_known_point(point, turn, seed):
    rng, point = np.random.default_rng(seed), np.array(point)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0].T + rng.normal(0, 0.1, (3, 3))
    grids = {}
    for view, normal, shape in zip(("lax_2c", "lax_4c", "sax"), axes, ((90, 80, 1), (80, 90, 1), (70, 70, 10))):
        affine = affine_of(normal, (1.5, 1.5, 8.0), (0, 0, 0), shape, turn)
        affine[:3, 3] += point + affine[:3, :2] @ rng.uniform(-20, 20, 2)  # anywhere within its own plane
        grids[view] = shape, affine
    np.testing.assert_allclose(geometry.meeting_point(grids), point, atol=1e-6)
    assert geometry.meeting_point({view: grids[view] for view in ("lax_2c", "sax")}) is None
    shape, affine = grids["sax"]
    away = affine.copy()
    away[:3, 3] += affine[:3, 0] * 70
    assert geometry.meeting_point({**grids, "sax": (shape, away)}) is None, "the point is off the short-axis image"
    assert geometry.meeting_point({**grids, "lax_4c": grids["lax_2c"]}) is None, "parallel planes do not meet"


def test_label_centre_is_the_middle_of_the_bounding_box():
    affine = affine_of((0.2, 0.1, 1.0), (1.2, 1.2, 9.0), (3, 4, 5), (20, 20, 5))
    mask = np.zeros((20, 20, 5), bool)
    mask[4:9, 10:17, 1:3] = True
    expected = affine @ [6, 13, 1.5, 1]
    np.testing.assert_allclose(geometry.label_centre(mask, affine), expected[:3])
    assert geometry.label_centre(mask & False, affine) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e5), st.floats(-1e3, 1e3))
def test_window_is_that_of_numpys_percentiles(seed, scale, offset):
    frame = (np.random.default_rng(seed).gamma(2.0, 1.0, (24, 20, 3)) * scale + offset).astype(np.float32)
    stored, (low, high) = geometry.to_uint8(frame)
    expected = np.percentile(frame.astype(np.float64), (0.95, 99.5))
    step = (expected[1] - expected[0]) / 255
    np.testing.assert_allclose((low, high), expected, atol=0.01 * step + 1e-6 * abs(offset))
    assert stored.dtype == np.uint8 and stored.min() == 0 and stored.max() == 255
    back = low + stored.astype(np.float64) * (high - low) / 255
    error = np.abs(back - np.clip(frame.astype(np.float64), *expected))
    assert error.max() < (0.5 + 0.02) * step + 1e-6 * abs(offset), "more than the rounding to 8 bits was lost"


def test_window_of_a_frame_nearly_all_background_and_of_a_constant_one():
    frame = np.zeros((64, 64, 1), np.float32)
    frame[3, 4, 0] = 50
    stored, window = geometry.to_uint8(frame)
    assert window == (0.0, 50.0) and stored[3, 4, 0] == 255 and stored.sum() == 255
    with pytest.raises(ValueError, match="constant"):
        geometry.to_uint8(np.full((5, 5, 1), 3, np.float32))
