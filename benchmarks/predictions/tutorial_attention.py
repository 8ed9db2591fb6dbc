"""Attention's forward as a first lesson in Triton would write it: the peer whose machine code is set beside ours.

One program a tile of queries, a running maximum and sum over tiles of keys (FlashAttention-2's order), contiguous
(B * H, N, D) inputs, N a multiple of both tiles: no packed sequences, no strides, no tails, no masks.
"""

import triton
import triton.language as tl
from audit_launches import Case, record


@triton.jit
def tutorial_attention(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, n, scale_log2,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Softmax of q @ k.T times v of one head; scale_log2: the logits' scale over log 2."""
    first = tl.program_id(1).to(tl.int64) * n
    row, col, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, D)
    q = tl.load(q_ptr + (first + row)[:, None] * D + d[None, :])
    keys = k_ptr + first * D + col[:, None] * D + d[None, :]
    values = v_ptr + first * D + col[:, None] * D + d[None, :]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for start in tl.range(0, n, COLS):
        logits = tl.dot(q, tl.trans(tl.load(keys + start * D)))
        new_top = tl.maximum(top, tl.max(logits, 1) * scale_log2)
        weights = tl.math.exp2(logits * scale_log2 - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), tl.load(values + start * D), acc * shrink[:, None])
        top = new_top
    tl.store(out_ptr + (first + row)[:, None] * D + d[None, :], (acc / total[:, None]).to(q.dtype))
    tl.store(lse_ptr + first + row, top + tl.math.log2(total))


def tutorial_launch(head_dim: int, rows: int, cols: int, warps: int, stages: int, arch: int):
    """The launch of 2048 keys in bf16, as `audit_launches.record` records those of our operations."""
    import torch

    n, heads = 2048, 1
    tensors = [torch.empty(heads, n, head_dim, dtype=torch.bfloat16) for _ in range(4)]
    lse = torch.empty(heads, n)

    def call():
        tutorial_attention[(n // rows, heads)](
            *tensors, lse, n, 0.1, ROWS=rows, COLS=cols, D=head_dim, num_warps=warps, num_stages=stages
        )

    (launch,) = record([Case("tutorial_attention", f"head dim {head_dim}", call)], arch).values()
    return launch
