"""The report of an evaluation: one HTML file that carries all its pictures and refers to nothing outside it."""

import base64
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ..figures.canvas import printable
from ..figures.overlays import COLOURS, cycle_gif, landmarks_png, stills_png
from ..metrics.classification import Classification
from ..metrics.flags import CODES, in_order
from ..metrics.function import QUANTITIES
from ..metrics.rows import Row, number
from .assessment import Assessment
from .report_figures import agreement_png, classification_png, dice_png, distances_png, volume_png
from .summary import ALL_CLASSES, Table, Target, measure_of, row_sets

TITLES = {
    "segmentation": ("Label maps", "Means over labelled frames. Distances are between surfaces. A class that is in "
                     "neither map is left out; one that is in one of them alone is a failure, with Dice 0. Stability: "
                     "the IoU of a class's masks cut at +1 and at -1 of its logits, their mean over classes taken off "
                     "(Segment Anything, 2023)."),
    "function": ("Cardiac function at the labelled frames", "Predicted against true label maps, both at the frames "
                 "where the true LV is largest (ED) and smallest (ES). Differences are prediction - truth."),
    "cycle": ("Cardiac function of the whole cycle", "ED and ES of each ventricle are where it is predicted largest "
              "and smallest; compared with values known from elsewhere. A ventricle missing in a frame has none."),
    "ef_class": ("Classes of the ejection fraction", "Reduced: up to 40 %; normal: above 55 %; borderline between."),
    "regression": ("Numbers", "Differences are prediction - truth."),
    "retest": ("Repeated measurements", "Of the same hearts. The coefficient of variation is a fraction; differences "
               "are second - first."),
    "classification": ("Classes", "Of two classes the second is the positive one. Of more, sensitivity, specificity, "
                       "AUROC and AUPRC are one class against the rest, averaged."),
    "landmarks": ("Landmarks", "Distance of what was found; a landmark that was not found is a failure at any "
                  "distance."),
}  # fmt: skip
LABELS = {
    "dice": "Dice", "iou": "IoU", "hd95_mm": "Hausdorff 95 (mm)", "msd_mm": "mean surface distance (mm)", "mae": "MAE",
    "rmse": "RMSE", "r2": "R²", "loa_low": "95 % limit, low", "loa_high": "95 % limit, high", "auroc": "AUROC",
    "auprc": "AUPRC", "brier": "Brier", "ece": "calibration error", "distance_mm": "distance (mm)",
}  # fmt: skip
HEADLINES = ("dice", "hd95_mm", "mae", "r2", "bias", "accuracy", "auroc", "sensitivity", "specificity", "distance_mm",
             "coefficient_of_variation")  # fmt: skip
WORST, MOST, MOST_NOTES = 10, 200, 12


class Picture(NamedTuple):
    """type: MIME type. data: base64. alt: what it shows."""

    type: str
    data: str
    alt: str


