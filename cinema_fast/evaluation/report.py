"""The report of an evaluation: one self-contained HTML file."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..figures.overlays import COLOURS
from ..figures.page import write_page
from ..metrics.assessment import Assessment
from ..metrics.cases import Gallery
from ..metrics.flags import CODES, in_order
from ..metrics.score_kind import ScoreKind, Sets, Target
from .score_kinds import all_score_kinds
from .summary import Table, row_sets

LABELS = {
    "dice": "Dice", "iou": "IoU", "hd95_mm": "Hausdorff 95 (mm)", "msd_mm": "mean surface distance (mm)", "mae": "MAE",
    "rmse": "RMSE", "r2": "R²", "loa_low": "lower 95 % limit of agreement", "loa_high": "upper 95 % limit of agreement",
    "f1": "F1", "mcc": "MCC", "auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier", "ece": "calibration error",
    "distance_mm": "distance (mm)",
}  # fmt: skip
HEADLINES = ("dice", "hd95_mm", "mae", "r2", "bias", "accuracy", "auroc", "sensitivity", "specificity", "f1", "mcc",
             "distance_mm", "coefficient_of_variation")  # fmt: skip
WORST, MOST, MOST_NOTES = 10, 200, 12


def write_report(path: Path, results: Mapping, tables: Sequence[Table], assessment: Assessment) -> None:
    """Write the report."""
    score_kinds = all_score_kinds(assessment.score_kinds)
    sets = dict(row_sets(assessment.rows, score_kinds))
    kinds = list(dict.fromkeys(table.kind for table in tables))
    values = {
        "results": results,
        "about": [(name, _plain(value)) for name, value in results["about"].items()],
        "sections": [_section(score_kinds[kind], tables, sets, assessment) for kind in kinds],
        "subgroups": list(_subgroups(results["without_group"], tables, score_kinds)),
        "flags": list(_flagged(results["flags"])),
        "most": MOST,
        "colours": COLOURS,
    }
    write_page(path, Path(__file__).with_name("report.html.j2"), values, {"figure": figure, "label": label})


def figure(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 or not value else f"{value:.3e}"


def label(metric: str) -> str:
    words = metric.removesuffix("_mm").replace("_", " ") + (" mm" if metric.endswith("_mm") else "")
    return LABELS.get(metric, words)


def _section(score_kind: ScoreKind, tables: Sequence[Table], sets: Sets, assessment: Assessment) -> dict:
    own = {where: rows for where, rows in sets.items() if where[0] == score_kind.kind}
    found = [table for table in tables if table.kind == score_kind.kind and not table.column]
    cases = list(_cases(score_kind, assessment.galleries))
    return {
        "title": score_kind.title,
        "about": " ".join(filter(None, (score_kind.about, assessment.rules.get(score_kind.kind)))),
        "block": _block(found, assessment.targets, score_kind),
        "pictures": score_kind.pictures(own, assessment.targets),
        "worst": _worst(score_kind, own),
        "cases": cases,
        "legend": [(name, k % len(COLOURS)) for name, k in cases[0]["names"].items()] if cases else [],
    }


def _block(
    tables: Sequence[Table], targets: Mapping[str, Target], score_kind: ScoreKind, *, only: Sequence[str] = ()
) -> dict:
    """Heads, metrics, rows and notes of tables of one kind. only: show these metrics, where it has any of them."""
    every = list(dict.fromkeys(m for table in tables for m in table.numbers))
    metrics = [m for m in every if m in only] or every
    grouped = any(table.column for table in tables)
    rows, noted = [], defaultdict(list)  # noted: {note: the figures that it applies to}
    for table in tables:
        name = score_kind.words(table.name, targets.get(table.name, Target()))
        words = [table.group] if grouped else [table.view, name]
        cells = [table.numbers.get(metric) for metric in metrics]
        most = max((one for one in table.numbers.values()), key=lambda one: one.n)
        rows.append({"words": words, "cells": cells, "n": most.n, "studies": most.studies})
        where = table.group if grouped else table.title
        for note in dict.fromkeys(one.note for one in cells if one and one.note):
            of = [label(m) for m, one in zip(metrics, cells) if one and one.note == note]
            noted[note].append(f"{where} ({', '.join(of)})")
    notes = [f"{note}: {'; '.join(about)}" for note, about in noted.items()]
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f"and {len(notes) - MOST_NOTES} more notes in results.json"]
    return {"heads": [""] if grouped else ["view", "name"], "metrics": metrics, "rows": rows, "notes": notes}


def _flagged(flags: Sequence[Mapping[str, str]]) -> Iterator[dict]:
    """For each code its meaning, the number of studies, and the studies."""
    for code in in_order(one["flag"] for one in flags):
        where = {(one["study"], one["view"]): None for one in flags if one["flag"] == code}
        named = [" ".join(filter(None, (study, view and f"({view})"))) for study, view in where]
        yield {"code": code, "meaning": CODES[code], "n": len({study for study, _ in where}), "studies": named}


def _subgroups(
    without: Mapping[str, int], tables: Sequence[Table], score_kinds: Mapping[str, ScoreKind]
) -> Iterator[dict]:
    for column, missing in without.items():
        own = [table for table in tables if table.column == column]
        blocks = []
        for kind, view, name in dict.fromkeys((table.kind, table.view, table.name) for table in own):
            found = [table for table in own if (table.kind, table.view, table.name) == (kind, view, name)]
            score_kind = score_kinds[kind]
            title = ", ".join(part for part in (score_kind.title, view, score_kind.words(name, Target())) if part)
            blocks.append({"title": title} | _block(found, {}, score_kind, only=HEADLINES))
        yield {"column": column, "without": missing, "blocks": blocks}


def _worst(score_kind: ScoreKind, own: Sets) -> dict | None:
    """The worst rows by the kind's `badness`."""
    if not score_kind.worst or (len(own) > 1 and not score_kind.one_scale):
        return None
    badness = score_kind.badness
    rows = [row for found in own.values() for row in found if not math.isnan(badness(row))]
    if not rows:
        return None
    rows = sorted(rows, key=badness, reverse=True)[:WORST]
    lines = [[row["study"], row["view"], row["frame"], row["name"], figure(abs(badness(row)))] for row in rows]
    return {"heads": ["study", "view", "frame", "name", score_kind.worst], "rows": lines}


def _cases(score_kind: ScoreKind, galleries: Mapping[tuple[str, str], Gallery]) -> Iterator[dict]:
    for (kind, view), gallery in galleries.items():
        for why, exhibit in gallery.chosen() if kind == score_kind.kind else ():
            title, pictures, names = score_kind.case(exhibit, f"{view}, {why} of {len(gallery.scores)}")
            yield {"title": title, "pictures": pictures, "names": names}


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
