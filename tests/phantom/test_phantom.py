"""The synthetic heart against what is known of it in closed form, and against its own pictures."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import stats

from cinema_fast.common.views import VIEWS
from cinema_fast.phantom.patient import draw_patient
from cinema_fast.phantom.scan import add_rician_noise
from cinema_fast.phantom.study import DISEASES, make_study

RV, MYO, LV = 1, 2, 3
SMALL = {"n_frames": 6, "in_plane_mm": 3.2, "n_slices": 6}


@pytest.fixture(scope="module")
def fine():
    """A study with slices about 1.2 mm apart, no breathing and no noise: nearly the continuous heart."""
    return make_study(11, n_frames=5, in_plane_mm=1.6, n_slices=100, jitter_mm=0, noise_sd=0, disease="normal")


def voxel_ml(study, view="sax"):
    return abs(np.linalg.det(study.affines[view][:3, :3])) / 1e3


def test_shapes_types_and_frame_of_reference():
    study = make_study(5, n_frames=7, in_plane_mm=3.0, size=80, n_slices=5)
    assert tuple(study.images) == VIEWS
    for view in VIEWS:
        shape = (80, 80, 5, 7) if view == "sax" else (80, 80, 7)
        assert study.images[view].shape == study.labels[view].shape == shape
        assert study.images[view].dtype == np.uint16 and study.labels[view].dtype == np.uint8
        assert set(np.unique(study.labels[view])) <= {0, RV, MYO, LV}
        columns = study.affines[view][:3, :3]
        np.testing.assert_allclose(np.linalg.norm(columns, axis=0), study.spacing_mm[view], rtol=1e-12)
        np.testing.assert_allclose(columns.T @ columns, np.diag(np.square(study.spacing_mm[view])), atol=1e-9)
    beat_ms = 60e3 / study.patient.heart.heart_rate
    assert study.frame_time_ms * study.n_frames == pytest.approx(beat_ms)


def test_same_seed_same_bits_and_other_seed_another_study():
    one, two, other = (make_study(seed, **SMALL) for seed in (3, 3, 4))
    for view in VIEWS:
        np.testing.assert_array_equal(one.images[view], two.images[view])
        np.testing.assert_array_equal(one.labels[view], two.labels[view])
        assert (one.images[view] != other.images[view]).mean() > 0.5
    assert one.truth() == two.truth() != other.truth()


def test_who_is_drawn_does_not_depend_on_resolution():
    coarse, finer = make_study(9, **SMALL), make_study(9, n_frames=12, in_plane_mm=2.4, n_slices=5)
    assert coarse.patient.heart == finer.patient.heart
    assert coarse.lv_ml[1] == finer.lv_ml[2]


def test_whether_an_infarct_is_acute_changes_no_other_number():
    for seed in range(8):
        drawn, acute, chronic = (
            draw_patient(np.random.default_rng(seed), "infarct", acute) for acute in (None, True, False)
        )
        assert drawn.heart == acute.heart == chronic.heart and drawn.injury in (acute.injury, chronic.injury)
        assert acute.injury.acute and not chronic.injury.acute and not chronic.injury.no_reflow
        assert replace(acute.injury, acute=False, no_reflow=False) == chronic.injury
        others = [draw_patient(np.random.default_rng(seed), "dilated", acute).injury for acute in (None, True, False)]
        assert others[0] == others[1] == others[2]


def test_label_volumes_follow_the_analytic_ones(fine):
    """Counting voxels errs by at most half a slice of 1.2 mm at the flat base, 0.6 % of a ventricle of 90 mm."""
    counts = {k: (fine.labels["sax"] == k).sum(axis=(0, 1, 2)) * voxel_ml(fine) for k in (RV, MYO, LV)}
    np.testing.assert_allclose(counts[LV], fine.lv_ml, rtol=0.01)
    np.testing.assert_allclose(counts[RV], fine.rv_ml, rtol=0.01)
    np.testing.assert_allclose(counts[MYO] * 1.05, fine.myocardial_mass_g, rtol=0.01)
    assert 100 * (1 - counts[LV].min() / counts[LV].max()) == pytest.approx(fine.ef, abs=0.6)
    assert 100 * (1 - counts[RV].min() / counts[RV].max()) == pytest.approx(fine.rv_ef, abs=0.6)


@pytest.mark.parametrize("disease", DISEASES)
def test_ejection_fraction_of_a_clinical_stack(disease):
    """With 10 mm slices the base is uncertain by half a slice; over systole part of that cancels."""
    study = make_study(2, disease=disease, n_frames=25, in_plane_mm=2.4, jitter_mm=0)
    ml = (study.labels["sax"] == LV).sum(axis=(0, 1, 2)) * voxel_ml(study)
    assert 100 * (1 - ml.min() / ml.max()) == pytest.approx(study.ef, abs=5)
    assert study.ef == pytest.approx(100 * study.patient.heart.ef, rel=0.02)  # the frames miss the peak by < 2 %


def test_volume_curve_has_systole_filling_diastasis_and_atrial_kick():
    study = make_study(1, n_frames=50, in_plane_mm=4, n_slices=3, disease="normal")
    heart, v = study.patient.heart, study.lv_ml
    end = int(v.argmin())
    assert abs(end / 50 - heart.systole) <= 0.02 and v.argmax() == 0
    assert (np.diff(v[: end + 1]) < 0).all() and (np.diff(v[end:]) > 0).all()
    flow = np.diff(v[end:])
    rapid, kick = flow[: len(flow) // 2].max(), flow[-9:].max()
    diastasis = flow[len(flow) // 2 : -9].min()
    assert diastasis < 0.25 * min(rapid, kick)


def test_population_is_wide_and_plausible():
    hearts = [draw_patient(np.random.default_rng(i)) for i in range(300)]
    ef = np.array([h.heart.ef for h in hearts])
    assert ef.min() < 0.22 and ef.max() > 0.72
    assert {h.disease for h in hearts} == set(DISEASES)
    mean = {d: np.mean([(h.heart.ef, h.heart.edv_ml, h.heart.wall_mm, h.heart.rv_ef) for h in hearts
                        if h.disease == d], axis=0) for d in DISEASES}  # fmt: skip
    assert mean["dilated"][0] < 0.35 < 0.5 < mean["normal"][0] and mean["dilated"][1] > 1.3 * mean["normal"][1]
    assert mean["hypertrophic"][2] > 1.3 * mean["normal"][2] and mean["rv_abnormal"][3] < 0.4
    assert np.corrcoef([h.age for h in hearts], [h.heart.early_filling for h in hearts])[0, 1] < -0.5


@pytest.mark.parametrize("view", VIEWS[1:])
def test_long_and_short_axis_agree_where_they_meet(fine, view):
    """Voxels of every fourth fine slice within 0.3 mm of a long-axis plane have that plane's label there."""
    shape = fine.labels["sax"].shape[:3]
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[:, :, ::4].reshape(-1, 3)
    there = apply_affine(np.linalg.inv(fine.affines[view]) @ fine.affines["sax"], voxels)
    size = fine.labels[view].shape[0]
    on_plane = np.abs(there[:, 2] * fine.spacing_mm[view][2]) < 0.3
    on_plane &= ((there[:, :2] > 1) & (there[:, :2] < size - 2)).all(axis=1)
    i, j = np.rint(there[on_plane, :2]).astype(int).T
    for t in range(fine.n_frames):
        sax, lax = fine.labels["sax"][:, :, ::4, t].reshape(-1)[on_plane], fine.labels[view][..., t]
        assert set(np.unique(sax)) >= ({0, MYO, LV} if view == "lax_2c" else {0, RV, MYO, LV})
        assert (lax[i, j] == sax)[sax > 0].mean() > 0.93
        around = np.stack([lax[i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)])
        assert (around == sax).any(axis=0).mean() > 0.999  # a sliver of RV may be thinner than a pixel


