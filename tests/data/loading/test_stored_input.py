"""8-bit images with offset and scale are what the model would be given in float."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_plan, small_model
from step_cases import CINEMA, CLIPS, FULL, micro_batches
from tolerances import assert_close

from cinema_fast.data.loading.augment import model_input, stored_input
from cinema_fast.data.loading.augmentation import AS_STORED
from cinema_fast.data.loading.batch import batch_input

AXES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=2, max_size=3)


@settings(deadline=None)
@given(axes=AXES, low=st.integers(0, 255), spread=st.integers(0, 255), seed=st.integers(0, 99))
def test_scaled_pixels_are_the_images(axes, low, spread, seed):
    """Of any brightness, constant ones too; the padding is 0."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.zeros(2, *(n + room for n, room in axes), dtype=torch.uint8)
    inside = (slice(None), *(slice(n) for n, _ in axes))
    high = min(low + spread, 255)
    frames[inside] = torch.randint(low, high + 1, frames[inside].shape, dtype=torch.uint8, generator=generator)
    extent = torch.tensor([[n for n, _ in axes]] * 2)
    images, intensity = stored_input(frames, extent)
    assert images.dtype == torch.uint8
    offset, scale = intensity.view(2, 2, *[1] * (images.ndim - 1)).unbind(1)
    torch.testing.assert_close((images - offset) * scale, model_input(frames, extent), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [CINEMA, CLIPS, CINEMA | {"norm_target": True}], ids=["frames", "clips", "norm"])
def test_the_model_takes_them_alike(shape):
    """Loss and gradients of 8-bit images are those of float ones, where nothing else is done to the images.

    The model is float64, so that only the images' own rounding to float32 differs.
    """
    model = small_model(**shape).double()
    (batch, _) = micro_batches(model.config, FULL, pin=False)
    batch = replace(batch, augment={view: AS_STORED for view in batch.frames})
    found = []
    for as_stored, dtype in ((True, torch.uint8), (False, torch.float32)):
        images, intensity = batch_input(batch, as_stored=as_stored)
        assert {x.dtype for x in images.values()} == {dtype} and (intensity is not None) == as_stored
        if as_stored:
            intensity = {view: values.double() for view, values in intensity.items()}
        else:
            images = {view: image.double() for view, image in images.items()}
        model.zero_grad()
        loss = model(images, make_plan(model.config, images), intensity).loss
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (loss, grads), (expected, wanted) = found
    assert_close(loss, expected, torch.float32)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, grad in grads.items():
        assert_close(grad, wanted[name], torch.float32, floor=1e-2 * scale, name=name)


def test_what_is_changed_is_float():
    model = small_model(**CINEMA)
    (batch, _) = micro_batches(model.config, FULL, pin=False)
    images, intensity = batch_input(batch)
    assert intensity is None and {x.dtype for x in images.values()} == {torch.float32}
