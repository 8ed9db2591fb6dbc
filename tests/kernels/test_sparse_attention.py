"""sparse_attention against softmax written out in float64, whatever runs it."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from attention_cases import IN_RUNS, LENGTHS, RUNS, attention_by_loops, check, make, offsets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marks import in_full, slow_in_interpreter
from tolerances import assert_close

import cinema_fast as cf
from cinema_fast.kernels import launches, use
from cinema_fast.kernels.sparse_attention import sparse_attention

PROFILE = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HALF = [torch.float16, torch.bfloat16]  # tiles of 128 and 64 rows, and of 16 for what they leave; float32's are small


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients(backend, device, lengths):
    check(*make(*lengths, torch.float32, device=device), *lengths, backend=backend)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "lengths",
    [
        ([129, 1, 0, 65], [129, 1, 7, 65]),
        ([16, 130, 7], [129, 0, 65]),
        ([100, 40], [144, 16]),
        ([129], [129]),
        ([128], [64]),
        ([64, 80], [33, 0]),
    ],
    ids=["self", "cross", "few left over", "one over", "whole tiles", "short"],
)
def test_tiles_and_what_they_leave(backend, device, lengths, dtype):
    check(*make(*lengths, dtype, heads=1, width=16, device=device), *lengths, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("width", [8, 24, 32, 64, 80, 128])
def test_head_dims(backend, device, width, dtype):
    lengths = [7, 33], [36, 5]
    check(*make(*lengths, dtype, heads=3, width=width, device=device), *lengths, backend=backend)


@pytest.mark.parametrize("name", ["equal", "cross, equal", "one of one"])
def test_lengths_that_need_no_read_back(backend, device, name):
    lengths_q, lengths_k = LENGTHS[name]
    inputs = make(lengths_q, lengths_k, torch.float32, device=device)
    check(*inputs, lengths_q, lengths_k, max_q=lengths_q[0], max_k=lengths_k[0], backend=backend)


@pytest.mark.parametrize("more", [0, 200], ids=["longest", "more than the longest"])
@pytest.mark.parametrize("name", ["unequal", "cross, more queries", "no key in one"])
def test_bounds_on_unequal_lengths(backend, device, name, more):
    lengths_q, lengths_k = LENGTHS[name]
    inputs = make(lengths_q, lengths_k, torch.float32, device=device)
    bounds = {"max_q": max(lengths_q) + more, "max_k": max(lengths_k) + more}
    check(*inputs, lengths_q, lengths_k, **bounds, backend=backend)


def test_runs_of_equal_sequences(backend, device):
    inputs = make(*IN_RUNS, torch.float32, device=device)
    check(*inputs, *IN_RUNS, max_q=5, max_k=7, runs=RUNS, backend=backend)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_scale(backend, device, name, scale):
    lengths_q, lengths_k = LENGTHS[name]
    check(*make(lengths_q, lengths_k, torch.float32, device=device), lengths_q, lengths_k, scale=scale, backend=backend)


@PROFILE
@given(lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_any_lengths(backend, device, lengths):
    lengths_q, lengths_k = zip(*lengths)
    check(*make(lengths_q, lengths_k, torch.float32, heads=1, device=device), lengths_q, lengths_k, backend=backend)


@pytest.mark.parametrize("max_length", [None, 5], ids=["packed", "equal"])
def test_views_of_one_projection(backend, device, max_length):
    lengths = [5, 5]
    (q, k, v), upstream = make(lengths, lengths, torch.float32, device=device)
    packed = torch.stack([q, k, v], dim=1).requires_grad_()  # (T, 3, H, D), as the qkv projection leaves it
    cu, bounds = offsets(lengths, device), {"max_q": max_length, "max_k": max_length}
    out = sparse_attention(*packed.unbind(1), cu, cu, **bounds, backend=backend)
    out.backward(upstream)
    copy = packed.detach().cpu().double().requires_grad_()
    expected = attention_by_loops(*copy.unbind(1), lengths, lengths)
    assert_close(out, expected)
    assert_close(packed.grad, torch.autograd.grad(expected, copy, upstream.cpu().double())[0])


def test_any_strides(backend, device):
    lengths = [5, 9], [4, 3]
    (q, k, v), upstream = make(*lengths, torch.float32, device=device)
    wide = torch.randn(7, 5, 2, 8, generator=torch.Generator().manual_seed(1)).to(device)
    wide[:, 3] = k
    strided = (
        q.transpose(0, 1).contiguous().transpose(0, 1),  # heads before tokens
        wide[:, 3],  # one of several keys and values side by side
        v.transpose(0, 2).contiguous().transpose(0, 2),  # the last axis is not contiguous
    )
    check(strided, upstream, *lengths, backend=backend)
    check(strided, upstream[:1].expand_as(upstream), *lengths, backend=backend)
    check(strided, torch.ones((), device=device).expand_as(upstream), *lengths, backend=backend)


def test_strides_beyond_32_bits(backend, device):
    stride = 2**30 + 8  # of three tokens: 4 GiB, of which the CPU touches three pages
    memory = torch.from_numpy(np.zeros(2 * stride + 16, np.float16)).to(device)
    (q, k, v), upstream = make([3], [3], torch.float16, heads=1, device=device)
    far = [memory.as_strided(x.shape, (stride, 8, 1), offset).copy_(x) for x, offset in ((q, 0), (k, 8))]
    check((*far, v), upstream, [3], [3], backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_same_bits_again_alone_and_beside_others(backend, device, dtype):
    lengths = [9, 20, 35], [20, 1, 40]
    inputs, upstream = make(*lengths, dtype, device=device)
    bounds = {"max_q": 35, "max_k": 40, "backend": backend}
    results = check(inputs, upstream, *lengths, **bounds)
    assert all(torch.equal(a, b) for a, b in zip(results, check(inputs, upstream, *lengths, **bounds)))
    first = [t[:n] for t, n in zip((*inputs, upstream), (9, 20, 20, 9))]
    alone = check(first[:3], first[3], [9], [20], **bounds)
    if backend == "triton":  # a sum has one owner and one order
        assert all(torch.equal(a, b[: len(a)]) for a, b in zip(alone, results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sequences_do_not_see_one_another(backend, device, dtype):
    lengths = [5, 70, 6], [66, 3, 4]
    (q, k, v), upstream = make(*lengths, dtype, heads=1, device=device)
    middle_q, middle_k = slice(5, 75), slice(66, 69)
    cu, how = (offsets(lengths[0], device), offsets(lengths[1], device)), {"backend": backend}
    expected = check((q, k, v), upstream, *lengths, **how)
    q[middle_q], k[middle_k], v[middle_k] = torch.nan, torch.inf, torch.nan
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = sparse_attention(*leaves, *cu, **how)
    results = out, *torch.autograd.grad(out, leaves, upstream)
    for result, before, middle in zip(results, expected, (middle_q, middle_q, middle_k, middle_k)):
        assert torch.equal(result[: middle.start], before[: middle.start])
        assert torch.equal(result[middle.stop :], before[middle.stop :])


def test_large_logits_do_not_overflow(backend, device):
    (q, k, v), _ = make([4], [6], torch.float32, device=device)
    # differences of thousands: all the weight goes to the key with the largest product
    out = sparse_attention(q * 1e3, k * 1e3, v, offsets([4], device), offsets([6], device), backend=backend)
    best = torch.einsum("qhd,khd->qhk", q, k).argmax(-1)
    expected = torch.stack([v[best[:, h], h] for h in range(2)], dim=1)
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("level", [-320.0, 320.0])
def test_logits_far_from_zero(backend, device, level, dtype):
    # what a tile has beyond the sequence is zero, and so is its logit: far above or below all the others
    lengths = [19], [21]
    (q, k, v), upstream = make(*lengths, dtype, device=device)
    q[..., 0], k[..., 0] = level, 1
    check((q, k, v), upstream, *lengths, scale=1.0, backend=backend)


def test_constant_values_come_out_as_they_are(backend, device):
    (q, k, v), _ = make([3, 2], [4, 5], torch.float32, device=device)
    cu_q, cu_k = offsets([3, 2], device), offsets([4, 5], device)
    out = sparse_attention(q, k, torch.full_like(v, 0.75), cu_q, cu_k, backend=backend)
    assert_close(out, torch.full_like(q, 0.75))


def test_no_gradient_asked_for(backend, device):
    (q, k, v), _ = make([3], [4], torch.float32, device=device)
    out = sparse_attention(q, k, v, offsets([3], device), offsets([4], device), backend=backend)
    assert not out.requires_grad
    out = sparse_attention(q, k, v.requires_grad_(), offsets([3], device), offsets([4], device), backend=backend)
    assert torch.autograd.grad(out.sum(), v)[0].isfinite().all()


@slow_in_interpreter
def test_golden_step(shared, backend, device):
    """The model's step against the reference's, every operation on the backend under test."""
    from safetensors.torch import load_file

    fields = json.loads((shared / "golden" / "tiny.json").read_text())
    tensors = load_file(shared / "golden" / "tiny_mae.safetensors")

    def part(prefix, where="cpu"):
        return {k.removeprefix(prefix): t.to(where) for k, t in tensors.items() if k.startswith(prefix)}

    model = cf.CineMA(cf.CineMAConfig(**{k: v for k, v in fields.items() if k not in ("name", "batch", "mask_ratio")}))
    cf.load_cinema_weights(model, part("param."))
    model.to(device)
    plan = {view: cf.TokenPlan.from_mask(mask) for view, mask in part("mask.", device).items()}
    before = Counter(launches())
    with use(backend):
        out = model(part("image.", device), plan)
        out.loss.backward()
    n_blocks = fields["enc_depth"] + fields["dec_depth"]
    launched = Counter(launches()) - before
    passes = ("sparse_attention", "sparse_attention_dq", "sparse_attention_dkv")
    assert [launched[p] for p in passes] == [n_blocks if backend == "triton" else 0] * 3
    assert_close(out.loss, tensors["loss"].squeeze())
    for view, pred in part("pred.").items():
        assert_close(out.pred[view], pred, name=view)
    grads = cf.cinema_state_dict(model, grad=True)
    largest = max(float(g.abs().max()) for g in part("grad.").values())
    for name, grad in part("grad.").items():
        if "attn" in name:
            assert_close(grads[name], grad, floor=1e-2 * largest, name=name)


@pytest.mark.parametrize("dtype", in_full([torch.float32, torch.float16]), ids=str)
def test_one_graph_without_breaks(backend, device, dtype):
    lengths = [5, 5], [9, 9]
    inputs, upstream = make(*lengths, dtype, device=device)
    cu_q, cu_k = (offsets(n, device) for n in lengths)
    leaves = [t.requires_grad_() for t in inputs]
    if backend == "triton":
        torch.library.opcheck(torch.ops.cinema_fast.sparse_attention, (*leaves, cu_q, cu_k, 5, 9, 0.3))
        with torch.no_grad():
            out, lse = torch.ops.cinema_fast.sparse_attention(*leaves, cu_q, cu_k, 5, 9, 0.3)
            args = upstream, *leaves, out, lse, cu_q, cu_k, 5, 9, 0.3
            torch.library.opcheck(torch.ops.cinema_fast.sparse_attention_backward, args)
    torch.compiler.reset()
    results = []
    for function in (sparse_attention, torch.compile(sparse_attention, fullgraph=True, backend="aot_eager")):
        out = function(*leaves, cu_q, cu_k, max_q=5, max_k=9, scale=0.3, backend=backend)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for expected, actual in zip(*results):
        assert actual.shape == expected.shape and actual.stride() == expected.stride()
        assert_close(actual, expected)
