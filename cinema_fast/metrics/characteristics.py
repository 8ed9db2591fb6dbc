"""How the studies of a cluster differ from the rest: effect sizes and tests, column by column of a table.

    numbers  mean, sd, median; Cohen's d with its 95 % interval (Hedges and Olkin 1985); Mann-Whitney test
    words    count and share of each; Cramer's V of cluster or rest against words; chi-squared test, uncorrected

The p-values of all columns and clusters are adjusted together (Benjamini and Hochberg 1995). They describe the cohort
in which the clusters were found, and are no evidence that there are clusters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

WORDS = 12  # a column with more different words holds names or free text, not groups


@dataclass(frozen=True)
class Characteristic:
    """A column compared between a cluster and the rest, with one effect and test: one line, or one line per word.

    n studies of the cluster have a value, `missing` have none. mean, sd (n - 1), median: of numbers. word, count,
    share (of n): of words. effect: positive where the cluster's mean is higher; V has no sign and no interval.
    Undefined values, such as the effect of a constant column, are None. small: an expected count of the chi-squared
    test is below 5, so p is approximate.
    """

    column: str
    cluster: int
    word: str | None
    n: int
    missing: int
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    count: int | None = None
    share: float | None = None
    measure: str = "Cohen's d"
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    test: str = "Mann-Whitney"
    p: float | None = None
    p_adjusted: float | None = None
    small: bool = False


def describe_numbers(column: str, values: np.ndarray, clusters: np.ndarray) -> list[Characteristic]:
    """A line per cluster. values (n,) float64, NaN where missing; clusters (n,) int."""
    from scipy.stats import mannwhitneyu

    lines = []
    for cluster in range(1, clusters.max() + 1):
        here, rest = (values[side & np.isfinite(values)] for side in (clusters == cluster, clusters != cluster))
        line = Characteristic(column, cluster, None, len(here), int((clusters == cluster).sum()) - len(here))
        if len(here):
            sd = float(here.std(ddof=1)) if len(here) > 1 else None
            line = replace(line, mean=float(here.mean()), sd=sd, median=float(np.median(here)))
        if (d := cohens_d(here, rest)) is not None:
            error = math.sqrt((len(here) + len(rest)) / (len(here) * len(rest)) + d**2 / (2 * (len(here) + len(rest))))
            low, high = d - 1.96 * error, d + 1.96 * error
            p = float(mannwhitneyu(here, rest).pvalue)
            line = replace(line, effect=d, effect_low=low, effect_high=high, p=p)
        lines.append(line)
    return lines


def cohens_d(here: np.ndarray, rest: np.ndarray) -> float | None:
    """Difference of the means in pooled standard deviations; None where a side has a single value, or all are equal."""
    if min(len(here), len(rest)) < 2:
        return None
    squares = sum(((side - side.mean()) ** 2).sum() for side in (here, rest))
    pooled = math.sqrt(squares / (len(here) + len(rest) - 2))
    alike = pooled <= 1e-12 * max(np.abs(here).max(), np.abs(rest).max())
    return None if alike else float((here.mean() - rest.mean()) / pooled)


def describe_words(column: str, words: list[str | None], clusters: np.ndarray) -> list[Characteristic]:
    """A line per cluster and word, in the order of the words. words: n, None where missing; clusters (n,) int."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    names = sorted({word for word in words if word is not None})
    lines = []
    for cluster in range(1, clusters.max() + 1):
        counts = np.zeros((2, len(names)), int)  # rows: the cluster, the rest
        for word, of in zip(words, clusters):
            if word is not None:
                counts[int(of != cluster), names.index(word)] += 1
        n = int(counts[0].sum())
        effect = p = None
        small = False
        if counts.any(1).all() and len(names) > 1:
            effect = float(association(counts, method="cramer"))
            tested = chi2_contingency(counts, correction=False)
            p, small = float(tested.pvalue), bool(tested.expected_freq.min() < 5)
        lines += [
            Characteristic(
                column, cluster, name, n, int((clusters == cluster).sum()) - n, count=int(count),
                share=count / n if n else None, measure="Cramer's V", effect=effect, test="chi-squared", p=p,
                small=small,
            )
            for name, count in zip(names, counts[0])
        ]  # fmt: skip
    return lines


def adjust(lines: list[Characteristic]) -> list[Characteristic]:
    """The lines with p_adjusted, by Benjamini-Hochberg over their tests, each counted once."""
    from scipy.stats import false_discovery_control

    tests = {(line.column, line.cluster): line.p for line in lines if line.p is not None}
    adjusted = dict(zip(tests, false_discovery_control(list(tests.values())))) if tests else {}
    found = [adjusted.get((line.column, line.cluster)) for line in lines]
    return [replace(line, p_adjusted=None if p is None else float(p)) for line, p in zip(lines, found)]


def describe(
    columns: Mapping[str, Mapping[str, float] | Mapping[str, str]], studies: list[str], clusters: np.ndarray
) -> tuple[list[Characteristic], dict[str, str]]:
    """All lines, adjusted; and {column left out: why}.

    columns: {name: {study: number}} or {name: {study: word}}, without missing values; studies and clusters (n,) in the
    same order.
    """
    lines: list[Characteristic] = []
    left_out = {}
    for column, known in columns.items():
        values = [known.get(study) for study in studies]
        different = {value for value in values if value is not None}
        if not different:
            left_out[column] = "no study has a value"
        elif not isinstance(next(iter(different)), str):
            numbers = np.array([math.nan if value is None else value for value in values])
            lines += describe_numbers(column, numbers, clusters)
        elif len(different) > WORDS:
            left_out[column] = f"{len(different)} different words; at most {WORDS} are counted"
        else:
            lines += describe_words(column, values, clusters)
    return adjust(lines), left_out
