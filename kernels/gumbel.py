"""Gumbel priorities: the largest ones are a draw without replacement, with probabilities proportional to weights."""

import torch
from torch import Tensor

WEIGHT_FLOOR = 1e-6


def gumbel_priority(weights: Tensor, words: Tensor) -> Tensor:
    """log max(w, 1e-6) + Gumbel noise, in float32 and never NaN.

    weights (B, N) floating; NaN counts as 0. words (B, N) int64, random in [0, 2**32): their upper 23 bits plus one
    half give u in (0, 1), exact in float32 and never 0 or 1.
    """
    floored = torch.where(weights > WEIGHT_FLOOR, weights.float(), WEIGHT_FLOOR)
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    return torch.log(floored) - torch.log(-torch.log(uniform))
