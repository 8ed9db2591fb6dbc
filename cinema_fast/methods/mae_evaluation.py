"""Masked loss on held-out studies, compared with the mean training patch as a baseline.

The baseline is the mean patch of the training studies at each grid position, the best predictor that does not use the
image. It is scored at the same masked positions of the same images. Images are not augmented.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..common.views import CLIP
from ..data.loading.augment import model_input
from ..data.loading.batch import Batch
from ..data.loading.loader import LoaderError, read_batch
from ..data.loading.sampler import fixed_draw
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..kernels import TokenPlan
from ..kernels.masked_mse import TARGET_EPS, masked_mse
from ..kernels.patches import gather_patches
from ..models.cinema import CineMA
from ..models.config import CineMAConfig
from ..models.precision import autocast
from .masking import draw_plan

PHASES = (0.0, 0.25, 0.5, 0.75)  # phases of the cardiac cycle at which every study is evaluated
BASELINE_STUDIES = 1024  # enough for a stable mean patch; reading 70,000 studies would take hours
MASK_SEED = 0x5EED  # masks are the same in every evaluation, whatever the run's seed


@dataclass(frozen=True)
class Evaluation:
    """studies: number of evaluated studies. loss: their mean masked loss. baseline_loss: that of the mean patch. ratio:
    loss / baseline_loss, nan where it is undefined."""

    studies: int
    loss: float
    baseline_loss: float

    @property
    def ratio(self) -> float:
        return self.loss / self.baseline_loss if self.baseline_loss else math.nan

    def __str__(self) -> str:
        return (
            f"masked loss {self.loss:.5f}, baseline (mean patch) {self.baseline_loss:.5f}; "
            f"ratio {self.ratio:.3f}{self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """The meaning of a ratio that is 1 or more, or undefined, and what to do; empty below 1."""
        if math.isnan(self.ratio):
            return ", which is undefined: a loss is not finite, or the baseline's is 0"
        if self.ratio >= 1:
            return (", which is poor: the model predicts no better than the mean patch. Train longer (--steps), and "
                    "where the training loss does not fall, with a lower --lr")
        return ""


def fixed_batches(
    store: CineStore | ClipStore,
    config: CineMAConfig,
    ids: Sequence[str],
    *,
    batch_size: int,
    views: Collection[str] | None = None,
    motion: bool = False,
    unreadable: dict[str, str] | None = None,
) -> Iterator[Batch]:
    """Every study of `ids` at each of PHASES, without augmentation; all samples of a batch have the same views and
    phase.

    For clips, one clip starts at each phase, in planes spread evenly over the study's planes from the middle one on.

    Args:
        views: the model's views to read; None: all.
        motion: with the store's motion maps.
        unreadable: a dict that receives {study: why} for studies that cannot be read; they are then in no batch. None:
            such a study is an error.

    Raises LoaderError naming a study that cannot be read.
    """
    views = config.views if views is None else views
    numbered = [(tuple(v for v in store.views(s) if v in config.views and v in views), i, s) for i, s in enumerate(ids)]
    for shown, members in groupby(sorted(m for m in numbered if m[0]), key=lambda member: member[0]):
        members = [(index, study) for _, index, study in members]
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            try:
                yield from _read_phases(store, config, shown, part, motion)
            except LoaderError:
                if unreadable is None:
                    raise
                sound = _readable(store, config, shown, part, motion, unreadable)
                yield from _read_phases(store, config, shown, sound, motion)


def _read_phases(
    store: CineStore | ClipStore,
    config: CineMAConfig,
    views: tuple[str, ...],
    part: Sequence[tuple[int, str]],
    motion: bool,
) -> list[Batch]:
    """The studies of `part`, (number, study), at all phases. All phases are read before any is used, so that a study
    counts completely or not at all."""
    if not part:
        return []
    slot, ids = [index for index, _ in part], [study for _, study in part]
    n, batches = len(part), []
    for at, phase in enumerate(PHASES):
        planes = [_plane(store, study, at) if CLIP in views else 0 for study in ids]
        draw = fixed_draw(ids, views, step=at, phase=[phase] * n, slot=slot, plane=planes)
        batches.append(read_batch(store, draw, config.image_size, motion=motion))
    return batches


def _readable(store, config, views, part, motion, unreadable: dict[str, str]) -> list[tuple[int, str]]:
    """The studies of `part` that can be read; the others are added to `unreadable` with the reason."""
    sound = []
    for member in part:
        try:
            _read_phases(store, config, views, [member], motion)
            sound.append(member)
        except LoaderError as error:
            unreadable[member[1]] = str(error).removeprefix(f"study {member[1]}: ")
    return sound


def _plane(store: ClipStore, study: str, at: int) -> int:
    n = len(store.planes(study))
    return (n // 2 + at * n // len(PHASES)) % n


def fixed_plan(config: CineMAConfig, batch: Batch, mask_ratio: float) -> dict[str, TokenPlan]:
    """The masks of a batch of `fixed_batches`: a function of study and phase; every masked token is decoded."""
    return draw_plan(
        config, batch.draw.views, batch.slot, mask_ratio=mask_ratio, seed=MASK_SEED, step=batch.draw.step
    )


def images_of(batch: Batch) -> dict[str, Tensor]:
    """{view: (B, 1, *size)} in [0, 1], without augmentation."""
    return {view: model_input(frames, batch.extent[view], clip=view == CLIP) for view, frames in batch.frames.items()}


def mean_patches(
    store: CineStore | ClipStore,
    config: CineMAConfig,
    ids: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    unreadable: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """{view: (N, P) float32} mean target patch per grid position, over some BASELINE_STUDIES of the studies `ids`.

    For each view, that many of the studies that have it are used. unreadable, LoaderError: as `fixed_batches`.
    """
    chosen: set[str] = set()
    for view in config.views:
        has = [study for study in ids if view in store.views(study)]
        chosen.update(has[i] for i in np.linspace(0, len(has) - 1, BASELINE_STUDIES).astype(int) if has)
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for batch in fixed_batches(store, config, sorted(chosen), batch_size=batch_size, unreadable=unreadable):
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
    baseline: Mapping[str, Tensor],
    *,
    mask_ratio: float,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
    unreadable: dict[str, str] | None = None,
) -> Evaluation:
    """Mean masked loss over the studies `held_out` at every phase, and that of `baseline`.

    baseline: `mean_patches` of the training studies; only its views are evaluated and given to the model. The loss of a
    study is the mean over its views. unreadable, LoaderError: as `fixed_batches`.
    Raises ValueError where no study can be evaluated.
    """
    config = model.config
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    n = 0
    for batch in fixed_batches(
        store, config, held_out, batch_size=batch_size, views=baseline, unreadable=unreadable
    ):
        batch = batch.to(device)
        images, plan, size = images_of(batch), fixed_plan(config, batch, mask_ratio), len(batch.slot)
        with autocast(device, precision):
            loss = model(images, plan).loss
        unseen = [
            masked_mse(
                baseline[view][plan[view].masked.long()],
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
        raise ValueError("no held-out study can be evaluated: none that can be read has a view of the training studies")
    loss, baseline_loss = (losses / n).tolist()
    return Evaluation(n // len(PHASES), loss, baseline_loss)
