"""masked_mse on uint8 images, against patchify + index + MSE as the published implementation computes it.

pytest benchmarks --benchmark-only -k masked_mse
"""

import math
from functools import lru_cache

import timing
import torch
import torch.nn.functional as F
import workload

from cinema_fast.kernels.masked_mse import masked_mse, masked_mse_bytes, masked_mse_ref
from cinema_fast.kernels.shapes import VIEW_SHAPES

SHAPES = workload.GPU_IMAGE_SHAPES if timing.DEVICE == "cuda" else workload.CPU_IMAGE_SHAPES
PASSES = ("fwd", "bwd")
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-sax-b16")  # held to float64 on a GPU before anything is timed
PEER = "patchify + index + mse"


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """Predictions in the compute dtype of every masked token of a batch of stored images."""
    s, dtype, device = VIEW_SHAPES[shape], timing.DTYPE, timing.DEVICE
    image, intensity, plan = workload.stored_images(s, device)
    sample = torch.arange(s.batch, device=device).unsqueeze(1)
    values = math.prod(s.token) * s.channels
    pred = torch.randn(s.batch, s.n - s.keep, values, dtype=dtype, device=device).requires_grad_()

    def by_index(pred):
        patches = workload.patchify(image, s.token).float()
        patches = (patches - intensity[:, None, :1]) * intensity[:, None, 1:]
        return F.mse_loss(pred.float(), patches[sample, plan.masked.long()])

    def ours(backend):
        return lambda pred: masked_mse(pred, image, plan, s.token, intensity=intensity, backend=backend)

    ways = {timing.OURS: ours(timing.OURS), "torch": ours("torch"), PEER: by_index}
    if device == "cuda":
        ways["compiled peer"] = torch.compile(by_index)
    read = masked_mse_bytes(pred, image, plan.masked, s.token)
    return timing.Operation(
        "masked_mse", shape, dtype, ways, (pred,),
        lambda pred: masked_mse_ref(pred, image, plan.masked, s.token, intensity=intensity),
        n_bytes={"fwd": read, "bwd": read + pred.numel() * pred.element_size()},
    )  # fmt: skip


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    return {(shape, "bfloat16"): [f"{shape} bf16"] for shape in workload.GPU_IMAGE_SHAPES}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "masked_mse", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, timing.ways(PEER))


def test_masked_mse(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
