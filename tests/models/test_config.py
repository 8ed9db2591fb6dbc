"""Configurations: what they derive, what they refuse and how they say so; the published sizes."""

import copy
import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
import torch
from small_models import small_config

import cinema_fast as cf
from cinema_fast.models.config import config_from_dict

# encoder width, depth, heads, decoder width, depth, heads, as published
SIZES = {
    "cinema-tiny": (16, 1, 2, 16, 1, 2),
    "cinema-base": (768, 12, 12, 512, 8, 16),
    "cinema-large": (1024, 24, 16, 512, 8, 16),
    "cinema-huge": (1280, 32, 16, 512, 8, 16),
}


def test_lists_become_tuples_and_entries_of_other_views_are_dropped():
    config = cf.CineMAConfig(
        views=["sax"],
        image_size={"sax": [16, 24, 3], "other": [1]},
        in_chans={"sax": 1},
        patch_size={"sax": [2, 2, 1]},
        scale_factor={"sax": [2, 2, 1]},
        enc_conv_chans=[4, 6],
    )
    assert config.views == ("sax",) and config.enc_conv_chans == (4, 6)
    assert config.image_size == {"sax": (16, 24, 3)}


def test_grid_and_tokens():
    config = small_config()
    assert config.token_size("sax") == (8, 8, 1)
    assert config.grid("sax") == (2, 3, 3)
    assert config.n_tokens("sax") == 18
    assert small_config(enc_conv_chans=()).token_size("lax_2c") == (2, 2)


def test_is_frozen_picklable_and_comes_back_from_a_dict():
    config = small_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.enc_depth = 3
    assert pickle.loads(pickle.dumps(config)) == config
    assert config_from_dict(dataclasses.asdict(config)) == config
    with pytest.raises(ValueError, match="no field 'depth'"):
        config_from_dict({**dataclasses.asdict(config), "depth": 3})


