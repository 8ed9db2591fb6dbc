"""results/audit.json, which is written and read here alone: what the audit found.

In memory an entry is a dict with the fields of `LEVELS`, those of `PASSED` under "passed" and those of `CODE` under
"code". In the file each level is a list of [field, ..., [the level below]], so that what entries share stands there
once; its first line names the fields. A line is an entry, or begins a kernel, its types, a launch or a compiler; all
are in alphabetical order, so that another kernel changes its own lines alone.
"""

from collections.abc import Iterable, Iterator
from json import dumps, loads
from pathlib import Path

import conditions

PASSED = ("types", "constants", "warps", "stages")  # to a Triton kernel
CODE = ("registers", "shared", "local", "spill_loads", "spill_stores", "matrix", "loads", "stores")
LEVELS = (
    ("kernel", "source"), ("types",), ("constants", "warps", "stages", "cases"), ("compiler",),
    ("arch", "digest", *CODE),
)  # fmt: skip


def key_of(entry: dict) -> str:
    """What the machine code depends on: kernel and source, specialisation and options, architecture, compiler."""
    return "{kernel} {source} {digest} sm_{arch} {compiler}".format_map(entry)


def read_results(path: Path) -> dict[str, dict]:
    """Entries by key; none where there is no file."""
    if not path.exists():
        return {}
    entries = [_entry(fields) for fields in _fields(loads(path.read_text())["kernels"], LEVELS, {})]
    return {key_of(entry): entry for entry in entries}


def write_results(path: Path, entries: Iterable[dict]) -> None:
    """Replaces the file."""
    rows = [entry | entry["passed"] | entry["code"] for entry in entries]
    conditions.write_text(path, f'{{"fields": {dumps(LEVELS)},\n"kernels": [\n{_text(rows, LEVELS)}\n]}}\n')


def _entry(fields: dict) -> dict:
    passed = {name: fields.pop(name) for name in PASSED}
    code = {name: fields.pop(name) for name in CODE}
    return fields | {"passed": {k: v for k, v in passed.items() if v is not None}, "code": code}


def _fields(rows: list[list], levels: tuple, above: dict) -> Iterator[dict]:
    names, *below = levels
    for row in rows:
        fields = above | dict(zip(names, row))
        if below:
            yield from _fields(row[-1], below, fields)
        else:
            yield fields


def _text(rows: list[dict], levels: tuple) -> str:
    names, *below = levels
    by_said: dict[str, list[dict]] = {}
    for row in rows:
        by_said.setdefault(_said(row, names), []).append(row)
    return ",\n".join(
        f"[{said},[\n{_text(alike, below)}]]" if below else f"[{said}]" for said, alike in sorted(by_said.items())
    )


def _said(row: dict, names: tuple[str, ...]) -> str:
    """The fields as JSON, null where there is none: of a kernel in a .cu nothing is known that is passed."""
    return dumps([row.get(name) for name in names], allow_nan=False, separators=(",", ":"))[1:-1]
