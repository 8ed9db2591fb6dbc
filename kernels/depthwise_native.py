"""The C library of `sparse_depthwise_conv` for the CPU: it reads the visible rows and needs no dense grid.

csrc/sparse_depthwise_conv_cpu.cpp computes in float32; other dtypes are converted to it and back. Sums over tokens are
made in a fixed number of chunks and added in order, so the bits are the same for any number of threads.
"""

import ctypes
import math

import torch
from torch import Tensor

from .native import load_library

LIBRARY, PROBLEM = load_library("sparse_depthwise_conv")  # at import, so that torch.compile does not trace it
ROWS_A_CHUNK, MOST_CHUNKS = 16, 64  # for sums of the weight's gradient


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "K", "N")),
        *((name, ctypes.c_int32 * 3) for name in ("grid", "block", "kernel")),
        *((name, ctypes.c_int32) for name in ("C", "threads")),
        *((name, ctypes.c_void_p) for name in ("keep", "slot")),
    ]


def unsupported(x: Tensor, weight: Tensor) -> list[str]:
    """Why the library cannot convolve x with this weight; empty where it can."""
    why = [PROBLEM] if PROBLEM else []
    if x.device.type != "cpu":
        why.append(f"needs CPU tensors, got {x.device.type}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        why.append(f"computes in float32, got {x.dtype}")
    return why


def _shape(x: Tensor, keep: Tensor, slot: Tensor, grid: list[int], kernel: list[int]) -> _Shape:
    def three(extents):
        return (ctypes.c_int32 * 3)(*[1] * (3 - len(extents)), *extents)

    return _Shape(
        *keep.shape, slot.shape[1], three(grid), three(x.shape[2:-1]), three(kernel), x.shape[-1],
        torch.get_num_threads(), keep.data_ptr(), slot.data_ptr(),
    )  # fmt: skip


def _call(name: str, shape: _Shape, *arguments: Tensor | int | None) -> None:
    pointers = (
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr())
        for a in arguments
    )
    if getattr(LIBRARY, name)(ctypes.byref(shape), *pointers):
        raise MemoryError(f"{name}: out of memory for the table of neighbours")


def _taps_first(weight: Tensor) -> Tensor:
    """(C, *kernel) -> (taps, C) float32"""
    return weight.flatten(1).T.float().contiguous()


@torch.library.custom_op("cinema_fast::depthwise_native", mutates_args=())
def _conv_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, slot: Tensor, grid: list[int]
) -> Tensor:
    x = x.contiguous()
    rows = x.float()
    out = torch.empty_like(rows)
    if out.numel():
        bias = None if bias is None else bias.float().contiguous()
        taps = _taps_first(weight)
        _call("depthwise_conv", _shape(x, keep, slot, grid, weight.shape[1:]), rows, taps, bias, out)
    return out.to(x.dtype)


@_conv_op.register_fake
def _(x, weight, bias, keep, slot, grid):
    return x.new_empty(x.shape)


@torch.library.custom_op("cinema_fast::depthwise_native_dw", mutates_args=())
def _dw_op(dout: Tensor, x: Tensor, keep: Tensor, slot: Tensor, grid: list[int], kernel: list[int]) -> Tensor:
    """Gradient of the weight (C, *kernel), float32."""
    rows, grads = x.contiguous().float(), dout.contiguous().float()
    chunks = min(max(keep.numel() // ROWS_A_CHUNK, 1), MOST_CHUNKS)
    taps, channels = math.prod(kernel), x.shape[-1]
    dweight = torch.zeros(taps, channels)
    if rows.numel():
        partial = torch.empty(chunks, taps, channels)
        _call("depthwise_conv_dw", _shape(x, keep, slot, grid, kernel), grads, rows, chunks, partial, dweight)
    return dweight.T.reshape(channels, *kernel).contiguous()


@_dw_op.register_fake
def _(dout, x, keep, slot, grid, kernel):
    return x.new_empty(x.shape[-1], *kernel, dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    x, weight, bias, keep, slot, ctx.grid = inputs
    ctx.save_for_backward(x, weight, keep, slot)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, dout):
    x, weight, keep, slot = ctx.saved_tensors
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        reversed_taps = weight.flip(list(range(1, weight.ndim)))
        dx = _conv_op(dout, reversed_taps, None, keep, slot, ctx.grid)
    if ctx.needs_input_grad[1]:
        dweight = _dw_op(dout, x, keep, slot, ctx.grid, weight.shape[1:]).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        dbias = dout.flatten(0, -2).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dweight, dbias, None, None, None


_conv_op.register_autograd(_backward, setup_context=_setup_context)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, slot: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`sparse_depthwise_conv` with checked arguments; keep (B, K) and slot (B, N) int32, contiguous."""
    return _conv_op(x, weight, bias, keep, slot, list(grid))
