"""Small models and batches for the training step, and a check that a step never waits for the device."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from machine import has_gpu
from torch.utils._python_dispatch import TorchDispatchMode

import cinema_fast as cf
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.data.loading.batch import Batch
from cinema_fast.data.loading.sampler import Draw
from cinema_fast.train.optimizer import update

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


def clipped(clip: float):
    """The update of a step: AdamW, with the norm of all gradients clipped."""
    return lambda optimizer, trained, loss, step: update(optimizer, trained, loss, clip=clip)
