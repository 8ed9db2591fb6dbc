"""The synthetic patient: disease, covariates, heart parameters and pose of one synthetic study, drawn by seed.

Ranges follow the normal values and the disease definitions that are usual for cine cardiac MR (Kawel-Boehm et al.,
J. Cardiovasc. Magn. Reson. 2020), loosely: the studies are plausible, not a population.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .heart import HeartParameters
from .injury import InjuryParameters, draw_injury

DISEASES = ("normal", "dilated", "hypertrophic", "infarct", "rv_abnormal")
_SHARE = (0.36, 0.17, 0.15, 0.19, 0.13)

# Ranges per disease: ejection fraction, end-diastolic volume of a man (ml), wall (mm), the right ventricle's ejection
# fraction and volume, and length over radius of the left ventricle's cavity.
_RANGES = {
    "normal": ((0.54, 0.70), (115, 190), (7.5, 9.5), (0.48, 0.64), (130, 195), (3.3, 3.8)),
    "dilated": ((0.16, 0.42), (200, 330), (6.5, 8.5), (0.28, 0.52), (140, 240), (2.7, 3.2)),
    "hypertrophic": ((0.60, 0.77), (95, 155), (10.5, 14.0), (0.52, 0.68), (105, 165), (3.3, 3.8)),
    "infarct": ((0.24, 0.50), (140, 250), (7.5, 9.5), (0.40, 0.60), (120, 190), (3.1, 3.5)),
    "rv_abnormal": ((0.44, 0.62), (105, 170), (7.5, 9.5), (0.16, 0.40), (200, 320), (3.3, 3.8)),
}


@dataclass(frozen=True, slots=True)
class Patient:
    """One subject. `apex_mm` (3,) and `axes` (3, 3; rows septum-ward, inferior, base-ward) place heart in patient."""

    disease: str
    age: float  # years
    sex: str  # "female" or "male"
    bmi: float  # kg/m^2
    heart: HeartParameters
    apex_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    injury: InjuryParameters | None


def draw_patient(rng: np.random.Generator, disease: str | None = None, acute: bool | None = None) -> Patient:
    """Draw a subject; `disease` one of `DISEASES`, `acute` whether an infarct is so; None draws them too."""
    drawn = DISEASES[rng.choice(len(DISEASES), p=_SHARE)]
    disease = drawn if disease is None else disease
    ef_range, edv_range, wall_range, rv_ef_range, rv_edv_range, slim_range = _RANGES[disease]
    age, bmi = rng.uniform(20, 85), float(np.clip(rng.normal(25.5, 3.5), 18, 38))
    sex = ("female", "male")[int(rng.integers(2))]
    old = (age - 50) / 35  # about -1 to 1
    scale = (1.0 if sex == "male" else 0.84) * (1 - 0.07 * old)
    ef, rv_ef = rng.uniform(*ef_range), rng.uniform(*rv_ef_range)
    edv, rv_edv = scale * rng.uniform(*edv_range), scale * rng.uniform(*rv_edv_range)
    slim = rng.uniform(*slim_range) - 0.15 * old  # the ventricle shortens with age
    length = (1e3 * edv * slim**2 / (0.7492 * math.pi)) ** (1 / 3)  # EDV = 0.7492 pi radius^2 length
    rate = float(np.clip(rng.normal(68, 9) + 25 * max(0.0, 0.45 - ef), 48, 105))
    hypertrophic, infarct = disease == "hypertrophic", disease == "infarct"
    heart = HeartParameters(
        edv_ml=edv,
        ef=ef,
        rv_edv_ml=rv_edv,
        rv_ef=rv_ef,
        length_mm=length,
        wall_mm=rng.uniform(*wall_range) * (1.0 if sex == "male" else 0.93) + 0.5 * old,
        wall_bulge_mm=rng.uniform(3, 9) if hypertrophic else rng.uniform(0, 1),
        wall_angle=rng.uniform(-1.0, 0.3),
        akinesia=rng.uniform(0.7, 1.0) if infarct else 0.0,
        infarct_angle=rng.uniform(-math.pi, math.pi),
        infarct_height=rng.uniform(0.2, 0.6),
        descent_mm=length * (0.03 + 0.2 * ef) * rng.uniform(0.85, 1.15),
        twist_apex=math.radians(rng.uniform(0.7, 1.2) * 14 * ef),
        twist_base=-math.radians(rng.uniform(0.7, 1.2) * 6 * ef),
        atrium_mm=rng.uniform(40, 50) + 3 * old + (6 if disease in ("dilated", "hypertrophic") else 0),
        atrial_filling=rng.uniform(0.2, 0.5) * (0.4 + ef),
        aorta_mm=rng.uniform(11.5, 13.5) + 1.2 * old,
        fat_mm=rng.uniform(0.8, 2.0) + 0.12 * (bmi - 20),
        heart_rate=rate,
        systole=float(np.clip(0.24 + 0.0018 * (rate - 5) + rng.normal(0, 0.01), 0.30, 0.44)),
        early_filling=float(np.clip(rng.normal(0.66, 0.05) - 0.13 * old, 0.4, 0.85)),
    )
    apex_mm, axes = _draw_pose(rng, heart, bmi)
    # Drawn last: what was drawn before does not depend on it.
    return Patient(disease, age, sex, bmi, heart, apex_mm, axes, draw_injury(rng, disease, heart, acute))


def _draw_pose(
    rng: np.random.Generator, heart: HeartParameters, bmi: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Apex (mm) and axes of the heart in the patient: towards left, front and feet, flatter in the obese."""
    base = np.array([0.50, -0.62, 0.60 - 0.012 * (bmi - 25)]) + rng.normal(0, 0.07, 3)
    base /= np.linalg.norm(base)
    septum = np.array([0.70, 0.70, 0.10]) + rng.normal(0, 0.08, 3)
    septum -= base * (septum @ base)
    septum /= np.linalg.norm(septum)
    inferior = np.cross(base, septum)
    inferior *= -np.sign(inferior[2])
    # A large right ventricle pushes the left one back from the chest wall.
    middle = np.array([-34.0, 20.0 - 0.08 * (heart.rv_edv_ml - 160), 2.0]) + rng.normal(0, 5, 3)
    return middle - 0.5 * heart.length_mm * base, np.stack([septum, inferior, base])
