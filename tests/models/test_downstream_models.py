"""ConvViT and ConvUNetR: golden files, gradients against differences in float64, drop path, compile, autocast."""

import json
import math
from functools import partial

import pytest
import torch
from downstream_models import frames, small_unetr, small_vit
from marks import slow
from safetensors.torch import load_file
from small_models import double

import cinema_fast as cf
from cinema_fast import kernels
from cinema_fast.models.conv_unetr import ResBlock
from cinema_fast.models.conv_vit import layer_of
from cinema_fast.models.layers import Encoder

CPU_BACKENDS = ("native",)


def golden(shared, name: str, **changes):
    """Config of tiny.json with `changes`, tensors of a case, and its state dict."""
    fields = json.loads((shared / "golden" / "tiny.json").read_text())
    fields = {k: v for k, v in fields.items() if k not in ("name", "batch", "mask_ratio")}
    tensors = load_file(shared / "golden" / f"{name}.safetensors")
    weights = {k.removeprefix("param."): t for k, t in tensors.items() if k.startswith("param.")}
    return cf.CineMAConfig(**fields | changes), tensors, weights


def relative(actual, expected):
    return float((actual.detach() - expected).abs().max() / expected.abs().max())


def test_conv_vit_matches_the_reference(shared):
    config, tensors, weights = golden(shared, "tiny_convvit")
    model = cf.ConvViT(config, out_dim=5, n_frames=2)
    cf.load_cinema_weights(model, weights)
    images = {v: tensors[f"image.{v}"] for v in config.views}
    for reduce in ("patch", "all", "cls"):
        assert relative(model(images, reduce), tensors[f"logits_{reduce}"]) < 1e-5, reduce


@pytest.mark.parametrize("view", ["sax", "lax_2c", "lax_3c", "lax_4c"])
def test_conv_unetr_matches_the_reference(shared, view):
    config, tensors, weights = golden(shared, f"tiny_convunetr_{view}", views=(view,))
    model = cf.ConvUNetR(config, out_channels=4, dec_channels=(4, 8, 12, 16, 20))
    cf.load_cinema_weights(model, weights)
    assert relative(model({view: tensors["image"]})[view], tensors["logits"]) < 1e-5


def outputs(model, images, **options):
    """Everything that a model returns, as one vector."""
    out = model(images, **options)
    return torch.cat([x.flatten() for x in out.values()]) if isinstance(out, dict) else out.flatten()


N_FRAMES = {"vit": 2, "unetr": 1}
MODELS = {"vit": lambda: small_vit(n_frames=2), "unetr": small_unetr}


def gradients(model, images, upstream):
    model.zero_grad()
    outputs(model, images).backward(upstream)
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_differences_and_float32_keeps_them(kind):
    model = MODELS[kind]()
    images = frames(model.config, N_FRAMES[kind])
    upstream = torch.randn(outputs(model, images).shape, dtype=torch.float64)
    single = gradients(model, images, upstream.float())
    model, images = model.double(), double(images)
    exact = gradients(model, images, upstream)
    scale, step = max(float(g.norm()) for g in exact.values()), 1e-6
    for name, grad in exact.items():
        assert float((single[name] - grad).norm()) < 1e-4 * float(grad.norm()) + 1e-6 * scale, name
    for part, _ in model.named_children():  # along one direction in all of its parameters
        own = {n: p for n, p in model.named_parameters() if n in exact and n.startswith(f"{part}.")}
        direction = {n: torch.randn_like(p) / p.numel() ** 0.5 for n, p in own.items()}

        @torch.no_grad()
        def moved(by, own=own, direction=direction):
            for n, p in own.items():
                p += by * direction[n]

        moved(step)
        above = outputs(model, images) @ upstream
        moved(-2 * step)
        below = outputs(model, images) @ upstream
        moved(step)
        slope = sum(float((exact[n] * d).sum()) for n, d in direction.items())
        assert (above - below).item() / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-7 * scale), part


def test_any_views_and_the_mean_of_their_heads():
    model = small_vit()
    images = frames(model.config)
    for views in (("sax",), ("lax_4c", "lax_2c"), model.config.views):
        given = {v: images[v] for v in views}
        features = model.encode(given)
        heads = [model.pred_head_dict[v](features[v].mean(1)) for v in views]
        torch.testing.assert_close(model(given, "patch"), sum(heads) / len(heads))
        cls = model.pred_head_dict["cls"](features["cls"][:, 0])
        torch.testing.assert_close(model(given, "all"), (sum(heads) + cls) / (len(heads) + 1))
        maps = small_unetr()({v: x for v, x in frames(small_unetr().config).items() if v in views})
        assert {v: tuple(x.shape[1:]) for v, x in maps.items()} == {
            v: (4, *small_unetr().config.image_size[v]) for v in views
        }


