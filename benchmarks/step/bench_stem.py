"""The convolutional stem at visible tokens only against the same stem computed densely, forward and backward, batch 1.

Dense: the same parameters through PyTorch's own convolutions over the whole grid, masked before each depthwise one, as
the published implementation does it; once in its memory layout and once channels-last, which suits the CPU better.
"""

import pytest
import torch
import torch.nn.functional as F
import workload

import cinema_fast as cf

BUDGET = {"tokens": 1e-5, "gradients": 1e-4}  # largest difference over largest value


def channel_norm(x, norm):
    """LayerNorm over axis 1."""
    return F.layer_norm(x.movedim(1, -1), norm.normalized_shape, norm.weight, norm.bias, norm.eps).movedim(-1, 1)


def dense_stem(stem, image, visible, grid, layout):
    """Tokens (B, N, D) of a whole view: image (B, C, *size), visible (B, N) bool; right at visible tokens."""
    conv = F.conv2d if len(grid) == 2 else F.conv3d
    x = image
    for stage in stem.conv_blocks:
        first = stage.patch_embed.conv
        x = conv(x, first.weight, first.bias, stride=first.stride).to(memory_format=layout)
        x = F.gelu(channel_norm(x, stage.patch_embed.norm))
        mask = visible.view(len(image), 1, *grid)
        for axis, (extent, tokens) in enumerate(zip(x.shape[2:], grid)):
            mask = mask.repeat_interleave(extent // tokens, dim=2 + axis)
        for block in stage.conv:
            h = conv(channel_norm(x, block.norm1), block.conv1.weight, block.conv1.bias) * mask
            h = conv(h, block.dw_conv.weight, block.dw_conv.bias, padding="same", groups=h.shape[1])
            x = x + conv(h, block.conv2.weight, block.conv2.bias)
            h = F.gelu(conv(channel_norm(x, block.norm2), block.mlp.fc1.weight, block.mlp.fc1.bias))
            x = x + conv(h, block.mlp.fc2.weight, block.mlp.fc2.bias)
    split = [n for extent, tokens in zip(x.shape[2:], grid) for n in (tokens, extent // tokens)]
    axes = range(2, 2 + 2 * len(grid))
    x = x.reshape(*x.shape[:2], *split).permute(0, *axes[::2], *axes[1::2], 1).flatten(1, len(grid))
    return stem.linear(stem.patch_embed.proj(x.flatten(2))) + stem.pos_embed


class StemStep:
    """Forward and backward of one view's stem in each way, after they have been found to agree."""

    def __init__(self, preset: str, view: str):
        torch.manual_seed(0)
        config = workload.config_of(preset)
        self.grid = config.grid(view)
        self.stem = cf.CineMA(config).enc_down_dict[view]
        self.image = workload.random_images(config, 1)[view]
        self.plan = workload.draw_plan(config, 1)[view]
        self.visible = self.plan.slot >= 0
        channels_last = torch.channels_last if len(self.grid) == 2 else torch.channels_last_3d
        self.layouts = {"dense": torch.contiguous_format, "dense channels-last": channels_last}
        self.upstream = torch.randn(1, self.plan.keep.shape[1], config.enc_embed_dim)
        expected, *grads = self._result("visible")
        for way in self.layouts:
            for what, actual, wanted in zip(
                ("tokens", *["gradients"] * len(grads)), self._result(way), (expected, *grads)
            ):
                error = float((actual - wanted).abs().max() / wanted.abs().max())
                if not error <= BUDGET[what]:
                    raise workload.GateError(f"stem of {view}, {way}: {what} are off by {error:.2g}")

    def run(self, way: str) -> torch.Tensor:
        """Tokens (1, K, D) of the visible positions, after backward."""
        self.stem.zero_grad(set_to_none=True)
        if way == "visible":
            tokens = self.stem(self.image, self.plan, self.grid, None)[1]
        else:
            tokens = dense_stem(self.stem, self.image, self.visible, self.grid, self.layouts[way])
            tokens = tokens[self.visible].unsqueeze(0)
        tokens.backward(self.upstream)
        return tokens.detach()

    def _result(self, way: str) -> list[torch.Tensor]:
        return [self.run(way), *(p.grad for p in self.stem.parameters() if p.requires_grad)]


@pytest.fixture(scope="module", params=["sax", "lax_2c"])
def bench(request, preset):
    """The stem of a view."""
    return request.param, StemStep(preset, request.param)


@pytest.mark.parametrize("way", ["visible", "dense", "dense channels-last"])
def test_stem(timed, bench, preset, way):
    view, step = bench
    timed(lambda: step.run(way), group=f"stem-fwd+bwd-{preset}-{view}-b1-fp32")
