"""sample_mask: the documented draw made one token at a time, and what any split of it must leave unchanged.

How often each set of tokens is drawn is in test_sample_mask_law.py, its C library in test_sample_mask_native.py.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cinema_fast.kernels import BackendError, TokenPlan, sample_mask
from cinema_fast.kernels.philox import philox_numpy

PROFILE = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOOR = 1e-6
CPU_BACKENDS = ("native",)


def equal(a: TokenPlan, b: TokenPlan) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def rows(plan: TokenPlan, which) -> TokenPlan:
    return TokenPlan(*(t[which] for t in plan))


def weights_of(batch, n, seed=0):
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) ** 4


def draw_by_rule(n, keep, decode, seed, step, stream, sample, weights):
    """(keep, masked) of one sample by the rule in the docstring, in float64."""
    masking, decoding, _, _ = philox_numpy(seed, np.arange(n), sample, step, stream).astype(np.int64)
    priority = masking.astype(np.float64)
    if weights is not None:
        uniform = ((masking >> 9) + 0.5) * 2.0**-23
        priority = np.log(np.maximum(weights, FLOOR)) - np.log(-np.log(uniform))
    first = sorted(range(n), key=lambda token: (-priority[token], token))[: n - keep]
    second = sorted(first, key=lambda token: (-decoding[token], token))[:decode]
    return sorted(set(range(n)) - set(first)), sorted(second)


@st.composite
def requests(draw):
    n = draw(st.integers(1, 70))
    keep = draw(st.integers(0, n))
    return {
        "batch": draw(st.integers(1, 4)),
        "n": n,
        "keep": keep,
        "seed": draw(st.integers(0, 2**64 - 1)),
        "step": draw(st.integers(0, 2**31)),
        "stream": draw(st.integers(0, 8)),
        "decode": draw(st.none() | st.integers(0, n - keep)),
    }


@pytest.mark.parametrize("scale", [None, 1.0, 1e-5], ids=["uniform", "weighted", "half below the floor"])
@settings(PROFILE, max_examples=15)
@given(how=requests(), first=st.integers(0, 2**31))
def test_counts_order_and_the_rule(backend, device, how, scale, first):
    batch, n, keep, decode = how["batch"], how["n"], how["keep"], how["decode"]
    n_decode = n - keep if decode is None else decode
    ids = first + torch.arange(batch)
    scores = None if scale is None else weights_of(batch, n) * scale
    plan = sample_mask(scores, sample_ids=ids, device=device, backend=backend, **how)
    assert [t.shape for t in plan] == [(batch, keep), (batch, n_decode), (batch, n)]
    assert all(t.dtype == torch.int32 for t in plan)
    for b in range(batch):
        weights = None if scale is None else scores[b].double().numpy()
        kept, masked = draw_by_rule(n, keep, n_decode, how["seed"], how["step"], how["stream"], first + b, weights)
        assert plan.keep[b].tolist() == kept
        assert plan.masked[b].tolist() == masked
        slot = [-1] * n
        for rank, token in enumerate(kept):
            slot[token] = rank
        assert plan.slot[b].tolist() == slot


@pytest.mark.parametrize(
    ("n", "keep"),
    [(1, 0), (1, 1), (2304, 576), (8192, 2048), (8192, 0), (8192, 8192)],
    ids=["one hidden", "one seen", "sax", "largest", "largest hidden", "largest seen"],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_extreme_sizes(backend, device, n, keep, weighted):
    scores = weights_of(2, n) if weighted else None
    plan = sample_mask(scores, batch=2, n=n, keep=keep, seed=3, device=device, backend=backend)
    for kept, masked in zip(plan.keep.tolist(), plan.masked.tolist()):
        assert (len(kept), len(masked)) == (keep, n - keep)
        assert sorted(kept + masked) == list(range(n))
        assert kept == sorted(kept) and masked == sorted(masked)


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_more_tokens_than_the_kernel_holds_are_drawn_by_the_rule(device, weighted):
    n, keep, decode = 9216, 2304, 1000  # 192 x 192 x 16 pixels in tokens of 8 x 8 x 1
    scores = weights_of(2, n) if weighted else None
    plan = sample_mask(scores, batch=2, n=n, keep=keep, decode=decode, seed=3, step=5, stream=1, device=device)
    for b in range(2):
        weights = scores[b].double().numpy() if weighted else None
        kept, masked = draw_by_rule(n, keep, decode, 3, 5, 1, b, weights)
        assert (plan.keep[b].tolist(), plan.masked[b].tolist()) == (kept, masked)


def test_the_kernel_says_how_many_tokens_it_holds(device):
    with pytest.raises(BackendError, match=r"'triton' cannot run: .*takes rows of up to 8192 tokens, got n 8193"):
        sample_mask(batch=2, n=8193, keep=3, seed=0, device=device, backend="triton")


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_any_split_of_a_batch_draws_the_same(backend, device, weighted):
    ids, scores = torch.tensor([5, 0, 2**31, 17, 6, 400]), weights_of(6, 50) if weighted else None
    how = {"n": 50, "keep": 12, "seed": 11, "step": 3, "stream": 2, "decode": 9, "device": device, "backend": backend}
    whole = sample_mask(scores, batch=6, sample_ids=ids, **how)
    for which in ([0], [1, 2], [5, 3, 4]):
        some = None if scores is None else scores[which]
        assert equal(sample_mask(some, batch=len(which), sample_ids=ids[which], **how), rows(whole, which))


def test_default_sample_ids_count_from_zero_and_may_be_int32():
    how = {"batch": 3, "n": 20, "keep": 5, "seed": 1}
    assert equal(sample_mask(**how), sample_mask(**how, sample_ids=torch.arange(3)))
    assert equal(sample_mask(**how), sample_mask(**how, sample_ids=torch.arange(3, dtype=torch.int32)))


@pytest.mark.parametrize("step", [torch.tensor(7), torch.tensor([7], dtype=torch.int32)], ids=["scalar", "one element"])
def test_step_on_the_device_equals_the_int(backend, device, step):
    how = {"batch": 3, "n": 40, "keep": 10, "seed": 5, "device": device, "backend": backend}
    assert equal(sample_mask(**how, step=step.to(device)), sample_mask(**how, step=7))


def test_integers_of_any_kind_draw_the_same(backend, device):
    how = {"batch": 3, "n": 20, "keep": 5, "seed": 2**40 + 1, "step": 7, "stream": 2, "decode": 4}
    numpy = {name: np.int64(value) for name, value in how.items()}
    common = {"device": device, "backend": backend}
    assert equal(sample_mask(**numpy, **common), sample_mask(**how, **common))


def test_each_argument_of_the_draw_matters():
    base = {"batch": 1, "n": 64, "keep": 16, "seed": 9, "step": 4, "stream": 1, "sample_ids": torch.tensor([2])}
    changes = [
        {},
        {"step": 5},
        {"stream": 2},
        {"sample_ids": torch.tensor([3])},
        {"seed": 10},
        {"seed": 9 + 2**32},
        # two words exchanged: a sum or a hash of them would not tell these apart
        {"step": 1, "stream": 4},
        {"step": 2, "sample_ids": torch.tensor([4])},
    ]
    draws = [tuple(sample_mask(**{**base, **change}).keep[0].tolist()) for change in changes]
    assert len(set(draws)) == len(draws)


def test_a_generator_is_neither_read_nor_moved():
    how = {"batch": 2, "n": 30, "keep": 7, "seed": 0}
    torch.manual_seed(1)
    state, plan = torch.get_rng_state(), sample_mask(**how)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(sample_mask(**how), plan)


def test_a_partial_decode_leaves_the_mask_alone():
    how = {"batch": 4, "n": 60, "keep": 15, "seed": 2}
    full = sample_mask(**how)
    inner = [set() for _ in range(4)]
    for decode in (0, 1, 10, 44, 45):
        part = sample_mask(**how, decode=decode)
        assert torch.equal(part.keep, full.keep) and torch.equal(part.slot, full.slot)
        for b, (some, every) in enumerate(zip(part.masked.tolist(), full.masked.tolist())):
            assert inner[b] <= set(some) <= set(every)  # a larger share adds tokens, it does not redraw
            inner[b] = set(some)


@PROFILE
@given(seed=st.integers(0, 2**32), token=st.integers(0, 29), factor=st.floats(1.0, 1e6))
def test_more_weight_never_unmasks(seed, token, factor):
    scores, how = weights_of(1, 30, seed=seed), {"batch": 1, "n": 30, "keep": 10, "seed": seed}
    before = sample_mask(scores, **how)
    scores[0, token] *= factor
    after = sample_mask(scores, **how)
    assert not (token in before.masked[0] and token not in after.masked[0])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, float("nan"), -math.inf], ids=str)
def test_weights_are_floored(backend, device, value):
    how = {"batch": 2, "n": 40, "keep": 10, "seed": 6, "device": device, "backend": backend}
    scores = weights_of(2, 40)
    scores[:, ::3] = FLOOR
    expected = sample_mask(scores, **how)
    scores[:, ::3] = value
    assert equal(sample_mask(scores, **how), expected)


def test_infinite_weight_is_masked_as_far_as_there_is_room(backend, device):
    scores, how = torch.ones(1, 10), {"batch": 1, "n": 10, "seed": 0, "device": device, "backend": backend}
    scores[0, [2, 5, 7]] = math.inf
    assert {2, 5, 7} <= set(sample_mask(scores, keep=5, **how).masked[0].tolist())
    assert sample_mask(scores, keep=8, **how).masked[0].tolist() == [2, 5]  # ties go to the lower position


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan, 5.0], ids=str)
def test_equal_weights_mask_exactly_as_many(backend, device, value):
    plan = sample_mask(torch.full((3, 20), value), batch=3, n=20, keep=5, seed=8, device=device, backend=backend)
    assert [len(set(row)) for row in plan.masked.tolist()] == [15] * 3
    assert sorted(plan.keep[0].tolist() + plan.masked[0].tolist()) == list(range(20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_any_floating_dtype(backend, device, dtype):
    scores = weights_of(2, 40).clamp(min=1e-3).to(device, dtype)
    how = {"batch": 2, "n": 40, "keep": 10, "seed": 6, "device": device, "backend": backend}
    before = scores.clone()
    assert equal(sample_mask(scores, **how), sample_mask(scores.float(), **how))
    assert torch.equal(scores, before)


GOOD = {"batch": 2, "n": 8, "keep": 2, "seed": 0}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": 0}, "n 0"),
        ({"batch": 0}, "batch 0"),
        ({"keep": 9}, r"keep must lie in 0\.\.8 \(n\), got 9"),
        ({"keep": -1}, "keep .* got -1"),
        ({"keep": 2.5}, "keep must be an integer, got 2.5"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"decode": 7}, r"decode must lie in 0\.\.6 .* got 7"),
        ({"decode": -1}, "decode .* got -1"),
        ({"scores": torch.ones(2, 7)}, r"scores must be floating \(2, 8\), got torch.float32 \(2, 7\)"),
        ({"scores": torch.ones(2, 8, dtype=torch.int64)}, "scores must be floating .* got torch.int64"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids must be integer \(2,\), got torch.int64 \(3,\)"),
        ({"sample_ids": torch.ones(2)}, "sample_ids must be integer .* got torch.float32"),
        ({"step": torch.tensor([1, 2])}, "step"),
        ({"step": torch.tensor(1.5)}, "step"),
    ],
)
def test_bad_arguments_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        sample_mask(**{**GOOD, **change})
