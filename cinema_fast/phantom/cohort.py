"""Synthetic cine cardiac MR with known truth: one beating 3D heart, cut by a short-axis stack and three long axes.

`make_study` gives images, labels, landmarks, volumes and displacements of one study; `write_cohort` writes many as
NIfTI. The heart and its motion are in `heart.py`, the body in `thorax.py`, the random patient in `patient.py`, the
planes and the noise in `scan.py`, the image of a plane in `render.py`.
"""

import csv
import inspect
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..common.output import new_folder
from ..common.pool import run_in_processes
from ..common.progress import progress_bar
from ..common.tables import LANDMARK_COLUMNS
from ..common.views import VIEWS
from .heart import BeatingHeart
from .nifti import write_view
from .patient import DISEASES, Patient, draw_patient
from .render import HeartRenderer
from .scan import LAX_ANGLE, ViewGrid, acquire, view_grids
from .thorax import Thorax

S = TypeVar("S")
R = TypeVar("R")

LANDMARKS = ("annulus_1", "annulus_2", "apex")
FIELD_MM = 288.0
_DENSITY = 1.05  # of myocardium, g/ml
_SCANS_AGAIN = 6  # the stream of random numbers after the six of `make_study`


@dataclass(frozen=True)
class PhantomStudy:
    """One study and its truth. Axes X, Y, Z voxels and T frames; patient mm are RAS+; frame 0 is end-diastole.

    Attributes:
        images: view -> (X, Y[, Z], T) uint16, scanner units; `sax` has Z.
        labels: as images, uint8: 0 background, 1 right ventricle, 2 myocardium of the left ventricle, 3 left ventricle
            (papillary muscles and trabeculae included, as in the public datasets).
        affines: view -> (4, 4) float64, voxel (x, y, z) to patient mm, one frame of reference for all views.
        spacing_mm: view -> voxel size along X, Y, Z (for a long axis the third is the slice thickness).
        frame_time_ms: time between frames; the frames cover one heart beat.
        landmarks: long-axis view -> (T, 3, 2) float64 voxel coordinates of `LANDMARKS`: where the mitral annulus
            meets the endocardium (2C anterior, inferior; 3C anteroseptal, inferolateral; 4C septal, lateral), and the
            endocardial apex.
        landmarks_mm: the same points in patient mm, (T, 3, 3).
        lv_ml, rv_ml: (T,) cavity volumes. The left one is analytic; the right one is analytic but for its
            end-diastolic value, which holds to about 1e-4 (quadrature of the continuous geometry).
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
    lv_ml: NDArray[np.float64]
    rv_ml: NDArray[np.float64]
    myocardial_mass_g: float
    slice_shift_mm: NDArray[np.float64]
    _grids: dict[str, ViewGrid] = field(repr=False)
    _renderer: HeartRenderer = field(repr=False)
    _thorax: Thorax = field(repr=False)

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
            "disease": who.disease,
            "age": who.age,
            "sex": who.sex,
            "bmi": who.bmi,
            "heart_rate": who.heart.heart_rate,
            "frame_time_ms": self.frame_time_ms,
            "ef": self.ef,
            "edv_ml": float(self.lv_ml.max()),
            "esv_ml": float(self.lv_ml.min()),
            "rv_ef": self.rv_ef,
            "rv_edv_ml": float(self.rv_ml.max()),
            "rv_esv_ml": float(self.rv_ml.min()),
            "myocardial_mass_g": self.myocardial_mass_g,
            "ed_frame": self.ed_frame,
            "es_frame": self.es_frame,
            "lv_ml": self.lv_ml.tolist(),
            "rv_ml": self.rv_ml.tolist(),
            "slice_shift_mm": self.slice_shift_mm.tolist(),
            "landmark_names": list(LANDMARKS),
            "landmarks": {view: points.tolist() for view, points in self.landmarks.items()},
            "landmarks_mm": {view: points.tolist() for view, points in self.landmarks_mm.items()},
            "heart": asdict(who.heart),
        }

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
        heart = self._renderer.heart
        found = heart.locate(*np.moveaxis(points, -1, 0), heart.beat(t0 / self.n_frames))
        moved = np.stack(heart.deform(found.x, found.y, found.h, heart.beat(t1 / self.n_frames)), axis=-1)
        inside = (found.outside[4] < 0)[..., None]
        return np.where(inside & (t0 != t1), moved - points, 0) @ self.patient.axes

    def _check_frame(self, t: int) -> None:
        if not 0 <= t < self.n_frames:
            raise IndexError(f"frame {t} is not in this study: it has frames 0 to {self.n_frames - 1}")

    def scan_again(self, view: str, t: int, seed: int, *, gain: float, noise_sd: float) -> NDArray[np.uint16]:
        """Frame `t` of a view acquired once more on the same grid: (X, Y[, Z]) uint16, with a noise of its own.

        Args:
            seed: of the noise; with the study's own seed it gives its random numbers.
            gain: of the scanner; `make_study` draws about 0.8 to 1.4.
            noise_sd: standard deviation of the noise in each of the two channels before the gain, blood being 400.

        Raises:
            KeyError: unknown view. IndexError: a frame outside of the study.
        """
        self._check_frame(t)
        shifts = self.slice_shift_mm if view == "sax" else np.zeros((1, 3))
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_SCANS_AGAIN, seed)))
        phases = np.array([t / self.n_frames])
        image, _ = acquire(self._grids[view], self.patient, self._renderer, self._thorax, phases, shifts, rng,
                           gain=gain, noise_sd=noise_sd)  # fmt: skip
        return image[0].T if view == "sax" else image[0, 0].T

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
            x0, x1, y0, y1 = self._renderer.box(plane)
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
) -> PhantomStudy:
    """Make one study, a pure function of its arguments.

    Args:
        seed: a non-negative integer or several; the patient depends only on it, not on the resolution.
        n_frames: frames over the heart beat.
        in_plane_mm: pixel size [mm] of all views.
        size: pixels along X and Y; by default for a field of view of 288 mm.
        n_slices: short-axis slices; whatever their number they cover the ventricles, so 12 lie about 10 mm apart.
        jitter_mm: standard deviation [mm] of the breath-hold's position, mostly head to feet, slice by slice.
        noise_sd: standard deviation of the noise in each of the two channels, blood being 400; None draws it.
        disease: one of `DISEASES`; None draws it.

    Raises:
        ValueError: an argument out of range, or an unknown disease.
    """
    _check_options(n_frames, in_plane_mm, size, n_slices, jitter_mm, noise_sd, disease)
    size = round(FIELD_MM / in_plane_mm) if size is None else size
    seed = tuple(map(index, seed)) if isinstance(seed, Sequence) else index(seed)
    who, plan, body, inside, breath, scanner = np.random.SeedSequence(seed).spawn(6)
    patient = draw_patient(np.random.default_rng(who), disease)
    grids = view_grids(
        patient, np.random.default_rng(plan), size=size, in_plane_mm=in_plane_mm, n_slices=n_slices
    )
    renderer = HeartRenderer(BeatingHeart(patient.heart), np.random.default_rng(inside))
    thorax = Thorax(np.random.default_rng(body), bmi=patient.bmi)
    # Breathing moves the heart mostly along the body, a little to the front.
    breaths = np.random.default_rng(breath).standard_normal((n_slices, 1)) * jitter_mm
    shifts = breaths * np.array([0.0, 0.35, 0.94])
    rng = np.random.Generator(np.random.SFC64(scanner))
    gain, drawn_sd = rng.uniform(0.8, 1.4), rng.uniform(4, 12)
    phases = np.arange(n_frames) / n_frames
    images, labels = {}, {}
    for view, grid in grids.items():
        image, label = acquire(
            grid,
            patient,
            renderer,
            thorax,
            phases,
            shifts if view == "sax" else np.zeros((1, 3)),
            rng,
            gain=gain * rng.uniform(0.9, 1.1),
            noise_sd=drawn_sd if noise_sd is None else noise_sd,
        )
        # Frames were drawn (T, Z, Y, X): transposed, and Z dropped where there is one slice, without a copy.
        images[view], labels[view] = (a.T if view == "sax" else a[:, 0].T for a in (image, label))
    heart = renderer.heart
    landmarks_mm = {view: _landmarks(heart, patient, LAX_ANGLE[view], phases) for view in VIEWS[1:]}
    return PhantomStudy(
        seed=seed,
        patient=patient,
        images=images,
        labels=labels,
        affines={view: grid.affine for view, grid in grids.items()},
        spacing_mm={view: grid.spacing for view, grid in grids.items()},
        frame_time_ms=60e3 / patient.heart.heart_rate / n_frames,
        landmarks={
            view: (mm - grids[view].origin) @ grids[view].axes[:2].T / in_plane_mm
            for view, mm in landmarks_mm.items()
        },
        landmarks_mm=landmarks_mm,
        lv_ml=heart.lv_ml(phases),
        rv_ml=heart.rv_ml(phases),
        myocardial_mass_g=_DENSITY * heart.myocardial_ml,
        slice_shift_mm=shifts,
        _grids=grids,
        _renderer=renderer,
        _thorax=thorax,
    )


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


def _check_options(
    n_frames: int = 2,
    in_plane_mm: float = 1.0,
    size: int | None = None,
    n_slices: int = 1,
    jitter_mm: float = 0.0,
    noise_sd: float | None = None,
    disease: str | None = None,
) -> None:
    """ValueError that names the first argument out of range."""
    if disease is not None and disease not in DISEASES:
        raise ValueError(f"disease {disease!r} is unknown: choose one of {', '.join(DISEASES)}")
    for name, value, low, kind in (
        ("n_frames", n_frames, 2, int),
        ("in_plane_mm", in_plane_mm, 0.2, float),
        ("size", 8 if size is None else size, 8, int),
        ("n_slices", n_slices, 1, int),
        ("jitter_mm", jitter_mm, 0, float),
        ("noise_sd", 0 if noise_sd is None else noise_sd, 0, float),
    ):
        if not (math.isfinite(value) and value >= low and kind(value) == value):
            raise ValueError(f"{name} must be {'a whole' if kind is int else 'a'} number >= {low}, got {value}")


def write_cohort(
    dst: str | Path, n: int, seed: int, *, workers: int = 1, progress: bool = False, **options: Any
) -> list[str]:
    """Write `n` studies as NIfTI with their truth, and return their ids, `heart-000000` onwards.

    Study i is `make_study((seed, i), **options)`, whatever `n` and `workers` are. DST gets `{id}_{view}.nii.gz`, 4D
    int16 (X, Y, Z, T) with one slice for a long axis, mm and seconds, the scanner's affine; the label maps under the
    same names in `labels/`, uint8; and, last, `truth.json`: per study the disease, covariates, volumes (ml),
    ejection fractions (percent), myocardial mass (g), heart rate and landmarks (voxels and mm). `truth.csv` holds its
    single numbers and words, a line per study; `landmarks.csv` the landmarks of all long axes and frames (from 0) in
    patient mm, RAS+, a line each, as `tables.read_landmarks` reads them.

    Args:
        dst: a folder that is empty or does not exist yet.
        n: number of studies.
        seed: of the cohort, a non-negative integer.
        workers: processes.
        progress: show a progress bar on stderr.
        options: keyword arguments of `make_study`.

    Raises:
        FileExistsError: `dst` is not empty. OutputError: it cannot be written; no part of it is left.
        ValueError, TypeError: an argument out of range, or one that `make_study` does not know.
    """
    dst = Path(dst)
    inspect.signature(make_study).bind(seed, **options)
    check_cohort(n, workers, options)
    written = ("heart-*.nii.gz", "labels", "truth.json", "truth.csv", "landmarks.csv")
    with new_folder(dst, "phantom", {"n": n, "seed": seed, **options}, written):
        return _write_cohort(dst, n, seed, workers, progress, options)


def check_cohort(n: int, workers: int, options: dict[str, Any]) -> None:
    """ValueError that names the first argument of a cohort out of range; `options` are those of `make_study`."""
    _check_options(**options)
    if n < 1 or workers < 1:
        raise ValueError(f"n and workers must be at least 1, got {n} and {workers}")


def _write_cohort(
    dst: Path, n: int, seed: int, workers: int, progress: bool, options: dict[str, Any]
) -> list[str]:
    (dst / "labels").mkdir(parents=True, exist_ok=True)
    truths = write_studies(partial(_write_study, dst, seed, options), range(n), workers, progress)
    studies = {_study_id(i): truth for i, truth in enumerate(truths)}
    document = {"format": "cinema-fast phantom", "seed": seed, "options": options, "studies": studies}
    (dst / "truth.json").write_text(json.dumps(document, indent=1))
    with (dst / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["study", *TRUTH_COLUMNS], extrasaction="ignore")
        table.writeheader()
        table.writerows({"study": study, **truth} for study, truth in studies.items())
    with (dst / "landmarks.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(LANDMARK_COLUMNS)
        for study, truth in studies.items():
            for view, frames in truth["landmarks_mm"].items():
                lines.writerows((study, view, t, name, *(f"{mm:.4f}" for mm in point))
                                for t, points in enumerate(frames) for name, point in zip(LANDMARKS, points))
    return list(studies)


def write_studies(write: Callable[[S], R], studies: Sequence[S], workers: int, progress: bool) -> list[R]:
    """Call `write` for each of `studies` (hashable), in `workers` processes; what it returns, in their order."""
    written = {}
    with (progress_bar("making studies", len(studies), show=progress) as advance,
          closing(run_in_processes(write, studies, min(workers, len(studies)))) as results):
        for study, result in results:
            if isinstance(result, Exception):
                raise result
            written[study] = result
            advance()
    return [written[study] for study in studies]


TRUTH_COLUMNS = (
    "disease", "age", "sex", "bmi", "heart_rate", "ef", "edv_ml", "esv_ml", "rv_ef", "rv_edv_ml", "rv_esv_ml",
    "myocardial_mass_g",
)  # fmt: skip


def _study_id(i: int) -> str:
    return f"heart-{i:06d}"


def _write_study(dst: Path, seed: int, options: dict[str, Any], i: int) -> dict[str, Any]:
    """Make study `i` of a cohort, write its images and labels, and return its entry in truth.json."""
    study = make_study((seed, i), **options)
    for view in study.images:
        name = f"{_study_id(i)}_{view}.nii.gz"
        write_view(dst / name, study, view, study.images[view])
        write_view(dst / "labels" / name, study, view, study.labels[view])
    return study.truth()
