"""The synthetic heart's geometry: a fixed reference heart (end-diastole) and a closed-form, invertible deformation.

Heart coordinates (x, y, h) in mm: h runs along the left ventricle's long axis, 0 at the endocardial apex and
`length_mm` at the mitral annulus; x points from the axis to the middle of the septum, y to the inferior wall;
rho = x^2 + y^2 and theta the angle from x. Around the axis lie five nested surfaces rho_1 <= ... <= rho_5, functions of
(h, theta): endocardium, epicardium, right-ventricular endocardium (equal to the epicardium where there is no right
ventricle), right-ventricular epicardium and the outside of the epicardial fat. Above the annulus the same five are the
left atrium, its wall, the right atrium, its wall, and fat.

The deformation at a moment with longitudinal descent c, torsion tau and emptied fractions k_L, k_R is

    h'     = h + c Psi(h)                        s = dh'/dh
    rho'_1 = (1 - k_L) rho_1 / s                 blood: rho' in proportion
    rho'_2 = rho'_1 + (rho_2 - rho_1) / s        muscle: d(rho')/d(rho) = 1 / s
    rho'_3 = rho'_2 + (1 - k_R) (rho_3 - rho_2) / s
    rho'_4, rho'_5 as rho'_2                     theta' = theta + tau(h)

In (rho / 2, theta, h) the Jacobian is triangular, so muscle keeps its volume exactly (s * 1 / s = 1), as in the
axisymmetric kinematics of Arts et al. (J. Biomech. 1979), and the left ventricle holds exactly (1 - mean k_L) EDV:
k_L may vary over the wall (an infarct) as long as its mean is the ejected fraction. Outside rho_5 nothing moves: the
heart slides in the pericardium. Psi is piecewise quadratic, so both directions are closed forms.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

DENSITY = 1.05  # of myocardium, g/ml
_ELONGATION = 1.45  # length of the ventricle over the height of its widest level: where the ellipsoid is truncated
_APEX_WALL = 0.75  # thickness of the apical wall, in mid-wall thicknesses
_RV_APEX = 0.13  # height of the right ventricle's apex, in lengths of the left ventricle
_TRICUSPID_MM = 5.0  # the tricuspid annulus lies this much nearer to the apex than the mitral one
_ROOF_MM = 3.0  # thickness of the atrial roof
_RV_WALL_MM = 2.5
_RV_INSERTION_COS = math.cos(math.radians(73.0))  # the free wall meets the left ventricle at this angle from the septum


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartParameters:
    """The parameters of one heart. Lengths in mm, volumes in ml, angles in radians, fractions in [0, 1]."""

    edv_ml: float
    ef: float
    rv_edv_ml: float
    rv_ef: float
    length_mm: float
    wall_mm: float
    wall_bulge_mm: float  # extra (or, negative, missing) thickness towards `wall_angle`
    wall_angle: float
    akinesia: float  # loss of inward motion in the middle of an infarct: 0 none, 1 still
    infarct_angle: float
    infarct_height: float  # in lengths of the ventricle
    descent_mm: float  # of the mitral annulus at end-systole
    twist_apex: float
    twist_base: float
    atrium_mm: float  # length of the left atrium
    atrial_filling: float  # relative growth of the atria at end-systole
    aorta_mm: float  # radius of the aortic root
    fat_mm: float
    heart_rate: float  # beats per minute
    systole: float  # share of the cycle
    early_filling: float  # share of the stroke volume that enters before diastasis


class Beat(NamedTuple):
    """The deformation's amplitudes at one or several moments, broadcastable against the points."""

    descent: Array
    contraction: Array  # emptied fraction of the left ventricle
    rv_contraction: Array
    atrial: Array  # relative growth of the atria
    torsion: Array  # 0 at end-diastole, 1 at end-systole
    systole: Array  # 1 while the mitral valve is closed


class Located(NamedTuple):
    """Tissue found at points in space: reference coordinates, and signed radial distances to the surfaces."""

    x: Array
    y: Array
    h: Array
    outside: tuple[Array, ...]  # five, mm in the present geometry, positive outside of surface 1..5


