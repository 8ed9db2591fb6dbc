"""What CineMA takes: raw intensities, dtypes, ranks, plain ViT embeddings; and how it refuses the rest."""

import math

import pytest
import torch
from small_models import double, make_images, make_plan, small_config, small_model
from tolerances import assert_close

import cinema_fast as cf


@pytest.fixture(scope="module")
def model():
    return small_model().requires_grad_(False)


def plain_config(n_axes, **changes):
    """A ViT masked autoencoder without a conv stem, of one view of `n_axes` axes."""
    size, patch = (8, 6, 4, 4)[:n_axes], (2, 3, 1, 2)[:n_axes]
    one = {"views": ("v",), "in_chans": {"v": 2}, "image_size": {"v": size}, "patch_size": {"v": patch}}
    return small_config(**one, scale_factor={"v": patch}, enc_conv_chans=(), **changes)


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.uint8], ids=str)
def test_intensity_equals_images_scaled_before(image_dtype):
    model = small_model().double()
    scaled = double(make_images(model.config))
    intensity = {v: torch.tensor([[7.0, 1 / 200], [0.0, 1 / 255]], dtype=torch.float64) for v in scaled}
    stored = {v: (x * 255).round().to(image_dtype) for v, x in scaled.items()}
    for view, x in stored.items():
        offset, scale = intensity[view].view(2, 2, *[1] * (x.ndim - 1)).unbind(1)
        scaled[view] = (x.double() - offset) * scale
    plan = make_plan(model.config, stored)
    before = {v: x.clone() for v, x in stored.items()}
    out, expected = model(stored, plan, intensity), model(scaled, plan)
    assert_close(out.loss, expected.loss, torch.float32)  # intensity is float32 by contract, on the way or at the end
    for view in stored:
        assert_close(out.pred[view], expected.pred[view], torch.float32)
    for key, value in model.encode(stored, intensity).items():
        assert_close(value, model.encode(scaled)[key], torch.float32)
    assert all(torch.equal(stored[v], before[v]) for v in stored)


@pytest.mark.parametrize("n_axes", [2, 3, 4])
def test_plain_vit_of_any_rank_trains_and_encodes(n_axes):
    torch.manual_seed(0)
    model = cf.CineMA(plain_config(n_axes))
    assert not any("conv" in name for name, _ in model.named_parameters())
    images = make_images(model.config)
    plan = make_plan(model.config, images, ratio=0.5)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        out = model(images, plan)
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    n = model.config.n_tokens("v")
    assert model.encode(images)["v"].shape == (2, n, 16)
    assert out.pred["v"].shape == (2, n - n // 2, math.prod((2, 3, 1, 2)[:n_axes]) * 2)


def test_plain_vit_tokens_are_a_linear_map_of_pixels():
    torch.manual_seed(0)
    model = cf.CineMA(plain_config(2)).double()
    images = double(make_images(model.config))
    stem = model.enc_down_dict["v"]
    kernel = stem.patch_embed.proj.weight.unflatten(1, (2, 3, 2)).movedim(-1, 1)
    dense = torch.nn.functional.conv2d(images["v"], kernel, stem.patch_embed.proj.bias, stride=(2, 3))
    tokens = stem.linear(dense.flatten(2).transpose(1, 2)) + stem.pos_embed
    encoded = model.encoder(tokens)
    assert_close(model.encode(images)["cls"], encoded[:, :1])
    assert_close(model.encode(images)["v"], model.enc_fusion_dict["v"].norm(encoded[:, 1:]))


def test_float64_and_float32_agree():
    single, exact = small_model(), small_model().double()
    images = make_images(single.config)
    plan = make_plan(single.config, images)
    out, expected = single(images, plan), exact(double(images), plan)
    assert out.loss.dtype == torch.float32 and expected.loss.dtype == torch.float64
    out.loss.backward()
    expected.loss.backward()
    assert_close(out.loss, expected.loss)
    for view in images:
        assert_close(out.pred[view], expected.pred[view])
    grads = cf.cinema_state_dict(exact, grad=True)
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in cf.cinema_state_dict(single, grad=True).items():
        assert_close(grad, grads[name], floor=1e-2 * scale, name=name)


def test_autocast_keeps_float32_parameters_and_a_close_loss():
    model, exact = small_model(), small_model().double()
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, plan)
    out.loss.backward()
    expected = exact(double(images), plan)
    expected.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(p.dtype == torch.bfloat16 for p in out.pred.values())
    assert_close(out.loss, expected.loss, torch.bfloat16)
    grads = cf.cinema_state_dict(model, grad=True)
    exact_grads = cf.cinema_state_dict(exact, grad=True)
    assert all(g.dtype == torch.float32 for g in grads.values())
    together, wanted = (torch.cat([g[k].flatten().double() for k in grads]) for g in (grads, exact_grads))
    assert float(torch.nn.functional.cosine_similarity(together, wanted, dim=0)) > 0.999


