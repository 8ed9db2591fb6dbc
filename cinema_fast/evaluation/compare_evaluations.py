"""Two evaluations, paired by study, frame and target: their differences, with intervals and p values."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ..common.atomic import whole_file
from ..common.naming import count_studies, counted, named, printable
from ..common.output import folder_for
from ..common.parsed_file import read_json
from ..metrics.bootstrap import LEVEL, RESAMPLES, Difference, difference
from ..metrics.rows import KINDS, Row, key, number, read_rows
from ..metrics.score_kind import ScoreKind, Target
from ..tasks.registry import task_class
from .compare_runs import UNKNOWN, markdown_table
from .report import figure, label
from .score_kinds import SCORE_KINDS
from .summary import row_sets

RESULTS, ROWS = "results.json", "rows.csv"
TRUTHS = ("truth", "truth_ml")


@dataclass(frozen=True)
class EvaluationFolder:
    """The output of `evaluate`: rows by (kind, study, view, frame, name), targets and kinds of scores by name."""

    path: Path
    rows: dict[tuple, Row]
    targets: dict[str, Target]
    score_kinds: Mapping[str, ScoreKind] = field(default_factory=lambda: SCORE_KINDS)

    @property
    def studies(self) -> set[str]:
        return {str(row["study"]) for row in self.rows.values()}


def is_evaluation(path: Path) -> bool:
    """Whether a folder holds a finished evaluation."""
    return (path / RESULTS).is_file() and (path / ROWS).is_file()


def compare_evaluations(paths: Sequence[Path], out: Path | None = None) -> str:
    """Compare every evaluation with the first; returns Markdown. With `out` also writes comparison.md and
    comparison.json there.

    Rows that both evaluations have are compared; studies that only one has are counted and named. Raises ValueError
    where a folder is damaged or given twice, where two have nothing in common, or where truths, classes or thresholds
    differ; OutputError where `out` cannot be written.
    """
    if len(paths) < 2:
        raise ValueError(f"compare takes two evaluation folders or more, got {len(paths)}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"compare: an evaluation folder is given twice among {', '.join(map(str, paths))}")
    with folder_for(out) if out else nullcontext():
        return _compare(paths, out)


def _compare(paths: Sequence[Path], out: Path | None) -> str:
    first, *others = [read_evaluation(path) for path in paths]
    texts, numbers = [], []
    for second in others:
        pairs = pair(first, second)
        found = differences(*pairs, first.targets, first.score_kinds)
        texts.append(_text(first, second, pairs[0], found))
        numbers.append({
            "first": str(first.path), "second": str(second.path),
            "differences": [
                {"kind": kind, "view": view, "name": name, "metric": metric} | dataclasses.asdict(one)
                for (kind, view, name), metrics in found.items() for metric, one in metrics.items()
            ],
        })  # fmt: skip
    text = "\n\n".join(texts)
    if out:
        with whole_file(out / "comparison.md") as file:
            file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        with whole_file(out / "comparison.json") as file:
            file.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return text


def read_evaluation(path: Path) -> EvaluationFolder:
    """Read an evaluation folder. Raises ValueError naming the file that is damaged."""
    file = path / RESULTS
    try:
        found = read_json(file)
        targets = {name: Target(tuple(t["classes"]), float(t["threshold"]), t["unit"])
                   for name, t in found["targets"].items()}  # fmt: skip
        kinds = found.get("kinds", ())
        own = () if SCORE_KINDS.keys() >= set(kinds) else task_class(found["about"]["task"]).score_kinds
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); evaluate again") from None
    own = {score_kind.kind: score_kind for score_kind in own}
    rows = read_rows(path / ROWS, (*KINDS, *own))
    by_key = {key(row): row for row in rows}
    if len(by_key) < len(rows) or not rows:
        raise ValueError(f"{path / ROWS}: expected rows, each of another study, view, frame and name; got "
                         f"{len(rows)} rows of {len(by_key)}; evaluate again")  # fmt: skip
    return EvaluationFolder(path, by_key, targets, SCORE_KINDS | own)


def pair(first: EvaluationFolder, second: EvaluationFolder) -> tuple[list[Row], list[Row]]:
    """The rows that both have, in the same order. Raises ValueError where there are none, or where their truth, classes
    or thresholds differ."""
    shared = [of for of in first.rows if of in second.rows]
    if not shared:
        kinds = [", ".join(k for k in one.score_kinds if any(of[0] == k for of in one.rows)) for one in (first, second)]
        raise ValueError(f"{first.path} ({kinds[0]}) and {second.path} ({kinds[1]}) have no study with the "
                         "same view and target in common; expected two evaluations of one task on the same studies")
    for name in dict.fromkeys(of[-1] for of in shared):
        targets = [one.targets.get(name, Target()) for one in (first, second)]
        if targets[0] != targets[1]:
            raise ValueError(f"{name}: {first.path} has {targets[0]}, {second.path} has {targets[1]}; must be equal")
    for of in shared:
        for column in TRUTHS:
            truths = [one.rows[of].get(column) for one in (first, second)]
            if truths[0] != truths[1] and not all(t is not None and t != t for t in truths):
                where = ", ".join(part for part in of if part)
                raise ValueError(f"{where}: {column} is {truths[0]} in {first.path} and {truths[1]} in {second.path}; "
                                 "both must be evaluated against the same truth")  # fmt: skip
    return [first.rows[of] for of in shared], [second.rows[of] for of in shared]


def differences(
    first: Sequence[Row],
    second: Sequence[Row],
    targets: Mapping[str, Target],
    score_kinds: Mapping[str, ScoreKind] = SCORE_KINDS,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[tuple[str, str, str], dict[str, Difference]]:
    """{(kind, view, name): {metric: Difference}} of two sets of rows with the same keys in the same order.

    Only numbers that both have are compared. The note of a difference counts the failures of each, so that a model that
    fails on difficult hearts does not look as good as one that succeeds.
    """
    # failures are counted before `both`, which no longer has them
    before = [dict(_sets(rows, score_kinds)) for rows in (first, second)]
    both = list(zip(*(_sets(rows, score_kinds) for rows in _where_both_are_defined(first, second))))
    found = {}
    for (where, ours), (_, theirs) in both:
        kind, _, name = where
        shared = [of for of in ours if of in theirs]
        if not shared:
            continue
        rows = [ours[of] for of in shared], [theirs[of] for of in shared]
        measures = [score_kinds[kind].measure(part, targets.get(name, Target())) for part in (*rows, rows[0] + rows[1])]
        studies = [row["study"] for row in rows[0]]
        found[where] = difference(*measures, studies, resamples=resamples, seed=seed)
        for metric, one in found[where].items():
            failed = [sum(_failed(sets[where][of], metric) for of in shared) for sets in before]
            if any(failed):
                note = f"failed in {failed[0]} (first) and {failed[1]} (second)"
                found[where][metric] = dataclasses.replace(one, note="; ".join(filter(None, (note, one.note))))
    return found


def _sets(rows: Sequence[Row], score_kinds: Mapping[str, ScoreKind]) -> list[tuple[tuple, dict[tuple, Row]]]:
    return [(where, {key(row): row for row in found}) for where, found in row_sets(rows, score_kinds)]


def _failed(row: Row, metric: str) -> bool:
    """Whether the metric of a row, or the prediction that it comes from, is a failure."""
    return any(isinstance(row.get(name), float) and math.isinf(row[name]) for name in (metric, "pred"))


def _where_both_are_defined(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows with nan in place of every number that is missing or not finite in the other set."""
    blank = ([], [])
    for rows in zip(first, second):
        numbers = {n for row in rows for n, value in row.items() if not isinstance(value, str)}
        missing = {n for n in numbers if not all(math.isfinite(number(row, n)) for row in rows)}
        for mine, row in zip(blank, rows):
            mine.append(row | dict.fromkeys(missing, math.nan))
    return blank


