"""Second scans of a heart, the style of a vendor's scanner, and what the images of a sequence depend on."""

import csv
import json
import time

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from cinema_fast.common.tables import PARTS
from cinema_fast.common.views import VIEWS
from cinema_fast.phantom.cohort import write_cohort
from cinema_fast.phantom.scanner import SCANNERS, STANDARD
from cinema_fast.phantom.sequences import PROTOCOLS, Palette, signals
from cinema_fast.phantom.study import make_study
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.split import split_studies

RV, MYO, LV = 1, 2, 3
SMALL = {"n_frames": 4, "in_plane_mm": 3.0, "n_slices": 6}
ALL = {"sequences": tuple(PROTOCOLS)}


@pytest.fixture(scope="module")
def scans():
    """Three scans of one heart, in every sequence."""
    return [make_study(27, disease="infarct", **SMALL, **ALL, scan=scan) for scan in range(3)]


def test_the_heart_is_the_same(scans):
    first, *others = scans
    of_the_scan = {"vendor", "landmarks", "slice_shift_mm", "rv_insertions_mm"}
    for other in others:
        for name in ("lv_ml", "rv_ml", "la_ml", "ra_ml"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
        assert (first.ef, first.rv_ef, first.myocardial_mass_g) == (other.ef, other.rv_ef, other.myocardial_mass_g)
        assert first.patient.heart == other.patient.heart and first.patient.injury == other.patient.injury
        assert first.injury.volumes_ml == other.injury.volumes_ml and first.frame_time_ms == other.frame_time_ms
        np.testing.assert_array_equal(first.patient.axes, other.patient.axes)
        truth, again = first.truth(), other.truth()
        assert {key for key in truth if truth[key] != again[key]} <= of_the_scan


def test_the_body_is_the_same(scans):
    """The surroundings at one place of the body, on planes of no scan; and the marks of the heart's own texture."""
    points = np.random.default_rng(0).uniform(-90, 90, (3, 4000)).astype(np.float32)
    drawn = [scan._acquire.thorax.signal(*points, 1.0, Palette(signals("cine"))) for scan in scans]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)
    assert len({scan._acquire.renderer._trabeculae for scan in scans}) == 1


def test_planes_breath_holds_noise_and_images_are_others(scans):
    for i, j in ((0, 1), (0, 2), (1, 2)):
        one, other = scans[i], scans[j]
        assert (one.scan, other.scan) == (i, j)
        assert np.abs(one.slice_shift_mm - other.slice_shift_mm).max() > 0.1
        for view in one.images:
            assert not np.allclose(one.affines[view], other.affines[view], atol=0.1)
            images = one.images[view], other.images[view]
            assert images[0].shape != images[1].shape or (images[0] != images[1]).mean() > 0.2


def test_planes_are_planned_alike(scans):
    """A radiographer's variation: the stack's normal is the heart's axis in each, its rotation varies by 6 degrees, its
    slices by up to 0.3 of their distance."""
    for scan in scans:
        np.testing.assert_allclose(scan._grids["sax"].axes[2], -scan.patient.axes[2], atol=1e-9)
    heights = [scan._grids["sax"].origin @ scan.patient.axes[2] / scan.spacing_mm["sax"][2] for scan in scans]
    assert np.abs(np.diff(heights)).min() > 0.01 and np.ptp(heights) <= 0.6
    angles = []
    for seed in range(24):
        one, other = (make_study(seed, n_frames=2, in_plane_mm=20, n_slices=1, scan=scan) for scan in (0, 1))
        u, v = (study._grids["sax"].axes for study in (one, other))
        angles.append(np.degrees(np.arctan2(u[0] @ v[1], u[0] @ v[0])))
    assert np.std(angles) == pytest.approx(6 * np.sqrt(2), rel=0.45)  # three standard errors of 24 draws


