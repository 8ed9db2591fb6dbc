"""CineMA as a whole: what its outputs may depend on, and that its gradients are those of its loss."""

import pytest
import torch
import torch.nn.functional as F
from small_models import double, make_images, make_plan, masked_pixels, small_model
from tolerances import FINITE_DIFFERENCE, assert_close

from cinema_fast.kernels import TokenPlan
from cinema_fast.models.position import resize_table


@pytest.fixture(scope="module")
def model():
    return small_model().requires_grad_(False)


@pytest.fixture(scope="module")
def exact():
    return small_model().double().requires_grad_(False)


def patches_of(image, token):
    """(B, N, prod(token) * C): all patches of an image, one slice after another."""
    boxes = torch.cartesian_prod(*(torch.arange(0, s, t) for s, t in zip(image.shape[2:], token)))
    slices = [[slice(int(a), int(a) + t) for a, t in zip(box, token)] for box in boxes]
    return torch.stack([image[(slice(None), slice(None), *box)].movedim(1, -1).flatten(1) for box in slices], dim=1)


def loss_of(out, images, plan, config, norm=False):
    """The loss of predictions from dense patches, in float64."""
    losses = []
    for view, pred in out.pred.items():
        target = patches_of(images[view].double(), config.token_size(view))
        target = target.gather(1, plan[view].masked.long().unsqueeze(2).expand(pred.shape))
        if norm:
            target = (target - target.mean(2, keepdim=True)) / (target.std(2, keepdim=True) + 1e-6)
        losses.append(F.mse_loss(pred.double(), target))
    return torch.stack(losses).mean(), losses


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("decode_ratio", [1.0, 0.5])
def test_masked_pixels_change_no_prediction_by_one_bit(model, autocast, decode_ratio):
    config, images = model.config, make_images(model.config)
    plan = make_plan(config, images, decode_ratio)
    hidden = {v: masked_pixels(plan[v], config.grid(v), config.token_size(v)) for v in images}
    others = {v: torch.where(hidden[v], torch.rand_like(x), x) for v, x in images.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, other = model(images, plan), model(others, plan)
    assert all(torch.equal(out.pred[v], other.pred[v]) for v in images)
    assert all(out.metrics[f"{v}_loss"] != other.metrics[f"{v}_loss"] for v in images)
    # and every visible pixel of a view matters to every view
    seen = {**images, "sax": torch.where(hidden["sax"], images["sax"], images["sax"] + 0.1)}
    assert all(not torch.equal(model(seen, plan).pred[v], model(images, plan).pred[v]) for v in images)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm_target"])
def test_loss_is_the_mean_over_the_views(norm):
    model = small_model(norm_target=norm)
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    out = model(images, plan)
    loss, by_view = loss_of(out, images, plan, model.config, norm)
    assert_close(out.loss, loss)
    assert set(out.metrics) == {f"{v}_loss" for v in model.config.views}
    for view, want in zip(out.pred, by_view):
        assert_close(out.metrics[f"{view}_loss"], want)
    assert not any(x.requires_grad for x in out.metrics.values())
    values = {"sax": 8 * 8 * 1, "lax_2c": 8 * 8, "lax_4c": 8 * 8 * 2}
    assert all(pred.shape == (2, plan[v].masked.shape[1], values[v]) for v, pred in out.pred.items())


def test_decoder_is_put_together_as_published(exact):
    """From the stem, encoder, fusion and decoder, which have tests of their own, one token at a time."""
    config, images = exact.config, double(make_images(exact.config))
    plan = make_plan(config, images, decode_ratio=0.5)
    parts = {v: exact.enc_down_dict[v](images[v], plan[v], config.grid(v), None) for v in images}
    encoded = exact.encoder(torch.cat([tokens for _, tokens in parts.values()], dim=1))[:, 1:]
    expected = {v: [] for v in images}
    for b in range(2):
        first, keys, queries = 0, [], []
        for view, (skips, tokens) in parts.items():
            last = first + tokens.shape[1]
            fused = exact.enc_fusion_dict[view](skips, encoded[:, first:last])[b]
            embedding, first = exact.dec_embed_dict[view], last
            place = embedding.pos_embed[0]
            keys += [exact.dec_linear(x) + place[t] for x, t in zip(fused, plan[view].keep[b].tolist())]
            queries += [(view, embedding.mask_token[0, 0] + place[t]) for t in plan[view].masked[b].tolist()]
        for view, query in queries:  # alone: no query sees another
            decoded = exact.decoder(query.view(1, 1, -1), torch.stack(keys).unsqueeze(0))
            expected[view].append(exact.pred_head_dict[view](decoded[0, 0]))
    out = exact(images, plan)
    for view, rows in expected.items():
        assert_close(out.pred[view], torch.stack(rows).view(out.pred[view].shape), name=view)


@pytest.mark.parametrize("views", [("sax",), ("lax_4c",), ("lax_2c", "lax_4c"), ("lax_4c", "sax")], ids="+".join)
def test_any_subset_of_views_is_the_model_without_the_others(exact, views):
    some = {v: x for v, x in double(make_images(exact.config)).items() if v in views}
    images = {v: some[v] for v in views}  # the order of the caller's dict does not matter
    plan = make_plan(exact.config, images)
    ordered = tuple(v for v in exact.config.views if v in views)
    alone = small_model(1, views=ordered).double()
    alone.load_state_dict({k: t for k, t in exact.state_dict().items() if k in alone.state_dict()})
    out, expected = exact(images, plan), alone(some, plan)
    assert list(out.pred) == list(ordered)
    # float64 to the last bits: a library may multiply one matrix by another kernel where it lies otherwise in memory
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-13, atol=0)
    for view in views:
        torch.testing.assert_close(out.pred[view], expected.pred[view], rtol=1e-12, atol=1e-13)
    features, expected = exact.encode(images), alone.encode(some)
    assert list(features) == ["cls", *ordered]
    assert all(torch.equal(features[k], expected[k]) for k in features)


