"""gather_patches and scatter_patches: each other's inverse, and the published element order."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.kernels.patches import gather_patches, grid_of, scatter_patches

PROFILE = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def cases(draw, fewest=0):
    """grid, patch, channels, (B, K) distinct token ids in any order"""
    n_axes = draw(st.integers(2, 4))
    grid = tuple(draw(st.integers(1, 4)) for _ in range(n_axes))
    patch = tuple(draw(st.integers(1, 3)) for _ in range(n_axes))
    n, batch = math.prod(grid), draw(st.integers(1, 3))
    k = draw(st.integers(fewest, min(n, 6)))
    ids = [draw(st.permutations(range(n)))[:k] for _ in range(batch)]
    return grid, patch, draw(st.integers(1, 3)), torch.tensor(ids, dtype=torch.int32).reshape(batch, k)


def size_of(grid, patch):
    return tuple(g * p for g, p in zip(grid, patch))


def numbered(*shape):
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def patch_by_loops(image, token, grid, patch):
    """(C, *size) numpy -> (*patch, C): the pixels of a token, one after another."""
    origin = [t * p for t, p in zip(np.unravel_index(token, grid), patch)]
    out = np.empty((*patch, len(image)), dtype=image.dtype)
    for inside in itertools.product(*map(range, patch)):
        for channel in range(len(image)):
            out[(*inside, channel)] = image[(channel, *(o + i for o, i in zip(origin, inside)))]
    return out


@PROFILE
@given(case=cases())
def test_gather_reads_pixels_in_axis_order_channel_last(case):
    grid, patch, channels, index = case
    image = numbered(len(index), channels, *size_of(grid, patch))
    patches = gather_patches(image, index, patch)
    assert patches.shape == (*index.shape, *patch, channels)
    for b, k in itertools.product(*map(range, index.shape)):
        assert np.array_equal(patches[b, k].numpy(), patch_by_loops(image[b].numpy(), int(index[b, k]), grid, patch))


@PROFILE
@given(case=cases(fewest=1))
def test_scatter_is_the_inverse_and_the_adjoint(case):
    grid, patch, channels, index = case
    size = size_of(grid, patch)
    patches = numbered(*index.shape, math.prod(patch) * channels) + 1
    image = scatter_patches(patches, index, size, patch)
    assert image.shape == (len(index), channels, *size)
    assert torch.equal(gather_patches(image, index, patch).flatten(2).double(), patches)
    assert int(image.count_nonzero()) == patches.numel()  # zero everywhere else
    other = numbered(len(index), channels, *size).sin()
    inner = (gather_patches(other, index, patch).flatten(2) * patches).sum()
    torch.testing.assert_close((other * image).sum(), inner)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "by axis"])
def test_all_patches_make_the_image(flat):
    image = torch.randint(0, 256, (2, 3, 4, 6, 2), dtype=torch.uint8)
    index = torch.stack([torch.randperm(12), torch.randperm(12)])
    patches = gather_patches(image, index, (2, 2, 1))
    assert patches.dtype == torch.uint8
    again = scatter_patches(patches.flatten(2) if flat else patches, index, (4, 6, 2), (2, 2, 1))
    assert torch.equal(again, image)


def test_scatter_of_no_token_is_all_zero():
    image = scatter_patches(torch.ones(2, 0, 12), torch.zeros(2, 0, dtype=torch.int32), (4, 6), (2, 2))
    assert torch.equal(image, torch.zeros(2, 3, 4, 6))


def test_strides_of_the_image_do_not_matter():
    image = numbered(2, 3, 4, 6)
    index = torch.tensor([[5, 0], [2, 3]])
    expected = gather_patches(image, index, (2, 2))
    for strided in (
        image.contiguous(memory_format=torch.channels_last),
        image.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([image, image], dim=3)[..., :6],
    ):
        assert torch.equal(gather_patches(strided, index, (2, 2)), expected)


def test_gather_gives_a_gradient_to_the_gathered_pixels_only():
    image = numbered(1, 2, 4, 4).requires_grad_()
    index = torch.tensor([[3, 0]])
    upstream = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gather_patches(image, index, (2, 2)).backward(upstream)
    assert torch.equal(image.grad, scatter_patches(upstream, index, (4, 4), (2, 2)))


def test_grid_of():
    assert grid_of((192, 192, 16), (16, 16, 1)) == (12, 12, 16)


@pytest.mark.parametrize("size", [(16, 17), (16,), (0, 16), (8, 16), (16, 16, 16)], ids=str)
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match="not a positive multiple of the patch"):
        grid_of(size, (16, 16))
