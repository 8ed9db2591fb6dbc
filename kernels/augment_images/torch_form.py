"""The PyTorch form of `augment_images`: in float64 the oracle of the tests, else the form that runs without a kernel.

Flips and zoom are separable: one matrix product per axis with a band matrix per sample, bicubic for images of two axes
and trilinear for three. With rotation or shift the plane is interpolated linearly from four neighbours a pixel, for all
images of a run, including those that are not rotated. Both ways are exact where pixels fall onto pixels and give exact
zeros outside the image; no shape depends on the parameters.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .gaussian_noise import gaussian_noise

CUBIC = -0.75  # Keys' cubic convolution with the parameter that PyTorch's bicubic uses
GRID = 2.0**24  # positions are rounded to 1 / GRID of a pixel: a quarter turn in float64 misses pixels by some 1e-14
# [grey values] an image of a smaller range counts as constant: min-max would amplify rounding errors of interpolation
FLAT = 2.0**-10


def zoom_matrix(
    zoom: Tensor, extent: Tensor, size: int, *, cubic: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Interpolation weights of one axis: W[b, i, j] is the share of input pixel j in output pixel i.

    Output pixel i shows the input at c + (i - c) / zoom with c = (extent - 1) / 2, the centre of the image; a negative
    zoom reverses the axis.

    Args:
        zoom (B,) floating: magnification. extent (B,) integer: pixels of the image on this axis, at most `size`.
        size: pixels of the padded axis. cubic: Keys' cubic convolution, else linear.

    Returns:
        (B, size, size) in dtype, zero in the rows and columns of padding.
    """
    pixel = torch.arange(size, device=zoom.device, dtype=torch.float64)
    centre = (extent.double() - 1) / 2
    at = centre[:, None] + (pixel - centre[:, None]) / zoom.double()[:, None]  # (B, size)
    distance = (at[:, :, None] - pixel).abs().to(dtype)
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
        images (B, *size) floating, zero beyond each image's extent. zoom (B,), or (B, axes) one per axis; negative
            values reverse an axis. extent (B, axes) integer.
        linear: interpolate linearly for two axes too, so that no value becomes negative.

    Returns:
        (B, *size) in the images' dtype, zero beyond the extent.
    """
    n_axes = images.ndim - 1
    zoom = zoom if zoom.ndim == 2 else zoom[:, None].expand(-1, n_axes)
    for axis in range(n_axes):
        size, cubic = images.shape[axis + 1], n_axes == 2 and not linear
        weight = zoom_matrix(zoom[:, axis], extent[:, axis], size, cubic=cubic, dtype=images.dtype)
        lines = images.movedim(axis + 1, 1)
        images = torch.bmm(weight, lines.flatten(2)).view(lines.shape).movedim(1, axis + 1)
    return images


def turn_planes(planes: Tensor, extent: Tensor, *, zoom: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Zoom and rotate planes about their centre, then shift them, by linear interpolation with zeros outside.

    A pixel at p goes to c + R zoom (p - c) + shift, with c = (extent - 1) / 2, the centre, and R the rotation.

    Args:
        planes (B, X, Y, C) floating, zero beyond the extent: C images that move alike. extent (B, 2) integer.
        zoom (B, 2): negative values reverse an axis. angle (B,) floating: radians from X to Y. shift (B, 2): pixels.

    Returns:
        (B, X, Y, C) in the planes' dtype, zero beyond the extent.
    """
    batch, *size, channels = planes.shape
    rows = planes.reshape(-1, channels)
    centre, zoom, shift, angle = (extent.double() - 1) / 2, zoom.double(), shift.double(), angle.double()
    offset = [
        torch.arange(n, device=planes.device) - centre[:, axis, None] - shift[:, axis, None]
        for axis, n in enumerate(size)
    ]
    cos, sin = angle.cos(), angle.sin()
    inside = ~beyond(extent, size)
    near = []  # of each axis the lower neighbour and the upper one, with their weights: (B, X, Y)
    for axis, (of_x, of_y) in enumerate(((cos, sin), (-sin, cos))):
        x, y = ((of / zoom[:, axis])[:, None] * along for of, along in zip((of_x, of_y), offset))
        at = x[:, :, None] + y[:, None, :] + centre[:, axis, None, None]
        at = at.mul_(GRID).round_().div_(GRID)
        low = at.floor()
        neighbours = []
        for pixel, weight in ((low, low + 1 - at), (low + 1, at - low)):
            lies_in = inside & (pixel >= 0) & (pixel < extent[:, axis, None, None])
            neighbours.append((pixel.clamp(0, size[axis] - 1).long(), (weight * lies_in).to(planes.dtype)))
        near.append(neighbours)
    first = torch.arange(batch, device=planes.device)[:, None, None] * (size[0] * size[1])
    turned = torch.zeros_like(rows)
    for x, x_weight in near[0]:
        for y, y_weight in near[1]:
            row = rows.index_select(0, (first + x * size[1] + y).flatten())
            turned.addcmul_(row, (x_weight * y_weight).view(-1, 1))
    return turned.view(planes.shape)