def test_a_failed_config_leaves_the_caller_dicts_alone():
    sizes = {"sax": [16, 24, 3], "lax_2c": [16, 32], "lax_4c": [24, 16]}
    before = {k: list(v) for k, v in sizes.items()}
    small_config(image_size=sizes)
    assert sizes == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"views": ()}, "views"),
        ({"views": ("sax", "sax")}, "views"),
        ({"image_size": {"sax": (16, 24, 3), "lax_2c": (16, 32)}}, "image_size.*'lax_4c'"),
        ({"in_chans": {"sax": 1}}, "in_chans.*'lax_2c'"),
        ({"patch_size": {}}, "patch_size.*'sax'"),
        ({"scale_factor": {}}, "scale_factor.*'sax'"),
        ({"image_size": {"sax": (16, 25, 3), "lax_2c": (16, 32), "lax_4c": (24, 16)}}, r"image_size.*'sax'.*\(8, 8"),
        ({"image_size": {"sax": (16, 24), "lax_2c": (16, 32), "lax_4c": (24, 16)}}, "'sax' has image_size"),
        ({"image_size": {"sax": (0, 24, 3), "lax_2c": (16, 32), "lax_4c": (24, 16)}}, "image_size"),
        ({"patch_size": {"sax": (0, 2, 1), "lax_2c": (2, 2), "lax_4c": (2, 2)}}, "patch_size"),
        ({"scale_factor": {"sax": (2, 2, 0), "lax_2c": (2, 2), "lax_4c": (2, 2)}}, "scale_factor"),
        ({"in_chans": {"sax": 0, "lax_2c": 1, "lax_4c": 1}}, "in_chans"),
        ({"enc_embed_dim": 0}, "enc_embed_dim"),
        ({"enc_embed_dim": 13}, "enc_embed_dim: 13 is not a multiple of 2 heads"),
        ({"enc_depth": 0}, "enc_depth"),
        ({"enc_n_heads": 0}, "enc_n_heads"),
        ({"dec_embed_dim": 0}, "dec_embed_dim"),
        ({"dec_embed_dim": 17}, "dec_embed_dim: 17 is not a multiple of 3 heads"),
        ({"dec_depth": -1}, "dec_depth"),
        ({"dec_n_heads": 0}, "dec_n_heads"),
        ({"enc_conv_n_blocks": -1}, "enc_conv_n_blocks"),
        ({"enc_conv_chans": (0, 6)}, "enc_conv_chans"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_errors_name_the_field(change, field):
    with pytest.raises(ValueError, match=field):
        small_config(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc_embed_dim": "32"}, "enc_embed_dim: expected a whole number, got '32'"),
        ({"enc_embed_dim": 32.0}, "enc_embed_dim: expected a whole number, got 32.0"),
        ({"dec_depth": True}, "dec_depth: expected a whole number, got True"),
        ({"enc_conv_n_blocks": None}, "enc_conv_n_blocks: expected a whole number, got None"),
        ({"enc_conv_chans": 8}, "enc_conv_chans: expected a tuple or list of whole numbers, got 8"),
        ({"enc_conv_chans": (8, "16")}, "enc_conv_chans: expected a whole number, got '16'"),
        ({"norm_target": "no"}, "norm_target: expected True or False, got 'no'"),
        ({"image_size": 32}, "image_size: expected {view: value}, got 32"),
        ({"image_size": dict.fromkeys(("sax", "lax_2c", "lax_4c"), (16.0, 16))}, "image_size['sax']: expected a whole"),
        ({"patch_size": dict.fromkeys(("sax", "lax_2c", "lax_4c"), 4)}, "patch_size['sax']: expected a tuple or list"),
        ({"in_chans": {"sax": 1, "lax_2c": "1", "lax_4c": 2}}, "in_chans['lax_2c']: expected a whole number, got '1'"),
        ({"views": "sax"}, "views: expected a tuple or list of names, got 'sax'"),
        ({"views": ("sax", 2)}, "views: expected a tuple or list of names, got ('sax', 2)"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_values_of_another_kind_name_the_field(change, message):
    with pytest.raises(ValueError) as error:
        small_config(**change)
    assert str(error.value).startswith(f"CineMAConfig.{message}")


def one_view(name: str) -> cf.CineMAConfig:
    by_view = {"image_size": (16, 16), "in_chans": 1, "patch_size": (2, 2), "scale_factor": (2, 2)}
    return small_config(views=(name,), **{field: {name: value} for field, value in by_view.items()})


@pytest.mark.parametrize("name", ["a.b", "", "keys", "items", "forward", "training", "_modules"])
def test_names_that_pytorch_refuses_are_no_views(name):
    message = f"CineMAConfig.views: PyTorch takes no module by the name {name!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        one_view(name)


@pytest.mark.parametrize("name", ["rvot", "sax-2", "4ch", "clip", "key"])
def test_other_names_are_views(name):
    assert any(f".{name}." in parameter for parameter in cf.CineMA(one_view(name)).state_dict())


def test_numpy_integers_are_taken_as_what_they_are():
    config = small_config(enc_embed_dim=np.int64(32), image_size={v: tuple(np.array(small_config().image_size[v]))
                                                                   for v in small_config().views})
    assert config == small_config(enc_embed_dim=32) and type(config.enc_embed_dim) is int
    assert type(config.image_size["sax"][0]) is int


def test_a_preset_cannot_be_changed():
    sizes = cf.preset("cinema-tiny").image_size
    before = dict(sizes)
    changes = (
        lambda: sizes.__setitem__("sax", (1, 1, 1)), lambda: sizes.update(sax=1), lambda: sizes.pop("sax"), sizes.clear,
        sizes.popitem, lambda: sizes.setdefault("rvot", 1), lambda: sizes.__delitem__("sax"),
        lambda: sizes.__ior__({"sax": 1}),
    )  # fmt: skip
    for change in changes:
        with pytest.raises(TypeError, match=r"never changed; make another with dataclasses\.replace"):
            change()
    assert cf.preset("cinema-tiny").image_size == before
    larger = dataclasses.replace(cf.preset("cinema-tiny"), image_size={**sizes, "sax": (64, 64, 4)})
    assert larger.image_size["sax"] == (64, 64, 4) and cf.preset("cinema-tiny").image_size == before


def test_equal_configs_have_equal_hashes():
    config = cf.preset("cinema-tiny")
    again = config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    for other in (again, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config and hash(other) == hash(config)
    assert len({hash(cf.preset(name)) for name in cf.presets()}) == len(cf.presets())


@pytest.mark.parametrize("n_axes", [1, 4, 5])
def test_number_of_axes(n_axes):
    one_view = {"views": ("v",), "image_size": {"v": (4,) * n_axes}, "in_chans": {"v": 1}}
    one_view |= {name: {"v": (2,) * n_axes} for name in ("patch_size", "scale_factor")}
    with pytest.raises(ValueError, match=f"image_size: 'v' has {n_axes} axes"):
        small_config(**one_view, enc_conv_chans=(4,))
    if n_axes == 4:
        assert small_config(**one_view, enc_conv_chans=()).n_tokens("v") == 16


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_the_published_sizes(name):
    config = cf.preset(name)
    shape = (config.enc_embed_dim, config.enc_depth, config.enc_n_heads)
    assert (*shape, config.dec_embed_dim, config.dec_depth, config.dec_n_heads) == SIZES[name]
    assert config.views == ("sax", "lax_2c", "lax_3c", "lax_4c")
    assert [config.n_tokens(v) for v in config.views] == [2304, 256, 256, 256]
    assert config.token_size("sax") == (16, 16, 1) and config.token_size("lax_4c") == (16, 16)
    assert config.enc_conv_chans == (64, 128) and config.enc_conv_n_blocks == 2
    assert not config.norm_target


def test_heartmae_presets():
    """The sizes of the issue: 16 frames of 192 x 192 in tubelets of 2 x 16 x 16, ViT-B with CineMA's decoder."""
    base, tiny = cf.preset("heartmae-base"), cf.preset("heartmae-tiny")
    assert base.views == ("clip",) and base.image_size["clip"] == (16, 192, 192)
    assert base.token_size("clip") == (2, 16, 16) and base.n_tokens("clip") == 1152
    shape = (base.enc_embed_dim, base.enc_depth, base.enc_n_heads)
    assert (*shape, base.dec_embed_dim, base.dec_depth, base.dec_n_heads) == SIZES["cinema-base"]
    assert base.enc_conv_chans == () == tiny.enc_conv_chans
    with torch.device("meta"):
        names = [name for name, _ in cf.CineMA(base).named_parameters()]
    assert not [name for name in names if "conv" in name]
    assert tiny.n_tokens("clip") == 4 * 6 * 6


def test_presets_lists_what_preset_knows():
    assert set(SIZES) <= set(cf.presets())
    for name in cf.presets():
        assert type(cf.preset(name)) is (cf.DINOConfig if name.startswith("cmrfm-") else cf.CineMAConfig)
    with pytest.raises(ValueError, match=r"'cinema-bse'; did you mean 'cinema-base'\?"):
        cf.preset("cinema-bse")
    with pytest.raises(ValueError, match=r"unknown preset 'x' \(known: cinema-tiny"):
        cf.preset("x")


def test_cmrfm_presets():
    """ViT-S/8 and head of Jacob et al., parameter by parameter."""
    small, demo = cf.preset("cmrfm-small8"), cf.preset("cmrfm-demo")
    assert small.vit == cf.ViTConfig(
        in_chans=1, embed_dim=384, depth=12, n_heads=6, patch_size=8, image_size=192
    )
    assert small == cf.DINOConfig(
        vit=small.vit, prototypes=65536, head_hidden=2048, bottleneck=256, norm_last_layer=True, n_local=8,
        local_size=96, student_temp=0.1, centre_momentum=0.9, drop_path=0.1,
    )  # fmt: skip
    with torch.device("meta"):
        vit, model = cf.ViT(small.vit), cf.DINO(small)
    block = 12 * 384**2 + 13 * 384  # qkv, proj and MLP; their biases and the norms
    backbone = 12 * block + (64 + 1) * 384 + (1 + 1 + 24**2) * 384 + 2 * 384
    head = 384 * 2048 + 2048**2 + 2048 * 256 + 2 * 2048 + 256 + 65536 * 256 + 65536
    assert sum(p.numel() for p in vit.parameters()) == backbone
    assert sum(p.numel() for p in model.parameters()) == 2 * (backbone + head)
    assert demo.prototypes == 4096 and demo.vit.image_size == 64


def test_dino_configs_come_back_from_plain_values():
    for name in ("cmrfm-small8", "cmrfm-demo"):
        config = cf.preset(name)
        again = config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
        assert again == config and hash(again) == hash(config) and pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.prototypes = 3
    with pytest.raises(ValueError, match="ViTConfig has no field 'width'"):
        config_from_dict({"vit": {"width": 3}})
    with pytest.raises(ValueError, match="DINOConfig has no field 'width'"):
        config_from_dict({"vit": {}, "width": 3})
    config = cf.ViTConfig(depth=np.int64(3))
    assert type(config.depth) is int and config == cf.ViTConfig(depth=3)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (cf.ViTConfig, {"in_chans": 0}, "in_chans: expected a whole number of at least 1, got 0"),
        (cf.ViTConfig, {"depth": 2.0}, "depth: expected a whole number of at least 1, got 2.0"),
        (cf.ViTConfig, {"n_heads": True}, "n_heads: expected a whole number"),
        (cf.ViTConfig, {"embed_dim": 100}, "embed_dim: 100 is not 6 heads of a multiple of 8"),
        (cf.ViTConfig, {"image_size": 100}, "image_size: 100 is not a multiple of the patch, 8"),
        (cf.DINOConfig, {"drop_path": 1}, "drop_path: expected a number from 0 to below 1, got 1"),
        (cf.DINOConfig, {"drop_path": "no"}, "drop_path: expected a number from 0 to below 1, got 'no'"),
        (cf.DINOConfig, {"prototypes": "9"}, "prototypes: expected a whole number of at least 1, got '9'"),
        (cf.DINOConfig, {"n_local": -1}, "n_local: expected a whole number of at least 0, got -1"),
        (cf.DINOConfig, {"local_size": 20}, "local_size: 20 is not a multiple of the patch, 8"),
        (cf.DINOConfig, {"norm_last_layer": 1}, "norm_last_layer: expected True or False, got 1"),
        (cf.DINOConfig, {"student_temp": 0}, "student_temp: expected a number above 0, got 0"),
        (cf.DINOConfig, {"student_temp": "1"}, "student_temp: expected a number above 0, got '1'"),
        (cf.DINOConfig, {"centre_momentum": 1.1}, "centre_momentum: expected a number from 0 to 1, got 1.1"),
        (cf.DINOConfig, {"centre_momentum": None}, "centre_momentum: expected a number from 0 to 1, got None"),
        (cf.DINOConfig, {"vit": 3}, "vit: expected a ViTConfig, got 3"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_dino_configs_name_the_field(kind, change, message):
    with pytest.raises(ValueError) as error:
        kind(**change)
    assert str(error.value).startswith(f"{kind.__name__}.{message}")


def test_cinema_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = cf.CineMA(cf.preset("cinema-base"))
    fixed = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    assert all(name.endswith("pos_embed") for name in fixed)
    assert sum(fixed.values()) == (2304 + 3 * 256) * (768 + 512)  # 3.93 M
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 125.67
    assert not list(model.buffers())
