"""How the CUDA kernels' work is split, by slices and by pairs, so that workspace, grid and tables stay bounded."""

import pytest
import torch
from flow_cases import CSRC, textured
from flow_kernels import OnCpu, flow_by_kernels, for_cpu, map_by_kernels
from marks import slow
from tolerances import assert_close

from cinema_fast.kernels.optical_flow import cuda_form


@pytest.mark.slow
def test_groups_of_slices_give_the_same(on_cpu, poison, monkeypatch):
    """Two samples of five slices in groups of three, the last one of one, against one group of all."""
    frames, pairs = textured(2, 3, (24, 33, 5)).to(torch.uint8), [(0, 1), (1, 2)]
    whole, launched = flow_by_kernels(frames, pairs), len(on_cpu.launched)
    whole_map = map_by_kernels(frames, pairs)
    launched_for_map = len(on_cpu.launched) - launched
    monkeypatch.setattr(cuda_form, "slices_at_once", lambda *_: 3)
    assert torch.equal(flow_by_kernels(frames, pairs), whole)
    assert torch.equal(map_by_kernels(frames, pairs), whole_map)
    assert len(on_cpu.launched) == (1 + 4) * (launched + launched_for_map)


def all_pairs(n):
    return [(a, b) for a in range(n) for b in range(n)]


@pytest.mark.parametrize("refine", [0, slow(3)])
def test_runs_of_pairs_give_the_same(on_cpu, poison, monkeypatch, refine):
    """The 16 pairs of 4 frames, a few at a time, against all at once; maps of a stack and of a clip's frames."""
    stack, clip, pairs = textured(1, 4, (20, 33, 2)).float(), textured(2, 4, (20, 24)).float(), all_pairs(4)
    how = {"refine": refine, "levels": 1, "iterations": 1}

    def results():
        maps = map_by_kernels(stack, pairs, **how), map_by_kernels(clip, pairs, 1, **how)
        return flow_by_kernels(stack, pairs, **how), *maps

    whole, launched = results(), len(on_cpu.launched)
    for limit, value in (("MAX_PLANES", 11), ("WORKSPACE_BYTES", 4 * 20 * 33 * (6 * 4 + 9 * 6))):
        with monkeypatch.context() as small:
            small.setattr(cuda_form, limit, value)
            flow, *maps = results()
        assert torch.equal(flow, whole[0])
        for actual, expected in zip(maps, whole[1:]):
            assert_close(actual, expected.double())
    assert len(on_cpu.launched) > 5 * launched


def test_runs_of_pairs_cover_all_and_fit():
    """Every pair of 100 frames of 256 x 256, which together would take 12 GB."""
    pairs = [t for pair in all_pairs(100) for t in pair]
    runs = list(cuda_form.pair_runs(pairs, 256 * 256))
    assert [first for first, _ in runs] == [0, *(end for _, end in runs[:-1])] and runs[-1][1] == 100**2
    for first, end in runs:
        floats = 6 * len(set(pairs[2 * first : 2 * end])) + 9 * (end - first)
        assert 4 * 256 * 256 * floats <= cuda_form.WORKSPACE_BYTES
    assert list(cuda_form.pair_runs([0, 1] * 70_000, 1)) == [(0, 32767), (32767, 65534), (65534, 70_000)]
    assert list(cuda_form.pair_runs([0, 1, 1, 0], 10**9)) == [(0, 1), (1, 2)]  # at least one


def test_more_tubelets_than_planes_are_refused(monkeypatch):
    monkeypatch.setattr(cuda_form, "MAX_PLANES", 3)
    with pytest.raises(ValueError, match="motion_map: at most 3 tubelets on a GPU, got 4"):
        map_by_kernels(torch.zeros(1, 4, 20, 20), [(0, 1)], 1)


def test_slices_are_counted_first(tmp_path):
    """In blockIdx.z of 2 slices of 3 items; planes in between lie slice after slice."""
    (tmp_path / "plane.cu").write_text(f"""
        #include "{CSRC}/optical_flow.cu"
        extern "C" __global__ void where(int* out) {{
            const Plane at = Plane::of_block(3);
            out[3 * blockIdx.z] = at.slice, out[3 * blockIdx.z + 1] = at.item, out[3 * blockIdx.z + 2] = at.index;
        }}""")
    out = torch.full((6, 3), -1, dtype=torch.int32)
    OnCpu(for_cpu(tmp_path / "plane.cu", tmp_path)).get_function("where")((1, 1, 6), (1,), [out.data_ptr()])
    assert out.tolist() == [[slice_, item, slice_ * 3 + item] for item in range(3) for slice_ in range(2)]


@pytest.mark.parametrize("captured", [False, True])
def test_tables_are_bounded_but_a_graph_keeps_its_own(on_cpu, monkeypatch, captured):
    assert all(cached.cache_info().maxsize for cached in (cuda_form._table, cuda_form._levels, cuda_form._filters))
    monkeypatch.setattr(cuda_form, "_captured", {})
    monkeypatch.setattr(cuda_form, "_capturing", lambda: captured)
    map_by_kernels(textured(1, 2, (64, 70)).to(torch.uint8), [(1, 0)], 1)
    n_tables = 5 + 1 + 4 + 8  # of pairs and groups, the filters, and the taps of two levels
    assert len(cuda_form._captured) == captured * n_tables
    assert all(cuda_form._captured[address].data_ptr() == address for address in cuda_form._captured)
    assert cuda_form._captured.keys() <= on_cpu.given


def test_the_workspace_is_bounded():
    per_slice = 192 * 192 * 4 * (6 * 25 + 9 * 24)
    assert cuda_form.slices_at_once(1000, 25, 24, 0, 192 * 192) == cuda_form.WORKSPACE_BYTES // per_slice
    assert cuda_form.slices_at_once(4, 25, 24, 1, 192 * 192) == 4
    assert cuda_form.slices_at_once(10**6, 2, 1, 1, 64) == 65535 // 2
    assert cuda_form.slices_at_once(10**6, 2, 1, 30, 64) == 65535 // 30
    assert cuda_form.slices_at_once(10, 1000, 999, 0, 1024 * 1024) == 1