def move_images(
    images: Tensor,
    extent: Tensor,
    *,
    zoom: Tensor | None = None,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    clip: bool = False,
    linear: bool = False,
) -> Tensor:
    """Flip, zoom, rotate and shift each image. The third axis of a volume is only zoomed; frames of a clip move alike.

    images (B, *size) floating, zero beyond the extent (B, axes) integer. linear: as for `zoom_images`; the rest as for
    `augment_images`. Returns (B, *size) in the images' dtype, zero beyond the extent.
    """
    batch = len(images)
    if zoom is None and flip is None and angle is None and shift is None:
        return images
    extent = extent[:, 1:] if clip else extent
    zoomed = zoom is not None
    zoom = zoom if zoomed else torch.ones(batch, device=images.device)
    signed = zoom[:, None].expand(extent.shape)
    if flip is not None:
        signed = torch.cat([signed[:, :2] * (1 - 2 * flip.float()), signed[:, 2:]], 1)
    if angle is None and shift is None:
        if not clip:
            return zoom_images(images, signed, extent, linear=linear)
        signed, extent = (x.repeat_interleave(images.shape[1], 0) for x in (signed, extent))
        return zoom_images(images.flatten(0, 1), signed, extent, linear=linear).view_as(images)
    if extent.shape[1] == 3 and zoomed:
        weight = zoom_matrix(zoom, extent[:, 2], images.shape[3], cubic=False, dtype=images.dtype)
        images = torch.bmm(images.flatten(1, 2), weight.mT).view_as(images)
    planes = images.movedim(1, -1) if clip else images[..., None] if images.ndim == 3 else images
    angle = torch.zeros(batch, device=images.device) if angle is None else angle
    shift = torch.zeros(batch, 2, device=images.device) if shift is None else shift
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

    images (B, *size) floating, padding (B, *size) bool. Returns (B, *size) in that dtype, zero in the padding.
    """
    axes = tuple(range(1, images.ndim))
    low = images.masked_fill(padding, torch.inf).amin(axes, keepdim=True)
    high = images.masked_fill(padding, -torch.inf).amax(axes, keepdim=True)
    spread = high - low
    return (images - low).div_(spread).masked_fill_(padding | (spread < FLAT), 0.0)


def change_brightness_(
    images: Tensor,
    padding: Tensor,
    *,
    gamma: Tensor | None = None,
    noise: Tensor | None = None,
    noise_key: Tensor | None = None,
) -> Tensor:
    """In place: gamma, then noise clamped to [0, 1]; images (B, *size) floating in [0, 1], zero in the padding."""
    each = (-1, *[1] * (images.ndim - 1))
    if gamma is not None:
        images.pow_(gamma.to(images.dtype).view(each))
    if noise is not None:
        drawn = gaussian_noise(noise_key, images.shape[1:].numel(), images.dtype).view(images.shape)
        images.addcmul_(drawn, noise.to(images.dtype).view(each)).clamp_(0, 1).masked_fill_(padding, 0.0)
    return images


def augment_images_ref(
    frames: Tensor,
    extent: Tensor,
    *,
    zoom: Tensor | None,
    angle: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    gamma: Tensor | None,
    noise: Tensor | None,
    noise_key: Tensor | None,
    clip: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Plain PyTorch in `dtype`; the arguments are those of `augment_images`, already checked."""
    images = move_images(frames.to(dtype), extent, zoom=zoom, angle=angle, shift=shift, flip=flip, clip=clip)
    padding = beyond(extent, images.shape[1:])
    return change_brightness_(min_max(images, padding), padding, gamma=gamma, noise=noise, noise_key=noise_key)


def move_maps_ref(
    maps: Tensor,
    extent: Tensor,
    *,
    zoom: Tensor | None,
    angle: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Plain PyTorch of `move_maps`; the arguments are already checked."""
    return move_images(maps.to(dtype), extent, zoom=zoom, angle=angle, shift=shift, flip=flip, linear=True)
