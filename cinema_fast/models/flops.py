"""Useful floating-point operations of a training step, as a pure function of its shapes.

Counted are matrix products, attention and the depthwise window, a multiply-add as 2, as far as the loss needs them.
Masked positions and recomputation do not count, so a faster way to the same gradients raises the utilisation. Backward
counts as twice the forward. Norms, GELUs, biases, the loss and the optimiser are left out: they are limited by bytes.

DINO's loss reads class tokens alone: of the last block the keys and values of all tokens count, and the rest for the
class token. Logits, the products with the prototypes, count as a layer. The teacher has no backward.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from .config import CineMAConfig, DINOConfig, ViTConfig

WINDOW = 5  # positions per axis of the stem's depthwise convolutions; taps beyond the visible set are counted too
H100_BF16 = 989e12  # dense bf16 FLOP/s of an H100 SXM, NVIDIA's data sheet


class Flops(NamedTuple):
    """FLOPs of one study. encoder: its blocks. decoder: its blocks, the linear layer before them and the heads after.
    stem: with token embedding and fusion."""

    encoder: int
    decoder: int
    stem: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(self)


def forward_flops(config: CineMAConfig, keep: Mapping[str, int], decode: Mapping[str, int]) -> Flops:
    """FLOPs of the forward pass of one study.

    Args:
        config: the model.
        keep: {view: visible tokens}, for the views given.
        decode: {view: tokens decoded}, for the same views.

    Raises:
        ValueError: views that differ, that the model lacks, or counts beyond the view's tokens.
    """
    if set(keep) != set(decode):
        raise ValueError(f"forward_flops: visible tokens of {sorted(keep)} but decoded ones of {sorted(decode)}")
    for view in keep:
        if view not in config.views:
            raise ValueError(f"forward_flops: no view {view!r} in this model (views: {', '.join(config.views)})")
        if not (0 <= keep[view] <= config.n_tokens(view) and 0 <= decode[view] <= config.n_tokens(view)):
            raise ValueError(
                f"forward_flops: {view!r} has {config.n_tokens(view)} tokens, got {keep[view]} visible, "
                f"{decode[view]} decoded"
            )
    n_keys, n_queries = sum(keep.values()), sum(decode.values())
    width, dec_width = config.enc_embed_dim, config.dec_embed_dim
    n = 1 + n_keys  # the class token
    encoder = config.enc_depth * (24 * n * width**2 + 4 * n**2 * width)
    decoder = config.dec_depth * (
        20 * n_queries * dec_width**2 + 4 * n_keys * dec_width**2 + 4 * n_queries * n_keys * dec_width
    )
    decoder += 2 * n_keys * width * dec_width
    decoder += sum(
        2 * m * dec_width * math.prod(config.token_size(v)) * config.in_chans[v] for v, m in decode.items()
    )
    return Flops(encoder, decoder, sum(k * _stem_flops(config, v) for v, k in keep.items()))


def _stem_flops(config: CineMAConfig, view: str) -> int:
    """FLOPs of the stem, embedding and fusion of one visible token."""
    width, scale, chans = config.enc_embed_dim, math.prod(config.scale_factor[view]), config.enc_conv_chans
    window = WINDOW ** len(config.scale_factor[view])
    total, before, kernel = 0, config.in_chans[view], math.prod(config.patch_size[view])
    for stage, channels in enumerate(chans):
        positions = scale ** (len(chans) - stage)
        block = 2 * (10 * channels**2 + window * channels)  # two 1x1 layers, an MLP of ratio 4, the window
        total += positions * (2 * kernel * before * channels + config.enc_conv_n_blocks * block)
        total += 2 * positions * channels * width  # fusion
        before, kernel = channels, scale
    return total + 2 * kernel * before * width + 2 * width**2


def step_flops(config: CineMAConfig, keep: Mapping[str, int], decode: Mapping[str, int]) -> int:
    """FLOPs of forward and backward of one study; arguments and errors as `forward_flops`."""
    return 3 * forward_flops(config, keep, decode).total


class DINOFlops(NamedTuple):
    """FLOPs of the forward pass of one image, head and prototypes included. teacher: its global crops. student: all
    crops."""

    teacher: int
    student: int


def dino_forward_flops(config: DINOConfig) -> DINOFlops:
    """FLOPs of the teacher's and the student's forward pass of one image."""
    width, hidden, bottleneck = config.vit.embed_dim, config.head_hidden, config.bottleneck
    head = 2 * (width * hidden + hidden**2 + hidden * bottleneck + bottleneck * config.prototypes)
    large, small = (_class_token_flops(config.vit, size) + head for size in (config.vit.image_size, config.local_size))
    return DINOFlops(2 * large, 2 * large + config.n_local * small)


def _class_token_flops(vit: ViTConfig, size: int) -> int:
    """FLOPs of the class token after the last block, of one crop of size x size pixels."""
    width, patches = vit.embed_dim, (size // vit.patch_size) ** 2
    n = 1 + patches
    embedding = 2 * patches * vit.patch_size**2 * vit.in_chans * width
    whole = 24 * n * width**2 + 4 * n**2 * width
    last = 4 * n * width**2 + 4 * n * width + 20 * width**2
    return embedding + (vit.depth - 1) * whole + last


def dino_step_flops(config: DINOConfig) -> int:
    """FLOPs of a training step of one image: the teacher's forward pass, the student's forward and backward."""
    forward = dino_forward_flops(config)
    return forward.teacher + 3 * forward.student


def mfu(flops: float, seconds: float, peak: float = H100_BF16) -> float:
    """Model FLOPs utilisation, 0..1: useful FLOPs over what `peak` FLOP/s would do in that time."""
    return flops / seconds / peak
