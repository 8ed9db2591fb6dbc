"""Augmentation against scipy, PyTorch's own resampling, and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.kernels.augment_images.torch_form import beyond, min_max, zoom_images, zoom_matrix

ZOOMS = (0.9, 0.95, 1.0, 1.03, 1.1)


def whole(images: torch.Tensor) -> torch.Tensor:
    """The extent of images without padding."""
    return torch.tensor(images.shape[1:]).expand(len(images), -1)


@pytest.mark.parametrize("zoom", ZOOMS)
def test_trilinear_equals_scipy(zoom):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (20, 17, 6)).astype(np.float32)
    centre = (np.array(image.shape) - 1) / 2
    expected = ndimage.affine_transform(
        image.astype(np.float64), np.eye(3) / zoom, offset=centre - centre / zoom, order=1, mode="grid-constant"
    )
    found = zoom_images(torch.from_numpy(image)[None], torch.tensor([zoom]), whole(torch.from_numpy(image)[None]))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=255 * 2e-6)


@pytest.mark.parametrize("zoom", ZOOMS)
def test_bicubic_equals_grid_sample(zoom):
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(1)) * 255
    centre = 23 / 2
    at = (centre + (torch.arange(24, dtype=torch.float64) - centre) / zoom) / centre - 1
    x, y = torch.meshgrid(at, at, indexing="ij")
    expected = F.grid_sample(
        image[None].double(), torch.stack([y, x], -1)[None], mode="bicubic", padding_mode="zeros", align_corners=True
    )[0]
    found = zoom_images(image, torch.tensor([zoom], dtype=torch.float64), whole(image))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=255 * 2e-6)


def test_a_linear_ramp_stays_a_ramp():
    """Trilinear interpolation (unlike bicubic with -0.75) keeps a ramp: value c + (i - c) / zoom."""
    n, zoom = 31, 1.08
    at = 15 + (torch.arange(n, dtype=torch.float64) - 15) / zoom
    image = torch.arange(n, dtype=torch.float32).view(1, n, 1, 1).expand(1, n, 5, 4).contiguous()
    found = zoom_images(image, torch.tensor([zoom]), whole(image))
    torch.testing.assert_close(found[0, :, 2, 2].double(), at, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    deep=st.booleans(),
    seed=st.integers(0, 99),
)
def test_zoom_one_is_the_identity_to_the_bit(size, pad, deep, seed):
    size, pad = size + (3,) * deep, pad + (1,) * deep
    frames = torch.zeros(2, *(s + p for s, p in zip(size, pad)), dtype=torch.uint8)
    inner = torch.randint(0, 256, (2, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    frames[(slice(None), *(slice(s) for s in size))] = inner
    extent = torch.tensor(size).expand(2, -1)
    assert torch.equal(zoom_images(frames.float(), torch.ones(2), extent), frames.float())
    assert torch.equal(model_input(frames, extent, Augmentation(zoom=torch.ones(2))), model_input(frames, extent))


@pytest.mark.parametrize("zoom", [0.9, 1.1])
@pytest.mark.parametrize("size", [(12, 10), (12, 10, 5)])
def test_padding_changes_nothing_and_stays_zero(size, zoom):
    """An image in a batch padded to a larger size comes out as it does alone, with zeros after its end."""
    image = torch.randint(1, 256, (1, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    room = torch.zeros(1, *(s + 3 for s in size), dtype=torch.uint8)
    inside = (slice(None), *(slice(s) for s in size))
    room[inside] = image
    drawn = Augmentation(zoom=torch.tensor([zoom]))
    alone = model_input(image, torch.tensor([size]), drawn)[0]
    padded = model_input(room, torch.tensor([size]), drawn)[0]
    torch.testing.assert_close(padded[inside], alone, rtol=0, atol=1e-6)
    padded[inside] = 0
    assert not padded.any()


def test_shrinking_leaves_a_zero_border():
    image = torch.full((1, 40, 40), 100.0)
    found = zoom_images(image, torch.tensor([0.5]), whole(image))[0]
    assert not found[:8].any() and not found[:, -8:].any()
    assert torch.equal(found[12:28, 12:28], torch.full((16, 16), 100.0))


def test_min_max_of_each_image():
    frames = torch.tensor([[[10, 20], [30, 50]], [[7, 7], [7, 7]], [[0, 255], [1, 2]]], dtype=torch.uint8)
    found = model_input(frames, whole(frames))
    assert found.shape == (3, 1, 2, 2) and found.dtype == torch.float32
    torch.testing.assert_close(found[0, 0], torch.tensor([[0, 0.25], [0.5, 1]]))
    assert not found[1].any()  # a constant image has no contrast to scale
    assert found[2].min() == 0 and found[2].max() == 1


def test_min_max_ignores_padding():
    images = torch.zeros(1, 4, 4)
    images[0, :3, :2] = torch.tensor([[50.0, 60], [70, 80], [90, 100]])
    found = min_max(images, beyond(torch.tensor([[3, 2]]), (4, 4)))
    torch.testing.assert_close(found[0, :3, :2], torch.tensor([[0, 0.2], [0.4, 0.6], [0.8, 1.0]]))
    assert not found[0, 3:].any() and not found[0, :, 2:].any()


def test_weights_sum_to_one_inside():
    for cubic in (False, True):
        weight = zoom_matrix(torch.tensor([1.07]), torch.tensor([16]), 20, cubic=cubic)[0]
        torch.testing.assert_close(weight[3:13].sum(1), torch.ones(10), rtol=0, atol=1e-6)
        assert not weight[16:].any() and not weight[:, 16:].any()


def test_samples_do_not_mix():
    frames = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    zoom = torch.tensor([0.92, 1.0, 1.09])
    together = model_input(frames, whole(frames), Augmentation(zoom=zoom))
    for i in range(3):
        alone = model_input(frames[i : i + 1], whole(frames[:1]), Augmentation(zoom=zoom[i : i + 1]))
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-6)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"augment_images: extent must be int64 \(2, 2\) for frames \(2, 4, 4\)"):
        model_input(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.ones(2, 3, dtype=torch.int64))
