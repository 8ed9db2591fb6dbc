"""Long-axis function from landmarks: length from annulus to apex, its shortening, and the motion of the annulus."""

import math
from collections.abc import Mapping

import numpy as np

AXIS = ("annulus_1", "annulus_2", "apex")  # the two ends of the mitral annulus, and the apex
LONG_AXIS = {
    "longest_mm": "longest annulus to apex (mm)",
    "shortest_mm": "shortest annulus to apex (mm)",
    "shortening_mm": "shortening (mm)",
    "mapse_mm": "MAPSE (mm)",
    "gls": "GLS of the line from annulus to apex (%)",
}


def annulus_to_apex(mm: Mapping[str, np.ndarray]) -> np.ndarray:
    """(T,) [mm] from the middle of the mitral annulus to the apex; mm: {landmark of AXIS: (T, 2 or 3)}."""
    return np.linalg.norm((mm["annulus_1"] + mm["annulus_2"]) / 2 - mm["apex"], axis=-1)


def longest_and_shortest(mm: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """The indices of the frames in which annulus and apex are farthest apart, and nearest."""
    length = annulus_to_apex(mm)
    return int(length.argmax()), int(length.argmin())


def long_axis_function(mm: Mapping[str, np.ndarray], longest: int, shortest: int) -> dict[str, float]:
    """The quantities of LONG_AXIS between two frames of landmarks {landmark of AXIS: (T, 2 or 3) mm}.

    mapse_mm is the mean displacement of both ends of the annulus. gls is the change of the length, (shortest - longest)
    / longest x 100 [percent], negative where the ventricle shortens; nan where there is no length. It is the shortening
    of a straight line; the strain of the myocardial contour, which is usually called GLS, is another number.

    Source: the CineMA reference's example of landmarks, where GLS has the opposite sign.
    """
    length = annulus_to_apex(mm)
    long, short = float(length[longest]), float(length[shortest])
    moved = [np.linalg.norm(mm[name][longest] - mm[name][shortest]) for name in AXIS[:2]]
    gls = (short - long) / long * 100 if long > 0 else math.nan
    return dict(zip(LONG_AXIS, (long, short, long - short, float(np.mean(moved)), gls)))
