"""A picture of motion-guided masking: motion over the cycle, and masks without and with guidance."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.naming import printable
from ..common.views import CLIP
from ..data.loading.augment import motion_input
from ..data.loading.batch import Batch
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..figures.canvas import new_figure, put_image
from ..kernels import TokenPlan, motion_map, optical_flow
from ..models.config import CineMAConfig
from .guidance import GREY, Guidance
from .mae_evaluation import MASK_SEED, fixed_batches, images_of
from .masking import draw_plan

ROWS = ("flow to the next frame", "motion map", "uniform mask", "motion-guided mask")
CLIP_FRAMES = 6
MASKED = 0.2  # masked patches are shown at this share of their brightness


class Moment(NamedTuple):
    """One column of the picture, on the CPU: image, motion and the two masks (X, Y), flow (2, X, Y) in pixels."""

    title: str
    image: Tensor
    flow: Tensor
    motion: Tensor
    by_chance: Tensor
    by_motion: Tensor


def flow_colours(flow: np.ndarray, largest: float) -> np.ndarray:
    """Colours of flow (2, X, Y): hue is its direction, saturation its length relative to `largest` [pixels].

    Returns (X, Y, 3) in 0..1; white where nothing moves, red along +X, then green, then blue going round by +Y.
    """
    from matplotlib.colors import hsv_to_rgb

    hue = np.arctan2(flow[1], flow[0]) / (2 * np.pi) % 1
    length = np.hypot(*flow) / max(largest, 1e-6)
    return hsv_to_rgb(np.stack([hue, length.clip(0, 1), np.ones_like(hue)], -1))


def draw_motion(
    path: Path, store: CineStore | ClipStore, guidance: Guidance, study: str, *, mask_ratio: float, device: torch.device
) -> None:
    """Columns: frames over the cycle. Rows: the frame coloured by its flow, motion map, uniform and guided mask.

    A stack is shown by its middle slice. Raises LoaderError or StoreError where the study cannot be read.
    """
    moments = moments_of(store, guidance, study, mask_ratio=mask_ratio, device=device)
    largest = max(float(torch.linalg.vector_norm(m.flow, dim=0).quantile(0.999)) for m in moments)
    most = max(float(m.motion.max()) for m in moments) or 1.0
    figure = new_figure(2.2 * len(moments), 2.2 * len(ROWS) + 0.6)
    grid = figure.subplots(len(ROWS), len(moments), squeeze=False)
    for column, moment in zip(grid.T, moments):
        image = moment.image.numpy()
        coloured = flow_colours(moment.flow.numpy(), largest) * (0.25 + 0.75 * image[..., None])
        put_image(column[0], coloured, moment.title)
        put_image(column[1], moment.motion.numpy(), cmap="inferno", vmin=0, vmax=most)
        for axes, visible in ((column[2], moment.by_chance), (column[3], moment.by_motion)):
            put_image(axes, image * np.where(visible.numpy(), 1, MASKED), cmap="gray", vmin=0, vmax=1)
    for axes, label in zip(grid[:, 0], ROWS):
        axes.set_ylabel(label)
    _draw_wheel(grid[0, 0], largest)
    does = "masks" if guidance.mask.mode == "mask" else "keeps"
    masked = f"{mask_ratio:.0%} of the patches masked"
    figure.suptitle(f"study {printable(study)}: guidance that {does} the patches that move, {masked}")
    figure.savefig(path, dpi=110)


@torch.no_grad()
def moments_of(
    store: CineStore | ClipStore, guidance: Guidance, study: str, *, mask_ratio: float, device: torch.device
) -> list[Moment]:
    """The columns of the picture: frames of one clip, or the study's first cine at each phase of the evaluation."""
    config, moments = guidance.config, []
    for batch in fixed_batches(store, config, [study], batch_size=1, motion=not guidance.online):
        batch = batch.to(device)
        images = images_of(batch)
        weights = guidance.weights(batch, images, step=guidance.steps)
        how = {"mask_ratio": mask_ratio, "seed": MASK_SEED, "step": batch.draw.step}
        plans = [draw_plan(config, batch.draw.views, batch.slot, weights=w, **how) for w in (None, weights)]
        if CLIP in images:
            return _of_clip(config, guidance, batch, images[CLIP], [plan[CLIP] for plan in plans])
        moments.append(_of_frame(store, config, study, batch, images, plans))
    return moments


def _of_clip(
    config: CineMAConfig, guidance: Guidance, batch: Batch, clip: Tensor, plans: list[TokenPlan]
) -> list[Moment]:
    frames = clip[:, 0] * GREY
    n = frames.shape[1]
    flow = optical_flow(frames, [(t, (t + 1) % n) for t in range(n)])[0]
    if guidance.online:
        tubelet = config.token_size(CLIP)[0]
        motion = motion_map(frames, tubelet=tubelet)[0].repeat_interleave(tubelet, 0)
    else:
        motion = motion_input(batch.motion[CLIP], batch.extent[CLIP], clip=True).expand(n, -1, -1)
    by_chance, by_motion = (_visible(plan, config, CLIP) for plan in plans)
    return [
        Moment(f"frame {t}", *(x[t].cpu() for x in (clip[0, 0], flow, motion, by_chance, by_motion)))
        for t in np.linspace(0, n - 1, CLIP_FRAMES).round().astype(int)
    ]


def _of_frame(
    store: CineStore, config: CineMAConfig, study: str, batch: Batch, images: dict[str, Tensor], plans: list
) -> Moment:
    cines = [view for view in images if store.n_frames(study, view) > 1] or list(images)
    view, n = cines[0], store.n_frames(study, cines[0])
    t = int(batch.draw.phase[0] * n)
    frames = torch.from_numpy(store.read_frames(study, view, [t, (t + 1) % n])).to(batch.slot.device)
    flow = torch.zeros(2, *config.image_size[view])
    flow[(slice(None), *(slice(size) for size in frames.shape[1:]))] = optical_flow(frames[None])[0, 0].cpu()
    motion = motion_input(batch.motion[view], batch.extent[view])[0].cpu()
    shown = [images[view][0, 0].cpu(), flow, motion, *(_visible(plan[view], config, view).cpu() for plan in plans)]
    if len(config.image_size[view]) == 3:
        shown = [x[..., int(batch.extent[view][0, 2]) // 2] for x in shown]
    return Moment(f"{view}, frame {t}", *shown)


def _visible(plan: TokenPlan, config: CineMAConfig, view: str) -> Tensor:
    """(*size) bool of the first sample: pixels of the visible tokens."""
    kept = (plan.slot[0] >= 0).view(config.grid(view))
    for axis, token in enumerate(config.token_size(view)):
        kept = kept.repeat_interleave(token, axis)
    return kept


def _draw_wheel(axes, largest: float) -> None:
    """Draw the colour wheel, as a key, into the corner of a picture."""
    inset = axes.inset_axes((0.02, 0.02, 0.26, 0.26))
    x, y = np.meshgrid(*[np.linspace(-1, 1, 65)] * 2, indexing="ij")
    colours = flow_colours(np.stack([x, y]), 1.0)
    inset.imshow(np.dstack([colours, np.hypot(x, y) <= 1]).transpose(1, 0, 2))
    inset.axis("off")
    inset.set_title(f"{largest:.1f} px", fontsize=7, color="white", pad=1)
