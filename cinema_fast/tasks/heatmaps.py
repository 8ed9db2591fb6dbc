"""Converts landmarks to heatmaps and back."""

import math

import torch
from torch import Tensor


def gaussian_maps(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """(B, L, *size) float32: exp(-distance^2 / (2 sigma^2)) to each point (B, L, 2) [pixels]; 0 for a point of NaN."""
    maps = []
    for axis, n in enumerate(size):
        distance = torch.arange(n, device=points.device, dtype=points.dtype) - points[..., axis, None]
        maps.append(torch.exp(-0.5 * (distance / sigma) ** 2))
    return (maps[0][..., :, None] * maps[1][..., None, :]).nan_to_num(0.0).float()


def peaks(maps: Tensor, sigma: float) -> Tensor:
    """(B, L, 2) float64: positions of the maxima of maps (B, L, X, Y) of positive values, to a fraction of a pixel.

    They are means of positions within 3 sigma [pixels] of the largest value along either axis, weighted by the map.
    """
    size, radius = maps.shape[-2:], math.ceil(3 * sigma)
    top = maps.flatten(2).argmax(-1)
    top = torch.stack([top // size[1], top % size[1]], -1)
    found = []
    for axis, n in enumerate(size):
        pixel = torch.arange(n, device=maps.device)
        near = (pixel - top[..., axis, None]).abs() <= radius
        found.append((pixel.double(), near.double()))
    weight = maps.double() * found[0][1][..., :, None] * found[1][1][..., None, :]
    total = weight.sum((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    x = (weight.sum(-1) * found[0][0]).sum(-1) / total
    y = (weight.sum(-2) * found[1][0]).sum(-1) / total
    return torch.stack([x, y], -1)
