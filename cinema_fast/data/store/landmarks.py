"""Landmarks of a table beside the studies of a store: which it has, and where they lie in the stored images."""

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...common.naming import counted
from ...common.tables import check_matches
from .records import CineInfo


def check_landmarks(
    path: Path, points: Mapping[str, Mapping[str, Mapping]], views_of: Mapping[str, Sequence[str]],
    studies: Collection[str], where: Path,
) -> None:  # fmt: skip
    """Say on stderr which views of a table of `read_landmarks` a store has not, and which studies, as `check_matches`.
    views_of: {study of the store `where`: its views}. studies: those of it that are wanted.

    Raises ValueError where a view is one of the store's but for case and signs, or none of the studies is in the table.
    """
    check_matches(path, points, studies, where, views_of)
    lines = Counter(view for views in points.values() for view, frames in views.items()
                    for known in frames.values() for _ in known)  # fmt: skip
    here = dict.fromkeys(view for views in views_of.values() for view in views)
    spelt = {_plain(view): view for view in here}
    absent = [view for view in lines if view not in here]
    for view in absent:
        if _plain(view) in spelt:
            raise ValueError(f"{path}: view {view!r} ({counted(lines[view], 'line')}) is spelled "
                             f"{spelt[_plain(view)]!r} in {where}: correct the table")
    if absent:
        unknown = ", ".join(f"{view!r} ({counted(lines[view], 'line')})" for view in absent)
        print(f"{path}: no study of {where} has the view {unknown}: left out; its views are {', '.join(here)}",
              file=sys.stderr)


def _plain(view: str) -> str:
    return re.sub("[^a-z0-9]", "", view.lower())


def landmark_voxels(info: CineInfo, mm: np.ndarray) -> np.ndarray:
    """Where points (n, 3) in scanner mm lie in the stored images of a view: float64 (n, 2) voxel coordinates in plane
    for a single slice, to which points off it are projected; (n, 3) for a stack.

    Raises StoreError where the store does not know the view's geometry.
    """
    affine = info.affine
    voxels = np.linalg.solve(affine[:3, :3], (np.asarray(mm, np.float64).reshape(-1, 3) - affine[:3, 3]).T).T
    return voxels[:, : len(info.shape) - 1]
