"""Scar, no-reflow and oedema: who has them, their volumes and depths against the definition and against the labels."""

import math

import numpy as np
import pytest
from nibabel.affines import apply_affine

from cinema_fast.phantom.heart import BeatingHeart
from cinema_fast.phantom.injury import Injury, InjuryParameters
from cinema_fast.phantom.patient import DISEASES, draw_patient
from cinema_fast.phantom.study import make_study

MYO, LV, SCAR, NO_REFLOW, OEDEMA = 2, 3, 4, 5, 6
QUIET = {"gain": 1.0, "noise_sd": 0.0}
# Acute with no-reflow, an old one at the apex, stripes in a dilated and in a hypertrophic heart.
HEARTS = {"acute": (27, "infarct"), "apical": (14, "infarct"), "stripe": (6, "dilated"),
          "insertion": (9, "hypertrophic")}  # fmt: skip


@pytest.fixture(scope="module", params=HEARTS)
def fine(request):
    """Slices about 1.5 mm apart and no breathing: nearly the continuous heart. Labels of the stack at ED and at ES."""
    seed, disease = HEARTS[request.param]
    study = make_study(seed, disease=disease, n_frames=12, size=120, n_slices=80, jitter_mm=0,
                       sequences=("t1map",))  # fmt: skip
    labels = [study.scan_again("sax", t, 0, sequence="lge", **QUIET)[1] for t in (0, study.es_frame)]
    return study, *labels


@pytest.fixture(scope="module")
def patients():
    return [draw_patient(np.random.default_rng((7, i)), disease) for disease in DISEASES for i in range(400)]


def definition(heart, p, n=1_000_000):
    """Volumes (ml) of scar, core and oedema by random points of the wall, written again from the docstrings."""
    rng = np.random.default_rng(0)
    h = rng.uniform(heart.bottom, heart.length, n)
    theta = rng.uniform(-math.pi, math.pi, n)
    inner, outer = heart.wall(h, np.cos(theta), np.sin(theta))
    r = np.sqrt(rng.uniform(inner**2, outer**2))
    ml = (heart.length - heart.bottom) * math.pi * (outer**2 - inner**2) / n / 1e3
    depth = np.where(h < 0, np.maximum(r / outer, h / heart.bottom), (r - inner) / (outer - inner))
    patch = ((1 + np.cos(theta - p.angle)) / 2) ** 2 * np.clip(1 - ((h / heart.length - p.height) / 0.5) ** 2, 0, 1)

    def reach(level):
        return np.sqrt(np.clip((patch - level) / (1 - level), 0, None))

    scar = (patch > p.level) & (depth > p.inner) & (depth < p.inner + (p.outer - p.inner) * reach(p.level))
    oedema = (patch > 0.7 * p.level) & (depth < min(1, p.outer + 0.25) * reach(0.7 * p.level)) & p.acute
    core = p.level + 0.45 * (1 - p.level)
    core = (patch > core) & (depth > 0.15 * p.outer) & (depth < (0.15 + 0.4 * reach(core)) * p.outer) & p.no_reflow
    return {"scar": ml[scar].sum(), "no-reflow": ml[core & scar].sum(), "oedema": ml[oedema & ~scar].sum()}


def test_volumes_follow_the_definition(fine):
    """A million points: standard errors of 0.3 % of a scar, 1 % of a core."""
    study, *_ = fine
    found = study.injury.volumes_ml
    expected = definition(study._acquire.renderer.heart, study.injury.parameters)
    assert expected["scar"] > 1
    assert found["scar"] == pytest.approx(expected["scar"], rel=0.01)
    assert found["oedema"] == pytest.approx(expected["oedema"], rel=0.01)
    assert found["no-reflow"] == pytest.approx(expected["no-reflow"], rel=0.03)


def test_volumes_of_a_scar_at_the_very_apex():
    """Half of it in the cap below the cavity, where the depth is that of the larger of two measures."""
    heart = BeatingHeart(draw_patient(np.random.default_rng(1)).heart)
    for inner, outer in ((0.0, 0.2), (0.0, 0.6), (0.3, 0.7)):
        p = InjuryParameters(pattern="ischaemic", acute=inner == 0, angle=1.0, height=-0.05, level=0.3, inner=inner,
                             outer=outer, no_reflow=inner == 0)  # fmt: skip
        found, expected = Injury(heart, p).volumes_ml, definition(heart, p)
        for name, ml in expected.items():
            assert found[name] == pytest.approx(ml, rel=0.03 if name == "no-reflow" else 0.01)


def test_labels_hold_the_volumes_at_every_moment(fine):
    """Muscle is incompressible. Thin tissue in voxels of 4 ul: 3 % or 0.1 ml."""
    study, *frames = fine
    voxel, truth = math.prod(study._grids["sax"].spacing) / 1e3, study.injury.volumes_ml
    for label in frames:
        ml = {value: (label == value).sum() * voxel for value in (MYO, SCAR, NO_REFLOW, OEDEMA)}
        assert ml[SCAR] + ml[NO_REFLOW] == pytest.approx(truth["scar"], rel=0.03, abs=0.1)
        assert ml[NO_REFLOW] == pytest.approx(truth["no-reflow"], rel=0.03, abs=0.1)
        assert ml[OEDEMA] == pytest.approx(truth["oedema"], rel=0.03, abs=0.1)
        assert sum(ml.values()) * 1.05 == pytest.approx(study.myocardial_mass_g, rel=0.01)


