"""TokenPlan: a boolean mask goes in and comes out of the index lists unchanged."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from cinema_fast.kernels import TokenPlan


@st.composite
def masks(draw):
    batch, n = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    n_masked = draw(st.integers(0, n))
    row = [True] * n_masked + [False] * (n - n_masked)
    return torch.tensor([draw(st.permutations(row)) for _ in range(batch)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mask=masks())
def test_from_mask_round_trip(mask):
    plan = TokenPlan.from_mask(mask)
    assert all(t.dtype == torch.int32 for t in plan)
    assert plan.slot.shape == mask.shape
    for row, keep, masked, slot in zip(mask, *plan):
        assert keep.tolist() == [i for i, hidden in enumerate(row) if not hidden]
        assert masked.tolist() == [i for i, hidden in enumerate(row) if hidden]
        seen = iter(range(len(keep)))
        assert slot.tolist() == [-1 if hidden else next(seen) for hidden in row]


def test_from_ids_with_part_of_the_masked_tokens():
    keep, masked = torch.tensor([[1, 4], [0, 2]], dtype=torch.int32), torch.tensor([[0], [4]], dtype=torch.int32)
    plan = TokenPlan.from_ids(keep, masked, 5)
    assert plan.slot.tolist() == [[-1, 0, -1, -1, 1], [0, -1, 1, -1, -1]]
    assert plan.masked is masked


def test_everything_is_the_plan_of_an_empty_mask():
    plan = TokenPlan.everything(3, 7, torch.device("cpu"))
    expected = TokenPlan.from_mask(torch.zeros(3, 7, dtype=torch.bool))
    for part, want in zip(plan, expected):
        assert part.dtype == want.dtype and torch.equal(part, want)


def test_is_a_pytree_of_three_tensors():
    plan = TokenPlan.from_mask(torch.tensor([[True, False]]))
    leaves, spec = pytree.tree_flatten(plan)
    assert len(leaves) == 3
    assert isinstance(pytree.tree_unflatten(leaves, spec), TokenPlan)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.zeros(2, 3), r"boolean \(B, N\) mask, got torch.float32 \(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.uint8), "boolean"),
        (torch.zeros(3, dtype=torch.bool), r"got torch.bool \(3,\)"),
        (torch.tensor([[True, True, False], [True, False, False]]), "between 1 and 2 of 3"),
        (torch.zeros(0, 3, dtype=torch.bool), r"\(0, 3\)"),
    ],
    ids=["float", "uint8", "rank", "unequal rows", "no sample"],
)
def test_bad_masks_are_refused(mask, match):
    with pytest.raises(ValueError, match=match):
        TokenPlan.from_mask(mask)
