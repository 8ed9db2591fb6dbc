"""The sequences of a study: the signal of every tissue in each, by the equation of the sequence.

cine    balanced steady-state free precession (Freeman & Hill, J. Magn. Reson. 1971); of the blood a share has just
        flowed in and is not in the steady state yet
lge     late gadolinium enhancement, phase-sensitive inversion recovery, about 15 minutes after the contrast agent: the
        inversion time is a little longer than that at which healthy muscle has no signal; voxels below 0 are shown as 0
t1map   native T1 in ms        t2map   T2 in ms
t2w     T2-weighted spin echoes, fat suppressed by its inversion time (STIR), dark blood
t1w     T1-weighted spin echoes, dark blood
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..common.views import VIEWS
from .scanner import STANDARD, Scanner
from .tissue import TISSUES, Tissue

UNITS = 1600.0  # of the scanner, for a signal of 1: the blood of a cine has 400
_BEAT_MS = 850.0  # between the excitations of sequences triggered by the heart
_PLASMA_R1 = 3.4e-3  # rise of 1 / T1 in plasma, per ms: 4.5 per s and mM, 0.75 mM 15 minutes after 0.15 mmol/kg
_INFLOW = 0.34  # share of the blood in a cine's slice that has just flowed in
_DARK_BLOOD = 0.06  # share of the blood's signal that is left: slow blood


def _recovered(t1_ms: float, inversion_ms: float, repetition_ms: float) -> float:
    """Longitudinal magnetisation, -1 to 1, at `inversion_ms` after an inversion. Inversion and readout are repeated;
    the readout uses up the magnetisation, as a pulse of 90 degrees does."""
    return 1 - 2 * math.exp(-inversion_ms / t1_ms) + math.exp(-repetition_ms / t1_ms)


def _null_ms(t1_ms: float, repetition_ms: float) -> float:
    """The inversion time at which `_recovered` is 0."""
    return t1_ms * math.log(2 / (1 + math.exp(-repetition_ms / t1_ms)))


def enhanced_t1_ms(tissue: Tissue) -> float:
    """T1 at the time of late enhancement."""
    return 1 / (1 / tissue.t1_ms + _PLASMA_R1 * tissue.uptake)


def _cine(name: str, scanner: Scanner) -> float:
    tissue, flip, repetition = TISSUES[name], math.radians(scanner.cine_flip_deg), 3.0
    e1, e2 = math.exp(-repetition / tissue.t1_ms), math.exp(-repetition / tissue.t2_ms)
    signal = math.sin(flip) * (1 - e1) / (1 - (e1 - e2) * math.cos(flip) - e1 * e2)
    if name == "blood":
        signal += _INFLOW * (math.sin(flip / 2) - signal)
    return tissue.proton_density * signal * math.sqrt(e2)


def _lge(name: str, scanner: Scanner) -> float:
    tissue, repetition = TISSUES[name], 2 * _BEAT_MS
    inversion = scanner.lge_inversion * _null_ms(enhanced_t1_ms(TISSUES["myocardium"]), repetition)
    excited = math.sin(math.radians(25)) * math.exp(-3 / tissue.t2_ms)
    return 1.8 * tissue.proton_density * excited * _recovered(enhanced_t1_ms(tissue), inversion, repetition)


def _t2w(name: str, scanner: Scanner) -> float:
    tissue, repetition = TISSUES[name], 3 * _BEAT_MS
    inversion = 1.1 * _null_ms(TISSUES["fat"].t1_ms, repetition)
    signal = -_recovered(tissue.t1_ms, inversion, repetition) * math.exp(-scanner.t2w_echo_ms / tissue.t2_ms)
    return 1.6 * tissue.proton_density * signal * (_DARK_BLOOD if name == "blood" else 1)


def _t1w(name: str, scanner: Scanner) -> float:
    tissue = TISSUES[name]
    signal = (1 - math.exp(-_BEAT_MS / tissue.t1_ms)) * math.exp(-10 / tissue.t2_ms)
    return 0.4 * tissue.proton_density * signal * (_DARK_BLOOD if name == "blood" else 1)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a sequence is acquired.

    planes: the image planes it is taken in. signal: (name of a tissue, scanner) -> its signal, 1 being `UNITS`; None
    for a map. value_ms: tissue -> T1 or T2, of a map. slices: of its short-axis stack; None: as many as the cine's.
    """

    planes: tuple[str, ...]
    signal: Callable[[str, Scanner], float] | None = None
    value_ms: Callable[[Tissue], float] | None = None
    slices: int | None = None


PROTOCOLS = {  # by the names of `common.sequences.SEQUENCES`
    "cine": Protocol(VIEWS, _cine),
    "lge": Protocol(VIEWS, _lge),
    "t1map": Protocol(("sax", "lax_4c"), value_ms=lambda tissue: tissue.t1_ms, slices=3),
    "t2map": Protocol(("sax", "lax_4c"), value_ms=lambda tissue: tissue.t2_ms, slices=3),
    "t2w": Protocol(("sax", "lax_4c"), _t2w),
    "t1w": Protocol(("sax", "lax_4c"), _t1w),
}


def signals(sequence: str, scanner: Scanner = STANDARD) -> dict[str, float]:
    """The signal of every tissue in scanner units at a gain of 1; not for maps. After an inversion it has a sign, with
    which tissues mix in a voxel; that of the T2-weighted image, a magnitude, is positive for muscle.

    That of a cine is rounded to whole units, so that images of earlier versions stay the same to the bit.
    """
    signal = PROTOCOLS[sequence].signal
    found = {name: UNITS * signal(name, scanner) for name in TISSUES}
    return {name: float(round(value)) for name, value in found.items()} if sequence == "cine" else found


CINE = signals("cine")


class Palette:
    """The signal of the tissues in one image. `palette[name]` is that of a tissue, `palette.tone(name)` the same in
    multiples of its signal in the standard cine, whose brightness the textures of the body are written in."""

    def __init__(self, signal: Mapping[str, float]):
        self._signal = dict(signal)
        self._tone = {name: value / CINE[name] if CINE[name] else 0.0 for name, value in signal.items()}

    def __getitem__(self, name: str) -> float:
        return self._signal[name]

    def tone(self, name: str) -> float:
        return self._tone[name]


def map_palettes(sequence: str) -> tuple[Palette, Palette]:
    """Of a map: proton density, and proton density x value. A voxel's value is the quotient of the two images, as
    several tissues in it count by their protons."""
    protons = {name: UNITS * tissue.proton_density for name, tissue in TISSUES.items()}
    value_ms = PROTOCOLS[sequence].value_ms
    return Palette(protons), Palette({name: n * value_ms(TISSUES[name]) for name, n in protons.items()})
