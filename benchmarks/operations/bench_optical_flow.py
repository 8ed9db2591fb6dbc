"""optical_flow of consecutive frames against its PyTorch form and, on a CPU, OpenCV's Farneback on as many threads.

Frames are uint8 as in a store; pairs/s and the bytes that must move are printed with the times. The report of a GPU
has rows of their own against OpenCV on its host's CPU, given frames that are there already, and against torchvision's
small RAFT with random weights: what a network of that kind takes, whose flow is not looked at.

    pytest benchmarks --benchmark-only -k optical_flow
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import timing
import torch
from flow_cases import textured
from torch import Tensor

from cinema_fast.kernels.optical_flow import FlowParams, optical_flow, optical_flow_bytes, optical_flow_ref
from cinema_fast.kernels.optical_flow.operation import reasons

# (B, T, X, Y[, Z]); the stack has its slices innermost, as the store keeps them
GPU_SHAPES = {"clip-b64": (64, 25, 192, 192), "sax-b8": (8, 25, 192, 192, 12)}
CPU_SHAPES = {"clip-b1": (1, 9, 192, 192), "sax-b1": (1, 3, 192, 192, 4)}
PEER_SHAPES = {"clip-b8": (8, 25, 192, 192)}  # a batch that a CPU works off in a second or two
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
EVERY_SHAPE = SHAPES | PEER_SHAPES | {timing.SMOKE_SHAPE: (1, 3, 33, 40, 2)}
PASSES = ("fwd",)
CHECKED = (timing.SMOKE_SHAPE, "clip-b64")  # held to float64 on a GPU before anything is timed
COMPILED = "cuda" if timing.DEVICE == "cuda" else "native"
OURS = "torch" if reasons(torch.empty(0, device=timing.DEVICE))[COMPILED]() else COMPILED
HAS_OPENCV = importlib.util.find_spec("cv2") is not None
PEERS = ["opencv"] if timing.DEVICE == "cpu" and HAS_OPENCV else []
UNREFINED = FlowParams(refine=0)  # what OpenCV computes


def by_opencv(frames: Tensor) -> Callable[[], Tensor]:
    """Copies the frames to the CPU, plane by plane as OpenCV takes them; what is returned gives the flow there,
    (B, P, 2, X, Y[, Z]) with component 0 along X, one pair and slice after the other."""
    import cv2

    p = UNREFINED
    how = p.pyr_scale, p.levels, p.window, p.iterations, p.poly_n, p.poly_sigma
    planes = frames.movedim(4, 1) if frames.ndim == 5 else frames.unsqueeze(1)  # (B, Z, T, X, Y)
    planes = planes.contiguous().cpu().numpy()

    def flow() -> Tensor:
        cv2.setNumThreads(torch.get_num_threads())
        flows = [
            torch.from_numpy(cv2.calcOpticalFlowFarneback(first, second, None, *how, 0)).flip(-1).movedim(-1, 0)
            for cine in planes.reshape(-1, *planes.shape[2:])
            for first, second in pairwise(cine)
        ]
        out = torch.stack(flows).view(*planes.shape[:2], -1, 2, *planes.shape[3:]).movedim(1, -1)
        return out if frames.ndim == 5 else out[..., 0]

    return flow


def by_raft(frames: Tensor) -> Callable[[], Tensor]:
    """Frames (B, T, X, Y) as RAFT takes them, of three colours in -1..1; what is returned gives (B, P, 2, X, Y)."""
    from torchvision.models.optical_flow import raft_small

    model = raft_small(weights=None).to(frames.device).eval()
    images = (frames / 127.5 - 1).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    first, second = (part.flatten(0, 1) for part in (images[:, :-1], images[:, 1:]))

    @torch.no_grad()
    def flow() -> Tensor:
        return model(first, second)[-1].unflatten(0, (len(frames), -1)).flip(2)

    return flow


def make_frames(shape: tuple[int, ...]) -> Tensor:
    """uint8 of a drifting texture, the same for every sample."""
    b, t, *size = shape
    frames = textured(1, t, size).clamp(0, 255).to(torch.uint8).to(timing.DEVICE)
    return frames.expand(b, *frames.shape[1:]).contiguous()


def error_of(found: Tensor, expected: Tensor, way: str) -> float:
    """Of the first sample, relative to the float64 oracle; OpenCV, which has another rule at the last row and column,
    is only asked to find the same motion as ours unrefined, `expected` then."""
    found = found[:1].to(expected)
    if way == "opencv":
        return 0.0 if float((found - expected).abs().mean()) < 0.01 else math.inf
    return float((found - expected).norm() / expected.norm())


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """A drifting texture; nothing is differentiated."""
    frames = make_frames(EVERY_SHAPE[shape])
    ways = {
        name: lambda name=name: optical_flow(frames, backend=name)
        for name in dict.fromkeys([OURS, "torch"])
    }
    ways |= {name: by_opencv(frames) for name in PEERS}
    pairs = list(pairwise(range(frames.shape[1])))
    expected = dict.fromkeys(ways, optical_flow_ref(frames[:1].double(), pairs))
    expected |= {name: optical_flow_ref(frames[:1].double(), pairs, UNREFINED) for name in PEERS}
    n_bytes = optical_flow_bytes(frames.shape, len(pairs), frames.element_size())
    return timing.Operation(
        "optical_flow", shape, torch.float32, ways, (), None, n_bytes={"fwd": n_bytes},
        check=lambda way: error_of(ways[way](), expected[way], way), items=(n_pairs(frames.shape), "frame pairs"),
    )  # fmt: skip


def against(shape: str, peer: str) -> timing.Operation:
    """Ours and one peer."""
    operation = build(shape)
    frames = make_frames(EVERY_SHAPE[shape])
    theirs = {"opencv on the CPU": by_opencv, "raft_small, random weights": by_raft}[peer](frames)

    def check(way: str) -> float:
        if way == OURS:
            return operation.check(way)
        mine = optical_flow(frames, params=UNREFINED, backend=OURS)
        if (found := theirs()).shape != mine.shape:
            raise ValueError(f"{peer} gives {tuple(found.shape)}, expected {tuple(mine.shape)}")
        return error_of(found, mine[:1].double(), "opencv") if "opencv" in peer else 0.0

    return replace(operation, ways={OURS: operation.ways[OURS], peer: theirs}, check=check, errors={})


def n_pairs(shape: tuple[int, ...]) -> int:
    """Pairs of planes of consecutive frames (B, T, X, Y[, Z])."""
    b, t, _, _, *z = shape
    return b * (t - 1) * (z[0] if z else 1)


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    peers = ["opencv on the CPU"] if HAS_OPENCV else []
    if not smoke:  # RAFT takes nothing so small
        try:
            import torchvision  # noqa: F401

            peers.append("raft_small, random weights")
        except Exception as error:  # an ImportError, or a RuntimeError where it was built for another torch
            print(f"optical_flow: no row against RAFT, torchvision does not import: {error}", file=sys.stderr)
    rows = timing.kernel_rows(build, "optical_flow", SHAPES, PASSES, smoke)
    for shape in [timing.SMOKE_SHAPE] if smoke else PEER_SHAPES:
        for peer in peers:
            rows[f"kernel optical_flow fwd {shape} against {peer}"] = lambda shape=shape, peer=peer: timing.kernel_row(
                against(shape, peer), "fwd", smoke
            )
    return rows


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, dict.fromkeys([OURS, "torch", *PEERS, "clone"]))


def test_optical_flow(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
