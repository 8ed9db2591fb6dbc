"""sparse_attention: softmax attention over packed sequences.

    out[i, h] = sum over j of  softmax_j(scale * q[i, h] . k[j, h])  v[j, h],   j in i's sequence

Queries of sequence b are rows cu_q[b]..cu_q[b+1] of q (Tq, H, D), its keys rows cu_k[b]..cu_k[b+1] of k and v
(Tk, H, D): self-attention where both are the same, cross-attention from many queries to few keys otherwise. q, k and v
are read in place, with any strides and a contiguous last axis, as the projections wrote them; nothing is padded.

Forward: a program owns a tile of queries of one head and walks the keys with a running maximum and sum (Milakov and
Gimelshein 2018; Dao, FlashAttention-2, 2023). Logits and sums are float32 and kept in base 2; weights are rounded to
the inputs' dtype for the second product. The logarithm of each row's sum, lse (H, Tq) in base 2, is saved.
Backward: weights are computed again from lse. In the first kernel a program owns a tile of queries; it gives dq, and
writes delta = sum(out * dout) next to a copy of lse (H, Tq, 2), so that the second kernel loads both at once. In the
second kernel a program owns a tile of keys and gives dk and dv. This takes seven products instead of five, but every
sum has one owner and a fixed order, so gradients have the same bits every time.

Sequences are rarely multiples of a tile (768 visible tokens and a class token): whole tiles are walked without masks,
and the remaining rows in tiles of their own, which may be smaller. Bytes: q, k, v and out once each, and lse; the
backward moves those, dout and three gradients. At these lengths the matrix units and the exponential are the limit.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import tuning
from .attention_peers import PEERS
from .backend import INTERPRET, choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .packed_sequences import Runs, check_packed, is_uniform, longest_sequence, sequence_lengths
from .registry import Call, Code, Operation, call_name, register
from .shapes import ATTENTION_SHAPES, AttentionShape, audited_dtypes

MAX_HEAD_DIM = 128
BATCHED = ("torch", "sdpa")  # backends that take equally long sequences in one call, others one after another
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# entries of HEAD, a constant of all kernels: a head's width, the width rounded up to a power of two, the precision of
# tl.dot, and whether Triton's interpreter runs the kernel
DIM, PADDED_DIM, PRECISION, INTERPRETED = (tl.constexpr(i) for i in range(4))


def sparse_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    """Plain PyTorch, one sequence after another; computes in q's dtype, at least float32, and returns q's dtype."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    lengths = sequence_lengths(cu_q, max_q, len(q)), *[sequence_lengths(cu_k, max_k, len(k))] * 2
    outs = []
    with torch.autocast(q.device.type, enabled=False):
        for qs, ks, vs in zip(*(x.to(dtype).split(n) for x, n in zip((q, k, v), lengths))):
            weights = (scale * torch.einsum("qhd,khd->hqk", qs, ks)).softmax(-1)
            outs.append(torch.einsum("hqk,khd->qhd", weights, vs))
    return torch.cat(outs).to(q.dtype)


def sparse_attention_flops(n_pairs: int, n_heads: int, head_dim: int, *, backward: bool = False) -> int:
    """Useful FLOPs; n_pairs: sum over sequences of queries x keys. Two matrix products forward, five backward."""
    return (5 if backward else 2) * 2 * n_pairs * n_heads * head_dim


def sparse_attention_bytes(q: Tensor, k: Tensor, *, backward: bool = False) -> int:
    """Bytes that must move: reads q, k, v, writes out and lse; the backward reads all those and dout, and writes three
    gradients."""
    tensors = (4 if backward else 2) * q.numel() + (4 if backward else 2) * k.numel()
    return tensors * q.element_size() + 4 * q.shape[0] * q.shape[1]


@triton.jit
def _locate(cu_q_ptr, cu_k_ptr, n_heads, n_tiles):
    """This program's tile and head; where its sequence starts and how long it is, in q's and in k's rows"""
    tile = tl.program_id(0) % n_tiles
    head = tl.program_id(0) // n_tiles % n_heads
    batch = tl.program_id(0) // n_tiles // n_heads
    first_q, first_k = tl.load(cu_q_ptr + batch), tl.load(cu_k_ptr + batch)
    n_q, n_k = tl.load(cu_q_ptr + batch + 1) - first_q, tl.load(cu_k_ptr + batch + 1) - first_k
    return tile, head.to(tl.int64), first_q.to(tl.int64), n_q, first_k.to(tl.int64), n_k


