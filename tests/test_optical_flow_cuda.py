"""csrc/optical_flow.cu without a GPU: compiled by nvcc, and run on the CPU, a fiber a thread, as it would be launched.

What that does not show: speed, memory errors of the device, what CuPy makes of a launch. On a GPU test_optical_flow.py
runs every case on the kernels themselves.
"""

import ctypes
import platform
import re
import shutil

import pytest
import torch
from flow_cases import CSRC, DEFAULTS, assert_same_flow, compile_with, poisoned, textured

from cinema_fast.kernels import flow_cuda
from cinema_fast.kernels.flow_groups import pair_groups
from cinema_fast.kernels.motion_score import motion_map_ref
from cinema_fast.kernels.optical_flow import optical_flow_ref

KERNELS = {
    "flow_image_uint8", "flow_image_float16", "flow_image_float32", "flow_expand_5", "flow_expand_7", "flow_upsample",
    "flow_equations", "flow_solve_float32", "flow_solve_float16", "flow_mean_magnitude",
    "flow_refine_float32", "flow_refine_float16", "flow_mean_refined",
}  # fmt: skip


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc to compile with")
def test_compiles_for_a100_and_h100_without_spills_and_keeps_ptx(tmp_path):
    binary = tmp_path / "flow.fatbin"
    said = compile_with(
        "nvcc", "-std=c++17", "-O3", "-fatbin", "--no-compress", "-Xptxas", "-v", "-Werror", "all-warnings",
        "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]",
        CSRC / "optical_flow.cu", "-o", binary,
    )  # fmt: skip
    for arch in ("sm_80", "sm_90"):
        reports = re.findall(rf"entry function '(\w+)' for '{arch}'.*?(\d+) bytes stack.*?(\d+) bytes spill stores, "
                             r"(\d+) bytes spill loads.*?Used (\d+) registers", said, re.DOTALL)  # fmt: skip
        assert {name for name, *_ in reports} == KERNELS
        for name, stack, stores, loads, registers in reports:
            assert (stack, stores, loads) == ("0", "0", "0") and int(registers) <= 64, (arch, name)
    assert b".target sm_90" in binary.read_bytes()


class OnCpu:
    """A CuPy module's face over kernels compiled for the CPU; counts what is launched."""

    def __init__(self, library: ctypes.CDLL):
        self.library, self.launched = library, []

    def get_function(self, name):
        def launch(grid, block, args, *, shared_mem=0):
            assert all(0 < n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535)))
            assert shared_mem <= 48 * 1024
            self.launched.append(name)
            words = (ctypes.c_long * 20)(*(int(a) for a in args))
            three = [(ctypes.c_int * 3)(*n, *[1] * (3 - len(n))) for n in (grid, block)]
            self.library.launch(getattr(self.library, name), words, *three, shared_mem)

        return launch


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64") or not shutil.which("g++"):
        pytest.skip("needs g++ on 64-bit Linux: kernels get their arguments by its calling convention")
    path = tmp_path_factory.mktemp("flow") / "flow.so"
    header = CSRC.parent / "tests" / "cuda_on_cpu.h"
    compile_with(
        "g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-include", header, "-x", "c++",
        CSRC / "optical_flow.cu", "-o", path,
    )  # fmt: skip
    return ctypes.CDLL(str(path))


@pytest.fixture
def on_cpu(library, monkeypatch):
    module = OnCpu(library)
    monkeypatch.setattr(flow_cuda, "cuda_module", lambda operation: module)
    return module


def flow_by_kernels(frames, pairs, dtype=torch.float32, **how):
    """As the registered operator calls them; the result and the workspace start as NaN."""
    out = torch.full((frames.shape[0], len(pairs), 2, *frames.shape[2:]), torch.nan, dtype=dtype)
    flow_cuda.run_cuda(frames.contiguous(), out, [t for pair in pairs for t in pair], *(DEFAULTS | how).values())
    return out


def map_by_kernels(frames, pairs, tubelet=None, **how):
    groups = pair_groups(tuple(pairs), frames.shape[1], tubelet)
    out = torch.full((len(frames), groups.count, *frames.shape[2:]), torch.nan)
    pairs = [t for pair in pairs for t in pair]
    flow_cuda.run_cuda(frames.contiguous(), out, pairs, *(DEFAULTS | how).values(), groups)
    return out.squeeze(1) if tubelet is None else out


@pytest.fixture
def poison():
    with poisoned():
        yield


