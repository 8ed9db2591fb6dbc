"""Inputs of sparse_attention and what must come out, in float64, one sequence, head and query at a time."""

import itertools
import math

import torch
from tolerances import assert_close

from cinema_fast.kernels.packed_sequences import Runs
from cinema_fast.kernels.sparse_attention import sparse_attention

# lengths of the sequences, in queries and in keys
LENGTHS = {
    "equal": ([5, 5, 5], [5, 5, 5]),
    "unequal": ([3, 7, 1], [3, 7, 1]),
    "cross, more queries": ([12, 9], [3, 4]),
    "cross, equal": ([6, 6], [2, 2]),
    "one of one": ([1], [1]),
    "no query in one": ([4, 0, 2], [3, 5, 1]),
    "no key in one": ([4, 2, 3], [3, 0, 1]),
    "nothing in one": ([4, 0, 2], [3, 0, 1]),
    "no query at all": ([0, 0], [2, 3]),
    "no key at all": ([2, 3], [0, 0]),
    "past a power of two": ([33, 65], [65, 17]),
}

# two runs of equally long sequences, and their lengths
RUNS = Runs(((2, 5), (3, 2))), Runs(((2, 4), (3, 7)))
IN_RUNS = [5, 5, 2, 2, 2], [4, 4, 7, 7, 7]


def offsets(lengths, device="cpu"):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def make(lengths_q, lengths_k, dtype=torch.float64, heads=2, width=8, device="cpu"):
    """(q, k, v), upstream"""
    generator = torch.Generator().manual_seed(0)
    rows = sum(lengths_q), sum(lengths_k), sum(lengths_k), sum(lengths_q)
    *inputs, upstream = (
        torch.randn(n, heads, width, generator=generator, dtype=torch.float64).to(device, dtype) for n in rows
    )
    return inputs, upstream


def attention_by_loops(q, k, v, lengths_q, lengths_k, scale=None):
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    q, k, v = q.double(), k.double(), v.double()
    first_q, first_k, rows = 0, 0, []
    for n_q, n_k in zip(lengths_q, lengths_k):
        keys = slice(first_k, first_k + n_k)
        for i in range(first_q, first_q + n_q):
            heads = []
            for h in range(q.shape[1]):
                logits = (k[keys, h] * q[i, h]).sum(1) * scale
                weight = (logits - logits.detach().max() if n_k else logits).exp()
                heads.append((weight.unsqueeze(1) * v[keys, h]).sum(0) / (weight.sum() if n_k else 1))
            rows.append(torch.stack(heads))
        first_q, first_k = first_q + n_q, first_k + n_k
    return torch.stack(rows) if rows else q


def check(inputs, upstream, lengths_q, lengths_k, **options):
    """Values and all three gradients; returns them."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    before = [t.clone() for t in (*inputs, upstream)]
    device = inputs[0].device
    out = sparse_attention(*leaves, offsets(lengths_q, device), offsets(lengths_k, device), **options)
    assert out.dtype == inputs[0].dtype and out.shape == inputs[0].shape
    copies = [t.detach().cpu().double().requires_grad_() for t in inputs]
    expected = attention_by_loops(*copies, lengths_q, lengths_k, options.get("scale"))
    assert_close(out, expected, name="out")
    upstream_64 = upstream.cpu().double()
    expected_grads = torch.autograd.grad(expected, copies, upstream_64, materialize_grads=True)
    grads = torch.autograd.grad(out, leaves, upstream)
    # a single key has all the weight whatever q and k are: terms as large as upstream's cancel in their gradients
    floor = float(upstream_64.abs().max()) if max(lengths_k) < 2 and len(upstream) else 1e-300
    for name, grad, expected_grad in zip(("dq", "dk", "dv"), grads, expected_grads):
        assert_close(grad, expected_grad, floor=floor, name=name)
    assert all(torch.equal(a, b) for a, b in zip(before, (*inputs, upstream)))
    return out, *grads
