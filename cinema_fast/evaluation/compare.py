"""`compare`: compares runs, or evaluations, depending on what the folders hold."""

from collections.abc import Sequence
from pathlib import Path

from .compare_evaluations import compare_evaluations, is_evaluation
from .compare_runs import compare_runs


def compare(folders: Sequence[Path], out: Path | None = None) -> str:
    """The comparison as Markdown; with `out` it is also written there. Raises ValueError for a mix of both kinds of
    folders, and as `compare_runs` and `compare_evaluations`."""
    evaluations = [path for path in folders if is_evaluation(path)]
    if not evaluations:
        return compare_runs(folders, out)
    if other := next((path for path in folders if path not in evaluations), None):
        if not other.exists():
            raise ValueError(f"compare: there is no folder {other}")
        raise ValueError(f"compare: {evaluations[0]} is an evaluation, {other} is not: it lacks results.json or "
                         "rows.csv; expected only run folders, or only evaluation folders")  # fmt: skip
    return compare_evaluations(folders, out)
