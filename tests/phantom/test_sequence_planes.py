"""Where the images of the sequences lie: on the heart as the cine shows it, at diastole, in slices of their own."""

import numpy as np
import pytest
from nibabel.affines import apply_affine

from cinema_fast.phantom.sequences import PROTOCOLS
from cinema_fast.phantom.study import make_study

OTHERS = tuple(PROTOCOLS)[1:]


@pytest.fixture(scope="module")
def study():
    """Frame 39 of 50 is the moment of the images of one frame, 0.78 of the beat."""
    return make_study(6, disease="normal", n_frames=50, in_plane_mm=2.4, n_slices=12, jitter_mm=0,
                      sequences=tuple(PROTOCOLS), atria=True)  # fmt: skip


def heights(study, view):
    """Of the slices over the apex, in lengths of the ventricle."""
    slices = np.arange(study.images[view].shape[2])[:, None] * [0, 0, 1]
    centres = apply_affine(study.affines[view], slices)
    return (centres - study.patient.apex_mm) @ study.patient.axes[2] / study.patient.heart.length_mm


@pytest.mark.parametrize(
    ("name", "cine"), [(name, plane) for name in OTHERS for plane in PROTOCOLS[name].planes if plane != "sax"]
)
def test_long_axes_show_what_the_cine_shows(study, name, cine):
    """The plane is the cine's, its middle another. The same tissue in both grids, but for voxels at borders."""
    view = f"{name}_{cine}"
    label, expected = study.labels[view][..., 0], study.labels[cine][..., 39]
    index = np.argwhere(label > 0)
    there = apply_affine(np.linalg.inv(study.affines[cine]) @ study.affines[view], np.pad(index, ((0, 0), (0, 1))))
    np.testing.assert_allclose(there[:, 2], 0, atol=1e-9)
    assert 0.1 < np.abs(there[:, :2] - index).mean() < 8
    i, j = np.rint(there[:, :2]).astype(int).T
    assert (expected[i, j] == label[label > 0]).mean() > 0.88
    around = np.stack([expected[i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)])
    assert (around == label[label > 0]).any(axis=0).mean() > 0.995


@pytest.mark.parametrize("name", ["lge", "t2w", "t1w"])
def test_stacks_have_slices_between_those_of_the_cine(study, name):
    cine, other = heights(study, "sax"), heights(study, f"{name}_sax")
    np.testing.assert_allclose(np.diff(cine), np.diff(other))
    moved = (other[0] - cine[0]) / abs(np.diff(cine)[0])
    assert 0.001 < abs(moved) <= 0.3
    np.testing.assert_allclose(study.affines[f"{name}_sax"][:3, :3], study.affines["sax"][:3, :3], atol=1e-12)


@pytest.mark.parametrize("name", ["t1map", "t2map"])
def test_three_slices_of_a_map(study, name):
    """Base, middle and apex: 3/4, 2/4 and 1/4 of the ventricle, moved by up to 3 mm."""
    moved = (heights(study, f"{name}_sax") - [0.75, 0.5, 0.25]) * study.patient.heart.length_mm
    np.testing.assert_allclose(moved, moved[0], atol=1e-9)
    assert 0.01 < abs(moved[0]) <= 3
    assert study.spacing_mm[f"{name}_sax"][2] == pytest.approx(study.patient.heart.length_mm / 4)
    for z in range(3):
        assert {2, 3} <= set(np.unique(study.labels[f"{name}_sax"][:, :, z, 0]))


@pytest.mark.parametrize("n_slices", [4, 12])
def test_stacks_cover_the_ventricles_in_every_scan(n_slices):
    """From the mitral annulus to the apex's outside, by the slices' thickness."""
    tiny = {"n_frames": 2, "in_plane_mm": 24.0, "n_slices": n_slices, "sequences": ("cine", "lge", "t2w", "t1w")}
    for seed in range(6):
        for scan in (0, 1):
            study = make_study(seed, **tiny, scan=scan)
            for view in ("sax", "lge_sax", "t2w_sax", "t1w_sax"):
                length, wall = study.patient.heart.length_mm, study.patient.heart.wall_mm
                mm, half = heights(study, view) * length, study.spacing_mm[view][2] / 2
                assert mm[0] + half > length and mm[-1] - half < -0.75 * wall


def test_volumes_of_the_stacks_are_those_of_diastole(study):
    """12 slices at other heights each: within 5 %."""
    for name in ("lge", "t2w", "t1w"):
        ml = (study.labels[f"{name}_sax"] == 3).sum() * np.prod(study.spacing_mm[f"{name}_sax"]) / 1e3
        assert ml == pytest.approx(study.lv_ml[39], rel=0.05)
        assert abs(study.lv_ml[39] / study.lv_ml[0] - 1) > 0.05


def test_sequences_have_breath_holds_of_their_own():
    """Between two sequences a long axis is displaced as a whole by up to some mm, mostly head to feet."""
    options, shifts, view = {"n_frames": 2, "in_plane_mm": 2.4, "n_slices": 1, "sequences": ("lge",)}, [], "lge_lax_4c"
    for seed in range(6):
        studies = (make_study(seed, **options, jitter_mm=jitter) for jitter in (0, 4))
        still, moved = (apply_affine(s.affines[view], np.argwhere(s.labels[view] == 3)).mean(axis=0) for s in studies)
        shifts.append(np.linalg.norm(moved - still))
    assert 1 < np.median(shifts) < 15


@pytest.mark.parametrize("n_slices", [1, 2])
def test_stacks_of_one_and_two_slices(n_slices):
    study = make_study(1, n_frames=2, in_plane_mm=6.0, n_slices=n_slices, sequences=tuple(PROTOCOLS))
    for name in OTHERS:
        expected = PROTOCOLS[name].slices if n_slices > 1 and PROTOCOLS[name].slices else n_slices
        assert study.images[f"{name}_sax"].shape == (48, 48, expected, 1)
