"""The arithmetic of activations: float32, or bfloat16 by autocast."""

import torch


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The block in which a model computes in `precision`; its parameters stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
