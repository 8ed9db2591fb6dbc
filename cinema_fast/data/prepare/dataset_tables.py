"""The tables of a store of a public data set: table.csv, split.csv, and landmarks.csv where it has landmarks.

A line per study of the store, or per landmark. Volumes [ml] and ejection fractions [%] are those that the data set
gives, else those of its label maps at ED and ES, on the grid of the scan: voxels x voxel volume. Cells of unknown
values are empty.
"""

from __future__ import annotations

import csv
from pathlib import Path

from ...common.atomic import whole_file
from ...common.parsed_file import read_json
from ...common.tables import LANDMARK_COLUMNS
from ...common.views import plane_of
from .sources import Sources

TABLES = TABLE, SPLIT, LANDMARKS = "table.csv", "split.csv", "landmarks.csv"
FUNCTION = {"lv": 3, "rv": 1}  # ventricle -> its label
COLUMNS = (
    "pathology", "vendor", "centre", "sex", "age", "height", "weight", "bmi", "ed", "es",
    *(f"{ventricle}_{name}" for ventricle in FUNCTION for name in ("edv_ml", "esv_ml", "ef")),
)  # fmt: skip


def write_tables(store: Path, sources: Sources, done: dict[str, dict[str, dict]]) -> str:
    """Write the tables of the studies in the store (`done`); returns a line about them."""
    there = sorted(study for study in done if study in sources.studies)  # others were removed from the data set since
    rows = {study: drawn_values(store, study) | sources.table.get(study, {}) for study in there}
    extra = sorted({name for row in rows.values() for name in row} - set(COLUMNS))
    _write(store / TABLE, ("study", *COLUMNS, *extra), ({"study": study} | row for study, row in rows.items()))
    split = {study: sources.split[study] for study in rows if study in sources.split}
    _write(store / SPLIT, ("study", "split"), ({"study": s, "split": part} for s, part in split.items()))
    parts = list(split.values())
    counts = ", ".join(f"{parts.count(part)} {part}" for part in ("train", "val", "test"))
    marks = [dict(zip(LANDMARK_COLUMNS, line)) for line in sources.landmarks if line[1] in done.get(line[0], {})]
    if marks:
        _write(store / LANDMARKS, LANDMARK_COLUMNS, marks)
    names = (f"{store / SPLIT} ({counts})", *[str(store / LANDMARKS)] * bool(marks))
    return f"tables of the data set: {store / TABLE}, {', '.join(names)}"


def remove_tables(store: Path) -> None:
    """Remove the tables of a data set that the store held before."""
    for name in TABLES:
        (store / name).unlink(missing_ok=True)


def drawn_values(store: Path, study: str) -> dict[str, float]:
    """ED, ES, and what the label maps of the short-axis stack at ED and ES measure, as far as they are known."""
    records = read_json(store / "studies" / study / "study.json")
    known = {view: record for view, record in records.items() if "phases" in record}
    view = next((view for view in known if plane_of(view) == "sax"), next(iter(known), None))
    if view is None:
        return {}
    phases = known[view]["phases"]
    found = {"ed": phases["ed"], "es": phases["es"]}
    volumes = known[view].get("labels", {}).get("volumes_ml", {})
    at_ed, at_es = (volumes.get(str(phases[name]), {}) for name in ("ed", "es"))
    for ventricle, label in FUNCTION.items():
        edv, esv = at_ed.get(str(label)), at_es.get(str(label))
        found |= {f"{ventricle}_edv_ml": edv} if edv else {}
        found |= {f"{ventricle}_esv_ml": esv} if esv else {}
        found |= {f"{ventricle}_ef": 100 * (edv - esv) / edv} if edv and esv else {}
    return found


def _write(path: Path, columns: tuple[str, ...], rows) -> None:
    text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names of folders may not be text
    with whole_file(path, durable=True) as name, name.open("w", **text) as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows({key: f"{value:.7g}" if isinstance(value, float) else value for key, value in row.items()}
                        for row in rows)