@triton.jit
def _bound(n, HEAD: tl.constexpr):
    # triton 3.6's interpreter, under numpy >= 2.4, wants Python's integers as bounds of a loop
    return tl.cast(n, tl.int32).handle.data.item() if HEAD[INTERPRETED] else n


@triton.jit
def _rows(ptr, token_stride, head_stride, first, head):
    """Rows of one head from row `first` on: what _load and _store take"""
    return ptr + first * token_stride + head * head_stride, tl.cast(token_stride, tl.int64)


@triton.jit
def _load(rows, start, end, BLOCK: tl.constexpr, MASKED: tl.constexpr, HEAD: tl.constexpr):
    """Rows start..start + BLOCK, zero from row `end` on if MASKED: [BLOCK, BLOCK_D]"""
    D: tl.constexpr = HEAD[DIM]
    BLOCK_D: tl.constexpr = HEAD[PADDED_DIM]
    row, col = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    at = rows[0] + start * rows[1] + row * rows[1] + col
    if MASKED and D < BLOCK_D:
        x = tl.load(at, mask=(start + row < end) & (col < D), other=0.0)
    elif MASKED:
        x = tl.load(at, mask=start + row < end, other=0.0)
    elif D < BLOCK_D:
        x = tl.load(at, mask=col < D, other=0.0)
    else:
        x = tl.load(at)
    # the interpreter computes wrongly in bfloat16; on a GPU the matrix units want the dtype as it is
    return x.to(tl.float32) if HEAD[INTERPRETED] else x


