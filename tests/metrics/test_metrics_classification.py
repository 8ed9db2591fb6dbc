"""Scores of classes against hand-made tables, and against scikit-learn under weights."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from cinema_fast.metrics.classification import Classification, ranking

TWO, THREE = ("NOR", "DCM"), ("NOR", "DCM", "HCM")


def binary(p) -> np.ndarray:
    return np.stack([1 - np.asarray(p), p], 1)


def drawn(classes: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth (n,), probabilities (n, K) with ties, and weights (3, n): ones, then how often rows come."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n).round(1)
    p[:, -1] = 1 - p[:, :-1].sum(1)
    p = np.abs(p)
    truth = np.array([rng.choice(classes, p=row / row.sum()) for row in p])
    return truth, p, np.concatenate([np.ones((1, n)), rng.integers(0, 4, (2, n)).astype(float)])


def test_a_hand_made_confusion_table():
    truth = [1] * 10 + [0] * 20
    decided = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 15
    point = Classification(truth, TWO, decided=decided).point()
    assert point["accuracy"] == pytest.approx(23 / 30) and point["balanced_accuracy"] == pytest.approx((0.8 + 0.75) / 2)
    assert point["sensitivity"] == pytest.approx(0.8) and point["specificity"] == pytest.approx(0.75)
    assert point["f1"] == pytest.approx(2 * 8 / (10 + 13))
    assert point["mcc"] == pytest.approx((8 * 15 - 5 * 2) / math.sqrt(13 * 10 * 20 * 17))
    measure = Classification(truth, TWO, decided=decided)
    assert math.isnan(point["auroc"]) and measure.notes["ece"] == "undefined: no probabilities"


def test_the_threshold_decides_and_is_reached_by_equality():
    p, truth = binary([0.1, 0.3, 0.6, 0.9]), [0, 1, 0, 1]
    assert Classification(truth, TWO, p, threshold=0.3).point()["sensitivity"] == 1
    assert Classification(truth, TWO, p, threshold=0.7).point() == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": 0.75, "sensitivity": 0.5, "specificity": 1, "f1": 2 / 3,
         "mcc": 1 / math.sqrt(3), "auroc": 0.75,
         "auprc": 0.5 * 1 + 0.5 * 2 / 3, "brier": (0.01 + 0.49 + 0.36 + 0.01) / 4, "ece": (0.1 + 0.7 + 0.6 + 0.1) / 4}
    )  # fmt: skip


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_all_agree_with_scikit_learn_under_weights(classes):
    truth, p, weights = drawn(len(classes), 60)
    measure = Classification(truth, classes, p)
    found = measure(weights)
    sides = [1] if len(classes) == 2 else range(3)
    for i, w in enumerate(weights):
        how = {"sample_weight": w}
        recalls = [metrics.recall_score(truth == c, measure.decided == c, **how) for c in sides]
        wanted = {
            "accuracy": metrics.accuracy_score(truth, measure.decided, **how),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, measure.decided, **how),
            "sensitivity": np.mean(recalls),
            "specificity": np.mean([metrics.recall_score(truth != c, measure.decided != c, **how) for c in sides]),
            "f1": metrics.f1_score(truth, measure.decided, average="binary" if len(sides) == 1 else "macro", **how),
            "mcc": metrics.matthews_corrcoef(truth, measure.decided, **how),
            "auroc": np.mean([metrics.roc_auc_score(truth == c, p[:, c], **how) for c in sides]),
            "auprc": np.mean([metrics.average_precision_score(truth == c, p[:, c], **how) for c in sides]),
        }
        squares = [metrics.brier_score_loss(truth == c, p[:, c].clip(0, 1), **how) for c in range(len(classes))]
        wanted["brier"] = squares[1] if len(classes) == 2 else sum(squares)
        assert {name: found[name][i] for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert measure.point() == pytest.approx({name: value[0] for name, value in found.items()}, rel=1e-9)


def test_reliability_and_calibration_error_agree_with_scikit_learns_curve():
    truth, p, _ = drawn(2, 200, seed=3)
    measure = Classification(truth, TWO, p)
    curve = measure.reliability()
    observed, predicted = calibration_curve(truth, p[:, 1], n_bins=10)
    assert curve["observed"].tolist() == pytest.approx(observed.tolist())
    assert curve["predicted"].tolist() == pytest.approx(predicted.tolist())
    assert measure.point()["ece"] == pytest.approx((curve["n"] * np.abs(observed - predicted)).sum() / 200)


def test_calibration_of_more_classes_is_that_of_the_likeliest():
    p = np.array([[0.7, 0.2, 0.1]] * 4 + [[0.15, 0.0, 0.85]] * 2)
    measure = Classification([0, 0, 1, 2, 2, 2], THREE, p)
    assert measure.point()["ece"] == pytest.approx((4 * abs(0.5 - 0.7) + 2 * abs(1 - 0.85)) / 6)
    assert measure.point()["brier"] == pytest.approx((2 * 0.14 + (0.49 + 0.64 + 0.01) + (0.49 + 0.04 + 0.81)
                                                      + 2 * 0.045) / 6)  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
@settings(max_examples=50, deadline=None)
def test_ranking_is_turned_round_by_turning_the_classes(seed, n):
    rng = np.random.default_rng(seed)
    score, positive, weights = rng.integers(0, 6, n) / 5, rng.random(n) < 0.5, rng.integers(0, 3, (4, n)).astype(float)
    there, back = ranking(score, positive, weights)[0], ranking(score, ~positive, weights)[0]
    pairs = [[w[i] * w[j] * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
              for i in range(n) for j in range(n) if positive[i] and not positive[j]] for w in weights]  # fmt: skip
    sizes = [w[positive].sum() * w[~positive].sum() for w in weights]
    wanted = [sum(pair) / size if size else math.nan for pair, size in zip(pairs, sizes)]
    assert there.tolist() == pytest.approx(wanted, nan_ok=True)
    assert (1 - back).tolist() == pytest.approx(wanted, nan_ok=True)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 25))
@settings(max_examples=50, deadline=None)
def test_f1_and_mcc_of_few_rows_agree_with_scikit_learn(seed, classes, n):
    """Also of classes that few rows or draws hold; undefined where a draw lacks a class to be found."""
    rng = np.random.default_rng(seed)
    truth, decided = rng.integers(0, classes, (2, n)) // rng.integers(1, 3, (2, 1))
    weights = np.r_[np.ones((1, n)), rng.integers(0, 3, (3, n))]
    found = Classification(truth, "abcde"[:classes], decided=decided)(weights)
    judged = [1] if classes == 2 else [c for c in np.unique(truth) if len(np.unique(truth)) > 1]
    for w, f1, mcc in zip(weights, found["f1"], found["mcc"]):
        rows = np.repeat(np.arange(n), w.astype(int))
        here = set(truth[rows].tolist())
        if len(here) < 2:
            assert math.isnan(mcc)
        else:
            assert mcc == pytest.approx(metrics.matthews_corrcoef(truth[rows], decided[rows]), abs=1e-12)
        if not judged or not here.issuperset(judged):
            assert math.isnan(f1)
        else:
            of_each = metrics.f1_score(truth[rows], decided[rows], labels=judged, average=None, zero_division=0)
            assert f1 == pytest.approx(of_each.mean(), abs=1e-12)


@pytest.mark.parametrize(("one", "missing"), [(0, {"sensitivity", "f1"}), (1, {"specificity"})])
def test_one_class_leaves_undefined_what_needs_both_and_says_why(one, missing):
    measure = Classification([one] * 5, TWO, binary([0.2, 0.4, 0.6, 0.8, 0.9]))
    point = measure.point()
    undefined = {name for name, value in point.items() if math.isnan(value)}
    assert undefined == set(measure.notes) == {"balanced_accuracy", "mcc", "auroc", "auprc"} | missing
    assert set(measure.notes.values()) == {f"undefined: all 5 are {TWO[one]}"}
    assert point["accuracy"] == (0.6 if one else 0.4)


def test_a_class_that_is_absent_is_left_out_of_the_average_and_named():
    truth, p, weights = drawn(2, 40)
    three = Classification(truth, THREE, np.c_[p, np.zeros(40)])
    assert three.notes["auroc"] == "without HCM, of which there is none"
    pairs = [metrics.roc_auc_score(truth == c, p[:, c]) for c in (0, 1)]
    assert three.point()["auroc"] == pytest.approx(np.mean(pairs))
    gone = weights[:1] * (truth == 0)  # a draw without one of the two
    assert math.isnan(three(gone)["auroc"][0]) and math.isnan(three(gone)["balanced_accuracy"][0])
    alone = Classification([2, 2], THREE, np.full((2, 3), 1 / 3))
    assert math.isnan(alone.point()["auroc"]) and math.isnan(alone.point()["f1"])
    assert alone.notes["sensitivity"] == "undefined: all 2 are HCM"


@pytest.mark.parametrize(
    ("truth", "probabilities", "words"),
    [
        ([0, 2], binary([0.5, 0.5]), "truth needs 2 indices below 2"),
        ([0, 1], np.ones((2, 3)) / 3, r"expected shape \(2, K\)"),
        ([0, 1], binary([0.5, math.nan]), "sum over the classes is 1"),
        ([0, 1], np.ones((2, 2)), "sum over the classes is 1"),
        ([0, 1], None, "got neither"),
    ],
)
def test_what_does_not_fit_is_named(truth, probabilities, words):
    with pytest.raises(ValueError, match=words):
        Classification(truth, TWO, probabilities)
