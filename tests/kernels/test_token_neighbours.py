"""Which products a depthwise convolution over visible tokens makes: their tables, their number, and who makes them."""

import itertools
import math
from statistics import mean

import pytest
import torch
from depthwise_cases import CASES, make

from cinema_fast.kernels import TokenPlan
from cinema_fast.kernels.shapes import DEPTHWISE_SHAPES
from cinema_fast.kernels.sparse_depthwise_conv import (
    sparse_depthwise_conv_bytes,
    sparse_depthwise_conv_config,
    sparse_depthwise_conv_dw_config,
    sparse_depthwise_conv_flops,
    sparse_depthwise_conv_plan_flops,
    unsupported,
)
from cinema_fast.kernels.token_neighbours import neighbour_products, walked_taps


def products_by_walking(case, plan):
    """Pairs of a visible position and a tap on it that leads to one: each looked at."""
    size = [g * b for g, b in zip(case.grid, case.block)]
    visible = (plan.slot >= 0).view(-1, *case.grid)
    for axis, extent in enumerate(case.block, 1):
        visible = visible.repeat_interleave(extent, axis)
    n = 0
    for sample in visible.tolist():
        for place in itertools.product(*map(range, size)):
            for tap in itertools.product(*map(range, case.kernel)):
                reached = [p + d - k // 2 for p, d, k in zip(place, tap, case.kernel)]
                if all(0 <= r < s for r, s in zip(reached, size)):
                    here, there = sample, sample
                    for p, r in zip(place, reached):
                        here, there = here[p], there[r]
                    n += here and there
    return n


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flops_of_a_plan(case):
    plan = make(case)[0]
    flops = sparse_depthwise_conv_plan_flops(plan, case.grid, case.block, case.kernel, case.channels)
    assert flops == 2 * case.channels * products_by_walking(case, plan)


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 6])
def test_expected_flops_are_the_mean_over_all_masks(keep):
    window = (3, 2), (2, 1), (5, 3), 7
    masks = torch.ones(math.comb(6, keep), 6, dtype=torch.bool)
    for mask, seen in zip(masks, itertools.combinations(range(6), keep)):
        mask[list(seen)] = False
    each = [sparse_depthwise_conv_plan_flops(TokenPlan.from_mask(mask[None]), *window) for mask in masks]
    assert sparse_depthwise_conv_flops(1, keep, *window) == round(mean(each))


def test_flops_of_a_sax_study():
    # of the 125 taps about 36 meet a visible position at stage 0, 29 at stage 1, where a quarter is visible
    for name, taps in (("cinema-base-sax-stage0-b16", 36), ("cinema-base-sax-stage1-b16", 29)):
        s = DEPTHWISE_SHAPES[name]
        flops = sparse_depthwise_conv_flops(s.batch, s.keep, s.grid, s.block, s.kernel, s.channels)
        assert flops / (2 * s.batch * s.keep * math.prod(s.block) * s.channels) // 1 == taps


def test_bytes_of_a_forward():
    x, weight = torch.zeros(2, 5, 4, 4, 8, dtype=torch.bfloat16), torch.zeros(8, 5, 5)
    assert sparse_depthwise_conv_bytes(x, weight) == 2 * (2 * 5 * 4 * 4 * 8 * 2) + 8 * 5 * 5 * 4


def test_products_of_the_first_sax_stage():
    table = neighbour_products((4, 4, 1), (5, 5, 5), False)
    products = {offset: sum(map(len, pairs)) for offset, _, _, pairs in table.values()}
    along = {-1: 3, 0: 14, 1: 3}  # of 5 taps on each of 4 positions: into the token before, into their own, the next
    assert products == {(a, b, 0): along[a] * along[b] for a in along for b in along}
    read = {offset: (len(taps), len(inputs)) for offset, taps, inputs, _ in table.values()}
    assert read[0, 0, 0] == (25, 16) and read[0, 1, 0] == (10, 8) and read[1, -1, 0] == (4, 4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_products_by_output_and_by_tap(case):
    def products(by_tap):
        for offset, factors, inputs, pairs in neighbour_products(case.block, case.kernel, by_tap).values():
            for total, terms in enumerate(pairs):
                for factor, inside in terms:
                    tap, output = (total, factors[factor]) if by_tap else (factors[factor], total)
                    yield offset, tap, output, inputs[inside]

    by_output, by_tap = sorted(products(False)), sorted(products(True))
    assert by_output == by_tap
    taps = math.prod(case.kernel) // walked_taps(case.block, case.kernel)
    assert len(set(by_output)) == len(by_output) == math.prod(case.block) * taps  # every tap of every output, once


@pytest.mark.parametrize("shape", DEPTHWISE_SHAPES.values(), ids=DEPTHWISE_SHAPES)
def test_configurations_fill_a_warp_and_bound_the_partial_sums(shape):
    n_rows = shape.batch * shape.keep
    backward = sparse_depthwise_conv_dw_config(n_rows, shape.block, shape.kernel, shape.channels)
    for config in (sparse_depthwise_conv_config(math.prod(shape.block), shape.channels), backward):
        assert config["BLOCK_C"] in (32, 64) and config["num_warps"] == 1
    chunks = math.ceil(n_rows / backward["TOKENS"])
    assert chunks * (math.prod(shape.kernel) + 1) * shape.channels * 4 <= 40 * 2**20  # bytes
    x = torch.empty(1, 1, *shape.block, shape.channels)
    reasons = unsupported(x, torch.empty(shape.channels, *shape.kernel))
    assert not [reason for reason in reasons if "CUDA" not in reason]