@triton.jit
def _store(rows, n_rows, x, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    BLOCK_D: tl.constexpr = HEAD[PADDED_DIM]
    row, col = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    at = rows[0] + row * rows[1] + col
    tl.store(at, x.to(rows[0].dtype.element_ty), mask=(row < n_rows) & (col < HEAD[DIM]))


@triton.jit
def _fwd_walk(
    q, top, total, acc, keys, values, begin, end, scale_log2,
    COLS: tl.constexpr, MASKED: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    for start in tl.range(_bound(begin, HEAD), _bound(end, HEAD), COLS, num_stages=1 if MASKED else None):
        k = _load(keys, start, end, COLS, MASKED, HEAD)
        logits = tl.dot(q, tl.trans(k), input_precision=HEAD[PRECISION])  # [ROWS, COLS], without the scale
        if MASKED:
            logits = tl.where(start + tl.arange(0, COLS)[None, :] < end, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1) * scale_log2)
        weights = tl.math.exp2(logits * scale_log2 - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        top = new_top
        total = total * shrink + tl.sum(weights, 1)
        v = _load(values, start, end, COLS, MASKED, HEAD)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=HEAD[PRECISION])
    return top, total, acc


@triton.jit
def _fwd_tile(
    queries, keys, values, out, lse_ptr, n_rows, n_k, scale_log2,
    ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = HEAD[PADDED_DIM]
    q = _load(queries, 0, n_rows, ROWS, True, HEAD)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    whole = n_k // COLS * COLS
    top, total, acc = _fwd_walk(q, top, total, acc, keys, values, 0, whole, scale_log2, COLS, False, HEAD)
    top, total, acc = _fwd_walk(q, top, total, acc, keys, values, whole, n_k, scale_log2, TAIL_COLS, True, HEAD)
    total = tl.where(n_k > 0, total, 1.0)  # without keys: zero, and lse is never read
    _store(out, n_rows, acc * (1.0 / total)[:, None], ROWS, HEAD)
    row = tl.arange(0, ROWS)
    tl.store(lse_ptr + row, top + tl.math.log2(total), mask=row < n_rows)


@triton.jit(do_not_specialize=["total_q", "n_tiles"])
def _attention_fwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_q_ptr, cu_k_ptr, total_q, n_heads, n_tiles,
    q_token, q_head, k_token, k_head, v_token, v_head, scale_log2,
    ROWS: tl.constexpr, TAIL_ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    tile, head, first_q, n_q, first_k, n_k = _locate(cu_q_ptr, cu_k_ptr, n_heads, n_tiles)
    left = n_q - tile * ROWS
    first_q += tile * ROWS
    queries = _rows(q_ptr, q_token, q_head, first_q, head)
    keys, values = _rows(k_ptr, k_token, k_head, first_k, head), _rows(v_ptr, v_token, v_head, first_k, head)
    out = _rows(out_ptr, n_heads * HEAD[DIM], HEAD[DIM], first_q, head)
    lse_ptr += head * total_q + first_q
    if left > (TAIL_ROWS if TAIL_ROWS < ROWS else 0):
        _fwd_tile(queries, keys, values, out, lse_ptr, left, n_k, scale_log2, ROWS, COLS, TAIL_COLS, HEAD)
    elif TAIL_ROWS < ROWS and left > 0:
        _fwd_tile(queries, keys, values, out, lse_ptr, left, n_k, scale_log2, TAIL_ROWS, COLS, TAIL_COLS, HEAD)


@triton.jit
def _dq_walk(
    q, dout, lse, delta, dq, keys, values, begin, end, scale_log2,
    COLS: tl.constexpr, MASKED: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    for start in tl.range(_bound(begin, HEAD), _bound(end, HEAD), COLS, num_stages=1 if MASKED else None):
        k = _load(keys, start, end, COLS, MASKED, HEAD)
        v = _load(values, start, end, COLS, MASKED, HEAD)
        logits = tl.dot(q, tl.trans(k), input_precision=HEAD[PRECISION])  # [ROWS, COLS]
        weights = tl.math.exp2(logits * scale_log2 - lse[:, None])
        if MASKED:  # a key that is not there has the logit 0, whose weight may be infinite
            weights = tl.where(start + tl.arange(0, COLS)[None, :] < end, weights, 0.0)
        dweights = tl.dot(dout, tl.trans(v), input_precision=HEAD[PRECISION])
        dlogits = weights * (dweights - delta[:, None])
        dq = tl.dot(dlogits.to(k.dtype), k, dq, input_precision=HEAD[PRECISION])
    return dq


@triton.jit
def _dq_tile(
    owned, keys, values, n_rows, n_k, scale, scale_log2,
    ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = HEAD[PADDED_DIM]
    queries, out, dout, dqueries, lse_ptr, lse_delta_ptr = owned
    row = tl.arange(0, ROWS)
    do = _load(dout, 0, n_rows, ROWS, True, HEAD)
    delta = tl.sum(_load(out, 0, n_rows, ROWS, True, HEAD).to(tl.float32) * do.to(tl.float32), 1)
    lse = tl.load(lse_ptr + row, mask=row < n_rows, other=0.0)
    pair = lse_delta_ptr + 2 * row[:, None] + tl.arange(0, 2)[None, :]
    tl.store(pair, tl.join(lse, delta), mask=row[:, None] < n_rows)
    q = _load(queries, 0, n_rows, ROWS, True, HEAD)
    dq = tl.zeros((ROWS, BLOCK_D), tl.float32)
    whole = n_k // COLS * COLS
    dq = _dq_walk(q, do, lse, delta, dq, keys, values, 0, whole, scale_log2, COLS, False, HEAD)
    dq = _dq_walk(q, do, lse, delta, dq, keys, values, whole, n_k, scale_log2, TAIL_COLS, True, HEAD)
    _store(dqueries, n_rows, dq * scale, ROWS, HEAD)


@triton.jit(do_not_specialize=["total_q", "n_tiles"])
def _attention_bwd_dq(
    q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, lse_delta_ptr, dq_ptr, cu_q_ptr, cu_k_ptr,
    total_q, n_heads, n_tiles,
    q_token, q_head, k_token, k_head, v_token, v_head, dout_token, dout_head, scale, scale_log2,
    ROWS: tl.constexpr, TAIL_ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    tile, head, first_q, n_q, first_k, n_k = _locate(cu_q_ptr, cu_k_ptr, n_heads, n_tiles)
    left = n_q - tile * ROWS
    first_q += tile * ROWS
    queries, dout = _rows(q_ptr, q_token, q_head, first_q, head), _rows(dout_ptr, dout_token, dout_head, first_q, head)
    keys, values = _rows(k_ptr, k_token, k_head, first_k, head), _rows(v_ptr, v_token, v_head, first_k, head)
    out = _rows(out_ptr, n_heads * HEAD[DIM], HEAD[DIM], first_q, head)
    dqueries = _rows(dq_ptr, n_heads * HEAD[DIM], HEAD[DIM], first_q, head)
    row = head * total_q + first_q
    owned = queries, out, dout, dqueries, lse_ptr + row, lse_delta_ptr + 2 * row
    if left > (TAIL_ROWS if TAIL_ROWS < ROWS else 0):
        _dq_tile(owned, keys, values, left, n_k, scale, scale_log2, ROWS, COLS, TAIL_COLS, HEAD)
    elif TAIL_ROWS < ROWS and left > 0:
        _dq_tile(owned, keys, values, left, n_k, scale, scale_log2, TAIL_ROWS, COLS, TAIL_COLS, HEAD)


@triton.jit
def _dkv_walk(
    k, v, dk, dv, walked, begin, end, scale_log2, COLS: tl.constexpr, MASKED: tl.constexpr, HEAD: tl.constexpr
):
    # everything transposed, so that weights and dlogits go on as left operands from registers
    queries, dout, lse_delta_ptr = walked
    for start in tl.range(_bound(begin, HEAD), _bound(end, HEAD), COLS, num_stages=1 if MASKED else None):
        q = _load(queries, start, end, COLS, MASKED, HEAD)
        do = _load(dout, start, end, COLS, MASKED, HEAD)
        row = start + tl.arange(0, COLS)[:, None]
        pair = lse_delta_ptr + 2 * row + tl.arange(0, 2)[None, :]
        # a query that is not there has dout = delta = 0 and adds nothing
        lse, delta = tl.split(tl.load(pair, mask=row < end, other=0.0) if MASKED else tl.load(pair))
        logits = tl.dot(k, tl.trans(q), input_precision=HEAD[PRECISION])  # [ROWS, COLS]
        weights = tl.math.exp2(logits * scale_log2 - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=HEAD[PRECISION])
        dweights = tl.dot(v, tl.trans(do), input_precision=HEAD[PRECISION])
        dlogits = weights * (dweights - delta[None, :])
        dk = tl.dot(dlogits.to(q.dtype), q, dk, input_precision=HEAD[PRECISION])
    return dk, dv


@triton.jit
def _dkv_tile(
    owned, walked, n_rows, n_q, scale, scale_log2,
    ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = HEAD[PADDED_DIM]
    keys, values, dkeys, dvalues = owned
    k, v = _load(keys, 0, n_rows, ROWS, True, HEAD), _load(values, 0, n_rows, ROWS, True, HEAD)
    dk, dv = tl.zeros((ROWS, BLOCK_D), tl.float32), tl.zeros((ROWS, BLOCK_D), tl.float32)
    whole = n_q // COLS * COLS
    dk, dv = _dkv_walk(k, v, dk, dv, walked, 0, whole, scale_log2, COLS, False, HEAD)
    dk, dv = _dkv_walk(k, v, dk, dv, walked, whole, n_q, scale_log2, TAIL_COLS, True, HEAD)
    _store(dkeys, n_rows, dk * scale, ROWS, HEAD)
    _store(dvalues, n_rows, dv, ROWS, HEAD)


@triton.jit(do_not_specialize=["total_q", "n_tiles"])
def _attention_bwd_dkv(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_delta_ptr, dk_ptr, dv_ptr, cu_q_ptr, cu_k_ptr, total_q, n_heads, n_tiles,
    q_token, q_head, k_token, k_head, v_token, v_head, dout_token, dout_head, scale, scale_log2,
    ROWS: tl.constexpr, TAIL_ROWS: tl.constexpr, COLS: tl.constexpr, TAIL_COLS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    tile, head, first_q, n_q, first_k, n_k = _locate(cu_q_ptr, cu_k_ptr, n_heads, n_tiles)
    left = n_k - tile * ROWS
    first_k += tile * ROWS
    queries, dout = _rows(q_ptr, q_token, q_head, first_q, head), _rows(dout_ptr, dout_token, dout_head, first_q, head)
    walked = queries, dout, lse_delta_ptr + 2 * (head * total_q + first_q)
    keys, values = _rows(k_ptr, k_token, k_head, first_k, head), _rows(v_ptr, v_token, v_head, first_k, head)
    dkeys = _rows(dk_ptr, n_heads * HEAD[DIM], HEAD[DIM], first_k, head)
    dvalues = _rows(dv_ptr, n_heads * HEAD[DIM], HEAD[DIM], first_k, head)
    owned = keys, values, dkeys, dvalues
    if left > (TAIL_ROWS if TAIL_ROWS < ROWS else 0):
        _dkv_tile(owned, walked, left, n_q, scale, scale_log2, ROWS, COLS, TAIL_COLS, HEAD)
    elif TAIL_ROWS < ROWS and left > 0:
        _dkv_tile(owned, walked, left, n_q, scale, scale_log2, TAIL_ROWS, COLS, TAIL_COLS, HEAD)


def sparse_attention_config(
    head_dim: int, max_q: int, max_k: int, dtype: torch.dtype, gpu: str | None = None
) -> dict[str, dict[str, int]]:
    """Launch configuration of each pass, "fwd", "dq" and "dkv"; `gpu`: the device's name.

    ROWS: rows that a program owns (queries, but keys in "dkv"). COLS: rows that it walks at a time. TAIL_ROWS,
    TAIL_COLS: tile of the rows that whole tiles leave over: 16 where the longest sequence leaves no more (769 =
    6 x 128 + 1). TAIL_COLS is 32 at most: those are masked and not pipelined. A table measured on the GPU (tuning.py)
    takes precedence. Without one the tiles are static choices that were not measured on a GPU. They were chosen by the
    number of instructions per logit in sm_90's machine code and by how many programs share a multiprocessor and hide
    each other's waits, among tiles that spill no registers on sm_80, sm_90 and sm_100.
    """
    if dtype == torch.float32:  # no matrix units unless tf32 is allowed: whole rows of both operands in registers
        side, warps = (32, 4) if head_dim <= 32 else (32, 8) if head_dim <= 64 else (16, 8)
        passes = dict.fromkeys(("fwd", "dq", "dkv"), (side, side, warps, 2))
    elif head_dim <= 64:
        passes = {"fwd": (64, 128, 4, 2), "dq": (64, 64, 4, 2), "dkv": (64, 64, 4, 2)}
    else:
        passes = {"fwd": (128, 64, 8, 3), "dq": (64, 64, 8, 2), "dkv": (64, 32, 8, 2)}
    passes |= tuning.tiles(head_dim, max_q, max_k, dtype, gpu)
    config = {}
    for name, (rows, cols, warps, stages) in passes.items():
        owned, walked = (max_k, max_q) if name == "dkv" else (max_q, max_k)
        rows, tail_rows = _tiles(owned, rows)
        cols, tail_cols = _tiles(walked, cols)
        tiles = {"ROWS": rows, "TAIL_ROWS": tail_rows, "COLS": cols, "TAIL_COLS": min(tail_cols, 32)}
        config[name] = {**tiles, "num_warps": warps, "num_stages": stages}
    return config


def _tiles(longest: int, block: int) -> tuple[int, int]:
    """Rows of a tile, and of a tile for the rows left over, where `block` rows are the preferred tile."""
    block = min(block, max(16, 1 << (longest - 1).bit_length()))
    return block, 16 if block >= 64 and 0 < longest % block <= 16 else block


def unsupported(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[str]:
    """Why the kernels cannot run on these arguments; empty where they can."""
    why = triton_unsupported(q, k, v)
    if q.dtype not in DTYPES:
        why.append(f"dtype {str(q.dtype)[6:]} (expected {', '.join(str(d)[6:] for d in DTYPES)})")
    if q.shape[-1] % 8 or q.shape[-1] > MAX_HEAD_DIM:
        why.append(f"head dim {q.shape[-1]} (expected a multiple of 8 up to {MAX_HEAD_DIM})")
    if not scale > 0:
        why.append(f"scale {scale} (expected above 0)")
    return why


def _launch(name, kernel, tile: dict[str, int], n_rows: int, tensors, strided, cu_q: Tensor, cu_k: Tensor, *scales):
    """Launches one program for each sequence, head and tile of its up to `n_rows` rows. strided: tensors whose strides
    the kernel needs."""
    total_q, n_heads, head_dim = strided[0].shape
    n_tiles = -(-n_rows // tile["ROWS"])
    if not n_tiles:
        return
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    head = (head_dim, max(16, 1 << (head_dim - 1).bit_length()), precision, INTERPRET)
    strides = [stride for x in strided for stride in x.stride()[:2]]
    with launching(name, strided[0]):
        kernel[(n_tiles * n_heads * (len(cu_q) - 1),)](
            *tensors, cu_q, cu_k, total_q, n_heads, n_tiles, *strides, *scales, HEAD=head, **tile
        )


def _readable(*tensors: Tensor) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


@torch.library.custom_op("cinema_fast::sparse_attention", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = _empty_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale)
    tile = sparse_attention_config(q.shape[-1], max_q, max_k, q.dtype, tuning.gpu_of(q.device))["fwd"]
    q, k, v = strided = _readable(q, k, v)
    tensors, scale_log2 = (q, k, v, out, lse), scale * math.log2(math.e)
    _launch("sparse_attention", _attention_fwd, tile, max_q, tensors, strided, cu_q, cu_k, scale_log2)
    return out, lse


@_forward_op.register_fake
def _empty_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("cinema_fast::sparse_attention_backward", mutates_args=())
def _backward_op(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
    max_q: int, max_k: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = _empty_backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, scale)
    config = sparse_attention_config(q.shape[-1], max_q, max_k, q.dtype, tuning.gpu_of(q.device))
    q, k, v, dout = strided = _readable(q, k, v, dout)
    lse_delta, scales = lse.new_empty(*lse.shape, 2), (scale, scale * math.log2(math.e))
    for_dq = (q, k, v, out, dout, lse, lse_delta, dq)
    # this kernel writes lse_delta, which the next one reads
    _launch("sparse_attention_dq", _attention_bwd_dq, config["dq"], max_q, for_dq, strided, cu_q, cu_k, *scales)
    for_dkv = (q, k, v, dout, lse_delta, dk, dv)
    _launch("sparse_attention_dkv", _attention_bwd_dkv, config["dkv"], max_k, for_dkv, strided, cu_q, cu_k, *scales)
    return dq, dk, dv


@_backward_op.register_fake
def _empty_backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.max_q, ctx.max_k, ctx.scale = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])
    ctx.set_materialize_grads(False)  # lse has no gradient


def _vjp(ctx, dout, _):
    return *_backward_op(dout, *ctx.saved_tensors, ctx.max_q, ctx.max_k, ctx.scale), *[None] * 5


_forward_op.register_autograd(_vjp, setup_context=_setup_context)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    max_q: int | None = None,
    max_k: int | None = None,
    scale: float | None = None,
    runs: tuple[Runs, Runs] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention within each of B packed sequences. A sequence without keys gives zeros and gets no gradient.

    Args:
        q (Tq, H, D), k, v (Tk, H, D) floating, of one dtype; D a multiple of 8.
        cu_q, cu_k (B + 1,) int32: offsets of the sequences in q's and in k's rows, from 0 to Tq and Tk.
        max_q, max_k: length of the longest sequence, or a bound on it; read back from the offsets where None. If
            max_q * B == Tq (the same for k), all sequences are equally long and need no loop. The offsets are checked,
            but trusted in compiled code, and on a GPU where bounds are given.
        scale: of the logits; 1 / sqrt(D) where None.
        runs: lengths of the queries' and the keys' sequences, where the host knows them; both have as many runs. They
            are trusted. Backends that attend to equally long sequences at once then take one call for each run.
        backend: "auto", "torch", "triton", or another library: "flash", "sdpa", "cudnn", "xformers". For sequences
            that are all equally long "auto" takes the fastest backend of the GPU's table (tuning.py).

    Returns:
        (Tq, H, D) in q's dtype, also under autocast.

    Raises:
        ValueError: shapes, dtypes, devices or offsets that do not fit together; BackendError: `backend` cannot run.
    """
    check_packed("sparse_attention", q, k, v, cu_q, cu_k)
    max_q = longest_sequence("sparse_attention: cu_q", cu_q, max_q, len(q))
    max_k = longest_sequence("sparse_attention: cu_k", cu_k, max_k, len(k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    reasons = {"triton": lambda: unsupported(q, k, v, scale)}
    equal = is_uniform(cu_q, max_q, len(q)) and is_uniform(cu_k, max_k, len(k))
    reasons |= {name: partial(why, q, k, v, equal) for name, (_, why) in PEERS.items()}
    # fastest first; another library comes before the kernel only where timings on this GPU say so
    by_table = equal and backend == "auto"
    if by_table and (fastest := tuning.backend(q.shape[-1], max_q, max_k, q.dtype, q.device)):
        reasons = {fastest: reasons[fastest]} | reasons
    name = choose("sparse_attention", backend, reasons)
    if name == "triton":
        return _forward_op(q, k, v, cu_q, cu_k, max_q, max_k, scale)[0]
    attend = sparse_attention_ref if name == "torch" else PEERS[name][0]
    if runs is None or len(runs[0].of) == 1 or name not in BATCHED:
        return attend(q, k, v, cu_q, cu_k, max_q, max_k, scale)
    outs, rows = [], zip(q.split(runs[0].rows), k.split(runs[1].rows), v.split(runs[1].rows))
    for tensors, one_q, one_k in zip(rows, runs[0].of, runs[1].of):
        one_q, one_k = Runs((one_q,)), Runs((one_k,))
        offsets = one_q.offsets(q.device), one_k.offsets(q.device)
        outs.append(attend(*tensors, *offsets, one_q.longest, one_k.longest, scale))
    return torch.cat(outs)

# Registration


PROJECTED_TOGETHER = 8  # blocks of the decoder, whose keys and values are one projection


def _call(s: AttentionShape, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v are views of one projection where queries and keys are the same tokens, else of two projections."""
    queries, keys = s.batch * s.queries, s.batch * s.keys
    if s.queries == s.keys:
        q, k, v = inputs.floats(queries, 3, s.heads, s.head_dim, dtype=dtype).unbind(1)
    else:
        q = inputs.floats(queries, s.heads, s.head_dim, dtype=dtype)
        k, v = inputs.floats(keys, 2 * PROJECTED_TOGETHER, s.heads, s.head_dim, dtype=dtype).unbind(1)[:2]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    cu_q, cu_k = inputs.offsets(s.batch, s.queries), inputs.offsets(s.batch, s.keys)
    out = sparse_attention(*leaves, cu_q, cu_k, max_q=s.queries, max_k=s.keys, backend="triton")
    return inputs.with_gradients(out, *leaves)


def _calls() -> Iterator[Call]:
    for name, shape in ATTENTION_SHAPES.items():
        for dtype in audited_dtypes(name):
            yield Call(call_name(name, dtype), partial(_call, shape, dtype=dtype))


def _tuned_remark(device: torch.device) -> str:
    if device.type != "cuda" or not tuning.has_table(device):
        return ""
    return f"equally long sequences as kernels/tuned/{tuning.slug(tuning.gpu_of(device))}.json says"


register(Operation(
    sparse_attention,
    computes="softmax attention over packed sequences, self and cross, head dims 8-128, deterministic (a peer that a "
    "table picks may not be)",
    unsupported={
        "triton": triton_unsupported,
        **{name: lambda x, why=why: why(x, x, x, True) for name, (_, why) in PEERS.items()},
    },
    launches=("sparse_attention",),
    backward=("sparse_attention_dq", "sparse_attention_dkv"),
    calls=_calls,
    # longer than a tile, and not a multiple of one
    small=partial(_call, AttentionShape(2, 145, 130, 3, 32)),
    code=Code(True, True, True, "GEMMs: heads' rows in and out"),
    remark=_tuned_remark,
))  # fmt: skip
