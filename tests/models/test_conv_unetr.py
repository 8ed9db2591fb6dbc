"""ConvUNetR's parts against plain forms: the block of the image, the levels that have to meet, sizes, frames."""

import pytest
import torch
from downstream_models import frames, small_unetr
from small_models import small_config
from torch import nn

import cinema_fast as cf
from cinema_fast.models.conv_unetr import ImageBlock, ResBlock, dense_map, repeat_middle

SIZES = [(9, 12), (1, 1), (2, 7), (3, 4), (5, 6, 3), (8, 2, 1), (4, 5, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_block_of_an_image_is_a_residual_block(size, channels):
    torch.manual_seed(0)
    plain = ResBlock(len(size), channels, 4).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    block = ImageBlock(len(size), channels, 4).double()
    block.load_state_dict(plain.state_dict())
    found = []
    for module in (plain, block):
        x = torch.rand(2, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        out = module(x)
        out.backward(torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape))
        found.append([out, x.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-9)


def test_dropout_in_the_block_of_an_image_falls_on_single_values():
    torch.manual_seed(0)
    block = ImageBlock(2, 1, 4, dropout=0.25)
    seen = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(3, 1, 40, 50)
    block(x)
    plain = ResBlock(2, 1, 4)
    plain.load_state_dict(block.state_dict())
    plain.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain(x)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], seen[1][kept] / 0.75, rtol=1e-4, atol=1e-5)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=4 * (0.1875 / kept.numel()) ** 0.5)
    assert not torch.equal(kept[0], kept[1])  # each sample has its own draw


def test_the_middle_is_repeated():
    x = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 5) * 10 + torch.arange(5.0)
    found = repeat_middle(x, (7, 5))[0, 0]
    assert found[:, 0].tolist() == [0, 10, 20, 20, 20, 30, 40]
    assert found[3].tolist() == [20, 21, 22, 23, 24]


def test_rows_of_tokens_become_maps_in_channels_last_memory():
    image = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    grid, block = (2, 3), (2, 2)
    rows = image.view(2, 3, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, *block, 3)
    found = dense_map(rows, grid)
    assert torch.equal(found, image)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_frames_are_channels():
    model = small_unetr(n_frames=3)
    maps = model(frames(model.config, n_frames=3))
    assert {v: tuple(x.shape) for v, x in maps.items()} == {v: (2, 4, *s) for v, s in model.config.image_size.items()}
    with pytest.raises(ValueError, match=r"ConvUNetR: 'sax' needs \(B = 2, C = 3, 3 axes\), got \(2, 1, 16, 32, 3\)"):
        model(frames(model.config))


def test_other_sizes_are_multiples_of_the_coarsest_level():
    model = small_unetr(views=("lax_2c",))
    assert model({"lax_2c": torch.rand(1, 1, 32, 48)})["lax_2c"].shape == (1, 4, 32, 48)
    with pytest.raises(ValueError, match=r"'lax_2c', at the decoder's coarsest level: image size \(24, 32\)"):
        model({"lax_2c": torch.rand(1, 1, 24, 32)})


def test_levels_that_do_not_meet_are_named():
    with pytest.raises(ValueError, match=r"'sax' has positions of \[\(2, 2, 1\), \(4, 4, 1\), \(8, 8, 1\)\] pixels"):
        small_unetr(dec_channels=(8, 8))
    with pytest.raises(ValueError, match="ConvUNetR: 'sax' has positions"):
        small_unetr(dec_patch_size=3)
    with pytest.raises(ValueError, match="ConvUNetR: 'sax' has positions"):
        small_unetr(dec_scale_factor=(2, 2, 2))
    tuples = small_unetr(dec_patch_size=(2, 2, 1), dec_scale_factor=(2, 2, 1)).state_dict()
    numbers = small_unetr().state_dict()
    assert {k: t.shape for k, t in tuples.items()} == {k: t.shape for k, t in numbers.items()}
    with pytest.raises(ValueError, match="ConvUNetR: 'clip' has images of 4 axes; expected 2 or 3"):
        four = {"clip": (2, 4, 4, 4)}
        config = small_config(
            views=("clip",), image_size=four, in_chans={"clip": 1}, patch_size=four, scale_factor=four,
            enc_conv_chans=(), enc_conv_n_blocks=0,
        )  # fmt: skip
        cf.ConvUNetR(config, 4)
