"""The convolutional stem and the fusion of its features, computed at visible tokens only.

A visible token is a block of positions at every stage: 4x4(x1), then 2x2(x1), in the published sizes. In strided
convolutions the kernel equals the stride, so they stay within a token; 1x1 convolutions, norms and GELUs are row-wise.
All of these work on (tokens x positions) rows. Only the depthwise convolution reads neighbouring tokens.
(Gao et al., "MCMAE: Masked convolution meets masked autoencoders", NeurIPS 2022, masked convolution; CineMA's blocks.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.patch_embed import patch_embed
from ..kernels.patches import gather_patches
from ..kernels.sparse_depthwise_conv import sparse_depthwise_conv
from ..kernels.token_plan import TokenPlan
from .layers import Mlp, norm_gelu, norm_linear, norm_mlp
from .position import resize_table, sincos_table

CONV_NORM_EPS = 1e-6


def fold_positions(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """(B, K, *block, C) -> (B, K, *block / kernel, prod(kernel) * C): the inputs of a kernel = stride convolution."""
    n_axes = len(kernel)
    split = [extent for b, k in zip(x.shape[2:-1], kernel) for extent in (b // k, k)]
    x = x.reshape(*x.shape[:2], *split, x.shape[-1])
    outer, inner = range(2, 2 + 2 * n_axes, 2), range(3, 3 + 2 * n_axes, 2)
    return x.permute(0, 1, *outer, *inner, 2 + 2 * n_axes).flatten(2 + n_axes)


def block_positions(keep: Tensor, grid: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """Ids (B, K, *block) int32, on the grid * block, of the positions in tokens keep (B, K) of the grid."""
    size = [g * b for g, b in zip(grid, block)]
    ids = torch.arange(math.prod(size), dtype=torch.int32, device=keep.device)
    return gather_patches(ids.view(1, 1, *size).expand(len(keep), 1, *size), keep, block).squeeze(-1)


def as_matrix(weight: Tensor) -> Tensor:
    """Weight (co, ci, *kernel) of a kernel = stride convolution -> (co, prod(kernel) * ci), channel last as in the
    rows."""
    return weight.movedim(1, -1).flatten(1)


def _conv(n_axes: int):
    return nn.Conv2d if n_axes == 2 else nn.Conv3d


class MaskedConvBlock(nn.Module):
    """x += conv2(dw(m * conv1(norm1 x))); x += fc2(gelu(fc1(norm2 x))), on the rows of visible tokens."""

    def __init__(self, n_axes: int, channels: int):
        super().__init__()
        conv = _conv(n_axes)
        self.norm1 = nn.LayerNorm(channels, eps=CONV_NORM_EPS)
        self.conv1 = conv(channels, channels, 1)
        self.dw_conv = conv(channels, channels, 5, groups=channels)
        self.conv2 = conv(channels, channels, 1)
        self.norm2 = nn.LayerNorm(channels, eps=CONV_NORM_EPS)
        self.mlp = Mlp(channels, 4 * channels)
        self.mlp.fc1 = conv(channels, 4 * channels, 1)
        self.mlp.fc2 = conv(4 * channels, channels, 1)

    def forward(self, x: Tensor, plan: TokenPlan, grid: tuple[int, ...]) -> Tensor:
        """x (B, K, *block, C) -> the same shape."""
        h = norm_linear(x, self.norm1, self.conv1.weight.flatten(1), self.conv1.bias)
        h = sparse_depthwise_conv(h, self.dw_conv.weight.squeeze(1), self.dw_conv.bias, plan, grid)
        x = x + F.linear(h, self.conv2.weight.flatten(1), self.conv2.bias)
        return x + norm_mlp(x, self.norm2, self.mlp.fc1, self.mlp.fc2)


class StridedConv(nn.Module):
    """Kernel = stride convolution, channel-wise LayerNorm, GELU."""

    def __init__(self, n_axes: int, in_channels: int, channels: int, kernel: tuple[int, ...]):
        super().__init__()
        self.conv = _conv(n_axes)(in_channels, channels, kernel, stride=kernel)
        self.norm = nn.LayerNorm(channels, eps=CONV_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K, *block, Cin) -> (B, K, *block / kernel, C)."""
        x = fold_positions(x, self.conv.kernel_size)
        return norm_gelu(F.linear(x, as_matrix(self.conv.weight), self.conv.bias), self.norm)

    def from_image(self, image: Tensor, positions: Tensor, intensity: Tensor | None) -> Tensor:
        """image (B, Cin, *size), positions (B, K, *block) on the grid size / kernel -> (B, K, *block, C)."""
        weight, index = as_matrix(self.conv.weight), positions.flatten(1)
        x = patch_embed(image, weight, self.conv.bias, index, self.conv.kernel_size, intensity=intensity)
        return norm_gelu(x.view(*positions.shape, x.shape[-1]), self.norm)


