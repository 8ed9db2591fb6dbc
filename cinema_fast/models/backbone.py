"""The first half of all models over views: checks of the images, a stem per view, one encoder over all tokens."""

import difflib
import math

import torch
from torch import Tensor, nn

from ..kernels.patches import grid_of
from ..kernels.token_plan import TokenPlan
from .config import CineMAConfig
from .layers import Encoder
from .stem import Fusion, Stem


def view_stems(config: CineMAConfig, n_frames: int = 1) -> nn.ModuleDict:
    """A `Stem` per view, for images of n_frames x in_chans channels."""
    return nn.ModuleDict(
        {
            v: Stem(
                config.grid(v),
                config.patch_size[v],
                config.scale_factor[v],
                n_frames * config.in_chans[v],
                config.enc_conv_chans,
                config.enc_conv_n_blocks,
                config.enc_embed_dim,
            )
            for v in config.views
        }
    )


def view_fusions(config: CineMAConfig) -> nn.ModuleDict:
    """A `Fusion` per view."""
    return nn.ModuleDict(
        {
            v: Fusion(config.patch_size[v], config.scale_factor[v], config.enc_conv_chans, config.enc_embed_dim)
            for v in config.views
        }
    )


def whole_images(images: dict[str, Tensor], grids: dict[str, tuple[int, ...]]) -> dict[str, TokenPlan]:
    """Plans in which every token is visible."""
    return {v: TokenPlan.everything(len(images[v]), math.prod(grid), images[v].device) for v, grid in grids.items()}


def encode_views(
    stems: nn.ModuleDict,
    encoder: Encoder,
    images: dict[str, Tensor],
    plan: dict[str, TokenPlan],
    grids: dict[str, tuple[int, ...]],
    intensity: dict[str, Tensor] | None,
) -> tuple[Tensor, dict[str, list[Tensor]], dict[str, Tensor]]:
    """Class token (B, 1, D), {view: the stem's skips (B, K, *block, channels) by stage}, {view: tokens (B, K, D)}."""
    skips, tokens = {}, []
    for view, grid in grids.items():
        window = None if intensity is None else intensity[view]
        skips[view], x = stems[view](images[view], plan[view], grid, window)
        tokens.append(x)
    cls, *parts = encoder(torch.cat(tokens, dim=1)).split([1, *(x.shape[1] for x in tokens)], dim=1)
    return cls, skips, dict(zip(grids, parts))


def check_images(
    model: str,
    config: CineMAConfig,
    images: dict[str, Tensor],
    intensity: dict[str, Tensor] | None,
    n_frames: int = 1,
) -> dict[str, tuple[int, ...]]:
    """Check the images; returns {view: grid} in the configured order.

    Raises ValueError naming `model`, the view and what does not fit.
    """
    if unknown := [v for v in images if v not in config.views]:
        near = difflib.get_close_matches(unknown[0], config.views, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{model}: no view {unknown[0]!r} in this model{hint} (views: {', '.join(config.views)})")
    if not images:
        raise ValueError(f"{model}: no images given; expected one or more of {', '.join(config.views)}")
    if intensity is not None and set(intensity) != set(images):
        raise ValueError(f"{model}: images of {sorted(images)} but intensity for {sorted(intensity)}")
    grids, batch = {}, len(next(iter(images.values())))
    for view in (v for v in config.views if v in images):
        shape, n_axes = tuple(images[view].shape), len(config.image_size[view])
        channels = n_frames * config.in_chans[view]
        if len(shape) != 2 + n_axes or shape[0] != batch or shape[1] != channels:
            raise ValueError(f"{model}: {view!r} needs (B = {batch}, C = {channels}, {n_axes} axes), got {shape}")
        try:
            grids[view] = grid_of(shape[2:], config.token_size(view))
        except ValueError as error:
            raise ValueError(f"{model}: {view!r}: {error}") from None
        if intensity is not None and tuple(intensity[view].shape) != (batch, 2):
            raise ValueError(
                f"{model}: intensity of {view!r} needs ({batch}, 2) offset and scale, "
                f"got {tuple(intensity[view].shape)}"
            )
    return grids


def in_window(image: Tensor, intensity: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Scale stored pixels (B, C, *size) to (pixel - offset) * scale, in `dtype`; intensity (B, 2) or None."""
    if intensity is None:
        return image.to(dtype)
    offset, scale = intensity.view(len(image), 2, *[1] * (image.ndim - 1)).unbind(1)
    return ((image.float() - offset) * scale).to(dtype)


def per_axis(factor: int | tuple[int, ...], token: tuple[int, ...]) -> tuple[int, ...]:
    """The factor of each axis. A number applies to axes where a token has several pixels, with 1 elsewhere; of a tuple
    the first entries are used."""
    if isinstance(factor, int):
        return tuple(factor if pixels > 1 else 1 for pixels in token)
    return tuple(factor[: len(token)])
