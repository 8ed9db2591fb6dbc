"""sample_mask: how often each set of tokens is drawn, against its exact probability."""

import itertools
from collections import Counter

import pytest
import torch
from marks import slow_in_interpreter
from scipy.stats import chi2, norm
from tolerances import P_VALUE

from cinema_fast.kernels import sample_mask
from cinema_fast.kernels.backend import INTERPRET


def assert_drawn_with(probability: dict, drawn: list, groups: int = 1) -> None:
    """Chi-square of outcomes against their probabilities, which sum to 1 within each of `groups` conditions."""
    counts, total = Counter(drawn), len(drawn)
    assert set(counts) <= set(probability)
    expected = {outcome: total * p for outcome, p in probability.items()}
    assert min(expected.values()) >= 5, "too few draws for a chi-square"
    statistic = sum((counts[outcome] - e) ** 2 / e for outcome, e in expected.items())
    assert chi2.sf(statistic, len(expected) - groups) > P_VALUE


def successive_sampling(weights, n_masked):
    """Probability of each masked set where tokens leave one after another in proportion to their weights."""
    sets = dict.fromkeys(itertools.combinations(range(len(weights)), n_masked), 0.0)
    for order in itertools.permutations(range(len(weights)), n_masked):
        p, left = 1.0, sum(weights)
        for token in order:
            p, left = p * weights[token] / left, left - weights[token]
        sets[tuple(sorted(order))] += p
    return sets


def masked_sets(plan):
    return [tuple(row) for row in plan.masked.tolist()]


@pytest.mark.parametrize("axis", ["samples", "steps"])
def test_without_weights_every_set_is_as_likely(axis):
    outcomes = list(itertools.combinations(range(6), 4))
    how = {"n": 6, "keep": 2, "seed": 123, "stream": 1}
    if axis == "samples":
        drawn = masked_sets(sample_mask(batch=12_000, **how))
    else:
        drawn = [s for step in range(600) for s in masked_sets(sample_mask(batch=1, step=step, **how))]
    assert_drawn_with(dict.fromkeys(outcomes, 1 / len(outcomes)), drawn)


def test_without_weights_every_token_is_kept_as_often():
    batch, n, keep = 4_000, 144, 36
    counts = sample_mask(batch=batch, n=n, keep=keep, seed=4).keep.flatten().long().bincount(minlength=n).double()
    p = keep / n
    # a fixed number is kept, so that the counts' covariance is batch * p (1 - p) * (identity - 1/n) * n / (n - 1)
    statistic = ((counts - batch * p) ** 2).sum() / (batch * p * (1 - p)) * (n - 1) / n
    assert chi2.sf(float(statistic), n - 1) > P_VALUE


@pytest.mark.parametrize(
    ("weights", "n_masked"),
    [([1.0, 2.0, 3.0, 4.0, 10.0], 2), ([0.5, 0.1, 0.2, 0.9, 0.4], 3), ([1.0, 1.0, 1.0, 1.0, 1.0], 1)],
    ids=["steep", "three of five", "equal"],
)
def test_weighted_sets_follow_successive_sampling(weights, n_masked):
    scores = torch.tensor(weights).expand(25_000, 5)
    plan = sample_mask(scores, batch=25_000, n=5, keep=5 - n_masked, seed=77)
    assert_drawn_with(successive_sampling(weights, n_masked), masked_sets(plan))


def test_no_weight_anywhere_is_uniform():
    plan = sample_mask(torch.zeros(12_000, 5), batch=12_000, n=5, keep=3, seed=5)
    assert_drawn_with(successive_sampling([1.0] * 5, 2), masked_sets(plan))


def test_floored_tokens_are_masked_when_nothing_else_is_left():
    scores = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).expand(12_000, 5)
    plan = sample_mask(scores, batch=12_000, n=5, keep=2, seed=6)
    # the third masked token is one of the three without weight; to draw one of them earlier has a chance of 3e-6
    assert_drawn_with({(0, 1, 3): 1 / 3, (1, 2, 3): 1 / 3, (1, 3, 4): 1 / 3}, masked_sets(plan))


@pytest.mark.parametrize("weights", [None, [100.0, 1.0, 1.0, 10.0, 0.01]], ids=["uniform", "weighted"])
def test_decoded_subset_is_uniform_whatever_the_weights(weights):
    batch = 25_000
    scores = None if weights is None else torch.tensor(weights).expand(batch, 5)
    how = {"batch": batch, "n": 5, "keep": 1, "seed": 31}
    masked, decoded = masked_sets(sample_mask(scores, **how)), masked_sets(sample_mask(scores, **how, decode=2))
    often = {m: count for m, count in Counter(masked).items() if count >= 100}
    assert len(often) >= 2
    pairs = [(m, d) for m, d in zip(masked, decoded) if m in often]
    probability = {(m, d): often[m] / len(pairs) / 6 for m in often for d in itertools.combinations(m, 2)}
    assert_drawn_with(probability, pairs, groups=len(often))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"seed": 2**32}, {"step": 1}, {"stream": 1}, {"sample_ids": 1 + torch.arange(1500)}], ids=str
)
def test_neighbouring_draws_overlap_as_chance_has_it(other):
    how = {"batch": 1500, "n": 64, "keep": 16, "seed": 0, "step": 0, "stream": 0}
    first, second = sample_mask(**how), sample_mask(**{**how, **other})
    overlap = ((first.slot >= 0) & (second.slot >= 0)).sum(1).double()
    # hypergeometric: 16 of 64 drawn twice
    mean, variance = 16 * 16 / 64, 16 * 0.25 * 0.75 * (64 - 16) / 63
    z = float((overlap.mean() - mean) / (variance / len(overlap)) ** 0.5)
    assert 2 * norm.sf(abs(z)) > P_VALUE


@slow_in_interpreter
def test_what_weighs_more_is_masked_more_often(backend, device):
    """Inclusion rises with the weight from token to token, by the exact probabilities."""
    weights = [0.2, 0.5, 1.0, 2.0, 4.0]
    exact = successive_sampling(weights, 2)
    inclusion = [sum(p for masked, p in exact.items() if token in masked) for token in range(5)]
    assert inclusion == sorted(inclusion)
    batch = 400 if INTERPRET else 4_000  # interpreted, a sample takes a twentieth of a second
    scores = torch.tensor(weights, device=device).expand(batch, 5)
    plan = sample_mask(scores, batch=batch, n=5, keep=3, seed=8, backend=backend)
    counts = torch.bincount(plan.masked.flatten().long(), minlength=5).cpu().double()
    p = torch.tensor(inclusion, dtype=torch.float64)
    assert ((counts - batch * p).abs() < 4.5 * (batch * p * (1 - p)).sqrt()).all()
