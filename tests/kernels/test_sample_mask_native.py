"""sample_mask's C library: to the bit the plans of the PyTorch form, weighted ones too."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.kernels import BackendError, TokenPlan, launches, mask_native, sample_mask, use
from cinema_fast.kernels.shapes import VIEW_SHAPES

pytestmark = pytest.mark.skipif(bool(mask_native.PROBLEM), reason=mask_native.PROBLEM)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assert_equal(plan: TokenPlan, expected: TokenPlan) -> None:
    for name, a, b in zip(TokenPlan._fields, plan, expected):
        assert a.dtype == b.dtype and torch.equal(a, b), name


def assert_same(scores=None, **how) -> TokenPlan:
    """The plan, held to the oracle's."""
    plan = sample_mask(scores, **how, backend="native")
    assert_equal(plan, sample_mask(scores, **how, backend="torch"))
    return plan


@st.composite
def requests(draw):
    batch, n = draw(st.integers(1, 5)), draw(st.integers(1, 300))
    keep = draw(st.sampled_from([0, 1, n - 1, n]) | st.integers(0, n))
    how = {
        "batch": batch, "n": n, "keep": keep, "decode": draw(st.none() | st.integers(0, n - keep)),
        "seed": draw(st.integers(-(2**63), 2**64 - 1)), "stream": draw(st.integers(-1, 2**33)),
        "step": draw(st.integers(-1, 2**40)),
    }  # fmt: skip
    if draw(st.booleans()):
        how["step"] = torch.tensor(how["step"])
    if draw(st.booleans()):
        how["sample_ids"] = torch.tensor(draw(st.lists(st.integers(-1, 2**40), min_size=batch, max_size=batch)))
    if draw(st.booleans()):
        # few values, of which many are equal: ties, nothing, beyond the range, about the floor, and ordinary ones
        values = draw(st.lists(
            st.sampled_from([0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e-6, 1.0000001e-6, 1.0, 1e-45, 3e38])
            | st.floats(0, 10), min_size=1, max_size=6,
        ))  # fmt: skip
        pick = torch.randint(len(values), (batch, n), generator=torch.Generator().manual_seed(n))
        how["scores"] = torch.tensor(values, dtype=torch.float64)[pick].to(draw(st.sampled_from(DTYPES)))
    return how


@settings(max_examples=300, deadline=None, derandomize=True)
@given(how=requests())
def test_any_request(how):
    assert_same(**how)


@pytest.mark.parametrize("decode", [1, 0.25])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("name", VIEW_SHAPES)
def test_shapes_of_models(name, weighted, decode):
    view = VIEW_SHAPES[name]
    scores = torch.rand(view.batch, view.n, generator=torch.Generator().manual_seed(0)) ** 4 if weighted else None
    decode = int(decode * (view.n - view.keep))
    assert_same(scores, batch=view.batch, n=view.n, keep=view.keep, decode=decode, seed=3, step=2, stream=1)


@pytest.mark.parametrize("keep", [0, 1, 20_000, 70_000])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_rows_longer_than_other_kernels_hold(weighted, keep):
    n = 70_000
    scores = torch.rand(2, n, generator=torch.Generator().manual_seed(0)) if weighted else None
    assert_same(scores, batch=2, n=n, keep=keep, decode=(n - keep) // 3, seed=5)


def test_weights_that_are_not_contiguous():
    scores = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).T
    assert_same(scores, batch=2, n=40, keep=10, seed=1)


def test_any_number_of_threads_gives_the_same_plan():
    threads, plans = torch.get_num_threads(), []
    how = {"batch": 13, "n": 90, "keep": 30, "decode": 17, "seed": 4}
    try:
        for n in (1, 2, 3, 7, 20):
            torch.set_num_threads(n)
            plans.append(assert_same(torch.arange(13.0 * 90).view(13, 90), **how))
    finally:
        torch.set_num_threads(threads)
    for plan in plans:
        assert_equal(plan, plans[0])


def test_a_compiled_draw_reads_its_step_when_it_runs():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def draw(scores, step):
        return sample_mask(scores, batch=2, n=30, keep=8, decode=9, seed=7, step=step)

    scores = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    before = launches().get("sample_mask", 0)
    for step in (0, 1):
        plan = draw(scores, torch.tensor(step))
        assert_equal(plan, sample_mask(scores, batch=2, n=30, keep=8, decode=9, seed=7, step=step, backend="torch"))
    assert launches()["sample_mask"] == before + 2


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_the_operator_is_sound(weighted):
    scores = torch.rand(2, 9) if weighted else None
    given_ = (scores, torch.arange(2), torch.tensor([3]), torch.device("cpu"), 2, 9, 4, 3, 7, 0, 1)
    torch.library.opcheck(mask_native.draw, given_)
    torch.library.opcheck(mask_native.draw, (scores, None, None, *given_[3:]))


def test_it_is_what_auto_takes_on_a_cpu():
    before = launches().get("sample_mask", 0)
    how = {"batch": 2, "n": 9, "keep": 4, "seed": 7, "device": "cpu"}
    sample_mask(**how)
    assert launches()["sample_mask"] == before + 1
    with use("torch"):
        sample_mask(**how)
    assert launches()["sample_mask"] == before + 1


def test_where_it_cannot_run_it_says_why(monkeypatch):
    how = {"batch": 2, "n": 9, "keep": 4, "seed": 7}
    with pytest.raises(BackendError, match="sample_mask: backend 'native' cannot run: needs CPU tensors, got meta"):
        sample_mask(**how, device="meta", backend="native")
    assert sample_mask(**how, device="meta").keep.shape == (2, 4)
    monkeypatch.setattr(mask_native, "PROBLEM", "it was not built")
    before = launches().get("sample_mask", 0)
    assert_equal(sample_mask(**how), sample_mask(**how, backend="torch"))
    assert launches().get("sample_mask", 0) == before
    with use("native"), pytest.raises(BackendError, match="'native' cannot run: it was not built"):
        sample_mask(**how)
