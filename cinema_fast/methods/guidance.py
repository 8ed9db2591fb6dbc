"""Motion-guided masking: from the motion in a batch to the weights that its masks are drawn with.

Kim et al., "HeartMAE", ML4H 2024: the motion of the heart, found by optical flow, guides the mask. The motion is either
that of the whole cycle, read from the store's motion map and moved like the image, or, for clips, that of each tubelet,
computed from the frames on the device.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.naming import named
from ..common.views import CLIP
from ..data.loading.augment import motion_input
from ..data.loading.batch import Batch
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore
from ..kernels.motion_score import mask_weights, motion_map, patch_means, relative_to_mean
from ..kernels.native import cuda_unsupported
from ..models.config import CineMAConfig
from .pretrain_config import MaskConfig
from .stopwatch import Stopwatch

GREY = 255  # optical flow takes grey values of 0..255, the model's images are in 0..1


class Guidance:
    """Weights of being masked for the batches of a run.

    Args:
        mask: strength, its warm-up, temperature and whether moving patches are masked or kept.
        config: of the model, for its grid of tokens.
        steps: of the whole run.
        online: use the motion of the batch's own frames instead of the store's maps; for clips only.
        device: of the batches.
    """

    def __init__(self, mask: MaskConfig, config: CineMAConfig, *, steps: int, online: bool, device: torch.device):
        self.mask, self.config, self.steps, self.online = mask, config, steps, online
        self._rising = round(mask.warmup * steps)
        self._watch = Stopwatch(device)

    def strength(self, step: Tensor | int) -> Tensor | float:
        """The strength at a step: it rises linearly from 0 over the first steps, then stays. A tensor if `step` is."""
        if not self._rising:
            return self.mask.strength
        return self.mask.strength * (torch.as_tensor(step) / self._rising).clamp(max=1)

    def weights(self, batch: Batch, images: Mapping[str, Tensor], step: Tensor | int) -> dict[str, Tensor]:
        """{view: (B, N) float32}, `sample_mask`'s scores.

        images: {view: (B, 1, *size)} in [0, 1], the model's input. step: a number, or (1,) int64 on the device.
        """
        with self._watch:
            strength, weights = self.strength(step), {}
            for view, image in images.items():
                score = online_score(image, self.config) if self.online else stored_score(batch, view, self.config)
                weights[view] = mask_weights(
                    1 - strength + strength * score,  # here, because the strength may be a tensor on the device
                    strength=1.0,
                    temperature=self.mask.temperature,
                    keep=self.mask.mode == "keep",
                )
            return weights

    def seconds(self) -> float:
        """Time spent on guidance so far."""
        return self._watch.seconds()


def online_score(clips: Tensor, config: CineMAConfig) -> Tensor:
    """(B, N) float32: motion of each tubelet of clips (B, 1, T, X, Y) in [0, 1], relative to their mean."""
    frames, *pixels = config.token_size(CLIP)
    return relative_to_mean(patch_means(motion_map(clips[:, 0] * GREY, tubelet=frames), (1, *pixels)))


def stored_score(batch: Batch, view: str, config: CineMAConfig) -> Tensor:
    """(B, N) float32: motion of each token of a view over the cycle, from the store's map, relative to their mean."""
    token = config.token_size(view)
    moved = motion_input(batch.motion[view], batch.extent[view], batch.augment[view], clip=view == CLIP)
    if view != CLIP:
        return relative_to_mean(patch_means(moved, token))
    score = relative_to_mean(patch_means(moved, token[1:]))
    return score.repeat(1, config.grid(view)[0])  # the same for all tubelets


def check_online(device: torch.device) -> None:
    """Raise ValueError where the flow of each step would be computed on a GPU that cannot run its kernels."""
    if device.type == "cuda" and (problems := cuda_unsupported(torch.empty(0, device=device))):
        raise ValueError(f"--motion online on a GPU: {'; '.join(problems)}")


def check_guidance(store: CineStore, views: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ValueError where stored maps cannot guide the masks: some are missing, or nothing moves in any of them.

    views: {study: its views that are trained on}.
    """
    infos = {(study, view): store.info(study, view) for study, has in views.items() for view in has}
    without = sorted({study for (study, _), info in infos.items() if info.motion is None})
    if without:
        raise ValueError(
            f"{store.path}: {len(without)} of {len(views)} studies have no motion map ({named(without)}): "
            f"add them by `cinema-fast prepare SRC {store.path} --motion` with the original options"
        )
    if not any(info.motion.max_px for info in infos.values()):
        raise ValueError(
            f"{store.path}: no motion to guide masks by: no cine there has more than one frame, or nothing moves; "
            "leave out --mask.guidance"
        )


def motion_views(store: CineStore | ClipStore, views: tuple[str, ...], study: str) -> tuple[str, ...]:
    """The store's views whose motion guides the masks of a study."""
    if isinstance(store, ClipStore):
        return tuple(dict.fromkeys(plane.view for plane in store.planes(study)))
    return tuple(view for view in store.views(study) if view in views)