def test_other_image_sizes_use_interpolated_tables(exact):
    sizes = {"sax": (24, 16, 5), "lax_2c": (8, 40), "lax_4c": (24, 16)}
    images = double(make_images(exact.config, sizes=sizes))
    plan = make_plan(exact.config, images)
    resized = small_model(1, image_size=sizes).double()
    state = exact.state_dict()
    for name in (n for n in state if n.endswith("pos_embed")):
        view = name.split(".")[1]
        state[name] = resize_table(state[name], exact.config.grid(view), resized.config.grid(view))
    resized.load_state_dict(state)
    out, expected = exact(images, plan), resized(images, plan)
    assert_close(out.loss, expected.loss)
    for view in images:
        assert_close(out.pred[view], expected.pred[view])
    for key, value in exact.encode(images).items():
        assert_close(value, resized.encode(images)[key])


def test_part_of_the_masked_tokens_decodes_to_the_same_rows(exact):
    config, images = exact.config, double(make_images(exact.config))
    full = make_plan(config, images)
    whole = exact(images, full)
    total = dict.fromkeys(images, 0.0)
    for part in range(3):  # three parts of the masked tokens of each view, which together are all of them
        plan = {v: p._replace(masked=p.masked[:, part::3].contiguous()) for v, p in full.items()}
        out = exact(images, plan)
        for view in images:
            assert_close(out.pred[view], whole.pred[view][:, part::3])
            total[view] += out.metrics[f"{view}_loss"] * plan[view].masked.shape[1]
    # each token counts the same in its view's loss, so a uniform subset is an unbiased estimate of it
    for view in images:
        assert_close(total[view] / full[view].masked.shape[1], whole.metrics[f"{view}_loss"])


def test_samples_do_not_see_one_another(exact):
    images = double(make_images(exact.config, batch=3))
    plan = make_plan(exact.config, images)
    together = exact(images, plan)
    features = exact.encode(images)
    for b in range(3):
        image = {v: x[b : b + 1] for v, x in images.items()}
        alone = exact(image, {v: TokenPlan(*(t[b : b + 1] for t in p)) for v, p in plan.items()})
        for view in images:
            assert_close(alone.pred[view], together.pred[view][b : b + 1])
        for key, value in exact.encode(image).items():
            assert_close(value, features[key][b : b + 1])


def test_a_view_all_hidden_or_all_seen(exact):
    config, images = exact.config, double(make_images(exact.config))
    plan = make_plan(config, images)
    hidden = TokenPlan.from_mask(torch.ones(2, config.n_tokens("lax_2c"), dtype=torch.bool))
    seen = TokenPlan.everything(2, config.n_tokens("lax_4c"), torch.device("cpu"))
    mixed = {**plan, "lax_2c": hidden, "lax_4c": seen}
    out = exact(images, mixed)
    assert out.pred["lax_2c"].shape[1] == config.n_tokens("lax_2c") and out.pred["lax_4c"].shape == (2, 0, 128)
    assert set(out.metrics) == {"sax_loss", "lax_2c_loss"}
    some = {v: out.pred[v] for v in ("sax", "lax_2c")}
    assert_close(out.loss, loss_of(out._replace(pred=some), images, mixed, config)[0])
    # pixels of a hidden view reach no prediction
    black = exact({**images, "lax_2c": torch.zeros_like(images["lax_2c"])}, mixed)
    assert all(torch.equal(out.pred[v], black.pred[v]) for v in out.pred)
    trained = small_model()
    trained(make_images(config), mixed).loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in trained.parameters())


def test_plan_that_hides_or_shows_everything_is_refused(model):
    images = make_images(model.config)
    for value in (True, False):
        masks = {v: torch.full((2, model.config.n_tokens(v)), value) for v in images}
        with pytest.raises(ValueError, match="at least one token visible and decode at least one"):
            model(images, {v: TokenPlan.from_mask(m) for v, m in masks.items()})


def test_encode_is_the_masked_pass_with_nothing_masked(exact):
    config, images = exact.config, double(make_images(exact.config))
    features = exact.encode(images)
    assert features["cls"].shape == (2, 1, config.enc_embed_dim)
    assert all(features[v].shape == (2, config.n_tokens(v), config.enc_embed_dim) for v in images)
    moved = {v: x.clone() for v, x in images.items()}
    moved["sax"][..., 0] += 0.1  # every pixel counts, in every feature
    assert all(bool((features[k] != f).all(-1).all()) for k, f in exact.encode(moved).items())


def test_every_gradient_is_the_slope_of_the_loss():
    model = small_model(enc_depth=1, dec_depth=1, views=("sax", "lax_4c"), norm_target=True).double()
    images = double(make_images(model.config))
    plan = make_plan(model.config, images)
    model(images, plan).loss.backward()
    generator = torch.Generator().manual_seed(0)
    h = 1e-5
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        losses = []
        with torch.no_grad():
            for sign in (1, -2, 1):  # forth, back, and home again
                p += sign * h * direction
                losses.append(float(model(images, plan).loss))
        slope = (losses[0] - losses[1]) / (2 * h)
        assert abs(slope - float((p.grad * direction).sum())) < FINITE_DIFFERENCE, name


def test_a_few_steps_learn_one_sample():
    model = small_model()
    images = make_images(model.config, batch=1)
    plan = make_plan(model.config, images)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model(images, plan).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    # noise of uniform pixels has a variance of 1/12, the loss of the best constant
    assert losses[-1] < min(0.1 * losses[0], 1 / 12)
