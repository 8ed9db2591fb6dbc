"""The training step of a run, `make_train_step`, never waits for the device: on a GPU PyTorch itself would raise.

Without one, every operator of the step is looked at: none may need a value, or the size of its result, on the host.
"""

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import has_gpu
from small_models import small_model
from torch.utils._python_dispatch import TorchDispatchMode

import cinema_fast as cf
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.data.loading.batch import Batch
from cinema_fast.data.loading.sampler import Draw
from cinema_fast.kernels import use
from cinema_fast.methods.guidance import Guidance
from cinema_fast.methods.masking import MaskedLoss
from cinema_fast.methods.pretrain_config import MaskConfig
from cinema_fast.train.method import Place
from cinema_fast.train.optimizer import adamw, groups_of
from cinema_fast.train.step import make_train_step

aten = torch.ops.aten
WAITING = {  # reads a value; makes a tensor from Python numbers, to be copied over; has a result of unknown size
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.lift_fresh, aten.nonzero, aten.masked_select,
    aten.unique_dim, aten._unique2, aten.unique_consecutive, aten.repeat_interleave, aten.bincount,
}  # fmt: skip


class NoWait(TorchDispatchMode):
    """Raises where an operator of the block would make the host wait for a GPU."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        by_mask = operator.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        assert operator.overloadpacket not in WAITING and not by_mask, f"{operator} waits for the device"
        return operator(*args, **(kwargs or {}))


@contextmanager
def no_wait():
    if not has_gpu():
        with NoWait():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wait",
    [lambda x: float(x[0]), lambda x: x[x > 0], torch.nonzero, lambda x: torch.unravel_index(x.long(), (2, 3))],
    ids=["value", "boolean index", "nonzero", "numbers from Python"],
)
@pytest.mark.skipif(has_gpu(), reason="about the stand-in for a GPU's own check")
def test_the_stand_in_finds_waits(wait):
    with pytest.raises(AssertionError, match="waits"), no_wait():
        wait(torch.ones(3))


def pinned(batch: Batch) -> Batch:
    frames, extent = ({v: x.pin_memory() for v, x in part.items()} for part in (batch.frames, batch.extent))
    augment = {view: drawn.map(torch.Tensor.pin_memory) for view, drawn in batch.augment.items()}
    return replace(batch, frames=frames, extent=extent, augment=augment, slot=batch.slot.pin_memory())


def micro_batches(config: cf.CineMAConfig, changes: Augmentation, pin: bool) -> list[Batch]:
    """Two of one study each: random frames that end a pixel before the model's images do, as they are loaded."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for micro in range(2):
        frames, extent, augment = {}, {}, {}
        for view, size in config.image_size.items():
            frames[view] = torch.randint(0, 256, (1, *size), dtype=torch.uint8, generator=generator)
            extent[view] = torch.tensor([[n - 1 for n in size]])
            augment[view] = changes
        slot = torch.tensor([micro])
        draw = Draw(0, ("a",), config.views, *[np.zeros(1)] * 2, {}, slot.numpy(), np.zeros(1, np.int64))
        batch = Batch(draw, frames, extent, augment, slot)
        batches.append(pinned(batch) if pin else batch)
    return batches


CINEMA = {
    "views": ("sax", "lax_4c"), "image_size": {"sax": (8, 16, 2), "lax_4c": (16, 16)},
    "in_chans": {"sax": 1, "lax_4c": 1},
}  # fmt: skip
CLIPS = {
    "views": ("clip",), "image_size": {"clip": (4, 16, 16)}, "in_chans": {"clip": 1}, "patch_size": {"clip": (2, 8, 8)},
    "scale_factor": {"clip": (1, 1, 1)}, "enc_conv_chans": (), "enc_conv_n_blocks": 0,
}  # fmt: skip


ZOOM = Augmentation(zoom=torch.tensor([1.07]))
FLIP = ZOOM._replace(flip=torch.tensor([[True, False]]))
FULL = FLIP._replace(
    angle=torch.tensor([0.3], dtype=torch.float64), shift=torch.tensor([[1.5, -2.0]]), gamma=torch.tensor([1.3]),
    noise=torch.tensor([0.05]), noise_key=torch.tensor([12345]),
)  # fmt: skip


@pytest.mark.parametrize("changes", [ZOOM, FLIP, FULL], ids=["zoom", "flip", "full"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [CINEMA, CINEMA | {"norm_target": True}, CLIPS], ids=["plain", "norm", "clips"])
def test_a_step_never_waits_for_the_device(backend, device, shape, precision, changes):
    widths = {"enc_embed_dim": 16, "enc_depth": 1, "dec_embed_dim": 24, "dec_depth": 1}  # head dims of 8
    model = small_model(**shape, **widths).to(device)
    train_step = make_train_step(
        MaskedLoss(
            model.config, Place(torch.device(device), precision), mask_ratio=0.6, decode_ratio=0.5, seed=0
        ),
        model, adamw(groups_of(model, weight_decay=0.05), lr=1e-3), device=torch.device(device), clip=1e-3,
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
