"""What the synthetic body is made of: relaxation times, proton density and uptake of contrast agent of each tissue.

T1 and T2 are near those measured at 1.5 T (Kawel-Boehm et al., J. Cardiovasc. Magn. Reson. 2020, for the heart;
Stanisz et al., Magn. Reson. Med. 2005, for the rest); proton densities are chosen for the contrast of usual cines.
Injured muscle has a longer T1 and T2 than healthy one, but the same T1 / T2, on which the signal of a balanced
steady-state cine depends: so a cine shows an infarct by its motion alone.
"""

from typing import NamedTuple


class Tissue(NamedTuple):
    """Relaxation times without contrast agent; proton density of water being 1; and the share of its volume into which
    contrast agent of the blood plasma spreads (for muscle: its extracellular volume)."""

    t1_ms: float
    t2_ms: float
    proton_density: float
    uptake: float


TISSUES = {
    "air": Tissue(1000, 50, 0.0, 0.0),
    "lung": Tissue(1200, 40, 0.131, 0.30),
    "muscle": Tissue(950, 35, 0.675, 0.12),  # of the skeleton
    "liver": Tissue(580, 46, 0.496, 0.30),
    "fat": Tissue(260, 100, 0.950, 0.02),
    "bone": Tissue(900, 20, 0.433, 0.0),
    "marrow": Tissue(420, 80, 0.402, 0.08),
    "pleura": Tissue(950, 35, 0.871, 0.20),
    "connective": Tissue(400, 60, 0.349, 0.12),  # of the mediastinum, with fat
    "fluid": Tissue(4000, 1500, 0.879, 0.0),  # around the spinal cord
    "cord": Tissue(900, 75, 0.758, 0.02),
    "blood": Tissue(1550, 250, 0.853, 0.54),
    "myocardium": Tissue(1000, 50, 0.697, 0.27),
    "scar": Tissue(1150, 57.5, 0.697, 0.74),
    "no-reflow": Tissue(1100, 55, 0.697, 0.03),
    "oedema": Tissue(1340, 67, 0.697, 0.36),
}
