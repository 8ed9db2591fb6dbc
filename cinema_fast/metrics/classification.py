"""Metrics of classification: accuracy, ranking, calibration."""

from collections.abc import Sequence

import numpy as np

from ..common.extras import need
from .bootstrap import Measure
from .means import over

BINS = 10


class Classification(Measure):
    """accuracy, balanced_accuracy, sensitivity, specificity, f1, mcc, auroc, auprc, brier, ece of n rows.

    Args:
        truth (n,) int: index into `classes`. classes: K >= 2 names; of two, the second is the positive one.
        probabilities (n, K), each row of sum 1; None where only decisions are known: then no ranking or calibration.
        decided (n,) int: by default the positive class where its probability is at least `threshold`; with more than
        two classes the most probable one.

    With more than two classes sensitivity, specificity, f1, auroc and auprc are one class against the rest, averaged
    over the classes that the rows hold (macro). mcc is Matthews' correlation coefficient, -1 to 1, for more than two
    classes as Gorodkin (Comput. Biol. Chem. 2004); it is 0 where all decisions are the same. brier is the mean square
    of the probability error: of the positive class, or summed over more than two classes. ece is the expected
    calibration error over BINS bins of equal width: of the positive class's probability, or of the most probable
    class's (Guo et al. 2017). Metrics that need a second class are nan where there is only one, with the reason in
    `notes`. Raises ValueError for shapes, indices or probabilities that do not fit.
    """

    def __init__(
        self,
        truth: Sequence[int],
        classes: Sequence[str],
        probabilities: np.ndarray | None = None,
        decided: Sequence[int] | None = None,
        threshold: float = 0.5,
    ):
        truth = np.asarray(truth, int)
        self.n, k = len(truth), len(classes)
        self.p = None if probabilities is None else checked(probabilities, self.n, classes)
        if self.p is None and decided is None:
            raise ValueError("classification: expected probabilities or decisions, got neither")
        self.decided = decide(self.p, threshold) if decided is None else np.asarray(decided, int)
        for name, values in (("truth", truth), ("decided", self.decided)):
            if len(values) != self.n or ((values < 0) | (values >= k)).any():
                raise ValueError(f"classification: {name} needs {self.n} indices below {k}, of {list(classes)}")
        self.truth, self.classes, self.binary = truth, tuple(classes), k == 2
        counts = np.bincount(truth, minlength=k)
        # with more than two classes: those that some rows hold, but not all
        self.judged = [1] if self.binary else [c for c in range(k) if 0 < counts[c] < self.n]
        self.present = np.flatnonzero(counts)
        self.used, self.notes = {}, self._reasons(counts)

    def _reasons(self, counts: np.ndarray) -> dict[str, str]:
        ranking, calibration = ("auroc", "auprc"), ("brier", "ece")
        notes = {} if self.p is not None else dict.fromkeys(ranking + calibration, "undefined: no probabilities")
        if len(self.present) == 1:
            one = f"undefined: all {self.n} are {self.classes[self.present[0]]}"
            sides = ["sensitivity", "specificity", "f1"]
            if self.binary:  # the share of hits in the existing class is defined
                sides = ["specificity"] if counts[1] else ["sensitivity", "f1"]
            notes = dict.fromkeys(["balanced_accuracy", *sides, "mcc", *ranking], one) | notes
        elif not self.binary and (absent := [c for c, n in zip(self.classes, counts) if not n]):
            left = f"without {', '.join(absent)}, of which there is none"
            notes = dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity", "f1", *ranking), left) | notes
        return notes

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        n, nothing = weights.sum(1), np.full(len(weights), np.nan)
        right = self.decided == self.truth
        recalls = [self._share(weights, right, self.truth == c) for c in self.present]
        sensitivity = [self._share(weights, right, self.truth == c) for c in self.judged]
        specificity = [self._share(weights, self.decided != c, self.truth != c) for c in self.judged]
        found = {
            "accuracy": over(weights @ right.astype(float), n),
            "balanced_accuracy": np.mean(recalls, 0) if len(recalls) > 1 else nothing,
            "sensitivity": np.mean(sensitivity, 0) if sensitivity else nothing,
            "specificity": np.mean(specificity, 0) if specificity else nothing,
            **self._of_confusion(weights),
        }
        if self.p is None or not self.n:
            return found | dict.fromkeys(("auroc", "auprc", "brier", "ece"), nothing)
        ranks = [ranking(self.p[:, c], self.truth == c, weights) for c in self.judged]
        auroc, auprc = np.mean(ranks, 0) if ranks else (nothing, nothing)
        return found | {
            "auroc": auroc,
            "auprc": auprc,
            "brier": over(weights @ self.squares(), n),
            "ece": self._ece(weights, n),
        }

    def _of_confusion(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """f1 and mcc, from the weight (R, K) of every class that is true, is decided, and is both."""
        n, one_hot = weights.sum(1), np.eye(len(self.classes))
        truth, decided = one_hot[self.truth], one_hot[self.decided]
        true, said, hits = weights @ truth, weights @ decided, weights @ (truth * decided)
        f1 = [np.where(true[:, c] > 0, over(2 * hits[:, c], true[:, c] + said[:, c]), np.nan) for c in self.judged]
        varied = [n**2 - (side**2).sum(1) for side in (true, said)]  # 0 where all are of one class
        mcc = over(hits.sum(1) * n - (true * said).sum(1), np.sqrt(varied[0] * varied[1]))
        mcc[(varied[0] > 0) & (varied[1] <= 0)] = 0
        return {"f1": np.mean(f1, 0) if f1 else np.full(len(weights), np.nan), "mcc": mcc}

    def point(self) -> dict[str, float]:
        """The numbers with weights 1; AUROC and AUPRC by scikit-learn, where they are defined."""
        found = super().point()
        if self.p is None or len(self.present) < 2:
            return found
        metrics = need("sklearn.metrics", "AUROC and AUPRC are computed")
        pairs = [(self.truth == c, self.p[:, c]) for c in self.judged]
        return found | {
            "auroc": float(np.mean([metrics.roc_auc_score(*pair) for pair in pairs])),
            "auprc": float(np.mean([metrics.average_precision_score(*pair) for pair in pairs])),
        }

    def squares(self) -> np.ndarray:
        """(n,) square error of the probabilities."""
        error = self.p - np.eye(len(self.classes))[self.truth]
        return error[:, 1] ** 2 if self.binary else (error**2).sum(1)

    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) the probability used for calibration, and (n,) bool whether its class is true."""
        if self.binary:
            return self.p[:, 1], self.truth == 1
        return self.p.max(1), self.p.argmax(1) == self.truth

    def reliability(self) -> dict[str, np.ndarray]:
        """Reliability curve over the bins that are not empty: {predicted, observed, n}, each (bins,)."""
        p, came = self.confidence()
        n = np.bincount(_bin(p), minlength=BINS)
        sums = [np.bincount(_bin(p), weights=values, minlength=BINS)[n > 0] for values in (p, came.astype(float))]
        return {"predicted": sums[0] / n[n > 0], "observed": sums[1] / n[n > 0], "n": n[n > 0]}

    def _ece(self, weights: np.ndarray, n: np.ndarray) -> np.ndarray:
        p, came = self.confidence()
        gaps = np.eye(BINS)[_bin(p)] * (came - p)[:, None]
        return over(np.abs(weights @ gaps).sum(1), n)

    def _share(self, weights: np.ndarray, hit: np.ndarray, among: np.ndarray) -> np.ndarray:
        return over(weights[:, among] @ hit[among].astype(float), weights[:, among].sum(1))


def ranking(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and AUPRC (average precision), each (R,), of scores (n,) and bool (n,) under weights (R, n).

    Equal scores share one threshold and count half, as in scikit-learn; nan where a class has no weight.
    """
    order = np.argsort(-score, kind="stable")
    score, w = score[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    hits, misses = (np.add.reduceat(w * side[order], starts, axis=1) for side in (positive, ~positive))
    all_hits, all_misses = hits.sum(1), misses.sum(1)
    below = all_misses[:, None] - misses.cumsum(1)
    auroc = over((hits * (below + misses / 2)).sum(1), all_hits * all_misses)
    found = hits.cumsum(1)
    precision = over(found, found + misses.cumsum(1))
    auprc = over((hits * np.nan_to_num(precision)).sum(1), all_hits)
    return auroc, np.where(np.isnan(auroc), np.nan, auprc)


def decide(p: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) int: of two classes the second where its p is at least the threshold; of more the most probable one."""
    return (p[:, 1] >= threshold).astype(int) if p.shape[1] == 2 else p.argmax(1)


def checked(probabilities: np.ndarray, n: int, classes: Sequence[str]) -> np.ndarray:
    """The probabilities as (n, K) float64; ValueError where they have another shape, or are not probabilities."""
    p = np.asarray(probabilities, float)
    if p.shape != (n, len(classes)) or len(classes) < 2:
        raise ValueError(f"probabilities: expected shape ({n}, K) of K >= 2 classes {list(classes)}, got {p.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("probabilities: expected numbers of 0 or more whose sum over the classes is 1")
    return p


def _bin(p: np.ndarray) -> np.ndarray:
    """Index among BINS bins of equal width in 0..1; the upper edge belongs to a bin, as in scikit-learn."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p)
