"""The bodies of independent_hearts.py: hearts of two truncated ellipsoids, meshed by `cardiac-geometries-core`.

Motion. The epicardial apex stays, the base descends. In every frame the outer radii are those at which a ventricle
holds its cavity of that moment and its wall, the wall having the volume that it had at end-diastole; the wall's
thickness is that which leaves the cavity. So muscle keeps its volume, and both cavities follow `ejected`.

Heart coordinates (x, y, z) are the package's: z along the LV's axis towards the base, x towards the RV. Lengths of a
`Heart` and a `Frame` are in cm, as the package's; positions of surfaces and points in mm; volumes in ml.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.floating]
Radii = tuple[float, float, float]
Body = Mapping[str, Array]  # EPI, LV and RV: triangles (n, 3, 3) of a surface

SYSTOLE = 3 / 8  # share of the cycle
RV, MYO, LV, WALL = 1, 2, 3, 4  # WALL: of the right ventricle, not labelled


@dataclass(frozen=True)
class Heart:
    """What stays the same over the beat, and the end-diastolic volumes."""

    edv_ml: float
    ef: float  # share, 0 to 1
    muscle_ml: float
    rv_edv_ml: float
    rv_muscle_ml: float
    length: float  # outer long half-axis of the LV
    base: float  # z of the base plane at end-diastole
    descent: float  # of the base plane at end-systole
    rv_offset: float
    rv_length: float = 0.88  # outer long half-axis of the RV, in that of the LV


@dataclass(frozen=True)
class Frame:
    """The ellipsoids of one moment: outer half-axes, wall thicknesses, base plane; the RV's centre is `offset`."""

    lv: Radii
    rv: Radii
    lv_wall: float
    rv_wall: float
    offset: float
    base: float


def draw_heart(rng: np.random.Generator) -> Heart:
    """A heart at random; its RV ejects what its LV does."""
    edv = rng.uniform(90, 200)
    ef, size = rng.uniform(0.3, 0.68), (edv / 130) ** (1 / 3)
    return Heart(
        edv, ef, muscle_ml=rng.uniform(8.5, 12.5) * edv**0.5, rv_edv_ml=edv * rng.uniform(0.85, 1.1),
        rv_muscle_ml=rng.uniform(28, 40) * size**2, length=size * rng.uniform(6.8, 7.8), base=rng.uniform(1, 2),
        descent=ef * rng.uniform(1.6, 2.2), rv_offset=size * rng.uniform(1.7, 2.1),
    )  # fmt: skip


def ejected(phase: float) -> float:
    """Share of the stroke volume that has left at `phase` (0 to 1): two half cosines, 1 at SYSTOLE."""
    at = phase / SYSTOLE if phase < SYSTOLE else (1 - phase) / (1 - SYSTOLE)
    return (1 - math.cos(math.pi * at)) / 2


def below(radii: Radii, base: float) -> float:
    """Volume (ml) of an ellipsoid about 0 below the plane z = base."""
    a, b, c = radii
    return math.pi * a * b * (base + 2 * c / 3 - base**3 / (3 * c * c))


def beyond(rv: Radii, offset: float, lv: Radii, base: float) -> float:
    """Volume (ml) below z = base of the ellipsoid about (offset, 0, 0) without that about 0: exact along x."""
    n = 200
    z = (-rv[2] + (base + rv[2]) * (np.arange(n) + 0.5) / n)[:, None]
    y = rv[1] * ((np.arange(n) + 0.5) / n)[None]  # one half, the other is alike
    half = [r[0] * np.sqrt(np.clip(1 - (y / r[1]) ** 2 - (z / r[2]) ** 2, 0, None)) for r in (rv, lv)]
    both = np.minimum(offset + half[0], half[1]) - np.maximum(offset - half[0], -half[1])
    return float((2 * half[0] - np.clip(both, 0, None)).sum() * 2 * rv[1] * (base + rv[2]) / n**2)


def frame_at(heart: Heart, share: float) -> Frame:
    """The radii at which both cavities have lost `share` of their stroke volume and both walls keep their volume."""
    stroke, base = share * heart.ef * heart.edv_ml, heart.base - share * heart.descent
    cavity, rv_cavity = heart.edv_ml - stroke, heart.rv_edv_ml - stroke
    radius = math.sqrt((cavity + heart.muscle_ml) / below((1, 1, heart.length), base))
    lv = (radius, radius, heart.length)
    thin = lambda outer, wall: tuple(r - wall for r in outer)  # noqa: E731
    wall = brentq(lambda w: below(thin(lv, w), base) - cavity, 0.01, 0.95 * radius)
    grown = lambda size: (1.25 * size, size, heart.rv_length * heart.length)  # noqa: E731
    volume = lambda rv: beyond(rv, heart.rv_offset, lv, base)  # noqa: E731
    rv = grown(brentq(lambda size: volume(grown(size)) - rv_cavity - heart.rv_muscle_ml, 0.5 * radius, 3 * radius))
    rv_wall = brentq(lambda w: volume(thin(rv, w)) - rv_cavity, 0.0, 0.9 * rv[1])
    return Frame(lv, rv, wall, rv_wall, heart.rv_offset, base)


