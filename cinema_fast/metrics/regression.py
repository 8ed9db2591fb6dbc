"""Agreement of predicted numbers with true ones, and of repeated measurements with each other."""

from collections.abc import Sequence

import numpy as np

from .bootstrap import Measure
from .means import over

_CONSTANT = 1e-12  # a smaller variance, relative to the largest square, is rounding


class Agreement(Measure):
    """mae, rmse, r2, correlation (Pearson), bias and 95 % limits of agreement of pred (n,) and truth (n,).

    bias is the mean of pred - truth, the limits are bias -+ 1.96 sd (divisor n - 1; Bland and Altman, Lancet 1986).

    Rows where either is not finite are left out and counted in `notes`, as failed where the prediction is inf. r2 and
    correlation are undefined where the truth is constant, correlation also where the prediction is; limits of agreement
    need two rows.
    """

    def __init__(self, pred: Sequence[float], truth: Sequence[float]):
        pred, truth = np.asarray(pred, float), np.asarray(truth, float)
        self.n = len(truth)
        self.known = np.isfinite(pred) & np.isfinite(truth)
        middle = truth[self.known].mean() if self.known.any() else 0.0
        # relative to the middle: squares of large values would lose the digits in which they differ
        self.pred, self.truth = pred[self.known] - middle, truth[self.known] - middle
        self.used = dict.fromkeys(("mae", "rmse", "bias", "loa_low", "loa_high", "r2", "correlation"), self.known)
        failed = int((np.isinf(pred) & np.isfinite(truth)).sum())
        undefined = self.n - int(self.known.sum()) - failed
        parts = [f"{failed} of {self.n - undefined} failed (nothing was measured), left out of the mean"] * bool(failed)
        parts += [f"{undefined} of {self.n} are undefined and left out"] * bool(undefined)
        self.notes = dict.fromkeys(self.used, "; ".join(parts)) if parts else {}
        for name, values in {"truth": (self.truth,), "truth or the prediction": (self.truth, self.pred)}.items():
            if self.known.any() and any(np.ptp(v) == 0 for v in values):
                for metric in ("r2", "correlation") if len(values) == 1 else ("correlation",):
                    self.notes.setdefault(metric, f"undefined: the {name} is constant")

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        w = weights[:, self.known]
        n = w.sum(1)
        error = self.pred - self.truth
        bias, square = over(w @ error, n), over(w @ error**2, n)
        truth_var, pred_var = (self._variance(w, n, x) for x in (self.truth, self.pred))
        covariance = over(w @ (self.pred * self.truth), n) - over(w @ self.pred, n) * over(w @ self.truth, n)
        sd = np.sqrt(over((square - bias**2).clip(0) * n, n - 1))
        return {
            "mae": over(w @ np.abs(error), n),
            "rmse": np.sqrt(square),
            "r2": 1 - over(square, truth_var),
            "correlation": over(covariance, np.sqrt(truth_var * pred_var)),
            "bias": bias,
            "loa_low": bias - 1.96 * sd,
            "loa_high": bias + 1.96 * sd,
        }

    def _variance(self, w: np.ndarray, n: np.ndarray, x: np.ndarray) -> np.ndarray:
        variance = over(w @ x**2, n) - over(w @ x, n) ** 2
        return np.where(variance > _CONSTANT * np.max(x**2, initial=0), variance, 0)


class Repeatability(Measure):
    """coefficient_of_variation, bias and limits of agreement (second - first) of two measurements (n,) of hearts.

    The coefficient, within subjects, is a fraction: sqrt(mean((a - b)^2 / 2 / mean(a, b)^2)), Bland's root mean square
    method, as the reference computes it. Pairs of which either is not finite, or whose mean is 0, are left out.
    """

    def __init__(self, first: Sequence[float], second: Sequence[float]):
        first, second = np.asarray(first, float), np.asarray(second, float)
        mean = (first + second) / 2
        self.n = len(mean)
        self.known = np.isfinite(mean) & (mean != 0)
        self.square = (first - second)[self.known] ** 2 / 2 / mean[self.known] ** 2
        self.agreement = Agreement(np.where(self.known, second, np.nan), first)
        self.used = dict.fromkeys(("coefficient_of_variation", "bias", "loa_low", "loa_high"), self.known)
        left = self.n - int(self.known.sum())
        self.notes = dict.fromkeys(self.used, f"{left} of {self.n} are undefined and left out") if left else {}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        w, agreement = weights[:, self.known], self.agreement(weights)
        variation = np.sqrt(over(w @ self.square, w.sum(1)))
        return {"coefficient_of_variation": variation} | {k: agreement[k] for k in ("bias", "loa_low", "loa_high")}
