"""Intervals and tests by resampling: coverage, whole studies, exact permutations."""

import itertools
import math
import re

import numpy as np
import pytest

from cinema_fast.metrics import bootstrap
from cinema_fast.metrics.bootstrap import difference, draw_studies, estimate, swap_studies
from cinema_fast.metrics.classification import Classification
from cinema_fast.metrics.means import Means, landmark_scores
from cinema_fast.metrics.regression import Agreement


def means(values) -> Means:
    return Means({"dice": values})


def named(n: int) -> list[str]:
    return [f"heart-{i}" for i in range(n)]


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = []
    for trial in range(400):
        one = estimate(means(rng.normal(3, 1, 40)), named(40), resamples=400, seed=trial)["dice"]
        held.append(one.low <= 3 <= one.high)
    # percentiles of 40 studies are some 1.5 % short of 95 %; 4 standard errors of 400 trials are 4.4 %
    assert abs(np.mean(held) - 0.935) < 0.044


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(0, 2, 500)
    one = estimate(means(values), named(500), resamples=4000)["dice"]
    width = 2 * 1.96 * values.std() / math.sqrt(500)
    assert one.value == pytest.approx(values.mean()) and one.high - one.low == pytest.approx(width, rel=0.06)
    assert (one.n, one.studies, one.note) == (500, 500, "")


def test_the_rows_of_a_study_come_together():
    values = np.random.default_rng(2).normal(0, 1, 30)
    whole = estimate(means(values), named(30), resamples=1000)["dice"]
    # the same hearts, each with 16 equal rows: no more is known of them
    repeated = estimate(means(np.repeat(values, 16)), np.repeat(named(30), 16).tolist(), resamples=1000)["dice"]
    assert (repeated.low, repeated.high) == pytest.approx((whole.low, whole.high)) and repeated.studies == 30
    apart = estimate(means(np.repeat(values, 16)), named(480), resamples=1000)["dice"]
    assert apart.high - apart.low < 0.3 * (whole.high - whole.low)


def test_draws_are_a_function_of_the_seed_and_not_of_their_parts(monkeypatch):
    of = np.array([0, 0, 1, 2, 2, 2])
    whole = np.concatenate(list(draw_studies(of, 3, 50, seed=7)))
    assert whole.shape == (50, 6) and (whole[:, [0, 2, 3]].sum(1) == 3).all()
    assert (whole[:, 0] == whole[:, 1]).all() and (whole[:, 3] == whole[:, 5]).all()
    monkeypatch.setattr(bootstrap, "_PART", 40)
    parts = list(draw_studies(of, 3, 50, seed=7))
    assert len(parts) == 9 and (np.concatenate(parts) == whole).all()
    swaps = np.concatenate(list(swap_studies(of, 3, 50, seed=7)))
    assert (swaps[:, 3] == swaps[:, 5]).all() and set(swaps.ravel()) == {0, 1}
    assert (np.concatenate(list(draw_studies(of, 3, 50, seed=8))) != whole).any()


def test_failures_and_absent_classes_are_counted_and_not_averaged():
    one = estimate(means([1.0, 3.0, math.inf, math.nan]), named(4))["dice"]
    assert one.value == 2 and (one.n, one.studies) == (2, 2)
    left_out = "1 of 3 failed (nothing was measured), left out of the mean; 1 without this structure left out"
    assert one.note.startswith(left_out)
    none = estimate(means([math.inf, math.nan]), named(2))["dice"]
    assert (none.value, none.low, none.high, none.n) == (None, None, None, 0)


def test_one_study_has_no_interval_and_undefined_draws_are_reported():
    alone = estimate(means([1.0, 2.0]), ["heart", "heart"])["dice"]
    assert (alone.value, alone.low, alone.note) == (1.5, None, "no interval: one study")
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    found = estimate(Classification([0, 0, 1], ("a", "b"), p), named(3), resamples=4000)
    # draws without b, (2/3)^3, or with nothing else, (1/3)^3
    undefined = float(found["auroc"].note.split("%")[0]) / 100
    assert undefined == pytest.approx(9 / 27, abs=0.03) and found["auroc"].low == found["auroc"].value == 1


