"""Stem and fusion at visible tokens against the published convolutions over whole maps, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_models import masked_pixels
from tolerances import assert_close
from torch import nn

from cinema_fast.kernels import TokenPlan, sample_mask
from cinema_fast.models.stem import Fusion, Stem, as_matrix, fold_positions

# grid, first patch, scale factor, stages' channels
CASES = {
    "sax": ((2, 3, 4), (2, 2, 1), (2, 2, 1), (4, 6)),
    "lax": ((3, 4), (4, 4), (2, 2), (4, 6)),
    "another factor along each axis": ((3, 2), (2, 1), (1, 3), (3, 5)),
    "one stage": ((3, 4), (2, 2), (2, 2), (4,)),
    "three stages": ((2, 3), (1, 1), (2, 2), (2, 3, 4)),
    "no stage": ((3, 4), (4, 2), (2, 2), ()),
}
WIDTH, IN_CHANNELS = 8, 2


def build(name):
    """Stem, Fusion, image and token size of a case, in float64, with weights of no special value."""
    grid, patch, scale, channels = CASES[name]
    torch.manual_seed(0)
    stem = Stem(grid, patch, scale, IN_CHANNELS, channels, 2 if name == "lax" else 1, WIDTH).double()
    fusion = Fusion(patch, scale, channels, WIDTH).double()
    for p in itertools.chain(stem.parameters(), fusion.parameters()):
        if p.requires_grad:
            p.data = 0.4 * torch.randn_like(p)
    token = tuple(p * s ** len(channels) for p, s in zip(patch, scale))
    size = [g * t for g, t in zip(grid, token)]
    return stem, fusion, torch.rand(2, IN_CHANNELS, *size, dtype=torch.float64), token


def channel_norm(x, norm):
    return F.layer_norm(x.movedim(1, -1), norm.normalized_shape, norm.weight, norm.bias, norm.eps).movedim(-1, 1)


def tokens_of(x, plan, grid):
    """(B, C, *grid) -> (B, K, C), visible tokens one after another."""
    rows = [
        torch.stack([x[(b, slice(None), *(int(i) for i in torch.unravel_index(torch.tensor(t), grid)))] for t in keep])
        for b, keep in enumerate(plan.keep.tolist())
    ]
    return torch.stack(rows)


def dense_stem(stem, image, plan, grid):
    """Skips (B, C, *map) and tokens (B, K, D), by convolutions of the whole image and its mask."""
    conv = F.conv2d if len(grid) == 2 else F.conv3d
    x, skips, patch = image, [], [s // g for s, g in zip(image.shape[2:], grid)]
    for stage in stem.conv_blocks:
        x = F.gelu(channel_norm(stage.patch_embed.conv(x), stage.patch_embed.norm))
        visible = ~masked_pixels(plan, grid, [s // g for s, g in zip(x.shape[2:], grid)])
        for block in stage.conv:
            h = visible * block.conv1(channel_norm(x, block.norm1))
            h = conv(h, block.dw_conv.weight, block.dw_conv.bias, padding=2, groups=x.shape[1])
            x = x + block.conv2(h)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(channel_norm(x, block.norm2))))
        skips.append(x)
        patch = [s // g for s, g in zip(x.shape[2:], grid)]
    # the token embedding is a convolution too, its kernel laid out p, q, (r,) then channel
    kernel = stem.patch_embed.proj.weight.unflatten(1, (*patch, x.shape[1])).movedim(-1, 1)
    x = conv(x, kernel, stem.patch_embed.proj.bias, stride=patch)
    positions = stem.pos_embed[0].T.reshape(-1, *grid)
    return skips, tokens_of(stem.linear(x.movedim(1, -1)).movedim(-1, 1) + positions, plan, grid)


@pytest.mark.parametrize("keep", ["quarter", "one", "all"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, keep):
    stem, fusion, image, _ = build(name)
    grid, n = CASES[name][0], math.prod(CASES[name][0])
    plan = sample_mask(batch=2, n=n, keep={"quarter": max(n // 4, 2), "one": 1, "all": n}[keep], seed=3)
    encoded = torch.randn(2, plan.keep.shape[1], WIDTH, dtype=torch.float64)

    skips, tokens = stem(image, plan, grid, None)
    fused = fusion(skips, encoded)
    dense_skips, dense_tokens = dense_stem(stem, image, plan, grid)
    x = encoded
    for skip, conv in zip(dense_skips, fusion.down_convs):
        x = x + tokens_of(conv(skip), plan, grid)
    dense_fused = fusion.norm(x)

    assert_close(tokens, dense_tokens, name="tokens")
    assert_close(fused, dense_fused, name="fused")
    upstream = torch.randn_like(tokens), torch.randn_like(fused)
    parameters = {n: p for m in (stem, fusion) for n, p in m.named_parameters(type(m).__name__) if p.requires_grad}
    grads, expected = (
        torch.autograd.grad(outputs, list(parameters.values()), upstream)
        for outputs in ((tokens, fused), (dense_tokens, dense_fused))
    )
    for name_, grad, want in zip(parameters, grads, expected):
        # one visible token has gradients that cancel within a channel: errors count against the common scale
        assert_close(grad, want, floor=1e-2, name=name_)


def test_everything_visible_equals_no_mask_at_all():
    stem, _, image, _ = build("sax")
    grid = CASES["sax"][0]
    plan = TokenPlan.everything(2, 24, torch.device("cpu"))
    assert not masked_pixels(plan, grid, (1, 1, 1)).any()
    assert_close(stem(image, plan, grid, None)[1], dense_stem(stem, image, plan, grid)[1])


@pytest.mark.parametrize("kernel", [(2, 3), (1, 2, 2)], ids=str)
def test_fold_and_matrix_are_a_strided_convolution(kernel):
    n_axes = len(kernel)
    conv = (nn.Conv2d if n_axes == 2 else nn.Conv3d)(3, 5, kernel, stride=kernel, dtype=torch.float64)
    block = [2 * k for k in kernel]
    x = torch.randn(2, 4, *block, 3, dtype=torch.float64)
    rows = F.linear(fold_positions(x, kernel), as_matrix(conv.weight), conv.bias)
    dense = conv(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, (2, 4))
    assert_close(rows, dense)
