"""The networks of the tasks, with one output per pixel or per study, and the baselines for comparison."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..models.config import CineMAConfig

if TYPE_CHECKING:
    from .finetune_config import FinetuneConfig


def vit_of(model_config: CineMAConfig, out_dim: int, n_frames: int, config: "FinetuneConfig") -> nn.Module:
    """ConvViT, or the baseline's ResNet."""
    if config.network == "baseline":
        from ..models.baselines import resnet

        return resnet(model_config, out_dim, n_frames)
    from ..models.conv_vit import ConvViT

    return ConvViT(model_config, out_dim, n_frames, drop_path=0.0 if config.freeze else config.drop_path)


def unet_of(
    model_config: CineMAConfig, out_channels: int, config: "FinetuneConfig", n_frames: int = 1
) -> nn.Module:
    """ConvUNetR, or the baseline's U-Net. Raises ValueError for a decoder that does not fit the images."""
    if config.network == "baseline":
        from ..models.baselines import unet

        return unet(model_config, out_channels, n_frames)
    from ..models.conv_unetr import ConvUNetR

    channels = f"--decoder-channels {' '.join(map(str, config.decoder_channels))}"
    try:
        model = ConvUNetR(
            model_config,
            out_channels,
            dec_channels=config.decoder_channels,
            n_frames=n_frames,
            dropout=config.dropout,
            drop_path=0.0 if config.freeze else config.drop_path,
        )
    except ValueError as error:
        fewest = next((n for n in range(1, 9) if _has_levels(model_config, n)), None)
        hint = f"; this model needs {fewest} channels or more, one per level" if fewest else ""
        raise ValueError(f"{channels}: {error}{hint}") from error
    for view, size in model_config.image_size.items():
        if any(n % pixels for n, pixels in zip(size, model.coarsest[view])):
            image, position = (" x ".join(map(str, pixels)) for pixels in (size, model.coarsest[view]))
            raise ValueError(
                f"{channels}: {view} images of {image} voxels are not a multiple of {position}, a position at the "
                f"coarsest of {len(config.decoder_channels)} levels: give fewer, or prepare the store at another size"
            )
    return model


def _has_levels(model_config: CineMAConfig, n: int) -> bool:
    """Whether a decoder of n levels matches the stem's stages."""
    from ..models.conv_unetr import ConvUNetR

    try:
        with torch.device("meta"):
            ConvUNetR(model_config, 1, dec_channels=(8,) * n)
    except ValueError:
        return False
    return True