def test_truth_names_the_volumes(fine):
    study, *_ = fine
    truth, volumes = study.truth(), study.injury.volumes_ml
    assert truth["scar_ml"] == volumes["scar"] and truth["no_reflow_ml"] == volumes["no-reflow"]
    assert truth["oedema_ml"] == volumes["oedema"] and truth["scar_pattern"] == study.injury.parameters.pattern
    assert truth["scar_percent"] == pytest.approx(100 * volumes["scar"] / (study.myocardial_mass_g / 1.05))


def rays(study, label, n_angles=180):
    """Labels (Z, angle, depth) along rays from the axis through the wall at end-diastole, depths of 0.5 mm from 0."""
    grid, patient = study._grids["sax"], study.patient
    voxel = (patient.apex_mm - grid.origin) @ grid.axes.T / grid.spacing  # the long axis is the stack's normal
    depths = np.arange(0, 70, 0.5) / grid.spacing[0]
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    septum, inferior, _ = patient.axes @ grid.axes[:2].T
    steps = np.cos(theta)[:, None] * septum + np.sin(theta)[:, None] * inferior
    i, j = np.rint(voxel[:2, None, None] + steps.T[:, :, None] * depths).astype(int)
    return np.moveaxis(label[i.clip(0, grid.size - 1), j.clip(0, grid.size - 1)], -1, 0)


def test_transmural_extent_of_labels(fine):
    """Along rays through the middle of the patch the scar ends at the share `outer` of the wall, and begins at `inner`.
    Rays away from the apex; half a voxel at both ends of a wall of 6 to 14 mm: within 0.12."""
    study, ed, _ = fine
    p, grid, heart = study.injury.parameters, study._grids["sax"], study._acquire.renderer.heart
    along = rays(study, ed)
    z = ((grid.origin - study.patient.apex_mm) @ study.patient.axes[2] - p.height * heart.length) / grid.spacing[2]
    angle = round(p.angle / (2 * math.pi) * along.shape[1])
    near = np.stack([along[round(z) + dz, (angle + k) % along.shape[1]] for dz in (-1, 0, 1) for k in (-1, 0, 1)])
    wall = ((near == MYO) | ((near >= SCAR) & (near <= OEDEMA))).sum(axis=1)
    scar = (near == SCAR) | (near == NO_REFLOW)
    first = np.argmax((near != LV), axis=1)
    begin, end = np.argmax(scar, axis=1) - first, scar.shape[1] - np.argmax(scar[:, ::-1], axis=1) - first
    assert np.mean(begin / wall) == pytest.approx(p.inner, abs=0.12)
    assert np.mean(end / wall) == pytest.approx(p.outer, abs=0.12)


@pytest.mark.parametrize("fine", [name for name in HEARTS if name in ("stripe", "insertion")], indirect=True)
def test_a_stripe_touches_neither_border(fine):
    """In the plane: 0.3 of a wall of 7 mm are more than a voxel."""
    study, ed, _ = fine
    assert study.injury.parameters.pattern == "mid-wall"
    assert not np.isin(ed, (NO_REFLOW, OEDEMA)).any()
    for axis in (0, 1):
        for step in (-1, 1):
            assert set(np.unique(np.roll(ed, step, axis)[ed == SCAR])) == {MYO, SCAR}


@pytest.mark.parametrize("seed", [27, 33, 3])
def test_layers_of_an_infarct(seed):
    """Outwards from the cavity: the scar begins at the endocardium, the core has scar before it, and beyond an acute
    scar comes oedema or the end of the wall. Pixels of 0.4 mm: a ray along a border may cross one (2 samples)."""
    study = make_study(seed, disease="infarct", n_frames=2, in_plane_mm=0.4, size=330, n_slices=7, jitter_mm=0,
                       sequences=("t1map",))  # fmt: skip
    _, ed = study.scan_again("sax", 0, 0, sequence="lge", **QUIET)
    p = study.injury.parameters
    assert (NO_REFLOW in ed) == p.no_reflow and (OEDEMA in ed) == p.acute
    along = rays(study, ed)
    along = along[(along[:, :, 20] == LV).all(axis=1)]  # cavity within 10 mm of the axis: not the apical cap
    found = along[(along == SCAR).any(axis=-1)]
    assert len(found) > 30 and (found == NO_REFLOW).any() == p.no_reflow
    for ray in found:
        wall = ray[np.argmax(ray != LV) :]
        first, last = np.argmax(wall == SCAR), len(wall) - np.argmax(wall[::-1] == SCAR)
        assert first <= 2
        assert NO_REFLOW not in wall or set(wall[first : np.argmax(wall == NO_REFLOW)]) == {SCAR}
        assert not p.acute or (wall[last : last + 3] != MYO).any()


