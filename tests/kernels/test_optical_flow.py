"""optical_flow against its float64 oracle, against motion known in closed form, and where there is none.

Arguments and backends: test_optical_flow_interface.py. Against OpenCV: test_optical_flow_opencv.py. The CUDA kernels
without a GPU: test_optical_flow_cuda.py.
"""

import math

import pytest
import torch
from flow_cases import WAYS, arguments, assert_same_flow, device_of, moving, really_runs, textured, worst_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cinema_fast.kernels.optical_flow import FlowParams, optical_flow, optical_flow_ref
from cinema_fast.kernels.optical_flow.operation import SMOOTHNESS, _refine
from cinema_fast.kernels.optical_flow.params import DEFAULT


@pytest.fixture(params=WAYS)
def way(request):
    """A backend that can run here."""
    with really_runs(request.param, "optical_flow"):
        yield request.param


def flow_by(way, frames, pairs="consecutive", **how):
    return optical_flow(frames.to(device_of(way)), pairs, **arguments(how), backend=way)


def oracle(frames, pairs, **how):
    return optical_flow_ref(frames.double(), pairs, FlowParams(**how))


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
        ((64, 80), {"refine": 0}),
        ((37, 70, 2), {"refine": 16}),
        ((48, 40, 12), {"window": 9, "poly_n": 5, "poly_sigma": 0.9}),
    ],
    ids=str,
)
def test_equals_the_float64_oracle(way, size, how):
    frames = textured(2, 3, size).float()
    pairs = [(0, 1), (1, 2)]
    assert_same_flow(flow_by(way, frames, **how), oracle(frames, pairs, **how), worst_of(how))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(*[st.integers(1, 20)] * 2, st.integers(1, 3)),
    window=st.sampled_from([3, 5, 15, 31]),
    poly_n=st.sampled_from([5, 7]),
    iterations=st.integers(1, 3),
    refine=st.sampled_from([0, 1, 10]),
    batch=st.integers(1, 2),
)
def test_any_size(way, size, window, poly_n, iterations, refine, batch):
    """Sizes down to one pixel. There windows need not hold structure, so the bound is that of float32 itself."""
    how = {"window": window, "poly_n": poly_n, "iterations": iterations, "refine": refine}
    frames = textured(batch, 2, size).float()
    actual, expected = flow_by(way, frames, **how), oracle(frames, [(0, 1)], **how)
    plain = optical_flow_ref(frames, [(0, 1)], FlowParams(**how))
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


@pytest.mark.parametrize("size", [(40, 50), (36, 33, 5)], ids=str)
def test_halves_are_the_nearest_to_what_float32_gives(way, size):
    frames = textured(1, 3, size).to(torch.uint8)
    halves = flow_by(way, frames, dtype=torch.float16)
    assert halves.dtype == torch.float16 and torch.equal(halves, flow_by(way, frames).half())


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


def rotation(degrees):
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        (rotation(0), (1.7, -2.3)), (rotation(0), (-5.0, 3.0)), (rotation(1), (0, 0)), (rotation(3), (0, 0)),
        (1.02 * rotation(0), (0.5, 0)), (1.05 * rotation(0), (0, 0)),
    ],
    ids=["translation", "whole pixels", "rotation", "rotation 3", "zoom", "zoom 5 %"],
)
def test_closed_form_motion(way, matrix, shift):
    """To 0.05 pixels on average, whatever the motion's gradient."""
    for seed in range(2):
        frames, truth = moving((128, 112), matrix, torch.tensor(shift, dtype=torch.float64), seed)
        flow = flow_by(way, frames[None].float())[0, 0].cpu()
        error = (flow - truth).norm(dim=0)[16:-16, 16:-16]
        assert truth.norm(dim=0).max() > 1
        assert error.mean() < 0.05 and error.max() < 0.2, (float(error.mean()), float(error.max()))


def test_rotation_by_5_degrees_is_found_to_a_tenth_of_a_pixel(way):
    """The windows' flow is 0.21 pixels off on average, and the sweeps have not undone all of that."""
    for seed in range(2):
        frames, truth = moving((128, 112), rotation(5), torch.zeros(2, dtype=torch.float64), seed)
        error = (flow_by(way, frames[None].float())[0, 0].cpu() - truth).norm(dim=0)[16:-16, 16:-16]
        assert error.mean() < 0.08 and error.max() < 0.3, (float(error.mean()), float(error.max()))


def test_refinement_halves_the_error_where_motion_changes_from_pixel_to_pixel(way):
    frames, truth = moving((128, 112), rotation(3), torch.zeros(2, dtype=torch.float64))
    window, refined = (
        (flow_by(way, frames[None].float(), refine=refine)[0, 0].cpu() - truth).norm(dim=0)[16:-16, 16:-16].mean()
        for refine in (0, DEFAULT.refine)
    )
    assert refined < 0.5 * window


def test_sweeps_converge_to_the_solution_of_the_equations():
    """(G + s L) m = h, L the graph's Laplacian, solved as a whole; G in the range of real ones."""
    x, y = 12, 9
    generator = torch.Generator().manual_seed(0)
    a, b, c = 10 * torch.randn(3, 1, x, y, generator=generator, dtype=torch.float64)
    h = 50 * torch.randn(2, 1, x, y, generator=generator, dtype=torch.float64)
    g = torch.stack([a * a + b * b, (a + c) * b, c * c + b * b])
    edge = [torch.diag(torch.ones(n - 1, dtype=torch.float64), 1) for n in (x, y)]
    links = torch.kron(edge[0] + edge[0].T, torch.eye(y)) + torch.kron(torch.eye(x), edge[1] + edge[1].T)
    laplacian = SMOOTHNESS * (torch.diag(links.sum(1)) - links)
    gxx, gxy, gyy = (torch.diag(part.flatten()) for part in g)
    whole = torch.cat([torch.cat([gxx + laplacian, gxy], 1), torch.cat([gxy, gyy + laplacian], 1)])
    expected = torch.linalg.solve(whole, h.flatten()).view(1, 2, x, y)
    start = torch.zeros_like(expected)
    errors = [(_refine(torch.cat([g, h]), start, sweeps) - expected).norm() for sweeps in (0, 10, 20, 400)]
    assert errors[3] < 1e-9 * errors[0] and errors[2] < errors[1] < 0.5 * errors[0]


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


def test_frames_that_no_pair_names_may_hold_anything(way):
    frames = textured(1, 4, (40, 44)).float()
    frames[:, 2] = math.nan
    assert torch.equal(flow_by(way, frames, [(0, 1), (3, 1)]), flow_by(way, frames[:, [0, 1, 3]], [(0, 1), (2, 1)]))


def test_autocast_changes_nothing(way):
    frames = textured(1, 3, (64, 72)).float()
    flow = flow_by(way, frames)
    with torch.autocast(device_of(way), torch.bfloat16):
        assert torch.equal(flow_by(way, frames), flow)
