"""ConvViT and ConvUNetR small enough to run in milliseconds, with weights that hide nothing."""

from dataclasses import replace

import torch
from small_models import VIEWS, small_config

import cinema_fast as cf

DEC_CHANNELS = (8, 16, 24, 32)  # at 2, 4, 8 and 16 pixels: two stages, the tokens, and below them


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Biases, norms and tokens moved away from 0 and 1, where they would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim == 1 or name.endswith("_token")):
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def small_vit(seed: int = 0, views=VIEWS, out_dim: int = 5, n_frames: int = 1, **options) -> cf.ConvViT:
    torch.manual_seed(seed)
    return spread(cf.ConvViT(replace(small_config(), views=views), out_dim, n_frames, **options))


def small_unetr(seed: int = 0, views=VIEWS, out_channels: int = 4, **options) -> cf.ConvUNetR:
    """A coarsest level of 16 pixels, below the tokens of 8."""
    torch.manual_seed(seed)
    config = small_config(
        views=views, image_size={"sax": (16, 32, 3), "lax_2c": (16, 32), "lax_4c": (32, 16)}
    )
    return spread(cf.ConvUNetR(config, out_channels, **{"dec_channels": DEC_CHANNELS, **options}))


def frames(config: cf.CineMAConfig, n_frames: int = 1, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """{view: (B, n_frames * C, *size) float32 in [0, 1]}"""
    generator = torch.Generator().manual_seed(seed)
    return {
        v: torch.rand(batch, n_frames * config.in_chans[v], *config.image_size[v], generator=generator)
        for v in config.views
    }
