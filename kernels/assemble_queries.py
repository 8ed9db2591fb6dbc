"""assemble_queries: the decoder's queries, one for each token to decode.

    out[b, m] = mask_token + table[masked[b, m]]

Bytes: forward writes out and reads the ids (table and mask token stay in cache); backward reads out's gradient. Nothing
is expanded over the batch first. The mask token's gradient is a sum over all B * M rows, made in float32 in two steps
of fixed order: the same bits every time. The table is fixed in these models, so the kernels compute no gradient for it;
a table that requires a gradient is handled by the PyTorch form.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .registry import Call, Code, Operation, call_name, register
from .shapes import SMALL_VIEW, VIEW_SHAPES, ViewShape, in_float32_too

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def assemble_queries_ref(mask_token: Tensor, table: Tensor, masked: Tensor) -> Tensor:
    """Plain PyTorch. It is one addition, so the bits are the same in any precision that holds both terms."""
    return (mask_token + F.embedding(masked.long(), table)).to(table.dtype)


def assemble_queries_bytes(n_rows: int, width: int, element_size: int) -> int:
    """Bytes that the forward moves; the backward reads as many, without the ids (4 bytes a row)."""
    return n_rows * (width * element_size + 4)


@triton.jit
def _assemble_queries_fwd(
    token_ptr, table_ptr, masked_ptr, out_ptr, n_rows, width, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    column_blocks = tl.cdiv(width, BLOCK_D)
    rows = tl.program_id(0) // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    cols = tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)  # [BLOCK_D]
    in_rows, in_cols = rows < n_rows, cols < width
    keep = in_rows[:, None] & in_cols[None, :]
    position = tl.load(masked_ptr + rows, mask=in_rows, other=0).to(tl.int64)
    token = tl.load(token_ptr + cols, mask=in_cols, other=0.0).to(tl.float32)
    place = tl.load(table_ptr + position[:, None] * width + cols[None, :], mask=keep, other=0.0).to(tl.float32)
    query = (token[None, :] + place).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * width + cols[None, :], query, mask=keep)


@triton.jit
def _assemble_queries_bwd(
    dout_ptr, partial_ptr, n_rows, rows_per_sample, stride_b, stride_m, width,
    STEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: the sum of STEPS * BLOCK_M rows of out's gradient in a block of columns."""
    column_blocks = tl.cdiv(width, BLOCK_D)
    split = tl.program_id(0) // column_blocks
    cols = tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)  # [BLOCK_D]
    in_cols = cols < width
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for step in range(STEPS):
        rows = (split * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        sample = (rows // rows_per_sample).to(tl.int64)
        first = sample * stride_b + (rows % rows_per_sample).to(tl.int64) * stride_m
        keep = (rows < n_rows)[:, None] & in_cols[None, :]
        acc += tl.load(dout_ptr + (first[:, None] + cols[None, :]), mask=keep, other=0.0).to(tl.float32)
    tl.store(partial_ptr + split.to(tl.int64) * width + cols, tl.sum(acc, axis=0), mask=in_cols)


def assemble_queries_config(width: int) -> dict[str, int]:
    """Block sizes and warps of the forward."""
    return {"BLOCK_M": 8, "BLOCK_D": min(max(16, 1 << (width - 1).bit_length()), 512), "num_warps": 4}


def assemble_queries_bwd_config(n_rows: int, width: int) -> dict[str, int]:
    """Block sizes and warps of the backward; a program sums STEPS blocks of rows, so that about 1024 programs run."""
    block_m, block_d = 16, min(max(16, 1 << (width - 1).bit_length()), 128)
    steps = 1 << max(n_rows * -(-width // block_d) // (1024 * block_m), 1).bit_length() - 1
    return {"STEPS": min(steps, 64), "BLOCK_M": block_m, "BLOCK_D": block_d, "num_warps": 4}


def unsupported(mask_token: Tensor, table: Tensor) -> list[str]:
    """Why the kernels cannot run on these arguments; empty where they can."""
    why = triton_unsupported(mask_token, table)
    if table.requires_grad:
        why.append("computes no gradient for the table, which requires one")
    if odd := {mask_token.dtype, table.dtype}.difference(DTYPES):
        why.append(f"adds float16, bfloat16 and float32, got {odd.pop()}")
    return why


@torch.library.custom_op("cinema_fast::assemble_queries", mutates_args=())
def _assemble_queries_op(mask_token: Tensor, table: Tensor, masked: Tensor) -> Tensor:
    out = _empty_queries(mask_token, table, masked)
    if out.numel():
        width = table.shape[1]
        config = assemble_queries_config(width)
        blocks = triton.cdiv(masked.numel(), config["BLOCK_M"]) * triton.cdiv(width, config["BLOCK_D"])
        with launching("assemble_queries", table):
            _assemble_queries_fwd[(blocks,)](mask_token, table, masked, out, masked.numel(), width, **config)
    return out


@_assemble_queries_op.register_fake
def _empty_queries(mask_token, table, masked):
    return table.new_empty(*masked.shape, table.shape[1])


@torch.library.custom_op("cinema_fast::assemble_queries_bwd", mutates_args=())
def _assemble_queries_bwd_op(dout: Tensor) -> Tensor:
    """dout (B, M, D) with a contiguous last axis -> its sum over B and M, (D,) float32."""
    n_rows, width = dout.shape[0] * dout.shape[1], dout.shape[2]
    config = assemble_queries_bwd_config(n_rows, width)
    splits = triton.cdiv(n_rows, config["BLOCK_M"] * config["STEPS"])
    partial = dout.new_empty(splits, width, dtype=torch.float32)
    if partial.numel():
        blocks = splits * triton.cdiv(width, config["BLOCK_D"])
        with launching("assemble_queries_bwd", dout):
            _assemble_queries_bwd[(blocks,)](
                dout, partial, n_rows, dout.shape[1], dout.stride(0), dout.stride(1), width, **config
            )
    return partial.sum(0)


@_assemble_queries_bwd_op.register_fake
def _(dout):
    return dout.new_empty(dout.shape[2], dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype


def _backward(ctx, dout):
    if dout.stride(2) != 1:
        dout = dout.contiguous()
    return _assemble_queries_bwd_op(dout).to(ctx.dtype), None, None


_assemble_queries_op.register_autograd(_backward, setup_context=_setup_context)


def assemble_queries(mask_token: Tensor, table: Tensor, masked: Tensor, *, backend: str = "auto") -> Tensor:
    """Mask token plus position embedding at each position to decode.

    Args:
        mask_token (D,), table (N, D) position embeddings: floating.
        masked (B, M) integer: grid positions, not checked against the table.
        backend: "auto", "torch" or "triton".

    Returns:
        (B, M, D) in the table's dtype.

    Raises:
        ValueError: ranks, widths or devices that do not fit together; BackendError: `backend` cannot run here.
    """
    if mask_token.ndim != 1 or table.ndim != 2 or masked.ndim != 2 or mask_token.shape[0] != table.shape[1]:
        raise ValueError(
            "assemble_queries: expected mask_token (D,), table (N, D), masked (B, M); "
            f"got {tuple(mask_token.shape)}, {tuple(table.shape)}, {tuple(masked.shape)}"
        )
    if masked.is_floating_point() or not mask_token.device == table.device == masked.device:
        raise ValueError(
            "assemble_queries: expected integer ids, and all tensors on one device, got "
            + ", ".join(f"{x.dtype} on {x.device}" for x in (mask_token, table, masked))
        )
    if choose("assemble_queries", backend, {"triton": lambda: unsupported(mask_token, table)}) == "torch":
        return assemble_queries_ref(mask_token, table, masked)
    return _assemble_queries_op(mask_token.contiguous(), table.contiguous(), masked.contiguous())

# Registration


def _call(view: ViewShape, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    token = inputs.floats(view.dec_width, grad=True)
    table = inputs.floats(view.n, view.dec_width, dtype=dtype)
    masked = inputs.plan(view.batch, view.n, view.keep).masked
    return inputs.with_gradients(assemble_queries(token, table, masked, backend="triton"), token)


def _calls() -> Iterator[Call]:
    """At the models' shapes. In float32 too, because the residual stream is float32 even under autocast."""
    for name, view in VIEW_SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32) if in_float32_too(name) else (torch.float32,):
            yield Call(call_name(name, dtype), partial(_call, view, dtype=dtype))


register(Operation(
    assemble_queries,
    computes="mask token + position, for the tokens to decode",
    unsupported={"triton": triton_unsupported},
    launches=("assemble_queries",),
    backward=("assemble_queries_bwd",),
    calls=_calls,
    small=partial(_call, SMALL_VIEW),
    code={
        "_assemble_queries_fwd": Code(False, True, True, "rows of the table in, of queries out"),
        "_assemble_queries_bwd": Code(
            False, True, False, "reads rows of gradients; writes one sum for 16 rows or more"
        ),
    },
))  # fmt: skip
