"""optical_flow against its float64 oracle, against motion known in closed form, and in every degenerate case.

Against OpenCV: test_optical_flow_opencv.py. The CUDA kernels without a GPU: test_optical_flow_cuda.py.
"""

import math
from pathlib import Path

import pytest
import torch
from flow_cases import DEFAULTS, assert_same_flow, moving, textured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cinema_fast.kernels import BackendError, launches
from cinema_fast.kernels.native import load_library
from cinema_fast.kernels.optical_flow import (
    _native_op,
    optical_flow,
    optical_flow_bytes,
    optical_flow_ref,
    reasons,
)

GPU = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.fixture(params=["torch", "native", *GPU])
def way(request):
    """A backend that can run here; uninitialised memory is NaN, and a compiled form must really have run."""
    device = "cuda" if request.param == "cuda" else "cpu"
    if why := reasons(torch.empty(0, device=device)).get(request.param, list)():
        pytest.skip("; ".join(why))
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    before = launches().get("optical_flow", 0)
    yield request.param
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    assert (launches().get("optical_flow", 0) > before) == (request.param != "torch")


def flow_by(way, frames, pairs="consecutive", **how):
    return optical_flow(frames.to("cuda" if way == "cuda" else "cpu"), pairs, **how, backend=way)


def oracle(frames, pairs, **how):
    return optical_flow_ref(frames.double(), pairs, **DEFAULTS | how)


@pytest.mark.parametrize(
    ("size", "how"),
    [
        ((64, 80), {}),
        ((33, 71), {"poly_n": 5, "poly_sigma": 1.1}),  # odd; one level, since half of 33 is under 32
        ((70, 37, 3), {"levels": 1}),  # slices lie innermost
        ((130, 97), {"pyr_scale": 0.7, "levels": 5, "iterations": 2}),  # sizes that no factor divides
        ((47, 300), {"window": 33, "iterations": 1}),  # a window that is wider than a strip of running sums
        ((40, 45), {"pyr_scale": 0.99, "levels": 2}),  # two levels of the frame's own size
        ((40, 40), {"window": 101}),  # and one wider than the frame
        ((48, 40, 12), {"window": 9, "poly_n": 5, "poly_sigma": 0.9}),
    ],
    ids=str,
)
def test_equals_the_float64_oracle(way, size, how):
    frames = textured(2, 3, size).float()
    pairs = [(0, 1), (1, 2)]
    assert_same_flow(flow_by(way, frames, **how), oracle(frames, pairs, **how))


@settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(*[st.integers(1, 20)] * 2, st.integers(1, 3)),
    window=st.sampled_from([3, 5, 15, 31]),
    poly_n=st.sampled_from([5, 7]),
    iterations=st.integers(1, 3),
    batch=st.integers(1, 2),
)
def test_any_size(way, size, window, poly_n, iterations, batch):
    """Sizes down to one pixel. There windows need not hold structure, so the bound is that of float32 itself."""
    frames, how = textured(batch, 2, size).float(), {"window": window, "poly_n": poly_n, "iterations": iterations}
    actual, expected = flow_by(way, frames, **how), oracle(frames, [(0, 1)], **how)
    plain = optical_flow_ref(frames, [(0, 1)], **DEFAULTS | how)
    theirs = float((plain.double() - expected).abs().max())
    assert_same_flow(actual, expected, worst=2e-3 + 4 * theirs, mean=2e-4 + 4 * theirs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(40, 50), (36, 33, 5)], ids=str)
def test_other_dtypes_are_read_as_they_are(way, dtype, size):
    frames = textured(1, 3, size).clamp(0, 255).to(dtype)
    before = frames.clone()
    actual = flow_by(way, frames)
    assert_same_flow(actual, oracle(frames, [(0, 1), (1, 2)]))
    assert torch.equal(frames, before)


def test_views_that_are_not_contiguous(way):
    frames = textured(1, 4, (40, 44, 2)).float()
    shuffled = frames.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)[:, ::2]
    assert not shuffled.is_contiguous()
    assert_same_flow(flow_by(way, shuffled), oracle(frames[:, ::2], [(0, 1)]))


