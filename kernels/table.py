"""The backend that `auto` picks on this machine for each operation, and why faster ones cannot run."""

from functools import partial

import torch

from .backend import choose
from .registry import OPERATIONS


def table() -> list[tuple[str, str, str]]:
    """(operation, backend, why) for ordinary inputs on this machine's device: bf16 on a GPU, float32 without."""
    on_gpu = torch.cuda.is_available()
    x = torch.empty(16, 1, 64, device="cuda" if on_gpu else "cpu", dtype=torch.bfloat16 if on_gpu else torch.float32)
    rows = []
    for name, operation in OPERATIONS.items():
        reasons = {backend: partial(why, x) for backend, why in operation.unsupported.items()}
        picked = choose(name, "auto", reasons)
        passed = list(reasons)[: list(reasons).index(picked)] if picked in reasons else list(reasons)
        why = "; ".join(f"{backend}: {found[0]}" for backend in passed if (found := reasons[backend]()))
        rows.append((name, picked, "; ".join(filter(None, (why or "fastest", operation.remark(x.device))))))
    return rows
