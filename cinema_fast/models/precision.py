"""The precision of activations: float32, or bfloat16 by autocast."""

import torch


def autocast(device: torch.device | str, precision: torch.dtype) -> torch.autocast:
    """Context in which a model computes in `precision`; its parameters keep their dtype."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
