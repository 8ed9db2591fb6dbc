"""What the images of the sequences show, tissue by tissue, through textures, blurred edges, coil and noise.

A tissue is measured where a disc of one pixel's radius around a voxel has its label, so that no edge counts. Images
are divided by the coil's sensitivity, which would change ratios by 30 % across the heart and threefold across the body.
"""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from cinema_fast.phantom.sequences import PROTOCOLS, signals
from cinema_fast.phantom.study import make_study
from cinema_fast.phantom.tissue import TISSUES

RV, MYO, LV, SCAR, NO_REFLOW, OEDEMA, LA, RA = range(1, 9)
NAME = {RV: "blood", MYO: "myocardium", LV: "blood", SCAR: "scar", NO_REFLOW: "no-reflow", OEDEMA: "oedema",
        LA: "blood", RA: "blood"}  # fmt: skip
# A large acute infarct, 1 mm pixels around the heart.
ACUTE = {"seed": 27, "disease": "infarct", "n_frames": 2, "in_plane_mm": 1.0, "size": 170, "n_slices": 14,
         "sequences": tuple(PROTOCOLS)[1:]}  # fmt: skip


@pytest.fixture(scope="module", params=[0.5, None], ids=["low noise", "default noise"])
def acute(request):
    return make_study(**ACUTE, noise_sd=request.param)


@pytest.fixture(scope="module")
def body():
    """The whole body without noise: outside of it the images are 0."""
    return make_study(4, n_frames=2, n_slices=3, noise_sd=0, sequences=("t1map", "t2map", "t1w", "t2w"))


def within(study, view, label):
    """(X, Y[, Z]): voxels whose neighbours in the plane have their label."""
    disc = ndimage.generate_binary_structure(2, 1)
    there = study.labels[view][..., 0] == label
    return ndimage.binary_erosion(there, disc if there.ndim == 2 else disc[..., None])


def even(study, view):
    """(X, Y[, Z]): the image, weighted ones without the coil's sensitivity."""
    image = study.images[view][..., 0].astype(float)
    if "map" in view:
        return image
    voxels = np.moveaxis(np.indices((*image.shape, 1)[:3]), 0, -1)
    coil = study._acquire.thorax.bias(*np.moveaxis(apply_affine(study.affines[view], voxels), -1, 0))
    return image / coil.reshape(image.shape)


def values(study, view, label, at_least=30):
    found = even(study, view)[within(study, view, label)]
    assert len(found) >= at_least
    return found


def mean_over(study, view, reference):
    """Tissue's label -> its mean over that of `reference`, and the same in the table of signals."""
    mean = {label: values(study, view, label).mean() for label in (RV, MYO, SCAR, NO_REFLOW, OEDEMA)}
    table = signals(view.split("_")[0])
    return ({label: value / mean[reference] for label, value in mean.items()},
            {label: table[NAME[label]] / table[NAME[reference]] for label in mean})  # fmt: skip


def test_late_enhancement(acute):
    """Textures are +-8 %; thin scars lose up to 10 % to their edges."""
    found, table = mean_over(acute, "lge_sax", SCAR)
    assert found[RV] == pytest.approx(table[RV], rel=0.15)  # 0.64
    assert found[MYO] == pytest.approx(table[MYO], abs=0.03) and found[MYO] < 0.2  # 0.12: near zero
    assert found[OEDEMA] == pytest.approx(table[OEDEMA], abs=0.08)  # 0.16, beside the scar
    assert found[NO_REFLOW] < 0.12 and np.median(values(acute, "lge_sax", NO_REFLOW)) < np.median(
        values(acute, "lge_sax", MYO))  # fmt: skip


@pytest.mark.parametrize(("seed", "disease"), [(33, "infarct"), (9, "hypertrophic")])
def test_papillary_muscles_away_from_the_scar_are_healthy(seed, disease):
    """Within the cavity, more than 75 degrees from the middle of the scar, nothing is brighter than blood (x 1.1, for
    its texture; scar is 1.6 times as bright), and papillary muscles are as dark as healthy ones."""
    options = {"n_frames": 2, "in_plane_mm": 1.0, "size": 170, "jitter_mm": 0, "noise_sd": 0, "sequences": ("lge",)}
    study = make_study(seed, disease=disease, **options)
    image, inside = even(study, "lge_sax"), within(study, "lge_sax", LV)
    voxels = np.argwhere(inside)
    at = (apply_affine(study.affines["lge_sax"], voxels) - study.patient.apex_mm) @ study.patient.axes.T
    turned = np.abs((np.degrees(np.arctan2(at[:, 1], at[:, 0]) - study.injury.parameters.angle) + 180) % 360 - 180)
    away = image[inside][turned > 75]
    blood = np.median(values(study, "lge_sax", RV))
    assert away.max() < 1.1 * blood
    assert (away < 0.3 * blood).sum() > 100


def test_t2_weighted(acute):
    found, table = mean_over(acute, "t2w_sax", MYO)
    for label in (OEDEMA, SCAR, RV):
        assert found[label] == pytest.approx(table[label], rel=0.12)
    assert 1.3 < found[OEDEMA] < 1.55 and found[RV] < 0.25


