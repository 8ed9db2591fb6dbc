"""A training step is queued without waiting for the device: on a GPU PyTorch itself would raise.

Without one, every operator of the step is looked at: none may need a value, or the size of its result, on the host.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from conftest import has_gpu
from small_models import make_images, small_model
from torch.utils._python_dispatch import TorchDispatchMode

import cinema_fast as cf
from cinema_fast.kernels import use

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


@pytest.mark.parametrize("norm_target", [False, True], ids=["plain", "norm"])
def test_a_step_never_waits_for_the_device(backend, device, norm_target):
    model = small_model(enc_embed_dim=16, dec_embed_dim=24, norm_target=norm_target).to(device)  # head dims of 8
    images = {view: image.to(device) for view, image in make_images(model.config).items()}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    ids = torch.arange(2, device=device)

    def train():
        optimizer.zero_grad()
        how = {"batch": 2, "keep": 3, "seed": 0, "step": step, "sample_ids": ids, "decode": 2}
        plan = {v: cf.sample_mask(n=model.config.n_tokens(v), stream=i, **how) for i, v in enumerate(images)}
        loss = model(images, plan).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step.add_(1)
        return loss.detach()

    with use(backend):
        first = float(train())  # on a GPU: compiles what is launched
        with no_wait():
            second = train()
    assert math.isfinite(float(second)) and float(second) != first
