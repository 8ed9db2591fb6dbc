"""Injured muscle of the left ventricle: scar, its no-reflow core, and the oedema around it.

An injury is a smooth patch of the wall (`BeatingHeart.patch`; that of an infarct is the one that moves less) and a
range of depths, 0 at the endocardium and 1 at the epicardium, in reference coordinates, so it moves with the muscle.
Where the patch is above `level`, the scar reaches from depth `inner` outwards, further the nearer the middle of the
patch. Around an acute scar lies oedema; in the middle of a large acute infarct the vessels stay closed (no-reflow).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..common.structures import STRUCTURES
from .heart import DENSITY, Array, BeatingHeart, HeartParameters

SCAR, NO_REFLOW, OEDEMA = 4, 5, 6  # label values
PATTERNS = ("ischaemic", "mid-wall")  # from the endocardium, or within the wall
_OEDEMA_LEVEL, _OEDEMA_DEPTH = 0.7, 0.25  # its level in multiples of the scar's; how much deeper it reaches
_CORE_LEVEL, _CORE_DEPTH = 0.45, (0.15, 0.55)  # level above the scar's; depths in multiples of the scar's


@dataclass(frozen=True, slots=True, kw_only=True)
class InjuryParameters:
    """pattern: one of PATTERNS. acute: with oedema. angle (radians from the septum), height (in lengths of the
    ventricle): middle of the patch. level: of the patch at the scar's border. inner: depth at which it begins. outer:
    depth that it reaches in the middle of the patch. no_reflow: whether it has such a core."""

    pattern: str
    acute: bool
    angle: float
    height: float
    level: float
    inner: float
    outer: float
    no_reflow: bool


def draw_injury(
    rng: np.random.Generator, disease: str, heart: HeartParameters, acute: bool | None = None
) -> InjuryParameters | None:
    """The injury of a patient: each infarct has one, some dilated and hypertrophic hearts a scar within the wall.

    `acute`: whether an infarct is acute; None draws it.
    """
    drawn = rng.random(6).tolist()
    if disease == "infarct":
        acute = bool(drawn[0] < 0.5) if acute is None else acute
        outer = 0.4 + 0.6 * drawn[2]
        return InjuryParameters(
            pattern="ischaemic", acute=acute, angle=heart.infarct_angle, height=heart.infarct_height,
            level=0.45 + 0.25 * drawn[1], inner=0.0, outer=outer, no_reflow=acute and bool(outer > 0.6),
        )  # fmt: skip
    if (disease, drawn[0] < 0.4) not in (("dilated", True), ("hypertrophic", True)):
        return None
    # Dilated: a stripe in the septum. Hypertrophic: where the right ventricle inserts.
    angle = 0.5 * (drawn[3] - 0.5) if disease == "dilated" else math.radians(70) * (1 if drawn[3] < 0.5 else -1)
    inner = 0.3 + 0.1 * drawn[4]
    return InjuryParameters(
        pattern="mid-wall", acute=False, angle=angle, height=0.4 + 0.25 * drawn[5], level=0.6 + 0.15 * drawn[1],
        inner=inner, outer=inner + 0.25 + 0.2 * drawn[2], no_reflow=False,
    )  # fmt: skip


class Injury:
    """The injury of one heart."""

    def __init__(self, heart: BeatingHeart, parameters: InjuryParameters):
        self.heart, self.parameters = heart, parameters

    def depths(self, h: Array, c: Array, s: Array) -> dict[int, tuple[Array, Array]]:
        """Label -> depths at which it begins and ends at reference height `h` (mm) and direction (c, s) = (cos, sin);
        where the end is not above the beginning there is none. The scar's range includes the no-reflow core's, the
        oedema's the scar's."""
        p = self.parameters
        patch = self.heart.patch(h, c, s, p.angle, p.height)

        def reach(level: float, deepest: float) -> Array:
            above = (patch - level) / (1 - level)
            return deepest * np.sqrt(np.maximum(above, 0)) + np.minimum(above, 0)

        scar = p.inner + reach(p.level, p.outer - p.inner)
        found = {SCAR: (np.full_like(scar, p.inner), scar)}
        if p.acute:
            deepest = min(1.0, p.outer + _OEDEMA_DEPTH)
            found[OEDEMA] = np.zeros_like(scar), np.maximum(reach(_OEDEMA_LEVEL * p.level, deepest), scar)
        if p.no_reflow:
            core = reach(p.level + _CORE_LEVEL * (1 - p.level), 1.0)
            begin, end = (share * p.outer for share in _CORE_DEPTH)
            found[NO_REFLOW] = np.full_like(scar, begin), np.minimum(begin + core * (end - begin), scar)
        return found

    def inside(self, x: Array, y: Array, h: Array) -> dict[int, Array]:
        """Label -> distance (mm, about) from its border of the tissue with reference coordinates (x, y, h), positive
        inside: below the border at one direction. In the order in which labels are painted over each other."""
        r = np.sqrt(np.maximum(x * x + y * y, 1e-12))
        c, s = x / r, y / r
        inner, outer = self.heart.wall(h, c, s)
        width = np.maximum(outer - inner, 1e-3)
        # The apical cap has no cavity: there the depth grows downwards too. Papillary muscles and trabeculae are like
        # the endocardium beside them.
        depth = np.maximum(np.maximum((r - inner) / width, h / self.heart.bottom), 0)
        depths = self.depths(h, c, s)
        return {label: np.minimum(end - depth, depth - begin if begin.any() else np.inf) * width
                for label in (OEDEMA, SCAR, NO_REFLOW) if label in depths
                for begin, end in [depths[label]]}

    @cached_property
    def volumes_ml(self) -> dict[str, float]:
        """Volumes of scar (its core included), no-reflow core and oedema (scar not included), the same at every moment;
        by quadrature over (h, theta)."""
        heart, names = self.heart, {label: STRUCTURES[label] for label in (SCAR, NO_REFLOW, OEDEMA)}
        h, c, s, weight = heart.quadrature(heart.bottom, heart.length)
        inner, outer = heart.wall(h, c, s)
        cap = h / heart.bottom
        volumes = dict.fromkeys(names.values(), 0.0)
        for label, (begin, end) in self.depths(h, c, s).items():
            far, near = (inner + np.clip(depth, 0, 1) * (outer - inner) for depth in (end, begin))
            # In the cap a depth is that of the larger of two measures: a disc without the part nearer to the cavity.
            far, near = np.where(end > cap, far, inner), np.where(begin > cap, near, inner)
            volumes[names[label]] = float((weight * np.maximum(far * far - near * near, 0) / 2).sum() / 1e3)
        if self.parameters.acute:
            volumes[names[OEDEMA]] -= volumes[names[SCAR]]
        return volumes

    @property
    def scar_percent(self) -> float:
        """The scar's share of the myocardium, percent."""
        return 100 * self.volumes_ml["scar"] * DENSITY / self.heart.myocardial_mass_g
