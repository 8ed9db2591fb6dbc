"""motion_score: how much each patch moves over the cardiac cycle, and the weights that masks are drawn by.

    map[b, x] = mean of |flow| over the pairs of frames of a cycle, or of each tubelet of a clip
    s[b, n] = mean of the map over the pixels of patch n, divided by its mean over the patches
    weight of being masked = ((1 - a) + a * s) ** (1 / tau)

Where nothing moves every score is 1, and the draw is uniform. (Kim et al., "HeartMAE", ML4H 2024: the motion of the
heart guides the mask.)

The map is computed inside `optical_flow`'s kernels, without storing the flow. The CUDA form takes magnitudes and means
in the kernel that finds the flow, its last iteration or its refinement, and writes only the map. The C++ form keeps the
magnitudes of a few slices. Means are taken in float32 and in a fixed order: the same bits every time, for any number of
threads.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backend import choose, launching
from .inputs import Inputs
from .optical_flow.cuda_form import run_cuda
from .optical_flow.native_form import run_native
from .optical_flow.operation import (
    UNSUPPORTED,
    checked,
    optical_flow_bytes,
    optical_flow_ref,
    reasons,
    refuse_non_finite,
)
from .optical_flow.pair_groups import PairGroups, pair_groups, pair_shares
from .optical_flow.params import DEFAULT, FlowParams, integer
from .patches import grid_of
from .registry import Operation, register

LOG_SMALLEST, LOG_LARGEST = -13.0, 80.0


def motion_map_ref(
    frames: Tensor, pairs: Sequence[tuple[int, int]], tubelet: int | None, params: FlowParams = DEFAULT
) -> Tensor:
    """Plain PyTorch in the frames' dtype, at least float32, under autocast too; the arguments are those of
    `motion_map`, already checked."""
    flow = optical_flow_ref(frames, pairs, params)
    magnitude = torch.linalg.vector_norm(flow, dim=2)  # (B, P, *size)
    shares = pair_shares(pairs, frames.shape[1], tubelet).to(magnitude)
    with torch.autocast(frames.device.type, enabled=False):
        maps = torch.einsum("gp,bp...->bg...", shares, magnitude)
    return maps.squeeze(1) if tubelet is None else maps


def motion_map_bytes(
    shape: Sequence[int], n_pairs: int, groups: PairGroups, item_size: int, params: FlowParams = DEFAULT
) -> int:
    """Bytes that move for frames of `shape` (B, T, X, Y[, Z]): as for the flow, but the maps are written in its place.
    The last step reads both expansions of a pair and its flow so far once for each group that holds the pair."""
    flow = optical_flow_bytes(shape, n_pairs, item_size, params)
    pixels = math.prod(shape) // shape[1]
    again = len(groups.members) - n_pairs
    return flow + pixels * 4 * (groups.count - 2 * n_pairs + (5 + 5 + 2) * again)


@torch.library.custom_op("cinema_fast::motion_map", mutates_args=(), device_types="cpu")
def _map_op(
    frames: Tensor, pairs: list[int], tubelet: int | None, levels: int, pyr_scale: float, window: int, iterations: int,
    poly_n: int, poly_sigma: float, refine: int,
) -> Tensor:  # fmt: skip
    params = FlowParams(levels, pyr_scale, window, iterations, poly_n, poly_sigma, refine)
    return _launch(run_native, frames, pairs, tubelet, params)


@_map_op.register_kernel("cuda")
def _map_on_cuda(frames, pairs, tubelet, *params):
    return _launch(run_cuda, frames, pairs, tubelet, FlowParams(*params))


def _launch(run: Callable, frames: Tensor, pairs: list[int], tubelet: int | None, params: FlowParams) -> Tensor:
    out = _empty_map(frames, pairs, tubelet)
    if not pairs:
        return out.zero_()
    if out.numel():
        groups = pair_groups(tuple(zip(pairs[::2], pairs[1::2])), frames.shape[1], tubelet)
        with launching("motion_score", frames):
            run(frames.contiguous(), out, pairs, params, groups)
    return out


@_map_op.register_fake
def _empty_map(frames, pairs, tubelet, *_):
    b, t, *size = frames.shape
    groups = [] if tubelet is None else [t // tubelet]
    return frames.new_empty((b, *groups, *size), dtype=torch.float32)


def motion_map(
    frames: Tensor,
    pairs: str | Sequence[Sequence[int]] | Tensor = "consecutive",
    *,
    tubelet: int | None = None,
    params: FlowParams = DEFAULT,
    backend: str = "auto",
) -> Tensor:
    """Mean magnitude of the motion of every pixel, over the cycle or in each tubelet of a clip.

    Args:
        frames, pairs, params: as for `optical_flow`.
        tubelet: frames of a tubelet, a divisor of T, for frames (B, T, X, Y). The motion of a frame is the mean over
            the pairs that name it (0 where none does), that of a tubelet the mean over its frames.
        backend: "auto", "torch", "native" (C++ on the CPU) or "cuda".

    Returns:
        (B, X, Y[, Z]) float32 [pixels], the mean over the pairs; with `tubelet` (B, T // tubelet, X, Y). Zeros where
        there is no pair, as in a cycle of one frame.

    Raises:
        ValueError: what `optical_flow` raises; a tubelet that does not divide T, or one for frames with slices.
        BackendError: `backend` cannot run here.
    """
    listed, params = checked(frames, pairs, params)
    if tubelet is not None:
        if frames.ndim != 4:
            raise ValueError(f"motion_map: tubelet is for frames (B, T, X, Y), got frames {tuple(frames.shape)}")
        tubelet = integer("tubelet", tubelet, "motion_map")
        if tubelet < 1 or frames.shape[1] % tubelet:
            raise ValueError(f"motion_map: tubelet must divide the {frames.shape[1]} frames, got {tubelet}")
    picked = choose("motion_score", backend, reasons(frames), called="motion_map")
    if picked == "torch":
        refuse_non_finite(frames, listed)
        return motion_map_ref(frames, listed, tubelet, params)
    return _map_op(frames, [t for pair in listed for t in pair], tubelet, *params)


def motion_score(flow: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Mean magnitude of the flow in each patch over the cycle, relative to its mean over the patches.

    Args:
        flow (B, P, 2, X, Y[, Z]) floating: displacements in pixels of P pairs of frames, as `optical_flow` gives them.
        patch: pixels of a patch per spatial axis; with one entry more, the first of which counts frames, the patches of
            a clip of P + 1 frames, whose flow is that of the consecutive pairs: the motion of a frame is the mean over
            the pairs that it belongs to.

    Returns:
        (B, N) float32 with mean 1, N patches in row-major order of the grid; all 1 where nothing moves.

    Raises:
        ValueError: another rank, no pair, or a patch that does not divide the image or the clip.
    """
    if flow.ndim not in (5, 6) or flow.shape[2] != 2 or not flow.shape[1]:
        raise ValueError(f"motion_score: expected flow (B, P, 2, X, Y[, Z]) with P > 0, got {tuple(flow.shape)}")
    size = tuple(flow.shape[3:])
    if len(patch) not in (len(size), len(size) + 1):
        raise ValueError(
            f"motion_score: expected a patch of {len(size)} axes, or of {len(size) + 1} for a clip, got {tuple(patch)}"
        )
    magnitude = torch.linalg.vector_norm(flow.float(), dim=2)  # (B, P, *size)
    if len(patch) > len(size):
        before, after = magnitude[:, :1], magnitude[:, -1:]
        magnitude = torch.cat([before, (magnitude[:, :-1] + magnitude[:, 1:]) / 2, after], dim=1)
        size = (magnitude.shape[1], *size)
    else:
        magnitude = magnitude.mean(1)
    return relative_to_mean(patch_means(magnitude, patch))


def patch_means(values: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Mean of each patch: values (B, *size) floating -> (B, N) float32. ValueError where the patch does not divide."""
    size = tuple(values.shape[1:])
    grid = grid_of(size, patch)
    split = [extent for pair in zip(grid, patch) for extent in pair]
    inside = range(2, 2 + 2 * len(grid), 2)
    return values.float().reshape(len(values), *split).mean(tuple(inside)).flatten(1)


def relative_to_mean(score: Tensor) -> Tensor:
    """score (B, N), not negative, divided by its mean over N; 1 everywhere in a sample where all are zero."""
    mean = score.mean(1, keepdim=True)
    return torch.where(mean > 0, score / mean.clamp(min=torch.finfo(score.dtype).tiny), torch.ones_like(score))


def mask_weights(score: Tensor, *, strength: float, temperature: float = 1.0, keep: bool = False) -> Tensor:
    """Weights of being masked, for `sample_mask`'s `scores`: only their ratios within a sample count.

    Args:
        score (B, N): as from `motion_score`.
        strength: a of the formula, 0 (uniform) to 1. temperature: tau, above 0; small ones draw the largest only.
        keep: weights of being kept instead, so that patches that move stay visible.

    Returns:
        (B, N) weights that float32 holds above `sample_mask`'s floor, with ratios up to e^93. Where a small temperature
        spans more, the weights of the patches that move least are clipped to one value.

    Raises:
        ValueError: names the argument that is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"mask_weights: strength must lie in 0..1, got {strength}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"mask_weights: temperature must be above 0, got {temperature}")
    log = torch.log((1 - strength + strength * score).clamp(min=1e-6)) / temperature
    log = log.amax(1, keepdim=True) - log  # 0 for the patch that moves most, larger for those that move less
    return torch.exp(LOG_SMALLEST + log.clamp(max=LOG_LARGEST - LOG_SMALLEST) if keep else LOG_LARGEST - log)

# Registration


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """A cycle and a clip; the frames have 8 bits, whatever the activations' dtype."""
    frames = inputs.integers(256, 1, 4, 33, 40, dtype=torch.uint8)
    backend = "cuda" if frames.is_cuda else "native"
    return [motion_map(frames, tubelet=tubelet, backend=backend) for tubelet in (None, 2)]


register(Operation(
    motion_score,
    computes="mean motion of each pixel over the cycle or in each tubelet, computed inside the flow's kernels without "
    "storing the flow; scores of patches and the weights of guided masks",
    unsupported=UNSUPPORTED,
    launches=("motion_score",),
    small=_small,
))  # fmt: skip
