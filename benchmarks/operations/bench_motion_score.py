"""motion_map of a cycle and of a clip's tubelets against its PyTorch form, against the flow written out and then
averaged, and on a CPU against OpenCV's flow and numpy's magnitudes.

Frames are uint8 as in a store. Bytes are those of the frames, of the flow's work and of the maps.

    pytest benchmarks --benchmark-only -k motion_score
"""

from functools import lru_cache
from itertools import pairwise

import bench_optical_flow
import numpy as np
import timing
import torch
from bench_optical_flow import OURS, PASSES, PEERS, UNREFINED, by_opencv, error_of, make_frames, n_pairs
from torch import Tensor

from cinema_fast.kernels.motion_score import motion_map, motion_map_bytes, motion_map_ref
from cinema_fast.kernels.optical_flow import optical_flow
from cinema_fast.kernels.optical_flow.pair_groups import pair_groups, pair_shares

GPU_SHAPES = {**bench_optical_flow.GPU_SHAPES, "tubelets-b64": (64, 24, 192, 192)}
CPU_SHAPES = {**bench_optical_flow.CPU_SHAPES, "tubelets-b1": (1, 8, 192, 192)}
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
EVERY_SHAPE = SHAPES | {timing.SMOKE_SHAPE: (1, 4, 33, 40)}
WAYS = list(dict.fromkeys([OURS, "torch", "flow, then means", *PEERS]))
CHECKED = (timing.SMOKE_SHAPE, "clip-b64")  # held to float64 on a GPU before anything is timed


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """A drifting texture; tubelets of two frames where the shape is named after them."""
    frames = make_frames(EVERY_SHAPE[shape])
    tubelet = 2 if shape.startswith(("tubelets", timing.SMOKE_SHAPE)) else None
    pairs = list(pairwise(range(frames.shape[1])))
    shares = pair_shares(pairs, frames.shape[1], tubelet).float()

    def of_groups(maps: Tensor) -> Tensor:
        return maps.squeeze(1) if tubelet is None else maps

    def unfused() -> Tensor:
        moved = torch.linalg.vector_norm(optical_flow(frames, backend=OURS), dim=2)
        return of_groups(torch.einsum("gp,bp...->bg...", shares.to(moved), moved))

    def numpy_after(flow):
        def run() -> Tensor:
            moved = np.linalg.norm(flow().numpy(), axis=2)
            return of_groups(torch.from_numpy(np.moveaxis(np.tensordot(shares.numpy(), moved, (1, 1)), 0, 1)))

        return run

    ways = {
        name: lambda name=name: motion_map(frames, tubelet=tubelet, backend=name)
        for name in dict.fromkeys([OURS, "torch"])
    }
    ways["flow, then means"] = unfused
    ways |= {name: numpy_after(by_opencv(frames)) for name in PEERS}
    expected = dict.fromkeys(ways, motion_map_ref(frames[:1].double(), pairs, tubelet))
    expected |= {name: motion_map_ref(frames[:1].double(), pairs, tubelet, UNREFINED) for name in PEERS}
    groups = pair_groups(tuple(pairs), frames.shape[1], tubelet)
    n_bytes = motion_map_bytes(frames.shape, len(pairs), groups, frames.element_size())
    return timing.Operation(
        "motion_score", shape, torch.float32, ways, (), None, n_bytes={"fwd": n_bytes},
        check=lambda way: error_of(ways[way](), expected[way], way), items=(n_pairs(frames.shape), "frame pairs"),
    )  # fmt: skip


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "motion_score", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, [*WAYS, "clone"])


def test_motion_score(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
