"""The patches of chosen tokens, read from an image of any rank without making a patchified copy of it."""

import math

import torch
from torch import Tensor


def grid_of(size: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens per axis of an image of `size` cut into patches of `patch`; ValueError where it does not divide."""
    if len(size) != len(patch) or any(s % p or s == 0 for s, p in zip(size, patch)):
        raise ValueError(f"image size {tuple(size)} is not a positive multiple of the patch {tuple(patch)}")
    return tuple(s // p for s, p in zip(size, patch))


def axis_positions(index: Tensor, grid: tuple[int, ...]) -> list[Tensor]:
    """Row-major positions on the grid -> the position along each axis.

    torch.unravel_index is not used: it copies its divisors from the host, which would wait for the GPU's queue.
    """
    positions = []
    for extent in reversed(grid):
        positions.append(index % extent)
        index = index // extent
    return positions[::-1]


def gather_patches(image: Tensor, index: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Patches of the tokens `index`.

    Args:
        image (B, C, *size), index (B, K) integer grid positions (row-major), patch: pixels per axis of a token.

    Returns:
        (B, K, *patch, C) in the image's dtype: within a token the pixels in axis order, channel last.
    """
    grid = grid_of(image.shape[2:], patch)
    n_axes, batch = len(patch), image.shape[0]
    split = [extent for pair in zip(grid, patch) for extent in pair]
    blocks = image.reshape(batch, image.shape[1], *split)  # (B, C, gx, px, gy, py, ...)
    order = [0, *range(2, 2 + 2 * n_axes, 2), *range(3, 2 + 2 * n_axes, 2), 1]
    blocks = blocks.permute(order)  # (B, *grid, *patch, C), a view
    sample = torch.arange(batch, device=image.device).unsqueeze(1)
    return blocks[(sample, *axis_positions(index.long(), grid))]


def scatter_patches(patches: Tensor, index: Tensor, size: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of gather_patches: an image (B, C, *size), zero at tokens that are not in `index`.

    patches (B, K, prod(patch) * C) or (B, K, *patch, C), index (B, K) distinct in a row.
    """
    grid = grid_of(size, patch)
    batch, n_axes = patches.shape[0], len(patch)
    rows = patches.flatten(2).unflatten(2, (math.prod(patch), -1))
    flat = rows.new_zeros(batch, math.prod(grid), *rows.shape[2:])
    flat[torch.arange(batch, device=patches.device).unsqueeze(1), index.long()] = rows
    blocks = flat.reshape(batch, *grid, *patch, -1)
    order = [0, 1 + 2 * n_axes, *(axis for i in range(n_axes) for axis in (1 + i, 1 + n_axes + i))]
    return blocks.permute(order).reshape(batch, -1, *size)