def test_first_scans_do_not_depend_on_later_ones(scans):
    again = make_study(27, disease="infarct", **SMALL, **ALL)
    for view in again.images:
        np.testing.assert_array_equal(scans[0].images[view], again.images[view])
    assert scans[0].vendor == "" and all(scan.vendor in SCANNERS for scan in scans[1:])


def test_vendors_of_rescans_vary_and_can_be_chosen():
    tiny = {"n_frames": 2, "in_plane_mm": 20.0, "n_slices": 1}
    drawn = {}
    options_of = {"first": {"vendor": "any"}, "second": {"vendor": "any", "scan": 1}, "not said": {"scan": 1}}
    for name, options in options_of.items():
        drawn[name] = [make_study(seed, **tiny, **options).vendor for seed in range(16)]
        assert set(drawn[name]) == set(SCANNERS)
    assert drawn["first"] != drawn["second"] == drawn["not said"]
    assert make_study(0, **tiny, vendor="ge", scan=1).vendor == "ge"


def test_clinical_stacks_of_two_scans_agree_in_volume():
    """12 slices 10 mm apart at other heights: a slice at the base counts or does not. It is 12 % of the left ventricle
    at most, a truncated ellipsoid of 90 mm (0.80 pi r^2 10 mm of 0.75 pi r^2 90 mm), and of its wall; more of the
    right one, whose base is wider. Not less than 1 %: planes do differ."""
    ratio, bias = [], []
    for seed in range(8):
        found = []
        for scan in (0, 1):
            study = make_study(seed, n_frames=2, in_plane_mm=2.4, scan=scan, vendor="siemens")
            voxel = np.prod(study.spacing_mm["sax"]) / 1e3
            found.append([(study.labels["sax"][..., 0] == label).sum() * voxel for label in (RV, MYO, LV)])
            bias.append(np.divide(found[-1], (study.rv_ml[0], study.myocardial_mass_g / 1.05, study.lv_ml[0])))
        ratio.append(np.divide(*found))
    off = np.abs(np.array(ratio) - 1).max(axis=0)
    assert (off < [0.2, 0.12, 0.12]).all() and (np.std(ratio, axis=0) > 0.01).all()
    assert (np.abs(np.mean(bias, axis=0) - 1) < [0.06, 0.03, 0.03]).all()


def test_parts_of_a_split_have_whole_hearts(tmp_path):
    """Both scans of a heart are in one part; the parts are those that `finetune` draws of the hearts alone."""
    tiny = {"n_frames": 2, "in_plane_mm": 20.0, "n_slices": 1}
    write_cohort(tmp_path / "two", 8, 3, rescan=True, **tiny)
    ids = write_cohort(tmp_path / "one", 8, 3, **tiny)
    assert not (tmp_path / "one/split.csv").exists()
    rows = dict(csv.reader((tmp_path / "two/split.csv").open(newline="")))
    assert rows.pop("study") == "split" and all(rows[heart] == rows[f"{heart}-rescan"] for heart in ids)
    split = split_studies(ids, val=FinetuneConfig.val, test=FinetuneConfig.test)
    assert len(rows) == 16 and {heart: rows[heart] for heart in ids} == {
        heart: part for part, hearts in zip(PARTS, split) for heart in hearts}  # fmt: skip


def test_without_sequences_there_is_the_truth_alone(tmp_path):
    tiny = {"n_frames": 4, "in_plane_mm": 6.0, "n_slices": 4}
    seen, unseen = make_study(3, **tiny), make_study(3, **tiny, sequences=())
    assert unseen.images == unseen.labels == {} and unseen.truth()["landmarks"] == {}
    of_views = ("landmarks", "landmarks_mm", "rv_insertions_mm")
    assert all(seen.truth()[name] == value for name, value in unseen.truth().items() if name not in of_views)
    for frame, again in zip(seen.scan_again("sax", 2, 1, gain=1, noise_sd=0),
                            unseen.scan_again("sax", 2, 1, gain=1, noise_sd=0)):  # fmt: skip
        np.testing.assert_array_equal(frame, again)
    with pytest.raises(ValueError, match="sequences must name at least one: choose of cine, lge"):
        write_cohort(tmp_path / "none", 1, 0, sequences=())


