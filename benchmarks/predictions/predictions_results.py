"""results/predictions.json, which is written and read here alone: what predict.py found.

A section of rows is {"fields": names, "rows": lists of values}, a row a line and null where a row has no such field; of
machine code and what Inductor made the rows are by key. Every other section is a line.
"""

from json import dumps, loads
from pathlib import Path

import conditions


def read_predictions(path: Path) -> dict:
    """Sections by name: rows are dicts, in a list or by key. Empty where there is no file."""
    contents = loads(path.read_text()) if path.exists() else {}
    return {name: _rows(section) if _is_table(section) else section for name, section in contents.items()}


def write_predictions(path: Path, contents: dict) -> None:
    """Replaces the file."""
    sections = ",\n".join(f"{dumps(name)}: {_text(section)}" for name, section in contents.items())
    conditions.write_text(path, f"{{\n{sections}\n}}\n")


def _is_table(section) -> bool:
    return isinstance(section, dict) and section.keys() == {"fields", "rows"}


def _rows(table: dict) -> list[dict] | dict[str, dict]:
    def row(values: list) -> dict:
        return {name: value for name, value in zip(table["fields"], values) if value is not None}

    rows = table["rows"]
    return list(map(row, rows)) if isinstance(rows, list) else {key: row(values) for key, values in rows.items()}


def _text(section) -> str:
    """As JSON."""
    rows = section if isinstance(section, list) else list(section.values()) if isinstance(section, dict) else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        return _line(section)
    fields = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_line([row.get(name) for name in fields]) for row in rows]
    if isinstance(section, list):
        return f'{{"fields": {_line(fields)}, "rows": [\n' + ",\n".join(lines) + "\n]}"
    keyed = (f"{_line(key)}: {line}" for key, line in zip(section, lines))
    return f'{{"fields": {_line(fields)}, "rows": {{\n' + ",\n".join(keyed) + "\n}}"


def _line(value) -> str:
    return dumps(value, allow_nan=False, separators=(",", ":"))
