"""From stored 8-bit frames to the model's input, for a whole batch on its device.

In this order: zoom about the image's centre with its size kept and zeros outside, min-max of each image to [0, 1],
zeros at the end of each axis up to the model's size. Parameters are arguments: the sampler draws them. Motion maps are
zoomed with their images.

Interpolation is separable, so a zoom is one matrix product an axis with a band matrix per sample: exact zeros outside
the image, exact identity at zoom 1, and no shape that depends on the parameters.
"""

import torch
from torch import Tensor

from .augmentation import AS_STORED, Augmentation

CUBIC = -0.75  # Keys' cubic convolution with the parameter that PyTorch's bicubic uses


def zoom_matrix(zoom: Tensor, extent: Tensor, size: int, *, cubic: bool) -> Tensor:
    """Interpolation weights of one axis: W[b, i, j] is the share of input pixel j in output pixel i.

    Output pixel i shows the input at c + (i - c) / zoom with c = (extent - 1) / 2, the centre of the image.

    Args:
        zoom (B,) floating: magnification. extent (B,) integer: pixels of the image on this axis, at most `size`.
        size: pixels of the padded axis. cubic: Keys' cubic convolution, else linear.

    Returns:
        (B, size, size) float32, zero in the rows and columns of padding.
    """
    pixel = torch.arange(size, device=zoom.device, dtype=torch.float64)
    centre = (extent.double() - 1) / 2
    at = centre[:, None] + (pixel - centre[:, None]) / zoom.double()[:, None]  # (B, size)
    distance = (at[:, :, None] - pixel).abs().float()
    if cubic:
        a, d = CUBIC, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
    else:
        weight = (1 - distance).clamp(min=0)
    inside = pixel < extent[:, None]
    return weight * (inside[:, :, None] & inside[:, None, :])


def zoom_images(images: Tensor, zoom: Tensor, extent: Tensor, *, linear: bool = False) -> Tensor:
    """Magnify each image about its centre; bicubic for two axes, trilinear for three, zeros from outside.

    Args:
        images (B, *size) float32, zero beyond each image's extent. zoom (B,). extent (B, axes) integer.
        linear: for two axes too, which keeps what is not negative so.

    Returns:
        (B, *size) float32, zero beyond the extent.
    """
    n_axes = images.ndim - 1
    for axis in range(n_axes):
        weight = zoom_matrix(zoom, extent[:, axis], images.shape[axis + 1], cubic=n_axes == 2 and not linear)
        lines = images.movedim(axis + 1, 1)
        images = torch.bmm(weight, lines.flatten(2)).view(lines.shape).movedim(1, axis + 1)
    return images


def min_max(images: Tensor, extent: Tensor) -> Tensor:
    """Scale each image to [0, 1] by its own minimum and maximum within its extent; a constant image becomes 0.

    images (B, *size) float32, extent (B, axes) integer. Returns (B, *size) float32, zero beyond the extent.
    """
    inside = torch.ones_like(images, dtype=torch.bool)
    for axis in range(images.ndim - 1):
        pixel = torch.arange(images.shape[axis + 1], device=images.device)
        along = [-1, *(images.shape[axis + 1] if a == axis else 1 for a in range(images.ndim - 1))]
        inside &= (pixel < extent[:, axis, None]).view(along)
    axes = tuple(range(1, images.ndim))
    low = images.masked_fill(~inside, torch.inf).amin(axes, keepdim=True)
    high = images.masked_fill(~inside, -torch.inf).amax(axes, keepdim=True)
    spread = high - low
    scaled = (images - low) / spread.masked_fill(spread == 0, 1.0)
    return scaled.masked_fill(~inside, 0.0)


def model_input(
    frames: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored frames of one view as the model takes them.

    Args:
        frames (B, *size) uint8: frames padded with zeros at the end of each axis to the model's size.
        extent (B, axes) integer: true size of each frame. augment: what is done to each.
        clip: `frames` are clips (B, T, X, Y): all frames of one are magnified alike in plane, and it is one image to
            the min-max, so that brightness keeps its course over the cycle.

    Returns:
        (B, 1, *size) float32 in [0, 1].

    Raises:
        ValueError: ranks that do not fit together.
    """
    if frames.ndim not in (3, 4) or extent.shape != (frames.shape[0], frames.ndim - 1):
        raise ValueError(
            f"model_input: want frames (B, X, Y[, Z]) and extent (B, axes), got {tuple(frames.shape)} and "
            f"{tuple(extent.shape)}"
        )
    images, zoom = frames.float(), augment.zoom
    if zoom is not None:
        if clip:
            n_frames = frames.shape[1]
            frame_zoom, frame_extent = (x.repeat_interleave(n_frames, 0) for x in (zoom, extent[:, 1:]))
            images = zoom_images(images.flatten(0, 1), frame_zoom, frame_extent).view_as(images)
        else:
            images = zoom_images(images, zoom, extent)
    return min_max(images, extent).unsqueeze(1)


def motion_input(
    motion: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored motion maps of one view, zoomed as `model_input` zooms the images that they belong to.

    Args:
        motion (B, *size) uint8: maps padded with zeros at the end of each axis; (B, X, Y) for clips.
        extent (B, axes) integer: true size of each frame, or of each clip (T, X, Y). augment: that of the images.
        clip: `extent` is of clips.

    Returns:
        (B, *size) float32 in 0..255, interpolated linearly, zero beyond the extent.

    Raises:
        ValueError: ranks that do not fit together.
    """
    if motion.ndim not in (3, 4) or extent.shape != (motion.shape[0], motion.ndim - 1 + clip):
        raise ValueError(
            f"motion_input: want motion (B, X, Y[, Z]) and extent (B, axes), of clips (B, X, Y) and (B, 3), got "
            f"{tuple(motion.shape)} and {tuple(extent.shape)}, clip={clip}"
        )
    maps, zoom = motion.float(), augment.zoom
    return maps if zoom is None else zoom_images(maps, zoom, extent[:, 1:] if clip else extent, linear=True)
