"""Hearts that do not come from this project's phantom: what does a model, trained on the phantom, do with them?

    pip install cardiac-geometries-core==1.5.0
    python benchmarks/experiments/independent_hearts.py --out DIR --n 10 --seed 0    (30 to 80 seconds a heart)

The package makes the mesh of every frame (independent_bodies.py); this script paints chest and signal, and writes

    DIR/hearts/ID_sax.nii.gz          cine (X, Y, Z, T), int16
    DIR/hearts/labels/ID_sax.nii.gz   1 RV cavity, 2 myocardium of the LV with the septum, 3 LV cavity
    DIR/hearts/truth.csv              volumes by 1 mm voxels of the meshes, EF, and the EF that was prescribed
    DIR/store                         all of it, prepared

Nothing of cinema_fast/phantom is used. Positions in mm, volumes in ml.
"""

import argparse
import csv
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout  # noqa: F401
import independent_bodies as bodies
import nibabel
import numpy as np
from independent_bodies import LV, MYO, RV, WALL, Array, Body, Frame, Heart
from numpy.typing import NDArray
from scipy import ndimage

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare

FRAMES, BEAT_S = 8, 0.9
SHAPE, VOXEL_MM, FINE = (120, 120, 12), (2.0, 2.0, 10.0), (2, 2, 5)  # every voxel is the mean of 2 x 2 x 5 points
SIGNAL = {"air": 0.0, "lung": 0.08, "muscle": 0.3, "liver": 0.42, "fat": 0.8, "myocardium": 0.33, "blood": 1.0}
# Right, front, head (RAS+) of the axes x, y, z: the base looks to the right, back and head, the RV to the right front.
_Z = np.array([0.55, -0.62, 0.56]) / math.hypot(0.55, 0.62, 0.56)
_X = np.array([0.7, 0.7, 0.0]) - _Z * (_Z @ [0.7, 0.7, 0.0])
AXES = np.stack([_X / np.linalg.norm(_X), np.cross(_Z, _X / np.linalg.norm(_X)), _Z], axis=1)


