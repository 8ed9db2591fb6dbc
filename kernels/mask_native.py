"""The C library of `sample_mask` for the CPU: random words for several tokens at once, and a selection without a sort.

csrc/sample_mask_cpu.cpp draws the words and selects. Between the two steps the priorities of weighted draws are
computed by the same PyTorch function that the PyTorch form uses. The logarithm of another library could differ from
torch's in the last bit, and then another token would be masked.
"""

import ctypes

import torch
from torch import Tensor

from .backend import launching
from .gumbel import gumbel_priority
from .native import load_library
from .token_plan import TokenPlan

LIBRARY, PROBLEM = load_library("sample_mask")  # at import, so that torch.compile does not trace it


class _Draw(ctypes.Structure):
    """The same fields as `Draw` in csrc/sample_mask_cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "n", "keep", "decode", "seed", "step", "stream")),
        *((name, ctypes.c_void_p) for name in ("sample_ids", "step_at")),
        ("threads", ctypes.c_int64),
    )


def unsupported(device: torch.device) -> list[str]:
    """Why the library cannot draw on this device; empty where it can."""
    if device.type != "cpu":
        return [f"needs CPU tensors, got {device.type}"]
    return [PROBLEM] if PROBLEM else []


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


@torch.library.custom_op("cinema_fast::sample_mask_native", mutates_args=())
def draw(
    scores: Tensor | None, sample_ids: Tensor | None, step_tensor: Tensor | None, device: torch.device, batch: int,
    n: int, keep: int, decode: int, seed: int, step: int, stream: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A plan's three tensors. `sample_mask` has checked the arguments; tensors are contiguous, ids and step int64."""
    threads = min(batch, torch.get_num_threads())
    request = _Draw(
        batch, n, keep, decode, seed, step, stream, _pointer(sample_ids), _pointer(step_tensor), threads
    )
    words = torch.empty(2, batch, n, dtype=torch.int32)
    scratch = torch.empty(threads, 2, n, dtype=torch.int64)
    plan = TokenPlan.empty(batch, n, keep, decode, device)
    with launching("sample_mask", words):
        LIBRARY.sample_mask_words(ctypes.byref(request), _pointer(words))
        priority = None if scores is None else gumbel_priority(scores, words[0].long() & 0xFFFFFFFF)
        LIBRARY.sample_mask_plan(ctypes.byref(request), *map(_pointer, (words, priority, scratch, *plan)))
    return tuple(plan)


@draw.register_fake
def _(scores, sample_ids, step_tensor, device, batch, n, keep, decode, seed, step, stream):
    return tuple(TokenPlan.empty(batch, n, keep, decode, device))
