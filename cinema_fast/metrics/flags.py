"""Flags of results to review: their codes and meaning, and the limits of plausible values.

Flags do not change any number. They are listed in the tables, in results.json, in the report and in the pictures.
"""

import math
from collections.abc import Iterable, Mapping

from .function import CycleFunction

# Lowest and highest plausible value of an adult, in percent, ml and g. Healthy adults have an LV EF of 58 (SD 5, men)
# and 61 (5, women) %, and an LV mass of 53 (9) and 42 (7) g per m2 of body surface (Petersen et al., "Reference ranges
# for cardiac structure and function using CMR in the UK Biobank", JCMR 2017). The limits are this project's own and
# many SD wider, so that failing, dilated and hypertrophic hearts lie within. Outside of them an error of the
# segmentation is more likely than such a heart.
LIMITS = {
    "lv_edv_ml": (40.0, 500.0),
    "lv_esv_ml": (8.0, 450.0),
    "lv_sv_ml": (15.0, 250.0),
    "lv_ef": (10.0, 85.0),
    "lv_mass_g": (25.0, 400.0),
    "rv_edv_ml": (40.0, 500.0),
    "rv_esv_ml": (8.0, 400.0),
    "rv_sv_ml": (15.0, 250.0),
    "rv_ef": (10.0, 85.0),
}

CODES = {
    "nothing_found": "no structure was found in any frame of a view",
    "missing_views": "the study lacks views that the model combines into its prediction",
    "few_slices": "a stack has fewer slices than any of training and validation",
    "lv_not_found": "the LV was found in no frame of a stack",
    "rv_not_found": "the RV was found in no frame of a stack",
    "lv_empty_frames": "the LV was found in some frames and not in others, so there is no LV function",
    "rv_empty_frames": "the RV was found in some frames and not in others, so there is no RV function",
    "cut_off": "a structure reaches the edge of the model's image, so its volume may be too small",
    "ed_es_swapped": "the LV is larger in the frame whose file is named es than in that named ed",
    "phases_disagree": "ED or ES of the RV is more than a quarter of the cycle away from that of the LV",
}
_SIGNED = ("lv_sv_ml", "lv_ef", "rv_sv_ml", "rv_ef")  # computed from differences of volumes, which can be negative


def _code(quantity: str, what: str) -> str:
    return quantity.removesuffix("_ml").removesuffix("_g") + what


for _name, (_low, _high) in LIMITS.items():
    if _name in _SIGNED:
        CODES[_code(_name, "_negative")] = f"{_name} is below 0: the volume called ED is the smaller one"
    CODES[_code(_name, "_implausible")] = f"{_name} is outside {_low:g} to {_high:g}: check the segmentation"


def value_flags(function: Mapping[str, float]) -> list[str]:
    """Codes of values {quantity: number} that are negative or outside of LIMITS; values that are not finite have
    none."""
    found = []
    for name, value in function.items():
        low, high = LIMITS[name]
        if math.isfinite(value) and not low <= value <= high:
            found.append(_code(name, "_negative" if value < 0 else "_implausible"))
    return found


def cycle_flags(cycle: CycleFunction, n_frames: int) -> list[str]:
    """Codes of a whole cycle of n_frames: implausible values, missing ventricles, and ventricles out of phase."""
    missed = {name.lower(): len(empty) for name, empty in cycle.empty.items() if empty}
    found = [f"{name}_{'not_found' if n == n_frames else 'empty_frames'}" for name, n in missed.items()]
    if len(cycle.frames) == 2:
        apart = [abs(left - right) for left, right in zip(*cycle.frames.values())]
        if any(min(n, n_frames - n) > n_frames / 4 for n in apart):  # cyclic: the last frame is next to the first
            found.append("phases_disagree")
    return found + value_flags(cycle.function)


def in_order(codes: Iterable[str]) -> list[str]:
    """Each code once, in the order of CODES."""
    given = set(codes)
    return [code for code in CODES if code in given]
