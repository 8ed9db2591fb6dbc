"""A synthetic study with known truth: one beating 3D heart, cut by a short-axis stack and three long axes.

`make_study` gives images, labels, landmarks, volumes and displacements of one study. The heart and its motion are in
`heart.py`, injured muscle in `injury.py`, the body in `thorax.py`, the random patient in `patient.py`, its fate in
`outcome.py`, the tissues and the sequences in `tissue.py` and `sequences.py`, the planes and the noise in `scan.py`,
the image of a plane in `render.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.views import VIEWS, plane_of
from .heart import BeatingHeart
from .injury import Injury
from .outcome import Outcome
from .patient import DISEASES, Patient
from .render import HeartRenderer
from .scan import LAX_ANGLE, SLICE_MM, Acquisition, ViewGrid, sequence_grid, view_grids
from .scanner import SCANNERS, STANDARD
from .sequences import PROTOCOLS
from .subject import Subject, draw_subject, subject_truth
from .thorax import Thorax

LANDMARKS = ("annulus_1", "annulus_2", "apex")
INSERTIONS = ("rv_insertion_anterior", "rv_insertion_inferior")
FIELD_MM = 288.0
# Streams of a study's random numbers, after the six of `make_study`; 0 and 9 are the subject's (`subject.py`).
_FRAMES_AGAIN, _SEQUENCE, _SCAN = 6, 7, 8
_DIASTOLE = 0.78  # phase at which images of one frame are taken


@dataclass(frozen=True)
class PhantomStudy:
    """One study and its truth. Axes X, Y, Z voxels and T frames; patient mm are RAS+; frame 0 is end-diastole.

    Attributes:
        images: view -> (X, Y[, Z], T) uint16, scanner units; `sax` has Z. Views of a cine are sax, lax_2c, lax_3c and
            lax_4c; those of other sequences have its name before the plane's, as lge_sax, and T is 1. Maps are in ms.
        labels: as images, uint8: 0 background, 1 right ventricle, 2 myocardium of the left ventricle, 3 left ventricle
            (papillary muscles and trabeculae included, as in the public datasets); where atria are labelled 7 left and
            8 right atrium; in other sequences than the cine 4 scar, 5 no-reflow and 6 oedema in place of myocardium.
        affines: view -> (4, 4) float64, voxel (x, y, z) to patient mm, one frame of reference for all views. The cine's
            views are there also where no cine was taken.
        spacing_mm: view -> voxel size along X, Y, Z (for a long axis the third is the slice thickness).
        frame_time_ms: time between frames; the frames cover one heart beat.
        landmarks: long-axis view -> (T, 3, 2) float64 voxel coordinates of `LANDMARKS`: where the mitral annulus
            meets the endocardium (2C anterior, inferior; 3C anteroseptal, inferolateral; 4C septal, lateral), and the
            endocardial apex.
        landmarks_mm: the same points in patient mm, (T, 3, 3).
        rv_insertions_mm: (T, Z, 2, 3) patient mm of `INSERTIONS`, where the free wall of the right ventricle meets the
            left one in each slice of the cine's stack; NaN in slices that do not show the right ventricle.
        injury: scar, no-reflow and oedema of the myocardium, or None.
        outcome: hypertension, diabetes and the observed time to an event; the same in all scans of a heart.
        vendor: one of `SCANNERS`, or "" for the standard style. scan: 0, or the number of a later scan.
        lv_ml, rv_ml: (T,) cavity volumes. The left one is analytic; the right one is analytic but for its
            end-diastolic value, which holds to about 1e-4 (quadrature of the continuous geometry).
        la_ml, ra_ml: (T,) volumes of the atria (quadrature).
        myocardial_mass_g: of the left ventricle, the same in all frames (quadrature).
        slice_shift_mm: (Z, 3) displacement of the body in each short-axis slice's breath-hold, patient mm; labels
            and displacement fields move with the image, the affine does not include it.
    """

    seed: int | tuple[int, ...]
    patient: Patient
    images: dict[str, NDArray[np.uint16]]
    labels: dict[str, NDArray[np.uint8]]
    affines: dict[str, NDArray[np.float64]]
    spacing_mm: dict[str, tuple[float, float, float]]
    frame_time_ms: float
    landmarks: dict[str, NDArray[np.float64]]
    landmarks_mm: dict[str, NDArray[np.float64]]
    rv_insertions_mm: NDArray[np.float64]
    injury: Injury | None
    outcome: Outcome
    vendor: str
    scan: int
    lv_ml: NDArray[np.float64]
    rv_ml: NDArray[np.float64]
    la_ml: NDArray[np.float64]
    ra_ml: NDArray[np.float64]
    myocardial_mass_g: float
    slice_shift_mm: NDArray[np.float64]
    _grids: dict[str, ViewGrid] = field(repr=False)
    _acquire: Acquisition = field(repr=False)

    @property
    def n_frames(self) -> int:
        return len(self.lv_ml)

    @property
    def ed_frame(self) -> int:
        """End-diastole: the frame of the largest volume of the left ventricle, from 0."""
        return int(self.lv_ml.argmax())

    @property
    def es_frame(self) -> int:
        """End-systole: the frame of its smallest volume, from 0."""
        return int(self.lv_ml.argmin())

    @property
    def ef(self) -> float:
        """Ejection fraction of the left ventricle over the frames, percent: (EDV - ESV) / EDV * 100."""
        return 100 * float(1 - self.lv_ml.min() / self.lv_ml.max())

    @property
    def rv_ef(self) -> float:
        """Ejection fraction of the right ventricle over the frames, percent."""
        return 100 * float(1 - self.rv_ml.min() / self.rv_ml.max())

    def truth(self) -> dict[str, Any]:
        """The truth about the study in plain numbers, as in `truth.json`."""
        who = self.patient
        return {
            **subject_truth(Subject(who, self._acquire.renderer.heart, self.injury, self.outcome)),
            "frame_time_ms": self.frame_time_ms,
            "ef": self.ef,
            "esv_ml": float(self.lv_ml.min()),
            "rv_ef": self.rv_ef,
            "rv_esv_ml": float(self.rv_ml.min()),
            "la_ml": self.la_ml.tolist(),
            "ra_ml": self.ra_ml.tolist(),
            "vendor": self.vendor,
            "ed_frame": self.ed_frame,
            "es_frame": self.es_frame,
            "lv_ml": self.lv_ml.tolist(),
            "rv_ml": self.rv_ml.tolist(),
            "slice_shift_mm": self.slice_shift_mm.tolist(),
            "landmark_names": list(LANDMARKS),
            "landmarks": {view: points.tolist() for view, points in self.landmarks.items() if view in self.images},
            "landmarks_mm": {view: mm.tolist() for view, mm in self.landmarks_mm.items() if view in self.images},
            "rv_insertion_names": list(INSERTIONS),
            "rv_insertions_mm": self._insertions() if "sax" in self.images else [],
            "heart": asdict(who.heart),
            "injury": who.injury and asdict(who.injury),
        }

    def _insertions(self) -> list[list[list[list[float | None]]]]:
        """`rv_insertions_mm` as lists, with None in place of NaN, which JSON lacks."""
        return np.where(np.isnan(self.rv_insertions_mm), None, self.rv_insertions_mm).tolist()

    def move(self, points_mm: NDArray[np.floating], t0: int, t1: int) -> NDArray[np.float64]:
        """Positions in frame `t1` (..., 3) of the tissue at `points_mm` (..., 3; patient mm) in frame `t0`.

        Exact, by the inverse and the forward deformation. Blood moves in proportion to its chamber's walls. Points
        outside of the heart in frame `t0` do not move, even where the heart slides over them. Breath-holds are not
        included: these are points of the body at rest.

        Raises:
            IndexError: a frame outside of the study.
        """
        points = np.asarray(points_mm, np.float64)
        return points + self._heart_motion((points - self.patient.apex_mm) @ self.patient.axes.T, t0, t1)

    def _heart_motion(self, points: NDArray[np.floating], t0: int, t1: int) -> NDArray[np.floating]:
        """Displacement (..., 3) in patient mm of points (..., 3) given in heart coordinates."""
        self._check_frame(t0)
        self._check_frame(t1)
        heart = self._acquire.renderer.heart
        found = heart.locate(*np.moveaxis(points, -1, 0), heart.beat(t0 / self.n_frames))
        moved = np.stack(heart.deform(found.x, found.y, found.h, heart.beat(t1 / self.n_frames)), axis=-1)
        inside = (found.outside[4] < 0)[..., None]
        return np.where(inside & (t0 != t1), moved - points, 0) @ self.patient.axes

    def _check_frame(self, t: int) -> None:
        if not 0 <= t < self.n_frames:
            raise IndexError(f"frame {t} is not in this study: it has frames 0 to {self.n_frames - 1}")

    def scan_again(
        self, view: str, t: int, seed: int, *, sequence: str = "cine", gain: float, noise_sd: float
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Frame `t` of a view of the cine, acquired once more on the same grid, with a noise of its own.

        Args:
            sequence: one of `PROTOCOLS`.
            seed: of the noise; with the study's own seed and scan it gives its random numbers.
            gain: of the scanner (`Scanner.gain`); maps have none.
            noise_sd: standard deviation of the noise in each of the two channels before the gain, blood being 400.

        Returns:
            Image and labels (atria too), each (X, Y[, Z]).

        Raises:
            KeyError: unknown view or sequence. IndexError: a frame outside of the study.
        """
        self._check_frame(t)
        shifts = self.slice_shift_mm if view == "sax" else np.zeros((1, 3))
        key = (_SCAN, self.scan) if self.scan else ()
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*key, _FRAMES_AGAIN, seed)))
        phases = np.array([t / self.n_frames])
        grid = self._grids[view]
        drawn = self._acquire(grid, sequence, phases, shifts, rng, gain=gain, noise_sd=noise_sd, atria=True)
        image, label = (a[0].T if view == "sax" else a[0, 0].T for a in drawn)
        return image, label

    def displacement(self, view: str, t0: int, t1: int) -> NDArray[np.float32]:
        """True displacement of the tissue seen in frame `t0`, to frame `t1`: (3, X, Y[, Z]) float32, mm.

        The components run along the view's own axes X, Y and through the plane (divide by `spacing_mm` for voxels),
        so `[:2]` is the in-plane motion. Zero in the static background. See `move` for the tissue that is followed.

        Raises:
            KeyError: unknown view. IndexError: a frame outside of the study.
        """
        grid = self._grids[view]
        field_mm = np.zeros((grid.n_slices, grid.size, grid.size, 3), np.float32)
        shifts = self.slice_shift_mm if view == "sax" else np.zeros((1, 3))
        for z, shift in enumerate(shifts):
            plane = grid.plane(z, shift, self.patient)
            x0, x1, y0, y1 = self._acquire.renderer.box(plane)
            points = np.stack(plane.points(x0, x1, y0, y1), axis=-1).astype(np.float64)
            field_mm[z, y0:y1, x0:x1] = self._heart_motion(points, t0, t1) @ grid.axes.T
        field_mm = field_mm.T
        return field_mm if view == "sax" else field_mm[..., 0]