def test_depths_are_nested_everywhere():
    """At every direction of 60 hearts: core within scar within oedema, all within the wall."""
    rng = np.random.default_rng(3)
    for i in range(60):
        patient = draw_patient(np.random.default_rng(i), "infarct" if i % 3 else ("dilated", "hypertrophic")[i % 2])
        if patient.injury is None:
            continue
        heart = BeatingHeart(patient.heart)
        h, theta = rng.uniform(heart.bottom, heart.length, 2000), rng.uniform(-math.pi, math.pi, 2000)
        depths = Injury(heart, patient.injury).depths(h, np.cos(theta), np.sin(theta))
        begin, end = depths[SCAR]
        there = end > begin
        assert there.any() and (begin[there] >= 0).all() and end.max() <= patient.injury.outer + 1e-12 <= 1 + 1e-9
        if OEDEMA in depths:
            assert (depths[OEDEMA][1] >= end)[there].all() and not depths[OEDEMA][0].any()
            assert depths[OEDEMA][1].max() <= 1
        if NO_REFLOW in depths:
            core_begin, core_end = depths[NO_REFLOW]
            core = core_end > core_begin
            assert core.any() and there[core].all()
            assert (core_end <= end)[core].all() and (core_begin >= begin)[core].all()


def test_injury_moves_with_the_muscle(fine):
    """A voxel of scar at end-diastole, moved, is scar at end-systole; or next to it, as half of its border may be:
    a stripe is two voxels thick."""
    study, ed, es = fine
    grid = study._grids["sax"]
    index = np.argwhere(np.isin(ed, (SCAR, NO_REFLOW)))[::7]
    mm = apply_affine(grid.affine, index)
    moved = study.move(mm, 0, study.es_frame)
    landed = np.rint(apply_affine(np.linalg.inv(grid.affine), moved)).astype(int)
    around = np.stack([es[tuple((landed + np.array(d) - 1).T)] for d in np.ndindex(3, 3, 3)])
    assert np.abs(moved - mm).max() > 2
    assert (np.isin(around, (SCAR, NO_REFLOW))).any(axis=0).all()
    assert np.isin(around[13], (SCAR, NO_REFLOW)).mean() > 0.7


def test_cines_and_healthy_hearts_have_no_labels_of_injury():
    injured = make_study(27, disease="infarct", n_frames=2, in_plane_mm=3, n_slices=6, sequences=("cine", "lge"))
    healthy = make_study(27, disease="normal", n_frames=2, in_plane_mm=3, n_slices=6, sequences=("lge", "t2w"))
    assert set(np.unique(injured.labels["lge_sax"])) >= {SCAR, OEDEMA} and healthy.injury is None
    for study, views in ((injured, ("sax", "lax_2c", "lax_3c", "lax_4c")), (healthy, healthy.labels)):
        for view in views:
            assert not np.isin(study.labels[view], (SCAR, NO_REFLOW, OEDEMA)).any()
    truth = healthy.truth()
    assert truth["scar_pattern"] == "" and truth["injury"] is None
    assert truth["scar_ml"] == truth["no_reflow_ml"] == truth["oedema_ml"] == truth["scar_percent"] == 0


def test_who_has_an_injury(patients):
    """Of 400 hearts a disease: shares within three standard errors (0.075)."""
    of = {disease: [p.injury for p in patients if p.disease == disease] for disease in DISEASES}
    assert not any(of["normal"]) and not any(of["rv_abnormal"])
    assert all(i is not None and i.pattern == "ischaemic" for i in of["infarct"])
    assert np.mean([i.acute for i in of["infarct"]]) == pytest.approx(0.5, abs=0.075)
    # Acute, and reaching above 0.6 of the wall, which is uniform from 0.4 to 1: 1/2 x 2/3.
    assert np.mean([i.no_reflow for i in of["infarct"]]) == pytest.approx(1 / 3, abs=0.075)
    for disease in ("dilated", "hypertrophic"):
        found = [i for i in of[disease] if i]
        assert len(found) / 400 == pytest.approx(0.4, abs=0.075)
        assert all(i.pattern == "mid-wall" and 0.3 <= i.inner < i.outer <= 0.85 for i in found)
        assert not any(i.acute or i.no_reflow for i in found)
        inserts = np.abs([math.degrees(i.angle) for i in found])
        assert (inserts < 15).all() if disease == "dilated" else np.allclose(inserts, 70)


def test_an_infarct_is_where_the_wall_moves_less(patients):
    for patient in patients:
        if patient.disease == "infarct":
            assert patient.injury.angle == patient.heart.infarct_angle
            assert patient.injury.height == patient.heart.infarct_height


def test_scars_are_plausible(patients):
    """Share of the myocardium: infarcts between 1 and 35 %, mid-wall scars below 15 %."""
    for patient in patients[::10]:
        if patient.injury:
            heart = BeatingHeart(patient.heart)
            injury = Injury(heart, patient.injury)
            share = injury.volumes_ml["scar"] / heart.myocardial_ml
            assert (0.01 < share < 0.35) if patient.disease == "infarct" else (0.0005 < share < 0.15)
            assert (injury.volumes_ml["no-reflow"] > 0) == patient.injury.no_reflow
