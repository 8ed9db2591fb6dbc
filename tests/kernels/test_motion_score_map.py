"""motion_map against its float64 oracle, against motion known in closed form and against scores of the flow itself.

The CUDA kernels without a GPU: test_optical_flow_cuda.py.
"""

import inspect
import math

import pytest
import torch
from flow_cases import WAYS, arguments, assert_same_flow, device_of, really_runs, textured, worst_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from cinema_fast.kernels import BackendError, launches, motion_map, motion_score, optical_flow, use
from cinema_fast.kernels.motion_score import (
    _map_op,
    motion_map_bytes,
    motion_map_ref,
    patch_means,
    relative_to_mean,
)
from cinema_fast.kernels.native import load_library
from cinema_fast.kernels.optical_flow import FlowParams, optical_flow_bytes
from cinema_fast.kernels.optical_flow.pair_groups import pair_groups

GOOD = torch.zeros(1, 6, 33, 40)
LIBRARY, PROBLEM = load_library("optical_flow")
needs_library = pytest.mark.skipif(LIBRARY is None, reason=PROBLEM or "it is there")


@pytest.fixture(params=WAYS)
def way(request):
    """A backend that can run here."""
    with really_runs(request.param, "motion_score"):
        yield request.param


def map_by(way, frames, pairs="consecutive", **how):
    return motion_map(frames.to(device_of(way)), pairs, **arguments(how), backend=way)


def consecutive(frames):
    return [(t, t + 1) for t in range(frames.shape[1] - 1)]


@pytest.mark.parametrize(
    ("size", "frames", "tubelet", "dtype", "how"),
    [
        ((64, 80), 7, None, torch.uint8, {}),
        ((33, 71), 3, None, torch.float32, {"poly_n": 5, "poly_sigma": 1.1}),
        ((70, 37, 3), 3, None, torch.float16, {"levels": 1}),  # slices lie innermost
        ((40, 36, 12), 2, None, torch.uint8, {"window": 9}),
        ((64, 40), 6, 2, torch.uint8, {}),
        ((33, 47), 6, 3, torch.float16, {"iterations": 1}),
        ((40, 40), 4, 1, torch.float32, {}),
        ((40, 40), 4, 4, torch.uint8, {}),
    ],
    ids=str,
)
def test_equals_the_float64_oracle(way, size, frames, tubelet, dtype, how):
    frames = textured(2, frames, size).clamp(0, 255).to(dtype)
    before = frames.clone()
    expected = motion_map_ref(frames.double(), consecutive(frames), tubelet, FlowParams(**how))
    assert_same_flow(map_by(way, frames, tubelet=tubelet, **how), expected, worst_of(how))
    assert torch.equal(frames, before)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(*[st.integers(1, 20)] * 2, st.integers(1, 3)),
    frames=st.integers(2, 5),
    batch=st.integers(1, 2),
)
def test_any_size_is_the_mean_of_the_flow(way, size, frames, batch):
    frames = textured(batch, frames, size).to(torch.uint8)
    flow = optical_flow(frames.to(device_of(way)), backend=way)
    expected = torch.linalg.vector_norm(flow.double(), dim=2).mean(1)
    assert_close(map_by(way, frames), expected, floor=1e-6)  # of less than that the square is nothing in float32