def make_study(
    seed: int | Sequence[int],
    *,
    n_frames: int = 30,
    in_plane_mm: float = 1.6,
    size: int | None = None,
    n_slices: int = 12,
    jitter_mm: float = 1.5,
    noise_sd: float | None = None,
    disease: str | None = None,
    acute: bool | None = None,
    sequences: Sequence[str] = ("cine",),
    atria: bool = False,
    vendor: str | None = None,
    scan: int = 0,
) -> PhantomStudy:
    """Make one study, a pure function of its arguments.

    Args:
        seed: a non-negative integer or several; the patient depends only on it, on `disease` and on `acute`.
        n_frames: frames over the heart beat.
        in_plane_mm: pixel size [mm] of all views, on the scanner of a vendor in multiples of it.
        size: pixels along X and Y; by default for a field of view of 288 mm.
        n_slices: short-axis slices; whatever their number they cover the ventricles, so 12 lie about 10 mm apart.
        jitter_mm: standard deviation [mm] of the breath-hold's position, mostly head to feet, slice by slice.
        noise_sd: standard deviation of the noise in each of the two channels, blood being 400; None draws it.
        disease: one of `DISEASES`; None draws it.
        acute: whether an infarct is acute, with oedema; None draws it. Other diseases are as without it.
        sequences: of `PROTOCOLS`, without "cine" there are no cines; (): no images, for the truth or `scan_again`.
        atria: whether labels of cines name the atria; those of other sequences do.
        vendor: one of `SCANNERS`, "any" draws one; None: the standard style, from the second scan on one is drawn.
        scan: 0, or 1, 2, ... for another scan of the same heart: planes, breath-holds, vendor and noise are others. The
            stack's slices are at other heights; long axes are turned and shifted within their plane.

    Raises:
        ValueError: an argument out of range, or an unknown disease, sequence or vendor.
    """
    check_options(n_frames, in_plane_mm, size, n_slices, jitter_mm, noise_sd, disease, sequences, vendor, scan, atria,
                  acute)  # fmt: skip
    seed = tuple(map(index, seed)) if isinstance(seed, Sequence) else index(seed)

    def stream(*key: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(seed, spawn_key=key)

    _, plan, body, inside, breath, scanner = stream().spawn(6)
    key = (_SCAN, scan) if scan else ()
    if scan:
        plan, breath, scanner = stream(*key).spawn(3)
    rng = np.random.Generator(np.random.SFC64(scanner))
    if vendor == "any" or (vendor is None and scan):
        vendor = list(SCANNERS)[np.random.default_rng(stream(*key, _SCAN)).integers(len(SCANNERS))]
    style = SCANNERS[vendor] if vendor else STANDARD
    in_plane_mm *= style.pixel
    size = round(FIELD_MM / in_plane_mm) if size is None else size
    patient, heart, injury, outcome = draw_subject(seed, disease, acute)
    plan = np.random.default_rng(plan)
    # The first scan's slices lie alike in all hearts, as in earlier versions.
    along_mm = plan.uniform(-0.4, 0.4) * SLICE_MM if scan else 0.0
    grids = view_grids(patient, plan, size=size, in_plane_mm=in_plane_mm, n_slices=n_slices, along_mm=along_mm)
    renderer = HeartRenderer(heart, np.random.default_rng(inside), injury)
    acquire = Acquisition(patient, renderer, Thorax(np.random.default_rng(body), bmi=patient.bmi), style)
    shifts = _breath_holds(np.random.default_rng(breath), n_slices, jitter_mm)
    gain, drawn_sd = rng.uniform(*style.gain), rng.uniform(*style.noise_sd)
    noise_sd = drawn_sd if noise_sd is None else noise_sd
    phases = np.arange(n_frames) / n_frames
    images, labels = {}, {}
    affines, spacing = ({view: getattr(grid, name) for view, grid in grids.items()} for name in ("affine", "spacing"))
    for name in (name for name in PROTOCOLS if name in sequences):
        if name == "cine":
            taken = _planned_cines(grids, shifts, phases, rng)
        else:
            own = np.random.SFC64(stream(*key, _SEQUENCE, list(PROTOCOLS).index(name)))
            taken = _planned_stills(name, grids, patient, jitter_mm, np.random.Generator(own))
        for view, grid, moments, holds, noise in taken:
            drawn = acquire(grid, name, moments, holds, noise, gain=gain * noise.uniform(0.9, 1.1), noise_sd=noise_sd,
                            atria=atria or name != "cine")  # fmt: skip
            # Frames were drawn (T, Z, Y, X): transposed, and Z dropped where there is one slice, without a copy.
            images[view], labels[view] = (a.T if plane_of(view) == "sax" else a[:, 0].T for a in drawn)
            affines[view], spacing[view] = grid.affine, grid.spacing
    landmarks_mm = {view: _landmarks(heart, patient, LAX_ANGLE[view], phases) for view in VIEWS[1:]}
    la_ml, ra_ml = heart.atria_ml(phases)
    return PhantomStudy(
        seed=seed,
        patient=patient,
        images=images,
        labels=labels,
        affines=affines,
        spacing_mm=spacing,
        frame_time_ms=60e3 / patient.heart.heart_rate / n_frames,
        landmarks={
            view: (mm - grids[view].origin) @ grids[view].axes[:2].T / in_plane_mm
            for view, mm in landmarks_mm.items()
        },
        landmarks_mm=landmarks_mm,
        rv_insertions_mm=_rv_insertions(heart, patient, grids["sax"], shifts, phases),
        injury=injury,
        outcome=outcome,
        vendor=vendor or "",
        scan=scan,
        lv_ml=heart.lv_ml(phases),
        rv_ml=heart.rv_ml(phases),
        la_ml=la_ml,
        ra_ml=ra_ml,
        myocardial_mass_g=heart.myocardial_mass_g,
        slice_shift_mm=shifts,
        _grids=grids,
        _acquire=acquire,
    )


Planned = tuple[str, ViewGrid, NDArray[np.float64], NDArray[np.float64], np.random.Generator]


def _planned_cines(
    grids: dict[str, ViewGrid], shifts: NDArray[np.float64], phases: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[Planned]:
    """View, grid, phases, positions of the breath-holds and random numbers of each cine."""
    for view, grid in grids.items():
        yield view, grid, phases, shifts if view == "sax" else np.zeros((1, 3)), rng


def _planned_stills(
    sequence: str, grids: dict[str, ViewGrid], patient: Patient, jitter_mm: float, rng: np.random.Generator
) -> Iterator[Planned]:
    """The same of each view of another sequence, which has breath-holds of its own."""
    for plane in PROTOCOLS[sequence].planes:
        grid = sequence_grid(grids[plane], sequence, patient, rng)
        holds = _breath_holds(rng, grid.n_slices, jitter_mm, offset_mm=1.5 * jitter_mm)
        yield f"{sequence}_{plane}", grid, np.array([_DIASTOLE]), holds, rng


def _breath_holds(
    rng: np.random.Generator, n: int, jitter_mm: float, offset_mm: float = 0.0
) -> NDArray[np.float64]:
    """Positions (n, 3) in mm of the body in `n` breath-holds: breathing moves it along, and a little to the front."""
    breaths = rng.standard_normal((n, 1)) * jitter_mm
    if offset_mm:
        breaths += rng.standard_normal() * offset_mm
    return breaths * np.array([0.0, 0.35, 0.94])


def _rv_insertions(
    heart: BeatingHeart, patient: Patient, grid: ViewGrid, shifts: NDArray[np.float64], phases: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`INSERTIONS` in every frame and slice of a stack, as the images show them: (T, Z, 2, 3) patient mm, or NaN."""
    corners = grid.origin + np.arange(grid.n_slices)[:, None] * grid.spacing[2] * grid.axes[2] - shifts
    heights = (corners - patient.apex_mm) @ patient.axes[2]
    points, seen = heart.rv_insertions(heights[None], phases[:, None])
    mm = points @ patient.axes + patient.apex_mm + shifts[None, :, None]
    return np.where(seen[..., None, None], mm, np.nan)


def _landmarks(
    heart: BeatingHeart, patient: Patient, angle: float, phases: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Annulus at `angle` and opposite, and apex, at `phases` (T,): (T, 3, 3) patient mm."""
    points = []
    for direction in (angle, angle + math.pi):
        r, h = heart.annulus(direction, phases)
        points.append(np.stack([r * math.cos(direction), r * math.sin(direction), h], axis=-1))
    beat = heart.beat(phases)
    zero = np.zeros_like(phases)
    points.append(np.stack(heart.deform(zero, zero, zero, beat), axis=-1))
    return np.stack(points, axis=1) @ patient.axes + patient.apex_mm


def check_options(
    n_frames: int = 2,
    in_plane_mm: float = 1.0,
    size: int | None = None,
    n_slices: int = 1,
    jitter_mm: float = 0.0,
    noise_sd: float | None = None,
    disease: str | None = None,
    sequences: Sequence[str] = ("cine",),
    vendor: str | None = None,
    scan: int = 0,
    atria: bool = False,
    acute: bool | None = None,
) -> None:
    """ValueError that names the first argument out of range."""
    if disease is not None and disease not in DISEASES:
        raise ValueError(f"disease {disease!r} is unknown: choose one of {', '.join(DISEASES)}")
    for sequence in (sequences,) if isinstance(sequences, str) else sequences:
        if sequence not in PROTOCOLS:
            raise ValueError(f"sequence {sequence!r} is unknown: choose of {', '.join(PROTOCOLS)}")
    if acute not in (None, True, False):
        raise ValueError(f"acute must be True, False or None, got {acute!r}")
    if vendor not in (None, "any", *SCANNERS):
        raise ValueError(f"vendor {vendor!r} is unknown: choose one of {', '.join(SCANNERS)}, any")
    for name, value, low, kind in (
        ("n_frames", n_frames, 2, int),
        ("in_plane_mm", in_plane_mm, 0.2, float),
        ("size", 8 if size is None else size, 8, int),
        ("n_slices", n_slices, 1, int),
        ("jitter_mm", jitter_mm, 0, float),
        ("noise_sd", 0 if noise_sd is None else noise_sd, 0, float),
        ("scan", scan, 0, int),
    ):
        if not (math.isfinite(value) and value >= low and kind(value) == value):
            raise ValueError(f"{name} must be {'a whole' if kind is int else 'a'} number >= {low}, got {value}")