def test_landmarks_are_of_views_that_were_taken(tmp_path):
    write_cohort(tmp_path / "lge", 1, 3, n_frames=2, in_plane_mm=20.0, n_slices=3, sequences=("lge",))
    for name in ("landmarks.csv", "rv_insertions.csv"):
        assert len((tmp_path / "lge" / name).read_text().splitlines()) == 1  # the line of columns


def test_another_noise_in_a_frame_scanned_again():
    """`scan_again` gives the second scan noise of its own too."""
    tiny = {"n_frames": 2, "in_plane_mm": 6.0, "size": 40, "n_slices": 3, "vendor": "siemens"}
    one, other = (make_study(3, **tiny, scan=scan) for scan in (0, 1))
    frames = [study.scan_again("sax", 0, 5, gain=1.0, noise_sd=10.0)[0] for study in (one, other, one)]
    clean = [study.scan_again("sax", 0, 5, gain=1.0, noise_sd=0.0)[0] for study in (one, other, one)]
    noise = [frame.astype(float) - image for frame, image in zip(frames, clean)]
    bright = (clean[0] > 60) & (clean[1] > 60)
    assert bright.sum() > 300
    np.testing.assert_array_equal(frames[0], frames[2])
    assert abs(np.corrcoef(noise[0][bright], noise[1][bright])[0, 1]) < 0.2


# ---- cohorts


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "new"
    options = {"n_frames": 2, "in_plane_mm": 6.0, "n_slices": 3, "sequences": ("cine", "lge", "t1map")}
    return folder, write_cohort(folder, 2, 9, rescan=True, **options), options


def test_ids_and_files_of_a_cohort_with_rescans(cohort):
    folder, ids, _ = cohort
    assert ids == ["heart-000000", "heart-000000-rescan", "heart-000001", "heart-000001-rescan"]
    views = [*VIEWS, *(f"lge_{view}" for view in VIEWS), "t1map_sax", "t1map_lax_4c"]
    names = {f"{study}_{view}.nii.gz" for study in ids for view in views}
    assert {p.name for p in folder.glob("*.nii.gz")} == {p.name for p in (folder / "labels").iterdir()} == names


def test_files_hold_the_scans(cohort):
    folder, ids, options = cohort
    for name, (i, scan) in zip(ids, ((0, 0), (0, 1), (1, 0), (1, 1))):
        study = make_study((9, i), **options, scan=scan)
        for view in ("sax", "lge_sax", "t1map_lax_4c"):
            for path, voxels in ((folder, study.images[view]), (folder / "labels", study.labels[view])):
                nifti = nibabel.load(path / f"{name}_{view}.nii.gz")
                np.testing.assert_array_equal(np.asanyarray(nifti.dataobj).reshape(voxels.shape), voxels)
                assert nifti.ndim == (4 if view == "sax" else 3)
                np.testing.assert_allclose(nifti.affine, study.affines[view], atol=1e-3)


def test_truth_of_a_cohort_with_rescans(cohort):
    folder, ids, _ = cohort
    rows = list(csv.DictReader((folder / "truth.csv").open(newline="")))
    assert [row["study"] for row in rows] == ids
    assert [row["heart"] for row in rows] == ["heart-000000"] * 2 + ["heart-000001"] * 2
    for first, again in (rows[:2], rows[2:]):
        assert {key for key in first if first[key] != again[key]} == {"study", "vendor"}
    assert rows[0]["edv_ml"] != rows[2]["edv_ml"] and rows[0]["vendor"] == ""


