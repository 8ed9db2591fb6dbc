"""Gamma and noise against closed forms and statistics; noise as a pure function of key and pixel."""

import numpy as np
import pytest
import torch
from scipy import stats

from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.augmentation import Augmentation
from cinema_fast.kernels.augment_images.gaussian_noise import gaussian_noise
from cinema_fast.kernels.philox import philox_numpy

N = 192 * 192 * 16


def ramp(n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """n images of 16 x 16 with every grey value once, in room for two pixels more, and their extent."""
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(n, -1, -1)
    return torch.nn.functional.pad(frames, (0, 2, 0, 2)), torch.tensor([[16, 16]] * n)


def noise_of(frames, extent, key: int, sd: float, clip: bool = False, **more) -> torch.Tensor:
    n = len(frames)
    augment = Augmentation(noise=torch.full((n,), sd), noise_key=torch.arange(n) + key, **more)
    return model_input(frames, extent, augment, clip=clip)


def test_gamma_is_a_power_of_the_scaled_image():
    frames, extent = ramp(3)
    gamma = torch.tensor([0.5, 1.0, 1.5])
    found = model_input(frames, extent, Augmentation(gamma=gamma))
    expected = (torch.arange(256, dtype=torch.float64) / 255).view(16, 16) ** gamma.double().view(3, 1, 1, 1)
    torch.testing.assert_close(found[:, :, :16, :16].double(), expected, rtol=0, atol=3e-7)
    assert not found[:, 0, 0, 0].any() and (found[:, 0, 15, 15] == 1).all()  # black and white to the bit
    assert torch.equal(found[1], model_input(frames, extent)[1])
    found[:, :, :16, :16] = 0
    assert not found.any()


def test_a_clip_has_one_gamma():
    clips = torch.tensor([100, 200], dtype=torch.uint8).view(1, 2, 1, 1).repeat(1, 1, 4, 4)
    clips[0, 0, 0, 0] = 0
    found = model_input(clips, torch.tensor([[2, 4, 4]]), Augmentation(gamma=torch.tensor([2.0])), clip=True)
    torch.testing.assert_close(found[0, 0, :, 1, 1], torch.tensor([0.25, 1.0]))


def test_noise_is_standard_normal():
    noise = gaussian_noise(torch.tensor([2**62 + 12345, -3]), N).double().numpy()
    assert noise.shape == (2, N)
    for row in noise:
        assert abs(row.mean()) < 4 / np.sqrt(N) and abs(row.std() - 1) < 4 / np.sqrt(2 * N)
        assert stats.kstest(row, "norm").pvalue > 1e-3
        assert 4 < np.abs(row).max() < 5
        spatial = row.reshape(192, 192, 16)
        for axis in range(3):  # neighbours are independent
            near = np.corrcoef(np.delete(spatial, 0, axis).ravel(), np.delete(spatial, -1, axis).ravel())[0, 1]
            assert abs(near) < 4 / np.sqrt(N)
        eighths = row.reshape(8, -1)  # so are the eight values of one call
        assert np.abs(np.corrcoef(eighths) - np.eye(8)).max() < 4.5 / np.sqrt(N / 8)
    assert abs(np.corrcoef(noise)[0, 1]) < 4 / np.sqrt(N)


def test_noise_is_that_of_its_words_in_double_precision():
    key, n = 0x0123_4567_89AB_CDEF, 1003
    words = philox_numpy(key, np.arange(-(-n // 8)))
    radius = np.sqrt(-2 * np.log(((words >> 16) + 0.5) / 2**16))
    angle = 2 * np.pi * (words & 0xFFFF) / 2**16
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).ravel()[:n]
    found = gaussian_noise(torch.tensor([key]), n)[0]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_noise_depends_on_its_key_alone(n):
    keys = torch.tensor([5, -6, 7])
    together = gaussian_noise(keys, n)
    assert together.shape == (3, n)
    assert all(torch.equal(together[i : i + 1], gaussian_noise(keys[i : i + 1], n)) for i in range(3))
    assert len(set(together[:, 0].tolist())) == 3


def test_images_get_noise_of_their_standard_deviation_within_their_extent_and_range():
    frames = torch.full((2, 64, 64), 128, dtype=torch.uint8)
    frames[:, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    frames[:, :, 60:] = 0
    extent = torch.tensor([[64, 60], [64, 60]])
    clean = model_input(frames, extent)
    found = noise_of(frames, extent, 1, 0.05)
    assert torch.equal(found, noise_of(frames, extent, 1, 0.05)) and not found[..., 60:].any()
    assert found.min() >= 0 and found.max() <= 1
    added = (found - clean)[:, 0, 1:, :60].flatten(1)
    assert (added.std(1) / 0.05 - 1).abs().max() < 4 / np.sqrt(2 * added.shape[1])
    assert not torch.equal(added[0], added[1])


def test_noise_is_clamped_and_comes_after_gamma():
    frames, extent = ramp()
    dark, bright = (noise_of(frames, extent, 9, 0.3, gamma=torch.tensor([g]))[0, 0, :16, :16] for g in (3.0, 1.0))
    noise = 0.3 * gaussian_noise(torch.tensor([9]), 18 * 18).view(18, 18)[:16, :16]
    scaled = (torch.arange(256) / 255).view(16, 16)
    torch.testing.assert_close(bright, (scaled + noise).clamp(0, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(dark, (scaled**3 + noise).clamp(0, 1), rtol=0, atol=1e-6)
    assert (bright == 0).any() and (bright == 1).any()


def test_noise_differs_from_frame_to_frame_of_a_clip():
    clips = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    clips[..., ::2] = 128
    clips[0, :, 0, 0] = 255
    found = noise_of(clips, torch.tensor([[3, 40, 40]]), 4, 0.1, clip=True)[0, 0, :, :, ::2].flatten(1)
    off = np.corrcoef(found[:, 1:].numpy()) - np.eye(3)
    assert np.abs(off).max() < 4 / np.sqrt(found.shape[1])
