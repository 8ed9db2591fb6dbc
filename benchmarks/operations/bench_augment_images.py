"""augment_images against its PyTorch form and against what else moves images: grid_sample, and scipy on a CPU.

The peers draw their noise by torch.randn or numpy, which is held to no oracle: they are without it where they are
compared. "full" is rotation, shift, flips, zoom, gamma and noise, "zoom" the published recipe.

    pytest benchmarks --benchmark-only -k augment_images
"""

import math
from functools import lru_cache

import numpy as np
import pytest
import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from cinema_fast.kernels import augment_images
from cinema_fast.kernels.augment_images import augment_images_bytes, native_form
from cinema_fast.kernels.augment_images.operation import PARAMETERS
from cinema_fast.kernels.augment_images.torch_form import augment_images_ref

try:
    from scipy import ndimage
except ImportError:  # on a machine with a GPU
    ndimage = None

GPU_SHAPES = {
    "sax-full-b64": (64, 192, 192, 16),
    "sax-zoom-b64": (64, 192, 192, 16),
    "lax-full-b64": (64, 256, 256),
    "lax-zoom-b64": (64, 256, 256),
    "clip-full-b64": (64, 16, 192, 192),
}
CPU_SHAPES = {name.replace("b64", "b4"): (4, *size[1:]) for name, size in GPU_SHAPES.items()}
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
EVERY_SHAPE = SHAPES | {timing.SMOKE_SHAPE: (2, 19, 17, 6)}
OURS = timing.OURS if timing.DEVICE == "cuda" or native_form.PROBLEM else "native"
PEERS = ("grid_sample",) if timing.DEVICE == "cuda" or ndimage is None else ("grid_sample", "scipy")
PASSES = ("fwd",)
CHECKED = (timing.SMOKE_SHAPE, "sax-full-b64")  # held to float64 on a GPU before anything is timed


