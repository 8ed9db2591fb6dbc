"""sparse_depthwise_conv against PyTorch's convolution over a dense float64 map whose masked positions are zero."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from cinema_fast.kernels import TokenPlan, sample_mask
from cinema_fast.kernels.sparse_depthwise_conv import sparse_depthwise_conv


class Case(NamedTuple):
    grid: tuple[int, ...]
    block: tuple[int, ...]
    kernel: tuple[int, ...]
    keep: int | list[int]  # how many tokens are visible, or which
    batch: int = 2
    channels: int = 3


CASES = {
    "sax, first stage": Case((3, 4, 3), (4, 4, 1), (5, 5, 5), 9),
    "sax, second stage": Case((3, 4, 3), (2, 2, 1), (5, 5, 5), 9),
    "lax, first stage": Case((5, 4), (4, 4), (5, 5), 5),
    "lax, second stage": Case((5, 4), (2, 2), (5, 5), 5),
    "one position a token": Case((5, 7), (1, 1), (5, 5), 12),  # the window reaches two tokens away
    "kernel of 3": Case((3, 5), (2, 3), (3, 3), 5),
    "kernel of 3, volume": Case((3, 3, 3), (1, 2, 3), (3, 3, 3), 8),
    "another kernel along each axis": Case((3, 4, 2), (2, 1, 2), (5, 1, 3), 8),
    "kernel wider than the map": Case((1, 2), (1, 1), (5, 5), 1),
    "one token of one position": Case((1, 1), (1, 1), (5, 5), 1, batch=1, channels=1),
    "one visible token": Case((3, 3, 3), (2, 2, 1), (5, 5, 5), [13]),
    "corners, none a neighbour": Case((4, 4), (4, 4), (5, 5), [0, 3, 12, 15]),
    "all tokens": Case((3, 3), (4, 4), (5, 5), 9),
    "no token": Case((3, 3), (4, 4), (5, 5), 0),
    "single sample": Case((4, 3), (4, 4), (5, 5), 3, batch=1),
    "more channels than a vector has lanes": Case((3, 2), (2, 2), (5, 5), 3, channels=17),
}


def make(case: Case, dtype=torch.float64, weight_dtype=None):
    """x, weight, bias and the upstream gradient, and the plan."""
    generator = torch.Generator().manual_seed(0)
    n = math.prod(case.grid)
    if isinstance(case.keep, int):
        plan = sample_mask(batch=case.batch, n=n, keep=case.keep, seed=4)
    else:
        mask = torch.ones(case.batch, n, dtype=torch.bool)
        mask[:, case.keep] = False
        plan = TokenPlan.from_mask(mask)
    rows = (case.batch, plan.keep.shape[1], *case.block, case.channels)
    shapes = (rows, (case.channels, *case.kernel), (case.channels,), rows)
    dtypes = (dtype, weight_dtype or dtype, weight_dtype or dtype, dtype)
    return plan, *(torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in zip(shapes, dtypes))


def boxes(case, plan):
    """(sample, rank of the token, where its block lies in a (C, *map))"""
    for b, row in enumerate(plan.keep.tolist()):
        for k, token in enumerate(row):
            at = [int(i) for i in torch.unravel_index(torch.tensor(token), case.grid)]
            yield b, k, (slice(None), *(slice(a * e, (a + 1) * e) for a, e in zip(at, case.block)))


def dense_conv(case, plan, x, weight, bias):
    """The same in float64 over the dense map, differentiable."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    dense = x.new_zeros(case.batch, case.channels, *(g * e for g, e in zip(case.grid, case.block)))
    for b, k, box in boxes(case, plan):
        dense[b][box] = x[b, k].movedim(-1, 0)
    conv = F.conv2d if len(case.grid) == 2 else F.conv3d
    padding = [e // 2 for e in case.kernel]
    dense = conv(dense, weight.unsqueeze(1), bias, padding=padding, groups=case.channels)
    rows = [dense[b][box].movedim(0, -1) for b, _, box in boxes(case, plan)]
    return torch.stack(rows).view(x.shape) if rows else x


def check(case, dtype, weight_dtype=None):
    plan, *leaves, upstream = make(case, dtype, weight_dtype)
    before = [t.clone() for t in leaves]
    leaves = [t.requires_grad_() for t in leaves]
    out = sparse_depthwise_conv(*leaves, plan, case.grid)
    assert out.dtype == dtype
    out.backward(upstream)
    grads, copies = [t.grad for t in leaves], [t.detach().double().requires_grad_() for t in leaves]
    expected = dense_conv(case, plan, *copies)
    wanted = torch.autograd.grad(expected, copies, upstream.double(), materialize_grads=True)
    assert_close(out, expected, name="out")
    for name, leaf, grad, want in zip(("dx", "dw", "db"), leaves, grads, wanted):
        assert grad.dtype == leaf.dtype, name
        assert_close(grad, want, dtype=dtype, name=name)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("name", ["sax, first stage", "lax, second stage"])
def test_bfloat16_rows_with_float32_parameters(name):
    check(CASES[name], torch.bfloat16, torch.float32)


@st.composite
def drawn_cases(draw):
    n_axes = draw(st.integers(2, 3))
    sides = st.lists(st.integers(1, 4), min_size=n_axes, max_size=n_axes).map(tuple)
    kernel = tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(n_axes))
    grid, block = draw(sides), draw(sides)
    keep = draw(st.integers(1, math.prod(grid)))
    return Case(grid, block, kernel, keep, draw(st.integers(1, 3)), draw(st.integers(1, 4)))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=drawn_cases())
