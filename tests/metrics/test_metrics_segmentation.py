"""Scores of label maps against closed forms, scipy and SimpleITK."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from cinema_fast.metrics.segmentation import segmentation_scores, stability_score, surface_distances

ONE = {1: "LV"}


def box(shape, *ranges) -> np.ndarray:
    """Label 1 in ranges of voxels (start, stop) of each axis."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(*one) for one in ranges)] = 1
    return labels


def by_scipy(pred: np.ndarray, truth: np.ndarray, spacing) -> tuple[float, float]:
    """Hausdorff 95 and mean surface distance from all pairs of surface voxels."""
    points = [np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (pred, truth)]
    pairs = cdist(*points)
    there, back = pairs.min(1), pairs.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


def test_overlap_and_volume_of_shifted_boxes():
    pred, truth = box((20, 20, 6), (2, 12), (3, 9), (1, 5)), box((20, 20, 6), (6, 16), (3, 9), (1, 5))
    scores = segmentation_scores(pred, truth, (1.5, 2.0, 10.0), ONE)["LV"]
    assert scores["dice"] == 0.6 and scores["iou"] == pytest.approx(6 / 14, rel=1e-12)
    assert scores["pred_ml"] == scores["truth_ml"] == pytest.approx(10 * 6 * 4 * 30 / 1000, rel=1e-12)


def test_distances_of_single_voxels_are_those_of_points():
    pred, truth = box((9, 9, 4), (1, 2), (1, 2), (0, 1)), box((9, 9, 4), (4, 5), (5, 6), (2, 3))
    distance = math.hypot(3 * 1.5, 4 * 2.0, 2 * 10.0)
    assert surface_distances(pred == 1, truth == 1, (1.5, 2.0, 10.0)) == pytest.approx((distance, distance), rel=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 1.2)])
def test_concentric_spheres_are_the_difference_of_their_radii_apart(spacing):
    grid = np.stack(np.meshgrid(*(np.arange(48) * mm for mm in spacing), indexing="ij"), -1)
    radius = np.linalg.norm(grid - grid[24, 24, 24], axis=-1)
    hd95, msd = surface_distances(radius <= 12, radius <= 17, spacing)
    # voxels of a surface lie up to a diagonal inside it
    assert abs(hd95 - 5) < np.linalg.norm(spacing) and abs(msd - 5) < max(spacing) / 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 10.0), (1.4, 0.7, 5.0), (1.4, 0.7)])
def test_distances_agree_with_all_pairs_of_surface_voxels(spacing):
    rng = np.random.default_rng(0)
    for _ in range(4):
        pred, truth = (rng.random((14, 12, 5)[: len(spacing)]) < 0.3 for _ in range(2))
        assert surface_distances(pred, truth, spacing) == pytest.approx(by_scipy(pred, truth, spacing), rel=1e-5)


def test_overlap_agrees_with_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(1)
    pred, truth = (rng.integers(0, 4, (12, 13, 5)).astype(np.uint8) for _ in range(2))
    measured = sitk.LabelOverlapMeasuresImageFilter()
    measured.Execute(sitk.GetImageFromArray(pred), sitk.GetImageFromArray(truth))
    scores = segmentation_scores(pred, truth, (1, 1, 10))
    for label, name in ((1, "RV"), (2, "MYO"), (3, "LV")):
        assert scores[name]["dice"] == pytest.approx(measured.GetDiceCoefficient(label), rel=1e-12)
        assert scores[name]["iou"] == pytest.approx(measured.GetJaccardCoefficient(label), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
@settings(max_examples=25, deadline=None)
def test_a_map_agrees_with_itself_and_overlap_is_symmetric(seed, share):
    rng = np.random.default_rng(seed)
    a, b = (rng.choice([0, 1], (8, 7), p=[1 - share, share]).astype(np.uint8) for _ in range(2))
    a[0, 0] = b[-1, -1] = 1
    same, there, back = (segmentation_scores(*pair, (1.0, 2.0), ONE)["LV"] for pair in ((a, a), (a, b), (b, a)))
    assert (same["dice"], same["iou"], same["hd95_mm"], same["msd_mm"]) == (1, 1, 0, 0)
    for name in ("dice", "iou", "hd95_mm", "msd_mm"):
        assert there[name] == pytest.approx(back[name], rel=1e-6)
    assert there["iou"] == pytest.approx(there["dice"] / (2 - there["dice"]), rel=1e-12)


def test_an_empty_class_is_nothing_to_judge_in_both_and_a_failure_in_one():
    empty, full = box((6, 6)), box((6, 6), (1, 3), (1, 3))
    empty[:] = 0
    both = segmentation_scores(empty, empty, (1, 1), ONE)["LV"]
    assert all(math.isnan(both[name]) for name in ("dice", "iou", "hd95_mm", "msd_mm", "truth_ml"))
    for pair in ((empty, full), (full, empty)):
        one = segmentation_scores(*pair, (1, 1), ONE)["LV"]
        assert (one["dice"], one["iou"], one["hd95_mm"], one["msd_mm"]) == (0, 0, math.inf, math.inf)


@pytest.mark.parametrize(
    ("pred", "truth", "spacing", "words"),
    [
        (box((4, 4)), box((4, 5)), (1, 1), r"\(4, 4\).*\(4, 5\)"),
        (box((4, 4)), box((4, 4)), (1, 1, 10), "2 numbers above 0"),
        (box((4, 4)), box((4, 4)), (1, 0), "2 numbers above 0"),
        (box((4, 4)).astype(int), box((4, 4)), (1, 1), "pred: expected a label map of uint8, got int64"),
        (box((4, 4)), box((4, 4)) * 7, (1, 1), "truth holds label 7"),
    ],
)
def test_maps_that_do_not_fit_are_named(pred, truth, spacing, words):
    with pytest.raises(ValueError, match=words):
        segmentation_scores(pred, truth, spacing, ONE)


def test_stability_is_the_share_of_the_outer_mask_that_is_in_the_inner_one():
    centred = torch.tensor([2.0, 1.0, 0.5, -0.5, -1.0, -3.0])
    logits = torch.stack([centred, -centred]) + 7  # the mean over classes is 7 everywhere
    # class 0: 2 of 5 voxels; class 1: at 1 or more: 1, 3; at -1 or more: -1, -0.5, 0.5, 1, 3
    assert torch.equal(stability_score(logits.view(1, 2, 2, 3)), torch.tensor([[2 / 5, 2 / 5]]))
    assert torch.equal(stability_score(logits.view(1, 2, 6), offset=0.0), torch.ones(1, 2))
    assert stability_score(torch.stack([centred * 0 - 9, centred * 0 + 9])[None])[0].isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="offset -1"):
        stability_score(logits[None], offset=-1.0)


def test_stability_agrees_with_monai_on_the_two_masks():
    from monai.metrics import compute_iou

    logits = torch.randn(2, 4, 9, 8, 3, generator=torch.Generator().manual_seed(0)) * 2
    centred = logits - logits.mean(1, keepdim=True)
    assert torch.allclose(stability_score(logits), compute_iou(centred >= 1, centred >= -1), rtol=1e-6)


def test_without_monai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "monai.metrics", None)
    with pytest.raises(ValueError, match=r"monai.*pip install 'cinema-fast\[downstream\]'"):
        surface_distances(np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1))