def test_t1_weighted(acute):
    assert values(acute, "t1w_sax", RV).mean() < 0.15 * values(acute, "t1w_sax", MYO).mean()


def test_no_reflow_stays_dark_in_voxels_of_usual_size():
    """At 1.6 mm most voxels of the core hold scar too. In a phase-sensitive image the core's signal is negative (-159,
    the scar's is 346) and cancels some of the scar's."""
    study = make_study(27, disease="infarct", n_frames=2, noise_sd=0, jitter_mm=0, sequences=("lge",))
    image, labels = even(study, "lge_sax"), study.labels["lge_sax"][..., 0]
    assert (labels == NO_REFLOW).sum() > 80
    assert np.median(image[labels == NO_REFLOW]) < 0.1 * np.median(image[labels == SCAR])


@pytest.mark.parametrize("noise_sd", [300.0, 5000.0])
def test_large_noise_does_not_wrap(noise_sd):
    """Images are written as int16."""
    tiny = {"n_frames": 2, "in_plane_mm": 6.0, "n_slices": 3, "vendor": "ge"}
    study = make_study(0, noise_sd=noise_sd, sequences=tuple(PROTOCOLS), **tiny)
    assert max(image.max() for image in study.images.values()) == 32767


def test_fat_in_spin_echoes_and_maps(body):
    """Fat under the skin: the 2nd and 3rd pixel of the body, counted from outside."""
    views = [f"{name}_lax_4c" for name in ("t1map", "t2map", "t1w", "t2w")]
    inside = [np.pad(ndimage.binary_fill_holes(body.images[view][..., 0] > 0), 1) for view in views]
    depth = [ndimage.distance_transform_edt(shape)[1:-1, 1:-1] for shape in inside]
    rind = [(d > 2) & (d <= 3) for d in depth]
    t1, t2, bright, suppressed = (np.median(even(body, view)[there]) for view, there in zip(views, rind))
    assert rind[0].sum() > 300
    assert t1 == pytest.approx(TISSUES["fat"].t1_ms, rel=0.02)
    assert t2 == pytest.approx(TISSUES["fat"].t2_ms, rel=0.02)
    # 85 % of the voxel is fat; 2.53 and 0.31 in the table
    for value, name in ((bright, "t1w"), (suppressed, "t2w")):
        table = signals(name)
        muscle = np.median(values(body, f"{name}_lax_4c", MYO))
        assert value / muscle == pytest.approx(0.85 * abs(table["fat"]) / table["myocardium"], rel=0.12)


@pytest.mark.parametrize(("name", "time"), [("t1map", "t1_ms"), ("t2map", "t2_ms")])
def test_times_are_read_back_from_maps(acute, name, time):
    """Within 2 %. The left ventricle is left out: muscle of papillaries and trabeculae belongs to its label."""
    stack, long = f"{name}_sax", f"{name}_lax_4c"
    for view, label in ((stack, RV), (stack, MYO), (long, LA), (long, RA)):
        expected = getattr(TISSUES[NAME[label]], time)
        assert values(acute, view, label, 100).mean() == pytest.approx(expected, rel=0.02)
    assert np.median(values(acute, stack, LV)) == pytest.approx(getattr(TISSUES["blood"], time), rel=0.02)


@pytest.mark.parametrize(("name", "time"), [("t1map", "t1_ms"), ("t2map", "t2_ms")])
def test_times_of_injured_muscle(name, time):
    """Injured tissue is thin: 0.5 mm pixels without noise, on planes of the map's own."""
    study = make_study(**ACUTE | {"in_plane_mm": 0.5, "size": 300, "n_slices": 3, "sequences": (name,)}, noise_sd=0)
    for label in (SCAR, NO_REFLOW, OEDEMA):
        expected = getattr(TISSUES[NAME[label]], time)
        assert np.median(values(study, f"{name}_sax", label, 100)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("name", "unit"), [("t1map", 4.0), ("t2map", 4.0)])
def test_noise_of_a_map_has_no_bias_and_the_stated_size(name, unit):
    """The same planes with and without noise: where there is signal it adds nothing on average. It is `unit` times the
    noise of an image over its signal, relative to the value (or to the plane's mean where that is larger)."""
    options = {"n_frames": 2, "in_plane_mm": 2.0, "n_slices": 3, "sequences": (name,)}
    clean, noisy = (make_study(6, **options, noise_sd=sd) for sd in (0, 10))
    view = f"{name}_sax"
    added = noisy.images[view].astype(float) - clean.images[view]
    for label, tissue in ((MYO, "myocardium"), (RV, "blood"), (LV, "blood")):
        there = within(clean, view, label)
        value, found = clean.images[view][..., 0][there].astype(float), added[..., 0][there]
        floor = clean.images[view].mean(axis=(0, 1, 3))[np.nonzero(there)[2]]
        sd = unit * 10 * np.maximum(value, floor) / (1600 * TISSUES[tissue].proton_density + 30)
        assert abs(found.mean()) < 4 * sd.mean() / np.sqrt(len(found)) + 0.05
        sd = np.hypot(sd, 0.4)  # and both are rounded
        assert (found / sd).std() == pytest.approx(1, abs=0.1)