def _text(first: EvaluationFolder, second: EvaluationFolder, paired: Sequence[Row], found: Mapping) -> str:
    names = [printable(str(one.path)) for one in (first, second)]
    studies = {row["study"] for row in paired}
    lines = [f"{names[1]} (second) against {names[0]} (first): {count_studies(len(studies))} in both, paired."]
    for name, one in zip(names, (first, second)):
        if left := sorted(one.studies - studies):
            shown = named([printable(study) for study in left])
            lines.append(f"Left out, only in {name}: {count_studies(len(left))} ({shown})")
        rest = sum(row["study"] in studies for row in one.rows.values()) - len(paired)
        if rest:
            lines.append(f"Left out, only in {name}: {counted(rest, 'row')} of studies in both")
    rows, notes = [], []
    for (kind, view, name), metrics in found.items():
        where = printable(", ".join(part for part in (kind, view, name) if part))
        rows.append([where, *[""] * 6])
        noted = defaultdict(list)
        for metric, one in metrics.items():
            shown = [UNKNOWN if value is None else figure(value) for value in (one.first, one.second, one.difference)]
            interval = UNKNOWN if one.low is None else f"{figure(one.low)} to {figure(one.high)}"
            p = UNKNOWN if one.p is None else f"{one.p:.3g}"
            rows.append([f"  {label(metric)}", *shown, interval, p, f"{one.n} ({one.studies})"])
            if one.note:
                noted[one.note].append(label(metric))
        notes += [f"{where}, {', '.join(of)}: {note}" for note, of in noted.items()]
    head = ["metric", "first", "second", "difference", f"its {LEVEL:.0%} interval", "p", "n (studies)"]
    lines.append(markdown_table(head, rows))
    lines += notes
    lines.append("Difference: second - first. Intervals: paired bootstrap over studies. p: two-sided permutation test "
                 "within studies, not corrected for multiple comparisons.")  # fmt: skip
    return "\n\n".join(lines)
