"""Stores of the training fixtures with motion maps."""

import json
from pathlib import Path

from cinema_fast.data.prepare.motion import add_motion_maps
from cinema_fast.data.store.store import read_index, write_index


def with_maps(path: Path) -> Path:
    """Give a store its maps."""
    studies = {study.name: json.loads((study / "study.json").read_text()) for study in (path / "studies").iterdir()}
    assert add_motion_maps(path, studies, path / "t", workers=1, progress=False)[1] == []
    write_index(path, read_index(path)["prepare"], studies)
    return path
