"""The right ventricle's insertion points: where background, wall and right ventricle meet in each slice and frame."""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from cinema_fast.phantom.study import DISEASES, INSERTIONS, make_study

BACKGROUND, RV, MYO = 0, 1, 2
ANTERIOR, INFERIOR = 0, 1


@pytest.fixture(scope="module", params=DISEASES)
def study(request):
    """Large breath-holds: the points must follow them. Frames near end-diastole, end-systole and in between."""
    return make_study(4, disease=request.param, n_frames=3, in_plane_mm=0.7, size=280, n_slices=16, jitter_mm=6)


def voxels(study):
    """(T, Z, 2, 3) voxel coordinates of the points."""
    return apply_affine(np.linalg.inv(study.affines["sax"]), study.rv_insertions_mm)


def rv_mm2(study):
    """(T, Z): area of the right ventricle in mm^2."""
    return 0.49 * (study.labels["sax"] == RV).sum(axis=(0, 1)).T


def test_they_lie_in_their_slices(study):
    z = voxels(study)[..., 2]
    seen = np.isfinite(z)
    expected = np.broadcast_to(np.arange(z.shape[1])[None, :, None], z.shape)
    np.testing.assert_allclose(z[seen], expected[seen], atol=1e-9)


def test_three_structures_meet_there(study):
    """Background and wall have a voxel within 1.5 pixels. The wedge of blood between them is thinner than a voxel
    there: the right ventricle is within 2 pixels mostly, and 4 at end-systole or near its ends."""
    label, points, area = study.labels["sax"], voxels(study), rv_mm2(study)
    far = {value: [] for value in (BACKGROUND, RV, MYO)}
    for t, z in np.argwhere(area > 300):
        assert np.isfinite(points[t, z]).all()
        for value, found in far.items():
            distance = ndimage.distance_transform_edt(label[:, :, z, t] != value)
            for x, y, _ in points[t, z]:
                found.append(distance[round(x), round(y)])
    assert len(far[RV]) > 35
    assert max(far[BACKGROUND]) <= 1.5 and max(far[MYO]) <= 1.5
    assert np.median(far[RV]) <= 2 and max(far[RV]) <= 4


def test_the_right_ventricle_ends_there(study):
    """Seen from the middle of the left ventricle the right one spans the angle between the points, within 6 degrees:
    the tips of the wedge, 2 or 3 mm, are thinner than a voxel."""
    label, points, area = study.labels["sax"], voxels(study), rv_mm2(study)
    for t, z in np.argwhere(area > 300):
        middle = np.argwhere(np.isin(label[:, :, z, t], (MYO, 3))).mean(axis=0)
        right = np.argwhere(label[:, :, z, t] == RV) - middle
        towards = right.mean(axis=0)

        def angle(v, towards=towards):
            return np.degrees(np.arctan2(towards[0] * v[..., 1] - towards[1] * v[..., 0], v @ towards))

        ends = np.sort(angle(points[t, z, :, :2] - middle))
        assert angle(right).min() == pytest.approx(ends[0], abs=6)
        assert angle(right).max() == pytest.approx(ends[1], abs=6)


def test_anterior_lies_in_front(study):
    """RAS+: y to the front. The inferior point is nearer to the diaphragm too."""
    seen = np.isfinite(study.rv_insertions_mm[..., 0]).all(axis=-1)
    points = study.rv_insertions_mm[seen]
    assert INSERTIONS == ("rv_insertion_anterior", "rv_insertion_inferior")
    assert (points[:, ANTERIOR, 1] > points[:, INFERIOR, 1] + 5).all()
    assert (points[:, ANTERIOR, 2] > points[:, INFERIOR, 2]).all()


def test_nan_where_there_is_no_right_ventricle(study):
    """But for the very ends of the ventricle, below 20 mm^2."""
    seen, area = np.isfinite(study.rv_insertions_mm), rv_mm2(study)
    assert (seen.all(axis=(2, 3)) == seen.any(axis=(2, 3))).all()
    seen = seen.all(axis=(2, 3))
    assert seen[area > 20].all() and not seen[area == 0].any(), area[seen != (area > 0)]
    assert seen.any() and not seen.all()


def test_breath_holds_move_them(study):
    still = make_study(4, disease=study.patient.disease, n_frames=3, in_plane_mm=8, n_slices=16, jitter_mm=0)
    difference = study.rv_insertions_mm - still.rv_insertions_mm
    both = np.isfinite(difference).all(axis=(0, 2, 3))
    along = study.slice_shift_mm @ study._grids["sax"].axes[:2].T  # in the plane; through it, the slice is another
    for z in np.flatnonzero(both):
        if abs(study.slice_shift_mm[z] @ study._grids["sax"].axes[2]) < 3:
            moved = difference[:, z] @ study._grids["sax"].axes[:2].T
            np.testing.assert_allclose(moved, np.broadcast_to(along[z], moved.shape), atol=1.5)
    assert both.sum() > 3 and np.abs(along[both]).max() > 2.5
