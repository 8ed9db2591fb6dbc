"""Which frames of a cine are ED and ES, in a processed folder of the CineMA reference (`cinema.py`)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..formats.cine import CineError
from ..formats.nifti import read_nifti

PHASES = ("ed", "es")
NEAR = 2.0  # grey levels of 255: an image of ED or ES differs by less, on average, from its frame of the cine


def named_frames(row: Mapping[str, str]) -> tuple[dict[str, int], str]:
    """{ed, es: frame from 0} that a line of a table gives, or {}; and what is wrong with it, or "".

    The columns ed_frame and es_frame count from 1 (ACDC), ed_index and es_index from 0 (M&Ms).
    """
    for suffix, first in (("frame", 1), ("index", 0)):
        texts = [row.get(f"{phase}_{suffix}", "") for phase in PHASES]
        if all(text.isdecimal() and int(text) >= first for text in texts):
            return {phase: int(text) - first for phase, text in zip(PHASES, texts)}, ""
        if any(texts):
            return {}, f"ed_{suffix} is {texts[0]!r}, es_{suffix} {texts[1]!r}, expected frames from {first}"
    return {}, ""


def matched_frames(cine: Path, images: Mapping[str, Path]) -> tuple[dict[str, int], dict[Path, str]]:
    """{ed, es: the frame, from 0, of a cine (X, Y, Z, T) with the smallest mean absolute difference from the image};
    and {image: why it is none of the frames}. Empty where the cine cannot be read."""
    frames: dict[str, int] = {}
    faults: dict[Path, str] = {}
    try:
        data = read_nifti(cine).values()
    except CineError:  # it is refused when its view is prepared
        return {}, {}
    for phase, path in images.items():
        try:
            wanted = read_nifti(path).values()
        except CineError as err:
            faults[path] = err.reason
            continue
        if data.ndim != 4 or (*wanted.shape, 1)[:3] != data.shape[:3]:
            faults[path] = f"its shape is {wanted.shape}, that of {cine.name} {data.shape}"
            continue
        apart = np.abs(data - wanted.reshape(*data.shape[:3], 1)).mean((0, 1, 2))
        if apart.min() < NEAR:
            frames[phase] = int(apart.argmin())
        else:
            faults[path] = (f"it is no frame of {cine.name}: the nearest one, {apart.argmin()} from 0, differs by "
                            f"{apart.min():.3g} grey levels on average")  # fmt: skip
    return frames, faults
