"""Depthwise convolutions to test, and their definition: PyTorch's over a dense float64 map with zeros where masked."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tolerances import assert_close

from cinema_fast.kernels import TokenPlan, sample_mask


class Case(NamedTuple):
    grid: tuple[int, ...]
    block: tuple[int, ...]
    kernel: tuple[int, ...]
    keep: int | list[int]  # how many tokens are visible, or which
    batch: int = 2
    channels: int = 3


CASES = {
    "sax, first stage": Case((2, 2, 3), (4, 4, 1), (5, 5, 5), 2),
    "sax, second stage": Case((2, 2, 3), (2, 2, 1), (5, 5, 5), 5, batch=1),
    "lax, first stage": Case((5, 4), (4, 4), (5, 5), 5),
    "lax, second stage": Case((5, 4), (2, 2), (5, 5), 5),
    "one position a token": Case((4, 5), (1, 1), (5, 5), 6, batch=1),  # the window reaches two tokens away
    "kernel of 3": Case((3, 5), (2, 3), (3, 3), 5),
    "kernel of 3, volume": Case((3, 2, 2), (1, 2, 3), (3, 3, 3), 4),
    "another kernel along each axis": Case((3, 4, 2), (2, 1, 2), (5, 1, 3), 5),
    "taps that reach over a neighbour": Case((4, 3), (2, 1), (7, 3), 6),
    "kernel wider than the map": Case((1, 2), (1, 1), (5, 5), 1),
    "one token of one position": Case((1, 1), (1, 1), (5, 5), 1, batch=1, channels=1),
    "one visible token": Case((3, 3, 3), (2, 2, 1), (5, 5, 5), [13]),
    "corners, none a neighbour": Case((4, 4), (4, 4), (5, 5), [0, 3, 12, 15]),
    "all tokens": Case((3, 2), (4, 4), (5, 5), 6, batch=1),
    "single sample": Case((4, 3), (4, 4), (5, 5), 3, batch=1),
    "more channels than a program takes": Case((3, 2), (2, 2), (5, 5), 3, channels=70),
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


def on(device, plan, *tensors):
    return TokenPlan(*(t.to(device) for t in plan)), *(t.to(device) for t in tensors)


def gradients(out, leaves, upstream):
    return torch.autograd.grad(out, leaves, upstream.to(out), materialize_grads=True)


def check(case, function, dtype, weight_dtype=None, device="cpu"):
    """`function` and its gradients in dtype's budget of the float64 oracle; inputs are left alone."""
    plan, *leaves, upstream = on(device, *make(case, dtype, weight_dtype))
    leaves = [t.requires_grad_() for t in leaves]
    before = [t.detach().clone() for t in (*leaves, *plan)]
    out = function(*leaves, plan, case.grid)
    expected = dense_conv(case, plan, *leaves)
    assert out.dtype == dtype
    assert_close(out, expected, name="out")
    wanted = gradients(expected, leaves, upstream)
    for name, leaf, grad, want in zip(("dx", "dw", "db"), leaves, gradients(out, leaves, upstream), wanted):
        assert grad.dtype == leaf.dtype, name
        assert_close(grad, want, dtype=dtype, name=name)
    assert all(map(torch.equal, before, (*leaves, *plan))), "an input was written to"
