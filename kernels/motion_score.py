"""motion_score: how much each patch moves over the cardiac cycle, and the weights that masks are drawn by.

    s[b, n] = mean over pairs and over the pixels of patch n of |flow|, divided by its mean over the patches
    weight of being masked = ((1 - a) + a * s) ** (1 / tau)

Where nothing moves every score is 1, and the draw is uniform. (Kim et al., "HeartMAE", ML4H 2024: the moving heart
guides the mask.)
"""

import math

import torch
from torch import Tensor

from .patches import grid_of


def motion_score(flow: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Mean magnitude of the flow in each patch over the cycle, relative to its mean over the patches.

    Args:
        flow (B, P, 2, X, Y[, Z]) floating: displacements in pixels of P pairs of frames, as `optical_flow` gives them.
        patch: pixels of a patch per spatial axis; with one entry more, the first of which counts frames, the patches of
            a clip of P + 1 frames whose consecutive pairs the flow is of: a frame moves by the mean of the pairs that
            it belongs to.

    Returns:
        (B, N) float32 with mean 1, N patches in row-major order of the grid; all 1 where nothing moves.

    Raises:
        ValueError: another rank, no pair, or a patch that does not divide the image or the clip.
    """
    if flow.ndim not in (5, 6) or flow.shape[2] != 2 or not flow.shape[1]:
        raise ValueError(f"motion_score: want flow (B, P, 2, X, Y[, Z]) with P > 0, got {tuple(flow.shape)}")
    size = tuple(flow.shape[3:])
    if len(patch) not in (len(size), len(size) + 1):
        raise ValueError(
            f"motion_score: want a patch of {len(size)} axes, or of {len(size) + 1} for a clip, got {tuple(patch)}"
        )
    magnitude = torch.linalg.vector_norm(flow.float(), dim=2)  # (B, P, *size)
    if len(patch) > len(size):
        before, after = magnitude[:, :1], magnitude[:, -1:]
        magnitude = torch.cat([before, (magnitude[:, :-1] + magnitude[:, 1:]) / 2, after], dim=1)
        size = (magnitude.shape[1], *size)
    else:
        magnitude = magnitude.mean(1)
    return relative_to_mean(patch_means(magnitude, patch))


def patch_means(values: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Mean of each patch: values (B, *size) floating -> (B, N) float32. ValueError where the patch does not divide."""
    size = tuple(values.shape[1:])
    grid = grid_of(size, patch)
    split = [extent for pair in zip(grid, patch) for extent in pair]
    inside = range(2, 2 + 2 * len(grid), 2)
    return values.float().reshape(len(values), *split).mean(tuple(inside)).flatten(1)


def relative_to_mean(score: Tensor) -> Tensor:
    """score (B, N), not negative, divided by its mean over N; 1 everywhere in a sample where all are zero."""
    mean = score.mean(1, keepdim=True)
    return torch.where(mean > 0, score / mean.clamp(min=torch.finfo(score.dtype).tiny), torch.ones_like(score))


def mask_weights(score: Tensor, *, strength: float, temperature: float = 1.0, keep: bool = False) -> Tensor:
    """Weights of being masked, for `sample_mask`'s `scores`.

    Args:
        score (B, N): as from `motion_score`.
        strength: a of the formula, 0 (uniform) to 1. temperature: tau, above 0; small ones draw the largest only.
        keep: weights of being kept instead, so that what moves stays visible.

    Raises:
        ValueError: names the argument that is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"mask_weights: strength must lie in 0..1, got {strength}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"mask_weights: temperature must be above 0, got {temperature}")
    exponent = (-1 if keep else 1) / temperature
    return (1 - strength + strength * score).clamp(min=1e-6) ** exponent
