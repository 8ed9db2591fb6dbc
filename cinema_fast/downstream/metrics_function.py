"""Cardiac function from volumes: ejection fraction, stroke volume, mass, end-diastole and end-systole."""

import math
from collections.abc import Mapping

import numpy as np

from .metrics_segmentation import ML_PER_MM3

MYOCARDIUM_G_PER_ML = 1.05
EF_CLASSES = ("reduced", "borderline", "normal")
EF_LIMITS = (40.0, 55.0)  # percent: up to the first reduced, above the second normal
QUANTITIES = {
    "lv_edv_ml": "LV end-diastolic volume (ml)",
    "lv_esv_ml": "LV end-systolic volume (ml)",
    "lv_sv_ml": "LV stroke volume (ml)",
    "lv_ef": "LV ejection fraction (%)",
    "lv_mass_g": "LV myocardial mass (g)",
    "rv_edv_ml": "RV end-diastolic volume (ml)",
    "rv_esv_ml": "RV end-systolic volume (ml)",
    "rv_sv_ml": "RV stroke volume (ml)",
    "rv_ef": "RV ejection fraction (%)",
}


def volume_curves(labels: np.ndarray, spacing_mm: tuple[float, float, float], classes: Mapping[int, str]) -> dict:
    """{class: (T,) float64 volume [ml]} of label maps (T, X, Y, Z) uint8: voxels x spacing / 1000."""
    counts = np.stack([np.bincount(frame.ravel(), minlength=max(classes) + 1) for frame in labels])
    return {name: counts[:, label] * (math.prod(spacing_mm) * ML_PER_MM3) for label, name in classes.items()}


def ed_es(lv_ml: np.ndarray) -> tuple[int, int]:
    """Indices of end-diastole, where a volume-time curve (T,) is largest, and of end-systole, where it is smallest."""
    return int(np.argmax(lv_ml)), int(np.argmin(lv_ml))


def ejection_fraction(edv_ml: float, esv_ml: float) -> float:
    """(EDV - ESV) / EDV x 100 [percent]; nan where there is no end-diastolic volume."""
    return (edv_ml - esv_ml) / edv_ml * 100 if edv_ml > 0 else math.nan


def cardiac_function(curves: Mapping[str, np.ndarray], ed: int, es: int) -> dict[str, float]:
    """QUANTITIES of volume-time curves {RV, MYO, LV: (T,) ml} at two indices; mass is that of the myocardium at ED.

    Both ventricles are measured at the same two frames, those of the left one. Curves that are absent are left out.
    """
    found = {}
    for ventricle in ("LV", "RV"):
        if ventricle in curves:
            edv, esv = (float(curves[ventricle][t]) for t in (ed, es))
            values = {"edv_ml": edv, "esv_ml": esv, "sv_ml": edv - esv, "ef": ejection_fraction(edv, esv)}
            found |= {f"{ventricle.lower()}_{name}": value for name, value in values.items()}
    if "MYO" in curves:
        found["lv_mass_g"] = float(curves["MYO"][ed]) * MYOCARDIUM_G_PER_ML
    return found


def ef_class(ef: float) -> str:
    """Reduced up to 40 %, normal above 55 %, borderline between (as the reference)."""
    return EF_CLASSES[sum(ef > limit for limit in EF_LIMITS)]