@pytest.mark.parametrize(
    ("pairs", "listed"),
    [
        ("consecutive", [(0, 1), (1, 2), (2, 3)]),
        ("reference", [(0, 1), (0, 2), (0, 3)]),
        ([(3, 1)], [(3, 1)]),
        ([[2, 2], [0, 3], [2, 0], [2, 0]], [(2, 2), (0, 3), (2, 0), (2, 0)]),
        (torch.tensor([[1, 3], [3, 1]]), [(1, 3), (3, 1)]),
    ],
    ids=["consecutive", "reference", "one", "list", "tensor"],
)
def test_pairs(way, pairs, listed):
    frames = textured(2, 4, (40, 36)).float()
    actual = flow_by(way, frames, pairs)
    assert actual.shape == (2, len(listed), 2, 40, 36)
    for p, (first, second) in enumerate(listed):
        alone = flow_by(way, frames[:, [first, second]])
        torch.testing.assert_close(actual[:, p], alone[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pairs", ["consecutive", "reference", []])
def test_one_frame_has_no_pairs(pairs):
    for name in ("torch", "auto"):
        assert optical_flow(torch.zeros(2, 1, 33, 40, 3), pairs, backend=name).shape == (2, 0, 2, 33, 40, 3)
    assert optical_flow(torch.zeros(0, 5, 33, 40)).shape == (0, 4, 2, 33, 40)


def rotation(degrees):
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [(rotation(0), (1.7, -2.3)), (rotation(0), (-5.0, 3.0)), (rotation(1), (0, 0)), (1.02 * rotation(0), (0.5, 0))],
    ids=["translation", "whole pixels", "rotation", "zoom"],
)
def test_closed_form_motion(way, matrix, shift):
    """To 0.05 pixels on average; a window in which motion is taken to be the same costs a rotation most."""
    for seed in range(2):
        frames, truth = moving((128, 112), matrix, torch.tensor(shift, dtype=torch.float64), seed)
        flow = flow_by(way, frames[None].float())[0, 0].cpu()
        error = (flow - truth).norm(dim=0)[16:-16, 16:-16]
        assert truth.norm(dim=0).max() > 1
        assert error.mean() < 0.05 and error.max() < 0.2, (float(error.mean()), float(error.max()))


def test_no_motion_is_zero_to_the_last_bit(way):
    frames = textured(1, 1, (50, 61, 2)).expand(-1, 3, -1, -1, -1).to(torch.uint8)
    assert flow_by(way, frames).count_nonzero() == 0


@pytest.mark.parametrize("values", [(0, 0), (255, 255), (17, 200)], ids=str)
def test_flat_frames_do_not_move(way, values):
    frames = torch.tensor(values, dtype=torch.uint8).view(1, 2, 1, 1).expand(1, 2, 40, 70)
    assert flow_by(way, frames).abs().max() < 1e-3


def test_a_bright_edge_leaves_no_trace_in_the_flat_part(way):
    """Sums that run over an edge of all grey values must come down to what a flat region gives."""
    frames = torch.zeros(1, 2, 96, 64)
    frames[:, 0, :20] = 255 * (torch.arange(20).view(20, 1) % 7 > 3)
    frames[:, 1, 1:21] = frames[:, 0, :20]
    assert flow_by(way, frames, levels=1, iterations=1)[0, 0, :, 70:].abs().max() < 1e-2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_frames_that_are_not_finite_are_refused(way, value, dtype):
    frames = torch.zeros(1, 2, 40, 40, 2, dtype=dtype)
    frames[0, 1, 3, 5, 1] = value
    if way == "cuda":
        assert flow_by(way, frames)[..., 0].isfinite().all()  # not looked for, and the other slice is not touched
    else:
        with pytest.raises(ValueError, match="frames must be finite"):
            flow_by(way, frames)


GOOD = torch.zeros(1, 3, 33, 40)


@pytest.mark.parametrize(
    ("frames", "how", "match"),
    [
        (torch.zeros(3, 33, 40), {}, r"frames must be \(B, T, X, Y\) or .* got \(3, 33, 40\)"),
        (torch.zeros(1, 2, 3, 4, 5, 6), {}, r"frames must be .* got \(1, 2, 3, 4, 5, 6\)"),
        (torch.zeros(1, 0, 33, 40), {}, r"frames must be .* got \(1, 0, 33, 40\)"),
        (GOOD.double(), {}, "frames must be uint8, float16 or float32, got torch.float64"),
        (GOOD.short(), {}, "got torch.int16"),
        (GOOD, {"levels": 0}, r"levels must be in 1\.\.32, got 0"),
        (GOOD, {"pyr_scale": 1.0}, r"pyr_scale must be in \(0, 1\), got 1.0"),
        (GOOD, {"pyr_scale": 0}, "pyr_scale"),
        (GOOD, {"window": 14}, r"window must be odd, in 3\.\.511, got 14"),
        (GOOD, {"window": 1}, "window"),
        (GOOD, {"iterations": 0}, "iterations must be at least 1, got 0"),
        (GOOD, {"poly_n": 6}, "poly_n must be 5 or 7, got 6"),
        (GOOD, {"poly_sigma": 0.0}, "poly_sigma must be positive, got 0.0"),
        (GOOD, {"poly_sigma": math.nan}, "poly_sigma"),
        (GOOD, {"pairs": "all"}, "pairs must be .* got 'all'"),
        (GOOD, {"pairs": [(0, 3)]}, r"pairs must name frames 0\.\.2, got \(0, 3\)"),
        (GOOD, {"pairs": [(-1, 0)]}, r"pairs must name frames 0\.\.2, got \(-1, 0\)"),
        (GOOD, {"pairs": [(0, 1, 2)]}, r"rows of two frames, integers, got \[0, 1, 2\]"),
        (GOOD, {"pairs": torch.tensor([[0.0, 1.0]])}, "integers"),
        (GOOD, {"pairs": torch.tensor([0, 1])}, "rows of two frames"),
    ],
)
def test_bad_arguments_are_named(frames, how, match):
    with pytest.raises(ValueError, match=match):
        optical_flow(frames, **how)


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
    args = (torch.rand(shape) * 255, [0, 1, 1, 0], 3, 0.5, 15, 3, 7, 1.5)
    torch.library.opcheck(_native_op, args)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
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
    assert optical_flow_bytes((1, 3, 40, 50, 4), 2, 1, levels=3, pyr_scale=0.5, iterations=2) == expected
