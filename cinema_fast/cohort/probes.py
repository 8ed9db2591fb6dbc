"""Probes of frozen features: linear, DINO's weighted k-NN, and a constant baseline without features.

Labels (n,) are float64 to regress, or words to classify. Test labels are used only for the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..metrics.bootstrap import Measure
from ..metrics.classification import Classification
from ..metrics.knn import NEIGHBOURS, weighted_knn
from ..metrics.regression import Agreement

SCORES = ("mae", "rmse", "r2", "accuracy", "balanced_accuracy", "auroc")
PENALTIES = np.logspace(-4, 4, 9)  # alpha of ridge regression; C, an inverse penalty, of logistic regression
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """The predictions of a probe, and their scores.

    predictions (n_test,): numbers or words. probabilities (n_test, classes) in the order of `classes`; None for
    numbers. measure: an Agreement or a Classification on the test labels. penalty: the one chosen for a linear probe.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None
    classes: tuple[str, ...]
    measure: Measure
    n_train: int
    n_test: int
    penalty: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """SCORES on the test labels, nan where they do not define one."""
        found = self.measure.point()
        return {name: found[name] for name in SCORES if name in found}


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, *, seed: int = 0
) -> Probe:
    """Ridge or logistic regression on features (n, D), standardised.

    The penalty is the best of PENALTIES by squared error or log loss in cross-validation on the training studies; each
    fold is standardised on its own. seed: of the folds.

    Raises ValueError where there are fewer than two training studies, or fewer than two of a class.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classified = _classified(labels)
    if classified:
        model, name, scoring = LogisticRegression(max_iter=5000), "logisticregression__C", "neg_log_loss"
        found, counts = np.unique(labels, return_counts=True)
        few = int(counts.min())
        if len(found) < 2:
            raise ValueError(f"all {len(labels)} training studies are of class {str(found[0])!r}")
        if few < 2:
            raise ValueError(f"class {str(found[counts.argmin()])!r} has {few} training study; expected two or more")
        folds = StratifiedKFold(min(FOLDS, few), shuffle=True, random_state=seed)
    else:
        model, name, scoring = Ridge(), "ridge__alpha", "neg_mean_squared_error"
        if len(labels) < 2:
            raise ValueError(f"{len(labels)} training study; expected two or more")
        folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed)
    search = GridSearchCV(make_pipeline(StandardScaler(), model), {name: PENALTIES}, scoring=scoring, cv=folds)
    search.fit(features, labels)
    chosen = float(search.best_params_[name])
    return _fitted(search, labels, test_features, test_labels, 1 / chosen if classified else chosen)


def knn_probe(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> Probe:
    """The mean, or vote, of the nearest training studies, by `metrics.knn.weighted_knn`.

    Features (n, D) are not standardised. Where there are fewer training studies than `neighbours`, all are used.
    Nothing is random: `seed` has no effect.
    """
    if not _classified(labels):
        predictions = weighted_knn(features, labels[:, None], test_features, neighbours)[:, 0]
        return _regressed(predictions, labels, test_labels)
    classes, targets = np.unique(labels, return_inverse=True)
    votes = weighted_knn(features, np.eye(len(classes))[targets], test_features, neighbours)
    return _voted(votes, classes, labels, test_labels)


def constant_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, *, seed: int = 0
) -> Probe:
    """The mean of the training labels, or their commonest class: what a probe has to beat. `seed` has no effect."""
    from sklearn.dummy import DummyClassifier, DummyRegressor

    model = DummyClassifier(strategy="prior") if _classified(labels) else DummyRegressor()
    return _fitted(model.fit(features, labels), labels, test_features, test_labels)


def probes(neighbours: int) -> dict[str, Callable[..., Probe]]:
    """All probes by name."""
    return {"linear": linear_probe, "knn": partial(knn_probe, neighbours=neighbours), "constant": constant_probe}


def _classified(labels: np.ndarray) -> bool:
    return labels.dtype.kind not in "fiu"


def _fitted(model, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, penalty=None) -> Probe:
    if not _classified(labels):
        return _regressed(model.predict(test_features), labels, test_labels, penalty)
    return _voted(model.predict_proba(test_features), model.classes_, labels, test_labels, penalty)


def _regressed(predictions: np.ndarray, labels: np.ndarray, test_labels: np.ndarray, penalty=None) -> Probe:
    return Probe(predictions, None, (), Agreement(predictions, test_labels), len(labels), len(test_labels), penalty)


def _voted(
    probabilities: np.ndarray, classes: np.ndarray, labels: np.ndarray, test_labels: np.ndarray, penalty=None
) -> Probe:
    """classes: ascending."""
    names = tuple(map(str, classes))
    if unknown := sorted(set(test_labels.tolist()) - set(names)):
        raise ValueError(f"class {unknown[0]!r} of a test study occurs in no training study")
    decided = probabilities.argmax(1)
    measure = Classification(np.searchsorted(classes, test_labels), names, probabilities, decided)
    return Probe(classes[decided], probabilities, names, measure, len(labels), len(test_labels), penalty)
