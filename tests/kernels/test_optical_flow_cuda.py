"""csrc/optical_flow.cu without a GPU: compiled by nvcc, and run on the CPU, a fiber a thread, as it would be launched.

What that does not show: speed, memory errors of the device, what CuPy makes of a launch. On a GPU test_optical_flow.py
runs every case on the kernels themselves.
"""

import re
import shutil

import pytest
import torch
from flow_cases import CSRC, assert_same_flow, compile_with, textured, worst_of
from flow_kernels import OnCpu, flow_by_kernels, for_cpu, map_by_kernels
from marks import slow

from cinema_fast.kernels.motion_score import _map_on_cuda, _map_op, motion_map_ref
from cinema_fast.kernels.optical_flow import FlowParams, cuda_form, optical_flow_ref
from cinema_fast.kernels.optical_flow.operation import DAMPING, SMOOTHNESS, SPREAD, _flow_on_cuda, _flow_op
from cinema_fast.kernels.optical_flow.params import MAX_REFINE
from cinema_fast.kernels.optical_flow.pyramid import POLY_N

KERNELS = {
    "flow_image_uint8", "flow_image_float16", "flow_image_float32", "flow_expand_5", "flow_expand_7", "flow_upsample",
    "flow_equations", "flow_solve_float32", "flow_solve_float16", "flow_mean_magnitude",
    "flow_refine_float32", "flow_refine_float16", "flow_refine_mean",
}  # fmt: skip


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("size", "dtype", "how"),
    [
        ((64, 72), torch.float32, {}),
        ((33, 71), torch.uint8, {"poly_n": 5, "poly_sigma": 1.1, "iterations": 1}),
        ((40, 35, 3), torch.float16, {"window": 9, "refine": 0}),
        slow((50, 130, 2), torch.uint8, {"refine": 16, "levels": 1}),  # several regions along either axis
        # rows in two blocks, a window wider than a strip
        ((20, 300), torch.float32, {"window": 41, "iterations": 2, "refine": 1}),
        slow((67, 66, 2), torch.uint8, {"pyr_scale": 0.7}),
        ((40, 45), torch.uint8, {"pyr_scale": 0.99, "levels": 2}),  # two levels of the frame's own size
    ],
    ids=str,
)
def test_kernels_equal_the_oracle(on_cpu, poison, size, dtype, how):
    frames, pairs = textured(2, 3, size).clamp(0, 255).to(dtype), [(0, 1), (2, 0)]
    expected = optical_flow_ref(frames.double(), pairs, FlowParams(**how))
    assert_same_flow(flow_by_kernels(frames, pairs, **how), expected, worst_of(how))
    last = "flow_refine_float32" if FlowParams(**how).refine else "flow_solve_float32"
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
        slow((64, 72), 7, "consecutive", None, {}),  # six pairs: more than a block takes at a time
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
    expected = motion_map_ref(frames.double(), pairs, tubelet, FlowParams(**how))
    assert_same_flow(map_by_kernels(frames, pairs, tubelet, **how), expected, worst_of(how))
    last = "flow_refine_mean" if FlowParams(**how).refine else "flow_mean_magnitude"
    assert on_cpu.launched[-1] == last and on_cpu.launched.count(last) == 1
    assert set(on_cpu.launched) <= KERNELS
    assert "flow_refine_float32" not in on_cpu.launched  # which would write the flow


@pytest.mark.parametrize("n", [1, 32, 33, 96, 192, 256, 257, 400, 1000])
def test_blocks_cover_a_row(n):
    threads, blocks = cuda_form.row_blocks(n)
    assert threads % 32 == 0 and threads <= 256 and threads * blocks >= n > threads * (blocks - 1)


def test_constants_agree_with_the_header():
    values = dict(re.findall(r"(\w+) = ([\d.e-]+)f?[,;]", (CSRC / "optical_flow.cuh").read_text()))
    twins = {
        "STRIP": cuda_form.STRIP, "MEAN_WIDTH": cuda_form.MEAN_BLOCK[0], "MEAN_PAIRS": cuda_form.MEAN_BLOCK[1],
        "REGION_X": cuda_form.REGION[0], "REGION_Y": cuda_form.REGION[1], "REGION_ROWS": cuda_form.REGION_ROWS,
        "MAX_RADIUS": max(POLY_N), "SMOOTHNESS": SMOOTHNESS, "SPREAD": SPREAD, "DAMPING": DAMPING,
        "COEFFICIENTS": 5,
    }  # fmt: skip
    assert {name: float(values[name]) for name in twins} == twins
    assert min(cuda_form.REGION) > 2 * MAX_REFINE


def test_shared_memory_is_not_what_the_block_before_has_left(tmp_path):
    """The CPU's stand-in itself: a kernel that writes shared memory in one block and reads it in the next."""
    (tmp_path / "left.cu").write_text("""
        extern "C" __global__ void left(float* out) {
            __shared__ float a[2][3];
            extern __shared__ float equations[];
            out[2 * blockIdx.x] = a[1][2], out[2 * blockIdx.x + 1] = equations[1];
            a[1][2] = equations[1] = 7.f;
        }""")
    out = torch.zeros(4)
    OnCpu(for_cpu(tmp_path / "left.cu", tmp_path)).get_function("left")((2,), (1,), [out.data_ptr()], shared_mem=8)
    assert out.isnan().all()


def test_registered_operators_pass_every_parameter_on(on_cpu):
    """What PyTorch's dispatcher calls for CUDA tensors; the operators' schemas name the parameters in their order."""
    params = FlowParams(levels=1, pyr_scale=0.6, window=9, iterations=2, poly_n=5, poly_sigma=1.1, refine=3)
    frames, pairs = textured(1, 3, (40, 44)).float(), [(0, 1), (1, 2)]
    flat = [t for pair in pairs for t in pair]
    flow = _flow_on_cuda(frames, flat, torch.float32, *params)
    assert torch.equal(flow, flow_by_kernels(frames, pairs, **params._asdict()))
    maps = _map_on_cuda(frames, flat, None, *params)
    assert torch.equal(maps, map_by_kernels(frames, pairs, **params._asdict()))
    for op in (_flow_op, _map_op):
        names = [argument.name for argument in op._opoverload._schema.arguments]
        assert tuple(names[-len(params) :]) == FlowParams._fields
