"""Gaussian noise as a pure function of a key and the pixel, the same on every device to the rounding of four functions.

The random bits are Philox words, as everywhere in this project. Each Philox call gives eight values: one half of a
32-bit word is the radius and the other half the angle of a Box-Muller pair (Box and Muller, "A note on the generation
of random normal deviates", 1958). A radius of 16 bits limits the noise to 4.9 standard deviations, which hardly a pixel
of a frame would exceed anyway.
"""

import math

import torch
from torch import Tensor

from ..philox import philox4x32

HALF = 1 << 16
PER_CALL = 8


def gaussian_noise(key: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, n) floating of mean 0 and standard deviation 1; key (B,) int64: 64 random bits for each row."""
    calls = torch.arange(-(-n // PER_CALL), device=key.device)
    words = torch.stack(philox4x32(key[:, None], calls, 0, 0, 0), 1)  # (B, 4, calls)
    radius = (((words >> 16).to(dtype) + 0.5) / HALF).log_().mul_(-2).sqrt_()
    angle = (words & (HALF - 1)).to(dtype).mul_(2 * math.pi / HALF)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1).flatten(1)[:, :n]
