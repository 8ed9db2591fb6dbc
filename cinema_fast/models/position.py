"""Fixed sine-cosine position tables of grids of any rank, and their interpolation to other grids."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_table(width: int, grid: tuple[int, ...]) -> Tensor:
    """(1, N, width) float32 table of a grid of n axes.

    The width is split into n parts of 2 * floor(width / 2n), zeros at the end; part d holds sin then cos of coordinate
    d times exp(-ln(10000) i / half). Coordinates are in numpy's 'xy' order, as in CineMA's checkpoints, so on a
    non-square grid the first two axes are transposed.
    """
    part = width // len(grid) // 2 * 2
    half = part // 2
    frequency = np.exp(-math.log(10000.0) * np.arange(half) / max(half, 1))
    columns = []
    for coordinate in np.meshgrid(*[np.arange(n, dtype=np.float64) for n in grid], indexing="xy"):
        angle = coordinate.reshape(-1, 1) * frequency
        columns += [np.sin(angle), np.cos(angle)]
    columns.append(np.zeros((math.prod(grid), width - part * len(grid))))
    return torch.from_numpy(np.concatenate(columns, axis=1)).float().unsqueeze(0)


def resize_table(table: Tensor, grid: tuple[int, ...], new_grid: tuple[int, ...]) -> Tensor:
    """(1, N, D) table of `grid`, viewed row-major, interpolated to `new_grid`: (1, N', D).

    Bicubic for 2 axes, trilinear for 3 (as CineMA does), multilinear for 4; corners not aligned, no antialiasing.
    """
    if new_grid == grid:
        return table
    maps = table.reshape(*grid, -1).movedim(-1, 0).unsqueeze(0)  # (1, D, *grid)
    if len(grid) < 4:
        maps = F.interpolate(maps, size=new_grid, mode={2: "bicubic", 3: "trilinear"}[len(grid)])
    else:  # the last axis separately and linearly, since interpolate takes at most three axes
        last = maps.flatten(0, -2).unsqueeze(0)
        last = F.interpolate(last, size=new_grid[-1:], mode="linear")
        maps = last.reshape(*maps.shape[1:-1], -1).movedim(-1, 0)  # (T', D, X, Y, Z)
        maps = F.interpolate(maps, size=new_grid[:-1], mode="trilinear").movedim(0, -1).unsqueeze(0)
    return maps.flatten(2).transpose(1, 2)


def resize_learned_table(table: Tensor, side: int, grid: tuple[int, ...]) -> Tensor:
    """(1, 1 + side**2, D) learned table, class token first, interpolated to `grid`: (1, 1 + N, D), differentiable.

    Bicubic, by the factors (new + 0.1) / side, and the class token's place kept, as in DINO's code. The interpolation
    is a product with a matrix: PyTorch's own has a backward on the GPU whose bits change from run to run.
    """
    if grid == (side, side):
        return table
    wide = torch.promote_types(table.dtype, torch.float32)
    every = torch.eye(side**2, dtype=wide, device=table.device).view(1, side**2, side, side)
    factors = [(new + 0.1) / side for new in grid]
    with torch.autocast(table.device.type, enabled=False):
        weights = F.interpolate(every, scale_factor=factors, mode="bicubic")[0].flatten(1)
        patches = weights.T.to(table.dtype) @ table[0, 1:]
    return torch.cat([table[:, :1], patches[None]], dim=1)
