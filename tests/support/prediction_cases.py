"""Hearts whose label maps are known in scanner mm, and fine-tuned runs whose networks say what their images show."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from cine_files import BALL, affine_of, grid_mm, write_cine
from scipy.ndimage import binary_dilation
from torch import nn

import cinema_fast as cf
from cinema_fast.data.store.orientation import orientation_of
from cinema_fast.prediction import predict
from cinema_fast.prediction.predict_config import PredictConfig
from cinema_fast.tasks.finetuned_run import FinetunedRun
from cinema_fast.tasks.landmarks import Landmarks
from cinema_fast.tasks.segmentation import Segmentation
from cinema_fast.train.run_info import LabelInfo, RunInfo, StoreInfo

RADIUS_MM = 30.0  # of the heart; the cavity lies in it off its middle, so that no flip goes unnoticed
CAVITY_MM = np.array([6.0, -4.0, 5.0])
CAVITY_RADII_MM = (20.0, 18.0, 16.0, 18.0)
OFF_MIDDLE_MM = np.array([4.0, -3.0, 2.0])  # the middle of the image
STRUCTURES = ("MYO", "LV")
OBLIQUE = ((90, 70, 9), (1.2, 1.6, 8.0), (0.4, -0.5, 1.0))  # shape, spacing, normal of the slices


def oblique(flip: tuple[int, ...] = (), shape=OBLIQUE[0], spacing=OBLIQUE[1], normal=OBLIQUE[2]) -> np.ndarray:
    """(4, 4) of a grid around the heart that no axis of the scanner is parallel to; `flip`: axes to turn round."""
    affine = affine_of(normal, spacing, BALL + OFF_MIDDLE_MM, shape)
    for axis in flip:
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return affine


def truth_of(shape, affine, t: int) -> np.ndarray:
    """Label map uint8 (X, Y, Z) of frame t: 1 in the heart, 2 in its cavity."""
    mm = grid_mm(shape, affine)
    heart = np.linalg.norm(mm - BALL, axis=-1) < RADIUS_MM
    cavity = np.linalg.norm(mm - BALL - CAVITY_MM, axis=-1) < CAVITY_RADII_MM[t]
    return np.where(cavity, 2, heart).astype(np.uint8)


def heart_cine(shape, affine) -> tuple[np.ndarray, np.ndarray]:
    """int16 (X, Y, Z, T) that is 0, 300 or 600 by label, and the labels (X, Y, Z, T)."""
    labels = np.stack([truth_of(shape, affine, t) for t in range(len(CAVITY_RADII_MM))], axis=-1)
    return 300 * labels.astype(np.int16), labels


def write_heart(folder: Path, affine: np.ndarray, shape=OBLIQUE[0], name="heart_sax.nii.gz") -> np.ndarray:
    """Write a cine of the heart; its labels."""
    cine, labels = heart_cine(shape, affine)
    write_cine(folder / name, cine, affine, 50.0)
    return labels


class Brightness(nn.Module):
    """Sees the labels of `heart_cine` in its brightness: logits (B, 3, *size)."""

    def forward(self, images):
        levels = torch.tensor([0.0, 0.5, 1.0])
        return {v: -100 * (x - levels.view(1, 3, *[1] * (x.ndim - 2))).abs() for v, x in images.items()}


class Brightest(nn.Module):
    """Two landmarks in the middle of what is bright, and the cosine of nothing: (B, 6), shares of the image's sides."""

    def forward(self, images):
        ((_, image),) = images.items()
        weight = (image - 0.5).clamp(min=0)[:, 0].double()
        shares = [(weight * torch.arange(n).view([-1, 1] if k == 0 else [1, -1])).sum((1, 2)) / weight.sum((1, 2)) / n
                  for k, n in enumerate(image.shape[2:])]  # fmt: skip
        at = torch.stack(shares, 1)
        return torch.cat([at, at + 0.125, at - 0.25], 1)


def stand_in(task: Segmentation | Landmarks, model: nn.Module, prepare: dict, sizes: dict) -> FinetunedRun:
    """A run of the task whose store was prepared with `prepare`. sizes: {view: the model's image size}."""
    fields = {name: dict.fromkeys(sizes, value) for name, value in (("in_chans", 1),)}
    plane = {view: (2, 2, 1)[: len(size)] for view, size in sizes.items()}
    model_config = cf.CineMAConfig(
        views=tuple(sizes), image_size=sizes, patch_size=plane, scale_factor=plane, enc_conv_chans=(4, 6),
        enc_conv_n_blocks=1, enc_embed_dim=16, enc_depth=1, enc_n_heads=2, dec_embed_dim=16, dec_depth=1, dec_n_heads=2,
        **fields,
    )  # fmt: skip
    store = StoreInfo(1, "ab", orientation_of(prepare), prepare)
    info = RunInfo({"views": []}, {}, store, {}, labels=LabelInfo(task.to_dict(), {}, []))
    return FinetunedRun(Path("run"), 7, info, model_config, task, model, torch.device("cpu"), torch.float32)


def predict_as(monkeypatch, run: FinetunedRun, src: Path, out: Path, **options) -> predict.PredictReport:
    """Predict by a run that is in no folder; None: one that must not be loaded."""
    monkeypatch.setattr(predict, "load_run", lambda folder, **how: run or pytest.fail("the weights were read"))
    monkeypatch.setattr(predict, "task_of", lambda folder: (run or segmenter()).task)
    return predict.predict(PredictConfig(Path("run"), src, out, workers=1, **options), progress=False)


def lines_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def segmenter(sax=(128, 128, 10), spacing=(1.0, 1.0, 8.0), lax=(128, 128), lax_spacing=(1.0, 1.0)) -> FinetunedRun:
    """A segmenting run on grids of these sizes."""
    prepare = {"sax_size": sax, "sax_spacing": spacing, "lax_size": lax, "lax_spacing": lax_spacing}
    return stand_in(Segmentation(STRUCTURES, ("sax", "lax_4c"), "0"), Brightness(), prepare,
                    {"sax": sax, "lax_4c": lax})  # fmt: skip


def assert_aligned(found: np.ndarray, truth: np.ndarray, middle: float, volume: float) -> None:
    """Label maps (X, Y, Z, T) whose structures are nowhere more than a voxel beside each other.

    middle: voxels by which the middles of the heart and of its cavity may differ; volume: share, likewise.
    """
    assert found.shape == truth.shape and found.dtype == np.uint8
    around = np.ones((3,) * (truth.ndim - 1))
    for t in range(truth.shape[-1]):
        for least in (1, 2):  # the heart as a whole, and the cavity in it
            ours, right = found[..., t] >= least, truth[..., t] >= least
            assert not (ours & ~binary_dilation(right, around)).any()
            assert not (right & ~binary_dilation(ours, around)).any()
            middles = [np.argwhere(part).mean(0) for part in (ours, right)]
            assert np.abs(middles[0] - middles[1]).max() < middle, (t, least, middles)
            assert abs(ours.sum() / right.sum() - 1) < volume, (t, least, ours.sum() / right.sum())
