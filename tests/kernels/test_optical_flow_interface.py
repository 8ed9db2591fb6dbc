"""What optical_flow accepts and refuses, how it picks what runs, and what it is registered as."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_cases import arguments, textured

from cinema_fast.kernels import BackendError
from cinema_fast.kernels.native import load_library
from cinema_fast.kernels.optical_flow import FlowParams, optical_flow, optical_flow_bytes
from cinema_fast.kernels.optical_flow.operation import _flow_op

GOOD = torch.zeros(1, 3, 33, 40)


@pytest.mark.parametrize("pairs", ["consecutive", "reference", []])
def test_one_frame_has_no_pairs(pairs):
    for name in ("torch", "auto"):
        assert optical_flow(torch.zeros(2, 1, 33, 40, 3), pairs, backend=name).shape == (2, 0, 2, 33, 40, 3)
    assert optical_flow(torch.zeros(0, 5, 33, 40)).shape == (0, 4, 2, 33, 40)


@pytest.mark.parametrize(
    ("frames", "how", "match"),
    [
        (torch.zeros(3, 33, 40), {}, r"frames must be \(B, T, X, Y\) or .* got \(3, 33, 40\)"),
        (torch.zeros(1, 2, 3, 4, 5, 6), {}, r"frames must be .* got \(1, 2, 3, 4, 5, 6\)"),
        (torch.zeros(1, 0, 33, 40), {}, r"frames must be .* got \(1, 0, 33, 40\)"),
        (GOOD.double(), {}, "frames must be uint8, float16 or float32, got torch.float64"),
        (GOOD.short(), {}, "got torch.int16"),
        (GOOD, {"params": {"levels": 3}}, r"params must be a FlowParams, got \{'levels': 3\}"),
        (GOOD, {"levels": 0}, r"levels must be in 1\.\.32, got 0"),
        (GOOD, {"pyr_scale": 1.0}, r"pyr_scale must be in \(0, 1\), got 1.0"),
        (GOOD, {"pyr_scale": 0}, "pyr_scale"),
        (GOOD, {"window": 14}, r"window must be odd, in 3\.\.511, got 14"),
        (GOOD, {"window": 1}, "window"),
        (GOOD, {"iterations": 0}, "iterations must be at least 1, got 0"),
        (GOOD, {"poly_n": 6}, "poly_n must be 5 or 7, got 6"),
        (GOOD, {"poly_sigma": 0.0}, "poly_sigma must be positive, got 0.0"),
        (GOOD, {"poly_sigma": math.nan}, "poly_sigma"),
        (GOOD, {"refine": -1}, "refine must be in 0..16, got -1"),
        (GOOD, {"refine": 17}, "refine must be in 0..16, got 17"),
        (GOOD, {"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float16, got torch.bfloat16"),
        (GOOD, {"dtype": torch.float64}, "dtype must be torch.float32 or torch.float16, got torch.float64"),
        (GOOD, {"pairs": "all"}, "pairs must be .* got 'all'"),
        (GOOD, {"pairs": [(0, 3)]}, r"pairs must name frames 0\.\.2, got \(0, 3\)"),
        (GOOD, {"pairs": [(-1, 0)]}, r"pairs must name frames 0\.\.2, got \(-1, 0\)"),
        (GOOD, {"pairs": [(0, 1, 2)]}, r"rows of two frames, integers, got \(0, 1, 2\)"),
        (GOOD, {"pairs": torch.tensor([[0.0, 1.0]])}, "integers"),
        (GOOD, {"pairs": torch.tensor([0, 1])}, "rows of two frames"),
        (GOOD, {"pairs": [0, 1]}, "pairs must be rows of two frames, integers, got 0"),
        (GOOD, {"pairs": 3}, "pairs must be rows of two frames, got 3"),
        (GOOD, {"pairs": np.zeros((1, 2))}, r"rows of two frames, integers, got \[0.0, 0.0\]"),
        (GOOD, {"pairs": np.array([[False, True]])}, r"integers, got \[False, True\]"),
        (GOOD, {"pairs": [(False, True)]}, r"integers, got \(False, True\)"),
        (GOOD, {"pairs": [torch.tensor([False, True])]}, "integers, got"),
        (GOOD, {"pairs": ["01"]}, "integers, got '01'"),
        *[
            (GOOD, {name: value}, f"{name} must be an integer, got {value!r}")
            for name in ("levels", "window", "iterations", "poly_n", "refine")
            for value in (5.0, "5", None, True)
        ],
        *[
            (GOOD, {name: value}, f"{name} must be a number, got {value!r}")
            for name in ("pyr_scale", "poly_sigma")
            for value in ("0.5", None, True)
        ],
    ],
)
def test_bad_arguments_are_named(frames, how, match):
    with pytest.raises(ValueError, match=match):
        optical_flow(frames, **arguments(how) | {k: v for k, v in how.items() if k == "params"})


@pytest.mark.parametrize(
    "pairs",
    [np.array([[0, 2], [1, 0]]), np.array([[0, 2], [1, 0]], np.uint8), [np.array([0, 2]), (np.int64(1), 0)],
     torch.tensor([[0, 2], [1, 0]], dtype=torch.int16)],
    ids=["int64", "uint8", "rows", "int16"],
)  # fmt: skip
def test_integers_of_any_kind(pairs):
    frames = textured(1, 3, (33, 40)).float()
    flow = optical_flow(frames, pairs, params=FlowParams(np.uint8(1), np.float32(0.5), np.int32(9)))
    assert torch.equal(flow, optical_flow(frames, [(0, 2), (1, 0)], params=FlowParams(window=9, levels=1)))


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match=r"cuda.*needs CUDA tensors, got cpu"):
            optical_flow(GOOD, backend="cuda")
    monkeypatch.setattr("cinema_fast.kernels.native.HERE", Path("nowhere"))
    load_library.cache_clear()
    with pytest.raises(BackendError, match=r"_optical_flow_cpu.so was not built: install a C\+\+ compiler"):
        optical_flow(GOOD, backend="native")
    assert optical_flow(GOOD).shape == (1, 2, 2, 33, 40)  # the PyTorch form serves
    load_library.cache_clear()


@pytest.mark.parametrize("shape", [(1, 3, 33, 40), (2, 2, 20, 21, 3)], ids=str)
def test_registration(shape):
    if not load_library("optical_flow")[0]:
        pytest.skip(load_library("optical_flow")[1])
    for dtype in (torch.float32, torch.float16):
        torch.library.opcheck(_flow_op, (torch.rand(shape) * 255, [0, 1, 1, 0], dtype, 3, 0.5, 15, 3, 7, 1.5, 10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_captured_in_a_cuda_graph():
    frames = textured(2, 3, (64, 72, 3)).clamp(0, 255).to("cuda", torch.uint8)
    optical_flow(frames, backend="cuda")  # uploads its tables
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flow = optical_flow(frames, backend="cuda")
    frames.copy_(frames.flip(1))
    graph.replay()
    assert torch.equal(flow, optical_flow(frames, backend="cuda"))


def test_threads_do_not_change_a_bit():
    if not load_library("optical_flow")[0]:
        pytest.skip(load_library("optical_flow")[1])
    frames, before = textured(2, 4, (40, 50, 3)).to(torch.uint8), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(optical_flow(frames, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_bytes_of_a_small_case():
    # one level of 40 x 50, 3 frames in uint8, 2 pairs, 2 iterations, 4 slices
    pixels = 40 * 50
    expected = 4 * (3 * (pixels + pixels * 28) + 2 * pixels * 2 * 56)
    unrefined, refined = (FlowParams(iterations=2, refine=refine) for refine in (0, 10))
    assert optical_flow_bytes((1, 3, 40, 50, 4), 2, 1, unrefined) == expected
    assert optical_flow_bytes((1, 3, 40, 50, 4), 2, 1, refined) == expected + 4 * 2 * pixels * 56