def test_a_sample_does_not_depend_on_its_batch_nor_a_stored_image_on_its_window():
    window = torch.tensor([[10.0, 1 / 200], [3.0, 1 / 90]])
    for model in (small_vit(), small_unetr()):
        images = frames(model.config)
        whole = model(images)
        alone = model({v: x[1:] for v, x in images.items()})
        stored = {v: (x / window[:, 1].view(2, *[1] * (x.ndim - 1))) for v, x in images.items()}
        stored = {v: x + window[:, 0].view(2, *[1] * (x.ndim - 1)) for v, x in stored.items()}
        again = model(stored, intensity=dict.fromkeys(images, window))
        if isinstance(whole, torch.Tensor):
            whole, alone, again = {"": whole}, {"": alone}, {"": again}
        for view, expected in whole.items():
            torch.testing.assert_close(alone[view], expected[1:], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(again[view], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [small_vit, small_unetr])
def test_backends_agree(build, backend, device):
    model = build(views=("lax_4c",)).to(device)
    images = {v: x.to(device) for v, x in frames(model.config, batch=1).items()}
    with torch.no_grad(), kernels.use(backend):
        found = outputs(model, images)
    with torch.no_grad(), kernels.use("torch"):
        expected = outputs(model.double(), double(images))
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("kind", MODELS)
def test_autocast_stays_near(kind):
    model = MODELS[kind]()
    images = frames(model.config, N_FRAMES[kind])
    exact = outputs(model, images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = outputs(model, images)
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert float((low.detach() - exact).norm() / exact.norm()) < 15 * 2**-8  # of roundings of 2^-8 some dozens follow
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [(1, 4, 3), (2, 4, 3), (2, 2, 4), (4, 2, 2), (3, 3, 3)], ids=str)
def test_gradients_of_thin_maps_in_bf16(size):
    torch.manual_seed(0)
    block, x = ResBlock(3, 24, 24), torch.randn(2, 24, *size).contiguous(memory_format=torch.channels_last_3d)
    upstream = torch.randn(x.shape)
    exact = torch.autograd.grad(block(x), list(block.parameters()), upstream)
    for _ in range(10):
        for n in (500, 1000, 5000, 12_000, 20_000, 80_000, 300_000):  # what is not written shall be NaN
            torch.full((n,), math.nan)
        with torch.autocast("cpu", torch.bfloat16):
            out = block(x)
        for found, expected in zip(torch.autograd.grad(out, list(block.parameters()), upstream.to(out.dtype)), exact):
            assert relative(found, expected) < 15 * 2**-8


SHORT_UNETR = pytest.param(partial(small_unetr, dec_channels=(4, 5, 6)), marks=pytest.mark.slow)  # half a minute


@pytest.mark.parametrize("build", [slow(small_vit), SHORT_UNETR], ids=["vit", "unetr"])
def test_one_graph_when_compiled(build):
    model = build(views=("lax_4c",))
    images = frames(model.config)
    upstream = torch.randn(outputs(model, images).shape)
    expected, grads = outputs(model, images), gradients(model, images, upstream)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, again = outputs(compiled, images), gradients(compiled, images, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in again.items():
        torch.testing.assert_close(grad, grads[name.removeprefix("_orig_mod.")], rtol=1e-3, atol=1e-5 * scale)


def test_drop_path_keeps_the_expectation_and_is_off_in_eval():
    torch.manual_seed(0)
    encoder = Encoder(16, 1, 2, drop_path=0.3)
    torch.nn.init.zeros_(encoder.cls_token)
    x = torch.randn(1, 4, 16)
    block = encoder.blocks[0]
    block.eval()
    attended = block(x)
    torch.testing.assert_close(block(x), attended, rtol=0, atol=0)
    torch.nn.init.zeros_(block.mlp.fc2.weight)  # leaves the attention's branch alone, which is linear in its chance
    block.mlp.fc2.bias.data.zero_()
    attended = block(x) - x
    block.train()
    branch = block(x.expand(20000, -1, -1)) - x
    kept = branch.abs().amax((1, 2)) > 0
    torch.testing.assert_close(branch[kept], (attended / 0.7).expand(int(kept.sum()), -1, -1), rtol=1e-4, atol=1e-5)
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=4 * (0.21 / 20000) ** 0.5)
    torch.manual_seed(1)
    first = block(x.expand(64, -1, -1))
    torch.manual_seed(1)
    torch.testing.assert_close(block(x.expand(64, -1, -1)), first, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"drop_path must be a probability from 0 to below 1, got 1\.0"):
        Encoder(16, 1, 2, drop_path=1.0)


def test_drop_path_is_drawn_alike_when_a_block_is_recomputed():
    x, found = torch.randn(32, 4, 16), []
    for how in ("none", "full"):
        torch.manual_seed(0)
        block = Encoder(16, 1, 2, drop_path=0.5).blocks[0]
        block.recompute = how
        given = x.clone().requires_grad_()
        torch.manual_seed(1)
        block(given).square().sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found)


def test_dropout_and_drop_path_of_the_models_are_off_in_eval():
    images = frames(small_unetr().config)
    plain = small_unetr().eval()(images)
    model = small_unetr(dropout=0.5, drop_path=0.5)
    torch.manual_seed(3)
    first, second = model(images), model(images)
    torch.manual_seed(3)
    again, off = model(images), model.eval()(images)
    for view, expected in plain.items():
        assert not torch.allclose(first[view], second[view])
        torch.testing.assert_close(first[view], again[view], rtol=0, atol=0)
        torch.testing.assert_close(off[view], expected, rtol=0, atol=0)


def test_layers_for_a_decaying_learning_rate():
    depth = len(small_unetr().encoder.blocks)
    for model in (small_vit(), small_unetr()):
        layers = {name: layer_of(name, depth) for name, _ in model.named_parameters()}
        assert set(layers.values()) == {0, 1, 2, depth + 1}
        for name, layer in layers.items():
            part = name.split(".")[0]
            if part in ("enc_down_dict", "enc_fusion_dict"):
                assert layer == 0, name
            if part.startswith(("dec", "pred")):
                assert layer == depth + 1, name
    names = ("encoder.cls_token", "encoder.blocks.0.norm1.bias", "encoder.blocks.1.mlp.fc1.weight", "encoder.norm.bias")
    assert [layer_of(name, 2) for name in names] == [0, 1, 2, 3]
