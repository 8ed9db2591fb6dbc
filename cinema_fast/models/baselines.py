"""Baselines for fine-tuning: a U-Net and a ResNet from MONAI, trained from scratch, with the same interfaces.

Each view has its own network, with 2D or 3D kernels. Needs the extra `downstream`.
"""

import importlib

import torch
from torch import Tensor, nn

from .backbone import check_images, in_window, per_axis
from .config import CineMAConfig

UNET_CHANNELS = (32, 64, 128, 256, 512)


class _ViewNetworks(nn.Module):
    """A network per view, for images of n_frames x in_chans channels."""

    def __init__(self, name: str, config: CineMAConfig, networks: dict[str, nn.Module], n_frames: int):
        super().__init__()
        self.name, self.config, self.n_frames = name, config, n_frames
        self.networks = nn.ModuleDict(networks)

    def _outputs(self, images: dict[str, Tensor], intensity: dict[str, Tensor] | None) -> dict[str, Tensor]:
        views = check_images(self.name, self.config, images, intensity, self.n_frames)
        windows = intensity or dict.fromkeys(views)
        return {v: self.networks[v](in_window(images[v], windows[v], torch.get_default_dtype())) for v in views}


class UNetBaseline(_ViewNetworks):
    """The interface of ConvUNetR."""

    def forward(self, images: dict[str, Tensor], intensity: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """{view: logits (B, out_channels, *size)}; arguments and errors as ConvUNetR's."""
        return self._outputs(images, intensity)


class ResNetBaseline(_ViewNetworks):
    """The interface of ConvViT."""

    def forward(
        self, images: dict[str, Tensor], reduce: str = "all", intensity: dict[str, Tensor] | None = None
    ) -> Tensor:
        """(B, out_dim), the mean over the views. There is no class token, so `reduce` must be "all" or "patch"."""
        if reduce not in ("all", "patch"):
            raise ValueError(f"{self.name}: reduce must be all or patch, there is no class token; got {reduce!r}")
        return torch.stack(list(self._outputs(images, intensity).values())).mean(dim=0)


def unet(config: CineMAConfig, out_channels: int, n_frames: int = 1) -> UNetBaseline:
    """MONAI's residual U-Net (Kerfoot et al., STACOM 2018), five levels with the channels of ConvUNetR's decoder.

    Raises ValueError where MONAI is missing.
    """
    nets = _monai_nets()
    networks = {
        v: nets.UNet(
            spatial_dims=len(config.image_size[v]),
            in_channels=n_frames * config.in_chans[v],
            out_channels=out_channels,
            channels=UNET_CHANNELS,
            strides=[per_axis(2, config.token_size(v))] * (len(UNET_CHANNELS) - 1),
            num_res_units=2,
        )
        for v in config.views
    }
    return UNetBaseline("unet", config, networks, n_frames)


def resnet(config: CineMAConfig, out_dim: int, n_frames: int = 1) -> ResNetBaseline:
    """MONAI's ResNet-50 (He et al., CVPR 2016; with 3D kernels Hara et al., CVPR 2018).

    Raises ValueError where MONAI is missing.
    """
    nets = _monai_nets()
    networks = {
        v: nets.resnet50(
            spatial_dims=len(config.image_size[v]),
            n_input_channels=n_frames * config.in_chans[v],
            num_classes=out_dim,
            conv1_t_stride=per_axis(2, config.token_size(v)),
        )
        for v in config.views
    }
    return ResNetBaseline("resnet", config, networks, n_frames)


def _monai_nets():
    try:
        return importlib.import_module("monai.networks.nets")
    except ImportError as error:
        raise ValueError("the baselines need MONAI: pip install 'cinema-fast[downstream]'") from error
