"""sparse_attention: softmax attention over packed sequences.

    out[i, h] = sum over j of  softmax_j(scale * q[i, h] . k[j, h])  v[j, h],   j in i's sequence

Queries of sequence b are rows cu_q[b]..cu_q[b+1] of q (Tq, H, D), its keys rows cu_k[b]..cu_k[b+1] of k and v
(Tk, H, D): self-attention where both are the same, cross-attention from many queries to few keys otherwise. q, k and v
are read where the projections left them (any strides with a contiguous last axis); nothing is padded.
"""

import torch.nn.functional as F
from torch import Tensor


def _batched(x: Tensor, batch: int) -> Tensor:
    """(B * N, H, D) -> (B, H, N, D), a view"""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, batch: int, scale: float | None) -> Tensor:
    out = F.scaled_dot_product_attention(*(_batched(x, batch) for x in (q, k, v)), scale=scale)
    return out.transpose(1, 2).flatten(0, 1)


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
) -> Tensor:
    """Attention within each of B packed sequences.

    Args:
        q (Tq, H, D), k, v (Tk, H, D) floating.
        cu_q, cu_k (B + 1,) int32: offsets of the sequences in q's and in k's rows, from 0 to Tq and Tk.
        max_q, max_k: longest sequence; read back from the offsets where None. max_q * B == Tq (and so for k) means
            that all are equally long, which needs no read-back and no loop.
        scale: of the logits; 1 / sqrt(D) where None.

    Returns:
        (Tq, H, D) in q's dtype.

    Raises:
        ValueError: shapes or offsets that do not fit together.
    """
    if q.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            "sparse_attention: want q (Tq, H, D) and k, v (Tk, H, D), "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if cu_q.ndim != 1 or cu_q.shape != cu_k.shape or len(cu_q) < 2:
        raise ValueError(
            f"sparse_attention: want cu_q and cu_k (B + 1,), got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
        )
    batch = len(cu_q) - 1
    if max_q is not None and max_k is not None and max_q * batch == len(q) and max_k * batch == len(k):
        return _attend(q, k, v, batch, scale)
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    for name, starts, rows in (("cu_q", starts_q, len(q)), ("cu_k", starts_k, len(k))):
        if starts[0] != 0 or starts[-1] != rows or sorted(starts) != starts:
            raise ValueError(f"sparse_attention: {name} must rise from 0 to {rows} (the rows), got {starts}")
    out = q.new_empty(q.shape)
    for b in range(batch):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        out[rows] = _attend(q[rows], k[keys], v[keys], 1, scale) if starts_k[b] < starts_k[b + 1] else 0
    return out