def smooth_field(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> Array:
    """A smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), [min(width, n / 2) for n in shape], mode="nearest")
    return (field - field.mean()) / field.std()


def surroundings(patient: Array, signal: Mapping[str, float], size: float) -> Array:
    """Signal of a plain chest at points (3, ...) in patient mm, the heart's middle being 0: an ellipse of skin fat and
    chest wall, lungs, a fatty mediastinum, the liver below a dome on the right and other organs on the left."""
    right, front, head = patient / size
    out = np.hypot((right - 35) / 165, (front + 20) / 115)
    dome = head + 62 + ((right - 35) / 60) ** 2 * 6 < 0
    mediastinum = np.hypot((right - 25) / 48, (front + 10) / 85) < 1
    organ = np.where(right > -5, signal["liver"], signal["muscle"])
    return np.select(
        [out > 1, out > 0.88, out > 0.8, dome, mediastinum],
        [signal["air"], signal["fat"], signal["muscle"], organ, 0.7 * signal["fat"]], signal["lung"],
    )  # fmt: skip


def outflow(points: Array, frame: Frame) -> NDArray[np.bool_]:
    """Blood above the base plane, as in atria: unlabelled domes on the two ventricles; points in heart coordinates."""
    base, (radius, *_), (width, depth, _) = 10 * frame.base, frame.lv, frame.rv
    left_dome = bodies.within(points, (7 * radius, 7 * radius, 35), (0, 0, base))
    middle = 10 * (frame.offset + width + radius) / 2  # of the crescent
    right_dome = bodies.within(points, (15, 6 * depth, 30), (middle, 0, base))
    return (left_dome | right_dome) & (points[2] >= base)


def planes(rng: np.random.Generator) -> tuple[Array, Array]:
    """Affines (4, 4) of a short-axis stack, voxels to heart coordinates and to RAS+ mm. The first axis of the image
    points about to the patient's left, the second to the back, slices run from base to apex, tilted a little."""
    left = AXES.T @ [-1.0, 0.0, 0.0]
    turn = math.atan2(left[1], left[0]) + rng.uniform(-0.3, 0.3)
    i = np.array([math.cos(turn), math.sin(turn), 0.0])
    k = np.array([*rng.normal(0, 0.05, 2), -1.0])
    k, i = k / np.linalg.norm(k), i - k * (i @ k) / (k @ k)
    i /= np.linalg.norm(i)
    to_heart = np.eye(4)
    to_heart[:3, :3] = np.stack([i, np.cross(i, k), k], 1) * VOXEL_MM
    middle = np.array([10.0, 0.0, -25.0]) + rng.uniform(-8, 8, 3)
    to_heart[:3, 3] = middle - to_heart[:3, :3] @ (np.array(SHAPE) - 1) / 2
    to_patient = np.eye(4)
    to_patient[:3, :3] = AXES
    return to_heart, to_patient @ to_heart


def averaged(points: Array) -> Array:
    """Means over the fine points of every voxel."""
    (x, y, z), (a, b, c) = SHAPE, FINE
    return points.reshape(x, a, y, b, z, c).mean((1, 3, 5))


def labelled(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label map of the fine points' tissue: where half of a voxel is heart, that which has the most of it."""
    shares = np.stack([averaged(tissue == label) for label in (RV, MYO, LV, WALL)])
    return np.where(shares.sum(0) >= 0.5, (shares.argmax(0) + 1) % WALL, 0).astype(np.uint8)


def scan(heart: Heart, make: Callable[[Frame], Body | None], rng: np.random.Generator, name: str, out: Path) -> dict:
    """Write the cine and the label maps of a heart, whose surfaces `make` makes. Returns its line of truth.csv."""
    to_heart, affine = planes(rng)
    step = np.diag([*1 / np.array(FINE), 1.0])
    step[:3, 3] = (1 / np.array(FINE) - 1) / 2
    fine, shape = to_heart @ step, tuple(n * f for n, f in zip(SHAPE, FINE))
    signal = {tissue: value * rng.uniform(0.85, 1.15) for tissue, value in SIGNAL.items()}
    points = bodies.grid(fine, shape)
    chest = surroundings(np.tensordot(AXES, points, 1), signal, rng.uniform(0.9, 1.1))
    chest *= np.clip(1 + 0.12 * smooth_field(shape, 12, rng), 0.4, 1.6)
    bias, noise, gain = np.exp(0.25 * smooth_field(SHAPE, 40, rng)), rng.uniform(0.015, 0.04), rng.uniform(250, 700)
    cine, labels, found = np.empty((*SHAPE, FRAMES), np.int16), np.empty((*SHAPE, FRAMES), np.uint8), []
    for t in range(FRAMES):
        frame, body = bodies.body_at(heart, bodies.ejected(t / FRAMES), make)
        tissue = bodies.voxelise(frame, body, fine, shape)
        found.append(bodies.volumes(frame, body))
        blood = (tissue == RV) | (tissue == LV) | ((tissue == 0) & outflow(points, frame))
        painted = np.select([blood, tissue > 0], [signal["blood"], signal["myocardium"]], chest)
        image = bias * ndimage.gaussian_filter(averaged(painted), (0.6, 0.6, 0))
        real, imaginary = rng.normal(0, noise, (2, *SHAPE))
        cine[..., t] = np.round(gain * np.hypot(image + real, imaginary))  # Rician
        labels[..., t] = labelled(tissue)
    for voxels, folder in ((cine, out), (labels, out / "labels")):
        write(folder / f"{name}_sax.nii.gz", voxels, affine)
    lv, rv, myo = (np.array([v[label] for v in found]) for label in (LV, RV, MYO))
    return {
        "study": name, "ef": 100 * (1 - lv.min() / lv.max()), "ef_prescribed": 100 * heart.ef, "edv_ml": lv.max(),
        "esv_ml": lv.min(), "rv_ef": 100 * (1 - rv.min() / rv.max()), "rv_edv_ml": rv.max(), "rv_esv_ml": rv.min(),
        "myocardium_ed_ml": myo[lv.argmax()], "myocardium_es_ml": myo[lv.argmin()],
    }  # fmt: skip


def write(path: Path, voxels: NDArray[np.generic], affine: Array) -> None:
    """A NIfTI file in mm and seconds, sform and qform with the code of the scanner's axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*VOXEL_MM, BEAT_S / FRAMES))
    nibabel.save(image, path)


def write_hearts(out: Path, n: int, seed: int, make: Callable[[Frame], Body | None]) -> None:
    """`n` hearts and truth.csv; heart i of a seed is the same in larger cohorts."""
    rows = []
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        rows.append(scan(bodies.draw_heart(rng), make, rng, f"independent-{i:02}", out))
        print("{study}: EDV {edv_ml:.0f} ml, EF {ef:.1f} %".format(**rows[-1]), flush=True)
    with open(out / "truth.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for hearts and store")
    parser.add_argument("--n", type=int, default=10, help="number of hearts")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if find_spec("cardiac_geometries_core") is None:
        parser.error("the meshes need a package: pip install cardiac-geometries-core==1.5.0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heart.msh"
        write_hearts(given.out / "hearts", given.n, given.seed, lambda frame: bodies.mesh(frame, path))
    print(prepare(
        PrepareConfig(
            src=given.out / "hearts", dst=given.out / "store", labels="labels/{id}_{view}.nii.gz",
            sax_size=(64, 64, 12), sax_spacing=(3.0, 3.0, 10.0),
        ), progress=False,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
