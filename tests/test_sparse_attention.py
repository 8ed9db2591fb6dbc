"""sparse_attention against softmax written out in float64, one sequence, head and query at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

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
    "past a power of two": ([33, 65], [65, 17]),
}


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def make(lengths_q, lengths_k, dtype=torch.float64, heads=2, width=8):
    generator = torch.Generator().manual_seed(0)
    rows = sum(lengths_q), sum(lengths_k), sum(lengths_k), sum(lengths_q)
    q, k, v, upstream = (torch.randn(n, heads, width, generator=generator, dtype=torch.float64) for n in rows)
    return (q.to(dtype), k.to(dtype), v.to(dtype)), upstream.to(dtype)


def attention_by_loops(q, k, v, lengths_q, lengths_k, scale=None):
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    q, k, v = q.double(), k.double(), v.double()
    first_q, first_k, rows = 0, 0, []
    for n_q, n_k in zip(lengths_q, lengths_k):
        keys = slice(first_k, first_k + n_k)
        for i in range(first_q, first_q + n_q):
            heads = []
            for h in range(q.shape[1]):
                weight = ((k[keys, h] * q[i, h]).sum(1) * scale).exp()
                heads.append((weight.unsqueeze(1) * v[keys, h]).sum(0) / (weight.sum() if n_k else 1))
            rows.append(torch.stack(heads))
        first_q, first_k = first_q + n_q, first_k + n_k
    return torch.stack(rows) if rows else q


def check(inputs, upstream, lengths_q, lengths_k, **options):
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = sparse_attention(*leaves, offsets(lengths_q), offsets(lengths_k), **options)
    assert out.dtype == inputs[0].dtype and out.shape == inputs[0].shape
    copies = [t.detach().double().requires_grad_() for t in inputs]
    expected = attention_by_loops(*copies, lengths_q, lengths_k, options.get("scale"))
    grads = torch.autograd.grad(expected, copies, upstream.double(), materialize_grads=True)
    assert_close(out, expected, name="out")
    if any(n_q and n_k for n_q, n_k in zip(lengths_q, lengths_k)):
        out.backward(upstream)
    # a single key has all the weight whatever q and k are: terms as large as upstream's cancel in their gradients
    floor = float(upstream.abs().max()) if max(lengths_k) < 2 and len(upstream) else 1e-300
    for name, leaf, grad in zip(("dq", "dk", "dv"), leaves, grads):
        assert_close(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, grad, floor=floor, name=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients(lengths, dtype):
    check(*make(*lengths, dtype), *lengths)


@pytest.mark.parametrize("name", ["equal", "cross, equal", "one of one"])
def test_lengths_that_need_no_read_back(name):
    lengths_q, lengths_k = LENGTHS[name]
    check(*make(lengths_q, lengths_k), lengths_q, lengths_k, max_q=lengths_q[0], max_k=lengths_k[0])


@pytest.mark.parametrize("name", ["unequal", "cross, more queries"])
def test_longest_lengths_given_of_unequal_sequences(name):
    lengths_q, lengths_k = LENGTHS[name]
    check(*make(lengths_q, lengths_k), lengths_q, lengths_k, max_q=max(lengths_q), max_k=max(lengths_k))


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_scale(name, scale):
    lengths_q, lengths_k = LENGTHS[name]
    check(*make(lengths_q, lengths_k), lengths_q, lengths_k, scale=scale)


@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 5), (4, 64)])
def test_heads_and_widths(heads, width):
    check(*make([3, 4], [6, 2], heads=heads, width=width), [3, 4], [6, 2])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_any_lengths(lengths):
    lengths_q, lengths_k = zip(*lengths)
    check(*make(lengths_q, lengths_k, heads=1, width=4), lengths_q, lengths_k)


@pytest.mark.parametrize("max_length", [None, 5], ids=["packed", "equal"])
def test_views_of_one_projection(max_length):
    lengths = [5, 5]
    (q, k, v), upstream = make(lengths, lengths, torch.float32)
    packed = torch.stack([q, k, v], dim=1).requires_grad_()  # (T, 3, H, D), as the qkv projection leaves it
    out = sparse_attention(*packed.unbind(1), offsets(lengths), offsets(lengths), max_q=max_length, max_k=max_length)
    out.backward(upstream)
    copy = packed.detach().double().requires_grad_()
    expected = attention_by_loops(*copy.unbind(1), lengths, lengths)
    assert_close(out, expected)
    assert_close(packed.grad, torch.autograd.grad(expected, copy, upstream.double())[0])


def test_large_logits_do_not_overflow():
    (q, k, v), _ = make([4], [6], torch.float32)
    # differences of thousands: all the weight goes to the key with the largest product
    out = sparse_attention(q * 1e3, k * 1e3, v, offsets([4]), offsets([6]))
    best = torch.einsum("qhd,khd->qhk", q, k).argmax(-1)
    expected = torch.stack([v[best[:, h], h] for h in range(2)], dim=1)
    assert_close(out, expected)


def test_constant_values_come_out_as_they_are():
    (q, k, v), _ = make([3, 2], [4, 5], torch.float64)
    out = sparse_attention(q, k, torch.full_like(v, 0.75), offsets([3, 2]), offsets([4, 5]))
    assert_close(out, torch.full_like(q, 0.75))


@pytest.mark.parametrize("name", ["cross, equal", "no key in one"])
def test_gradcheck(name):
    lengths_q, lengths_k = LENGTHS[name]
    inputs, _ = make(lengths_q, lengths_k, heads=1, width=2)
    cu_q, cu_k = offsets(lengths_q), offsets(lengths_k)
    torch.autograd.gradcheck(lambda *t: sparse_attention(*t, cu_q, cu_k), [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"q": torch.ones(6, 16)}, r"want q \(Tq, H, D\)"),
        ({"v": torch.ones(6, 2, 8)}, r"got \(6, 2, 8\), \(5, 2, 8\), \(6, 2, 8\)"),
        ({"q": torch.ones(6, 3, 8)}, r"got \(6, 3, 8\)"),
        ({"cu_q": offsets([6])}, r"cu_q and cu_k \(B \+ 1,\), got \(2,\) and \(3,\)"),
        ({"cu_q": torch.zeros(1), "cu_k": torch.zeros(1)}, r"got \(1,\)"),
        ({"cu_q": torch.tensor([1, 4, 6])}, r"cu_q must rise from 0 to 6 .* got \[1, 4, 6\]"),
        ({"cu_q": torch.tensor([0, 4, 7])}, "cu_q must rise from 0 to 6"),
        ({"cu_k": torch.tensor([0, 6, 5])}, "cu_k must rise from 0 to 5"),
    ],
)
def test_bad_arguments_are_named(change, match):
    good = {"q": torch.ones(6, 2, 8), "k": torch.ones(5, 2, 8), "v": torch.ones(5, 2, 8)}
    good |= {"cu_q": offsets([3, 3]), "cu_k": offsets([2, 3])}
    with pytest.raises(ValueError, match=match):
        sparse_attention(**{**good, **change})
