"""Images whose motion is known in closed form, and what compares one flow with another."""

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from machine import ROOT
from torch import Tensor

from cinema_fast.kernels import launches
from cinema_fast.kernels.optical_flow.operation import reasons
from cinema_fast.kernels.optical_flow.params import DEFAULT, FlowParams

CSRC = ROOT / "csrc"
# Float32 against float64 [pixels], worst and mean: three times the worst that the suite shows in any form with windows
# of 15 pixels and more (1.1e-5 and 8e-7: a pixel's flow is a quotient of sums, each off by some 1e-6 of itself). Where
# a window holds little, the equations are nearly singular and spread rounding: windows of 9 pixels in a texture of
# waves up to 24 long show 1.5e-4 in one place. On a heart plain PyTorch in float32 is itself off by up to 4e-3.
WORST, WORST_OF_SMALL_WINDOWS, MEAN = 3e-5, 4.5e-4, 2e-6
WAYS = ["torch", "native"]
if torch.cuda.is_available():
    WAYS.append(pytest.param("cuda", marks=pytest.mark.gpu))


def device_of(way: str) -> str:
    return "cuda" if way == "cuda" else "cpu"


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN inside."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextmanager
def really_runs(way: str, operation: str) -> Iterator[None]:
    """Skips where the backend cannot run; uninitialised memory is NaN, and a compiled form must have been launched."""
    if why := reasons(torch.empty(0, device=device_of(way))).get(way, list)():
        pytest.skip("; ".join(why))
    before = launches().get(operation, 0)
    with poisoned():
        yield
    assert (launches().get(operation, 0) > before) == (way != "torch")


def texture(points: Tensor, seed: int = 0) -> Tensor:
    """Grey values, mean 127, deviation 35, at points (2, ...) in pixels: waves of 8 to 24 pixels in all directions."""
    generator = torch.Generator().manual_seed(seed)
    n = 24
    length, angle, phase = torch.rand(3, n, generator=generator, dtype=torch.float64)
    length, angle, phase = 8 * 3**length, (torch.arange(n) + angle) * math.pi / n, phase * 2 * math.pi
    wave = 2 * math.pi / length * torch.stack([angle.cos(), angle.sin()])  # (2, n)
    values = torch.einsum("cn,c...->n...", wave, points)
    return 127 + 50 / n**0.5 * torch.sin(values + phase.view(n, *[1] * (points.ndim - 1))).sum(0)


def grid(size: tuple[int, int]) -> Tensor:
    """(2, X, Y) coordinates of the pixels."""
    axes = (torch.arange(n, dtype=torch.float64) for n in size)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def moving(size: tuple[int, int], matrix: Tensor, shift: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two frames (2, X, Y) and the flow (2, X, Y): what is at p goes to centre + matrix (p - centre) + shift."""
    centre = (torch.tensor(size, dtype=torch.float64).view(2, 1, 1) - 1) / 2
    points, shift = grid(size) - centre, shift.view(2, 1, 1)
    before = torch.einsum("ij,jxy->ixy", matrix.inverse(), points - shift)
    flow = torch.einsum("ij,jxy->ixy", matrix, points) + shift - points
    return torch.stack([texture(points, seed), texture(before, seed)]), flow


def textured(batch: int, frames: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """(B, T, X, Y[, Z]) float64 in 0..255: a texture per sample and slice that drifts by a pixel or so a frame."""
    slices = size[2] if len(size) == 3 else 1
    shift = torch.tensor([1.2, -0.7], dtype=torch.float64).view(2, 1, 1)
    rows = [
        [texture(grid(size[:2]) - t * (1 + 0.2 * s) * shift, seed + 100 * b + s) for s in range(slices)]
        for b in range(batch)
        for t in range(frames)
    ]
    images = torch.stack([torch.stack(row, -1) for row in rows]).view(batch, frames, *size[:2], slices)
    return images if len(size) == 3 else images[..., 0]


def assert_same_flow(actual: Tensor, expected: Tensor, worst: float = WORST, mean: float = MEAN) -> None:
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    if expected.numel():
        error = (actual.double().cpu() - expected.double()).abs()
        assert float(error.max()) <= worst and float(error.mean()) <= mean, (float(error.max()), float(error.mean()))


def arguments(how: dict) -> dict:
    """Arguments of `optical_flow` or `motion_map`, parameters of the flow among them by their own names."""
    params = {name: value for name, value in how.items() if name in FlowParams._fields}
    return {name: value for name, value in how.items() if name not in params} | {"params": FlowParams(**params)}


def worst_of(how: dict) -> float:
    """Bound of the largest error for parameters that differ from the defaults."""
    return WORST_OF_SMALL_WINDOWS if how.get("window", DEFAULT.window) < DEFAULT.window else WORST


def compile_with(*command: str) -> str:
    """What a compiler says; fails the test where the compiler does."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
