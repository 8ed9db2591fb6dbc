"""The fate of a synthetic patient: hypertension, diabetes, and the time of an event or of the end of observation.

Every effect is planted, so that what a model of risk finds can be compared with what is true. Per unit of a covariate
above its reference (`EFFECTS`, `INTERCEPTS`):

                       unit       reference    hypertension    diabetes      event
                                               log-odds        log-odds      log-hazard
    at the references                          -0.60           -2.00         baseline
    age                10 years   50           +0.50           +0.35         +0.40
    BMI                5 kg/m2    25           +0.40           +0.60
    mass / volume      0.2 g/ml   0.9          +0.35
    EF                 10 %       60                                         -0.35
    scar               5 %        0                                          +0.40
    myocardial mass    20 g       130                                        +0.12
    hypertension       yes        no                           +0.50         +0.25
    diabetes           yes        no                                         +0.45

Sex, the disease, the right ventricle and all else act through these only. EF is that of the heart itself, not over the
frames of a study; scar is a share of the myocardium; mass / volume is the myocardial mass over the end-diastolic volume
of the left ventricle. Heart and injury are drawn first and do not know of hypertension: given them it is drawn more
often in those with thick walls.

The hazard of an event is proportional to exp(log_hazard), with a Weibull baseline: the cumulative hazard after t years
is (t / `WEIBULL_YEARS`) ^ `WEIBULL_SHAPE` * exp(log_hazard), so of patients at all references 15 % have an event within
ten years. Observation ends after `FOLLOW_UP_YEARS`, or before by a loss to follow-up that strikes everybody at the same
constant rate, `LOSS_PER_YEAR`. About a third of all patients have an event.

The sizes are chosen, not estimated, and the event is none in particular. The effect of EF is about that in CHARM
(Solomon et al., Circulation 2005: hazard ratio 1.39 per 10 % less, there below 45 % only). That mass goes with events,
and blood pressure with mass, was found in MESA (Bluemke et al., J. Am. Coll. Cardiol. 2008; Heckbert et al., J. Am.
Coll. Cardiol. 2006).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .heart import BeatingHeart
from .injury import Injury
from .patient import Patient


class Effect(NamedTuple):
    """`log_ratio` of the odds or of the hazard, for every `per` of the covariate's unit above `reference`."""

    log_ratio: float
    per: float
    reference: float


# What is affected -> covariate, as `covariates` and `Outcome` call it -> its effect.
EFFECTS: dict[str, dict[str, Effect]] = {
    "hypertension": {
        "age": Effect(0.50, 10, 50),
        "bmi": Effect(0.40, 5, 25),
        "mass_to_volume": Effect(0.35, 0.2, 0.9),
    },
    "diabetes": {
        "age": Effect(0.35, 10, 50),
        "bmi": Effect(0.60, 5, 25),
        "hypertension": Effect(0.50, 1, 0),
    },
    "event": {
        "heart_ef": Effect(-0.35, 10, 60),
        "scar_percent": Effect(0.40, 5, 0),
        "age": Effect(0.40, 10, 50),
        "myocardial_mass_g": Effect(0.12, 20, 130),
        "hypertension": Effect(0.25, 1, 0),
        "diabetes": Effect(0.45, 1, 0),
    },
}
INTERCEPTS = {"hypertension": -0.6, "diabetes": -2.0}  # log-odds at the references
WEIBULL_SHAPE, WEIBULL_YEARS = 1.2, 45.0
FOLLOW_UP_YEARS, LOSS_PER_YEAR = 10.0, 0.03


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of one patient."""

    hypertension: int  # 0 or 1
    diabetes: int  # 0 or 1
    event: int  # 1: an event at `time_years`; 0: observed without one until then
    time_years: float
    log_hazard: float  # true, in relation to the baseline


def covariates(patient: Patient, heart: BeatingHeart, injury: Injury | None) -> dict[str, float]:
    """What outcomes depend on: age (years), bmi (kg/m^2), heart_ef and scar_percent (percent), myocardial_mass_g (g)
    and mass_to_volume (g/ml)."""
    return {
        "age": patient.age,
        "bmi": patient.bmi,
        "heart_ef": 100 * patient.heart.ef,
        "scar_percent": injury.scar_percent if injury else 0.0,
        "myocardial_mass_g": heart.myocardial_mass_g,
        "mass_to_volume": heart.myocardial_mass_g / patient.heart.edv_ml,
    }


def draw_outcome(rng: np.random.Generator, patient: Patient, heart: BeatingHeart, injury: Injury | None) -> Outcome:
    """Draw the fate of `patient`, whose heart and injury these are."""
    known = covariates(patient, heart, injury)
    chances = rng.random(2)
    for name, chance in zip(INTERCEPTS, chances):
        known[name] = int(chance < 1 / (1 + math.exp(-INTERCEPTS[name] - _effect(name, known))))
    log_hazard = _effect("event", known)
    hazard, loss = rng.standard_exponential(2)  # cumulative, at which the event and the loss to follow-up occur
    happens = WEIBULL_YEARS * (hazard * math.exp(-log_hazard)) ** (1 / WEIBULL_SHAPE)
    until = min(FOLLOW_UP_YEARS, loss / LOSS_PER_YEAR)
    return Outcome(
        known["hypertension"], known["diabetes"], int(happens <= until), float(min(happens, until)), log_hazard
    )


def _effect(of: str, known: Mapping[str, float]) -> float:
    """Sum of the effects on `of`: log-odds or log-hazard in relation to that at the references."""
    return sum(e.log_ratio * (known[name] - e.reference) / e.per for name, e in EFFECTS[of].items())
