"""How operations are timed: what is wrong is not timed, and the columns are what the clock measured."""

import time

import pytest
import timing
import torch
from workload import GateError


def operation(**ways) -> timing.Operation:
    """x -> 3 x in the given ways, ours first; 1 MB moved and 67 GFLOP forward, bytes alone backward."""
    leaf = torch.randn(16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return timing.Operation(
        "philox", "awkward", torch.float32, ways, (leaf,), lambda x: 3 * x,
        n_bytes={"fwd": 10**6, "bwd": 10**6}, flops={"fwd": 67 * 10**9},
    )  # fmt: skip


def slow(x):
    time.sleep(0.02)
    return 3 * x


class WrongGradient(torch.autograd.Function):
    """Right forward, wrong backward."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


def test_what_is_wrong_is_not_timed():
    op = operation(
        right=lambda x: 3 * x, wrong=lambda x: 3.001 * x, nan=lambda x: x * torch.nan, half=WrongGradient.apply
    )
    assert op.gate("fwd", "right") < 1e-6 and op.gate("bwd", "right") < 1e-6
    assert op.gate("fwd", "half") < 1e-6
    for pass_, way in (("fwd", "wrong"), ("bwd", "wrong"), ("fwd", "nan"), ("bwd", "half")):
        with pytest.raises(GateError, match=f"philox {pass_} awkward, {way}"):
            op.gate(pass_, way)
    assert timing.kernel_row(op, "fwd", smoke=True).peer == "half"  # the others are no peers to beat
    with pytest.raises(GateError, match="wrong"):
        timing.kernel_row(operation(wrong=lambda x: 3.001 * x, right=lambda x: 3 * x), "fwd", smoke=True)


def test_limit_is_the_larger_of_bytes_and_flops():
    op = operation(right=lambda x: 3 * x)
    peak = timing.peaks()
    assert op.limit("fwd") == (67e9 / peak.ordinary, "compute")
    assert op.limit("bwd") == (1e6 / peak.memory, "memory")
    op.exponentials = {"fwd": 10**9, "bwd": 10**9}
    assert op.limit("fwd") == (67e9 / peak.ordinary, "compute")
    assert op.limit("bwd") == (1e9 / peak.exponential, "exponential")


def test_attention_of_head_dim_32_is_bound_by_the_exponential():
    """On an H100 a logit costs 128 FLOPs of 4096 a cycle forward, and one exponential of 16: half the peak at most."""
    logits = 10**9
    op = operation()
    op.dtype, op.n_bytes, op.flops, op.exponentials = torch.bfloat16, {"fwd": 1}, {"fwd": 128 * logits}, {"fwd": logits}
    seconds, bound = op.limit("fwd")
    assert bound == "exponential"
    assert 128 * logits / seconds == pytest.approx(timing.peaks().matrix / 2)


def test_the_oracle_is_computed_once_for_all_ways_and_passes():
    calls = []
    op = operation(right=lambda x: 3 * x, other=lambda x: x + x + x)
    op.oracle = lambda x: calls.append(1) or 3 * x
    for pass_ in ("fwd", "bwd"):
        for way in op.ways:
            op.gate(pass_, way)
    assert len(calls) == 1


def test_a_row_without_peers_has_none():
    row = timing.kernel_row(operation(ours=lambda x: 3 * x), "fwd", smoke=True)
    assert row.peer is row.peer_us is row.speedup is None


def test_clock_moves_by_what_it_measures_only():
    clock = timing.Clock()
    start = clock()
    time.sleep(0.01)
    assert clock() == start
    seconds = clock.time(lambda: slow(torch.ones(1)))
    assert seconds >= 0.02
    assert clock() == pytest.approx(start + seconds)


def test_row_compares_with_the_fastest_peer():
    row = timing.kernel_row(operation(ours=lambda x: 3 * x, slow=slow, fast=lambda x: x + x + x), "fwd", smoke=True)
    assert (row.op, row.pass_, row.peer) == ("philox", "fwd", "fast")
    assert row.speedup == pytest.approx(row.peer_us / row.us)
    assert row.percent_of_limit == pytest.approx(100 * row.limit_us / row.us)
    assert row.rel_err < row.err_budget


def test_clone_moves_the_bytes_of_the_pass():
    assert operation().call("fwd", "clone")().numel() * 2 == 10**6
