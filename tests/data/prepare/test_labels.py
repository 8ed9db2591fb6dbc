"""Label maps on the grid of their cine: where they land, how much of each class, which files they come from."""

import numpy as np
import pytest
from cine_files import affine_of, grid_mm, write_cine, write_study
from prepared import run
from scipy import ndimage

from cinema_fast.data.formats.nifti import read_cine
from cinema_fast.data.prepare import geometry
from cinema_fast.data.prepare.labels import find_labels
from cinema_fast.data.prepare.sources import find_sources
from cinema_fast.data.store.store import CineStore

PATTERN = "labels/{id}_{view}.nii.gz"
CENTRE = np.array([5.0, -3.0, 20.0])  # scanner mm
HEART = CENTRE + np.array([2.0, 3.0, 1.0])
# rotated, with rows and columns of unlike length and spacing
GRIDS = {
    "sax": ((44, 52, 6), affine_of((0.3, 0.5, 1.0), (1.9, 1.3, 7.0), CENTRE, (44, 52, 6), turn=0.9)),
    "lax_4c": ((50, 40, 1), affine_of((0.2, 1.0, -0.4), (1.3, 1.7, 8.0), CENTRE, (50, 40, 1), turn=2.0)),
}


def ellipsoids(view: str, t: int) -> np.ndarray:
    """uint8 (X, Y, Z): 3 within 2 within 1, off the middle, of three unlike axes that beat."""
    shape, affine = GRIDS[view]
    at = (grid_mm(shape, affine) - HEART) / (np.array([14.0, 10.0, 18.0]) - t)
    distance = np.linalg.norm(at, axis=-1)
    return np.select([distance < 0.7, distance < 1, distance < 1.3], [3, 2, 1], 0).astype(np.uint8)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """A store of two studies: `many` of three classes, and `one` of class 3 alone, whose cines are 1000 where it is."""
    folder = tmp_path_factory.mktemp("hearts")
    for view, (_, affine) in GRIDS.items():
        labels = np.stack([ellipsoids(view, t) for t in range(3)], axis=-1)
        image = 1000 * (labels >= 2).astype(np.int16)
        for study, classes in (("many", labels), ("one", np.where(labels >= 2, np.uint8(3), np.uint8(0)))):
            write_cine(folder / f"src/{study}_{view}.nii.gz", image, affine)
            write_cine(folder / f"src/labels/{study}_{view}.nii.gz", classes, affine)
    report = run(folder / "src", folder / "store", labels=PATTERN, sax_size=(92, 64, 16), lax_size=(64, 80))
    assert (report.labelled, report.failures, report.unmatched) == (2, [], 0)
    assert "the store holds 2 studies, 2 of them labelled" in str(report)
    return CineStore(folder / "store")


@pytest.mark.parametrize("view", GRIDS)
@pytest.mark.parametrize("t", range(3))
def test_labels_lie_on_their_image(hearts, view, t):
    """The cine is brighter than half exactly where it is labelled; apart from where it is half, to a grey level."""
    image, labels = hearts.read_frame("one", view, t), hearts.read_labels("one", view, t)
    np.testing.assert_allclose(hearts.info("one", view).window[t], (0, 1000), atol=0.01)
    sure = abs(image - 127.5) > 1
    assert (labels == 3).sum() > 200 and sure.mean() > 0.97
    np.testing.assert_array_equal(labels[sure], 3 * (image > 127.5)[sure])


@pytest.mark.parametrize("view", GRIDS)
def test_the_largest_share_wins(hearts, view):
    """Against SciPy's linear interpolation of each class at the places that the stored affine names."""
    info = hearts.info("many", view)
    shape, affine = GRIDS[view]
    stored = (*info.shape[1:], 1)[:3]
    at = np.linalg.solve(affine, np.c_[grid_mm(stored, info.affine).reshape(-1, 3), np.ones(np.prod(stored))].T)[:3]
    inside = ((at > -0.5) & (at < np.array(shape)[:, None] - 0.5)).all(0).reshape(stored)
    assert 0 < inside.mean() < 1, "padding is part of this"
    for t in range(3):
        labels = ellipsoids(view, t)
        shares = np.stack([ndimage.map_coordinates((labels == c).astype(float), at.round(6), order=1, mode="nearest")
                           for c in range(4)]).reshape(4, *stored)
        second, first = np.sort(shares, axis=0)[-2:]
        clear = first - second > 2e-3
        expected = np.where(inside, shares.argmax(0), 0)
        assert clear.mean() > 0.98 and set(np.unique(expected)) == {0, 1, 2, 3}
        np.testing.assert_array_equal(hearts.read_labels("many", view, t).reshape(stored)[clear], expected[clear])


