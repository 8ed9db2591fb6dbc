"""Masks of a training batch, and the loss of a masked autoencoder under them."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..data.loading.batch import Batch, batch_input
from ..kernels import TokenPlan, sample_mask
from ..models.config import CineMAConfig
from ..train.method import Place
from .guidance import Guidance


def token_counts(config: CineMAConfig, view: str, mask_ratio: float, decode_ratio: float) -> tuple[int, int]:
    """Numbers of visible tokens of a view, and of masked tokens that are decoded; see `draw_plan`."""
    n = config.n_tokens(view)
    keep = min(max(int(n * (1 - mask_ratio)), 1), n - 1)
    return keep, n - keep if decode_ratio == 1 else max(round(decode_ratio * (n - keep)), 1)


def draw_plan(
    config: CineMAConfig,
    views: Sequence[str],
    sample_ids: Tensor,
    *,
    mask_ratio: float,
    decode_ratio: float = 1.0,
    seed: int,
    step: int | Tensor,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, TokenPlan]:
    """Masks of a batch: floor(N (1 - mask_ratio)) tokens of each view stay visible, at least one.

    sample_ids (B,) int64 on the device. decode_ratio: share of the masked tokens that is decoded, at least one.
    weights: {view: (B, N)} of being masked; None: uniform.
    """
    plan = {}
    for view in views:
        keep, decode = token_counts(config, view, mask_ratio, decode_ratio)
        plan[view] = sample_mask(
            weights[view] if weights else None,
            batch=len(sample_ids),
            n=config.n_tokens(view),
            keep=keep,
            seed=seed,
            step=step,
            stream=config.views.index(view),
            sample_ids=sample_ids,
            decode=decode,
        )
    return plan


class MaskedLoss:
    """The loss of a training step (`Method.loss`) for models with this `config`.

    guidance: gives the weights of the masks, for batches with the motion that it needs; None: uniform masks.
    """

    def __init__(
        self, config: CineMAConfig, place: Place, *, mask_ratio: float, decode_ratio: float, seed: int,
        guidance: Guidance | None = None,
    ):  # fmt: skip
        self._config, self._place, self._guidance = config, place, guidance
        self._drawn = {"mask_ratio": mask_ratio, "decode_ratio": decode_ratio, "seed": seed}

    def __call__(self, model: nn.Module, batch: Batch, step: Tensor) -> Tensor:
        guidance = self._guidance
        images, intensity = batch_input(batch, as_stored=not (guidance and guidance.online))
        weights = guidance.weights(batch, images, step) if guidance else None
        plan = draw_plan(self._config, batch.draw.views, batch.slot, step=step, weights=weights, **self._drawn)
        with self._place.autocast():
            return model(images, plan, intensity).loss
