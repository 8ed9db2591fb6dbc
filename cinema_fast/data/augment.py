"""From stored 8-bit frames to the model's input, for a whole batch on its device.

In this order: flips, zoom, rotation and shift about the image's centre, its size kept and zeros outside; min-max of
each image to [0, 1]; gamma; noise, clamped to [0, 1]; zeros at the end of each axis up to the model's size. Parameters
are arguments: the sampler draws them. Motion maps go through the same geometry.

The reference's recipe, too, ends in [0, 1] after its noise, by another min-max; a clamp keeps the range without letting
the noise of two pixels set the brightness of all others.

Flips and zoom are separable: one matrix product an axis with a band matrix per sample, bicubic for two axes and
trilinear for three. With rotation or shift the plane is interpolated linearly at four neighbours a pixel, for all of a
run's images, those that happen not to be rotated among them. Both are exact where pixels fall onto pixels, have exact
zeros outside the image, and no shape that depends on the parameters.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .augmentation import AS_STORED, Augmentation
from .noise import gaussian_noise

CUBIC = -0.75  # Keys' cubic convolution with the parameter that PyTorch's bicubic uses


def zoom_matrix(zoom: Tensor, extent: Tensor, size: int, *, cubic: bool) -> Tensor:
    """Interpolation weights of one axis: W[b, i, j] is the share of input pixel j in output pixel i.

    Output pixel i shows the input at c + (i - c) / zoom with c = (extent - 1) / 2, the centre of the image; a negative
    zoom reverses the axis.

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
        images (B, *size) float32, zero beyond each image's extent. zoom (B,), or (B, axes) one per axis; negative
            values reverse an axis. extent (B, axes) integer.
        linear: for two axes too, which keeps what is not negative so.

    Returns:
        (B, *size) float32, zero beyond the extent.
    """
    n_axes = images.ndim - 1
    zoom = zoom if zoom.ndim == 2 else zoom[:, None].expand(-1, n_axes)
    for axis in range(n_axes):
        size, cubic = images.shape[axis + 1], n_axes == 2 and not linear
        weight = zoom_matrix(zoom[:, axis], extent[:, axis], size, cubic=cubic)
        lines = images.movedim(axis + 1, 1)
        images = torch.bmm(weight, lines.flatten(2)).view(lines.shape).movedim(1, axis + 1)
    return images


def turn_planes(planes: Tensor, extent: Tensor, *, zoom: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Zoom about the centre, turn about it, then shift planes of images, by linear interpolation with zeros outside.

    A pixel at p goes to c + R zoom (p - c) + shift, with c = (extent - 1) / 2, the centre, and R the rotation.

    Args:
        planes (B, X, Y, C) float32, zero beyond the extent: C images that move alike. extent (B, 2) integer.
        zoom (B, 2): negative values reverse an axis. angle (B,) floating: radians from X to Y. shift (B, 2): pixels.

    Returns:
        (B, X, Y, C) float32, zero beyond the extent.
    """
    batch, *size, channels = planes.shape
    rows = planes.reshape(-1, channels)
    centre = (extent.float() - 1) / 2
    offset = [
        torch.arange(n, device=planes.device) - centre[:, axis, None] - shift[:, axis, None]
        for axis, n in enumerate(size)
    ]
    cos, sin = angle.cos().float(), angle.sin().float()
    inside = ~beyond(extent, size)
    near = []  # of each axis the lower neighbour and the upper one, with their weights: (B, X, Y)
    for axis, (of_x, of_y) in enumerate(((cos, sin), (-sin, cos))):
        x, y = ((of / zoom[:, axis])[:, None] * along for of, along in zip((of_x, of_y), offset))
        at = x[:, :, None] + y[:, None, :] + centre[:, axis, None, None]
        low = at.floor()
        neighbours = []
        for pixel, weight in ((low, low + 1 - at), (low + 1, at - low)):
            lies_in = inside & (pixel >= 0) & (pixel < extent[:, axis, None, None])
            neighbours.append((pixel.clamp(0, size[axis] - 1).long(), weight * lies_in))
        near.append(neighbours)
    first = torch.arange(batch, device=planes.device)[:, None, None] * (size[0] * size[1])
    turned = torch.zeros_like(rows)
    for x, x_weight in near[0]:
        for y, y_weight in near[1]:
            row = rows.index_select(0, (first + x * size[1] + y).flatten())
            turned.addcmul_(row, (x_weight * y_weight).view(-1, 1))
    return turned.view(planes.shape)


