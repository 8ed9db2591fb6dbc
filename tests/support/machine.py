"""What this machine has: the checkout, the files beside it, a GPU."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# beside the checkout, or in it where only the checkout travels to another machine
SHARED = next((p for p in (ROOT.parent / "shared", ROOT / "shared") if p.exists()), ROOT.parent / "shared")
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def shared_path(part: str) -> Path:
    """Path of real data or golden files that lie beside the checkout, or a skip where they do not."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"../shared/{part} is not beside this checkout")
    return path


def has_gpu() -> bool:
    return torch.cuda.is_available()
