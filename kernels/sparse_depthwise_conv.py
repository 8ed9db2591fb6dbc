"""sparse_depthwise_conv: depthwise convolution over the visible tokens' positions.

    out[b, k, s, c] = bias[c] + sum over taps d of  w[c, d] * x[b, slot of (s + d)'s token, (s + d) in it, c]

Positions in a token that is not visible, and beyond the image, count as zero; outputs are wanted at visible tokens
only (CineMA multiplies by the mask before the convolution and drops the masked outputs after it, which is the same).
x is (B, K, *block, C): a token is a block of 4x4(x1) positions at the first stage, 2x2(x1) at the second.

The PyTorch form scatters the rows into a dense channels-last grid, because that is the layout in which the CPU's
depthwise convolution is fastest; the grid lives for the length of the call, and backward makes it again from the rows.
"""

import math

import torch
from torch import Tensor

from .patches import axis_positions
from .token_plan import TokenPlan


def position_index(keep: Tensor, grid: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """Flat positions (B * K * prod(block),) int64 of the tokens' blocks in a batch of dense (B, *grid * block) maps."""
    batch, n_axes = keep.shape[0], len(grid)
    size = [g * b for g, b in zip(grid, block)]
    index = torch.arange(batch, device=keep.device).view(batch, *[1] * (n_axes + 1))
    for axis, token in enumerate(axis_positions(keep.long(), grid)):
        inside = torch.arange(block[axis], device=keep.device)
        inside = inside.view([-1 if a == axis else 1 for a in range(n_axes)])
        index = index * size[axis] + token.view(*keep.shape, *[1] * n_axes) * block[axis] + inside
    return index.flatten()


def _to_dense(rows: Tensor, index: Tensor, batch: int, size: list[int]) -> Tensor:
    """(positions, C) rows -> (B, C, *size) in channels-last memory, zero where there is no row."""
    dense = rows.new_zeros(batch * math.prod(size), rows.shape[-1])
    dense[index] = rows
    return dense.view(batch, *size, -1).movedim(-1, 1)


def _to_rows(dense: Tensor, index: Tensor) -> Tensor:
    return dense.movedim(1, -1).reshape(-1, dense.shape[1])[index]


class _SparseDepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias, index, batch, size):
        ctx.save_for_backward(rows, weight, index)
        ctx.dense_shape = batch, size
        dense = _to_dense(rows, index, batch, size)
        return _to_rows(_convolution(dense, weight, bias), index)

    @staticmethod
    def backward(ctx, grad):
        rows, weight, index = ctx.saved_tensors
        dense = _to_dense(rows, index, *ctx.dense_shape)
        dgrad = _to_dense(grad.contiguous(), index, *ctx.dense_shape)
        dx = None
        if ctx.needs_input_grad[0]:
            # the gradient of a "same" depthwise convolution is one with the taps reversed; asked of
            # convolution_backward instead, the CPU takes twenty times as long
            reversed_taps = weight.flip(list(range(2, weight.ndim)))
            dx = _to_rows(_convolution(dgrad, reversed_taps, None), index)
        _, dw, _ = torch.ops.aten.convolution_backward(
            dgrad, dense, weight, None, *_geometry(weight), [False, True, False]
        )
        return dx, dw, grad.sum(0), None, None, None


def _geometry(weight: Tensor) -> tuple:
    """stride, padding, dilation, transposed, output padding, groups"""
    n = weight.ndim - 2
    return [1] * n, [k // 2 for k in weight.shape[2:]], [1] * n, False, [0] * n, weight.shape[0]


def _convolution(dense: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.aten.convolution(dense, weight, bias, *_geometry(weight))


def sparse_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, plan: TokenPlan, grid: tuple[int, ...]) -> Tensor:
    """Depthwise convolution with odd kernels and zero padding, at visible positions only.

    Args:
        x (B, K, *block, C) floating: positions of the visible tokens.
        weight (C, *kernel), bias (C,): parameters, in x's dtype or float32.
        plan: of which keep (B, K) is used here.
        grid: tokens per axis.

    Returns:
        (B, K, *block, C) in x's dtype.

    Raises:
        ValueError: shapes that do not fit together, an even kernel.
    """
    block, channels = tuple(x.shape[2:-1]), x.shape[-1]
    if x.shape[:2] != plan.keep.shape or len(block) != len(grid):
        raise ValueError(
            f"sparse_depthwise_conv: want x (B, K, *block, C) with (B, K) = {tuple(plan.keep.shape)} and "
            f"{len(grid)} block axes, got {tuple(x.shape)}"
        )
    if weight.shape[0] != channels or weight.ndim != len(grid) + 1 or any(k % 2 == 0 for k in weight.shape[1:]):
        raise ValueError(
            f"sparse_depthwise_conv: want weight ({channels}, *{len(grid)} odd kernel axes), got {tuple(weight.shape)}"
        )
    if bias.shape != (channels,):
        raise ValueError(f"sparse_depthwise_conv: want bias ({channels},), got {tuple(bias.shape)}")
    if plan.slot.shape[1] != math.prod(grid):
        raise ValueError(
            f"sparse_depthwise_conv: the plan has {plan.slot.shape[1]} tokens, the grid {tuple(grid)} {math.prod(grid)}"
        )
    index = position_index(plan.keep, grid, block)
    size = [g * b for g, b in zip(grid, block)]
    dtype = x.dtype
    # the CPU's bf16 depthwise backward is three times slower than its fp32 one
    work = x.float() if dtype == torch.bfloat16 and not x.is_cuda else x
    out = _SparseDepthwiseConv.apply(
        work.reshape(-1, channels), weight.unsqueeze(1).to(work.dtype), bias.to(work.dtype), index, x.shape[0], size
    )
    return out.view(x.shape).to(dtype)
