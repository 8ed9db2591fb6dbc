"""Augmentation of label maps and landmarks, and cutout, which sets boxes of images to zero."""

import torch
from torch import Tensor

from ..data.loading.augmentation import Augmentation
from ..kernels.augment_images import move_maps

CUTOUT_SHARE = 0.5  # share of the images, as for every change in the reference's recipe


def move_labels(labels: Tensor, extent: Tensor, augment: Augmentation, n_classes: int) -> Tensor:
    """Label maps moved as `model_input` moves their images: each class is interpolated linearly, the largest one wins.

    Args:
        labels (B, *size) uint8 below n_classes, 0 beyond the extent (B, axes) int64.

    Returns:
        (B, *size) int64; 0 outside of the image.
    """
    moves = {"zoom": augment.zoom, "angle": augment.angle, "shift": augment.shift, "flip": augment.flip}
    if all(part is None for part in moves.values()):
        return labels.long()
    each = {name: None if part is None else part.repeat(n_classes - 1, *[1] * (part.ndim - 1))
            for name, part in moves.items()}  # fmt: skip
    inside = torch.cat([(labels == value).byte() * 255 for value in range(1, n_classes)])
    share = move_maps(inside, extent.repeat(n_classes - 1, 1), **each).unflatten(0, (n_classes - 1, -1))
    background = 255 - share.sum(0, keepdim=True)
    return torch.cat([background, share]).argmax(0)


def move_points(points: Tensor, extent: Tensor, augment: Augmentation) -> Tensor:
    """Points (B, L, 2) in pixels of the plane, moved as `model_input` moves their images (B, 2 axes); NaN stays NaN."""
    centre = (extent[:, None, :2].double() - 1) / 2
    at = points.double() - centre
    if augment.flip is not None:
        at = at * (1 - 2 * augment.flip.double())[:, None]
    if augment.zoom is not None:
        at = at * augment.zoom.double()[:, None, None]
    if augment.angle is not None:
        cos, sin = augment.angle.double().cos()[:, None], augment.angle.double().sin()[:, None]
        at = torch.stack([cos * at[..., 0] - sin * at[..., 1], sin * at[..., 0] + cos * at[..., 1]], -1)
    if augment.shift is not None:
        at = at + augment.shift.double()[:, None]
    return at + centre


def cut_boxes(images: Tensor, share: float) -> Tensor:
    """In half of the images (B, n, *size), set a box at a random place to zero; its sides are `share` of the image's.

    Cutout (coarse dropout); draws from PyTorch's generator of the images' device.
    """
    if not share:
        return images
    batch, _, *size = images.shape
    drawn = torch.rand(batch, 1 + len(size), device=images.device)
    kept = (drawn[:, :1] >= CUTOUT_SHARE).view(batch, *[1] * len(size))
    for axis, n in enumerate(size):
        side = max(round(share * n), 1)
        start = (drawn[:, 1 + axis, None] * (n - side + 1)).floor()
        along = torch.arange(n, device=images.device)
        outside = (along < start) | (along >= start + side)
        kept = kept | outside.view(batch, *(n if a == axis else 1 for a in range(len(size))))
    return images * kept.unsqueeze(1)
