"""The training step of a run, `make_train_step`, never waits for the device: on a GPU PyTorch itself would raise.

Without one, every operator of the step is looked at: none may need a value, or the size of its result, on the host.
"""

import math
from dataclasses import replace

import pytest
import torch
from machine import has_gpu
from marks import in_full
from small_models import small_model
from step_cases import CINEMA, CLIPS, FLIP, FULL, ZOOM, clipped, micro_batches, no_wait

from cinema_fast.data.loading.augment import model_input
from cinema_fast.kernels import use
from cinema_fast.methods.guidance import Guidance
from cinema_fast.methods.masking import MaskedLoss
from cinema_fast.methods.pretrain_config import MaskConfig
from cinema_fast.train.method import Place
from cinema_fast.train.optimizer import adamw, groups_of
from cinema_fast.train.step import make_train_step


@pytest.mark.parametrize(
    "wait",
    [lambda x: float(x[0]), lambda x: x[x > 0], torch.nonzero, lambda x: torch.unravel_index(x.long(), (2, 3))],
    ids=["value", "boolean index", "nonzero", "numbers from Python"],
)
@pytest.mark.skipif(has_gpu(), reason="about the stand-in for a GPU's own check")
def test_the_stand_in_finds_waits(wait):
    with pytest.raises(AssertionError, match="waits"), no_wait():
        wait(torch.ones(3))


@pytest.mark.parametrize("changes", in_full([FULL, FLIP, ZOOM]), ids=["full", "flip", "zoom"])
@pytest.mark.parametrize("precision", in_full([torch.float32, torch.bfloat16]), ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "shape", [CINEMA, *in_full([CLIPS, CINEMA | {"norm_target": True}])], ids=["plain", "clips", "norm"]
)
def test_a_step_never_waits_for_the_device(backend, device, shape, precision, changes):
    widths = {"enc_embed_dim": 16, "enc_depth": 1, "dec_embed_dim": 24, "dec_depth": 1}  # head dims of 8
    model = small_model(**shape, **widths).to(device)
    train_step = make_train_step(
        MaskedLoss(
            model.config, Place(torch.device(device), precision), mask_ratio=0.6, decode_ratio=0.5, seed=0
        ),
        model, adamw(groups_of(model, weight_decay=0.05), lr=1e-3), device=torch.device(device),
        update=clipped(1e-3),
    )  # fmt: skip
    batches = micro_batches(model.config, changes, pin=has_gpu())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    with use(backend):
        if has_gpu():
            train_step(batches, 0, 1e-3)  # compiles what is launched
        with no_wait():
            result = train_step(batches, 1, 2e-3)
    loss, norm, made = result.tolist()
    assert math.isfinite(loss) and norm > 1e-3 and made == 1  # clipped, and the update was made
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize(
    ("shape", "online"), [(CINEMA, False), (CLIPS, False), (CLIPS, True)], ids=["frames", "clips", "online"]
)
def test_guided_masks_wait_for_nothing(device, shape, online):
    config, on = small_model(**shape).config, torch.device(device)
    guidance = Guidance(MaskConfig(guidance="motion"), config, steps=1, online=online, device=on)
    (batch, _) = micro_batches(config, FULL, pin=False)
    maps = {view: x[:, 0] if view == "clip" else x for view, x in batch.frames.items()}
    batch = replace(batch, motion=maps).to(on)
    images = {v: model_input(x, batch.extent[v], batch.augment[v], clip=v == "clip") for v, x in batch.frames.items()}
    guidance.weights(batch, images, 0)  # uploads what stays: tables of the flow
    with no_wait():
        weights = guidance.weights(batch, images, 0)
    assert {view: x.shape for view, x in weights.items()} == {view: (1, config.n_tokens(view)) for view in images}