@pytest.mark.parametrize("spacing", [0.9, 1.5, 1.8, 2.0])
def test_areas_are_kept(spacing):
    """Discs and thin rings of known area, drawn on one grid and stored on another.

    Counting grid points misses the area of a disc of radius r by 0.82 sqrt(r) points, root mean square over places
    (Kendall 1948), once as drawn and once as stored: each area is within 4.5 of that, and the mean of many within 4
    of its standard error, which systematic growth of a tenth of a pixel would break.
    """
    rng = np.random.default_rng(7)
    n = round(110 / spacing)
    affine = np.diag([spacing, spacing, 8.0, 1.0])
    errors = []
    for _ in range(60):
        inner, wall = rng.uniform(15, 28), rng.uniform(1.3, 3) * spacing
        place = affine[:3, :3] @ [n / 2, n / 2, 0] + [*rng.uniform(-5, 5, 2), 0]
        distance = np.linalg.norm(grid_mm((n, n, 1), affine) - place, axis=-1)
        labels = np.select([distance < inner, distance < inner + wall], [3, 2], 0).astype(np.uint8)
        resample = geometry.plan_resampling((n, n, 1), affine, place, spacing=(1.0, 1.0), size=(96, 96))
        stored = resample.labels(labels)
        for radius, area in ((inner, (stored == 3).sum()), (inner + wall, (stored >= 2).sum())):
            rms = 0.82 * np.hypot(np.sqrt(radius / spacing) * spacing**2, np.sqrt(radius))
            errors.append((area - np.pi * radius**2) / rms)
    assert np.abs(errors).max() < 4.5 and abs(np.mean(errors)) < 4 / np.sqrt(len(errors))


def test_labels_at_the_edge_and_none_at_all():
    """The box that is resampled ends at the image's; labels that lie off the window leave nothing."""
    affine = np.diag([2.0, 2.0, 8.0, 1.0])
    labels = np.zeros((20, 16, 3), np.uint8)
    labels[:3, -2:] = 7
    plan = {"spacing": (1.0, 1.0), "affine": affine, "shape": labels.shape}
    stored = geometry.plan_resampling(centre_mm=np.array([0.0, 30, 8]), size=(20, 20), **plan).labels(labels)
    at = np.argwhere(stored == 7)
    assert len(at) == 6 * 4 * 3 and stored.any((1, 2)).sum() == 6 and stored.any((0, 2)).sum() == 4
    off = geometry.plan_resampling(centre_mm=np.array([38.0, 0, 8]), size=(20, 20), **plan)
    assert not off.labels(labels).any() and not off.labels(0 * labels).any()


@pytest.mark.parametrize(("files", "options", "found"), [
    ("A0_sa A0_sa_gt", ("{view}", "sax=sa", "{view}_gt"), {"sax": "A0_sa_gt"}),
    ("A0_4d A0_frame01 A0_frame01_gt A0_frame12_gt", ("{view}", "sax=4d", "frame{frame}_gt"),
     {"sax": "A0_frame01_gt A0_frame12_gt"}),
    ("A0_SA_ED A0_SA_ES A0_SA_CINE A0_SA_ED_gt A0_LA_ED A0_LA_ED_gt A0_LA_ES A0_LA_ES_gt A0_LA_CINE",
     ("{view}_E{frame}", "sax=SA lax_4c=LA", "{view}_E{frame}_gt"),
     {"sax": "A0_SA_ED_gt", "lax_4c": "A0_LA_ED_gt A0_LA_ES_gt"}),
])  # fmt: skip
def test_the_public_data_sets_are_laid_out_as_the_documentation_says(tmp_path, files, options, found):
    """M&Ms, ACDC, M&Ms-2."""
    (tmp_path / "A0").mkdir()
    for name in files.split():
        (tmp_path / f"A0/{name}.nii.gz").touch()
    pattern, aliases, labels = options
    sources = find_sources(tmp_path, f"{{id}}/{{id}}_{pattern}.nii.gz", tuple(aliases.split()))
    find_labels(sources, tmp_path, f"{{id}}/{{id}}_{labels}.nii.gz")
    names = {view: " ".join(path.name.removesuffix(".nii.gz") for path in source.labels)
             for view, source in sources.studies["A0"].items()}
    assert names == found and not any(path.name.endswith("_gt.nii.gz") for path in sources.unmatched)


def test_the_grid_it_is_on_already_leaves_it_as_it_is():
    labels = np.random.default_rng(0).integers(0, 256, (30, 20, 5), dtype=np.uint8)
    affine = np.diag([1.0, 1.0, 10.0, 1.0])
    resample = geometry.plan_resampling(labels.shape, affine, geometry.image_centre(labels.shape, affine),
                                        spacing=(1, 1, 10), size=labels.shape)
    np.testing.assert_array_equal(resample.labels(labels), labels)


def label_file(src, study: str, name: str, frames: slice | list[int], view: str = "sax"):
    """Write a label map of some frames of a cine: a box that lies elsewhere in every frame."""
    cine = read_cine(src / f"{study}_{view}.nii.gz", stack=view == "sax")
    labels = np.zeros((*cine.shape, cine.n_frames), np.uint8)
    for t in range(cine.n_frames):
        labels[8 + t : 20 + t, 10:30, :, t] = 3
    return write_cine(src / name, labels[..., frames], cine.affine)