def test_breath_holds_shift_slices_and_not_the_truth():
    still, moved = (make_study(12, **SMALL | {"in_plane_mm": 2.0}, jitter_mm=j) for j in (0, 4))
    assert not still.slice_shift_mm.any() and np.linalg.norm(moved.slice_shift_mm, axis=1).max() > 2
    np.testing.assert_array_equal(still.lv_ml, moved.lv_ml)
    np.testing.assert_array_equal(still.labels["lax_4c"], moved.labels["lax_4c"])
    axes = still.affines["sax"][:3, :2] / 2.0
    for z in (2, 3):
        centres = [np.argwhere(s.labels["sax"][:, :, z, 0] == LV).mean(axis=0) for s in (still, moved)]
        expected = moved.slice_shift_mm[z] @ axes / 2.0
        np.testing.assert_allclose(centres[1] - centres[0], expected, atol=0.25)


def test_landmarks_lie_where_wall_cavity_and_atrium_meet():
    study = make_study(7, n_frames=4, in_plane_mm=1.0, size=280, n_slices=1, disease="normal")
    for view in VIEWS[1:]:
        mm, voxels = study.landmarks_mm[view], study.landmarks[view]
        back = apply_affine(np.linalg.inv(study.affines[view]), mm)
        np.testing.assert_allclose(back[..., :2], voxels, atol=1e-9)
        np.testing.assert_allclose(back[..., 2], 0, atol=1e-9)  # in the plane
        for t in range(4):
            for k, meets in ((0, {0, MYO, LV}), (1, {0, MYO, LV}), (2, {MYO, LV})):
                i, j = np.rint(voxels[t, k]).astype(int)
                assert meets <= set(np.unique(study.labels[view][i - 1 : i + 2, j - 1 : j + 2, t]))
        long_axis = np.linalg.norm(mm[:, :2].mean(axis=1) - mm[:, 2], axis=1)
        assert long_axis[0] == pytest.approx(study.patient.heart.length_mm, abs=0.5)
        assert long_axis[0] - long_axis.min() > 0.6 * study.patient.heart.descent_mm


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    for level in (0.0, 20.0, 300.0):
        drawn = add_rician_noise(np.full(20_000, level, np.float32), 10.0, rng)
        assert stats.kstest(drawn, stats.rice(level / 10.0, scale=10.0).cdf).pvalue > 1e-3


