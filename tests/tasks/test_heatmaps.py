"""Landmarks as heatmaps, and found again in them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.tasks.heatmaps import gaussian_maps, peaks
from cinema_fast.tasks.landmarks import Landmarks, sigma_of


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(32, 32), (64, 48), (256, 256)]), st.floats(0, 1), st.floats(0, 1))
def test_a_point_is_found_again(size, x, y):
    """To a fiftieth of a pixel where the window lies in the image, which is what its cut at 3 sigma leaves."""
    sigma = sigma_of(torch.empty(1, 1, *size))
    margin = math.ceil(3 * sigma) + 1
    at = [margin + part * (n - 1 - 2 * margin) for part, n in zip((x, y), size)]
    point = torch.tensor([[at]], dtype=torch.float64)
    maps = gaussian_maps(point, size, sigma)
    assert maps.dtype == torch.float32 and maps.shape == (1, 1, *size)
    assert (peaks(maps, sigma) - point).abs().max() < 0.02


def test_maps_are_gaussians():
    point = torch.tensor([[[3.25, 6.5], [float("nan"), 1.0]]], dtype=torch.float64)
    maps = gaussian_maps(point, (10, 12), 1.5)
    for i, j in ((3, 6), (0, 0), (9, 11)):
        assert maps[0, 0, i, j] == pytest.approx(np.exp(-((i - 3.25) ** 2 + (j - 6.5) ** 2) / 4.5), rel=1e-6)
    assert not maps[0, 1].any()  # unknown


def test_the_highest_peak_counts_and_what_is_far_does_not():
    near = gaussian_maps(torch.tensor([[[20.0, 11.0]]], dtype=torch.float64), (64, 64), 1.0)
    far = gaussian_maps(torch.tensor([[[50.0, 40.0]]], dtype=torch.float64), (64, 64), 1.0)
    assert (peaks(near + 0.9 * far, 1.0)[0, 0] - torch.tensor([20.0, 11.0])).abs().max() < 1e-6


def test_at_the_edge_and_in_flat_maps():
    corner = gaussian_maps(torch.tensor([[[0.0, 31.0]]], dtype=torch.float64), (32, 32), 1.0)
    assert (peaks(corner, 1.0)[0, 0] - torch.tensor([0.0, 31.0])).abs().max() < 1.0
    assert peaks(torch.zeros(1, 1, 8, 8), 1.0).isfinite().all()


def test_the_width_is_four_pixels_of_256_and_at_least_one():
    assert [sigma_of(torch.empty(1, 1, n, n)) for n in (256, 128, 64, 32)] == [4.0, 2.0, 1.0, 1.0]


def test_the_distance_that_chooses_weights_is_in_mm_of_each_study(monkeypatch):
    """Of pixels of 1.5 x 2 mm and of 1 x 1 mm; an unknown landmark counts in neither."""
    task = Landmarks(("apex", "base"), "coordinates", ("lax_2c",), {"lax_2c": ("apex", "base")}, "0")
    known = torch.tensor([[[10.0, 20.0], [5.0, 5.0]], [[8.0, 8.0], [torch.nan, torch.nan]]])
    found = {"lax_2c": torch.tensor([[[14.0, 20.0], [5.0, 8.0]], [[11.0, 12.0], [0.0, 0.0]]])}
    target = {"points lax_2c": known, "spacing lax_2c": torch.tensor([[1.5, 2.0], [1.0, 1.0]])}
    monkeypatch.setattr(Landmarks, "predict", lambda self, model, images: found)
    judged = task.validate(None, [SimpleNamespace(target=target, images=dict)])
    assert judged["val_distance_mm"] == pytest.approx((4 * 1.5 + 3 * 2 + 5) / 3) == -judged["score"]