@pytest.fixture
def src(tmp_path):
    write_study(tmp_path / "src", "p0", views=("sax", "lax_2c"))
    return tmp_path / "src"


def stored_frames(src, store, **options) -> tuple[int, ...]:
    report = run(src, store, **options)
    assert report.failures == []
    info = CineStore(store).info("p0", "sax")
    opened = CineStore(store)
    middles = np.array([np.argwhere(opened.read_labels("p0", "sax", t)).mean(0) for t in info.labels.frames])
    middles = middles @ info.affine[:3, :3].T
    steps = np.linalg.norm(np.diff(middles, axis=0), axis=1) / np.diff(info.labels.frames)
    np.testing.assert_allclose(steps, 1.5, atol=0.6)  # a voxel of 1.5 mm each frame: every map is at its own frame
    return info.labels.frames


def test_empty_frames_of_a_4d_file_are_unlabelled(src, tmp_path):
    """As M&Ms has them: ED and ES drawn, the others empty."""
    path = label_file(src, "p0", "labels/p0_sax.nii.gz", slice(None))
    cine = read_cine(src / "p0_sax.nii.gz", stack=True)
    drawn = np.zeros((*cine.shape, 4), np.uint8)
    drawn[8:20, 10:30, :, 0], drawn[10:22, 10:30, :, 2] = 3, 3
    write_cine(path, drawn, cine.affine)
    assert stored_frames(src, tmp_path / "store", labels=PATTERN) == (0, 2)
    assert CineStore(tmp_path / "store").info("p0", "lax_2c").labels is None


def test_numbered_files_count_from_one(src, tmp_path):
    """As ACDC has them: one 4D cine, label maps of two frames by their number."""
    label_file(src, "p0", "labels/p0_frame04_gt.nii.gz", 3)
    label_file(src, "p0", "labels/p0_frame01_gt.nii.gz", 0)
    label_file(src, "p0", "labels/p0_frame01_gt_old.nii.gz", 0)
    (src / "p0_lax_2c.nii.gz").unlink()  # the pattern has no {view}, as the data set has one only
    assert stored_frames(src, tmp_path / "store", labels="labels/{id}_frame{frame}_gt.nii.gz") == (0, 3)


def test_frames_that_are_files_name_their_labels(src, tmp_path):
    """As M&Ms-2 has them: ED and ES as files of their own, and their label maps."""
    cine = read_cine(src / "p0_sax.nii.gz", stack=True)
    for frame, t in (("ED", 0), ("ES", 2), ("mid", 1)):
        write_cine(src / f"x/p0_sax_{frame}.nii.gz", cine.frame(t).astype(np.int16), cine.affine)
    label_file(src, "p0", "x/p0_sax_ES_gt.nii.gz", 1)
    options = {"pattern": "{id}_{view}_{frame}.nii.gz", "labels": "{id}_{view}_{frame}_gt.nii.gz"}
    assert stored_frames(src / "x", tmp_path / "store", **options) == (1,)
    label_file(src, "p0", "x/p0_sax_mid_gt.nii.gz", 2)
    assert stored_frames(src / "x", tmp_path / "store", **options) == (1, 2)


def test_a_3d_map_is_of_a_cine_of_one_frame(src, tmp_path):
    cine = read_cine(src / "p0_sax.nii.gz", stack=True)
    write_cine(src / "x/p0_sax_ED.nii.gz", cine.frame(0).astype(np.int16), cine.affine)
    label_file(src, "p0", "x/p0_sax.nii.gz", 0)
    options = {"pattern": "{id}_{view}_{frame}.nii.gz", "labels": "{id}_{view}.nii.gz"}
    assert stored_frames(src / "x", tmp_path / "store", **options) == (0,)


@pytest.mark.parametrize(("pattern", "message"), [
    ("{id}/{what}.nii.gz", r"\{what\} is not understood there"), ("*_gt.nii.gz", r"\* is not understood"),
    ("{frame}/{id}.nii.gz", r"\{frame\} belongs in the name of the file"), ("/x/{id}.nii.gz", "relative to"),
])  # fmt: skip
def test_patterns_that_cannot_be_meant(src, tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        run(src, tmp_path / "store", labels=pattern)
    assert not (tmp_path / "store").exists()


def test_a_pattern_that_nothing_matches_is_refused(src, tmp_path):
    """Before hours of preparing a store that nobody can learn from."""
    with pytest.raises(ValueError, match=r"--labels 'lables/\{id\}\.nii\.gz': .* has no such file of any of the \d+ "
                       r"studies \(the last looked for was lables/\w+\.nii\.gz\)"):  # fmt: skip
        run(src, tmp_path / "store", labels="lables/{id}.nii.gz")
    assert not (tmp_path / "store").exists()
