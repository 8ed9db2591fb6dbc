"""Optical flow by the kernels of csrc/optical_flow.cu: prepares their arguments and launches them.

To bound the workspace, a group of slices is processed at a time, and where a single slice has too many pairs, a run of
its pairs at a time. Within a group one launch covers all slices, frames or pairs. Memory comes from torch's allocator,
launches go to torch's current stream, and the host never waits for the device. A call can be captured in a CUDA graph
after one call with the same shapes outside of a graph: that call uploads small tables. Tables that a graph has captured
are kept for good, because the graph holds their addresses.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..native import cuda_module
from .pair_groups import PairGroups
from .params import FlowParams
from .pyramid import AxisTaps, half_filters, pyramid, used_frames

STRIP = 16  # rows that a thread of flow_solve handles, as in csrc/optical_flow.cuh
MEAN_BLOCK = (32, 4)  # MEAN_WIDTH and MEAN_PAIRS of csrc/optical_flow.cuh
WORKSPACE_BYTES = 512 * 2**20
REGION = (48, 64)  # REGION_X and REGION_Y of csrc/optical_flow.cuh, and below its REGION_ROWS
REGION_ROWS = 16
MAX_PLANES = 65535  # limit of a grid's z dimension
TILE = (32, 8)
_captured: dict[int, Tensor] = {}  # tables that CUDA graphs read, by address


class _Level(NamedTuple):
    size: tuple[int, int]
    image: list
    flow: list | None


def row_blocks(n: int) -> tuple[int, int]:
    """(threads, blocks) for a row of n pixels: whole warps, at most 256 threads, blocks of equal size."""
    blocks = math.ceil(n / 256)
    return math.ceil(math.ceil(n / blocks) / 32) * 32, blocks


def _floats(n_used: int, n_pairs: int) -> int:
    """Floats of workspace that one pixel of a slice needs."""
    return (1 + 5) * n_used + (5 + 2 + 2) * n_pairs


def slices_at_once(n_slices: int, n_used: int, n_pairs: int, n_means: int, pixels: int) -> int:
    """How many slices make a group: as many as fit into the workspace and into the grid, at least one."""
    fit = WORKSPACE_BYTES // (4 * pixels * _floats(n_used, n_pairs))
    return max(1, min(n_slices, fit, MAX_PLANES // max(n_used, 2 * n_pairs, n_means)))


def pair_runs(pairs: list[int], pixels: int) -> Iterator[tuple[int, int]]:
    """(first, end) of runs of pairs: as many as fit into the workspace and the grid for one slice, at least one."""
    first, used = 0, set()
    for p in range(len(pairs) // 2):
        wider, n = used | set(pairs[2 * p : 2 * p + 2]), p + 1 - first
        if n > 1 and (4 * pixels * _floats(len(wider), n) > WORKSPACE_BYTES or 2 * n > MAX_PLANES):
            yield first, p
            first, wider = p, set(pairs[2 * p : 2 * p + 2])
        used = wider
    yield first, len(pairs) // 2


@lru_cache(maxsize=256)
def _table(values: tuple[int | float, ...], device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


@lru_cache(maxsize=32)
def _levels(size: tuple[int, int], levels: int, pyr_scale: float, device: torch.device) -> list[_Level]:
    """The levels of the pyramid with their tables on the device, as kernel arguments."""

    def arguments(axes: Sequence[AxisTaps]) -> list:
        return [
            item
            for taps in axes
            for item in (taps.index.to(device), taps.weight.float().to(device), len(taps.index))
        ]

    return [
        _Level(level.size, arguments(level.image), arguments(level.flow) if level.flow else None)
        for level in pyramid(size, levels, pyr_scale)
    ]


@lru_cache(maxsize=32)
def _filters(poly_n: int, poly_sigma: float, device: torch.device) -> Tensor:
    return half_filters(poly_n, poly_sigma).to(device)


def _arguments(values: Sequence[Tensor | int]) -> tuple:
    """Kernel arguments: tensors as addresses, numbers as int32."""
    return tuple(v.data_ptr() if isinstance(v, Tensor) else np.int32(v) for v in values)


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> AbstractContextManager:
    """Context in which torch's current stream is CuPy's, too."""
    if device.type != "cuda":  # kernels compiled for the CPU, in tests
        return nullcontext()
    import cupy

    return cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))


def run_cuda(
    frames: Tensor, out: Tensor, pairs: list[int], params: FlowParams, groups: PairGroups | None = None
) -> None:
    """Computes the flow of contiguous `frames` into `out` (B, P, 2, X, Y[, Z]) float32 or float16. With `groups` `out`
    is (B, G, X, Y[, Z]) float32 and receives the mean magnitude of the flow over each of the G groups of pairs.

    Raises:
        ValueError: more groups than a grid has planes.
    """
    if groups and groups.count > MAX_PLANES:
        raise ValueError(f"motion_map: at most {MAX_PLANES} tubelets on a GPU, got {groups.count}")
    with _stream(frames.device):
        for first, end in pair_runs(pairs, frames.shape[2] * frames.shape[3]):
            of_run = groups.of_pairs(first, end) if groups else None
            _run_pairs(frames, out, pairs[2 * first : 2 * end], first, params, of_run)


def _run_pairs(
    frames: Tensor, out: Tensor, pairs: list[int], first_pair: int, params: FlowParams, groups: PairGroups | None
) -> None:
    """`run_cuda` for a run of the pairs, which begins at number `first_pair`. The first run (0) writes the maps, later
    runs add to them."""
    device = frames.device
    b, t, x, y, *z = frames.shape
    z = z[0] if z else 1
    used, places = used_frames(pairs)
    n_used, n_pairs, half = len(used), len(pairs) // 2, params.window // 2
    n_means = groups.count if groups else 0
    group = slices_at_once(b * z, n_used, n_pairs, n_means, x * y)
    used, places = _table(tuple(used), device), _table(tuple(places), device)
    filters, means = _filters(params.poly_n, params.poly_sigma, device), []
    if groups:
        means = [_table(groups.begin, device), _table(groups.members, device)]
        means += [_table(groups.shares, device, torch.float32), int(first_pair > 0)]
    read, written = (str(tensor.dtype).removeprefix("torch.") for tensor in (frames, out))
    module, pyramid_levels = cuda_module("optical_flow"), _levels((x, y), params.levels, params.pyr_scale, device)
    if _capturing():
        of_levels = [item for level in pyramid_levels for item in [*level.image, *(level.flow or [])]]
        tables = [item for item in [used, places, filters, *means, *of_levels] if isinstance(item, Tensor)]
        _captured.update((table.data_ptr(), table) for table in tables)

    def planes(per_slice: int) -> Tensor:
        return torch.empty(group * per_slice * x * y, dtype=torch.float32, device=device)

    image, expansion, sums = planes(n_used), planes(5 * n_used), planes(5 * n_pairs)
    flow, coarser = planes(2 * n_pairs), planes(2 * n_pairs)
    result = out if groups else out[:, first_pair:]

    def launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence, shared: int = 0) -> None:
        module.get_function(name)(grid, block, _arguments(arguments), shared_mem=shared)

    for first in range(0, b * z, group):
        n = min(group, b * z - first)
        before = None
        for level in pyramid_levels:
            height, width = level.size
            threads, blocks = row_blocks(width)
            tiles = (math.ceil(width / TILE[0]), math.ceil(height / TILE[1]))
            launch(
                f"flow_image_{read}", (*tiles, n * n_used), TILE,
                [frames, image, used, *level.image, first, n_used, t, x, y, z, height, width],
            )  # fmt: skip
            launch(
                f"flow_expand_{params.poly_n}", (blocks, height, n * n_used), (threads,),
                [image, expansion, filters, height, width],
            )  # fmt: skip
            if before is None:
                flow.zero_()
            else:
                flow, coarser = coarser, flow
                launch(
                    "flow_upsample", (*tiles, n * n_pairs * 2), TILE,
                    [coarser, flow, *level.flow, *before, height, width],
                )  # fmt: skip
            last_level = level is pyramid_levels[-1]
            for i in range(params.iterations):
                launch(
                    "flow_equations", (blocks, height, n * n_pairs), (threads,),
                    [expansion, flow, sums, places, n_used, n_pairs, height, width, half],
                    shared=4 * 5 * (threads + 2 * half),
                )  # fmt: skip
                strips = math.ceil(height / STRIP)
                blocks_128 = (math.ceil(width / 128), strips, n * n_pairs)
                if params.refine or not last_level or i < params.iterations - 1:
                    launch(
                        "flow_solve_float32", blocks_128, (128,),
                        [sums, flow, 0, n_pairs, n_pairs, height, width, 1, half],
                    )  # fmt: skip
                elif not groups:
                    launch(
                        f"flow_solve_{written}", blocks_128, (128,),
                        [sums, result, first, n_pairs, out.shape[1], height, width, z, half],
                    )  # fmt: skip
                else:
                    launch(
                        "flow_mean_magnitude", (math.ceil(width / MEAN_BLOCK[0]), strips, n * n_means), MEAN_BLOCK,
                        [sums, result, *means, first, n_pairs, n_means, height, width, z, half],
                    )  # fmt: skip
            if params.refine and last_level:
                tiles = tuple(math.ceil(n / (side - 2 * params.refine)) for n, side in zip(level.size, REGION))[::-1]
                block = (REGION[1], REGION_ROWS)
                if not groups:
                    launch(
                        f"flow_refine_{written}", (*tiles, n * n_pairs), block,
                        [expansion, flow, result, places, first, n_used, n_pairs, out.shape[1], height, width, z,
                         params.refine],
                    )  # fmt: skip
                else:
                    launch(
                        "flow_refine_mean", (*tiles, n * n_means), block,
                        [expansion, flow, result, places, *means, first, n_used, n_pairs, n_means, height, width, z,
                         params.refine],
                    )  # fmt: skip
            before = level.size
