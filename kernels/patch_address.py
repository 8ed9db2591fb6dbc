"""Addresses of a token's values in an image of any rank, strides and dtype: patches.py for Triton kernels.

Value i (order p, q, (r,) c) of the token at grid position n is the element  token_offset(n) + value_offset(i)  of its
sample. Patch extents and channels are compile-time constants: the compiler then sees which values of a patch are
neighbours in memory and reads them with one wide load.
"""

import torch
from torch import Tensor

from .backend import tl, triton
from .patches import gather_patches, grid_of

IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def token_offset(position, strides, grid_shape, PATCH: tl.constexpr):
    """Elements between the start of a sample and a token's first pixel, int64."""
    offset = (position * 0).to(tl.int64)
    for axis in tl.static_range(len(PATCH) - 1, -1, -1):
        offset += (position % grid_shape[axis]).to(tl.int64) * PATCH[axis] * strides[2 + axis]
        position = position // grid_shape[axis]
    return offset


@triton.jit
def value_offset(i, strides, PATCH: tl.constexpr, CHANNELS: tl.constexpr):
    """Elements between a token's first pixel and its value i, int32."""
    offset = i * 0
    if CHANNELS > 1:
        offset += (i % CHANNELS) * strides[1]
        i = i // CHANNELS
    for axis in tl.static_range(len(PATCH) - 1, -1, -1):
        if PATCH[axis] > 1:
            offset += (i % PATCH[axis]) * strides[2 + axis]
            i = i // PATCH[axis]
    return offset


@triton.jit
def locate_rows(
    rows, in_rows, index_ptr, intensity_ptr, rows_per_sample, strides, grid_shape,
    HAS_INTENSITY: tl.constexpr, PATCH: tl.constexpr,
):  # fmt: skip
    """Of rows (b, r) numbered through the batch: grid position, first pixel, and the sample's shift and scale."""
    sample = rows // rows_per_sample
    position = tl.load(index_ptr + rows, mask=in_rows, other=0)
    first = token_offset(position, strides, grid_shape, PATCH) + sample.to(tl.int64) * strides[0]
    shift = (position * 0).to(tl.float32)
    scale = shift
    if HAS_INTENSITY:
        shift = tl.load(intensity_ptr + sample * 2, mask=in_rows, other=0.0)
        scale = tl.load(intensity_ptr + sample * 2 + 1, mask=in_rows, other=0.0)
    return position, first, shift, scale


@triton.jit
def load_values(
    image_ptr, first, in_rows, shift, scale, i, in_patch, strides,
    HAS_INTENSITY: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Values i of the tokens whose first pixels are given, [rows, values] in float32, (pixel - shift) * scale.

    ACROSS has neighbouring lanes read neighbouring tokens, not neighbouring values of a token.
    """
    offset = value_offset(i, strides, PATCH, CHANNELS)
    if ACROSS:
        keep = in_rows[None, :] & in_patch[:, None]
        pixels = tl.trans(tl.load(image_ptr + (first[None, :] + offset[:, None]), mask=keep, other=0))
    else:
        keep = in_rows[:, None] & in_patch[None, :]
        pixels = tl.load(image_ptr + (first[:, None] + offset[None, :]), mask=keep, other=0)
    values = pixels.to(tl.float32)
    if HAS_INTENSITY:
        values = (values - shift[:, None]) * scale[:, None]
    return values


def patch_layout(image: Tensor, patch: tuple[int, ...]) -> dict:
    """The kernel arguments that describe where the patches of `image` lie in memory."""
    return {
        "strides": image.stride(),
        "grid_shape": grid_of(image.shape[2:], patch),
        "PATCH": tuple(patch),
        "CHANNELS": image.shape[1],
    }


def sector_bytes(image: Tensor, index: Tensor, patch: tuple[int, ...], sector: int = 32) -> int:
    """Bytes that reading the tokens `index` moves: memory is read in sectors, which neighbouring tokens share."""
    span = 1 + sum((n - 1) * s for n, s in zip(image.shape, image.stride()))
    element = torch.arange(span, device=image.device).as_strided(image.shape, image.stride())
    touched = gather_patches(element, index, patch) * image.element_size() // sector
    return touched.unique().numel() * sector


def image_unsupported(image: Tensor) -> list[str]:
    """Why kernels cannot read this image; empty where they can."""
    span = max(abs(s) * (n - 1) for n, s in zip(image.shape[1:], image.stride()[1:]))
    why = [] if image.dtype in IMAGE_DTYPES else [f"reads uint8, float16, bfloat16 and float32, got {image.dtype}"]
    return why + (["one sample spans 2**31 elements or more"] if span >= 2**31 else [])
