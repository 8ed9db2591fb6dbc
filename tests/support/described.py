"""Stores with other records: ED and ES, or frames that are channels."""

import json
from collections.abc import Callable
from pathlib import Path

from cinema_fast.data.store.store import index_records, read_index, write_index


def redescribe(store: Path, change: Callable[[str, str, dict], None]) -> Path:
    """Change the record of every view by `change(study, view, record)`, in study.json and in the index."""
    index = {}
    for file in sorted(store.glob("studies/*/study.json")):
        records = json.loads(file.read_text())
        for view, record in records.items():
            change(file.parent.name, view, record)
        file.write_text(json.dumps(records))
        index[file.parent.name] = index_records(records)
    write_index(store, read_index(store)["prepare"], index)
    return store


def with_phases(store: Path, phases_of: Callable[[str, str], tuple[int, int] | None]) -> Path:
    """The store with ED and ES of each view, phases_of(study, view); None: unknown."""

    def change(study: str, view: str, record: dict) -> None:
        if known := phases_of(study, view):
            record["phases"] = {"ed": known[0], "es": known[1], "source": "test"}

    return redescribe(store, change)


def with_channels(store: Path, *names: str, views: tuple[str, ...] = ("sax", "lax_4c")) -> Path:
    """The store with its frames as channels of these names."""
    return redescribe(store, lambda study, view, record: record.update(channels=list(names)) if view in views else None)
