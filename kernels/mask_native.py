"""The C library of `sample_mask`: on a CPU, words by vectors of tokens and a selection that sorts nothing.

csrc/sample_mask_cpu.cpp draws the words and selects. Priorities of weighted draws are made between the two by the
function that the PyTorch form takes them from: another library's logarithm would now and then differ from torch's in
the last bit, and with it which of two tokens is masked.
"""

import ctypes

import torch
from torch import Tensor

from .backend import launching
from .gumbel import gumbel_priority
from .native import load_library
from .token_plan import TokenPlan

LIBRARY, PROBLEM = load_library("sample_mask")  # here, where torch.compile does not trace it


class _Draw(ctypes.Structure):
    """As `Draw` in csrc/sample_mask_cpu.cpp."""

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
    """A plan's three tensors; arguments as `sample_mask` has checked them, tensors contiguous, ids and step int64."""
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