def test_any_shape(case):
    check(case, torch.float64)


def test_what_is_masked_cannot_matter():
    case = Case((3, 3), (2, 2), (5, 5), 4)
    plan, x, weight, bias, _ = make(case)
    # the same visible rows in a plan that decodes nothing, or lists its masked tokens otherwise
    other = plan._replace(masked=plan.masked[:, :0])
    expected = sparse_depthwise_conv(x, weight, bias, plan, case.grid)
    assert torch.equal(sparse_depthwise_conv(x, weight, bias, other, case.grid), expected)


def test_samples_do_not_see_one_another():
    case = CASES["lax, first stage"]
    plan, x, weight, bias, _ = make(case)
    out = sparse_depthwise_conv(x, weight, bias, plan, case.grid)
    for b in range(case.batch):
        alone = sparse_depthwise_conv(x[b : b + 1], weight, bias, TokenPlan(*(t[b : b + 1] for t in plan)), case.grid)
        assert_close(out[b : b + 1], alone)


def test_strided_rows():
    case = CASES["lax, second stage"]
    plan, x, weight, bias, _ = make(case)
    wide = torch.cat([x, x], dim=-1)[..., ::2][..., : case.channels]
    expected = sparse_depthwise_conv(wide.contiguous(), weight, bias, plan, case.grid)
    assert torch.equal(sparse_depthwise_conv(wide, weight, bias, plan, case.grid), expected)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)), ids=str)
def test_gradients_of_some_inputs_only(wanted):
    case = CASES["kernel of 3"]
    plan, *leaves, upstream = make(case)
    if not any(wanted):
        assert not sparse_depthwise_conv(*leaves, plan, case.grid).requires_grad
        return
    every = torch.autograd.grad(
        sparse_depthwise_conv(*(t.requires_grad_() for t in leaves), plan, case.grid), leaves, upstream
    )
    leaves = [t.detach().requires_grad_(want) for t, want in zip(leaves, wanted)]
    sparse_depthwise_conv(*leaves, plan, case.grid).backward(upstream)
    for leaf, grad, want in zip(leaves, every, wanted):
        assert torch.equal(leaf.grad, grad) if want else leaf.grad is None


@pytest.mark.parametrize("name", ["kernel of 3", "one visible token"])
def test_gradcheck(name):
    case = CASES[name]._replace(channels=1, batch=1)
    plan, *leaves, _ = make(case)
    torch.autograd.gradcheck(
        lambda *t: sparse_depthwise_conv(*t, plan, case.grid), [t.requires_grad_() for t in leaves]
    )


def test_only_rows_are_kept_for_backward():
    case = CASES["sax, first stage"]
    plan, x, weight, bias, _ = make(case, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sparse_depthwise_conv(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), plan, case.grid)
    positions = x.numel() // case.channels
    # rows, the weight, and 8 bytes a position that say where it lies; the dense map would be four times the rows
    assert sum(t.numel() * t.element_size() for t in kept) <= x.nbytes + weight.nbytes + 8 * positions


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
    ],
    ids=["K", "B", "channels", "axes", "grid of another plan", "even kernel", "weight's rank", "bias"],
)
def test_wrong_shapes_are_refused(change, match):
    case = CASES["lax, first stage"]
    plan, x, weight, bias, _ = make(case, torch.float32)
    with pytest.raises(ValueError, match=match):
        sparse_depthwise_conv(**{"x": x, "weight": weight, "bias": bias, "plan": plan, "grid": case.grid, **change})
