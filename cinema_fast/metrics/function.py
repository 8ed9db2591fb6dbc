"""Cardiac function from volumes: ejection fraction, stroke volume, mass, end-diastole and end-systole."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .segmentation import ML_PER_MM3

MYOCARDIUM_G_PER_ML = 1.05
VENTRICLES = ("LV", "RV")
EF_CLASSES = ("reduced", "borderline", "normal")
EF_LIMITS = (40.0, 55.0)  # [%] reduced up to the first, normal above the second
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


def has_volumes(shape: Sequence[int]) -> bool:
    """Whether label maps of a shape (T, X, Y[, Z]) are a stack of more than one slice; one slice has only areas."""
    return len(shape) == 4 and shape[3] > 1


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

    Both ventricles are measured at the same two frames. Quantities of absent curves are left out.
    """
    found = {}
    for ventricle in VENTRICLES:
        if ventricle in curves:
            found |= _of_ventricle(ventricle, curves[ventricle], ed, es)
    if "MYO" in curves:
        found["lv_mass_g"] = _mass(curves["MYO"], ed)
    return found


@dataclass(frozen=True)
class CycleFunction:
    """function: the QUANTITIES of a whole cycle that can be measured. frames: {ventricle: its (ED, ES)}.

    empty: {segmented ventricle: frames in which it was not found}.
    """

    function: dict[str, float] = field(default_factory=dict)
    frames: dict[str, tuple[int, int]] = field(default_factory=dict)
    empty: dict[str, list[int]] = field(default_factory=dict)

    @property
    def guide(self) -> str | None:
        """The ventricle at whose ED the mass is measured: the LV, or the RV where only the RV is segmented."""
        return next(iter(self.empty), None)


def cycle_function(curves: Mapping[str, np.ndarray]) -> CycleFunction:
    """Function over a whole cycle of volume-time curves {RV, MYO, LV: (T,) ml}, each ventricle at its own ED and ES.

    A ventricle that is missing in a frame has no values, since its smallest volume would come from that frame. A cine
    of one frame has none either. Mass is that of the myocardium at the ED of the LV, or of the RV where the LV is not
    segmented.
    """
    found = CycleFunction()
    for ventricle in VENTRICLES:
        if ventricle not in curves:
            continue
        curve = curves[ventricle]
        found.empty[ventricle] = np.flatnonzero(curve == 0).tolist()
        if len(curve) > 1 and not found.empty[ventricle]:
            found.frames[ventricle] = ed, es = ed_es(curve)
            found.function.update(_of_ventricle(ventricle, curve, ed, es))
    if "MYO" in curves and found.guide in found.frames:
        found.function["lv_mass_g"] = _mass(curves["MYO"], found.frames[found.guide][0])
    return found


def _of_ventricle(ventricle: str, curve: np.ndarray, ed: int, es: int) -> dict[str, float]:
    edv, esv = float(curve[ed]), float(curve[es])
    values = {"edv_ml": edv, "esv_ml": esv, "sv_ml": edv - esv, "ef": ejection_fraction(edv, esv)}
    return {f"{ventricle.lower()}_{name}": value for name, value in values.items()}


def _mass(myocardium_ml: np.ndarray, ed: int) -> float:
    return float(myocardium_ml[ed]) * MYOCARDIUM_G_PER_ML


def ef_class(ef: float) -> str:
    """Reduced up to 40 %, normal above 55 %, borderline between (as the reference)."""
    return EF_CLASSES[sum(ef > limit for limit in EF_LIMITS)]
