"""Probes of frozen features: linear, DINO's weighted k-NN, and a constant baseline without features.

Labels (n,) are float64 to regress, or words to classify. Test labels are used only for the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..metrics.bootstrap import Measure
from ..metrics.classification import Classification
from ..metrics.regression import Agreement

SCORES = ("mae", "rmse", "r2", "accuracy", "balanced_accuracy", "auroc")
PENALTIES = np.logspace(-4, 4, 9)  # alpha of ridge regression; C, an inverse penalty, of logistic regression
FOLDS = 5
TEMPERATURE = 0.07  # Caron et al. 2021, as in Wu et al. 2018


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
    return _probe(search, labels, test_features, test_labels, 1 / chosen if classified else chosen)


def knn_probe(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = 20,
    seed: int = 0,
) -> Probe:
    """The mean, or vote, of the nearest training studies by cosine, weighted by exp(cosine / TEMPERATURE).

    Features (n, D) are not standardised. Where there are fewer training studies than `neighbours`, all are used.
    Nothing is random: `seed` has no effect.
    """
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsClassifier if _classified(labels) else KNeighborsRegressor
    model = kind(
        min(neighbours, len(labels)), metric="cosine", algorithm="brute",
        weights=lambda distances: np.exp(-distances / TEMPERATURE),  # the factor exp(1 / TEMPERATURE) cancels
    )  # fmt: skip
    return _probe(model.fit(features, labels), labels, test_features, test_labels)


def constant_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, *, seed: int = 0
) -> Probe:
    """The mean of the training labels, or their commonest class: what a probe has to beat. `seed` has no effect."""
    from sklearn.dummy import DummyClassifier, DummyRegressor

    model = DummyClassifier(strategy="prior") if _classified(labels) else DummyRegressor()
    return _probe(model.fit(features, labels), labels, test_features, test_labels)


def probes(neighbours: int) -> dict[str, Callable[..., Probe]]:
    """All probes by name."""
    return {"linear": linear_probe, "knn": partial(knn_probe, neighbours=neighbours), "constant": constant_probe}


def _classified(labels: np.ndarray) -> bool:
    return labels.dtype.kind not in "fiu"


def _probe(model, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, penalty=None) -> Probe:
    predictions = model.predict(test_features)
    if not _classified(labels):
        measure = Agreement(predictions, test_labels)
        return Probe(predictions, None, (), measure, len(labels), len(test_labels), penalty)
    probabilities, classes = model.predict_proba(test_features), tuple(map(str, model.classes_))
    if unknown := sorted(set(test_labels.tolist()) - set(classes)):
        raise ValueError(f"class {unknown[0]!r} of a test study occurs in no training study")
    truth, decided = (np.searchsorted(model.classes_, words) for words in (test_labels, predictions))
    measure = Classification(truth, classes, probabilities, decided)
    return Probe(predictions, probabilities, classes, measure, len(labels), len(test_labels), penalty)