@pytest.mark.parametrize("pairs", ["reference", [(3, 1)], [(2, 2), (0, 3), (2, 0), (2, 0)], [(1, 0)] * 9], ids=str)
@pytest.mark.parametrize("tubelet", [None, 1, 2])
def test_any_pairs_by_loops(way, pairs, tubelet):
    frames = textured(2, 4, (36, 40)).float()
    flow = optical_flow(frames.to(device_of(way)), pairs, backend=way)
    moved = torch.linalg.vector_norm(flow.double(), dim=2)
    listed = [(0, 1), (0, 2), (0, 3)] if pairs == "reference" else pairs
    of_frames = []
    for t in range(4):
        theirs = [moved[:, p] for p, pair in enumerate(listed) if t in pair]
        of_frames.append(sum(theirs) / len(theirs) if theirs else torch.zeros_like(moved[:, 0]))
    expected = moved.mean(1)
    if tubelet:
        groups = [of_frames[t : t + tubelet] for t in range(0, 4, tubelet)]
        expected = torch.stack([sum(group) / tubelet for group in groups], 1)
    assert_close(map_by(way, frames, pairs, tubelet=tubelet), expected)


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_scores_of_tubelets_are_those_of_the_flow(way, tubelet):
    """The map's patch means, relative to their mean, are motion_score of the clip's flow."""
    frames = textured(2, 8, (40, 48))[:, [0, 1, 1, 3, 4, 7]].to(torch.uint8)
    frames[..., 24:] = frames[:, :1, :, 24:]
    flow = optical_flow(frames.to(device_of(way)), backend=way)
    maps = map_by(way, frames, tubelet=tubelet)
    assert maps.shape == (2, 6 // tubelet, 40, 48)
    score = relative_to_mean(patch_means(maps, (1, 8, 4)))
    assert score.std() > 0.3
    assert_close(score, motion_score(flow, (tubelet, 8, 4)).double())
    cycle = relative_to_mean(patch_means(map_by(way, frames), (8, 4)))
    assert_close(cycle, motion_score(flow, (8, 4)).double())


def test_a_drifting_texture_moves_at_its_speed(way):
    """Slice s drifts by (1.2, -0.7) (1 + 0.2 s) pixels a frame: to 0.05 pixels on average away from the border."""
    maps = map_by(way, textured(2, 4, (96, 80, 3)).float()).cpu()
    for s in range(3):
        error = (maps[:, 16:-16, 16:-16, s] - (1 + 0.2 * s) * math.hypot(1.2, 0.7)).abs()
        assert error.mean() < 0.05 and error.max() < 0.2
    clip = map_by(way, textured(1, 4, (96, 80)).float(), tubelet=2).cpu()
    assert (clip[:, :, 16:-16, 16:-16] - math.hypot(1.2, 0.7)).abs().mean() < 0.05


def test_still_frames_are_zero_to_the_last_bit(way):
    frames = textured(1, 1, (50, 61, 2)).expand(-1, 3, -1, -1, -1).to(torch.uint8)
    assert map_by(way, frames).count_nonzero() == 0


@pytest.mark.parametrize("value", [0, 17, 255])
def test_a_constant_image_does_not_move(way, value):
    maps = map_by(way, torch.full((1, 4, 40, 70), value, dtype=torch.uint8), tubelet=2)
    assert maps.shape == (1, 2, 40, 70) and maps.count_nonzero() == 0


@pytest.mark.parametrize("name", ["torch", "auto"])
def test_no_pair_no_motion(name):
    assert torch.equal(motion_map(GOOD[:, :1] + 9, backend=name), torch.zeros(1, 33, 40))
    assert torch.equal(motion_map(torch.ones(2, 1, 33, 40, 3), backend=name), torch.zeros(2, 33, 40, 3))
    assert torch.equal(motion_map(GOOD[:, :1], tubelet=1, backend=name), torch.zeros(1, 1, 33, 40))
    assert torch.equal(motion_map(GOOD, [], tubelet=3, backend=name), torch.zeros(1, 2, 33, 40))
    assert motion_map(GOOD[:0], tubelet=2, backend=name).shape == (0, 3, 33, 40)


@pytest.mark.parametrize(
    ("frames", "how", "match"),
    [
        (GOOD, {"tubelet": 4}, "tubelet must divide the 6 frames, got 4"),
        (GOOD, {"tubelet": 0}, "tubelet must divide the 6 frames, got 0"),
        (GOOD, {"tubelet": 2.0}, r"motion_map: tubelet must be an integer, got 2\.0"),
        (GOOD, {"tubelet": "2"}, "motion_map: tubelet must be an integer, got '2'"),
        (GOOD, {"tubelet": -2}, "tubelet must divide the 6 frames, got -2"),
        (GOOD.unsqueeze(-1), {"tubelet": 2}, r"tubelet is for frames \(B, T, X, Y\), got frames \(1, 6, 33, 40, 1\)"),
        (GOOD[0], {}, r"frames must be \(B, T, X, Y\) or .* got \(6, 33, 40\)"),
        (GOOD.double(), {}, "frames must be uint8, float16 or float32, got torch.float64"),
        (GOOD, {"levels": 0}, r"levels must be in 1\.\.32, got 0"),
        (GOOD, {"pyr_scale": 1.0}, r"pyr_scale must be in \(0, 1\)"),
        (GOOD, {"window": 14}, "window must be odd"),
        (GOOD, {"iterations": 0}, "iterations must be at least 1"),
        (GOOD, {"poly_n": 6}, "poly_n must be 5 or 7"),
        (GOOD, {"poly_sigma": math.nan}, "poly_sigma must be positive"),
        (GOOD, {"pairs": [(0, 6)]}, r"pairs must name frames 0\.\.5"),
        (GOOD, {"backend": "triton"}, "motion_map: no backend 'triton'; it has auto, cuda, native, torch"),
    ],
)
def test_bad_arguments_are_named(frames, how, match):
    with pytest.raises(ValueError, match=match):
        motion_map(frames, **arguments(how))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_frames_that_are_not_finite_are_refused(way, value):
    frames = torch.zeros(1, 2, 40, 40)
    frames[0, 1, 3, 5] = value
    if way == "cuda":
        assert map_by(way, frames).shape == (1, 40, 40)  # not looked for, since that would mean to wait
    else:
        with pytest.raises(ValueError, match="frames must be finite"):
            map_by(way, frames)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(BackendError, match=r"motion_map.*cuda.*needs CUDA tensors, got cpu"):
        motion_map(GOOD, backend="cuda")


@needs_library
def test_use_by_the_operations_name():
    before = launches().get("motion_score", 0)
    with use("torch", "motion_score"):
        motion_map(GOOD)
    assert launches().get("motion_score", 0) == before
    motion_map(GOOD)
    assert launches()["motion_score"] > before


def test_parameters_and_defaults_are_those_of_optical_flow():
    ours, theirs = (dict(inspect.signature(f).parameters) for f in (motion_map, optical_flow))
    del ours["tubelet"], theirs["dtype"]
    assert ours == theirs


@needs_library
@pytest.mark.parametrize(("shape", "tubelet"), [((1, 3, 33, 40), None), ((2, 4, 20, 21), 2), ((2, 2, 20, 21, 3), None)])
def test_registration(shape, tubelet):
    torch.library.opcheck(_map_op, (torch.rand(shape) * 255, [0, 1, 1, 0], tubelet, 3, 0.5, 15, 3, 7, 1.5, 10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_captured_in_a_cuda_graph():
    frames = textured(2, 6, (64, 72)).clamp(0, 255).to("cuda", torch.uint8)
    motion_map(frames, tubelet=2, backend="cuda")  # uploads its tables
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = motion_map(frames, tubelet=2, backend="cuda")
    frames.copy_(frames.flip(1))
    graph.replay()
    assert torch.equal(maps, motion_map(frames, tubelet=2, backend="cuda"))


@needs_library
@pytest.mark.parametrize(("size", "tubelet"), [((40, 50, 3), None), ((40, 50), 2)], ids=str)
def test_threads_do_not_change_a_bit(size, tubelet):
    frames, before = textured(2, 4, size).to(torch.uint8), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(motion_map(frames, tubelet=tubelet, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("refine", [0, 10])
def test_bytes_of_a_small_case(refine):
    # one level of 40 x 50, frames in uint8
    params, plane = FlowParams(iterations=2, refine=refine), 40 * 50 * 4
    flow = optical_flow_bytes((1, 3, 40, 50, 4), 2, 1, params)
    cycle = pair_groups(((0, 1), (1, 2)), 3, None)  # in place of 2 x 2 planes of flow one of the map
    assert motion_map_bytes((1, 3, 40, 50, 4), 2, cycle, 1, params) == flow - 4 * 3 * plane
    flow = optical_flow_bytes((1, 4, 40, 50), 3, 1, params)
    clip = pair_groups(((0, 1), (1, 2), (2, 3)), 4, 2)  # two maps; the pair between the tubelets is read for both
    assert motion_map_bytes((1, 4, 40, 50), 3, clip, 1, params) == flow - 4 * plane + 12 * plane


def test_autocast_changes_nothing(way):
    frames = textured(1, 4, (40, 44)).float()
    maps = map_by(way, frames, tubelet=2)
    with torch.autocast(device_of(way), torch.bfloat16):
        assert torch.equal(map_by(way, frames, tubelet=2), maps)
