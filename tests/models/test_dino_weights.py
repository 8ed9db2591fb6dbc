"""Weights of DINO from every kind of source: what is taken, changed, left and refused."""

import argparse
import copy
import os
import pickle

import numpy as np
import pytest
import torch
from dino_cases import make_crops, small_dino, small_vit
from small_models import small_model
from tolerances import assert_close

import cinema_fast as cf
from cinema_fast.models.dino_weights import load_dino_start


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def public_checkpoint(model: cf.DINO, **changes) -> dict:
    """All that the public code's training script saves: the student inside a wrapper for several devices."""
    return {
        "student": prefixed(model.public_state("student"), "module."),
        "teacher": model.public_state("teacher"),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.999)}]},
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_small", lr=0.0005, warmup=[1, 2]),
        "dino_loss": {"center": torch.full((1, model.config.prototypes), 0.25)},
        "fp16_scaler": None,
    } | changes


def sources(model: cf.DINO, folder) -> dict:
    """{name: (source with the teacher's backbone, what the report says)}"""
    from safetensors.torch import save_file

    backbone, teacher = dict(model.teacher.backbone.state_dict()), model.public_state("teacher")
    save_file(backbone, folder / "plain.safetensors")
    torch.save(prefixed(teacher, "module."), folder / "wrapped.pth")
    torch.save(public_checkpoint(model), folder / "whole.pth")
    save_file(cf.cinema_state_dict(model), folder / "run.safetensors")
    whole = "the teacher's backbone; not used: head, student, centre, args, epoch, fp16_scaler, optimizer"
    return {
        "plain": (folder / "plain.safetensors", "the backbone"),
        "of a mapping": (backbone, "weights of the mapping given: all"),
        "with its head": (str(folder / "wrapped.pth"), "the backbone; not used: head"),
        "whole": (folder / "whole.pth", whole),
        "a mapping with all": (public_checkpoint(model), whole),
        "run": (folder / "run.safetensors", "the teacher's backbone; not used: head, student, centre"),
        "half precision": ({name: t.half() for name, t in backbone.items()}, "the backbone"),
    }


def test_every_kind_of_source(tmp_path):
    model = small_dino()
    expected = model.teacher.backbone.state_dict()
    for kind, (source, said) in sources(model, tmp_path).items():
        vit = small_vit(1)
        report = cf.load_dino_weights(vit, source)
        state = {name: t.half().float() for name, t in expected.items()} if "half" in kind else expected
        assert same(vit.state_dict(), state), kind
        assert said in report and "all 30 tensors" in report, report
        assert isinstance(source, dict) or str(source) in report


def test_a_wrapped_model_is_loaded_too():
    vit = small_vit(1)
    cf.load_dino_weights(torch.nn.DataParallel(vit), small_vit().state_dict())
    assert same(vit.state_dict(), small_vit().state_dict())


def test_three_channels_are_summed_into_one():
    of_colours, vit = small_vit(in_chans=3), small_vit(1)
    report = cf.load_dino_weights(vit, of_colours.state_dict())
    assert "; patch embedding summed over its 3 channels" in report
    image = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert_close(vit(image)["cls"], of_colours.double()(image.double().expand(-1, 3, -1, -1))["cls"])


@pytest.mark.parametrize(("given", "own"), [(1, 3), (2, 1), (3, 2)])
def test_other_numbers_of_channels_do_not_fit(given, own):
    message = rf"patch_embed\.proj\.weight: expected \(32, {own}, 4, 4\), got \(32, {given}, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        cf.load_dino_weights(small_vit(in_chans=own), small_vit(in_chans=given).state_dict())


@pytest.mark.parametrize("size", [24, 8])
def test_positions_of_another_grid_are_interpolated_as_the_model_does(size):
    other, vit = small_vit(image_size=size), small_vit(1)
    report = cf.load_dino_weights(vit, other.state_dict())
    assert f"; positions interpolated from {size // 4} x {size // 4} to 4 x 4" in report
    image = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert_close(vit(image)["patches"], other.double()(image.double())["patches"])


