"""sparse_depthwise_conv: depthwise convolution over the visible tokens' positions.

    out[b, k, t, c] = bias[c] + sum over taps d of  w[c, d] * x[b, slot of (t + d)'s token, (t + d) in it, c]

Odd kernels, zero padding. Positions of tokens that are not visible count as zero, and only outputs at visible tokens
are computed. (CineMA multiplies by the mask before the convolution and drops the masked outputs after it, with the same
result.) x is (B, K, *block, C): a token is a block of 4x4(x1) positions at the first stage, 2x2(x1) at the second.

A program of one warp owns a token and a block of channels, and keeps all positions of the token as float32 vectors over
the channels. It looks up the slots of the neighbouring tokens and skips those that are not visible. From a visible
neighbour it loads each position and each tap within reach once: the products that a neighbour adds are known when the
kernel is compiled. Along axes of one position a token (the slices of a SAX stack) the taps are a loop, which keeps the
program small. The input's gradient is the same kernel with the taps reversed. For the weight's gradient the same
products are summed tap by tap, over a chunk of tokens.

Bytes: forward reads x and writes out; backward reads x and out's gradient and writes x's gradient; neighbours' rows and
weights come from the caches. FLOPs: 2 for each product of a tap and a visible position. Sums are accumulated in float32
and rounded once; weights are used in the dtype they are stored in. Sums over tokens are made in two steps of fixed
order: the same bits every time.

The PyTorch form scatters the rows into a dense channels-last grid, because that is the layout in which the CPU's
depthwise convolution is fastest. The grid exists only during the call; the backward builds it again from the rows.
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import depthwise_native
from .backend import choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .patches import axis_positions
from .registry import Call, Code, Operation, call_name, register
from .shapes import VIEW_SHAPES, DepthwiseShape, audited_dtypes
from .token_neighbours import coordinates, entry, length, neighbour_products, neighbour_slots, shifted, walked_taps
from .token_plan import TokenPlan

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_POSITIONS, MAX_TAPS, MAX_PRODUCTS = 64, 64, 1024  # limits of what is unrolled: accumulators, and compile time


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


def _geometry(weight: Tensor) -> tuple:
    """stride, padding, dilation, transposed, output padding, groups"""
    n = weight.ndim - 2
    return [1] * n, [k // 2 for k in weight.shape[2:]], [1] * n, False, [0] * n, weight.shape[0]


def _convolution(dense: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.aten.convolution(dense, weight, bias, *_geometry(weight))


def sparse_depthwise_conv_ref(
    x: Tensor, weight: Tensor, bias: Tensor, plan: TokenPlan, grid: tuple[int, ...]
) -> Tensor:
    """Plain PyTorch, a dense convolution in x's dtype, at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    block = x.shape[2:-1]
    index = position_index(plan.keep, grid, block)
    dense = _to_dense(x.reshape(-1, x.shape[-1]).to(dtype), index, len(x), [g * b for g, b in zip(grid, block)])
    return _to_rows(_convolution(dense, weight.unsqueeze(1).to(dtype), bias.to(dtype)), index).view(x.shape)


class _DenseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias, index, batch, size):
        ctx.save_for_backward(rows, weight, index)
        ctx.dense_shape = batch, size
        return _to_rows(_convolution(_to_dense(rows, index, batch, size), weight, bias), index)

    @staticmethod
    def backward(ctx, grad):
        rows, weight, index = ctx.saved_tensors
        dense = _to_dense(rows, index, *ctx.dense_shape)
        dgrad = _to_dense(grad.contiguous(), index, *ctx.dense_shape)
        dx = None
        if ctx.needs_input_grad[0]:
            # the gradient of a "same" depthwise convolution is a convolution with the taps reversed;
            # convolution_backward takes twenty times as long on the CPU
            reversed_taps = weight.flip(list(range(2, weight.ndim)))
            dx = _to_rows(_convolution(dgrad, reversed_taps, None), index)
        _, dw, _ = torch.ops.aten.convolution_backward(
            dgrad, dense, weight, None, *_geometry(weight), [False, True, False]
        )
        return dx, dw, grad.sum(0), None, None, None