def _ramp(x: Array) -> Array:
    """Smooth step: 0 for x <= 0, 1 for x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class BeatingHeart:
    """One heart in heart coordinates. Works in the dtype of its points (float32 or float64)."""

    def __init__(self, parameters: HeartParameters):
        p = self.parameters = parameters
        self.length = p.length_mm
        self._level = self.length / _ELONGATION  # height of the widest level
        self._apex_wall = _APEX_WALL * p.wall_mm
        self.bottom = -self._apex_wall
        self.tricuspid = self.length - _TRICUSPID_MM
        self._ra_mm = 0.95 * p.atrium_mm + _TRICUSPID_MM
        self.top = self.length + p.atrium_mm + _ROOF_MM
        unit_volume = math.pi * self.length * (_ELONGATION - _ELONGATION**2 / 3)
        self.radius = math.sqrt(1e3 * p.edv_ml / unit_volume)
        self._base_rho = self.radius**2 * _ELONGATION * (2 - _ELONGATION)
        self._set_long_axis_motion()
        self._set_infarct()
        self._set_right_ventricle()

    # ---- set-up

    def _set_long_axis_motion(self) -> None:
        """Knots of Psi: its slope is piecewise linear, Psi(length) = -1, and Psi is zero beyond both ends."""
        length = self.length
        knots = np.array([self.bottom, 0.2 * length, 0.7 * length, length + 16, self.top - 8, self.top])
        w = np.diff(knots)
        before, after = length - knots[2], knots[3] - length
        share = before / w[2]  # slope at the annulus: (1 - share) of the ventricle's, share of the atrium's
        # Psi(length) = -1 and Psi(top) = 0 in the slopes -down and up of the two straight stretches.
        down, up = np.linalg.solve(
            [
                [w[0] / 2 + w[1] + before * (1 - share / 2), -before * share / 2],
                [-after * (1 - share) / 2, after * (1 + share) / 2 + w[3] + w[4] / 2],
            ],
            [1.0, 1.0],
        )
        slope = np.array([0, -down, -down, up, up, 0])
        value = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * w)])
        # an interval without motion on either side, so that `searchsorted` works for every h
        self._psi_h = np.concatenate([[knots[0] - 1e4], knots, [knots[-1] + 1e4]])
        self._psi_slope = np.concatenate([[0], slope, [0]])
        self._psi = np.concatenate([[0], value[:-1], [0, 0]])

    def _set_infarct(self) -> None:
        p = self.parameters
        self._infarct_mean = 1.0
        if p.akinesia:
            h, c, s, weight = self.quadrature(0.0, self.length)
            rho_1 = self._endocardium(h, c, s)
            self._infarct_mean = 1 - p.akinesia * float(
                (weight * rho_1 * self._infarct(h, c, s)).sum() / (weight * rho_1 * np.ones_like(c)).sum()
            )

    def _set_right_ventricle(self) -> None:
        """Solve for the gap between septum and free wall that gives the required volume (a quadratic)."""
        self._gap = 1.0
        h, c, s, weight = self.quadrature(_RV_APEX * self.length, self.tricuspid)
        unit = self._rv_gap(h, c, s)
        r_2 = np.sqrt(self._epicardium(h, c, s, self._endocardium(h, c, s)))
        linear, square = (weight * r_2 * unit).sum(), (weight * unit**2 / 2).sum()
        volume = 1e3 * self.parameters.rv_edv_ml
        self._gap = float((np.sqrt(linear**2 + 4 * square * volume) - linear) / (2 * square))

    @staticmethod
    def quadrature(low: float, high: float) -> tuple[Array, Array, Array, Array]:
        """Midpoints h (240, 1) of [low, high], cos and sin of theta (1, 360), and dh * dtheta."""
        h = low + (high - low) * (np.arange(240) + 0.5)[:, None] / 240
        theta = 2 * np.pi * (np.arange(360) + 0.5)[None] / 360
        return h, np.cos(theta), np.sin(theta), (high - low) / 240 * 2 * np.pi / 360

    @cached_property
    def myocardial_ml(self) -> float:
        """Volume of the left ventricle's wall, the same at every moment; by quadrature over (h, theta)."""
        h, c, s, weight = self.quadrature(self.bottom, self.length)
        rho_1 = self._endocardium(h, c, s)
        return float((weight * (self._epicardium(h, c, s, rho_1) - rho_1) / 2).sum() / 1e3)

    @property
    def myocardial_mass_g(self) -> float:
        """Mass of the left ventricle's wall."""
        return DENSITY * self.myocardial_ml

    def atria_ml(self, phase: Array) -> tuple[Array, Array]:
        """Volumes of the left and the right atrium at `phase` (T,), by quadrature over (h, theta).

        Mostly they grow while the ventricles empty; but near the annulus an atrium moves with its ventricle, so in one
        of eight hearts the right one shrinks a little.
        """
        beat, roof = self.beat(phase), self.top - _ROOF_MM
        rest = Beat(*np.zeros((len(Beat._fields), 1, 1)))
        # Emptied fractions are linear in the beat's amplitudes: so are the volumes.
        contracted, filled = (rest._replace(**{name: np.ones((1, 1)) for name in names})
                              for names in (("contraction", "rv_contraction"), ("atrial",)))  # fmt: skip
        volumes = []
        for side, low, contraction in ((0, self.length, beat.contraction), (1, self.tricuspid, beat.rv_contraction)):
            h, c, s, weight = self.quadrature(low, roof)
            rho_1, rho_2, rho_3, *_ = self._surfaces(h, c, s)
            share = weight * (rho_3 - rho_2 if side else rho_1) / 2e3
            still, emptied, grown = (float((share * (1 - self._emptying(h, c, s, b)[side])).sum())
                                     for b in (rest, contracted, filled))  # fmt: skip
            volumes.append(still + contraction * (emptied - still) + beat.atrial * (grown - still))
        return volumes[0], volumes[1]

    # ---- the reference shape

    def _endocardium(self, h: Array, c: Array, s: Array) -> Array:
        """rho_1: a truncated ellipsoid; above the annulus the left atrium, bulging away from the aorta."""
        z = np.clip(h / self._level, 0, _ELONGATION)
        rho = self.radius**2 * z * (2 - z)
        if np.max(h) > self.length:
            u = np.clip((h - self.length) / self.parameters.atrium_mm, 0, 1)
            rho = np.where(h > self.length, (1 - u) * (self._base_rho + self._atrial_bulge * u), rho)
            lobe = np.minimum(4 * u, 1)
            rho = rho * (1 + lobe * (-0.25 * c + 0.12 * s)) ** 2
        return rho

    @property
    def _atrial_bulge(self) -> float:
        return 26.0 * self.parameters.atrium_mm

    def _epicardium(self, h: Array, c: Array, s: Array, rho_1: Array) -> Array:
        """rho_2: a larger ellipsoid, thicker or thinner towards `wall_angle`; above the annulus a thin atrial wall."""
        p = self.parameters
        z = (np.clip(h, self.bottom, self.length) - self._level) / (self._level + self._apex_wall)
        wall = p.wall_mm
        if p.wall_bulge_mm:
            towards = (1 + c * math.cos(p.wall_angle) + s * math.sin(p.wall_angle)) / 2
            wall = wall + p.wall_bulge_mm * towards * towards
        rho = (self.radius + wall) ** 2 * (1 - z * z)
        if np.max(h) <= self.length:
            return np.maximum(rho, rho_1)
        muscle = np.maximum(rho - np.minimum(rho_1, self._base_rho), 0)
        atrial = 70 * np.clip((self.top - h) / _ROOF_MM, 0, 1)
        blend = _ramp((h - self.length) / 9)
        above = rho_1 + muscle * (1 - blend) + atrial * blend
        return np.where(h > self.length, above, np.maximum(rho, rho_1))

    def _rv_gap(self, h: Array, c: Array, s: Array) -> Array:
        """Radial width of the right ventricle (below the tricuspid annulus) or atrium (above), mm."""
        x = np.clip((1 - c) / (1 - _RV_INSERTION_COS), 0, 1)
        crescent = 1 - x * (0.35 + 0.65 * x)
        low = _RV_APEX * self.length
        y = np.clip((h - low) / (self.length - low), 0, 1)
        u = np.clip((h - self.tricuspid) / self._ra_mm, 0, 1)
        return self._gap * crescent * (y * (2.5 - 1.5 * y)) * np.sqrt((1 - u) * (1 + 1.1 * u))

    def _surfaces(self, h: Array, c: Array, s: Array) -> tuple[Array, ...]:
        """rho_1..rho_5 at reference height h and direction (c, s) = (cos, sin) of the reference angle."""
        p = self.parameters
        rho_1 = self._endocardium(h, c, s)
        rho_2 = self._epicardium(h, c, s, rho_1)
        r = np.sqrt(rho_2)
        gap = self._rv_gap(h, c, s)
        r_3 = r + gap
        r_4 = r_3 + _RV_WALL_MM * np.clip(gap / 6, 0, 1)
        groove = 1 - ((h - self.length - 7) / 15) ** 2  # the atrio-ventricular groove is filled with fat
        fat = (0.8 * p.fat_mm + (1.5 + p.fat_mm) * np.clip(groove, 0, 1)) * np.clip((h - self.bottom) / 6, 0, 1)
        r_5 = r_4 + fat * np.clip((self.top - h) / 4, 0, 1) * (1 + 0.5 * c)
        return rho_1, rho_2, r_3 * r_3, r_4 * r_4, r_5 * r_5

    def outer_radius(self, h: Array, c: Array, s: Array) -> Array:
        """Distance from the axis to the outside of the reference heart's fat, mm."""
        return np.sqrt(self._surfaces(h, c, s)[4])

    def wall(self, h: Array, c: Array, s: Array) -> tuple[Array, Array]:
        """Distances from the axis (mm) to the endo- and the epicardium of the reference heart."""
        rho_1 = self._endocardium(h, c, s)
        return np.sqrt(rho_1), np.sqrt(self._epicardium(h, c, s, rho_1))

    def patch(self, h: Array, c: Array, s: Array, angle: float, height: float) -> Array:
        """A smooth patch of the wall: 1 in its middle, at `angle` and `height` (in lengths), 0 outside it."""
        towards = (1 + c * math.cos(angle) + s * math.sin(angle)) / 2
        along = np.clip(1 - ((h / self.length - height) / 0.5) ** 2, 0, 1)
        return towards * towards * along

    def _infarct(self, h: Array, c: Array, s: Array) -> Array:
        return self.patch(h, c, s, self.parameters.infarct_angle, self.parameters.infarct_height)

    # ---- motion

    def activation(self, phase: Array) -> Array:
        """Ejected share of the stroke volume at `phase` in [0, 1): systole, rapid filling, diastasis, atrial kick."""
        p = self.parameters
        start = np.array([0, p.systole, p.systole + 0.42 * (1 - p.systole), 1 - 0.22 * (1 - p.systole), 1])
        level = np.array([0, 1, 1 - p.early_filling, 0.94 - p.early_filling, 0])
        i = np.clip(np.searchsorted(start, phase, side="right") - 1, 0, 3)
        share = _ramp((phase - start[i]) / (start[i + 1] - start[i]))
        return level[i] + (level[i + 1] - level[i]) * share

    def beat(self, phase: Array) -> Beat:
        """Amplitudes at `phase` (any shape) of the cycle, 0 being end-diastole."""
        p = self.parameters
        phase = np.asarray(phase, np.float64) % 1.0
        a = self.activation(phase)
        return Beat(
            descent=p.descent_mm * a,
            contraction=p.ef * a,
            rv_contraction=p.rv_ef * a,
            atrial=p.atrial_filling * a,
            torsion=a,
            systole=_ramp(phase / 0.06) * _ramp((p.systole + 0.05 - phase) / 0.05),
        )

    def lv_ml(self, phase: Array) -> Array:
        """Volume of the left ventricle's cavity, papillary muscles included; exact."""
        return self.parameters.edv_ml * (1 - self.beat(phase).contraction)

    def rv_ml(self, phase: Array) -> Array:
        """Volume of the right ventricle's cavity; exact up to the quadrature of its end-diastolic volume."""
        return self.parameters.rv_edv_ml * (1 - self.beat(phase).rv_contraction)

    def _torsion(self, h: Array, beat: Beat) -> Array:
        p = self.parameters
        up = np.clip(h / self.length, 0, 1)
        fade = np.clip((self.top - h) / (self.top - self.length), 0, 1)
        return beat.torsion * (p.twist_apex + (p.twist_base - p.twist_apex) * up) * fade

    def _emptying(self, h: Array, c: Array, s: Array, beat: Beat) -> tuple[Array, Array]:
        """k_L and k_R: ventricles below the annuli, atria (filling while the ventricles empty) above."""
        k_left = beat.contraction
        if self.parameters.akinesia:
            k_left = k_left * (1 - self.parameters.akinesia * self._infarct(h, c, s)) / self._infarct_mean
        above, above_right = _ramp((h - self.length) / 16), _ramp((h - self.tricuspid) / 18)
        return (
            k_left * (1 - above) - beat.atrial * above,
            beat.rv_contraction * (1 - above_right) - beat.atrial * above_right,
        )

    def _descend(self, h: Array, descent: Array) -> tuple[Array, Array]:
        """h' and s = dh'/dh of reference heights."""
        i = np.searchsorted(self._psi_h, h, side="right") - 1
        u, width = h - self._psi_h[i], np.diff(self._psi_h)[i]
        bend = (self._psi_slope[i + 1] - self._psi_slope[i]) / width
        psi = self._psi[i] + (self._psi_slope[i] + bend * u / 2) * u
        return h + descent * psi, 1 + descent * (self._psi_slope[i] + bend * u)

    def _ascend(self, h_now: Array, descent: Array) -> tuple[Array, Array]:
        """h and s of present heights: the root of the quadratic of the interval that holds h'."""
        knots, psi, slope = (a.astype(h_now.dtype) for a in (self._psi_h, self._psi, self._psi_slope))
        h_now, descent = np.broadcast_arrays(h_now, descent)
        i = np.zeros(h_now.shape, np.int8)
        for h, value in zip(knots[1:-1], psi[1:-1]):
            i += h_now >= h + descent * value
        delta = h_now - knots[i] - descent * psi[i]
        low, high = 1 + descent * slope[i], 1 + descent * slope[i + 1]
        bend = (high - low) / np.diff(knots)[i]
        s = np.sqrt(np.maximum(low * low + 2 * bend * delta, 1e-6))
        return knots[i] + 2 * delta / (low + s), s

    def deform(self, x: Array, y: Array, h: Array, beat: Beat) -> tuple[Array, Array, Array]:
        """Position at `beat` of the tissue with reference coordinates (x, y, h); outside the heart nothing moves."""
        rho = x * x + y * y
        r = np.sqrt(np.maximum(rho, 1e-12))
        c, s = x / r, y / r
        rho_1, rho_2, rho_3, _, rho_5 = self._surfaces(h, c, s)
        k_left, k_right = self._emptying(h, c, s, beat)
        h_now, stretch = self._descend(h, beat.descent)
        left, right = k_left * rho_1, k_right * (rho_3 - rho_2)
        q = np.where(rho < rho_3, rho_2 - left + (1 - k_right) * (rho - rho_2), rho - left - right)
        q = np.where(rho < rho_1, (1 - k_left) * rho, np.where(rho < rho_2, rho - left, q))
        r_now = np.sqrt(np.maximum(q, 0) / stretch)
        tau = self._torsion(h, beat)
        cos, sin = np.cos(tau), np.sin(tau)
        still = rho > rho_5
        return (
            np.where(still, x, r_now * (c * cos - s * sin)),
            np.where(still, y, r_now * (s * cos + c * sin)),
            np.where(still, h, h_now),
        )

    def rv_insertions(self, h_now: Array, phase: Array) -> tuple[Array, Array]:
        """Where the free wall of the right ventricle meets the left one, in the planes at heights `h_now` (mm).

        Heights and phases are broadcast to (...). Returns heart coordinates (..., 2, 3), front before back (anterior,
        inferior), and (...) whether the plane cuts the right ventricle there.
        """
        h_now, phase = np.broadcast_arrays(h_now, phase)
        beat = Beat(*(np.broadcast_to(a, h_now.shape)[..., None] for a in self.beat(phase)))
        h, _ = self._ascend(np.asarray(h_now, np.float64)[..., None], beat.descent)
        c = np.full(2, _RV_INSERTION_COS)
        s = np.array([-1.0, 1.0]) * math.sqrt(1 - _RV_INSERTION_COS**2)  # y points to the inferior wall
        _, r = self.wall(h, c, s)
        points = np.stack(np.broadcast_arrays(*self.deform(r * c, r * s, h, beat)), axis=-1)
        h = h[..., 0]
        return points, (h > _RV_APEX * self.length) & (h <= self.tricuspid)

    def annulus(self, angle: float, phase: Array) -> tuple[Array, Array]:
        """Radius and height (mm) of the endocardium at the mitral annulus, seen at a fixed `angle` in space."""
        beat = self.beat(phase)
        h = np.full(np.shape(phase), self.length)
        turned = angle - self._torsion(h, beat)
        c, s = np.cos(turned), np.sin(turned)
        k_left, _ = self._emptying(h, c, s, beat)
        h_now, stretch = self._descend(h, beat.descent)
        return np.sqrt((1 - k_left) * self._endocardium(h, c, s) / stretch), h_now

    def locate(self, x: Array, y: Array, h: Array, beat: Beat) -> Located:
        """The tissue at the points (x, y, h) at `beat`: the inverse of `deform`."""
        dtype = np.result_type(x, y, h)
        beat = Beat(*(np.asarray(a, dtype) for a in beat))
        h_ref, stretch = self._ascend(np.asarray(h, dtype), beat.descent)
        tau = self._torsion(h_ref, beat)
        cos, sin = np.cos(tau), np.sin(tau)
        r = np.sqrt(np.maximum(x * x + y * y, 1e-12))
        c, s = x / r, y / r
        c, s = c * cos + s * sin, s * cos - c * sin
        rho_1, rho_2, rho_3, rho_4, rho_5 = self._surfaces(h_ref, c, s)
        k_left, k_right = self._emptying(h_ref, c, s, beat)
        # q = s rho' grows from surface to surface by the difference in the reference, minus the ejected volume
        q = stretch * (r * r)
        left = k_left * rho_1
        both = left + k_right * (rho_3 - rho_2)
        edges = (rho_1 - left, rho_2 - left, rho_3 - both, rho_4 - both, rho_5 - both)
        rho = np.where(q < edges[2], rho_2 + (q - edges[1]) / (1 - k_right), q + both)
        rho = np.where(q < edges[0], q / (1 - k_left), np.where(q < edges[1], q + left, rho))
        r_ref = np.sqrt(np.maximum(rho, 0))
        per_mm = 0.5 / (stretch * r)
        # Beyond the ends of the cavities and of the heart the radial distance would be zero on the axis.
        cavity_end = np.maximum(-h_ref, h_ref - (self.top - _ROOF_MM))
        end = np.maximum(self.bottom - h_ref, h_ref - self.top)
        ends = (cavity_end, end, end, end, end)
        outside = tuple(np.maximum((q - edge) * per_mm, beyond) for edge, beyond in zip(edges, ends))
        return Located(r_ref * c, r_ref * s, h_ref, outside)
