"""The synthetic heart's motion: an exact inverse, incompressible muscle, and pictures that move as it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy import ndimage

from cinema_fast.common.views import VIEWS
from cinema_fast.phantom.heart import BeatingHeart
from cinema_fast.phantom.patient import draw_patient
from cinema_fast.phantom.render import HeartRenderer
from cinema_fast.phantom.study import make_study

MYO = 2


@pytest.fixture(scope="module")
def fine():
    """A study with slices about 1.2 mm apart, no breathing and no noise: nearly the continuous heart."""
    return make_study(11, n_frames=5, in_plane_mm=1.6, n_slices=100, jitter_mm=0, noise_sd=0, disease="normal")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), phase=st.floats(0, 1, exclude_max=True))
def test_the_deformation_is_inverted_exactly(seed, phase):
    heart = BeatingHeart(draw_patient(np.random.default_rng(seed)).heart)
    points = np.random.default_rng(seed).uniform((-70, -60, -15), (90, 60, 160), (500, 3)).T
    beat = heart.beat(phase)
    found = heart.locate(*points, beat)
    inside = found.outside[4] < -1e-6
    back = np.stack(heart.deform(found.x, found.y, found.h, beat))
    assert inside.sum() > 30
    np.testing.assert_allclose(back[:, inside], points[:, inside], atol=1e-8)


@pytest.mark.parametrize("disease", ["normal", "infarct", "hypertrophic"])
def test_muscle_keeps_its_volume(disease):
    """The Jacobian determinant of the motion, by central differences, at points of the wall."""
    study = make_study(6, disease=disease, n_frames=9, in_plane_mm=2.5, n_slices=12, jitter_mm=0)
    inner = ndimage.binary_erosion(study.labels["sax"][..., 0] == MYO, iterations=1)
    points = apply_affine(study.affines["sax"], np.argwhere(inner)[::7].astype(float))
    h = 1e-4
    steps = [(study.move(points + h * e, 0, 3) - study.move(points - h * e, 0, 3)) / (2 * h) for e in np.eye(3)]
    determinant = np.linalg.det(np.stack(steps, axis=-1))
    assert len(points) > 50
    np.testing.assert_allclose(determinant, 1, atol=1e-5)
    assert np.abs(np.stack(steps, axis=-1) - np.eye(3)).max() > 0.2  # and yet it deforms


def test_motion_composes_and_vanishes(fine):
    centre = apply_affine(fine.affines["sax"], np.array([90, 90, 50]))
    points = centre + np.random.default_rng(0).normal(0, 40, (2000, 3))
    there = fine.move(points, 0, 2)
    assert np.linalg.norm(there - points, axis=1).max() > 5
    moved = np.abs(there - points).max(axis=1) > 1e-3  # a point at rest may be overrun later
    np.testing.assert_allclose(fine.move(there, 2, 3)[moved], fine.move(points, 0, 3)[moved], atol=1e-8)
    np.testing.assert_allclose(fine.move(there, 2, 0)[moved], points[moved], atol=1e-8)
    for view in VIEWS:
        assert not fine.displacement(view, 1, 1).any()


@pytest.mark.parametrize("view", VIEWS)
def test_displacement_carries_labels_to_labels(fine, view):
    """Labelled voxels of frame 0, moved in 3D, land on the same label of the fine stack in frame 2."""
    index = np.argwhere(fine.labels[view][..., 0] > 0)[:: 40 if view == "sax" else 3]
    label = fine.labels[view][..., 0][tuple(index.T)]
    axes = (fine.affines[view][:3, :3] / fine.spacing_mm[view]).T
    motion = fine.displacement(view, 0, 2)[(slice(None), *index.T)].T @ axes
    voxels = np.pad(index, ((0, 0), (0, 3 - index.shape[1]))).astype(float)
    moved = apply_affine(fine.affines[view], voxels) + motion
    landed = np.rint(apply_affine(np.linalg.inv(fine.affines["sax"]), moved)).astype(int)
    target = fine.labels["sax"][..., 2]
    assert np.abs(motion).max() > 5
    assert (target[tuple(landed.T)] == label).mean() > 0.95
    around = np.stack([target[tuple((landed + np.array(d) - 1).T)] for d in np.ndindex(3, 3, 3)])
    assert (around == label).any(axis=0).all()


def test_displacement_explains_the_images(fine):
    """Brightness is carried by the tissue: the later frame, looked up along the motion, is the first one."""
    view = "sax"
    first, later = (fine.images[view][..., t].astype(np.float32) for t in (0, 2))
    motion = fine.displacement(view, 0, 2) / np.reshape(fine.spacing_mm[view], (3, 1, 1, 1))
    warped = ndimage.map_coordinates(later, np.indices(first.shape) + motion, order=1, mode="nearest")
    heart = (fine.labels[view][..., 0] > 0) & (np.arange(first.shape[2]) < 85) & (np.arange(first.shape[2]) > 12)
    before, after = np.abs(later - first)[heart].mean(), np.abs(warped - first)[heart].mean()
    assert after < 0.3 * before


def test_nothing_moves_outside_of_the_heart():
    study = make_study(8, n_frames=4, in_plane_mm=2.4, n_slices=12, noise_sd=0)
    for view in VIEWS:
        frames = study.images[view].astype(int)
        motion = np.abs(study.displacement(view, 0, 1)).max(axis=0)
        changes = np.ptp(frames, axis=-1) > 0
        near = ndimage.binary_dilation(changes, np.ones((5, 5, 1) if view == "sax" else (5, 5)))
        assert not motion[~near].any()
        assert not study.labels[view].any(axis=-1)[~near].any()
        assert (motion[study.labels[view][..., 0] > 0] > 0).mean() > 0.98
        assert 0.02 < changes.mean() < 0.3


@pytest.mark.parametrize("seed", range(6))
def test_the_heart_is_drawn_whole(seed, monkeypatch):
    """Only a box around the heart is computed: drawing all pixels must give the same bits."""
    options = {"n_frames": 5, "in_plane_mm": 3.0, "n_slices": 9, "noise_sd": 0}
    boxed = make_study(seed, **options)
    monkeypatch.setattr(HeartRenderer, "box", lambda self, plane: (0, plane.size, 0, plane.size))
    whole = make_study(seed, **options)
    for view in VIEWS:
        np.testing.assert_array_equal(boxed.labels[view], whole.labels[view])
        np.testing.assert_allclose(boxed.images[view].astype(int), whole.images[view].astype(int), atol=1)
        np.testing.assert_array_equal(boxed.displacement(view, 0, 2), whole.displacement(view, 0, 2))
