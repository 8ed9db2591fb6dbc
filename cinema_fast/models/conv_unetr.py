"""ConvUNetR: CineMA's stem and encoder over whole images, and a convolutional decoder with skips that returns maps.

For segmentation and landmark heatmaps (Hatamizadeh et al., "UNETR", WACV 2022, with the stem of Fu et al., 2025).
Parameter names and shapes are those of the published fine-tuned checkpoints. Maps are (B, C, *size) in channels-last
memory, the layout of the stem's rows, the norms and the CPU's convolutions.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.patches import grid_of
from .backbone import check_images, encode_views, in_window, per_axis, view_stems, whole_images
from .config import CineMAConfig
from .layers import Encoder, norm_gelu
from .stem import CONV_NORM_EPS, initialise, normal_token


def dense_map(rows: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, prod(grid), *block, C) rows of all tokens -> (B, C, *grid * block), channels last in memory."""
    n = len(grid)
    block = rows.shape[2:-1]
    x = rows.reshape(len(rows), *grid, *block, rows.shape[-1])
    x = x.permute(0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 1 + 2 * n)
    return x.reshape(len(rows), *(g * b for g, b in zip(grid, block)), rows.shape[-1]).movedim(-1, 1)


class VolumeConv(nn.Conv3d):
    """A 3-wide, zero-padded convolution, also where the first axis is narrower than the kernel.

    With two planes, oneDNN's gradient of the weight in bf16 (a CPU with AVX512-BF16, torch 2.11 to 2.13) sums over
    uninitialised memory; with a plane of zeros on either side it is right.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, *size) -> (B, channels, *size)."""
        if x.shape[2] != 2:
            return super().forward(x)
        return F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 1)), self.weight, self.bias, padding=(0, 1, 1))


class ResBlock(nn.Module):
    """conv2(dropout(gelu(norm2(conv1(gelu(norm1 x)))))) + shortcut(x), 3-wide kernels, norms over the channels."""

    def __init__(self, n_axes: int, in_channels: int, channels: int, dropout: float = 0.0):
        super().__init__()
        conv = nn.Conv2d if n_axes == 2 else nn.Conv3d
        wide = partial(nn.Conv2d, kernel_size=3, padding=1) if n_axes == 2 else VolumeConv
        self.norm1 = nn.LayerNorm(in_channels, eps=CONV_NORM_EPS)
        self.conv1 = wide(in_channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=CONV_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = wide(channels, channels)
        self.shortcut = conv(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, *size) -> (B, channels, *size)."""
        hidden = norm_gelu_map(self.conv1(norm_gelu_map(x, self.norm1)), self.norm2)
        return self.conv2(self.dropout(hidden)) + self.shortcut(x)


def norm_gelu_map(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """gelu(norm(x)) over the channels of x (B, C, *size)."""
    return norm_gelu(x.movedim(1, -1), norm).movedim(-1, 1)


class ImageBlock(ResBlock):
    """A residual block of the image itself.

    The norm over a single channel gives its bias, whatever the image. The branch after it is therefore the same for
    every image and, after two 3-wide kernels, varies only within two pixels of a border. It is computed on an image of
    at most five pixels an axis, and the middle is repeated, which saves the widest convolution of the model.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, *size) -> (B, channels, *size)."""
        if x.shape[1] > 1:
            return super().forward(x)
        size = x.shape[2:]
        drops = self.training and self.dropout.p > 0  # dropout differs per pixel: only the first convolution is saved
        small = x.new_zeros(1, 1, *(min(extent, 3 if drops else 5) for extent in size))
        hidden = norm_gelu_map(self.conv1(norm_gelu_map(small, self.norm1)), self.norm2)
        if drops:
            hidden = self.conv2(self.dropout(repeat_middle(hidden, size).expand(len(x), *[-1] * (x.ndim - 1))))
        else:
            hidden = repeat_middle(self.conv2(hidden), size)
        return hidden + self.shortcut(x)


def repeat_middle(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """x (1, C, *small) -> (1, C, *size), channels last in memory, by repeating the middle position of each axis."""
    x = x.movedim(1, -1)
    for axis in range(len(size), 0, -1):
        border = x.shape[axis] // 2
        times = size[axis - 1] - x.shape[axis] + 1
        middle = x.narrow(axis, border, 1).expand(*(times if a == axis else -1 for a in range(x.ndim)))
        last = x.narrow(axis, border + 1, x.shape[axis] - border - 1)
        x = torch.cat([x.narrow(axis, 0, border), middle, last], dim=axis)
    return x.movedim(-1, 1)


class UpStage(nn.Module):
    """Transposed convolution, the skip added, two residual blocks."""

    def __init__(self, n_axes: int, in_channels: int, channels: int, kernel: tuple[int, ...]):
        super().__init__()
        transposed = nn.ConvTranspose2d if n_axes == 2 else nn.ConvTranspose3d
        self.up = transposed(in_channels, channels, kernel, stride=kernel)
        self.conv = nn.ModuleList(ResBlock(n_axes, channels, channels) for _ in range(2))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """x (B, in_channels, *size), skip (B, channels, *size * kernel) or None -> as the skip."""
        x = self.up(x) if skip is None else self.up(x) + skip
        for block in self.conv:
            x = block(x)
        return x


class UpDecoder(nn.Module):
    """From the coarsest map to the image's size; channels[i] belong to level i, finest first."""

    def __init__(self, channels: tuple[int, ...], kernels: list[tuple[int, ...]]):
        super().__init__()
        out_channels = (channels[0], *channels[:-1])
        stages = [UpStage(len(k), *chans, k) for *chans, k in zip(channels, out_channels, kernels)]
        self.blocks = nn.ModuleList(reversed(stages))

    def forward(self, maps: list[Tensor | None]) -> Tensor:
        """maps: of the image and of each level, finest first, None where there is none -> (B, channels[0], *size)."""
        x = maps[-1]
        for stage, skip in zip(self.blocks, reversed(maps[:-1])):
            x = stage(x, skip)
        return x


