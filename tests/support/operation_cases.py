"""A small call of every operation, forward and backward, through all of its kernels.

    compute-sanitizer --tool racecheck python tests/support/operation_cases.py
"""

import torch
from torch import Tensor

from cinema_fast.kernels import OPERATIONS
from cinema_fast.kernels.inputs import RandomInputs


def call(operation: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    """What it gives, and its gradients."""
    return OPERATIONS[operation].small(RandomInputs(device), dtype)


if __name__ == "__main__":
    for name in OPERATIONS:
        for dtype in (torch.bfloat16, torch.float32):
            call(name, "cuda", dtype)
        torch.cuda.synchronize()
        print(name)