def mesh(frame: Frame, path: Path) -> Body | None:
    """The package's mesh of a frame; None where it came back without its base cut, which raises no error there."""
    import cardiac_geometries_core
    import gmsh

    cardiac_geometries_core.biv_ellipsoid(
        path, char_length=0.4, base_cut_z=frame.base, rv_wall_thickness=frame.rv_wall, lv_wall_thickness=frame.lv_wall,
        rv_offset_x=frame.offset, **{f"{side}_radius_{axis}": r for side, radii in (("lv", frame.lv), ("rv", frame.rv))
                                     for axis, r in zip("xyz", radii)},
    )  # fmt: skip
    gmsh.initialize()
    try:
        gmsh.option.setNumber("General.Verbosity", 0)
        gmsh.open(str(path))
        tags, points, _ = gmsh.model.mesh.getNodes()
        at = np.empty((int(tags.max()) + 1, 3))
        at[tags.astype(int)] = 10 * points.reshape(-1, 3)
        body = {}
        for group in gmsh.model.getPhysicalGroups(2):
            found = [gmsh.model.mesh.getElements(2, e)[2][0] for e in gmsh.model.getEntitiesForPhysicalGroup(*group)]
            body[gmsh.model.getPhysicalName(*group)] = at[np.concatenate(found).astype(int).reshape(-1, 3)]
    finally:
        gmsh.finalize()
    return body if is_cut(body, frame) else None


def is_cut(body: Body, frame: Frame) -> bool:
    """Whether no surface lies above the base plane."""
    return max(surface[..., 2].max() for surface in body.values()) < 10 * frame.base + 0.1


def body_at(heart: Heart, share: float, make: Callable[[Frame], Body | None]) -> tuple[Frame, Body]:
    """The frame and its surfaces; where the mesh is not cut, again with a slightly shorter right ventricle."""
    for shorter in range(5):
        frame = frame_at(replace(heart, rv_length=heart.rv_length - 0.02 * shorter), share)
        if (body := make(frame)) is not None:
            return frame, body
    raise RuntimeError(f"no mesh was cut at its base: {frame}; choose another --seed")


def inside(surface: Array, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Which points (i, j, k) lie behind an odd number of triangles (n, 3, 3), looking from k = infinity.

    A surface may be open on the side of small k: there the caller ends it.
    """
    crossed = np.zeros(shape, bool)  # the largest k below a triangle
    surface = surface + np.array([1.7e-5, 2.3e-5, 0.0])  # so that no point lies on an edge
    first = np.clip(np.ceil(surface[..., :2].min(1)), 0, None).astype(int)
    last = np.minimum(np.floor(surface[..., :2].max(1)), np.array(shape[:2]) - 1).astype(int)
    for (a, b, c), (i0, j0), (i1, j1) in zip(surface, first, last):
        (ux, uy, uz), (vx, vy, vz) = b - a, c - a
        area = ux * vy - uy * vx
        if i1 < i0 or j1 < j0 or not area:
            continue
        x, y = np.arange(i0, i1 + 1)[:, None] - a[0], np.arange(j0, j1 + 1)[None] - a[1]
        p, q = (x * vy - y * vx) / area, (ux * y - uy * x) / area
        i, j = np.nonzero((p >= 0) & (q >= 0) & (p + q <= 1))
        k = np.floor(a[2] + p[i, j] * uz + q[i, j] * vz).astype(int)
        on = k >= 0
        crossed[i0 + i[on], j0 + j[on], np.minimum(k[on], shape[2] - 1)] ^= True
    return np.logical_xor.accumulate(crossed[..., ::-1], axis=2)[..., ::-1]


def grid(affine: Array, shape: tuple[int, int, int]) -> Array:
    """Positions (3, X, Y, Z) of voxels."""
    return np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3][:, None, None, None]


def within(points: Array, radii: Radii, centre: Radii) -> NDArray[np.bool_]:
    """Which points (3, ...) lie in an ellipsoid."""
    return sum(((p - c) / r) ** 2 for p, r, c in zip(points, radii, centre)) <= 1


def voxelise(frame: Frame, body: Body, to_heart: Array, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """RV, MYO, LV, WALL or 0 of every voxel; `to_heart` (4, 4) takes voxels to heart coordinates, k to the apex."""
    back = np.linalg.inv(to_heart)
    odd = {name: inside(body[name] @ back[:3, :3].T + back[:3, 3], shape) for name in ("EPI", "LV", "RV")}
    points = grid(to_heart, shape)
    muscle = np.where(within(points, tuple(10 * r for r in frame.lv), (0, 0, 0)), MYO, WALL)
    tissue = np.select([odd["LV"], odd["RV"], odd["EPI"]], [LV, RV, muscle])
    return np.where(points[2] < 10 * frame.base, tissue, 0).astype(np.uint8)


def volumes(frame: Frame, body: Body) -> dict[int, float]:
    """Volumes (ml) by voxels of 1 mm whose faces lie in the base plane."""
    low, high = (reduce(body["EPI"].reshape(-1, 3), axis=0) for reduce in (np.min, np.max))
    to_heart = np.diag([1.0, 1.0, -1.0, 1.0])
    to_heart[:3, 3] = *low[:2] - 1, 10 * frame.base - 0.5
    tissue = voxelise(frame, body, to_heart, tuple(np.ceil(high - low + 3).astype(int)))
    return {label: float((tissue == label).sum()) / 1e3 for label in (RV, MYO, LV, WALL)}
