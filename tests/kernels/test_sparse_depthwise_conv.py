"""sparse_depthwise_conv against PyTorch's convolution over a dense float64 map whose masked positions are zero."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from depthwise_cases import CASES, Case, check, gradients, make, on
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from marks import slow_in_interpreter
from tolerances import assert_close

from cinema_fast.kernels import BackendError, TokenPlan, depthwise_native, launches
from cinema_fast.kernels.backend import launching
from cinema_fast.kernels.sparse_depthwise_conv import (
    _common,
    _depthwise_conv,
    sparse_depthwise_conv,
    sparse_depthwise_conv_config,
    sparse_depthwise_conv_ref,
    sparse_depthwise_conv_torch,
)

CPU_BACKENDS = ("native",)


@pytest.mark.parametrize("function", [sparse_depthwise_conv_ref, sparse_depthwise_conv_torch])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pytorch_forms_in_float64(case, function):
    check(case, function, torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(backend, device, case):
    check(case, partial(sparse_depthwise_conv, backend=backend), torch.float32, device=device)


@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["same parameters", "float32 parameters"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["lax, second stage", "more channels than a program takes"])
def test_16_bit_rows(backend, device, name, dtype, weight_dtype):
    check(CASES[name], partial(sparse_depthwise_conv, backend=backend), dtype, weight_dtype, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_leaves_the_rows_dtype(backend, device, dtype):
    with torch.autocast(device, dtype=torch.bfloat16):
        check(CASES["lax, second stage"], partial(sparse_depthwise_conv, backend=backend), dtype, torch.float32, device)


@st.composite
def drawn_cases(draw):
    n_axes = draw(st.integers(2, 3))
    sides = st.lists(st.integers(1, 3), min_size=n_axes, max_size=n_axes).map(tuple)
    kernel = tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(n_axes))
    grid, block = draw(sides), draw(sides)
    assume(math.prod(block) * math.prod(k for b, k in zip(block, kernel) if b > 1) <= 300)  # products: time, unrolled
    keep = draw(st.integers(1, min(math.prod(grid), 3)))
    return Case(grid, block, kernel, keep, draw(st.integers(1, 2)), draw(st.integers(1, 4)))


@pytest.mark.recompiles
@settings(
    max_examples=10, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(case=drawn_cases())
def test_any_shape(backend, device, case):
    check(case, partial(sparse_depthwise_conv, backend=backend), torch.float32, device=device)


def test_what_is_masked_cannot_matter(backend, device):
    case = Case((3, 3), (2, 2), (5, 5), 4)
    plan, x, weight, bias, _ = on(device, *make(case, torch.float32))
    # the same visible rows in a plan that decodes nothing
    other = plan._replace(masked=plan.masked[:, :0])
    first, second = (sparse_depthwise_conv(x, weight, bias, p, case.grid, backend=backend) for p in (plan, other))
    assert torch.equal(first, second)


def test_samples_do_not_see_one_another(backend, device):
    case = CASES["lax, second stage"]
    plan, x, weight, bias, _ = on(device, *make(case, torch.float32))
    out = sparse_depthwise_conv(x, weight, bias, plan, case.grid, backend=backend)
    x[0] = torch.nan
    other = sparse_depthwise_conv(x, weight, bias, plan, case.grid, backend=backend)
    assert other[0].isnan().all() and torch.equal(other[1], out[1])


def test_strides_do_not_matter(backend, device):
    case = CASES["lax, second stage"]
    plan, x, weight, bias, upstream = on(device, *make(case, torch.float32))
    # rows with gaps, the module's weight with its axis of one, ids with gaps, and an expanded gradient
    wide = torch.cat([x, x], dim=-1)[..., ::2][..., : case.channels]
    gaps = TokenPlan(*(torch.stack([t, t], dim=-1)[..., 0] for t in plan))
    results = []
    for rows, p in ((wide.contiguous(), plan), (wide, gaps)):
        leaves = [rows.detach().requires_grad_(), weight.mT.detach().requires_grad_(), bias.detach().requires_grad_()]
        out = sparse_depthwise_conv(*leaves, p, case.grid, backend=backend)
        results.append([out, *gradients(out, leaves, upstream[:1, :1, :1, :1].expand_as(out))])
    assert all(map(torch.equal, *results))


@slow_in_interpreter
@pytest.mark.parametrize("name", ["sax, second stage", "lax, second stage"])
def test_same_bits_twice(backend, device, name):
    plan, *leaves, upstream = on(device, *make(CASES[name], torch.float32))
    for leaf in leaves:
        leaf.requires_grad_()
    results = []
    for _ in range(2):
        out = sparse_depthwise_conv(*leaves, plan, CASES[name].grid, backend=backend)
        results.append([out, *gradients(out, leaves, upstream)])
    assert all(map(torch.equal, *results))
    passes = {"sparse_depthwise_conv", "sparse_depthwise_conv_dx", "sparse_depthwise_conv_dw"}
    assert backend != "triton" or passes <= launches().keys()


@pytest.mark.skipif(depthwise_native.PROBLEM != "", reason=depthwise_native.PROBLEM)
def test_the_library_gives_the_same_bits_for_any_number_of_threads():
    case = Case((6, 6), (4, 4), (5, 5), 30, channels=64)
    plan, *leaves, upstream = make(case, torch.float32)
    leaves = [t.requires_grad_() for t in leaves]
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out = sparse_depthwise_conv(*leaves, plan, case.grid, backend="native")
            results.append([out, *gradients(out, leaves[:2], upstream)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)), ids=str)
def test_gradients_of_some_inputs_only(backend, device, wanted):
    case = CASES["kernel of 3"]._replace(batch=1, keep=2)
    plan, *leaves, upstream = on(device, *make(case, torch.float32))
    every = [t.clone().requires_grad_() for t in leaves]
    expected = gradients(sparse_depthwise_conv(*every, plan, case.grid, backend=backend), every, upstream)
    leaves = [t.requires_grad_(want) for t, want in zip(leaves, wanted)]
    out = sparse_depthwise_conv(*leaves, plan, case.grid, backend=backend)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        out.backward(upstream)
    for leaf, grad, want in zip(leaves, expected, wanted):
        assert torch.equal(leaf.grad, grad) if want else leaf.grad is None


@pytest.mark.parametrize("function", [sparse_depthwise_conv_ref, sparse_depthwise_conv_torch])
@pytest.mark.parametrize("name", ["kernel of 3", "one visible token"])
def test_gradcheck(name, function):
    case = CASES[name]._replace(channels=1, batch=1)
    plan, *leaves, _ = make(case)
    torch.autograd.gradcheck(lambda *t: function(*t, plan, case.grid), [t.requires_grad_() for t in leaves])


def test_no_token_gives_an_empty_result_and_no_gradient(backend, device):
    case = CASES["corners, none a neighbour"]
    for keep in (case.keep, []):
        plan, *leaves, upstream = on(device, *make(case._replace(keep=keep), torch.float32))
        leaves = [t.requires_grad_() for t in leaves]
        out = sparse_depthwise_conv(*leaves, plan, case.grid, backend=backend)
        grads = gradients(out, leaves, upstream)
        assert out.shape == leaves[0].shape and all(bool(g.any()) == bool(keep) for g in grads)


def test_only_rows_are_kept_for_backward(backend, device):
    case = CASES["sax, first stage"]
    plan, x, weight, bias, _ = on(device, *make(case, torch.float32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        leaves = x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
        sparse_depthwise_conv(*leaves, plan, case.grid, backend=backend)
    positions = x.numel() // case.channels
    # rows, the weight, and 8 bytes a position that say where it lies; the dense map would be four times the rows
    assert sum(t.numel() * t.element_size() for t in kept) <= x.nbytes + weight.nbytes + 8 * positions


def test_one_graph_without_breaks(backend, device):
    case = CASES["kernel of 3"]._replace(batch=1, keep=2)
    plan, *leaves, upstream = on(device, *make(case, torch.bfloat16, torch.float32))
    leaves = [t.requires_grad_() for t in leaves]
    if backend == "triton":
        arguments = *leaves, plan.keep, plan.slot, list(case.grid)
        torch.library.opcheck(torch.ops.cinema_fast.sparse_depthwise_conv, arguments)
    torch.compiler.reset()
    results = []
    for function in (sparse_depthwise_conv, torch.compile(sparse_depthwise_conv, fullgraph=True, backend="aot_eager")):
        out = function(*leaves, plan, case.grid, backend=backend)
        results.append([out, *gradients(out, leaves, upstream)])
    for actual, expected in zip(*reversed(results)):
        assert_close(actual, expected, torch.bfloat16)


def test_a_neighbour_beyond_2_31_elements(backend, device):
    if backend != "triton":
        pytest.skip("about the kernel")
    channels, far = 64, 2**25 + 1
    x = torch.from_numpy(np.zeros((far + 1) * channels, dtype=np.float16)).to(device)  # pages that nobody touches
    x[-channels:] = torch.arange(channels, dtype=torch.float16)
    keep, slot = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([[0, far]], dtype=torch.int32)
    out = x.new_zeros(channels)
    arguments = _common(keep.to(device), slot.to(device), [1, 2], [1, 1], [1, 3], channels)
    config = sparse_depthwise_conv_config(1, channels)
    with launching("sparse_depthwise_conv", x):
        _depthwise_conv[(1,)](x_ptr=x, weight_ptr=x.new_ones(3, channels), bias_ptr=None, out_ptr=out, HAS_BIAS=False,
                              **arguments, **config)  # fmt: skip
    assert torch.equal(out, x[-channels:])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.ones(2, 4, 4, 4, 3)}, r"\(B, K\) = \(2, 5\)"),
        ({"x": torch.ones(1, 5, 4, 4, 3)}, r"got \(1, 5, 4, 4, 3\)"),
        ({"x": torch.ones(2, 5, 4, 4, 2)}, r"weight \(2, \*2 odd kernel axes\), got \(3, 5, 5\)"),
        ({"grid": (5, 2, 2)}, "3 block axes"),
        ({"grid": (4, 4)}, r"\(4, 4\)"),
        ({"weight": torch.ones(3, 4, 5)}, r"odd .* got \(3, 4, 5\)"),
        ({"weight": torch.ones(3, 1, 5, 5)}, r"got \(3, 1, 5, 5\)"),
        ({"bias": torch.ones(2)}, "bias"),
        ({"weight": torch.ones(3, 5, 5, device="meta")}, "x is on cpu, weight on meta"),
    ],
    ids=["K", "B", "channels", "axes", "grid of another plan", "even kernel", "weight's rank", "bias", "device"],
)
def test_bad_input_is_refused(change, match):
    case = CASES["lax, first stage"]
    plan, x, weight, bias, _ = make(case, torch.float32)
    with pytest.raises(ValueError, match=match):
        sparse_depthwise_conv(**{"x": x, "weight": weight, "bias": bias, "plan": plan, "grid": case.grid, **change})


def test_a_kernel_that_cannot_run_says_why():
    case = Case((2, 2, 2), (4, 4, 4), (3, 3, 5), 2)
    plan, *leaves, _ = make(case)
    with pytest.raises(BackendError, match=r"needs CUDA.*got torch.float64.*got 64, 45 and 2880"):
        sparse_depthwise_conv(*leaves, plan, case.grid, backend="triton")