@pytest.mark.parametrize(
    ("size", "dtype", "how"),
    [
        ((64, 72), torch.float32, {}),
        ((33, 71), torch.uint8, {"poly_n": 5, "poly_sigma": 1.1, "iterations": 1}),
        ((40, 35, 3), torch.float16, {"window": 9, "refine": 0}),
        ((50, 130, 2), torch.uint8, {"refine": 16, "levels": 1}),  # several regions along either axis
        # rows in two blocks, a window wider than a strip
        ((20, 300), torch.float32, {"window": 41, "iterations": 2, "refine": 1}),
        ((67, 66, 2), torch.uint8, {"pyr_scale": 0.7}),
        ((40, 45), torch.uint8, {"pyr_scale": 0.99, "levels": 2}),  # two levels of the frame's own size
    ],
    ids=str,
)
def test_kernels_equal_the_oracle(on_cpu, poison, size, dtype, how):
    frames, pairs = textured(2, 3, size).clamp(0, 255).to(dtype), [(0, 1), (2, 0)]
    expected = optical_flow_ref(frames.double(), pairs, **DEFAULTS | how)
    assert_same_flow(flow_by_kernels(frames, pairs, **how), expected)
    last = "flow_refine_float32" if (DEFAULTS | how)["refine"] else "flow_solve_float32"
    assert set(on_cpu.launched) <= KERNELS and on_cpu.launched[-1] == last


@pytest.mark.parametrize("size", [(40, 35), (20, 35, 3)], ids=str)
@pytest.mark.parametrize(("refine", "last"), [(0, "flow_solve_float16"), (10, "flow_refine_float16")])
def test_halves_are_the_nearest_to_what_float32_gives(on_cpu, poison, size, refine, last):
    frames, pairs = textured(1, 3, size), [(0, 1), (2, 0)]
    frames = frames.to(torch.uint8)
    halves = flow_by_kernels(frames, pairs, torch.float16, refine=refine)
    assert on_cpu.launched[-1] == last and on_cpu.launched.count(last) == 1
    assert torch.equal(halves, flow_by_kernels(frames, pairs, refine=refine).half())


@pytest.mark.parametrize(
    ("size", "frames", "pairs", "tubelet", "how"),
    [
        ((64, 72), 7, "consecutive", None, {}),  # six pairs: more than a block takes at a time
        ((64, 72), 7, "consecutive", None, {"refine": 0}),
        ((35, 40, 3), 2, "consecutive", None, {"window": 9}),
        ((35, 40, 3), 2, "consecutive", None, {"window": 9, "refine": 0}),
        ((33, 70), 6, "consecutive", 2, {"iterations": 1}),  # rows of three blocks, columns that end within a strip
        ((40, 35), 4, [(0, 3), (3, 0), (3, 3)], 1, {}),  # frames that no pair names
    ],
    ids=str,
)
def test_maps_equal_the_oracle(on_cpu, poison, size, frames, pairs, tubelet, how):
    frames = textured(2, frames, size).clamp(0, 255).to(torch.uint8)
    pairs = [(t, t + 1) for t in range(frames.shape[1] - 1)] if pairs == "consecutive" else pairs
    expected = motion_map_ref(frames.double(), pairs, tubelet, **DEFAULTS | how)
    assert_same_flow(map_by_kernels(frames, pairs, tubelet, **how), expected)
    last = "flow_mean_refined" if (DEFAULTS | how)["refine"] else "flow_mean_magnitude"
    assert on_cpu.launched[-1] == last and on_cpu.launched.count(last) == 1
    assert set(on_cpu.launched) <= KERNELS


def test_groups_of_slices_give_the_same(on_cpu, poison, monkeypatch):
    """Two samples of five slices in groups of three, the last one of one, against one group of all."""
    frames, pairs = textured(2, 3, (24, 33, 5)).to(torch.uint8), [(0, 1), (1, 2)]
    whole, launched = flow_by_kernels(frames, pairs), len(on_cpu.launched)
    whole_map = map_by_kernels(frames, pairs)
    launched_for_map = len(on_cpu.launched) - launched
    monkeypatch.setattr(flow_cuda, "slices_at_once", lambda *_: 3)
    assert torch.equal(flow_by_kernels(frames, pairs), whole)
    assert torch.equal(map_by_kernels(frames, pairs), whole_map)
    assert len(on_cpu.launched) == (1 + 4) * (launched + launched_for_map)


@pytest.mark.parametrize("n", [1, 32, 33, 96, 192, 256, 257, 400, 1000])
def test_blocks_cover_a_row(n):
    threads, blocks = flow_cuda.row_blocks(n)
    assert threads % 32 == 0 and threads <= 256 and threads * blocks >= n > threads * (blocks - 1)


def test_the_workspace_is_bounded():
    per_slice = 192 * 192 * 4 * (6 * 25 + 9 * 24)
    assert flow_cuda.slices_at_once(1000, 25, 24, 0, 192 * 192) == flow_cuda.WORKSPACE_BYTES // per_slice
    assert flow_cuda.slices_at_once(4, 25, 24, 1, 192 * 192) == 4
    assert flow_cuda.slices_at_once(10**6, 2, 1, 1, 64) == 65535 // 2
    assert flow_cuda.slices_at_once(10**6, 2, 1, 30, 64) == 65535 // 30
    assert flow_cuda.slices_at_once(10, 1000, 999, 0, 1024 * 1024) == 1


def test_constants_agree_with_the_header():
    header = (CSRC / "optical_flow.cuh").read_text()
    strip, *block = (int(re.search(rf"{name} = (\d+);", header)[1]) for name in ("STRIP", "MEAN_WIDTH", "MEAN_PAIRS"))
    assert (strip, tuple(block)) == (flow_cuda.STRIP, flow_cuda.MEAN_BLOCK)
