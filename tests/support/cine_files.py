"""NIfTI cines for tests: a bright ball that breathes, at a known place in scanner mm, in views of any orientation."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

BALL = np.array([12.0, -7.0, 30.0])  # scanner mm


def affine_of(normal, spacing, middle, shape, turn: float = 0.3) -> np.ndarray:
    """(4, 4) of a grid whose third axis is `normal` and whose middle voxel lies at `middle` mm."""
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    first = np.cross(normal, [np.cos(turn), np.sin(turn), 0.37])
    first /= np.linalg.norm(first)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first, np.cross(normal, first), normal], axis=1) * spacing
    affine[:3, 3] = np.asarray(middle) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def grid_mm(shape, affine) -> np.ndarray:
    """(*shape, 3) scanner mm of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def ball_cine(shape, affine, n_frames: int = 4, seed: int = 0) -> np.ndarray:
    """int16 (X, Y, Z, T): a Gaussian ball of 9.5-11.5 mm at BALL over a noisy background."""
    distance = np.linalg.norm(grid_mm(shape, affine) - BALL, axis=-1)
    width = 10.5 + 1.0 * np.cos(2 * np.pi * np.arange(n_frames) / n_frames)
    background = 40 + np.random.default_rng(seed).normal(0, 2, (*shape, n_frames))
    return (background + 900 * np.exp(-((distance[..., None] / width) ** 2) / 2)).astype(np.int16)


def write_cine(path: Path, data: np.ndarray, affine: np.ndarray, frame_ms: float = 40.0) -> Path:
    """Write a NIfTI whose header says mm and seconds."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header["pixdim"][4] = frame_ms / 1000
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


# view -> (shape, spacing mm, normal of the slices, how far the image's middle is from the ball, mm)
VIEWS = {
    "sax": ((40, 44, 5), (1.5, 1.5, 8.0), (0.1, 0.2, 1.0), (6.0, -4.0, 0.4)),
    "lax_2c": ((50, 46, 1), (1.4, 1.4, 6.0), (1.0, 0.1, 0.0), (0.0, 5.0, -7.0)),
    "lax_4c": ((46, 50, 1), (1.4, 1.4, 6.0), (0.0, 1.0, 0.2), (3.0, 0.0, 4.0)),
}


def write_study(folder: Path, study: str, views=tuple(VIEWS), n_frames: int = 4, seed: int = 0) -> None:
    """`{study}_{view}.nii.gz` of views whose planes all pass through BALL."""
    for k, view in enumerate(views):
        shape, spacing, normal, offset = VIEWS[view]
        unit = np.asarray(normal) / np.linalg.norm(normal)
        middle = BALL + np.asarray(offset) - unit * (unit @ offset)  # stays in the plane through the ball
        affine = affine_of(normal, spacing, middle, shape)
        cine = ball_cine(shape, affine, n_frames, seed=seed * 10 + k)
        write_cine(folder / f"{study}_{view}.nii.gz", cine, affine, 30.0 + k)


def forbid_listing(monkeypatch, folder: Path) -> None:
    """As another user's folder behaves, for root too."""
    plain = os.scandir

    def guarded(path):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", guarded)
