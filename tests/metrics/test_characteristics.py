"""Effects and tests against closed forms, scipy called directly, and the step-up rule written out."""

import math

import numpy as np
import pytest
from scipy import stats

from cinema_fast.metrics.characteristics import WORDS, adjust, cohens_d, describe, describe_numbers, describe_words

CLUSTERS = np.array([1, 1, 1, 1, 2, 2, 2, 3])


def test_numbers_by_hand():
    """Cluster 1: 1, 2, 3 and one missing; the rest: 5, 7, 9, 11."""
    lines = describe_numbers("ef", np.array([1, 2, 3, np.nan, 5, 7, 9, 11]), CLUSTERS)
    first, second, third = lines
    assert (first.cluster, first.n, first.missing, first.mean, first.sd, first.median) == (1, 3, 1, 2, 1, 2)
    pooled = math.sqrt((2 + 20) / 5)
    d = (2 - 8) / pooled
    assert first.measure == "Cohen's d" and first.effect == pytest.approx(d)
    error = math.sqrt(7 / 12 + d**2 / 14)
    assert (first.effect_low, first.effect_high) == pytest.approx((d - 1.96 * error, d + 1.96 * error))
    assert first.p == pytest.approx(2 / math.comb(7, 3))  # exact: all ranks below the others', on either side
    assert (second.mean, second.sd) == (7, 2)
    assert (third.n, third.mean, third.sd, third.median) == (1, 11, None, 11)
    assert third.effect is None and third.p is None  # one value has no deviation


def test_d_of_a_planted_shift():
    rng = np.random.default_rng(0)
    here, rest = rng.standard_normal(4000) + 0.5, rng.standard_normal(8000)
    assert cohens_d(here, rest) == pytest.approx(0.5, abs=0.05)
    t = stats.ttest_ind(here, rest).statistic  # the same number but for the sizes
    assert cohens_d(here, rest) == pytest.approx(t * math.sqrt(1 / 4000 + 1 / 8000))
    assert cohens_d(np.full(5, 0.1), np.full(4, 0.1)) is None and cohens_d(here[:1], rest) is None


def test_words_by_hand():
    words = ["a", "a", "b", None, "b", "b", "b", "b"]
    lines = [line for line in describe_words("disease", words, CLUSTERS) if line.cluster == 1]
    assert [(x.word, x.count, x.n, x.missing) for x in lines] == [("a", 2, 3, 1), ("b", 1, 3, 1)]
    assert [x.share for x in lines] == pytest.approx([2 / 3, 1 / 3])
    chi = 7 * (2 * 4 - 1 * 0) ** 2 / (3 * 4 * 2 * 5)  # n (ad - bc)^2 over the margins
    for line in lines:
        assert line.measure == "Cramer's V" and line.effect == pytest.approx(math.sqrt(chi / 7))
        assert line.p == pytest.approx(stats.chi2.sf(chi, 1)) and line.small
    words = ["x"] * 50 + ["y"] * 50
    whole = describe_words("side", words, np.repeat([1, 2], 50))
    assert [line.effect for line in whole] == pytest.approx([1] * 4) and not whole[0].small


def test_words_of_clusters_that_say_nothing():
    lines = describe_words("disease", ["a", "b", "a", "b", None, None, None, "a"], CLUSTERS)
    second = [line for line in lines if line.cluster == 2]
    assert [(x.n, x.missing, x.count, x.share, x.effect, x.p) for x in second] == [(0, 3, 0, None, None, None)] * 2
    assert all(line.effect is None for line in describe_words("x", ["a"] * 8, CLUSTERS))  # one word only


def test_adjusted_p_is_the_step_up_rule_over_tests():
    rng = np.random.default_rng(0)
    clusters = np.repeat([1, 2, 3], 40)
    numbers = rng.standard_normal(120) + clusters
    words = [("a", "b", "c")[int(i)] for i in rng.integers(0, 3, 120)]
    lines = adjust(describe_numbers("ef", numbers, clusters) + describe_words("disease", words, clusters))
    tests = {(line.column, line.cluster): (line.p, line.p_adjusted) for line in lines}
    assert len(tests) == 6 and len(lines) == 12
    ordered = sorted(tests.values())
    by_hand, least = [], 1.0
    for rank in range(6, 0, -1):
        least = min(least, ordered[rank - 1][0] * 6 / rank)
        by_hand.insert(0, least)
    assert [adjusted for _, adjusted in ordered] == pytest.approx(by_hand)


def test_columns_are_matched_by_study_and_left_out_by_reason():
    studies = [f"s{i}" for i in range(8)]
    columns = {
        "none": {},
        "ef": {"s7": 3.0, "s0": 1.0, "elsewhere": 99.0},
    }
    lines, left_out = describe(columns, studies, CLUSTERS)
    assert left_out == {"none": "no study has a value"}
    assert [(x.n, x.missing, x.mean) for x in lines if x.column == "ef"] == [(1, 3, 1), (0, 3, None), (1, 0, 3)]
    twenty = [f"s{i}" for i in range(20)]
    lines, left_out = describe({"names": {s: s for s in twenty}}, twenty, np.repeat([1, 2], 10))
    assert not lines and left_out == {"names": f"20 different words; at most {WORDS} are counted"}


def test_one_cluster_has_no_rest():
    numbers = describe_numbers("ef", np.arange(8.0), np.ones(8, int))
    words = describe_words("disease", list("aabbaabb"), np.ones(8, int))
    assert [x.effect for x in [*numbers, *words]] == [None] * 3 and numbers[0].mean == 3.5 and words[0].share == 0.5
    assert adjust(words)[0].p_adjusted is None
