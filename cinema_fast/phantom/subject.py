"""The subject of a synthetic study: all that does not depend on how, or whether, images are taken of it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from .heart import BeatingHeart
from .injury import Injury
from .outcome import Outcome, covariates, draw_outcome
from .patient import Patient, draw_patient

_PATIENT, _OUTCOME = 0, 9  # streams of a study's random numbers; the others are in `study.py`


class Subject(NamedTuple):
    """A patient with heart, injury (or None) and fate."""

    patient: Patient
    heart: BeatingHeart
    injury: Injury | None
    outcome: Outcome


def draw_subject(seed: int | Sequence[int], disease: str | None = None, acute: bool | None = None) -> Subject:
    """The subject of `make_study(seed, disease=disease, acute=acute)`."""
    who, fate = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,))) for key in (_PATIENT, _OUTCOME))
    patient = draw_patient(who, disease, acute)
    heart = BeatingHeart(patient.heart)
    injury = Injury(heart, patient.injury) if patient.injury else None
    return Subject(patient, heart, injury, draw_outcome(fate, patient, heart, injury))


def draw_truths(n: int, seed: int) -> list[dict[str, Any]]:
    """A table of `n` subjects without images: row i is of the subject of `make_study((seed, i))`. About 4 ms a row.

    Its columns are equal to those of `PhantomStudy.truth`, with every covariate that has an effect. `heart_ef` is the
    ejection fraction that counts: a study's `ef` is over its frames, which may miss the end of systole.

    Raises:
        ValueError: a number out of range.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"n must be at least 1 and seed at least 0, got {n} and {seed}")
    return [subject_truth(draw_subject((seed, i))) for i in range(n)]


def subject_truth(subject: Subject) -> dict[str, Any]:
    """The truth in plain numbers: volumes in ml (scar with its no-reflow core, oedema without scar), the scar's share
    of the myocardium in percent, its pattern ("" without one), the outcome and what it depends on."""
    patient, heart, injury, outcome = subject
    volumes = injury.volumes_ml if injury else {"scar": 0.0, "no-reflow": 0.0, "oedema": 0.0}
    return {
        "disease": patient.disease,
        "age": patient.age,
        "sex": patient.sex,
        "bmi": patient.bmi,
        "heart_rate": patient.heart.heart_rate,
        "edv_ml": patient.heart.edv_ml,
        "rv_edv_ml": patient.heart.rv_edv_ml,
        "myocardial_mass_g": heart.myocardial_mass_g,
        "scar_pattern": injury.parameters.pattern if injury else "",
        "scar_percent": injury.scar_percent if injury else 0.0,
        **{f"{name.replace('-', '_')}_ml": ml for name, ml in volumes.items()},
        **asdict(outcome),
        **covariates(patient, heart, injury),
    }
