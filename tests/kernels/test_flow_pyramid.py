"""The constants of the flow against what defines them: least squares, blur and interpolation written out."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from cinema_fast.kernels.optical_flow.pyramid import (
    axis_taps,
    border_weight,
    expansion_filters,
    half_filters,
    pyramid,
    repeated_edge,
    used_frames,
)


@pytest.mark.parametrize(("poly_n", "poly_sigma"), [(5, 1.1), (7, 1.5), (5, 0.4), (7, 10.0)], ids=str)
def test_filters_are_the_weighted_least_squares_fit(poly_n, poly_sigma):
    """1, x, y, x^2, y^2, xy fitted to noise in one window, by numpy and by products of the filters."""
    k = np.arange(-poly_n, poly_n + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(k, k, indexing="ij"))
    root = np.exp(-(x**2 + y**2) / (4 * poly_sigma**2))  # of the weight
    image = np.random.default_rng(0).uniform(0, 255, (len(k), len(k)))
    basis = np.stack([np.ones_like(x), x, y, x**2, y**2, x * y], -1)
    _, bx, by, axx, ayy, axy = np.linalg.lstsq(basis * root[:, None], image.ravel() * root, rcond=None)[0]
    g, d, q = expansion_filters(poly_n, poly_sigma).numpy()
    fitted = [d @ image @ g, g @ image @ d, q @ image @ g, g @ image @ q, d @ image @ d]
    np.testing.assert_allclose(fitted, [bx, by, axx, ayy, axy], rtol=1e-7, atol=1e-9)


def test_half_filters_are_one_side_of_the_whole_ones():
    whole, half = expansion_filters(5, 1.1), half_filters(5, 1.1)
    assert half.shape == (3, 8) and half.dtype == torch.float32 and half[:, 6:].count_nonzero() == 0
    signs = torch.tensor([1, -1, 1]).view(3, 1)
    torch.testing.assert_close(torch.cat([half[:, 1:6].flip(1) * signs, half[:, :6]], 1), whole.float())


def resample(values, n_out, blur):
    """One value at a time: reflected blur at each pixel, then interpolation with clamped ends."""
    n, radius = len(values), len(blur) // 2

    def reflected(i):
        while n > 1 and not 0 <= i < n:
            i = -i if i < 0 else 2 * (n - 1) - i
        return values[i if n > 1 else 0]

    blurred = [sum(w * reflected(i + k - radius) for k, w in enumerate(blur)) for i in range(n)]
    out = []
    for i in range(n_out):
        position = min(max((i + 0.5) * n / n_out - 0.5, 0), n - 1)
        low = math.floor(position)
        high, part = min(low + 1, n - 1), position - low
        out.append((1 - part) * blurred[low] + part * blurred[high])
    return out


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (2, 1), (7, 7), (40, 20), (37, 26), (20, 40), (33, 47), (5, 2)])
@pytest.mark.parametrize("radius", [0, 1, 4, 9], ids=lambda r: f"blur {2 * r + 1}")
def test_taps_are_blur_and_interpolation(n_in, n_out, radius):
    blur = torch.softmax(-0.1 * torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2, 0).tolist()
    values = torch.rand(n_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = axis_taps(n_in, n_out, blur)
    expected = torch.tensor(resample(values.tolist(), n_out, blur), dtype=torch.float64)
    torch.testing.assert_close((taps.weight * values[taps.index.long()]).sum(0), expected)
    torch.testing.assert_close(taps.matrix(n_in) @ values, expected)
    if n_in == n_out:
        assert len(taps.index) == len(blur)  # nothing is interpolated


@pytest.mark.parametrize(
    ("size", "levels", "scale", "sizes"),
    [
        ((192, 192), 3, 0.5, [(48, 48), (96, 96), (192, 192)]),  # 24 would be under 32
        ((192, 192), 1, 0.5, [(96, 96), (192, 192)]),
        ((256, 300), 5, 0.5, [(32, 38), (64, 75), (128, 150), (256, 300)]),
        ((100, 80), 2, 0.7, [(49, 39), (70, 56), (100, 80)]),
        ((31, 500), 4, 0.5, [(31, 500)]),
        ((1, 1), 3, 0.9, [(1, 1)]),
    ],
    ids=str,
)
def test_levels(size, levels, scale, sizes):
    got = pyramid(size, levels, scale)
    assert [level.size for level in got] == sizes
    assert [level.flow is None for level in got] == [True] + [False] * (len(sizes) - 1)
    for coarse, fine in pairwise(got):
        along_x, along_y = fine.flow
        torch.testing.assert_close(along_x.weight.sum(0), torch.full((fine.size[0],), 1 / scale, dtype=torch.float64))
        torch.testing.assert_close(along_y.weight.sum(0), torch.ones(fine.size[1], dtype=torch.float64))
        assert along_x.index.max() < coarse.size[0] and along_y.index.max() < coarse.size[1]


def test_border_weights_of_a_long_and_a_short_axis():
    edge = [0.14, 0.14, 0.4472, 0.4472, 0.4472]
    torch.testing.assert_close(border_weight(12), torch.tensor([*edge, 1, 1, *edge[::-1]], dtype=torch.float64))
    expected = [0.14 * 0.4472, 0.14 * 0.14, 0.4472 * 0.14]
    torch.testing.assert_close(border_weight(3), torch.tensor(expected, dtype=torch.float64))


def test_a_repeated_edge():
    box = repeated_edge(torch.ones(5, dtype=torch.float64), 3)
    assert box.tolist() == [[3, 1, 1], [2, 1, 2], [1, 1, 3]]


def test_used_frames():
    assert used_frames([4, 1, 1, 1, 7, 4]) == ([1, 4, 7], [1, 0, 0, 0, 2, 1])
