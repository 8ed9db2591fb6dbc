"""How well label maps agree: overlap, distance between surfaces, volume; and how stable a prediction is."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.extras import need

CLASSES = {1: "RV", 2: "MYO", 3: "LV"}
ML_PER_MM3 = 1e-3


def segmentation_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Mapping[int, str] = CLASSES,
    masks: Mapping[str, Sequence[int]] | None = None,
    empty_dice: float = math.nan,
) -> dict[str, dict[str, float]]:
    """Scores of the masks of one frame.

    Args:
        pred, truth (X, Y[, Z]) uint8: label maps, 0 is background. spacing_mm: one number an axis [mm].
        classes: label -> name. masks: {name: its labels}; by default a mask for every class.
        empty_dice: dice and iou where neither map has the mask.

    Returns:
        {mask: {dice, iou, hd95_mm, msd_mm, pred_ml, truth_ml}}. hd95_mm is the 95th percentile of the distances
        between the surfaces, the larger of both directions; msd_mm is their mean over both directions. A surface is the
        voxels of the mask with a neighbour outside it, also along the stack, all with equal weight (MONAI).
        Where neither map has the mask, there is nothing to evaluate: distances are nan; where only one has it, dice
        and iou are 0 and distances inf. Volumes [ml] are those of stacks, nan for single slices.

    Raises:
        ValueError: shapes or number of spacings that do not fit, a label outside `classes`, MONAI is missing.
    """
    check_label_maps(pred, truth, spacing_mm, classes)
    voxel_ml = math.prod(spacing_mm) * ML_PER_MM3 if truth.ndim == 3 else math.nan
    scores = {}
    for name, labels in (masks or {name: (label,) for label, name in classes.items()}).items():
        of_pred, of_truth = np.isin(pred, labels), np.isin(truth, labels)
        n_pred, n_truth = int(of_pred.sum()), int(of_truth.sum())
        both, either = int((of_pred & of_truth).sum()), int((of_pred | of_truth).sum())
        hd95, msd = surface_distances(of_pred, of_truth, spacing_mm)
        scores[name] = {
            "dice": 2 * both / (n_pred + n_truth) if either else empty_dice,
            "iou": both / either if either else empty_dice,
            "hd95_mm": hd95,
            "msd_mm": msd,
            "pred_ml": n_pred * voxel_ml,
            "truth_ml": n_truth * voxel_ml,
        }
    return scores


def surface_distances(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Hausdorff 95 and mean surface distance [mm] of two masks (X, Y[, Z]) bool; nan if both are empty, inf if one is.

    Source: MONAI's compute_hausdorff_distance and compute_average_surface_distance (symmetric).
    """
    metrics = need("monai.metrics", "surface distances are measured")
    if not pred.any() or not truth.any():
        return (math.inf, math.inf) if pred.any() or truth.any() else (math.nan, math.nan)
    masks = [torch.from_numpy(mask.astype(np.uint8))[None, None] for mask in (pred, truth)]
    how = {"include_background": True, "spacing": list(map(float, spacing_mm))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about its own calls
        hd95 = metrics.compute_hausdorff_distance(*masks, percentile=95, **how)
        msd = metrics.compute_average_surface_distance(*masks, symmetric=True, **how)
    return float(hd95), float(msd)


def check_label_maps(
    pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], classes: Mapping[int, str]
) -> None:
    """Raises ValueError where two label maps cannot be compared, or hold unknown labels."""
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise ValueError(f"expected label maps of one shape (X, Y[, Z]), got pred {pred.shape}, truth {truth.shape}")
    if len(spacing_mm) != truth.ndim or not all(0 < mm < math.inf for mm in spacing_mm):
        raise ValueError(f"spacing_mm {tuple(spacing_mm)} must be {truth.ndim} numbers above 0 for shape {truth.shape}")
    check_labels("pred", pred, classes)
    check_labels("truth", truth, classes)


def check_labels(name: str, labels: np.ndarray, classes: Mapping[int, str]) -> None:
    """Raises ValueError where label maps of any shape are not uint8, or hold unknown labels."""
    if labels.dtype != np.uint8:
        raise ValueError(f"{name}: expected a label map of uint8, got {labels.dtype}")
    strange = sorted(set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - {0, *classes})
    if strange:
        raise ValueError(f"{name} holds label {', '.join(map(str, strange))}; expected 0 and {dict(classes)}")


def stability_score(logits: Tensor, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """How little a prediction depends on its threshold: IoU of the masks at threshold + offset and threshold - offset.

    Args:
        logits (B, C, *size): before the softmax, background included; their mean over C is subtracted first.

    Returns:
        (B, C) in 0..1; nan for a class that is nowhere above the lower threshold.

    Raises:
        ValueError: a negative offset.

    Source: Kirillov et al., Segment Anything, 2023 (its mask generator); per class as the reference does.
    """
    if offset < 0:
        raise ValueError(f"offset {offset} must be 0 or more")
    centred = logits.float() - logits.float().mean(1, keepdim=True)
    inner = (centred >= threshold + offset).flatten(2).sum(-1)
    outer = (centred >= threshold - offset).flatten(2).sum(-1)  # contains the inner mask, so it is their union
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.nan)
