"""The files of an evaluation: rows.csv, the report, and results.json."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .. import __version__
from ..common.atomic import whole_file
from ..common.naming import count_studies
from ..metrics.assessment import Assessment
from ..metrics.bootstrap import LEVEL
from ..metrics.rows import write_rows
from .report import HEADLINES, figure, label, write_report
from .score_kinds import all_score_kinds
from .summary import subgroups, summarise

REASONS = 3  # why studies are left out, at most so many reasons in words


def write_results(
    assessment: Assessment,
    folder: Path,
    *,
    about: Mapping[str, object],
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> dict:
    """Write FOLDER/rows.csv, report/index.html and, last, results.json; returns the content of results.json.

    about: JSON values that describe the evaluation; they are shown and saved unchanged. table: {column: {study: cell}}
    for tables by subgroup. Raises ValueError where nothing was evaluated; OSError where the folder cannot be written.
    """
    if not assessment.rows:
        raise ValueError(f"nothing could be evaluated; {len(assessment.left_out)} left out: "
                         + "; ".join(f"{study}: {why}" for study, why in assessment.left_out[:3]))  # fmt: skip
    judged = list(dict.fromkeys(str(row["study"]) for row in assessment.rows))
    groups = {column: subgroups({s: cells[s] for s in judged if s in cells})
              for column, cells in (table or {}).items()}  # fmt: skip
    drawn = {"resamples": assessment.resamples, "seed": assessment.seed}
    score_kinds = all_score_kinds(assessment.score_kinds)
    tables = summarise(assessment.rows, assessment.targets, groups, score_kinds=score_kinds, **drawn)
    results = {
        "format": 1,
        "version": __version__,
        "kinds": list(dict.fromkeys(row["kind"] for row in assessment.rows)),
        "studies": len(judged),
        "about": dict(about),
        "targets": {name: dataclasses.asdict(target) for name, target in assessment.targets.items()},
        "bootstrap": drawn | {"level": LEVEL, "drawn": "studies"},
        "tables": [dataclasses.asdict(one) for one in tables],
        "without_group": {column: len(judged) - len(of) for column, of in groups.items()},
        "flags": [{"study": study, "view": view, "flag": code} for study, view, code in assessment.flags],
        "left_out": [{"study": study, "why": why} for study, why in assessment.left_out],
    }
    text = json.dumps(results, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)  # results of another evaluation must not remain beside new rows
    write_rows(folder / "rows.csv", assessment.rows)
    write_report(folder / "report" / "index.html", results, tables, assessment)
    with whole_file(folder / "results.json") as file:
        file.write_text(text + "\n", encoding="utf-8")
    return json.loads(text)


def scores_in_words(results: dict) -> str:
    """The main scores over all studies from the content of results.json: a line per table."""
    lines = [f"{count_studies(results['studies'])} evaluated"]
    if left_out := results["left_out"]:
        lines[0] += f", {len(left_out)} left out (see the report)"
        reasons = Counter(one["why"] for one in left_out).most_common()
        lines += [f"  left out ({n}): {why}" for why, n in reasons[:REASONS]]
        lines += [f"  and {len(reasons) - REASONS} other reasons"] * (len(reasons) > REASONS)
    for table in results["tables"]:
        scores = {name: one for name, one in table["numbers"].items() if name in HEADLINES and one["value"] is not None}
        if scores and not table["column"]:  # not a table of a subgroup
            where = ", ".join(part for part in (table["kind"], table["view"], table["name"]) if part)
            lines.append(f"  {where}: {'; '.join(f'{label(name)} {_score(one)}' for name, one in scores.items())}")
    return "\n".join(lines)


def _score(one: dict) -> str:
    return figure(one["value"]) + (f" [{figure(one['low'])}, {figure(one['high'])}]" if one["low"] is not None else "")
