"""Converts stored frames of a view to the model's input, and motion maps to that of its masks, on their device."""

import torch
from torch import Tensor

from ...kernels.augment_images import augment_images, move_maps
from ...kernels.augment_images.torch_form import beyond
from .augmentation import AS_STORED, Augmentation


def stored_input(frames: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """`model_input` without augmentation, unscaled: (B, 1, *size) uint8, and offset and scale (B, 2) float32.

    Padding is set to each image's smallest value, which is scaled to 0. frames, extent: as for `model_input`.
    """
    padding = beyond(extent, frames.shape[1:])
    low = frames.masked_fill(padding, 255).flatten(1).amin(1)
    high = frames.masked_fill(padding, 0).flatten(1).amax(1)
    images = torch.where(padding, low.view(-1, *[1] * (frames.ndim - 1)), frames)
    scale = (high.float() - low.float()).clamp(min=1).reciprocal()  # for a constant image any scale will do
    return images.unsqueeze(1), torch.stack([low.float(), scale], 1)


def model_input(
    frames: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored frames of one view as the model takes them.

    Args:
        frames (B, *size) uint8: frames padded with zeros at the end of each axis to the model's size.
        extent (B, axes) int64: true size of each frame. augment: augmentation of each frame.
        clip: `frames` are clips (B, T, X, Y), as for `augment_images`.

    Returns:
        (B, 1, *size) float32 in [0, 1].

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    return augment_images(frames, extent, **augment._asdict(), clip=clip).unsqueeze(1)


def motion_input(
    motion: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored motion maps of one view, moved as `model_input` moves their images.

    Args:
        motion (B, *size) uint8: maps padded with zeros at the end of each axis; (B, X, Y) for clips.
        extent (B, axes) int64: true size of each frame, or of each clip (T, X, Y). augment: as for the images.
        clip: the images are clips, and `extent` is theirs.

    Returns:
        (B, *size) float32 in 0..255, interpolated linearly, zero beyond the extent.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    if motion.ndim not in (3, 4) or extent.shape != (motion.shape[0], motion.ndim - 1 + clip):
        raise ValueError(
            f"motion_input: expected motion (B, X, Y[, Z]) and extent (B, axes), of clips (B, X, Y) and (B, 3), got "
            f"{tuple(motion.shape)} and {tuple(extent.shape)}, clip={clip}"
        )
    extent = extent[:, 1:] if clip else extent
    return move_maps(motion, extent, zoom=augment.zoom, angle=augment.angle, shift=augment.shift, flip=augment.flip)