def parameters(n: int, full: bool) -> dict[str, Tensor]:
    """Each image's own."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *more, generator=generator)

    how = {"zoom": uniform(0.9, 1.1)}
    if full:
        how |= {
            "angle": uniform(-0.35, 0.35).double(), "shift": uniform(-10, 10, 2), "flip": uniform(0, 1, 2) < 0.5,
            "gamma": uniform(0.5, 1.5), "noise": uniform(0.01, 0.1), "noise_key": torch.arange(n) * 2**55 + 3,
        }  # fmt: skip
    return {name: value.to(timing.DEVICE) for name, value in how.items()}


def smooth(size: tuple[int, ...]) -> Tensor:
    """(*size) uint8: as smooth as images are, so that a peer's float32 coordinates cost it little."""
    coarse = torch.rand(1, 1, *(max(n // 12, 2) for n in size[1:]), generator=torch.Generator().manual_seed(1))
    mode = {2: "bilinear", 3: "trilinear"}[len(size) - 1]
    image = F.interpolate(coarse, size=size[1:], mode=mode, align_corners=True)[0]
    return (255 * image).round().to(torch.uint8).expand(size).contiguous().to(timing.DEVICE)


def back(how: dict[str, Tensor], axes: int) -> tuple[Tensor, Tensor]:
    """(B, axes, axes) and (B, axes): an output pixel at p shows the input at c + M (p - c - shift)."""
    n, zoom = len(how["zoom"]), how["zoom"].double()
    angle = how.get("angle", torch.zeros_like(zoom))
    signs = 1 - 2 * how.get("flip", torch.zeros(n, 2, dtype=torch.bool, device=zoom.device)).double()
    matrix = torch.eye(axes, device=zoom.device, dtype=torch.float64).repeat(n, 1, 1) / zoom[:, None, None]
    matrix[:, 0, 0], matrix[:, 0, 1] = (f(angle) / zoom * signs[:, 0] for f in (torch.cos, torch.sin))
    matrix[:, 1, 0], matrix[:, 1, 1] = (f / zoom * signs[:, 1] for f in (-torch.sin(angle), torch.cos(angle)))
    shift = F.pad(how.get("shift", torch.zeros(n, 2, device=zoom.device)).double(), (0, axes - 2))
    return matrix, shift


def finish(images: Tensor, room: tuple[int, ...], how: dict[str, Tensor], noisy: bool) -> Tensor:
    """Min-max, gamma and noise, and padding up to the room, by PyTorch's operators."""
    axes, each = tuple(range(1, images.ndim)), (-1, *[1] * (images.ndim - 1))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    images = (images - low) / (high - low)
    if "gamma" in how:
        images = images ** how["gamma"].view(each)
        if noisy:
            images = (images + how["noise"].view(each) * torch.randn_like(images)).clamp(0, 1)
    return F.pad(images, [w for n, size in zip(reversed(room), reversed(images.shape)) for w in (0, n - size)][:-2])


def by_grid_sample(frames: Tensor, how: dict[str, Tensor], room: tuple[int, ...], clip: bool, noisy: bool) -> Tensor:
    """frames (B, *size) uint8 without padding."""
    axes = 2 if clip else frames.ndim - 1
    matrix, shift = back(how, axes)
    half = (torch.tensor(frames.shape[-axes:], device=frames.device, dtype=torch.float64) - 1) / 2
    scaled = matrix * half / half[:, None]
    theta = torch.cat([scaled, -(matrix @ shift[:, :, None]) / half[:, None]], 2)
    order = list(reversed(range(axes)))  # its coordinates begin at the last axis
    theta = theta[:, order][:, :, [*order, axes]].float()
    images = frames.float() if clip else frames[:, None].float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    mode = "bicubic" if axes == 2 and not clip and "angle" not in how else "bilinear"
    moved = F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=True)
    return finish(moved if clip else moved[:, 0], room, how, noisy)


def by_scipy(frames: Tensor, how: dict[str, Tensor], room: tuple[int, ...], clip: bool, noisy: bool) -> Tensor:
    """Linear for all: its cubic splines are other ones."""
    axes = 2 if clip else frames.ndim - 1
    matrix, shift = (x.numpy() for x in back(how, axes))
    centre = (np.array(frames.shape[-axes:]) - 1) / 2
    moved = np.empty(frames.shape, np.float32)
    for i, image in enumerate(frames.numpy()):
        offset = centre - matrix[i] @ (centre + shift[i])
        for source, target in zip(image, moved[i]) if clip else [(image, moved[i])]:
            ndimage.affine_transform(
                source, matrix[i], offset, order=1, mode="grid-constant", output=target, prefilter=False
            )
    return finish(torch.from_numpy(moved), room, how, noisy)


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """Images in which four slices or no pixels are padding."""
    room = EVERY_SHAPE[shape]
    clip, full = shape.startswith("clip"), "zoom" not in shape
    size = (*room[:3], max(room[3] - 4, 1)) if len(room) == 4 and not clip else room
    frames, how = smooth(size), parameters(room[0], full)
    padded = F.pad(frames, (0, room[-1] - size[-1]))
    extent = torch.tensor([size[1:]] * room[0], device=timing.DEVICE)
    ways = {
        name: lambda name=name: augment_images(padded, extent, **how, clip=clip, backend=name)
        for name in dict.fromkeys([OURS, "torch"])
    }
    peers = {"grid_sample": by_grid_sample, "scipy": by_scipy}
    known = [name for name in PEERS if name != "scipy" or full or len(room) == 4]
    ways |= {name: lambda name=name: peers[name](frames, how, room, clip, True) for name in known}

    def error(way: str) -> float:
        noiseless = {name: value for name, value in how.items() if not name.startswith("noise")}
        used = noiseless if way in peers else how
        two = dict.fromkeys(PARAMETERS) | {name: value[:2] for name, value in used.items()}
        expected = augment_images_ref(padded[:2], extent[:2], **two, clip=clip, dtype=torch.float64)
        found = peers[way](frames, how, room, clip, False) if way in peers else ways[way]()
        return float((found[:2].double() - expected).norm() / expected.norm())

    return timing.Operation(
        "augment_images", shape, torch.float32, ways, (), None,
        n_bytes={"fwd": augment_images_bytes(room)}, check=error, items=(room[0], "images"),
    )  # fmt: skip


def predicted_traffic() -> dict[tuple[str, str], tuple[float, int]]:
    """Bytes of a launch and launches of a row on a GPU, for `predict.py`: frames in and float32 out, then float32 in
    and out."""
    return {(shape, "float32"): (13 * math.prod(size) / 2, 2) for shape, size in GPU_SHAPES.items()}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "augment_images", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, [OURS, "torch", *PEERS, "clone"])


def test_augment_images(benchmark, summary, pytestconfig, shape, pass_, way):
    operation = build(shape)
    if way not in (*operation.ways, "clone"):
        pytest.skip("scipy has no such cubic interpolation")
    timing.run(benchmark, summary, operation, pass_, way, pytestconfig.getoption("--smoke"))
