"""masked_mse: mean squared error of predicted patches against the image's own pixels.

    loss = mean over b, m, i of (pred[b, m, i] - t[b, m, i])^2,   t = pixels of token masked[b, m], order p, q, (r,) c

With `norm` each target patch is (t - mean) / (std + 1e-6), std unbiased (He et al., "Masked autoencoders are scalable
vision learners", CVPR 2022, section 3; the epsilon is CineMA's). Only the decoded tokens' pixels are read: no
patchified copy of the image exists. Accumulates in at least float32.
"""

import torch
from torch import Tensor

from .patches import gather_patches
from .token_plan import TokenPlan

TARGET_EPS = 1e-6


def masked_mse(
    pred: Tensor,
    image: Tensor,
    plan: TokenPlan,
    patch: tuple[int, ...],
    *,
    norm: bool = False,
    intensity: Tensor | None = None,
) -> Tensor:
    """Loss of the decoded tokens of one view.

    Args:
        pred (B, M, prod(patch) * C) floating: predictions at `plan.masked`.
        image (B, C, *size): the target, any dtype; not differentiated.
        patch: pixels per axis of a token.
        norm: normalise each target patch.
        intensity (B, 2) float32: offset and scale a sample, pixel = (stored - offset) * scale; None: as stored.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes that do not fit together, or nothing to decode.
    """
    expected = (image.shape[0], plan.masked.shape[1])
    if pred.ndim != 3 or pred.shape[:2] != expected or not pred.numel():
        raise ValueError(f"masked_mse: want pred (B, M, P) with (B, M) = {expected}, M > 0; got {tuple(pred.shape)}")
    dtype = torch.promote_types(pred.dtype, torch.float32)
    target = gather_patches(image.detach(), plan.masked, patch).flatten(2).to(dtype)
    if target.shape != pred.shape:
        raise ValueError(f"masked_mse: a patch {tuple(patch)} holds {target.shape[2]} values, pred has {pred.shape[2]}")
    if intensity is not None:
        target = (target - intensity[:, None, :1].to(dtype)) * intensity[:, None, 1:].to(dtype)
    if norm:
        mean = target.mean(-1, keepdim=True)
        target = (target - mean) / (target.std(-1, keepdim=True) + TARGET_EPS)
    return (pred.to(dtype) - target).square().mean()