class ConvUNetR(nn.Module):
    """Encoder with an upsampling decoder per view, over any non-empty subset of the configured views.

    Images are (B, n_frames * C, *size) as in ConvViT; `size` is a multiple of the coarsest level's pixels.

    Args:
        config: of the stems and the encoder; its MAE decoder is not used.
        out_channels: classes, or landmarks.
        dec_channels: channels of the decoder's levels, finest first.
        dec_patch_size: pixels of the image per position of the finest level, per axis.
        dec_scale_factor: positions of a level per position of the next coarser one, per axis. A single number applies
            to all axes along which a token has more than one pixel (the slices of a SAX stack are not reduced); of a
            tuple, a view with fewer axes uses the first entries.
        n_frames: frames of a cine in an image.
        dropout: dropout rate in the blocks on the image and the skips, in training.
        drop_path: as in ConvViT.

    Raises:
        ValueError: the levels do not match the stem's stages.
    """

    def __init__(
        self,
        config: CineMAConfig,
        out_channels: int,
        dec_channels: tuple[int, ...] = (32, 64, 128, 256, 512),
        dec_patch_size: int | tuple[int, ...] = 2,
        dec_scale_factor: int | tuple[int, ...] = 2,
        n_frames: int = 1,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.config, self.n_frames = config, n_frames
        width, stem_channels = config.enc_embed_dim, config.enc_conv_chans
        self.enc_down_dict = view_stems(config, n_frames)
        self.encoder = Encoder(width, config.enc_depth, config.enc_n_heads, drop_path)
        self.dec_image_conv_block_dict = nn.ModuleDict()
        self.dec_down_blocks_dict = nn.ModuleDict()
        self.dec_conv_blocks_dict = nn.ModuleDict()
        self.decoder_dict = nn.ModuleDict()
        self.pred_head_dict = nn.ModuleDict()
        self.coarsest = {}  # {view: pixels of a position of the coarsest level}
        for view in config.views:
            n_axes, token = len(config.image_size[view]), config.token_size(view)
            patch, scale = (per_axis(factor, token) for factor in (dec_patch_size, dec_scale_factor))
            kernels = [patch, *[scale] * (len(dec_channels) - 1)]
            bare, self.coarsest[view] = _meet(config, view, kernels)
            conv = nn.Conv2d if n_axes == 2 else nn.Conv3d
            self.dec_image_conv_block_dict[view] = ImageBlock(
                n_axes, n_frames * config.in_chans[view], dec_channels[0], dropout
            )
            n_down = len(dec_channels) - bare - len(stem_channels) - 1
            self.dec_down_blocks_dict[view] = nn.ModuleList(
                conv(width, width, scale, stride=scale) for _ in range(n_down)
            )
            skip_channels = (*stem_channels, *[width] * (1 + n_down))
            self.dec_conv_blocks_dict[view] = nn.ModuleList(
                ResBlock(n_axes, *chans, dropout) for chans in zip(skip_channels, dec_channels[bare:])
            )
            self.decoder_dict[view] = UpDecoder(dec_channels, kernels)
            self.pred_head_dict[view] = conv(dec_channels[0], out_channels, 1)
        self.apply(initialise)
        normal_token(self.encoder.cls_token)

    def forward(self, images: dict[str, Tensor], intensity: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """{view: logits (B, out_channels, *size)}.

        Args:
            images: {view: (B, n_frames * C, *size)}; intensity: as in CineMA.

        Raises:
            ValueError: names the view and what does not fit.
        """
        grids = check_images("ConvUNetR", self.config, images, intensity, self.n_frames)
        for view in grids:
            try:
                grid_of(images[view].shape[2:], self.coarsest[view])
            except ValueError as error:
                raise ValueError(f"ConvUNetR: {view!r}, at the decoder's coarsest level: {error}") from None
        plan = whole_images(images, grids)
        _, skips, tokens = encode_views(self.enc_down_dict, self.encoder, images, plan, grids, intensity)
        logits = {}
        for view, grid in grids.items():
            maps = [dense_map(skip, grid) for skip in skips[view]]
            maps.append(tokens[view].unflatten(1, grid).movedim(-1, 1))
            for down in self.dec_down_blocks_dict[view]:
                maps.append(down(maps[-1]))
            maps = [block(x) for block, x in zip(self.dec_conv_blocks_dict[view], maps)]
            bare = [None] * (len(self.decoder_dict[view].blocks) - len(maps))
            image = in_window(images[view], None if intensity is None else intensity[view], tokens[view].dtype)
            image = self.dec_image_conv_block_dict[view](image)
            logits[view] = self.pred_head_dict[view](self.decoder_dict[view]([image, *bare, *maps]))
        return logits


def _meet(config: CineMAConfig, view: str, kernels: list[tuple[int, ...]]) -> tuple[int, tuple[int, ...]]:
    """(number of levels finer than the stem's first stage, pixels of the coarsest level); ValueError where the levels
    do not match the stem's stages."""
    n_axes, stages = len(config.image_size[view]), len(config.enc_conv_chans)
    if n_axes not in (2, 3):
        raise ValueError(f"ConvUNetR: {view!r} has images of {n_axes} axes; expected 2 or 3")
    levels = [tuple(math.prod(axis) for axis in zip(*kernels[: i + 1])) for i in range(len(kernels))]
    patch, scale = config.patch_size[view], config.scale_factor[view]
    stem = [tuple(p * s**i for p, s in zip(patch, scale)) for i in range(stages + 1)]
    for bare in range(len(levels) - stages):
        if levels[bare : bare + stages + 1] == stem:
            return bare, levels[-1]
    raise ValueError(
        f"ConvUNetR: {view!r} has positions of {stem} pixels in the stem and the encoder, but these are not "
        f"consecutive levels of the decoder {levels}; choose dec_channels, dec_patch_size and dec_scale_factor to match"
    )
