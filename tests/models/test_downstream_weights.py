"""Weights into ConvViT and ConvUNetR: what is taken of a pre-trained model, what is named, what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from downstream_models import frames, small_unetr, small_vit
from safetensors.torch import save_file
from small_models import make_images, small_model

import cinema_fast as cf
from cinema_fast.models.weights import load_starting_weights


def same(a, b):
    return sorted(a) == sorted(b) and all(torch.equal(a[k], b[k]) for k in a)


def by_part(model, *parts):
    return {k: t for k, t in model.state_dict().items() if k.partition(".")[0] in parts}


@pytest.mark.parametrize("build", [small_vit, small_unetr])
def test_fine_tuned_weights_round_trip(build, tmp_path):
    source, target = build(0), build(1)
    save_file({k: t.contiguous() for k, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    for given in (source.state_dict(), tmp_path / "w.safetensors"):
        target = build(1)
        said = cf.load_cinema_weights(target, given)
        assert same(source.state_dict(), target.state_dict())
        assert f"all {len(source.state_dict())} tensors" in said


def test_features_of_a_pretrained_model_come_over():
    pretrained, model = small_model(0), small_vit(1)
    before = by_part(copy.deepcopy(model), "pred_head_dict")
    said = cf.load_cinema_weights(model, pretrained.state_dict())
    images = make_images(model.config)
    expected, found = pretrained.encode(images), model.encode(images)
    assert expected.keys() == found.keys()
    for name, feature in expected.items():
        torch.testing.assert_close(found[name], feature, rtol=0, atol=0)
    assert same(before, by_part(model, "pred_head_dict"))
    assert "enc_down_dict, enc_fusion_dict, encoder, views sax, lax_2c, lax_4c" in said
    assert said.endswith("from random weights: pred_head_dict; not used from the file: dec_embed_dict, dec_linear, "
                         "decoder, pred_head_dict")  # fmt: skip


def test_a_first_convolution_is_repeated_over_frames():
    pretrained, model = small_model(0), small_vit(1, n_frames=3)
    said = cf.load_cinema_weights(model, pretrained.state_dict())
    assert "first convolutions repeated 3 times" in said
    images = frames(model.config, n_frames=3)
    for view in model.config.views:  # linear: the convolution of three frames is that of their sum, biases apart
        theirs = pretrained.enc_down_dict[view].conv_blocks[0].patch_embed.conv
        ours = model.enc_down_dict[view].conv_blocks[0].patch_embed.conv
        total = images[view].unflatten(1, (3, -1)).sum(1)
        torch.testing.assert_close(ours(images[view]), theirs(total), rtol=1e-4, atol=1e-5)


def test_a_unetr_takes_stems_and_encoder_and_keeps_its_own_tables():
    pretrained, model = small_model(0), small_unetr(1)
    own = copy.deepcopy(model)
    said = cf.load_cinema_weights(model, pretrained.state_dict())
    # images of 32 where there were 24
    assert "position embeddings recomputed (another image size): sax, lax_4c" in said
    assert "enc_fusion_dict" in said.partition("not used from the file: ")[2]
    theirs = pretrained.state_dict()
    for name, tensor in model.state_dict().items():
        table = name.endswith("pos_embed")
        taken = name.partition(".")[0] in ("enc_down_dict", "encoder") and not table
        assert torch.equal(tensor, theirs[name] if taken else own.state_dict()[name]), name


def test_views_that_only_the_checkpoint_has_are_left():
    pretrained, model = small_model(0), small_vit(1, views=("lax_2c",))
    said = cf.load_cinema_weights(model, pretrained.state_dict())
    assert "views lax_2c;" in said
    assert all("sax" not in name for name in model.state_dict())


def test_a_view_under_another_name_starts_from_that_of_its_plane():
    """lge_sax from sax, a stack without a plane too, in a network of its own stem."""
    pretrained = small_model(0)
    for view, like in (("lge_sax", "sax"), ("scar", "sax"), ("t1_lax_4c", "lax_4c")):
        model = small_vit(1, views=(like,))
        own = cf.ConvViT(renamed(model.config, like, view), 5, 1)
        said, absent = load_starting_weights(own, pretrained.state_dict())
        cf.load_cinema_weights(model, pretrained.state_dict())
        assert f"{view} starts from {like}, which the weights have in its place" in said and not absent
        for name, tensor in model.state_dict().items():
            if name.startswith(("enc_", "encoder.")):
                assert torch.equal(own.state_dict()[name.replace(f".{like}.", f".{view}.")], tensor), name


def renamed(config, like, view):
    """The configuration with one view under another name."""
    by_view = {name: {view: getattr(config, name)[like]} for name in
               ("image_size", "in_chans", "patch_size", "scale_factor")}  # fmt: skip
    return replace(config, views=(view,), **by_view)


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), torch.nn.DataParallel])
def test_wrapped_models_too(wrap):
    model, plain = small_vit(1), small_vit(1)
    wrapped = wrap(model)
    cf.load_cinema_weights(wrapped, small_model(0).state_dict())
    cf.load_cinema_weights(plain, small_model(0).state_dict())
    assert same(model.state_dict(), plain.state_dict())


def test_what_does_not_fit_is_listed_and_nothing_loaded(tmp_path):
    model = small_vit(1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"have no view 'sax', which the model needs \(views: lax_2c, lax_4c\)"):
        cf.load_cinema_weights(model, small_model(views=("lax_2c", "lax_4c")).state_dict())
    with pytest.raises(ValueError, match=r"encoder\.cls_token: expected \(1, 1, 16\), got \(1, 1, 32\)"):
        cf.load_cinema_weights(model, small_model(enc_embed_dim=32).state_dict())
    with pytest.raises(ValueError, match=r"pred_head_dict\.cls\.weight: expected \(5, 16\), got \(2, 16\)"):
        cf.load_cinema_weights(model, small_vit(out_dim=2).state_dict())
    with pytest.raises(ValueError, match=r"missing pred_head_dict\.cls\.bias") as error:
        cf.load_cinema_weights(model, small_unetr().state_dict())
    assert "unexpected decoder_dict.sax" in str(error.value)
    state = small_model(0).state_dict()
    del state["encoder.norm.weight"], state["enc_down_dict.sax.linear.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors in .*w\.safetensors do not fit this model:") as error:
        cf.load_cinema_weights(model, tmp_path / "w.safetensors")
    assert "missing encoder.norm.weight (16,)" in str(error.value)
    assert "missing enc_down_dict.sax.linear.bias (16,)" in str(error.value)
    with pytest.raises(ValueError, match=r"patch_embed\.conv\.weight: expected \(4, 3, 2, 2\), got \(4, 2, 2, 2\)"):
        odd = small_model(0, in_chans={"sax": 1, "lax_2c": 2, "lax_4c": 2}).state_dict()
        cf.load_cinema_weights(small_vit(1, views=("lax_2c",), n_frames=3), odd)
    assert same(before, model.state_dict())


def test_fine_tuned_weights_do_not_go_into_a_model_that_pretrains():
    with pytest.raises(ValueError, match=r"missing dec_linear\.weight"):
        cf.load_cinema_weights(small_model(), small_vit().state_dict())


def test_training_starts_from_another_task():
    """What a fine-tuned model does not share with the new one is fresh; frames are averaged back to one."""
    source, model = small_vit(0, n_frames=4), small_unetr(1)
    own = copy.deepcopy(model.state_dict())
    said, absent = load_starting_weights(model, {**source.state_dict(), "log_variance": torch.zeros(3)})
    for part in ("first convolutions averaged over 4 frames", "from random weights: dec_", "not used from the file: "):
        assert part in said
    assert absent == ()
    for name, tensor in model.state_dict().items():
        theirs = source.state_dict().get(name)
        if name.endswith("conv_blocks.0.patch_embed.conv.weight"):
            torch.testing.assert_close(tensor, theirs.unflatten(1, (4, -1)).mean(1))
        elif name.partition(".")[0] in ("enc_down_dict", "encoder") and not name.endswith("pos_embed"):
            assert torch.equal(tensor, theirs), name
        else:
            assert torch.equal(tensor, own[name]), name


def test_integers_are_refused_before_frames_are_averaged():
    state = small_vit(0, n_frames=4).state_dict()
    first = next(name for name in state if name.endswith("conv_blocks.0.patch_embed.conv.weight"))
    with pytest.raises(ValueError, match=rf"1 tensors do not fit .*\n  {first}: expected float.*, got torch\.int8$"):
        load_starting_weights(small_unetr(1), state | {first: state[first].to(torch.int8)})


def test_a_unetr_has_no_fusion_to_start_from():
    source, model = small_unetr(0), small_vit(1)
    fusion = by_part(copy.deepcopy(model), "enc_fusion_dict")
    said, absent = load_starting_weights(model, source.state_dict())
    assert absent == ("enc_fusion_dict",) and "from random weights: enc_fusion_dict, pred_head_dict" in said
    assert same(fusion, by_part(model, "enc_fusion_dict"))
    assert torch.equal(model.encoder.cls_token, source.encoder.cls_token)


@pytest.mark.parametrize(("have", "want"), [(1, 3), (3, 1), (2, 3), (4, 6)])
def test_starting_from_other_numbers_of_frames_and_targets(have, want):
    """Repeated and averaged weights see a heart that stands still as those they are made of do, but for the scale."""
    source, model = small_vit(0, n_frames=have, out_dim=2), small_vit(1, n_frames=want, out_dim=5)
    load_starting_weights(model, source.state_dict())
    for view in model.config.views:
        theirs, ours = (m.enc_down_dict[view].conv_blocks[0].patch_embed.conv.weight for m in (source, model))
        mean = theirs.unflatten(1, (have, -1)).mean(1)
        torch.testing.assert_close(ours, mean.repeat(1, want, *[1] * (ours.ndim - 2)))


def test_the_same_task_starts_whole():
    source, model = small_vit(0), small_vit(1)
    said, _ = load_starting_weights(model, {**source.state_dict(), "log_variance": torch.zeros(3)})
    assert said.endswith(f"all {len(source.state_dict())} tensors; not used from the file: log_variance")
    assert same(source.state_dict(), model.state_dict())