def move_images(
    images: Tensor, extent: Tensor, augment: Augmentation, *, clip: bool = False, linear: bool = False
) -> Tensor:
    """Flip, zoom, rotate and shift each image; the third axis of volumes is zoomed alone, all frames of a clip alike.

    images (B, *size) float32, zero beyond the extent (B, axes) integer. linear: as of `zoom_images`.
    Returns (B, *size) float32, zero beyond the extent.
    """
    batch = len(images)
    if augment.zoom is None and augment.flip is None and augment.angle is None and augment.shift is None:
        return images
    extent = extent[:, 1:] if clip else extent
    zoom = torch.ones(batch, device=images.device) if augment.zoom is None else augment.zoom
    signed = zoom[:, None].expand(extent.shape)
    if augment.flip is not None:
        signed = torch.cat([signed[:, :2] * (1 - 2 * augment.flip.float()), signed[:, 2:]], 1)
    if augment.angle is None and augment.shift is None:
        if not clip:
            return zoom_images(images, signed, extent, linear=linear)
        signed, extent = (x.repeat_interleave(images.shape[1], 0) for x in (signed, extent))
        return zoom_images(images.flatten(0, 1), signed, extent, linear=linear).view_as(images)
    if extent.shape[1] == 3 and augment.zoom is not None:
        weight = zoom_matrix(zoom, extent[:, 2], images.shape[3], cubic=False)
        images = torch.bmm(images.flatten(1, 2), weight.mT).view_as(images)
    planes = images.movedim(1, -1) if clip else images.reshape(*images.shape[:3], -1)
    angle = torch.zeros(batch, device=images.device) if augment.angle is None else augment.angle
    shift = torch.zeros(batch, 2, device=images.device) if augment.shift is None else augment.shift
    turned = turn_planes(planes, extent[:, :2], zoom=signed[:, :2], angle=angle, shift=shift)
    return turned.movedim(-1, 1).contiguous() if clip else turned.view_as(images)


def beyond(extent: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *size) bool: which pixels are padding; extent (B, axes) integer."""
    along_axes = (
        (torch.arange(n, device=extent.device) >= extent[:, axis, None]).view(
            -1, *(n if a == axis else 1 for a in range(len(size)))
        )
        for axis, n in enumerate(size)
    )
    return reduce(torch.bitwise_or, along_axes)


def min_max(images: Tensor, padding: Tensor) -> Tensor:
    """Scale each image to [0, 1] by its own minimum and maximum outside the padding; a constant image becomes 0.

    images (B, *size) float32, padding (B, *size) bool. Returns (B, *size) float32, zero in the padding.
    """
    axes = tuple(range(1, images.ndim))
    low = images.masked_fill(padding, torch.inf).amin(axes, keepdim=True)
    high = images.masked_fill(padding, -torch.inf).amax(axes, keepdim=True)
    spread = high - low
    return (images - low).div_(spread.masked_fill(spread == 0, 1.0)).masked_fill_(padding, 0.0)


def change_brightness_(images: Tensor, padding: Tensor, augment: Augmentation) -> Tensor:
    """In place: gamma, then noise clamped to [0, 1]; images (B, *size) float32 in [0, 1], zero in the padding."""
    each = (-1, *[1] * (images.ndim - 1))
    if augment.gamma is not None:
        images.pow_(augment.gamma.view(each))
    if augment.noise is not None:
        noise = gaussian_noise(augment.noise_key, images[0].numel()).view(images.shape)
        images.addcmul_(noise, augment.noise.view(each)).clamp_(0, 1).masked_fill_(padding, 0.0)
    return images


def model_input(
    frames: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored frames of one view as the model takes them.

    Args:
        frames (B, *size) uint8: frames padded with zeros at the end of each axis to the model's size.
        extent (B, axes) integer: true size of each frame. augment: what is done to each.
        clip: `frames` are clips (B, T, X, Y): all frames of one are moved alike in plane, and it is one image to the
            min-max and gamma, so that brightness keeps its course over the cycle; noise differs from frame to frame.

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
    images = move_images(frames.float(), extent, augment, clip=clip)
    padding = beyond(extent, images.shape[1:])
    return change_brightness_(min_max(images, padding), padding, augment).unsqueeze(1)


def motion_input(
    motion: Tensor, extent: Tensor, augment: Augmentation = AS_STORED, *, clip: bool = False
) -> Tensor:
    """Stored motion maps of one view, moved as `model_input` moves the images that they belong to.

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
    return move_images(motion.float(), extent[:, 1:] if clip else extent, augment, linear=True)
