"""A small call of every Triton operation, forward and backward, through all of its kernels.

    compute-sanitizer --tool racecheck python tests/operation_cases.py
"""

import torch
from torch import Tensor

from cinema_fast.kernels import OPERATIONS
from cinema_fast.kernels.inputs import RandomInputs

SMALL = {name: operation.small for name, operation in OPERATIONS.items() if operation.small}


def call(operation: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    """What it gives, and its gradients."""
    return SMALL[operation](RandomInputs(device), dtype)


if __name__ == "__main__":
    for name in SMALL:
        for dtype in (torch.bfloat16, torch.float32):
            call(name, "cuda", dtype)
        torch.cuda.synchronize()
        print(name)