def test_table_of_insertion_points(cohort):
    """It equals the array in truth.json, without its gaps."""
    folder, ids, options = cohort
    studies = json.loads((folder / "truth.json").read_text())["studies"]
    lines = list(csv.DictReader((folder / "rv_insertions.csv").open(newline="")))
    found = {(line.pop("study"), int(line.pop("frame")), int(line.pop("slice")), line.pop("landmark")): line
             for line in lines}  # fmt: skip
    assert len(found) == len(lines)
    n = 0
    for name in ids:
        study = make_study((9, int(name[6:12])), **options, scan=int("rescan" in name))
        points = np.array(studies[name]["rv_insertions_mm"], float)
        np.testing.assert_allclose(points, study.rv_insertions_mm)
        for (t, z, k), x in np.ndenumerate(points[..., 0]):
            line = found.get((name, t, z, ("rv_insertion_anterior", "rv_insertion_inferior")[k]))
            assert (line is None) == np.isnan(x)
            if line:
                assert line.pop("view") == "sax"
                np.testing.assert_allclose([float(v) for v in line.values()], points[t, z, k], atol=1e-4)
                n += 1
    assert n == len(lines) > 10


# ---- what images depend on


def test_every_sequence_by_seed(scans):
    one = make_study(27, disease="infarct", **SMALL, **ALL)
    other = make_study(28, disease="infarct", **SMALL, **ALL)
    views = {f"{name}_{plane}" if name != "cine" else plane for name, s in PROTOCOLS.items() for plane in s.planes}
    assert set(one.images) == set(one.labels) == set(one.affines) == set(one.spacing_mm) == views
    for view in views:
        np.testing.assert_array_equal(one.images[view], scans[0].images[view])
        np.testing.assert_array_equal(one.labels[view], scans[0].labels[view])
        assert one.images[view].shape[-1] == (1 if "_" in view and not view.startswith("lax") else 4)
        assert (one.images[view] != other.images[view]).mean() > 0.3
    np.testing.assert_array_equal([one.images[f"{name}_sax"].shape[2] for name in ("t1map", "t2map", "lge", "t2w")],
                                  [3, 3, 6, 6])  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_sequence_does_not_depend_on_the_others(name, scans):
    alone = make_study(27, disease="infarct", **SMALL, sequences=(name,), scan=1)
    assert len(alone.images) == len(PROTOCOLS[name].planes)
    for view in alone.images:
        np.testing.assert_array_equal(alone.images[view], scans[1].images[view])
        np.testing.assert_array_equal(alone.labels[view], scans[1].labels[view])
        np.testing.assert_array_equal(alone.affines[view], scans[1].affines[view])


def test_order_of_sequences_does_not_matter(scans):
    turned = make_study(27, disease="infarct", **SMALL, sequences=("t1w", "lge", "t1w"))
    assert list(turned.images) == [*(f"lge_{view}" for view in VIEWS), "t1w_sax", "t1w_lax_4c"]
    np.testing.assert_array_equal(turned.images["t1w_sax"], scans[0].images["t1w_sax"])


# ---- styles


@pytest.fixture(scope="module", params=SCANNERS)
def style(request):
    """A study of a vendor and its standard twin on a field as large as the body; clean and with the drawn noise."""
    options = {"n_frames": 2, "in_plane_mm": 1.6, "n_slices": 1}
    made = [make_study(2, **options, vendor=vendor, noise_sd=sd) for vendor, sd in
            ((request.param, None), (request.param, 0), (None, 0))]  # fmt: skip
    return SCANNERS[request.param], *made


def test_pixels_of_a_vendor(style):
    scanner, noisy, _, standard = style
    for view in VIEWS:
        assert noisy.spacing_mm[view][:2] == pytest.approx([1.6 * scanner.pixel] * 2)
        assert noisy.spacing_mm[view][2] == standard.spacing_mm[view][2]
        size = noisy.images[view].shape[0]
        assert size * 1.6 * scanner.pixel == pytest.approx(288, abs=1.6)


def blood(study):
    """Median of the right ventricle's blood (no papillary muscles), edges left out, over the coil's sensitivity."""
    there = ndimage.binary_erosion(study.labels["lax_4c"][..., 0] == RV, iterations=2)
    i, j = np.nonzero(there)
    mm = np.stack([i, j, 0 * i, 0 * i + 1]).T @ study.affines["lax_4c"].T
    return np.median(study.images["lax_4c"][..., 0][there] / study._acquire.thorax.bias(*mm[:, :3].T))


