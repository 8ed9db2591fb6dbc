"""optical_flow of consecutive frames against its PyTorch form and, on a CPU, OpenCV's Farneback on as many threads.

Frames are uint8 as in a store; pairs/s and the bytes that must move are printed with the times.

    pytest benchmarks --benchmark-only -k optical_flow
"""

import importlib.util
import math
import sys
from functools import lru_cache
from itertools import pairwise

import checkout
import timing
import torch

from cinema_fast.kernels.optical_flow import optical_flow, optical_flow_bytes, optical_flow_ref, reasons

sys.path.append(str(checkout.ROOT / "tests"))
from flow_cases import DEFAULTS, textured

# (B, T, X, Y[, Z]); the stack has its slices innermost, as the store keeps them
GPU_SHAPES = {"clip-b64": (64, 25, 192, 192), "sax-b8": (8, 25, 192, 192, 12)}
CPU_SHAPES = {"clip-b1": (1, 9, 192, 192), "sax-b1": (1, 3, 192, 192, 4)}
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
EVERY_SHAPE = SHAPES | {timing.SMOKE_SHAPE: (1, 3, 33, 40, 2)}
PASSES = ("fwd",)
COMPILED = "cuda" if timing.DEVICE == "cuda" else "native"
OURS = "torch" if reasons(torch.empty(0, device=timing.DEVICE))[COMPILED]() else COMPILED
PEERS = ["opencv"] if timing.DEVICE == "cpu" and importlib.util.find_spec("cv2") else []


def by_opencv(frames: torch.Tensor) -> torch.Tensor:
    """One pair and slice after the other, as OpenCV takes them; (B, P, 2, X, Y[, Z]) with component 0 along X."""
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    how = [DEFAULTS[name] for name in ("pyr_scale", "levels", "window", "iterations", "poly_n", "poly_sigma")]
    planes = frames.movedim(4, 1) if frames.ndim == 5 else frames.unsqueeze(1)  # (B, Z, T, X, Y)
    planes = planes.contiguous().numpy()
    flows = [
        torch.from_numpy(cv2.calcOpticalFlowFarneback(first, second, None, *how, 0)).flip(-1).movedim(-1, 0)
        for cine in planes.reshape(-1, *planes.shape[2:])
        for first, second in pairwise(cine)
    ]
    flow = torch.stack(flows).view(*planes.shape[:2], -1, 2, *planes.shape[3:]).movedim(1, -1)
    return flow if frames.ndim == 5 else flow[..., 0]


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """A drifting texture; nothing is differentiated."""
    b, t, *size = EVERY_SHAPE[shape]
    frames = textured(1, t, size).clamp(0, 255).to(torch.uint8).to(timing.DEVICE)
    batch = frames.expand(b, *frames.shape[1:]).contiguous()

    def ours(backend):
        return lambda: optical_flow(batch, **DEFAULTS, backend=backend)

    ways = {name: ours(name) for name in dict.fromkeys([OURS, "torch"])}
    ways |= {name: lambda: by_opencv(batch) for name in PEERS}
    expected = optical_flow_ref(frames.double(), [(i, i + 1) for i in range(t - 1)], **DEFAULTS)

    def check(way):
        found = ways[way]()[:1].double()
        if way in PEERS:  # another rule at the last row and column
            return 0.0 if float((found - expected).abs().mean()) < 0.01 else math.inf
        return float((found - expected).norm() / expected.norm())

    n_bytes = optical_flow_bytes(
        batch.shape, t - 1, batch.element_size(), *(DEFAULTS[k] for k in ("levels", "pyr_scale", "iterations"))
    )
    return timing.Operation(
        "optical_flow", shape, torch.float32, ways, (), None, n_bytes={"fwd": n_bytes}, check=check
    )  # fmt: skip


def n_pairs(shape: str) -> int:
    """Pairs of planes."""
    b, t, _, _, *z = EVERY_SHAPE[shape]
    return b * (t - 1) * (z[0] if z else 1)


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "optical_flow", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, dict.fromkeys([OURS, "torch", *PEERS, "clone"]))


def test_optical_flow(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
    if benchmark.stats and way != "clone":
        rate = n_pairs(shape) / benchmark.stats.stats.median
        benchmark.extra_info["pairs/s"] = rate
        summary.append(f"optical_flow {shape} {way}: {rate:.3g} frame pairs/s")
