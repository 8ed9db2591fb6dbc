"""Shapes at which the models call the operations: one registry for tests, compile audits and benchmarks."""

import math
from typing import NamedTuple

import torch


class ViewShape(NamedTuple):
    """One view in a training step.

    batch, channels; size: pixels per axis; token: pixels of a token per axis; kernel: of the convolution that reads the
    image, equal to the token where there is no conv stem; width: channels of its output; keep: visible tokens;
    dec_width: width of a decoder query.
    """

    batch: int
    channels: int
    size: tuple[int, ...]
    token: tuple[int, ...]
    kernel: tuple[int, ...]
    width: int
    keep: int
    dec_width: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens per axis."""
        return tuple(s // t for s, t in zip(self.size, self.token))

    @property
    def block(self) -> tuple[int, ...]:
        """Output positions of the first convolution in a token, per axis."""
        return tuple(t // k for t, k in zip(self.token, self.kernel))

    @property
    def n(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    def stem_stages(self) -> "list[DepthwiseShape]":
        """The depthwise convolutions of both stages of the conv stem, where there is one: the second stage has half the
        positions a token along each axis that has several, and twice the channels."""
        if math.prod(self.block) == 1:
            return []
        kernel, half = (5,) * len(self.grid), tuple(-(-b // 2) for b in self.block)
        return [
            DepthwiseShape(self.batch, self.grid, block, kernel, channels, self.keep)
            for block, channels in ((self.block, self.width), (half, 2 * self.width))
        ]


class AttentionShape(NamedTuple):
    """Sequences of equal length: `queries` and `keys` per sample, for `batch` samples."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int


class DepthwiseShape(NamedTuple):
    """A depthwise convolution of a conv stem: `keep` of the grid's tokens are visible, each a block of positions."""

    batch: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int
    keep: int


class PrototypeShape(NamedTuple):
    """The loss of self-distillation: `n_crops` crops of `batch` images, the first two global; `width`: of the
    bottleneck; prototypes: how many."""

    batch: int
    n_crops: int
    width: int
    prototypes: int


def _sax(batch: int) -> ViewShape:
    return ViewShape(batch, 1, (192, 192, 16), (16, 16, 1), (4, 4, 1), 64, 576, 512)


def _lax(batch: int) -> ViewShape:
    return ViewShape(batch, 1, (256, 256), (16, 16), (4, 4), 64, 64, 512)


# the stem and the decoder of cinema-large and -huge are those of -base
VIEW_SHAPES = {
    "cinema-base-sax-b16": _sax(16),
    "cinema-base-sax-b64": _sax(64),
    "cinema-base-lax-b16": _lax(16),
    "cinema-base-lax-b64": _lax(64),
    "heartmae-clip-b16": ViewShape(16, 1, (16, 192, 192), (2, 16, 16), (2, 16, 16), 768, 288, 512),
    "vit-small8-b64": ViewShape(64, 1, (192, 192), (8, 8), (8, 8), 384, 144, 384),
    # no size is a multiple of another: odd patches, three channels, a width that is no multiple of 16
    "awkward": ViewShape(3, 3, (30, 35), (5, 7), (5, 7), 41, 11, 30),
}
# for the interpreter; no size is a multiple of a tile
SMALL_VIEW = ViewShape(2, 1, (20, 24, 3), (4, 4, 1), (4, 4, 1), 48, 23, 48)

ATTENTION_SHAPES = {
    "cinema-base-encoder-b16": AttentionShape(16, 769, 769, 12, 64),
    "cinema-base-encoder-b64": AttentionShape(64, 769, 769, 12, 64),
    "cinema-decoder-b16": AttentionShape(16, 2304, 768, 16, 32),
    "cinema-decoder-b64": AttentionShape(64, 2304, 768, 16, 32),
    "cinema-decoder-quarter-b64": AttentionShape(64, 576, 768, 16, 32),
    "cinema-large-encoder-b16": AttentionShape(16, 769, 769, 16, 64),
    "cinema-huge-encoder-b16": AttentionShape(16, 769, 769, 16, 80),
    "heartmae-encoder-b16": AttentionShape(16, 289, 289, 12, 64),
    "heartmae-decoder-b16": AttentionShape(16, 864, 288, 16, 32),
    "vit-small8-b64": AttentionShape(64, 577, 577, 6, 64),
    "awkward": AttentionShape(3, 13, 37, 3, 24),
}

DEPTHWISE_SHAPES = {
    "cinema-base-sax-stage0-b16": DepthwiseShape(16, (12, 12, 16), (4, 4, 1), (5, 5, 5), 64, 576),
    "cinema-base-sax-stage1-b16": DepthwiseShape(16, (12, 12, 16), (2, 2, 1), (5, 5, 5), 128, 576),
    "cinema-base-lax-stage0-b16": DepthwiseShape(16, (16, 16), (4, 4), (5, 5), 64, 64),
    "cinema-base-lax-stage1-b16": DepthwiseShape(16, (16, 16), (2, 2), (5, 5), 128, 64),
    "cinema-base-sax-stage0-b64": DepthwiseShape(64, (12, 12, 16), (4, 4, 1), (5, 5, 5), 64, 576),
    "cinema-base-sax-stage1-b64": DepthwiseShape(64, (12, 12, 16), (2, 2, 1), (5, 5, 5), 128, 576),
    "cinema-base-lax-stage0-b64": DepthwiseShape(64, (16, 16), (4, 4), (5, 5), 64, 64),
    "cinema-base-lax-stage1-b64": DepthwiseShape(64, (16, 16), (2, 2), (5, 5), 128, 64),
    # a different extent along each axis, and a prime number of channels
    "awkward": DepthwiseShape(3, (3, 5, 2), (2, 1, 3), (3, 5, 1), 41, 11),
}

PROTOTYPE_SHAPES = {
    "cmrfm-small8-b64": PrototypeShape(64, 10, 256, 65536),
    "cmrfm-small8-b16": PrototypeShape(16, 10, 256, 65536),
    "cmrfm-demo-b16": PrototypeShape(16, 10, 64, 4096),
    "awkward": PrototypeShape(3, 5, 48, 1003),
}


def in_float32_too(shape: str) -> bool:
    """Whether a shape is audited in float32 as well as in bfloat16: cinema-base's, for all model sizes."""
    return shape.startswith(("cinema-base", "cinema-decoder"))


def audited_dtypes(shape: str) -> tuple[torch.dtype, ...]:
    """The dtypes in which an operation on activations is audited at this shape."""
    return (torch.bfloat16, torch.float32) if in_float32_too(shape) else (torch.bfloat16,)
