"""Probes against scikit-learn called directly, neighbours written out, and labels that features cannot or must hold."""

import numpy as np
import pytest

from cinema_fast.cohort.probes import FOLDS, PENALTIES, constant_probe, knn_probe, linear_probe
from cinema_fast.metrics.knn import TEMPERATURE

pytest.importorskip("sklearn")


def cohort(n=120, width=12, seed=0):
    """Features, numbers and three classes that follow from them linearly but for noise."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, width)) * np.logspace(-1, 2, width) + 3
    signal = ((features - 3) / np.logspace(-1, 2, width)) @ rng.standard_normal((width, 2))
    numbers = 50 + 5 * signal[:, 0] + rng.standard_normal(n)
    return features, numbers, np.array(["a", "b", "c"])[np.digitize(signal[:, 1], [-1, 1])]


def parts(x, labels, at=80):
    return x[:at], labels[:at], x[at:], labels[at:]


def standardised(train, test):
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def folds_of(kind, train, labels, seed):
    return list(kind(FOLDS, shuffle=True, random_state=seed).split(train, labels))


def test_ridge_in_closed_form():
    """The penalty by folds written out, and the normal equations at it."""
    from sklearn.model_selection import KFold

    features, numbers, _ = cohort()
    train, y, test, truth = parts(features, numbers)

    def ridge(a, labels, b, penalty):
        a, b = standardised(a, b)
        mean = labels.mean()
        return b @ np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ (labels - mean)) + mean

    def error(penalty):
        return np.mean([((ridge(train[a], y[a], train[b], penalty) - y[b]) ** 2).mean()
                        for a, b in folds_of(KFold, train, y, 7)])

    best = min(PENALTIES, key=error)
    found = linear_probe(train, y, test, truth, seed=7)
    assert found.penalty == pytest.approx(best)
    expected = ridge(train, y, test, best)
    np.testing.assert_allclose(found.predictions, expected, rtol=1e-8)
    assert found.scores["mae"] == pytest.approx(np.abs(expected - truth).mean())
    r2 = 1 - ((expected - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert found.scores["r2"] == pytest.approx(r2) and r2 > 0.9
    assert (found.n_train, found.n_test) == (80, 40)


def test_logistic_regression_as_scikit_learn_does_it():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    features, _, words = cohort()
    train, y, test, truth = parts(features, words)

    def fit(a, labels, b, penalty):
        a, b = standardised(a, b)
        return LogisticRegression(C=1 / penalty, max_iter=5000).fit(a, labels).predict_proba(b)

    def loss(penalty):
        folds = folds_of(StratifiedKFold, train, y, 7)
        return np.mean([log_loss(y[b], fit(train[a], y[a], train[b], penalty), labels=["a", "b", "c"])
                        for a, b in folds])

    found = linear_probe(train, y, test, truth, seed=7)
    assert found.penalty == pytest.approx(min(PENALTIES, key=loss)) and found.classes == ("a", "b", "c")
    expected = fit(train, y, test, found.penalty)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found.predictions, np.array(["a", "b", "c"])[expected.argmax(1)])
    assert found.scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found.predictions))
    assert found.scores["auroc"] == pytest.approx(roc_auc_score(truth, expected, multi_class="ovr"))
    assert found.scores["accuracy"] > 0.8


def test_the_test_part_changes_no_fit():
    features, numbers, words = cohort()
    for labels in (numbers, words):
        train, y, test, truth = parts(features, labels)
        whole = linear_probe(train, y, test, truth)
        half = linear_probe(train, y, test[:20], truth[:20])
        assert whole.penalty == half.penalty
        np.testing.assert_array_equal(whole.predictions[:20], half.predictions)


def weights_of(train, test, k):
    """(tests, k) neighbours by cosine, and their weights."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (test, train)]
    cosine = unit[0] @ unit[1].T
    nearest = np.argsort(-cosine, axis=1)[:, :k]
    return nearest, np.exp(np.take_along_axis(cosine, nearest, 1) / TEMPERATURE)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_neighbours_written_out(k):
    features, numbers, words = cohort()
    train, y, test, truth = parts(features, numbers)
    nearest, weight = weights_of(train, test, k)
    found = knn_probe(train, y, test, truth, neighbours=k)
    np.testing.assert_allclose(found.predictions, (weight * y[nearest]).sum(1) / weight.sum(1), rtol=1e-9)
    _, y, _, truth = parts(features, words)
    found = knn_probe(train, y, test, truth, neighbours=k)
    votes = np.stack([(weight * (y[nearest] == name)).sum(1) for name in "abc"], axis=1)
    np.testing.assert_allclose(found.probabilities, votes / votes.sum(1, keepdims=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.predictions, np.array(list("abc"))[votes.argmax(1)])


def test_a_nearer_neighbour_outvotes_two_others():
    """Cosines 1, 0.9 and 0.9: 1 against 2 exp(-0.1 / 0.07)."""
    side = np.sqrt(1 - 0.9**2)
    train = np.array([[2.0, 0, 0], [0.9, side, 0], [0.9, 0, side]])
    found = knn_probe(train, np.array(["x", "y", "y"]), np.array([[5.0, 0, 0]]), np.array(["x"]))
    other = 2 * np.exp(-0.1 / 0.07)
    np.testing.assert_allclose(found.probabilities, [[1 / (1 + other), other / (1 + other)]])
    assert found.predictions[0] == "x" and np.isnan(found.scores["auroc"])


def test_predictions_without_features():
    features, numbers, words = cohort()
    train, y, test, truth = parts(features, numbers)
    assert (constant_probe(train, y, test, truth).predictions == y.mean()).all()
    _, y, _, truth = parts(features, words)
    found = constant_probe(train, y, test, truth)
    shares = [(y == name).mean() for name in "abc"]
    np.testing.assert_allclose(found.probabilities, np.tile(shares, (40, 1)))
    assert found.scores["auroc"] == 0.5 and found.scores["balanced_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["a"] * 8, "all 8 training studies are of class 'a'"),
        (["a"] * 7 + ["b"], "class 'b' has 1 training study; expected two or more"),
        ([1.0], "1 training study; expected two or more"),
    ],
)
def test_training_parts_that_cannot_be_fitted(labels, match):
    labels = np.array(labels)
    with pytest.raises(ValueError, match=match):
        linear_probe(np.eye(8)[: len(labels)], labels, np.eye(8), labels)


def test_a_class_that_was_never_trained():
    with pytest.raises(ValueError, match="class 'c' of a test study occurs in no training study"):
        knn_probe(np.eye(4), np.array(list("aabb")), np.eye(4), np.array(list("aabc")))
