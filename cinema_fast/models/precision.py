"""The arithmetic of activations: float32, or bfloat16 by autocast."""

import torch


def autocast(device: torch.device | str, precision: torch.dtype) -> torch.autocast:
    """The block in which a model computes in `precision`; its parameters stay as they are."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
