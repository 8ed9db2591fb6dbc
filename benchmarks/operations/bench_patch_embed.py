"""patch_embed of visible tokens of uint8 images, against embedding every patch and dropping the masked ones.

For CineMA it is the stem's first convolution, else the embedding of a plain ViT; weights are float32 under autocast.

    pytest benchmarks --benchmark-only -k patch_embed
"""

import math
from functools import lru_cache

import timing
import torch
import torch.nn.functional as F
import workload

from cinema_fast.kernels.patch_embed import patch_embed, patch_embed_bytes, patch_embed_flops, patch_embed_ref
from cinema_fast.kernels.shapes import VIEW_SHAPES
from cinema_fast.models.precision import autocast
from cinema_fast.models.stem import block_positions

SHAPES = workload.GPU_IMAGE_SHAPES if timing.DEVICE == "cuda" else workload.CPU_IMAGE_SHAPES
PASSES = ("fwd", "bwd")
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-sax-b16")  # held to float64 on a GPU before anything is timed
PEER = "patchify + linear + index"


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """Float32 parameters and a batch of stored images."""
    s, dtype, device = VIEW_SHAPES[shape], timing.DTYPE, timing.DEVICE
    image, intensity, plan = workload.stored_images(s, device)
    index = block_positions(plan.keep, s.grid, s.block).flatten(1)
    sample = torch.arange(s.batch, device=device).unsqueeze(1)
    n_values = math.prod(s.kernel) * s.channels
    weight = (0.1 * torch.randn(s.width, n_values, device=device)).requires_grad_()
    bias = torch.randn(s.width, device=device).requires_grad_()

    def everywhere(weight, bias):
        patches = workload.patchify(image, s.kernel).float()
        patches = (patches - intensity[:, None, :1]) * intensity[:, None, 1:]
        with autocast(device, dtype):
            return F.linear(patches, weight, bias)[sample, index.long()]

    def ours(backend):
        def embed(weight, bias):
            with autocast(device, dtype):
                return patch_embed(image, weight, bias, index, s.kernel, intensity=intensity, backend=backend)

        return embed

    ways = {timing.OURS: ours(timing.OURS), "torch": ours("torch"), PEER: everywhere}
    if device == "cuda":
        ways["compiled peer"] = torch.compile(everywhere)
    moved = patch_embed_bytes(image, weight, index, s.kernel, dtype.itemsize)
    flops = patch_embed_flops(index.numel(), n_values, s.width)
    return timing.Operation(
        "patch_embed", shape, dtype, ways, (weight, bias),
        lambda weight, bias: patch_embed_ref(image, weight, bias, index, s.kernel, intensity=intensity),
        n_bytes=dict.fromkeys(PASSES, moved), flops=dict.fromkeys(PASSES, flops),
    )  # fmt: skip


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    return {(shape, "bfloat16"): [f"{shape} bf16"] for shape in workload.GPU_IMAGE_SHAPES}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "patch_embed", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, timing.ways(PEER))


def test_patch_embed(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