def test_brightness_of_a_vendor(style):
    """Blood over the table's blood is the gain (+-10 % a view)."""
    scanner, _, clean, _ = style
    gain = blood(clean) / signals("cine", scanner)["blood"]
    assert 0.9 * scanner.gain[0] * 0.97 < gain < 1.1 * scanner.gain[1] * 1.03


def test_noise_in_air_of_a_vendor(style):
    """Rayleigh: its mean square is 2 sd^2, sd being that of the style times the gain."""
    scanner, noisy, clean, _ = style
    air = ndimage.binary_erosion(clean.images["lax_4c"].max(axis=-1) == 0, iterations=2)
    gain = blood(clean) / signals("cine", scanner)["blood"]
    sd = np.sqrt((noisy.images["lax_4c"][air].astype(float) ** 2).mean() / 2) / gain
    assert air.sum() > 500
    assert 0.96 * scanner.noise_sd[0] < sd < 1.04 * scanner.noise_sd[1]


def test_contrast_of_a_vendor(style):
    """Muscle over blood depends on the flip angle, by the table."""
    scanner, _, clean, standard = style
    for study, expected in ((clean, signals("cine", scanner)), (standard, signals("cine"))):
        muscle = ndimage.binary_erosion(study.labels["lax_4c"][..., 0] == MYO, iterations=1)
        found = np.median(study.images["lax_4c"][..., 0][muscle]) / np.median(
            study.images["lax_4c"][..., 0][ndimage.binary_erosion(study.labels["lax_4c"][..., 0] == LV, iterations=2)])
        assert found == pytest.approx(expected["myocardium"] / expected["blood"], rel=0.12)


def test_sharpness_of_a_vendor(style):
    """Edges are ramps 1.2 x blur pixels wide. Of a ramp p from 0 to 1, the sum of p (1 - p) over the pixels is a sixth
    of its width on average. Measured along columns where the front of the chest, whose normal is y, meets the air."""
    for scanner, study in ((style[0], style[2]), (STANDARD, style[3])):
        image, affine = study.images["lax_4c"][..., 0].astype(float), study.affines["lax_4c"]
        slope = abs(affine[1, 1]) / study.spacing_mm["lax_4c"][1]  # of y along a column
        sums = []
        for column in image[np.abs(affine[0, 3] + affine[0, 0] * np.arange(len(image)) + affine[0, 1] * 40) < 60]:
            start = np.argmax(column > 0)
            edge = column[start : start + 5]
            share = np.clip(edge / edge[-1], 0, 1)
            sums.append((share * (1 - share)).sum())
        assert 6 * np.mean(sums) * slope == pytest.approx(1.2 * scanner.blur, rel=0.07)


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"sequences": ("cine", "dwi")}, "sequence 'dwi' is unknown: choose of cine, lge, t1map, t2map, t2w, t1w"),
     ({"sequences": "late"}, "sequence 'late' is unknown"), ({"acute": "yes"}, "acute must be True, False or None"),
     ({"vendor": "acme"}, "vendor 'acme' is unknown: choose one of siemens, philips, ge, any"),
     ({"vendor": ""}, "vendor '' is unknown"), ({"scan": -1}, "scan must be a whole number >= 0, got -1"),
     ({"scan": 0.5}, "scan must be a whole number")],
)  # fmt: skip
def test_options_out_of_range_are_named(bad, words):
    with pytest.raises(ValueError, match=words):
        make_study(0, **SMALL, **bad)


@pytest.mark.slow
def test_a_study_in_every_sequence_takes_less_than_two_seconds():
    best = np.inf
    for seed in range(2):
        start = time.process_time()
        make_study(seed, **ALL)
        best = min(best, time.process_time() - start)
    assert best < 2.0
