"""A plain ViT with a class token and learned positions, as DINO trains it: parameters have the names of its code.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Caron et al., "Emerging properties in self-supervised
vision transformers", ICCV 2021. Jacob et al. (JCMR 2025) pre-train a ViT-S/8 on cardiac MRI.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels.packed_sequences import Runs
from ..kernels.patch_embed import patch_embed
from ..kernels.patches import grid_of
from ..kernels.token_plan import TokenPlan
from .config import ViTConfig
from .layers import Block, norm_linear
from .position import resize_learned_table
from .stem import as_matrix

NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Patches of whole images -> tokens: a convolution whose stride is its kernel."""

    def __init__(self, in_chans: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, patch, stride=patch)

    def forward(self, images: Tensor, n_tokens: int) -> Tensor:
        """images (B, C, X, Y) -> (B, n_tokens, D)."""
        index = TokenPlan.everything(len(images), n_tokens, images.device).keep
        return patch_embed(images, as_matrix(self.proj.weight), self.proj.bias, index, self.proj.kernel_size)


class ViT(nn.Module):
    """Vision transformer over images (B, C, X, Y) whose sizes are multiples of the patch.

    At a size other than the configured one the positions are interpolated (`position.resize_learned_table`).
    """

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0):
        super().__init__()
        if not isinstance(config, ViTConfig):
            raise ValueError(f"ViT: expected a ViTConfig, as preset('cmrfm-demo').vit is, got {type(config).__name__}")
        self.config = config
        width, side = config.embed_dim, config.image_size // config.patch_size
        self.patch_embed = PatchEmbedding(config.in_chans, width, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + side**2, width))
        rates = [drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(width, config.n_heads, rate, eps=NORM_EPS, joint=True) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(initialise)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{"cls": (B, D), "patches": (B, N, D)}: the tokens after the last block, through the final norm.

        Raises ValueError for images of another rank or number of channels, a size that is no multiple of the patch, or
        integers.
        """
        (tokens,) = self.intermediate(images)
        return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}

    def intermediate(self, images: Tensor, n: int = 1) -> list[Tensor]:
        """Tokens (B, 1 + N, D) after each of the last `n` blocks, class token first, through the final norm.

        Raises ValueError as `forward`, and for an n beyond the depth.
        """
        if not 1 <= n <= len(self.blocks):
            raise ValueError(f"ViT.intermediate: n = {n}, expected 1 to {len(self.blocks)}, the number of blocks")
        x, kept = self.tokens(images), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number >= len(self.blocks) - n:
                kept.append(self.norm(x))
        return kept

    def class_tokens(self, groups: Sequence[Tensor]) -> Tensor:
        """Class tokens (B, D) of groups of images, each of one size, computed as one packed sequence.

        They equal those of `forward`, but the last block is only computed for them. Raises ValueError as `forward`.
        """
        tokens = [self.tokens(images) for images in groups]
        runs = Runs(tuple(x.shape[:2] for x in tokens))
        x = torch.cat([part.flatten(0, 1) for part in tokens])
        for block in self.blocks[:-1]:
            x = block(x, runs=runs)
        return self.norm(self.blocks[-1].first_rows(x, runs))

    def last_attention(self, images: Tensor) -> Tensor:
        """Weights (B, heads, 1 + N, 1 + N) of the last block's attention, rows are queries. Raises as `forward`."""
        x = self.tokens(images)
        for block in self.blocks[:-1]:
            x = block(x)
        attn, (batch, n, _) = self.blocks[-1].attn, x.shape
        q, k, _ = attn.heads(norm_linear(x, self.blocks[-1].norm1, *attn.together()), 3)
        q, k = (part.unflatten(0, (batch, n)).transpose(1, 2).float() for part in (q, k))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, 1 + N, D) before the first block, with their positions; class token first."""
        config = self.config
        if not isinstance(images, Tensor):
            raise ValueError(f"ViT: expected images in one tensor, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != config.in_chans or not len(images):
            raise ValueError(f"ViT: expected images (B, {config.in_chans}, X, Y), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"ViT: expected floating-point images, got {str(images.dtype)[6:]}")
        patch = (config.patch_size,) * 2
        try:
            grid = grid_of(images.shape[2:], patch)
        except ValueError as error:
            raise ValueError(f"ViT: {error}") from None
        table = resize_learned_table(self.pos_embed, config.image_size // config.patch_size, grid)
        x = self.patch_embed(images, grid[0] * grid[1]) + table[:, 1:]
        return torch.cat([(self.cls_token + table[:, :1]).expand(len(x), -1, -1), x], dim=1)

    def recompute(self, how: str) -> None:
        """Trade memory for time in training: "none", "selective" or "full", see `layers.Block`."""
        for block in self.blocks:
            block.recompute = how


def initialise(module: nn.Module) -> None:
    """Linear layers: truncated normal of deviation 0.02, zero bias; norms 1 and 0; convolutions as PyTorch does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
