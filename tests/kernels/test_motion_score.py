"""motion_score against loops over pixels, and the share of moving patches that masks drawn by it hide or keep."""

import itertools

import numpy as np
import pytest
import torch
from marks import in_full
from scipy.stats import chisquare
from tolerances import P_VALUE, assert_close

from cinema_fast.kernels import sample_mask
from cinema_fast.kernels.motion_score import mask_weights, motion_score


def by_loops(flow, patch):
    """Scores of one sample (P, 2, *size) in Python floats."""
    flow = flow.double().numpy()
    magnitude = np.sqrt(flow[:, 0] ** 2 + flow[:, 1] ** 2)
    if len(patch) == magnitude.ndim:
        pairs_of = ([p for p in (t - 1, t) if 0 <= p < len(magnitude)] for t in range(len(magnitude) + 1))
        magnitude = np.stack([magnitude[pairs].mean(0) for pairs in pairs_of])
    else:
        magnitude = magnitude.mean(0)
    grid = [s // p for s, p in zip(magnitude.shape, patch)]
    scores = [
        magnitude[tuple(slice(g * p, (g + 1) * p) for g, p in zip(at, patch))].mean()
        for at in itertools.product(*map(range, grid))
    ]
    return torch.tensor(scores) / np.mean(scores)


@pytest.mark.parametrize(
    ("size", "patch", "pairs"),
    [
        ((8, 12), (4, 3), 3),
        ((8, 8, 4), (4, 2, 1), 2),
        ((8, 8), (2, 4, 4), 3),
        ((4, 6), (1, 2, 3), 1),
        ((4, 4), (4, 4), 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_against_loops(size, patch, pairs, dtype):
    flow = torch.randn(2, pairs, 2, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    score = motion_score(flow, patch)
    assert score.dtype == torch.float32
    for sample in range(2):
        assert_close(score[sample], by_loops(flow[sample], patch))


def test_no_motion_is_uniform():
    flow = torch.zeros(2, 3, 2, 8, 8)
    flow[1, 1, 0, 0, 0] = 1
    score = motion_score(flow, (4, 4))
    assert torch.equal(score, torch.tensor([[1.0, 1, 1, 1], [4, 0, 0, 0]]))
    assert mask_weights(score[:1], strength=1.0).unique().numel() == 1


def assert_same_ratios(weights, expected):
    assert_close(weights / weights.amax(1, keepdim=True), expected / expected.amax(1, keepdim=True))


def test_weights_follow_the_formula():
    score = torch.tensor([[0.0, 0.5, 1.0, 2.5]], dtype=torch.float64)
    expected = torch.tensor([[0.4, 0.7, 1.0, 1.9]], dtype=torch.float64)
    assert_same_ratios(mask_weights(score, strength=0.6), expected)
    assert_same_ratios(mask_weights(score, strength=0.6, temperature=0.5), expected**2)
    assert_same_ratios(mask_weights(score, strength=0.6, temperature=2.0, keep=True), expected**-0.5)
    assert mask_weights(score, strength=0.0).unique().numel() == 1


@pytest.mark.parametrize("keep", [False, True], ids=["mask", "keep"])
def test_a_smaller_temperature_draws_more_sharply(keep):
    """Down to where only order counts: the largest and the smallest scores then fill the two sets."""
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(500, 40, generator=generator) ** 3
    score /= score.mean(1, keepdim=True)
    hidden = []
    for temperature in (2.0, 1.0, 0.5, 0.2, 0.1, 0.05):
        weights = mask_weights(score, strength=1.0, temperature=temperature, keep=keep)
        assert weights.isfinite().all()
        plan = sample_mask(weights, batch=500, n=40, keep=10, seed=2)
        hidden.append(float(score.gather(1, plan.masked.long()).mean()))
    assert hidden[:4] == sorted(hidden[:4], reverse=keep)  # and then nothing is left to gain
    order = score.argsort(1, descending=not keep)
    extreme = float(score.gather(1, order[:, :30]).mean())
    assert hidden[-1] == pytest.approx(extreme, rel=0.01)


@pytest.mark.parametrize(("keep_mode", "low", "high"), in_full([(False, 0.0, 0.6), (True, 1.5, 4.0)]))
def test_share_of_what_moves_among_visible_tokens(backend, device, keep_mode, low, high):
    """A tenth of the patches moves ten times as much as the rest."""
    batch, n, keep = 100, 100, 25
    score = torch.ones(batch, n, device=device)
    score[:, :10] = 10
    score /= score.mean(1, keepdim=True)
    weights = mask_weights(score, strength=0.9, keep=keep_mode)
    plan = sample_mask(weights, batch=batch, n=n, keep=keep, seed=1, backend=backend)
    assert plan.keep.shape == (batch, keep)
    share = float((plan.keep < 10).float().mean()) / 0.1
    assert low <= share <= high


def test_strength_zero_draws_uniformly():
    score = torch.rand(2000, 12, generator=torch.Generator().manual_seed(0)) * 5
    plan = sample_mask(mask_weights(score, strength=0.0), batch=2000, n=12, keep=3, seed=3)
    counts = torch.bincount(plan.keep.flatten().long(), minlength=12)
    assert chisquare(counts.numpy()).pvalue > P_VALUE


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: motion_score(torch.zeros(1, 3, 2, 8), (4,)), r"expected flow \(B, P, 2, X, Y"),
        (lambda: motion_score(torch.zeros(1, 0, 2, 8, 8), (4, 4)), "P > 0"),
        (lambda: motion_score(torch.zeros(1, 3, 2, 8, 8), (4,)), "a patch of 2 axes, or of 3 for a clip"),
        (lambda: motion_score(torch.zeros(1, 3, 2, 8, 8), (3, 4)), "not a positive multiple"),
        (lambda: motion_score(torch.zeros(1, 2, 2, 8, 8), (2, 4, 4)), "not a positive multiple"),
        (lambda: mask_weights(torch.ones(1, 4), strength=1.5), "strength must lie in 0..1, got 1.5"),
        (lambda: mask_weights(torch.ones(1, 4), strength=0.5, temperature=0.0), "temperature must be above 0"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
