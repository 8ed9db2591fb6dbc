"""Matches a table of landmarks with the studies of a store, and converts its points to stored images."""

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
    """Report on stderr the views of a table of `read_landmarks` that a store lacks, and the studies as `check_matches`.
    views_of: {study of the store `where`: its views}. studies: those that are used.

    Raises ValueError where a view's name differs from one of the store's only in case or punctuation, or where the
    table lists none of the studies.
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
    """Points (n, 3) in scanner mm as voxel coordinates of a view's stored images, float64: (n, 2) in plane for a single
    slice, onto which points are projected; (n, 3) for a stack.

    Raises StoreError where the store does not hold the view's geometry.
    """
    affine = info.affine
    voxels = np.linalg.solve(affine[:3, :3], (np.asarray(mm, np.float64).reshape(-1, 3) - affine[:3, 3]).T).T
    return voxels[:, : len(info.shape) - 1]
