"""The weighted k-NN against scikit-learn's neighbours with the same weights."""

import numpy as np
import pytest

from cinema_fast.metrics import knn
from cinema_fast.metrics.knn import TEMPERATURE, weighted_knn


@pytest.mark.parametrize("near", [1, 6, 99])
def test_as_scikit_learn(monkeypatch, near):
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(knn, "ROWS", 7)  # several parts, the last of them smaller
    rng = np.random.default_rng(0)
    features, test = rng.standard_normal((40, 5)) + 1, rng.standard_normal((17, 5)) + 1
    how = {"metric": "cosine", "algorithm": "brute", "weights": lambda distance: np.exp(-distance / TEMPERATURE)}
    values = rng.standard_normal((40, 2))
    model = neighbors.KNeighborsRegressor(min(near, 40), **how).fit(features, values)
    np.testing.assert_allclose(weighted_knn(features, values, test, near), model.predict(test), rtol=1e-9)
    classes = rng.integers(0, 3, 40)
    model = neighbors.KNeighborsClassifier(min(near, 40), **how).fit(features, classes)
    votes = weighted_knn(features, np.eye(3)[classes], test, near)
    np.testing.assert_allclose(votes, model.predict_proba(test), rtol=1e-9, atol=1e-12)
    assert TEMPERATURE == 0.07


def test_a_feature_of_length_zero_is_as_near_as_a_right_angle():
    found = weighted_knn(np.array([[0.0, 0], [0, 3]]), np.array([[1.0], [3.0]]), np.array([[2.0, 0]]), 2)
    np.testing.assert_array_equal(found, [[2.0]])
