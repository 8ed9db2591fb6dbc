"""Bootstrap intervals over studies, and permutation tests between two sets of predictions.

Studies are resampled, not rows: frames and classes of one heart are not independent, so the rows of a study are drawn
together. A draw is a weight per row, and a Measure turns weights into numbers. All draws are computed at once, in parts
of bounded size. They are a function of the seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_PART = 4_000_000  # numbers in a part of the weights: 32 MB
_LEAST = 0.5  # a number gets an interval if at least this share of the draws defines it


class Measure(ABC):
    """Numbers of a fixed set of rows, under weights of the rows.

    n: number of rows. notes: {name: why it is undefined, or what it leaves out}. used: {name: (n,) bool, the rows that
    it is computed from}; absent: all.
    """

    n: int
    notes: dict[str, str]
    used: dict[str, np.ndarray]

    @abstractmethod
    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """weights (R, n) float64 >= 0 -> {name: (R,)}; nan where the rows with weight do not define it."""

    def point(self) -> dict[str, float]:
        """The numbers with weight 1 for every row."""
        return {name: float(value[0]) for name, value in self(np.ones((1, self.n))).items()}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None is undefined, and `note` says why.

    n: number of rows behind it, from `studies` studies.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    studies: int
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """second - first of a number over the same rows, with its 95 % interval and two-sided p; None is undefined, and
    `note` says why."""

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    studies: int
    note: str = ""


def estimate(measure: Measure, studies: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """{name: Estimate}, by the percentiles of `resamples` draws of the studies with replacement.

    studies (n,): the study of each row. There is no interval where fewer than two studies define a number, or fewer
    than half of the draws.
    Raises ValueError where studies and rows differ in number. Source: Efron and Tibshirani 1993, chapter 13.
    """
    of, names = _numbered(studies, measure.n)
    drawn = _stack(measure(weights) for weights in draw_studies(of, len(names), resamples, seed))
    found = {}
    for name, value in measure.point().items():
        used = measure.used.get(name, np.ones(measure.n, bool))
        n_studies = len(set(of[used].tolist()))
        low, high, note = _interval(drawn[name], n_studies)
        notes = [part for part in (measure.notes.get(name, ""), note) if part]
        found[name] = Estimate(_or_none(value), low, high, int(used.sum()), n_studies, "; ".join(notes))
    return found


def difference(
    first: Measure, second: Measure, both: Measure, studies: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """{name: Difference} of two measures of the same rows in the same order.

    both: the measure of the rows of `first` followed by those of `second`. The interval comes from draws of studies,
    the same for both sets. p comes from a permutation test: in each of `resamples` rounds the two sets are swapped in a
    random half of the studies; for a mean over studies this is the sign-flip test. The least p is 1 / (resamples + 1).
    Raises ValueError where the rows do not fit.
    """
    if not first.n == second.n == both.n / 2:
        raise ValueError(f"expected as many rows in `first` as in `second`, and all of them in `both`; got "
                         f"{first.n}, {second.n} and {both.n}")  # fmt: skip
    of, names = _numbered(studies, first.n)
    drawn = [_stack(m(weights) for weights in draw_studies(of, len(names), resamples, seed)) for m in (first, second)]
    swapped = _stack(_swap(both, weights) for weights in swap_studies(of, len(names), resamples, seed))
    values, others, found = first.point(), second.point(), {}
    for name, value in values.items():
        change = others[name] - value
        used = first.used.get(name, np.ones(first.n, bool))
        n_studies = len(set(of[used].tolist()))
        low, high, note = _interval(drawn[1][name] - drawn[0][name], n_studies)
        chance = swapped[name][~np.isnan(swapped[name])]
        # rounding must not make a swapped difference that equals the one found look smaller
        extreme = np.abs(chance) >= abs(change) * (1 - 1e-9)
        p = (1 + extreme.sum()) / (1 + len(chance)) if n_studies > 1 and np.isfinite(change) else np.nan
        notes = [part for part in (first.notes.get(name, ""), second.notes.get(name, ""), note) if part]
        found[name] = Difference(
            _or_none(value), _or_none(others[name]), _or_none(change), low, high, _or_none(p),
            int(used.sum()), n_studies, "; ".join(dict.fromkeys(notes)),
        )  # fmt: skip
    return found


def draw_studies(of: np.ndarray, n_studies: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (R, n) of rows, in parts: how often each study occurs among n_studies drawn with replacement.

    of (n,) int: the study of each row.
    """
    random = np.random.default_rng((seed, 0))
    for size in _parts(resamples, max(len(of), n_studies)):
        picked = random.integers(0, n_studies, (size, n_studies)) + n_studies * np.arange(size)[:, None]
        times = np.bincount(picked.ravel(), minlength=size * n_studies).reshape(size, n_studies)
        yield times[:, of].astype(float)


def swap_studies(of: np.ndarray, n_studies: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(R, n) float64 of 0 and 1, in parts: 1 where the study of the row is swapped."""
    random = np.random.default_rng((seed, 1))
    for size in _parts(resamples, max(len(of), n_studies)):
        yield random.integers(0, 2, (size, n_studies))[:, of].astype(float)


def _swap(both: Measure, swap: np.ndarray) -> dict[str, np.ndarray]:
    first, second = both(np.hstack([1 - swap, swap])), both(np.hstack([swap, 1 - swap]))
    return {name: second[name] - first[name] for name in first}


def _interval(drawn: np.ndarray, n_studies: int) -> tuple[float | None, float | None, str]:
    """Percentiles of the draws (R,), and a note on the undefined ones."""
    known = drawn[~np.isnan(drawn)]
    if n_studies < 2:
        return None, None, "no interval: one study" if n_studies == 1 else ""
    left = 1 - len(known) / len(drawn)
    note = f"{left:.1%} of the bootstrap resamples are undefined" if left else ""
    if len(known) < max(_LEAST * len(drawn), 1):
        return None, None, f"no interval: {note}"
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high), note


def _numbered(studies: Sequence[str], n: int) -> tuple[np.ndarray, list[str]]:
    """Each row's study as a number, in order of first occurrence, so that it does not depend on the names."""
    if len(studies) != n:
        raise ValueError(f"expected the study of each of {n} rows, got {len(studies)}")
    numbers: dict[str, int] = {}
    of = np.array([numbers.setdefault(study, len(numbers)) for study in studies], int)
    return of, list(numbers)


def _parts(total: int, width: int) -> list[int]:
    """Sizes of parts for `total` rows of `width` numbers."""
    size = max(1, _PART // max(width, 1))
    return [stop - start for start, stop in pairwise([*range(0, total, size), total])]


def _stack(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    all_parts = list(parts)
    return {name: np.concatenate([part[name] for part in all_parts]) for name in all_parts[0]}


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