def test_air_holds_nothing_but_rician_noise():
    clean, noisy = (make_study(13, **SMALL, noise_sd=sd) for sd in (0, 12))
    air = clean.images["lax_4c"].max(axis=-1) == 0
    values = noisy.images["lax_4c"][air].astype(float)
    assert air.sum() > 200
    assert values.mean() ** 2 / (values**2).mean() == pytest.approx(math.pi / 4, rel=0.02)


@pytest.mark.parametrize(
    ("bad", "word"),
    [({"n_frames": 1}, "n_frames"), ({"n_frames": 2.5}, "n_frames"), ({"in_plane_mm": 0}, "in_plane_mm"),
     ({"size": 4}, "size"), ({"n_slices": 0}, "n_slices"), ({"jitter_mm": -1}, "jitter_mm"),
     ({"noise_sd": float("nan")}, "noise_sd"), ({"disease": "flu"}, "normal, dilated")],
)  # fmt: skip
def test_bad_arguments_are_named(bad, word):
    with pytest.raises(ValueError, match=word):
        make_study(0, **bad)


def test_bad_view_and_frame():
    study = make_study(0, **SMALL)
    with pytest.raises(KeyError):
        study.displacement("lax_5c", 0, 1)
    with pytest.raises(IndexError, match="frames 0 to 5"):
        study.displacement("sax", 0, 6)


@pytest.mark.slow
def test_a_default_study_takes_less_than_a_second():
    best = math.inf
    for seed in range(5):
        start = time.process_time()
        make_study(seed)
        best = min(best, time.process_time() - start)
    assert best < 1.0
