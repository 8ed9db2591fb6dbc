"""Position tables against the formula element by element, and their interpolation against other interpolators."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close

from cinema_fast.models.position import resize_learned_table, resize_table, sincos_table

GRIDS = {"square": (4, 4), "wide": (3, 5), "one": (1, 1), "volume": (2, 3, 4), "cine": (2, 3, 1, 4)}


def table_by_loops(width, grid):
    """One sine or cosine at a time; positions run over (g1, g0, ...), the order of the published checkpoints."""
    half = width // (2 * len(grid))
    rows = []
    for second, first, *rest in itertools.product(range(grid[1]), range(grid[0]), *map(range, grid[2:])):
        row = []
        for coordinate in (first, second, *rest):
            angles = [coordinate / 10000 ** (i / half) for i in range(half)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row + [0.0] * (width - len(row)))
    return torch.tensor(rows, dtype=torch.float64).unsqueeze(0)


def linear_matrix(old, new):
    """(new, old) weights of linear interpolation, corners not aligned, clamped at the ends."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(old)), 0, None)


def random_table(width, grid):
    return torch.randn(1, math.prod(grid), width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("width", [16, 18, 3], ids=["divides", "padded", "narrower than two an axis"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_table_is_the_formula(grid, width):
    table = sincos_table(width, grid)
    assert table.dtype == torch.float32
    assert_close(table, table_by_loops(width, grid))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_every_token_has_its_own_row(grid):
    rows = sincos_table(24, grid)[0]
    assert len(rows.unique(dim=0)) == math.prod(grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_resize_to_the_same_grid_changes_nothing(grid):
    table = random_table(4, grid)
    assert torch.equal(resize_table(table, grid, grid), table)


@pytest.mark.parametrize("new_grid", [(6, 2), (3, 7), (1, 1)])
def test_resize_of_two_axes_is_bicubic(new_grid):
    table = random_table(5, (3, 5))
    image = table.transpose(1, 2).reshape(1, 5, 3, 5)
    expected = F.interpolate(image, new_grid, mode="bicubic", align_corners=False, antialias=False)
    assert_close(resize_table(table, (3, 5), new_grid), expected.reshape(1, 5, -1).transpose(1, 2))


@pytest.mark.parametrize(
    ("grid", "new_grid"),
    [((2, 3, 4), (4, 3, 2)), ((2, 3, 4), (5, 1, 7)), ((2, 3, 2, 4), (4, 2, 3, 9)), ((2, 3, 2, 4), (2, 3, 2, 3))],
)
def test_resize_of_more_axes_is_linear_along_each(grid, new_grid):
    table = random_table(5, grid)
    expected = table.numpy().reshape(*grid, 5)
    for axis, (old, new) in enumerate(zip(grid, new_grid)):
        expected = np.moveaxis(np.tensordot(linear_matrix(old, new), expected, (1, axis)), 0, axis)
    expected = torch.from_numpy(np.ascontiguousarray(expected)).reshape(1, -1, 5)
    assert_close(resize_table(table, grid, new_grid), expected)


@pytest.mark.parametrize(("grid", "new_grid"), [((3, 5), (7, 4)), ((2, 3, 4), (3, 3, 3)), ((2, 2, 2, 2), (3, 1, 4, 5))])
def test_a_constant_table_stays_constant(grid, new_grid):
    table = torch.full((1, math.prod(grid), 2), 1.25, dtype=torch.float64)
    resized = resize_table(table, grid, new_grid)
    assert_close(resized, torch.full((1, math.prod(new_grid), 2), 1.25, dtype=torch.float64))


def public_interpolation(table, side, grid):
    """As DINO's code does it, on the table viewed as an image."""
    image = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = tuple((new + 0.1) / side for new in grid)
    resized = F.interpolate(image, scale_factor=factors, mode="bicubic")
    assert resized.shape[2:] == grid
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("grid", [(3, 3), (7, 2), (5, 9), (1, 1)])
def test_a_learned_table_in_value_and_gradient(grid, dtype):
    table = random_table(6, (26,)).requires_grad_()
    upstream = torch.randn(1, 1 + math.prod(grid), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = public_interpolation(table, 5, grid)
    leaf = table.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # which it ignores
        found = resize_learned_table(leaf, 5, grid)
    assert_close(found, expected)
    (want,) = torch.autograd.grad(expected, table, upstream)
    (grad,) = torch.autograd.grad(found, leaf, upstream.to(dtype))
    assert_close(grad, want)


def test_a_learned_table_of_the_same_grid_is_the_table():
    table = random_table(6, (26,))
    assert resize_learned_table(table, 5, (5, 5)) is table
