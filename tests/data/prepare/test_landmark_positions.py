"""Positions of landmarks in another system of coordinates are refused with the figures and the likely one."""

import numpy as np
import pytest
from cine_files import affine_of, ball_cine, write_cine

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.store import CineStore
from cinema_fast.tasks.landmark_positions import MAX_OFF_IMAGE_MM, MAX_OFF_PLANE_MM, check_positions

HEART = np.array([-45.0, 35.0, 20.0])  # scanner mm, as hearts lie: to the left of the magnet's middle
SHAPE = (50, 46, 1)
AFFINES = {"lax_2c": affine_of((0.8, 0.6, 0.2), (1.4, 1.4, 6.0), HEART, SHAPE),
           "lax_4c": affine_of((-0.2, 0.5, 0.8), (1.4, 1.4, 6.0), HEART, SHAPE)}  # fmt: skip
PIXELS = np.array([(12.0, 20.0), (30.0, 25.0), (22.0, 40.0)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for study in "ab":
        for view, affine in AFFINES.items():
            write_cine(folder / f"src/{study}_{view}.nii.gz", ball_cine(SHAPE, affine), affine)
    prepare(PrepareConfig(folder / "src", folder / "store", workers=1, lax_size=(64, 64)), progress=False)
    return CineStore(folder / "store")


def mm_of(view: str, off_plane: float = 0.0) -> np.ndarray:
    """(3, 3) the scanner mm of PIXELS of the file, `off_plane` mm beside the plane."""
    affine = AFFINES[view]
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    return PIXELS @ affine[:3, :2].T + affine[:3, 3] + off_plane * normal


def check(store, at) -> None:
    """Check points `at(view)` (3, 3) of both frames, views and studies."""
    points = {study: {view: {t: dict(zip(("a", "b", "apex"), at(view))) for t in (0, 3)} for view in AFFINES}
              for study in "ab"}  # fmt: skip
    check_positions("t.csv", store, points, [(study, view) for study in "ab" for view in AFFINES])


def test_scanner_mm_are_accepted_up_to_the_limits(store):
    check(store, mm_of)
    check(store, lambda view: mm_of(view, 0.99 * MAX_OFF_PLANE_MM))
    along = {view: affine[:3, 0] / np.linalg.norm(affine[:3, 0]) for view, affine in AFFINES.items()}
    check(store, lambda view: mm_of(view) - 0.99 * MAX_OFF_IMAGE_MM * along[view])  # cut off by the crop
    check_positions("t.csv", store, {}, [])


@pytest.mark.parametrize(("at", "told"), [
    (lambda view: mm_of(view) * (-1, -1, 1), r"0 of 24 fit; .* flipped 24 fit: they are in DICOM's LPS\+: change the"),
    (lambda view: np.c_[PIXELS, np.zeros(3)], "they look like voxel indices: multiply each by the affine"),
    (lambda view: mm_of("lax_2c"), r"of lax_4c of a lies \d+ mm off the plane .* 20 of 24 fit; .*: they may be of an"),
    (lambda view: mm_of(view, 1.01 * MAX_OFF_PLANE_MM), r"lies 10 mm off the plane of its image \(allowed: 10\)"),
    (lambda view: mm_of(view) + 300 * AFFINES[view][:3, 0], r"and \d+ mm beside the image \(allowed: 100\)"),
])  # fmt: skip
def test_others_are_refused_with_the_figures(store, at, told):
    with pytest.raises(ValueError, match=told):
        check(store, at)