def write_report(path: Path, results: Mapping, tables: Sequence[Table], assessment: Assessment) -> None:
    """Write the report. Every name in it comes from a file or a table, and is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        # names of files may hold bytes that are no text
        finalize=lambda value: printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "label": label}
    sets = list(row_sets(assessment.rows))
    kinds = list(dict.fromkeys(table.kind for table in tables))
    html = environment.get_template("report.html.j2").render(
        results=results,
        about=[(name, _plain(value)) for name, value in results["about"].items()],
        sections=[_section(kind, tables, sets, assessment) for kind in kinds],
        subgroups=list(_subgroups(results["without_group"], tables)),
        flags=list(_flagged(results["flags"])),
        most=MOST,
        colours=COLOURS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def figure(value: float) -> str:
    """Four digits, as people write them."""
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 or not value else f"{value:.3e}"


def label(metric: str) -> str:
    words = metric.removesuffix("_mm").replace("_", " ") + (" mm" if metric.endswith("_mm") else "")
    return LABELS.get(metric, words)


def _section(kind: str, tables: Sequence[Table], sets: Sequence, assessment: Assessment) -> dict:
    title, about = TITLES[kind]
    own = [(view, name, rows) for (of, view, name), rows in sets if of == kind]
    pictures = [picture for draw in (_PICTURES.get(kind),) if draw for picture in draw(own, assessment.targets)]
    return {
        "title": title,
        "about": about,
        "block": _block([table for table in tables if table.kind == kind and not table.column], assessment.targets),
        "pictures": pictures,
        "worst": _worst(kind, own),
        "cases": list(_CASES[kind](assessment)) if kind in _CASES else [],
        "legend": list(_legend(assessment)) if kind == "segmentation" else [],
    }


def _block(tables: Sequence[Table], targets: Mapping[str, Target], *, only: Sequence[str] = ()) -> dict:
    """Heads, metrics, rows and notes of tables of one kind. only: of which metrics, where not of all."""
    metrics = [m for m in dict.fromkeys(m for table in tables for m in table.numbers) if not only or m in only]
    grouped = any(table.column for table in tables)
    rows, noted = [], defaultdict(list)  # note: what it is about
    for table in tables:
        name = _name(table.name, targets.get(table.name, Target()), table.kind)
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
    return {"heads": [""] if grouped else ["view", "of"], "metrics": metrics, "rows": rows, "notes": notes}


def _flagged(flags: Sequence[Mapping[str, str]]) -> Iterator[dict]:
    """Of each code what it means, how many studies have it, and which."""
    for code in in_order(one["flag"] for one in flags):
        where = {(one["study"], one["view"]): None for one in flags if one["flag"] == code}
        named = [" ".join(filter(None, (study, view and f"({view})"))) for study, view in where]
        yield {"code": code, "meaning": CODES[code], "n": len({study for study, _ in where}), "studies": named}


def _subgroups(without: Mapping[str, int], tables: Sequence[Table]) -> Iterator[dict]:
    for column, missing in without.items():
        own = [table for table in tables if table.column == column]
        blocks = []
        for kind, view, name in dict.fromkeys((table.kind, table.view, table.name) for table in own):
            found = [table for table in own if (table.kind, table.view, table.name) == (kind, view, name)]
            title = ", ".join(part for part in (TITLES[kind][0], view, QUANTITIES.get(name, name)) if part)
            blocks.append({"title": title} | _block(found, {}, only=HEADLINES))
        yield {"column": column, "without": missing, "blocks": blocks}


def _name(name: str, target: Target, kind: str) -> str:
    if kind in ("function", "cycle", "ef_class"):
        return QUANTITIES.get(name, name)
    text = name
    if target.unit:
        text += f" ({target.unit})"
    if kind == "classification" and len(target.classes) == 2:
        text += f": {target.classes[1]} from {target.threshold:g}"
    return text


def _worst(kind: str, own: Sequence[tuple[str, str, Sequence[Row]]]) -> dict | None:
    """The rows with the lowest Dice, the largest error or distance, or the least probability of the truth."""
    if kind in ("retest", "ef_class"):
        return None
    how: dict[str, tuple[str, Callable[[Row], float]]] = {
        "segmentation": ("Dice", lambda row: -number(row, "dice")),
        "landmarks": ("distance (mm)", lambda row: number(row, "distance_mm")),
        "classification": ("probability of the decision, which is wrong", _wrong),
    }
    what, badness = how.get(kind, ("|error|", lambda row: abs(number(row, "pred") - number(row, "truth"))))
    if kind in ("function", "cycle"):
        own = [one for one in own if one[1] == "lv_ef"]  # errors of several quantities cannot be put in one order
    elif kind == "regression" and len(own) > 1:
        return None
    rows = [row for _, name, found in own for row in found if name != ALL_CLASSES and not math.isnan(badness(row))]
    if not rows:
        return None
    rows = sorted(rows, key=badness, reverse=True)[:WORST]
    lines = [[row["study"], row["view"], row["frame"], row["name"], figure(abs(badness(row)))] for row in rows]
    return {"heads": ["study", "view", "frame", "of", what], "rows": lines}


def _wrong(row: Row) -> float:
    probabilities = [number(row, name) for name in row if name[:1] == "p" and name[1:].isdigit()]
    return math.nan if row["truth"] == row["decided"] else max(probabilities, default=math.nan)


def _cases(assessment: Assessment) -> Iterator[dict]:
    for view, gallery in assessment.galleries.items():
        for why, exhibit in gallery.chosen():
            pictures = []
            if len(exhibit.cycle) > 1:
                alt = ", ".join(filter(None, ("prediction over the cycle", exhibit.slice)))
                pictures.append(_embed("gif", cycle_gif(exhibit), alt))
            # a picture for each frame: all in one row would be shrunk to the page's width
            for _, of_frame in groupby(exhibit.stills, lambda still: still[0].partition(",")[0]):
                stills = list(of_frame)
                captions = "; ".join(caption for caption, *_ in stills)
                pictures.append(_embed("png", stills_png(stills), f"truth above, prediction below: {captions}"))
            if exhibit.curves:
                pictures.append(_embed("png", volume_png(exhibit, assessment.classes), "volume over time"))
            title = f"{view}, {why} of {len(gallery.scores)}: {exhibit.study}, mean Dice {exhibit.score:.3f}"
            yield {"title": title, "pictures": pictures}


def _legend(assessment: Assessment) -> Iterator[tuple[str, int]]:
    """Names of the classes, and which of COLOURS they have."""
    for value, name in assessment.classes.items():
        yield name, (value - 1) % len(COLOURS)


def _landmark_cases(assessment: Assessment) -> Iterator[dict]:
    for view, gallery in assessment.landmark_galleries.items():
        for why, exhibit in gallery.chosen():
            what = f"{view}, {why} of {len(gallery.scores)} frames: {exhibit.study}, frame {exhibit.frame}"
            far = f"mean distance {-exhibit.score:.1f} mm"
            alt = f"landmarks of frame {exhibit.frame}: {', '.join(exhibit.points)}"
            yield {"title": f"{what}, {far}", "pictures": [_embed("png", landmarks_png(exhibit), alt)]}


_CASES = {"segmentation": _cases, "landmarks": _landmark_cases}


def _of_segmentation(own: Sequence, targets: Mapping) -> Iterator[Picture]:
    for view in dict.fromkeys(view for view, _, _ in own):
        rows = {name: rows for of, name, rows in own if of == view and name != ALL_CLASSES}
        yield _embed("png", dice_png(view, rows), f"{view}: Dice of every labelled frame")


def _of_numbers(kind: str, names: tuple[str, str], keys: tuple[str, str]) -> Callable:
    def draw(own: Sequence, targets: Mapping[str, Target]) -> Iterator[Picture]:
        for view, name, rows in own:
            text = _name(name, targets.get(name, Target()), kind)
            png = agreement_png(text, *([number(row, key) for row in rows] for key in keys), names)
            if png:
                yield _embed("png", png, ", ".join(part for part in (view, text, "agreement") if part))

    return draw


def _of_classes(kind: str) -> Callable:
    def draw(own: Sequence, targets: Mapping[str, Target]) -> Iterator[Picture]:
        for _, name, rows in own:
            target = targets.get(name, Target())
            measure = measure_of(kind, rows, target)
            assert isinstance(measure, Classification)
            title = _name(name, target, kind)
            shown = "confusion" if measure.p is None else "confusion, ROC, reliability"
            yield _embed("png", classification_png(title, measure, target.threshold), f"{title}: {shown}")

    return draw


def _of_landmarks(own: Sequence, targets: Mapping) -> Iterator[Picture]:
    for view in dict.fromkeys(view for view, _, _ in own):
        distances = {name: [number(row, "distance_mm") for row in rows] for of, name, rows in own if of == view}
        yield _embed("png", distances_png(view, distances), f"{view}: share of landmarks within a distance")


_PICTURES: dict[str, Callable] = {
    "segmentation": _of_segmentation,
    "function": _of_numbers("function", ("truth", "prediction"), ("truth", "pred")),
    "cycle": _of_numbers("cycle", ("known", "prediction"), ("truth", "pred")),
    "regression": _of_numbers("regression", ("truth", "prediction"), ("truth", "pred")),
    "retest": _of_numbers("retest", ("first", "second"), ("first", "second")),
    "classification": _of_classes("classification"),
    "ef_class": _of_classes("ef_class"),
    "landmarks": _of_landmarks,
}


def _embed(kind: str, data: bytes, alt: str) -> Picture:
    return Picture(f"image/{kind}", base64.b64encode(data).decode(), alt)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
