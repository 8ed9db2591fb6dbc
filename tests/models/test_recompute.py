"""Activations that backward computes again: the same gradients to the bit, from less that is kept."""

import pytest
import torch
from small_models import make_images, make_plan, small_model
from torch.autograd.graph import saved_tensors_hooks

from cinema_fast.models.layers import Block


def gradients(how: str, precision: torch.dtype) -> tuple[dict, int]:
    """Gradients of a model, and the bytes that were kept for them, parameters left out."""
    model = small_model(enc_depth=3)
    model.recompute(how)
    images = make_images(model.config)
    plan, kept = make_plan(model.config, images), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss = model(images, plan).loss
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_gradients_are_the_same(precision):
    expected, whole = gradients("none", precision)
    sizes = [whole]
    for how in ("selective", "full"):
        found, size = gradients(how, precision)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        sizes.append(size)
    assert sizes[0] > sizes[1] > sizes[2]


def test_what_a_block_keeps_is_what_is_reported():
    """Of 10 values a token and channel the hidden layer's 4 are left out; or all but the input's 1."""
    width, tokens = 32, 50
    counts = {}
    for how in ("none", "selective", "full"):
        block, kept = Block(width, 2), {}
        block.recompute = how
        x = torch.randn(2, tokens, width, requires_grad=True)
        own = {p.untyped_storage().data_ptr() for p in block.parameters()}

        def pack(tensor, kept=kept, own=own):
            if tensor.untyped_storage().data_ptr() not in own and tensor.numel() > 2 * tokens * 4:  # rows, not sums
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x)
        counts[how] = sum(kept.values()) / (2 * tokens * width)
    assert counts["none"] - counts["selective"] == pytest.approx(4) and counts["full"] <= 1