def sparse_depthwise_conv_torch(
    x: Tensor, weight: Tensor, bias: Tensor, plan: TokenPlan, grid: tuple[int, ...]
) -> Tensor:
    """The same function as the oracle, in x's dtype; its backward saves only the rows and is fast on the CPU."""
    block, channels = x.shape[2:-1], x.shape[-1]
    index = position_index(plan.keep, grid, block)
    size = [g * b for g, b in zip(grid, block)]
    # the CPU's bf16 depthwise backward is three times slower than its fp32 one
    work = x.float() if x.dtype == torch.bfloat16 and not x.is_cuda else x
    out = _DenseConv.apply(
        work.reshape(-1, channels), weight.unsqueeze(1).to(work.dtype), bias.to(work.dtype), index, len(x), size
    )
    return out.view(x.shape).to(x.dtype)


def sparse_depthwise_conv_bytes(x: Tensor, weight: Tensor) -> int:
    """Bytes that the forward moves; the backward moves one and a half times as many."""
    return 2 * x.numel() * x.element_size() + weight.numel() * weight.element_size()


def _reach(block: int, kernel: int) -> dict[int, int]:
    """Along one axis: {offset of a neighbouring token: number of products of a tap and a position in it}."""
    distances = [t + d - kernel // 2 for t in range(block) for d in range(kernel)]
    tokens = [distance // block for distance in distances]
    return {n: tokens.count(n) for n in range(min(tokens), max(tokens) + 1)}


def sparse_depthwise_conv_flops(
    batch: int, keep: int, grid: tuple[int, ...], block: tuple[int, ...], kernel: tuple[int, ...], channels: int
) -> int:
    """FLOPs of the forward, or of one of its two gradients: the expected value over uniform draws of `keep` tokens."""
    n, axes = math.prod(grid), [(g, _reach(b, k)) for g, b, k in zip(grid, block, kernel)]
    within = math.prod(reach[0] for _, reach in axes)
    every = math.prod(sum(c * max(g - abs(o), 0) for o, c in reach.items()) for g, reach in axes)
    pairs = keep * (keep - 1) / (n * (n - 1)) if n > 1 else 0.0  # probability that two given tokens are both visible
    return round(2 * batch * channels * (keep * within + pairs * (every - n * within)))


def sparse_depthwise_conv_plan_flops(
    plan: TokenPlan, grid: tuple[int, ...], block: tuple[int, ...], kernel: tuple[int, ...], channels: int
) -> int:
    """FLOPs of the forward, or of one of its two gradients, counted for one plan."""
    visible = (plan.slot >= 0).view(-1, *grid)
    total = 0
    for neighbour in itertools.product(*(_reach(b, k).items() for b, k in zip(block, kernel))):
        offsets, counts = zip(*neighbour)
        if all(abs(o) < g for o, g in zip(offsets, grid)):
            here = [slice(max(-o, 0), g - max(o, 0)) for o, g in zip(offsets, grid)]
            there = [slice(max(o, 0), g - max(-o, 0)) for o, g in zip(offsets, grid)]
            pairs = visible[(slice(None), *here)] & visible[(slice(None), *there)]
            total += math.prod(counts) * int(pairs.sum())
    return 2 * channels * total


@triton.jit
def _add_neighbour(
    acc, factor_ptr, input_ptr, in_channels, NEIGHBOURS: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr
):
    """The sums with neighbour N's products added: rows of taps (or of outputs) times rows of its positions."""
    # what lies beyond the last channel is never stored, so that it need not be zero
    factors = ()
    for i in tl.static_range(length(NEIGHBOURS, N, 1)):
        row = tl.load(factor_ptr + entry(NEIGHBOURS, N, 1, i) * CHANNELS, mask=in_channels)
        factors += (row.to(tl.float32),)
    inputs = ()
    for i in tl.static_range(length(NEIGHBOURS, N, 2)):
        row = tl.load(input_ptr + entry(NEIGHBOURS, N, 2, i) * CHANNELS, mask=in_channels)
        inputs += (row.to(tl.float32),)
    sums = ()
    for i in tl.static_range(length(NEIGHBOURS, N, 3)):
        total = acc[i]
        for j in tl.static_range(length(NEIGHBOURS, N, 3, i)):
            total = tl.fma(factors[entry(NEIGHBOURS, N, 3, i, j, 0)], inputs[entry(NEIGHBOURS, N, 3, i, j, 1)], total)
        sums += (total,)
    return sums


@triton.jit
def _depthwise_conv(
    x_ptr, weight_ptr, bias_ptr, keep_ptr, slot_ptr, out_ptr, n_keep, n_tokens, grid_shape,
    HAS_BIAS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, KERNEL: tl.constexpr,
    POSITIONS: tl.constexpr, WALKED_TAPS: tl.constexpr, TAPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the outputs of a token in a block of channels; weight (walked taps, taps, C)."""
    NEIGHBOURS: tl.constexpr = neighbour_products(BLOCK, KERNEL, False)
    channel_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    row = tl.program_id(0) // channel_blocks
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    in_channels = channel < CHANNELS
    sample = row // n_keep
    slot_ptr += sample.to(tl.int64) * n_tokens
    x_ptr += (sample * n_keep).to(tl.int64) * (POSITIONS * CHANNELS)
    at = coordinates(tl.load(keep_ptr + row), grid_shape)
    start = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias_ptr + channel, mask=in_channels).to(tl.float32)
    acc = ()
    for _ in tl.static_range(POSITIONS):
        acc += (start,)
    for walked_tap in range(WALKED_TAPS):
        place = shifted(at, walked_tap, BLOCK, KERNEL)
        slots = neighbour_slots(slot_ptr, place, grid_shape, NEIGHBOURS)
        for n in tl.static_range(length(NEIGHBOURS)):
            if slots[n] >= 0:
                neighbour = x_ptr + slots[n].to(tl.int64) * (POSITIONS * CHANNELS)
                weights = weight_ptr + walked_tap * (TAPS * CHANNELS)
                acc = _add_neighbour(acc, weights + channel, neighbour + channel, in_channels, NEIGHBOURS, n, CHANNELS)
    out_ptr += row.to(tl.int64) * (POSITIONS * CHANNELS)
    for t in tl.static_range(POSITIONS):
        tl.store(out_ptr + t * CHANNELS + channel, acc[t].to(out_ptr.dtype.element_ty), mask=in_channels)


@triton.jit
def _depthwise_conv_dw(
    x_ptr, dout_ptr, keep_ptr, slot_ptr, partial_ptr, n_rows, n_keep, n_tokens, grid_shape,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, KERNEL: tl.constexpr,
    POSITIONS: tl.constexpr, WALKED_TAPS: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the weight's gradient at one walked tap, and at the middle one the bias's, of a chunk of TOKENS."""
    NEIGHBOURS: tl.constexpr = neighbour_products(BLOCK, KERNEL, True)
    channel_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    in_channels = channel < CHANNELS
    walked_tap = tl.program_id(0) // channel_blocks % WALKED_TAPS
    chunk = tl.program_id(0) // (channel_blocks * WALKED_TAPS)
    zero = tl.zeros((BLOCK_C,), tl.float32)
    dbias = zero
    acc = ()
    for _ in tl.static_range(TAPS):
        acc += (zero,)
    for i in range(TOKENS):
        row = chunk * TOKENS + i
        if row < n_rows:
            sample = row // n_keep
            at = coordinates(tl.load(keep_ptr + row), grid_shape)
            place = shifted(at, walked_tap, BLOCK, KERNEL)
            slots = neighbour_slots(slot_ptr + sample.to(tl.int64) * n_tokens, place, grid_shape, NEIGHBOURS)
            dout_row = dout_ptr + row.to(tl.int64) * (POSITIONS * CHANNELS)
            if walked_tap == WALKED_TAPS // 2:
                for t in tl.static_range(POSITIONS):
                    dbias += tl.load(dout_row + t * CHANNELS + channel, mask=in_channels).to(tl.float32)
            for n in tl.static_range(length(NEIGHBOURS)):
                if slots[n] >= 0:
                    neighbour = x_ptr + (sample * n_keep + slots[n]).to(tl.int64) * (POSITIONS * CHANNELS)
                    acc = _add_neighbour(
                        acc, dout_row + channel, neighbour + channel, in_channels, NEIGHBOURS, n, CHANNELS
                    )
    partial_ptr += chunk.to(tl.int64) * ((WALKED_TAPS * TAPS + 1) * CHANNELS)
    for i in tl.static_range(TAPS):
        tl.store(partial_ptr + (walked_tap * TAPS + i) * CHANNELS + channel, acc[i], mask=in_channels)
    if walked_tap == WALKED_TAPS // 2:
        tl.store(partial_ptr + WALKED_TAPS * TAPS * CHANNELS + channel, dbias, mask=in_channels)


def sparse_depthwise_conv_config(positions: int, channels: int) -> dict[str, int]:
    """Channels and warps of a program; positions: accumulators that it keeps for each channel."""
    widest = 64 if positions <= 32 else 32  # two channels a lane: 4-byte reads of bf16, and whole lines of 128 bytes
    return {"BLOCK_C": min(max(16, 1 << (channels - 1).bit_length()), widest), "num_warps": 1, "num_stages": 1}


def sparse_depthwise_conv_dw_config(
    n_rows: int, block: tuple[int, ...], kernel: tuple[int, ...], channels: int
) -> dict[str, int]:
    """The same for the weight's gradient, and the tokens that a program sums, so that about 4096 programs run."""
    walked = walked_taps(block, kernel)
    config = sparse_depthwise_conv_config(math.prod(kernel) // walked, channels)
    programs = n_rows * walked * -(-channels // config["BLOCK_C"])
    return {"TOKENS": min(max(8, 1 << max(programs // 4096, 1).bit_length() - 1), 256), **config}


def unsupported(x: Tensor, weight: Tensor) -> list[str]:
    """Why the kernels cannot convolve x with this weight; empty where they can."""
    why = triton_unsupported(x, weight)
    if odd := {x.dtype, weight.dtype}.difference(DTYPES):
        why.append(f"takes float16, bfloat16 and float32, got {odd.pop()}")
    block, kernel = x.shape[2:-1], weight.shape[1:]
    positions, taps = math.prod(block), math.prod(kernel) // walked_taps(block, kernel)
    if positions > MAX_POSITIONS or taps > MAX_TAPS or positions * taps > MAX_PRODUCTS:
        why.append(
            f"unrolls up to {MAX_POSITIONS} positions of a token, {MAX_TAPS} taps and {MAX_PRODUCTS} products of both, "
            f"got {positions}, {taps} and {positions * taps}"
        )
    return why


def _common(keep: Tensor, slot: Tensor, grid: list[int], block: list[int], kernel: list[int], channels: int) -> dict:
    """Kernel arguments that forward and gradients share."""
    walked = walked_taps(block, kernel)
    return {
        "keep_ptr": keep,
        "slot_ptr": slot,
        "n_keep": keep.shape[1],
        "n_tokens": slot.shape[1],
        "grid_shape": tuple(grid),
        "CHANNELS": channels,
        "BLOCK": tuple(block),
        "KERNEL": tuple(kernel),
        "POSITIONS": math.prod(block),
        "WALKED_TAPS": walked,
        "TAPS": math.prod(kernel) // walked,
    }


def _walked_first(block: list[int]) -> list[int]:
    """The axes in the order in which the kernels number taps."""
    return sorted(range(len(block)), key=lambda axis: block[axis] > 1)


def _convolve(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, keep, slot, grid) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel():
        block, channels = x.shape[2:-1], x.shape[-1]
        config = sparse_depthwise_conv_config(math.prod(block), channels)
        taps = weight.permute(*[1 + axis for axis in _walked_first(block)], 0).contiguous()
        with launching(name, x):
            _depthwise_conv[(keep.numel() * triton.cdiv(channels, config["BLOCK_C"]),)](
                x_ptr=x.contiguous(), weight_ptr=taps, bias_ptr=bias, out_ptr=out, HAS_BIAS=bias is not None,
                **_common(keep, slot, grid, block, weight.shape[1:], channels), **config,
            )  # fmt: skip
    return out


@torch.library.custom_op("cinema_fast::sparse_depthwise_conv", mutates_args=())
def _conv_op(x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, slot: Tensor, grid: list[int]) -> Tensor:
    return _convolve("sparse_depthwise_conv", x, weight, bias.contiguous(), keep, slot, grid)


@torch.library.custom_op("cinema_fast::sparse_depthwise_conv_dx", mutates_args=())
def _dx_op(dout: Tensor, weight: Tensor, keep: Tensor, slot: Tensor, grid: list[int]) -> Tensor:
    reversed_taps = weight.flip(list(range(1, weight.ndim)))
    return _convolve("sparse_depthwise_conv_dx", dout, reversed_taps, None, keep, slot, grid)


@torch.library.custom_op("cinema_fast::sparse_depthwise_conv_dw", mutates_args=())
def _dw_op(
    dout: Tensor, x: Tensor, keep: Tensor, slot: Tensor, grid: list[int], kernel: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (C, *kernel) and the bias (C,), float32."""
    block, channels, n_rows = x.shape[2:-1], x.shape[-1], keep.numel()
    config = sparse_depthwise_conv_dw_config(n_rows, block, kernel, channels)
    common = _common(keep, slot, grid, block, kernel, channels)
    chunks = triton.cdiv(n_rows, config["TOKENS"])
    partial = x.new_empty(chunks, math.prod(kernel) + 1, channels, dtype=torch.float32)
    if partial.numel():
        blocks = chunks * common["WALKED_TAPS"] * triton.cdiv(channels, config["BLOCK_C"])
        with launching("sparse_depthwise_conv_dw", x):
            _depthwise_conv_dw[(blocks,)](
                x_ptr=x.contiguous(), dout_ptr=dout.contiguous(), partial_ptr=partial, n_rows=n_rows, **common, **config
            )
    both, axes = partial.sum(0), _walked_first(block)
    dweight = both[:-1].view(*[kernel[axis] for axis in axes], channels)
    back = [axes.index(axis) for axis in range(len(axes))]
    return dweight.permute(-1, *back).contiguous(), both[-1].clone()


@_conv_op.register_fake
def _(x, weight, bias, keep, slot, grid):
    return x.new_empty(x.shape)


@_dx_op.register_fake
def _(dout, weight, keep, slot, grid):
    return dout.new_empty(dout.shape)


@_dw_op.register_fake
def _(dout, x, keep, slot, grid, kernel):
    shapes = (x.shape[-1], *kernel), (x.shape[-1],)
    return tuple(x.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _setup_context(ctx, inputs, output):
    x, weight, bias, keep, slot, ctx.grid = inputs
    ctx.save_for_backward(x, weight, keep, slot)
    ctx.bias_dtype = bias.dtype


def _backward(ctx, dout):
    x, weight, keep, slot = ctx.saved_tensors
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _dx_op(dout, weight, keep, slot, ctx.grid)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dweight, dbias = _dw_op(dout, x, keep, slot, ctx.grid, weight.shape[1:])
        dweight, dbias = dweight.to(weight.dtype), dbias.to(ctx.bias_dtype)
    return dx, dweight, dbias, None, None, None


_conv_op.register_autograd(_backward, setup_context=_setup_context)


def sparse_depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, plan: TokenPlan, grid: tuple[int, ...], *, backend: str = "auto"
) -> Tensor:
    """Depthwise convolution with odd kernels and zero padding, at visible positions only.

    Args:
        x (B, K, *block, C) floating: positions of the visible tokens.
        weight (C, *kernel), bias (C,): parameters, in x's dtype or float32.
        plan: only its keep (B, K) and slot (B, N) are used.
        grid: tokens per axis.
        backend: "auto", "torch", "triton" or "native" (a C library for the CPU, see depthwise_native.py).

    Returns:
        (B, K, *block, C) in x's dtype, also under autocast.

    Raises:
        ValueError: shapes that do not fit together, an even kernel; BackendError: `backend` cannot run here.
    """
    _check(x, weight, bias, plan, grid)
    reasons = {
        "triton": lambda: unsupported(x, weight),
        "native": lambda: depthwise_native.unsupported(x, weight),
    }
    name = choose("sparse_depthwise_conv", backend, reasons)
    if name == "torch":
        return sparse_depthwise_conv_torch(x, weight, bias, plan, grid)
    convolve = depthwise_native.convolve if name == "native" else _conv_op
    return convolve(x, weight, bias, plan.keep.contiguous(), plan.slot.contiguous(), list(grid))


def _check(x, weight, bias, plan, grid):
    block, channels = tuple(x.shape[2:-1]), x.shape[-1]
    if x.shape[:2] != plan.keep.shape or len(block) != len(grid):
        raise ValueError(
            f"sparse_depthwise_conv: expected x (B, K, *block, C) with (B, K) = {tuple(plan.keep.shape)} and "
            f"{len(grid)} block axes, got {tuple(x.shape)}"
        )
    if weight.shape[0] != channels or weight.ndim != len(grid) + 1 or any(k % 2 == 0 for k in weight.shape[1:]):
        raise ValueError(
            f"sparse_depthwise_conv: expected weight ({channels}, *{len(grid)} odd kernel axes), "
            f"got {tuple(weight.shape)}"
        )
    if bias.shape != (channels,):
        raise ValueError(f"sparse_depthwise_conv: expected bias ({channels},), got {tuple(bias.shape)}")
    if plan.slot.shape[1] != math.prod(grid):
        raise ValueError(
            f"sparse_depthwise_conv: the plan has {plan.slot.shape[1]} tokens, the grid {tuple(grid)} {math.prod(grid)}"
        )
    for name, tensor in {"weight": weight, "bias": bias, "plan": plan.keep}.items():
        if tensor.device != x.device:
            raise ValueError(f"sparse_depthwise_conv: x is on {x.device}, {name} on {tensor.device}")

# Registration


def _call(s: DepthwiseShape, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    x = inputs.floats(s.batch, s.keep, *s.block, s.channels, dtype=dtype, grad=True)
    weight, bias = inputs.floats(s.channels, *s.kernel, grad=True), inputs.floats(s.channels, grad=True)
    plan = inputs.plan(s.batch, math.prod(s.grid), s.keep)
    out = sparse_depthwise_conv(x, weight, bias, plan, s.grid, backend="triton")
    return inputs.with_gradients(out, x, weight, bias)


def _calls() -> Iterator[Call]:
    """Both stages of every conv stem."""
    for name, view in VIEW_SHAPES.items():
        for s in view.stem_stages():
            for dtype in audited_dtypes(name):
                variant = "x".join(map(str, s.block))
                yield Call(call_name(name, dtype, variant), partial(_call, s, dtype=dtype))


register(Operation(
    sparse_depthwise_conv,
    computes="depthwise convolution over visible tokens' positions; absent neighbours are skipped, exactly the "
    "products that count are computed",
    unsupported={"triton": triton_unsupported, "native": lambda x: depthwise_native.unsupported(x, x)},
    launches=("sparse_depthwise_conv",),
    backward=("sparse_depthwise_conv_dx", "sparse_depthwise_conv_dw"),
    calls=_calls,
    small=partial(_call, DepthwiseShape(2, (3, 3, 2), (2, 2, 1), (5, 5, 5), 20, 5)),
    code=Code(False, False, False, "a lane holds two channels: 4 or 8 bytes, whole lines of 128 bytes a warp"),
))  # fmt: skip