class ConvStage(nn.Module):
    """A strided convolution, and the masked blocks that follow it."""

    def __init__(self, n_axes: int, in_channels: int, channels: int, kernel: tuple[int, ...], n_blocks: int):
        super().__init__()
        self.patch_embed = StridedConv(n_axes, in_channels, channels, kernel)
        self.conv = nn.ModuleList(MaskedConvBlock(n_axes, channels) for _ in range(n_blocks))

    def forward(self, x: Tensor, plan: TokenPlan, grid: tuple[int, ...]) -> Tensor:
        """The masked blocks: x (B, K, *block, C) -> the same shape."""
        for block in self.conv:
            x = block(x, plan, grid)
        return x


class TokenProjection(nn.Module):
    """Parameters of the linear projection of a token's values."""

    def __init__(self, in_features: int, width: int):
        super().__init__()
        self.proj = nn.Linear(in_features, width)


class Stem(nn.Module):
    """Visible patches of one view -> tokens, with each stage's features as skips.

    Without stages (`channels` is empty) it is the patch embedding of a plain ViT, for images of 2, 3 or 4 axes.
    """

    def __init__(self, grid, patch, scale, in_channels: int, channels: tuple[int, ...], n_blocks: int, width: int):
        super().__init__()
        self.grid = grid
        kernels = [patch, *[scale] * len(channels)]
        self.token_size = tuple(math.prod(k) for k in zip(*kernels))
        widths = [in_channels, *channels]
        self.conv_blocks = nn.ModuleList(
            ConvStage(len(grid), before, after, kernel, n_blocks)
            for before, after, kernel in zip(widths, channels, kernels)
        )
        self.patch_embed = TokenProjection(widths[-1] * math.prod(kernels[-1]), width)
        self.linear = nn.Linear(width, width)
        self.pos_embed = nn.Parameter(sincos_table(width, grid), requires_grad=False)

    def forward(
        self, image: Tensor, plan: TokenPlan, grid: tuple[int, ...], intensity: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """image (B, C, *size), intensity (B, 2) offset and scale or None.

        Returns the skips, (B, K, *block, channels) for each stage, and the tokens (B, K, width).
        """
        skips = []
        for stage in self.conv_blocks:
            conv = stage.patch_embed
            if skips:
                x = conv(skips[-1])
            else:
                block = tuple(t // k for t, k in zip(self.token_size, conv.conv.kernel_size))
                x = conv.from_image(image, block_positions(plan.keep, grid, block), intensity)
            skips.append(stage(x, plan, grid))
        proj = self.patch_embed.proj
        if skips:
            x = proj(skips[-1].flatten(2))
        else:
            x = patch_embed(image, proj.weight, proj.bias, plan.keep, self.token_size, intensity=intensity)
        x = self.linear(x)
        table = resize_table(self.pos_embed, self.grid, grid)[0]
        return skips, x + F.embedding(plan.keep.long(), table)


class Fusion(nn.Module):
    """Adds each stage's features to the encoder's tokens, through a convolution over a token's positions; then norm."""

    def __init__(self, patch, scale, channels: tuple[int, ...], width: int):
        super().__init__()
        kernels = [tuple(s ** (len(channels) - i) for s in scale) for i in range(len(channels))]
        self.down_convs = nn.ModuleList(_conv(len(patch))(c, width, k, stride=k) for c, k in zip(channels, kernels))
        self.norm = nn.LayerNorm(width)

    def forward(self, skips: list[Tensor], x: Tensor) -> Tensor:
        """skips as from `Stem`, x (B, K, width) -> (B, K, width)."""
        for skip, conv in zip(skips, self.down_convs):
            x = x + F.linear(skip.flatten(2), as_matrix(conv.weight), conv.bias)
        return self.norm(x)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias; norms 1 and 0; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def normal_token(token: Tensor) -> None:
    """N(0, 0.02), for class and mask tokens."""
    with torch.no_grad():
        token.normal_(std=0.02)
