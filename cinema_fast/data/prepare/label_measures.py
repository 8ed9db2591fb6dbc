"""What the label maps of a scan measure on its own grid, before resampling and crop: volumes, and which frames are ED
and ES."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .original_geometry import voxel_size
from .sources import Phases, Source

BY_LABELS = "label maps"  # the source of ED and ES that were found from the label maps
FEW = 16  # up to so many labels, comparing with each is faster than a histogram


def label_counts(labels: np.ndarray) -> dict[int, int]:
    """{label: voxels} of a map uint8, without the background."""
    most = int(labels.max(initial=0))
    if most <= FEW:
        counts = {label: int(np.count_nonzero(labels == label)) for label in range(1, most + 1)}
    else:
        counts = dict(enumerate(np.bincount(labels.ravel(order="K")).tolist()))
        del counts[0]
    return {label: n for label, n in counts.items() if n}


def volumes_ml(counts: Mapping[int, Mapping[int, int]], affine: np.ndarray) -> dict[str, dict[str, float]]:
    """{frame: {label: ml}} of {labelled frame: `label_counts`} on a grid with this affine (4, 4)."""
    voxel_ml = math.prod(voxel_size(affine)) / 1000
    return {str(t): {str(label): round(n * voxel_ml, 6) for label, n in of_frame.items()}
            for t, of_frame in counts.items()}  # fmt: skip


def find_phases(
    source: Source, n_frames: int, counts: Mapping[int, Mapping[int, int]], lv_label: int
) -> tuple[dict, str]:
    """The record of a cine's ED and ES, empty where they are unknown; and what is wrong with them, or "".

    Where the source does not say, they are the labelled frames with the largest and the smallest left ventricle, if at
    least two hold it. counts: as for `volumes_ml`.
    """
    sizes = {t: of_frame[lv_label] for t, of_frame in counts.items() if lv_label in of_frame}
    if given := source.phases:
        if late := next((f"{name} is frame {t}" for name, t in zip(("ED", "ES"), given) if t >= n_frames), ""):
            return {}, (f"{given.source}: {late}, counted from 0, and the cine has {n_frames} frames: correct it (the "
                        "view was prepared without ED and ES)")  # fmt: skip
        at_ed, at_es = (sizes.get(t) for t in given[:2])
        swapped = at_ed and at_es and at_es > at_ed
        fault = (f"{given.source}: the left ventricle has {at_es} voxels at ES (frame {given.es}) and only {at_ed} at "
                 f"ED (frame {given.ed}): correct them, or the label maps (they stay ED and ES)") if swapped else ""
        return {"phases": {"ed": given.ed, "es": given.es, "source": given.source}}, fault
    if len(sizes) < 2:
        return {}, ""
    ed, es = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
    return {"phases": {"ed": ed, "es": es, "source": BY_LABELS}}, ""


def undrawn(phases: Phases | None, maps: Mapping[int, np.ndarray]) -> str:
    """A note where a known ED or ES has no label map, or ""."""
    if phases is None:
        return ""
    ends = [f"{name} (frame {t})" for name, t in zip(("ED", "ES"), phases) if t not in maps]
    return f"no label is drawn at {' and '.join(ends)}, which {phases.source} gives (labels)" if ends else ""
