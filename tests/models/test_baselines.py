"""The baselines have the interfaces of ConvUNetR and ConvViT; without MONAI one is told what to install."""

import sys

import pytest
import torch
from downstream_models import frames, small_unetr, small_vit
from small_models import small_config

from cinema_fast.models.baselines import resnet, unet


def test_a_unet_returns_maps_like_conv_unetr():
    config = small_config(views=("sax", "lax_4c"), image_size={"sax": (32, 48, 3), "lax_4c": (32, 16)})
    images = frames(config, n_frames=2)
    maps = unet(config, out_channels=4, n_frames=2).eval()(images)
    assert {v: tuple(x.shape) for v, x in maps.items()} == {"sax": (2, 4, 32, 48, 3), "lax_4c": (2, 4, 32, 16)}
    with pytest.raises(ValueError, match=r"unet: 'sax' needs \(B = 2, C = 2, 3 axes\), got \(2, 1, 32, 48, 3\)"):
        unet(config, 4, n_frames=2)({"sax": images["sax"][:, :1]})


def test_a_resnet_returns_values_like_conv_vit():
    model = resnet(small_vit().config, out_dim=5).eval()
    images = frames(model.config)
    alone = [model({view: image}) for view, image in images.items()]
    torch.testing.assert_close(model(images), torch.stack(alone).mean(0))
    torch.testing.assert_close(model(images, "patch"), model(images))
    with pytest.raises(ValueError, match="resnet: reduce must be all or patch"):
        model(images, "cls")
    # as stored: twice as bright, from 5 on
    stored = {v: 2 * x + 5 for v, x in images.items()}
    window = dict.fromkeys(images, torch.tensor([[5.0, 0.5]] * 2))
    torch.testing.assert_close(model(stored, intensity=window), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [unet, resnet])
def test_without_monai_the_error_names_what_to_install(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ValueError, match=r"need MONAI: pip install 'cinema-fast\[downstream\]'"):
        build(small_unetr().config, 2)