def test_a_number_without_an_interval_says_how_many_draws_left_it_undefined():
    right = np.eye(3) * 0.7 + 0.1
    first, second = (Classification([0, 1, 2], "abc", p) for p in (right, right[::-1]))
    both = Classification([0, 1, 2] * 2, "abc", np.vstack([right, right[::-1]]))
    one = estimate(first, named(3), resamples=4000)["auroc"]
    two = difference(first, second, both, named(3), resamples=4000)["auroc"]
    assert one.value == two.first == 1 and two.difference < 0
    for found in (one, two):
        assert (found.low, found.high) == (None, None)
        share = re.fullmatch(r"no interval: ([0-9.]+)% of the bootstrap resamples are undefined", found.note)[1]
        assert float(share) / 100 == pytest.approx(1 - 6 / 27, abs=0.03)  # all but the draws that hold all three


def test_p_of_a_mean_is_that_of_all_sign_flips():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 1, 9)
    second = first + rng.normal(0.5, 0.6, 9)
    change = second - first
    flips = [abs(np.mean(change * signs)) for signs in itertools.product((-1, 1), repeat=9)]
    exact = np.mean(np.array(flips) >= abs(change.mean()) - 1e-12)
    both = means(np.r_[first, second])
    found = difference(means(first), means(second), both, named(9), resamples=20000)["dice"]
    assert found.difference == pytest.approx(change.mean()) and found.p == pytest.approx(exact, abs=0.012)
    assert found.low < found.difference < found.high and 0.01 < exact < 0.2


def test_p_is_uniform_where_there_is_no_difference_and_least_where_there_is():
    rng = np.random.default_rng(4)
    ps = []
    for trial in range(200):
        rows = rng.normal(0, 1, (2, 20))
        pair = difference(means(rows[0]), means(rows[1]), means(rows.ravel()), named(20), resamples=199, seed=trial)
        ps.append(pair["dice"].p)
    # 200 trials of 5 %: mean 10, deviation 3.1
    assert sum(p <= 0.05 for p in ps) <= 22 and 0.4 < np.mean(ps) < 0.6
    truth = np.arange(30.0)
    worse = Agreement(truth + 9 * (-1) ** np.arange(30), truth), Agreement(truth, truth)
    both = Agreement(np.r_[worse[0].pred, worse[1].pred], np.r_[worse[0].truth, worse[1].truth])
    found = difference(*worse, both, named(30), resamples=999)
    assert found["mae"].p == 1 / 1000 and found["mae"].difference == -9
    same = difference(worse[0], worse[0], Agreement(np.tile(worse[0].pred, 2), np.tile(worse[0].truth, 2)), named(30))
    assert same["rmse"].p == 1 and (same["rmse"].low, same["rmse"].high) == (0, 0)


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="expected the study of each of 2 rows, got 3"):
        estimate(means([1.0, 2.0]), named(3))
    with pytest.raises(ValueError, match="expected as many rows in `first` as in `second`"):
        difference(means([1.0, 2.0]), means([1.0]), means([1.0] * 3), named(2))


def test_landmarks_are_as_far_as_points_are():
    near = landmark_scores((1, 2, 2), (0, 0, 0), (2.9, 3, 10))
    assert near == {"distance_mm": 3.0, "within_2.9_mm": 0.0, "within_3_mm": 1.0, "within_10_mm": 1.0}
    lost = landmark_scores((math.nan, 0), (0, 0), (5,))
    assert lost == {"distance_mm": math.inf, "within_5_mm": 0.0}
    with pytest.raises(ValueError, match="finite positions of one length"):
        landmark_scores((0, 0), (0, math.nan), (5,))
