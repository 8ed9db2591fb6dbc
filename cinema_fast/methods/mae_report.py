"""Pictures of a pre-training run: loss curve, and reconstructions of masked patches."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.naming import printable
from ..common.views import CLIP
from ..data.loading.loader import LoaderError
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..figures.canvas import new_figure, put_image
from ..kernels import TokenPlan
from ..kernels.masked_mse import TARGET_EPS
from ..kernels.patches import gather_patches, scatter_patches
from ..models.cinema import CineMA
from ..models.precision import autocast
from .guidance import Guidance
from .mae_evaluation import Evaluation, fixed_batches, fixed_plan, images_of
from .motion_figure import draw_motion

STAGES = ("input", "visible patches", "reconstruction", "absolute error")
CLIP_FRAMES = 6


def fill_in(
    image: Tensor, pred: Tensor, plan: TokenPlan, patch: tuple[int, ...], *, norm: bool
) -> tuple[Tensor, Tensor]:
    """The visible patches of an image, and its reconstruction.

    Args:
        image (B, C, *size), pred (B, M, P) at plan.masked. norm: predictions are of normalised patches, and are scaled
        back by the true mean and deviation.

    Returns:
        Two images (B, C, *size): visible patches with zeros elsewhere, and those with the predictions filled in.
    """
    size = tuple(image.shape[2:])
    pred = pred.to(image.dtype)
    if norm:
        true = gather_patches(image, plan.masked, patch).flatten(2)
        pred = pred * (true.std(-1, keepdim=True) + TARGET_EPS) + true.mean(-1, keepdim=True)
    seen = scatter_patches(gather_patches(image, plan.keep, patch), plan.keep, size, patch)
    return seen, seen + scatter_patches(pred, plan.masked, size, patch)


def write_report(
    out: Path,
    model: CineMA,
    store: CineStore | ClipStore,
    ids: Sequence[str],
    *,
    mask_ratio: float,
    device: torch.device,
    precision: torch.dtype,
    evaluation: Evaluation | None = None,
    guidance: Guidance | None = None,
    unreadable: dict[str, str] | None = None,
) -> list[Path]:
    """Write OUT/report: loss.png, reconstruction.png, motion.png where motion guided the masks, and evaluation.json
    where there is an evaluation. Returns the pictures.

    ids: the pictures show one of these studies: of those with the most views, the first that can be read. If none can,
    only loss.png is drawn. unreadable: a dict that receives {study: why} for skipped studies; None: such a study raises
    LoaderError.
    """
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    curve, picture, motion = (folder / f"{name}.png" for name in ("loss", "reconstruction", "motion"))
    if evaluation:
        values = asdict(evaluation) | {"ratio": evaluation.ratio}
        (folder / "evaluation.json").write_text(json.dumps(values, indent=1) + "\n")
    draw_loss(curve, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], evaluation)
    for study in sorted(ids, key=lambda s: -sum(view in model.config.views for view in store.views(s))):
        try:
            draw_reconstruction(
                picture, model, store, study, mask_ratio=mask_ratio, device=device, precision=precision
            )
            if guidance is None:
                return [curve, picture]
            draw_motion(motion, store, guidance, study, mask_ratio=mask_ratio, device=device)
            return [curve, picture, motion]
        except LoaderError as error:
            if unreadable is None:
                raise
            unreadable[study] = str(error).removeprefix(f"study {study}: ")
    return [curve]


def draw_loss(path: Path, lines: Sequence[dict], evaluation: Evaluation | None = None) -> None:
    """Loss over steps, with the held-out loss and that of the mean patch as horizontal lines."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    made = [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]
    axes.plot(*zip(*made) if made else ([], []), label="training", linewidth=1)
    if evaluation:
        axes.axhline(evaluation.loss, color="C2", label=f"held out {evaluation.loss:.4f}")
        label = f"mean patch, held out {evaluation.baseline_loss:.4f}"
        axes.axhline(evaluation.baseline_loss, color="C3", linestyle="--", label=label)
    axes.set(xlabel="step", ylabel="masked loss (MSE)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


@torch.no_grad()
def draw_reconstruction(
    path: Path,
    model: CineMA,
    store: CineStore | ClipStore,
    study: str,
    *,
    mask_ratio: float,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Input, visible patches, reconstruction and error: a row for each view of one frame, or columns for a clip.

    A stack is shown by its middle slice, a clip by CLIP_FRAMES frames spread over it.
    Raises LoaderError where the study cannot be read.
    """
    config = model.config
    batch = next(fixed_batches(store, config, [study], batch_size=1)).to(device)
    images, plan = images_of(batch), fixed_plan(config, batch, mask_ratio)
    with autocast(device, precision):
        pred = model(images, plan).pred
    stages = {}  # view -> kind of picture -> (1, 1, *size)
    for view, image in images.items():
        seen, filled = fill_in(image, pred[view], plan[view], config.token_size(view), norm=config.norm_target)
        stages[view] = dict(zip(STAGES, (image, seen, filled, (filled - image).abs())))
    if CLIP in stages:
        frames = np.linspace(0, config.image_size[CLIP][0] - 1, CLIP_FRAMES).round().astype(int)
        rows = {stage: [(stage, x[0, 0, t], f"frame {t}") for t in frames] for stage, x in stages[CLIP].items()}
    else:
        extent = {view: batch.extent[view][0].tolist() for view in stages}
        rows = {view: [(s, _slice(x, extent[view]), s) for s, x in of.items()] for view, of in stages.items()}
    columns = max(len(row) for row in rows.values())
    figure = new_figure(2.5 * columns, 2.6 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, row) in zip(grid, rows.items()):
        for axes, (stage, pixels, title) in zip(line, row):
            error = stage == STAGES[-1]
            how = {"cmap": "magma", "vmax": 0.5} if error else {"cmap": "gray", "vmax": 1}
            put_image(axes, pixels.float().cpu().numpy(), title if axes in grid[0] else "", vmin=0, **how)
        line[0].set_ylabel(label)
    figure.suptitle(f"study {printable(study)}, {mask_ratio:.0%} of the patches masked")
    figure.savefig(path, dpi=110)


def _slice(image: Tensor, extent: Sequence[int]) -> Tensor:
    """Pixels (X, Y) of image (1, 1, X, Y[, Z]); of a stack the middle slice that is not padding."""
    return image[0, 0] if image.ndim == 4 else image[0, 0, ..., extent[2] // 2]