def test_same_bits_twice_and_nothing_is_written_to():
    model = small_model()
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    given = [*images.values(), *(t for p in plan.values() for t in p)]
    before = [t.clone() for t in given]
    runs = []
    for _ in range(2):
        model.zero_grad()
        loss = model(images, plan).loss
        loss.backward()
        runs.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    assert all(torch.equal(a, b) for a, b in zip(given, before))


def bad_calls():
    config = small_config()
    images = make_images(config)
    plan = make_plan(config, images)
    without = {v: p for v, p in plan.items() if v != "sax"}
    flat = torch.rand(2, 1, 16, 24)
    return {
        "unknown view": ({"lax_2d": images["lax_2c"]}, plan, r"no view 'lax_2d'.*did you mean 'lax_2c'\?"),
        "no image": ({}, {}, "no images given; expected one or more of sax"),
        "no plan of a view": (images, without, r"plan for \['lax_2c', 'lax_4c'\]"),
        "no image of a plan": ({"sax": images["sax"]}, plan, r"images of \['sax'\] but a plan for"),
        "rank": ({"sax": flat}, {"sax": plan["sax"]}, r"'sax' needs .*3 axes\), got \(2, 1, 16, 24\)"),
        "channels": ({**images, "lax_4c": torch.rand(2, 1, 24, 16)}, plan, r"'lax_4c' needs .*C = 2.*got \(2, 1"),
        "batch": ({**images, "lax_2c": images["lax_2c"][:1]}, plan, r"'lax_2c' needs \(B = 2.*got \(1,"),
        "size": ({**images, "lax_2c": torch.rand(2, 1, 16, 30)}, plan, r"'lax_2c': image size \(16, 30\) is not a"),
        "plan of another grid": (images, {**plan, "sax": plan["lax_2c"]}, r"plan of 'sax' .* \(2, 8\).*\(2, 18\)"),
        "plan of another batch": (
            images,
            {v: cf.TokenPlan(*(t[:1] for t in p)) for v, p in plan.items()},
            r"plan of 'sax' is for \(B, N\) = \(1, 18\)",
        ),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_names_the_view(model, name):
    images, plan, match = bad_calls()[name]
    with pytest.raises(ValueError, match=match):
        model(images, plan)
    if "plan" not in name:
        with pytest.raises(ValueError, match=match):
            model.encode(images)


@pytest.mark.parametrize(
    "change", [None, torch.ones(2), torch.ones(1, 2), torch.ones(2, 3)], ids=["missing", "(2,)", "(1, 2)", "(2, 3)"]
)
def test_bad_intensity_names_the_view(model, change):
    images = make_images(model.config)
    intensity = {v: torch.tensor([[0.0, 1.0]] * 2) for v in images}
    if change is None:
        del intensity["lax_2c"]
    else:
        intensity["lax_2c"] = change
    with pytest.raises(ValueError, match="lax_2c"):
        model(images, make_plan(model.config, images), intensity)
    with pytest.raises(ValueError, match="lax_2c"):
        model.encode(images, intensity)
