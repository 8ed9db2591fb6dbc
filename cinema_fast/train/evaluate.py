"""How well a model predicts hidden patches of studies it was not trained on, and how well one could without looking.

The yardstick is the best predictor that does not look at the image: the mean patch of the training studies at each grid
position. It is scored at the same masked positions of the same images, which are not augmented.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..data.augment import model_input
from ..data.clips import ClipStore
from ..data.loader import Batch, read_batch
from ..data.sampler import Draw
from ..data.store import CineStore
from ..kernels import TokenPlan
from ..kernels.masked_mse import TARGET_EPS, masked_mse
from ..kernels.patches import gather_patches
from ..models.cinema import CineMA
from ..models.config import CLIP, CineMAConfig
from .step import draw_plan

PHASES = (0.0, 0.25, 0.5, 0.75)  # of the cardiac cycle: the frames that every study is judged by
BLIND_STUDIES = 1024  # the mean patch settles long before; 70,000 studies would take hours to read
MASK_SEED = 0x5EED  # masks are the same in every evaluation, whatever seed the run has


@dataclass(frozen=True)
class Evaluation:
    """studies held out; loss: their mean masked loss; blind_loss: that of the mean patch; ratio of the two."""

    studies: int
    loss: float
    blind_loss: float

    @property
    def ratio(self) -> float:
        return self.loss / self.blind_loss

    def __str__(self) -> str:
        return (
            f"masked loss {self.loss:.5f}, that of the mean patch {self.blind_loss:.5f} (the best without looking); "
            f"ratio {self.ratio:.3f}"
        )


def fixed_batches(
    store: CineStore | ClipStore, config: CineMAConfig, ids: Sequence[str], *, batch_size: int
) -> Iterator[Batch]:
    """Every study of `ids` at each of PHASES, unaugmented; a batch holds one set of views and one phase.

    Of clips one starts at each phase, in planes spread evenly over the study's, from the middle one on.

    Raises LoaderError naming a study that cannot be read.
    """
    numbered = [(tuple(v for v in store.views(s) if v in config.views), i, s) for i, s in enumerate(ids)]
    for views, members in groupby(sorted(m for m in numbered if m[0]), key=lambda member: member[0]):
        members = list(members)
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            n = len(part)
            for at, phase in enumerate(PHASES):
                draw = Draw(
                    step=at,
                    ids=tuple(study for _, _, study in part),
                    views=views,
                    epoch=np.zeros(n, np.int64),
                    phase=np.full(n, phase),
                    zoom={view: np.ones(n, np.float32) for view in views},
                    slot=np.array([index for _, index, _ in part]),
                    plane=np.array([_plane(store, study, at) if CLIP in views else 0 for _, _, study in part]),
                )
                yield read_batch(store, draw, config.image_size)


def _plane(store: ClipStore, study: str, at: int) -> int:
    n = len(store.planes(study))
    return (n // 2 + at * n // len(PHASES)) % n


def fixed_plan(config: CineMAConfig, batch: Batch, mask_ratio: float) -> dict[str, TokenPlan]:
    """The masks by which a batch of `fixed_batches` is judged: by study and phase, every masked token decoded."""
    return draw_plan(
        config, batch.draw.views, batch.slot, mask_ratio=mask_ratio, seed=MASK_SEED, step=batch.draw.step
    )


def images_of(batch: Batch) -> dict[str, Tensor]:
    """{view: (B, 1, *size)} in [0, 1], without augmentation."""
    return {view: model_input(frames, batch.extent[view], clip=view == CLIP) for view, frames in batch.frames.items()}


def mean_patches(
    store: CineStore | ClipStore, config: CineMAConfig, ids: Sequence[str], *, batch_size: int, device: torch.device
) -> dict[str, Tensor]:
    """{view: (N, P) float32} mean target patch per grid position over at most BLIND_STUDIES of the studies `ids`."""
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, BLIND_STUDIES).astype(int))]
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for batch in fixed_batches(store, config, chosen, batch_size=batch_size):
        for view, image in images_of(batch.to(device)).items():
            every = torch.arange(config.n_tokens(view), device=device).expand(len(image), -1)
            patch = gather_patches(image, every, config.token_size(view)).flatten(2).double()
            if config.norm_target:
                patch = (patch - patch.mean(-1, keepdim=True)) / (patch.std(-1, keepdim=True) + TARGET_EPS)
            total[view] = total.get(view, 0) + patch.sum(0)
            count[view] = count.get(view, 0) + len(image)
    return {view: (total[view] / count[view]).float() for view in total}


@torch.no_grad()
def evaluate(
    model: CineMA,
    store: CineStore | ClipStore,
    held_out: Sequence[str],
    blind: Mapping[str, Tensor],
    *,
    mask_ratio: float,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> Evaluation:
    """Mean masked loss over the studies `held_out` at every phase, and that of the predictor `blind`.

    blind: `mean_patches` of the training studies. Per study the loss is the mean over its views.
    Raises ValueError where no study can be judged or a view has no mean patch.
    """
    config = model.config
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    n = 0
    for batch in fixed_batches(store, config, held_out, batch_size=batch_size):
        if missing := [view for view in batch.draw.views if view not in blind]:
            raise ValueError(f"no training study has view {missing[0]!r}, which held-out studies have")
        batch = batch.to(device)
        images, plan, size = images_of(batch), fixed_plan(config, batch, mask_ratio), len(batch.slot)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(images, plan).loss
        unseen = [
            masked_mse(
                blind[view][plan[view].masked.long()],
                image,
                plan[view],
                config.token_size(view),
                norm=config.norm_target,
            )
            for view, image in images.items()
        ]
        losses += torch.stack([loss.double(), torch.stack(unseen).mean().double()]) * size
        n += size
    if not n:
        raise ValueError("no held-out study has a view of this model")
    loss, blind_loss = (losses / n).tolist()
    return Evaluation(n // len(PHASES), loss, blind_loss)
