"""Scores that are means over rows: overlap of label maps, distance of landmarks."""

from collections.abc import Mapping, Sequence

import numpy as np

from .bootstrap import Measure


class Means(Measure):
    """Mean of each score over the rows that have it.

    scores: {name: (n,)}. nan: nothing to evaluate, the row is left out. inf: a failure (only one of prediction and
    truth has the structure, so there is no distance); it is left out of the mean too. `notes` count both.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]]):
        self.scores = {name: np.asarray(values, float) for name, values in scores.items()}
        self.n = len(next(iter(self.scores.values())))
        self.used = {name: np.isfinite(values) for name, values in self.scores.items()}
        self.notes = {name: note for name, values in self.scores.items() if (note := _note(values))}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, values in self.scores.items():
            used = self.used[name]
            found[name] = over(weights[:, used] @ values[used], weights[:, used].sum(1))
        return found


def over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient of two arrays of one shape; nan where the denominator is not above 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def landmark_scores(pred_mm: Sequence[float], truth_mm: Sequence[float], within_mm: Sequence[float]) -> dict:
    """{distance_mm, within_<r>_mm: 1 or 0 for each radius r} of one landmark at positions (2 or 3,) [mm].

    A landmark that was not found has a position of nan: an infinite distance, and a failure at every radius.
    Raises ValueError where the positions differ in length or the true one is not finite.
    """
    pred, truth = np.asarray(pred_mm, float), np.asarray(truth_mm, float)
    if pred.shape != truth.shape or not np.isfinite(truth).all():
        raise ValueError(f"landmark: expected finite positions of one length, got truth {truth_mm}, pred {pred_mm}")
    distance = float(np.linalg.norm(pred - truth)) if np.isfinite(pred).all() else np.inf
    return {"distance_mm": distance} | {f"within_{radius:g}_mm": float(distance <= radius) for radius in within_mm}


def _note(values: np.ndarray) -> str:
    empty, failed = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    parts = [f"{failed} of {len(values) - empty} failed (nothing was measured), left out of the mean"] if failed else []
    return "; ".join([*parts, f"{empty} without this structure left out"] if empty else parts)