def test_every_misfit_is_listed_and_nothing_loaded():
    vit = small_vit()
    before, state = copy.deepcopy(vit.state_dict()), prefixed(small_vit(1).state_dict(), "backbone.")
    del state["backbone.cls_token"]
    state |= {
        "more": torch.zeros(2), "backbone.norm.bias": torch.zeros(3), "backbone.norm.weight": torch.ones(32).int(),
        "backbone.pos_embed": torch.zeros(1, 12, 32), "head.mlp.0.bias": torch.zeros(1),
    }  # fmt: skip
    for name in ("backbone.norm.weight", None):  # integers are refused by themselves, before any arithmetic
        with pytest.raises(ValueError) as error:
            cf.load_dino_weights(vit, state)
        if name:
            assert str(error.value).endswith("norm.weight: expected floating-point numbers, got torch.int32")
            state[name] = torch.ones(32)
    lines = str(error.value).splitlines()
    assert lines[0] == "4 tensors do not fit this model:"
    assert {line.strip() for line in lines[1:]} == {
        "missing cls_token (1, 1, 32)", "unexpected more (2,)", "norm.bias: expected (32,), got (3,)",
        "pos_embed: expected (1, 17, 32), got (1, 12, 32)",
    }  # fmt: skip
    assert same(vit.state_dict(), before)


@pytest.mark.parametrize("spoil", [lambda t: t * torch.nan, lambda t: t.double() + 1e300], ids=["NaN", "too large"])
@pytest.mark.parametrize("name", ["norm.bias", "patch_embed.proj.weight", "pos_embed"])
def test_numbers_that_are_not_finite(name, spoil):
    vit, other = small_vit(), small_vit(1, in_chans=3, image_size=24)
    before, state = copy.deepcopy(vit.state_dict()), dict(other.state_dict())
    state[name] = spoil(state[name])
    with pytest.raises(ValueError, match=f"1 of 30 tensors hold numbers that are not finite, {name} among them"):
        cf.load_dino_weights(vit, state)
    assert same(vit.state_dict(), before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: small_model().state_dict(), r"the weights are of CineMA or HeartMAE \(.*encoder.*\); expected .* ViT"),
        (lambda: {"layer1.weight": torch.zeros(1)}, r"the weights are of another model \(layer1\)"),
        (dict, r"the weights are of another model \(\)"),
        (lambda: {"student": {}, "epoch": 3}, "holds no state dict"),
        (lambda: {"teacher": {"a": 3}}, "the mapping given, teacher holds no state dict"),
        (
            lambda: {"norm.bias": torch.zeros(32), "module.norm.bias": torch.zeros(32)},
            "holds tensors of one name twice",
        ),
        (
            lambda: {"norm.bias": torch.zeros(32), "backbone.norm.bias": torch.zeros(32)},
            "holds tensors of one name twice",
        ),
    ],
    ids=["CineMA", "ResNet", "empty", "no teacher", "no tensors", "twice", "twice, of a backbone"],
)
def test_other_contents_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        cf.load_dino_weights(small_vit(), source())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, trace = tmp_path / "whole.pth", tmp_path / "ran"
    for args in (Malicious(trace), argparse.Namespace(output=Malicious(trace))):
        torch.save(public_checkpoint(small_dino(), args=args), path)
        with pytest.raises(ValueError, match=rf"{path} cannot be read as weights: it holds .*mkdir, and only tensors"):
            cf.load_dino_weights(small_vit(), path)
        assert not trace.exists()
    torch.save(public_checkpoint(small_dino()), path)
    cf.load_dino_weights(small_vit(), path)
    with pytest.raises(pickle.UnpicklingError):  # what was let through for this file is forgotten
        torch.load(path, weights_only=True)


