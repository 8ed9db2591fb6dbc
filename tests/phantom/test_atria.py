"""The atria: their volumes against labels of a stack of their own, their place, and what `atria=False` leaves."""

import math
from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

from cinema_fast.common.views import VIEWS
from cinema_fast.phantom.heart import BeatingHeart
from cinema_fast.phantom.patient import draw_patient
from cinema_fast.phantom.study import make_study

RV, MYO, LV, LA, RA = 1, 2, 3, 7, 8
SMALL = {"n_frames": 5, "in_plane_mm": 2.4, "n_slices": 8}


@pytest.fixture(scope="module", params=["dilated", "hypertrophic", "infarct"])
def whole(request):
    """A study and a stack of the base at all frames: labels (T, Z, Y, X), slices 1 mm apart from 30 mm below the mitral
    annulus to above the roof, pixels of 1.5 mm; and the heights of its slices, mm from the apex."""
    study = make_study(5, disease=request.param, n_frames=4, n_slices=1, jitter_mm=0, noise_sd=0)
    grid, base, heart = study._grids["sax"], study.patient.axes[2], study._acquire.renderer.heart
    n = math.ceil(heart.top - heart.length + 32)
    top = study.patient.apex_mm + (heart.top + 1) * base - (grid.axes[:2].T * 1.5 * 65).sum(axis=1)
    grid = replace(grid, origin=top, spacing=(1.5, 1.5, 1.0), size=131, n_slices=n)
    _, labels = study._acquire(
        grid, "cine", np.arange(4) / 4, np.zeros((n, 3)), np.random.default_rng(0), gain=1, noise_sd=0, atria=True
    )
    return study, labels, heart.top + 1 - np.arange(n)


def test_volumes_count_the_labels(whole):
    """Half a slice at a flat end is 1 % of an atrium 45 mm long."""
    study, labels, _ = whole
    for label, ml in ((LA, study.la_ml), (RA, study.ra_ml)):
        np.testing.assert_allclose((labels == label).sum(axis=(1, 2, 3)) * 1.5 * 1.5 / 1e3, ml, rtol=0.015)


def test_atria_lie_beyond_the_annuli_and_inside_the_heart(whole):
    """Each atrium begins where its ventricle ends: at the height of the annulus in every frame."""
    study, labels, heights = whole
    heart = study._acquire.renderer.heart
    for t in range(study.n_frames):
        now = heart.beat(t / study.n_frames)
        for atrium, ventricle, annulus in ((LA, LV, heart.length), (RA, RV, heart.tricuspid)):
            _, _, h = heart.deform(np.zeros(1), np.zeros(1), np.array([annulus]), now)
            in_slice = [(labels[t] == label).any(axis=(1, 2)) for label in (atrium, ventricle)]
            assert heights[in_slice[0]].min() > h > heights[in_slice[1]].max()
            assert heights[in_slice[0]].min() - heights[in_slice[1]].max() == pytest.approx(1)
            assert not in_slice[0][:2].any()  # closed above
    # Nothing else is labelled above the mitral annulus at its highest.
    assert set(np.unique(labels[:, heights > heart.length])) == {0, LA, RA}


def test_atria_fill_while_the_ventricles_empty():
    """150 hearts. Not all: near the annulus an atrium moves with its ventricle, so that 1 of 200 left and 1 of 8 right
    atria shrink a little. As the ejected share, the volume is back at the end of the beat."""
    phases, growth = np.arange(20) / 20, []
    for i in range(150):
        heart = BeatingHeart(draw_patient(np.random.default_rng(i)).heart)
        share, atria = heart.activation(phases), heart.atria_ml(phases)
        for ml in atria:
            assert 40 < ml.min() < ml.max() < 260
            np.testing.assert_allclose(ml, ml[0] + (ml[6] - ml[0]) * share / share[6], rtol=1e-9)
        growth.append([ml[6] / ml[0] for ml in atria])
    left, right = np.transpose(growth)
    assert left.min() > 0.95 and right.min() > 0.9 and max(left.max(), right.max()) < 1.4
    assert (left > 1).mean() > 0.97 and (right > 1).mean() > 0.8
    assert 1.1 < np.median(left) < 1.2 and 1.05 < np.median(right) < 1.15


def test_without_atria_labels_are_the_same_but_for_them():
    with_atria, without = (make_study(8, **SMALL, sequences=("cine", "lge"), atria=a) for a in (True, False))
    for view in VIEWS:
        labels = with_atria.labels[view]
        np.testing.assert_array_equal(np.where(labels >= LA, 0, labels), without.labels[view])
        np.testing.assert_array_equal(with_atria.images[view], without.images[view])
        assert {LA} | ({RA} if view != "lax_2c" else set()) <= set(np.unique(labels))
        assert without.labels[view].max() == LV
        np.testing.assert_array_equal(with_atria.labels[f"lge_{view}"], without.labels[f"lge_{view}"])
    assert with_atria.truth() == without.truth()


def test_four_chambers_in_the_four_chamber_view():
    """Seen from the annulus: the atria are on the far side of it from the apex, the right ones nearer to the right."""
    study = make_study(3, **SMALL, atria=True)
    for t in range(study.n_frames):
        label = study.labels["lax_4c"][..., t]
        mm = {value: apply_affine(study.affines["lax_4c"], [*np.argwhere(label == value).mean(axis=0), 0])
              for value in (RV, LV, LA, RA)}  # fmt: skip
        annulus, apex = study.landmarks_mm["lax_4c"][t, :2].mean(axis=0), study.landmarks_mm["lax_4c"][t, 2]
        base = (annulus - apex) / np.linalg.norm(annulus - apex)
        along = {value: (point - annulus) @ base for value, point in mm.items()}
        assert along[LA] > 0 > along[LV] and along[RA] > along[RV] and along[RA] > 0
        assert mm[RA][0] > mm[LA][0] and mm[RV][0] > mm[LV][0]  # RAS+: x to the right


def test_atria_in_the_truth():
    study = make_study(8, **SMALL)
    truth = study.truth()
    assert truth["la_ml"] == study.la_ml.tolist() and truth["ra_ml"] == study.ra_ml.tolist()
    assert study.la_ml.shape == study.ra_ml.shape == (5,)
