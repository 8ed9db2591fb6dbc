"""Constants of Farneback's flow that depend on sizes and parameters only: pyramid levels, resampling taps, filters.

Every linear step of `optical_flow` is separable, and resampling is linear. Along one axis, blur and interpolation
together are one short weighted sum for each output pixel; its indices include the reflection at the border.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POLY_N = (5, 7)  # radii of the expansion
MIN_SIZE = 32  # pixels of the shorter side below which OpenCV makes no further level
BORDER = (0.14, 0.14, 0.4472, 0.4472, 0.4472)  # OpenCV's confidence of the five outermost pixels, outermost first


class AxisTaps(NamedTuple):
    """out[i] = sum over k of weight[k, i] * in[index[k, i]].  index (K, N_out) int32, weight (K, N_out) float64."""

    index: Tensor
    weight: Tensor

    def matrix(self, n_in: int) -> Tensor:
        """The same as a matrix (N_out, N_in)."""
        out = torch.zeros(self.weight.shape[1], n_in, dtype=torch.float64)
        return out.scatter_add_(1, self.index.T.long(), self.weight.T)


class Level(NamedTuple):
    """One level of the pyramid. size: its (X, Y). image: taps that resample the frame, along X and Y. flow: taps that
    resample the flow of the next coarser level and scale it to this level's pixels; None at the coarsest level."""

    size: tuple[int, int]
    image: tuple[AxisTaps, AxisTaps]
    flow: tuple[AxisTaps, AxisTaps] | None


def _blur(scale: float) -> list[float]:
    """Weights of offsets -r..r of the blur before a frame is reduced by `scale`, as OpenCV chooses them."""
    sigma = (1 / scale - 1) / 2
    if sigma <= 0:
        return [0.25, 0.5, 0.25]
    radius = max(3, round(5 * sigma) | 1) // 2
    weights = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-radius, radius + 1)]
    return [w / sum(weights) for w in weights]


def axis_taps(n_in: int, n_out: int, blur: list[float]) -> AxisTaps:
    """Blur, the border reflected about the outermost pixel, then linear interpolation between pixel centres."""
    radius = len(blur) // 2
    position = ((torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5).clamp(0, n_in - 1)
    first = position.floor()
    part = position - first
    weights = torch.zeros(2 * radius + 2, n_out, dtype=torch.float64)
    for k, weight in enumerate(blur):
        weights[k] += (1 - part) * weight
        weights[k + 1] += part * weight
    index = first.long() + torch.arange(-radius, radius + 2).unsqueeze(1)
    period = max(2 * (n_in - 1), 1)
    index = (index % period).minimum(-index % period).clamp(max=n_in - 1)
    used = weights.count_nonzero(dim=1) > 0  # drops taps without weight: at an unchanged size there is no interpolation
    return AxisTaps(index[used].int().contiguous(), weights[used].contiguous())


@lru_cache(maxsize=64)
def pyramid(size: tuple[int, int], levels: int, pyr_scale: float) -> tuple[Level, ...]:
    """Levels from coarse to fine; `levels` of them below the frame's own, fewer where one would be under 32 pixels."""
    scales = [1.0]
    while len(scales) <= levels and min(size) * scales[-1] * pyr_scale >= MIN_SIZE:
        scales.append(scales[-1] * pyr_scale)
    out: list[Level] = []
    for scale in reversed(scales):
        small = tuple(round(n * scale) for n in size)
        image = tuple(axis_taps(n, s, _blur(scale)) for n, s in zip(size, small))
        flow = None
        if out:
            along_x, along_y = (axis_taps(n, s, [1.0]) for n, s in zip(out[-1].size, small))
            flow = (along_x._replace(weight=along_x.weight / pyr_scale), along_y)  # in this level's pixels
        out.append(Level(small, image, flow))
    return tuple(out)


@lru_cache(maxsize=64)
def expansion_filters(poly_n: int, poly_sigma: float) -> Tensor:
    """(3, 2 poly_n + 1) float64: average g, first derivative d, second derivative q of the expansion, along one axis.

    With a separable Gaussian applicability the least-squares fit of 1, x, y, x^2, y^2, xy has a diagonal form: x^2 less
    its mean is orthogonal to all others. Hence b_x = d(x) g(y), A_xx = q(x) g(y), 2 A_xy = d(x) d(y), and so on.
    """
    k = torch.arange(-poly_n, poly_n + 1, dtype=torch.float64)
    g = torch.exp(-(k**2) / (2 * poly_sigma**2))
    g = g / g.sum()
    second, fourth = (k**2 * g).sum(), (k**4 * g).sum()
    return torch.stack([g, k * g / second, (k**2 - second) * g / (fourth - second**2)])


def border_weight(n: int) -> Tensor:
    """(n,) float64: confidence of the pixels along an axis of n."""
    weight = torch.ones(n, dtype=torch.float64)
    for i, value in enumerate(BORDER[:n]):
        weight[i] *= value
        weight[n - 1 - i] *= value
    return weight


def repeated_edge(weights: Tensor, n: int) -> Tensor:
    """(n, n) matrix of a filter with weights of offsets -r..r; the border pixels are repeated outside."""
    radius = len(weights) // 2
    index = (torch.arange(n).unsqueeze(1) + torch.arange(-radius, radius + 1)).clamp(0, n - 1)
    return torch.zeros(n, n, dtype=weights.dtype).scatter_add_(1, index, weights.expand(n, -1))


def half_filters(poly_n: int, poly_sigma: float) -> Tensor:
    """(3, MAX_RADIUS + 1) float32: `Filters` of csrc/optical_flow.cuh, the three filters at offsets 0 and above."""
    half = expansion_filters(poly_n, poly_sigma)[:, poly_n:]
    return F.pad(half, (0, max(POLY_N) - poly_n)).float().contiguous()


def used_frames(pairs: list[int]) -> tuple[list[int], list[int]]:
    """The frames that `pairs` (2 P,) name, ascending; and for each entry of `pairs` its index among these frames."""
    used = sorted(set(pairs))
    place = {frame: i for i, frame in enumerate(used)}
    return used, [place[frame] for frame in pairs]