def test_weights_and_models_of_the_wrong_kind():
    with pytest.raises(ValueError, match=r"load_dino_weights: expected a ViT, got DINO; .* cf\.ViT"):
        cf.load_dino_weights(small_dino(), small_dino().state_dict())
    for state in (small_vit().state_dict(), small_dino().state_dict()):
        with pytest.raises(ValueError, match=r"^the weights are of a ViT by DINO, not of CineMA: .*load_dino_weights"):
            cf.load_cinema_weights(small_model(), state)
    wide = cf.ViT(cf.ViTConfig(in_chans=1, embed_dim=64, depth=3, n_heads=2, patch_size=4, image_size=16))
    with pytest.raises(ValueError, match=r"of a ViT of width 64 and 3 blocks, not width 32 and 2 blocks, do not fit"):
        cf.load_dino_weights(small_vit(), wide.state_dict())


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*: there is no such file"):
        cf.load_dino_weights(small_vit(), tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*: it is a folder; give a file"):
        cf.load_dino_weights(small_vit(), tmp_path)
    path = tmp_path / "w.pth"
    torch.save(public_checkpoint(small_dino()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"w\.pth cannot be read as weights: not a torch file, or damaged"):
        cf.load_dino_weights(small_vit(), path)


def parts_of(model, *names):
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(names)}


def test_a_start_from_a_single_backbone(tmp_path):
    source, model = small_dino(), small_dino(1)
    before = copy.deepcopy(model.state_dict())
    torch.save(source.public_state("teacher"), tmp_path / "w.pth")
    report = load_dino_start(model, tmp_path / "w.pth")
    assert "student and teacher start from its backbone, heads from random weights; not used: head" in report
    for branch in (model.student, model.teacher):
        assert same(branch.backbone.state_dict(), source.teacher.backbone.state_dict())
    kept = ("student.head", "teacher.head", "centre")
    assert same(parts_of(model, *kept), {name: before[name] for name in parts_of(model, *kept)})


@pytest.mark.parametrize("public", [True, False], ids=["public", "run"])
def test_a_start_from_student_and_teacher(public):
    source, model = small_dino(), small_dino(1)
    source.centre.fill_(0.25)
    report = load_dino_start(model, public_checkpoint(source) if public else cf.cinema_state_dict(source), "FILE")
    assert report.startswith("weights of FILE: student and teacher with their heads, and the centre")
    assert same(model.state_dict(), source.state_dict())
    crops = make_crops(source.config)
    assert torch.equal(model(crops, 0.04).loss, source(crops, 0.04).loss)


def test_a_start_with_other_heads(tmp_path):
    source, model = small_dino(vit={"in_chans": 3, "image_size": 24}, prototypes=30), small_dino(1)
    before = copy.deepcopy(model.state_dict())
    report = load_dino_start(model, public_checkpoint(source))
    misfit = "student.head.last_layer.weight_g: expected (24, 1), got (30, 1)"
    assert f"heads from random weights, as those in the file do not fit ({misfit})" in report
    assert "summed over its 3 channels; positions interpolated from 6 x 6 to 4 x 4; not used: " in report
    assert report.endswith("heads, centre")
    kept = ("student.head", "teacher.head", "centre")
    assert same(parts_of(model, *kept), {name: before[name] for name in parts_of(model, *kept)})
    assert not torch.equal(model.student.backbone.cls_token, model.teacher.backbone.cls_token)
    assert torch.equal(model.student.backbone.cls_token, source.student.backbone.cls_token)


@pytest.mark.parametrize(
    ("which", "name", "message"),
    [
        ("student", "module.backbone.norm.bias", r"\n  missing norm\.bias"),
        ("teacher", "backbone.norm.bias", r"\n  missing norm\.bias"),
    ],
)
def test_a_start_that_does_not_fit_loads_nothing(which, name, message):
    model, content = small_dino(1), public_checkpoint(small_dino())
    before = copy.deepcopy(model.state_dict())
    del content[which][name]
    with pytest.raises(ValueError, match=message):
        load_dino_start(model, content)
    with pytest.raises(ValueError, match="are of CineMA or HeartMAE"):
        load_dino_start(model, small_model().state_dict())
    content = public_checkpoint(small_dino(), dino_loss={"center": torch.full((1, 24), torch.nan)})
    with pytest.raises(ValueError, match="not finite, centre among them"):
        load_dino_start(model, content)
    assert same(model.state_dict(), before)
