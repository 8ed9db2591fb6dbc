"""optical_flow: dense motion between frames of cines, by polynomial expansion, coarse to fine.

G. Farneback, "Two-frame motion estimation based on polynomial expansion", SCIA 2003. Around each pixel p a frame is
fitted by f(p + r) ~ r'A r + b'r + c, weighted by a Gaussian. Where the second frame is the first one moved by m,
b2 = b1 - 2 A m. With A the mean over both frames, and sums over a window, the equations around the motion found so far

    (sum w A'A) m = sum w A'(db + A m_so_far),   db = (b1 - b2(p + m_so_far)) / 2,   w the confidence of border pixels

are solved `iterations` times a level, from the coarsest level to the finest. A window blurs motion that changes from
pixel to pixel, so at the frame's own size the flow is then refined. The refinement has the same equations for each
pixel alone, and a smoothness term in place of the window: it minimises

    sum over pixels |A m - (db + A m_so_far)|^2 + s sum over neighbours |m - m_neighbour|^2

by `refine` sweeps over the pixels (Jacobi's, with Chebyshev's weights), starting from the window's flow. On the
synthetic heart this lowers the error in the myocardium by a fifth to a quarter (docs/experiments/flow_accuracy.md).

Without refinement (`refine` 0) parameters, border rules and order of operations are those of OpenCV's
calcOpticalFlowFarneback with a box window (flags = 0), with one exception: the last row and column count as inside of
the frame, so that equal frames have a flow of exactly zero.

Every linear step is separable (`pyramid.py`), so the oracle multiplies by matrices along X and Y. The compiled forms
share the per-pixel arithmetic of csrc/optical_flow.cuh. They expand each frame once, whatever the number of pairs, read
the frames without a copy, and keep intermediate planes slice by slice. In float32 throughout; no gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose, launching
from ..inputs import Inputs
from ..native import cuda_unsupported, native_unsupported
from ..registry import Code, Operation, register
from .cuda_form import run_cuda
from .native_form import NON_FINITE_TEXT, run_native
from .params import DEFAULT, FlowParams, integer
from .pyramid import border_weight, expansion_filters, pyramid, repeated_edge

DAMPING = 1e-3  # added to the determinant: where the image is flat the equations are empty, and the flow becomes zero
SMOOTHNESS = 50.0  # s of the refinement [grey values^2 / pixel^4]
SPREAD = 0.98  # Chebyshev's weights assume eigenvalues of a plain sweep up to this one; above it they damp less
DTYPES = (torch.uint8, torch.float16, torch.float32)
OUT_DTYPES = (torch.float32, torch.float16)


def _along(image: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    """Matrices (X', X) and (Y', Y) applied to (..., X, Y)."""
    return along_x.to(image) @ image @ along_y.to(image).mT


def _expand(image: Tensor, filters: Tensor) -> Tensor:
    """(..., X, Y) -> (..., 5, X, Y): b_x, b_y, A_xx, A_yy, 2 A_xy."""
    (gx, dx, qx), (gy, dy, qy) = ([repeated_edge(f, n) for f in filters] for n in image.shape[-2:])
    return torch.stack([_along(image, *f) for f in ((dx, gy), (gx, dy), (qx, gy), (gx, qy), (dx, dy))], dim=-3)


def _move(expansion: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Expansion (N, 5, X, Y) interpolated at positions `to` (N, 2, X, Y); and which of them are inside (N, X, Y)."""
    n, _, x, y = expansion.shape
    limit = torch.tensor([x - 1, y - 1], device=to.device).view(2, 1, 1)
    inside = ((to >= 0) & (to <= limit)).all(1)
    to = torch.where(inside.unsqueeze(1), to, 0)
    first = to.floor()
    (part_x, part_y), (at_x, at_y) = (to - first).unbind(1), first.long().unbind(1)
    out = torch.zeros_like(expansion)
    for dx, weight_x in ((0, 1 - part_x), (1, part_x)):
        for dy, weight_y in ((0, 1 - part_y), (1, part_y)):
            at = ((at_x + dx).clamp(max=x - 1) * y + (at_y + dy).clamp(max=y - 1)).view(n, 1, x * y)
            corner = expansion.flatten(2).gather(2, at.expand(n, 5, x * y)).view_as(expansion)
            out += (weight_x * weight_y).unsqueeze(1) * corner
    return out, inside


def _equations(first: Tensor, second: Tensor, flow: Tensor, weight: Tensor) -> Tensor:
    """Expansions (N, 5, X, Y) of both frames and the flow so far (N, 2, X, Y) -> G_xx, G_xy, G_yy, h_x, h_y."""
    x, y = flow.shape[-2:]
    grid = torch.stack(torch.meshgrid(torch.arange(x), torch.arange(y), indexing="ij")).to(flow)
    moved, inside = _move(second, grid + flow)
    # outside of the second frame its gradient is taken as 0, and its curvature as that of the first frame
    curved = torch.where(inside.unsqueeze(1), (first[:, 2:] + moved[:, 2:]) / 2, first[:, 2:])
    (axx, ayy, axy), (u, v) = curved.unbind(1), flow.unbind(1)
    axx, ayy, axy = axx * weight, ayy * weight, axy * weight / 2
    bx, by = ((first[:, :2] - torch.where(inside.unsqueeze(1), moved[:, :2], 0)) * weight / 2).unbind(1)
    bx, by = bx + axx * u + axy * v, by + axy * u + ayy * v
    return torch.stack([axx**2 + axy**2, (axx + ayy) * axy, ayy**2 + axy**2, axx * bx + axy * by, axy * bx + ayy * by])


def _solve(equations: Tensor, damping: float = 0.0) -> Tensor:
    """(5, N, X, Y) -> the flow (N, 2, X, Y) that solves G m = h."""
    gxx, gxy, gyy, hx, hy = equations
    return torch.stack([gyy * hx - gxy * hy, gxx * hy - gxy * hx], 1) / (gxx * gyy - gxy**2 + damping).unsqueeze(1)


def _refine(equations: Tensor, flow: Tensor, sweeps: int) -> Tensor:
    """Sweeps towards (G + 4 s) m = h + s (sum of the four neighbours' m); at the edge the pixel stands for a missing
    neighbour."""
    gxx, gxy, gyy, hx, hy = equations
    last, omega = flow, 1.0
    for k in range(sweeps):
        omega = 1 / (1 - SPREAD**2 * (0.5 if k == 1 else omega / 4)) if k else 1.0
        around = F.pad(flow, (1, 1, 1, 1), mode="replicate")
        around = around[:, :, :-2, 1:-1] + around[:, :, 2:, 1:-1] + around[:, :, 1:-1, :-2] + around[:, :, 1:-1, 2:]
        u, v = (SMOOTHNESS * around).unbind(1)
        now = _solve(torch.stack([gxx + 4 * SMOOTHNESS, gxy, gyy + 4 * SMOOTHNESS, hx + u, hy + v]))
        flow, last = last + omega * (now - last), flow
    return flow


def optical_flow_ref(
    frames: Tensor, pairs: Sequence[tuple[int, int]], params: FlowParams = DEFAULT
) -> Tensor:
    """Plain PyTorch in the frames' dtype, at least float32, under autocast too; the arguments are those of
    `optical_flow`, already checked."""
    b, _, *size = frames.shape
    images = frames.to(torch.promote_types(frames.dtype, torch.float32))
    images = images.view(*frames.shape[:4], *(size[2:] or [1])).movedim(-1, 1)  # (B, Z, T, X, Y)
    ones = torch.full((params.window,), 1 / params.window, dtype=torch.float64)
    flow = images.new_empty(0)
    first, second = torch.tensor(pairs, dtype=torch.long, device=frames.device).view(-1, 2).unbind(1)
    with torch.autocast(frames.device.type, enabled=False):  # in 16 bits the flow would be off by 0.1 pixels
        for level in pyramid(tuple(size[:2]), params.levels, params.pyr_scale):
            small = _along(images, *(taps.matrix(n) for taps, n in zip(level.image, size)))
            expansion = _expand(small, expansion_filters(params.poly_n, params.poly_sigma))
            before, after = (expansion[:, :, which].flatten(0, 2) for which in (first, second))
            if level.flow is None:
                flow = before.new_zeros(before.shape[0], 2, *level.size)
            else:
                flow = _along(flow, *(taps.matrix(n) for taps, n in zip(level.flow, flow.shape[-2:])))
            box = tuple(repeated_edge(ones, n) for n in level.size)
            weight = torch.outer(*(border_weight(n) for n in level.size)).to(flow)
            for _ in range(params.iterations):
                flow = _solve(_along(_equations(before, after, flow, weight), *box), DAMPING)
        flow = _refine(_equations(before, after, flow, weight), flow, params.refine)
    flow = flow.view(b, images.shape[1], len(first), 2, *size[:2]).movedim(1, -1)  # (B, P, 2, X, Y, Z)
    return (flow if len(size) == 3 else flow.squeeze(-1)).contiguous()


def optical_flow_bytes(
    shape: Sequence[int], n_pairs: int, item_size: int, params: FlowParams = DEFAULT
) -> int:
    """Bytes that must move for frames of `shape` (B, T, X, Y[, Z]), if every frame is in some pair. Frames are read
    once; images and expansions are written once and read once. Each iteration, and the refinement as a whole, reads
    both expansions and the flow and writes the flow."""
    b, t, x, y, *z = shape
    slices = b * (z[0] if z else 1)
    pixels = sum(level.size[0] * level.size[1] for level in pyramid((x, y), params.levels, params.pyr_scale))
    frame = x * y * item_size + pixels * 4 * (1 + 1 + 5)
    solved = pixels * params.iterations + x * y * (params.refine > 0)
    return slices * (t * frame + n_pairs * solved * 4 * (5 + 5 + 2 + 2))


@torch.library.custom_op("cinema_fast::optical_flow", mutates_args=(), device_types="cpu")
def _flow_op(
    frames: Tensor, pairs: list[int], dtype: torch.dtype, levels: int, pyr_scale: float, window: int, iterations: int,
    poly_n: int, poly_sigma: float, refine: int,
) -> Tensor:  # fmt: skip
    params = FlowParams(levels, pyr_scale, window, iterations, poly_n, poly_sigma, refine)
    return _launch(run_native, frames, pairs, dtype, params)


@_flow_op.register_kernel("cuda")
def _flow_on_cuda(frames, pairs, dtype, *params):
    return _launch(run_cuda, frames, pairs, dtype, FlowParams(*params))


def _launch(run: Callable, frames: Tensor, pairs: list[int], dtype: torch.dtype, params: FlowParams) -> Tensor:
    out = _empty_flow(frames, pairs, dtype)
    if out.numel():
        with launching("optical_flow", frames):
            run(frames.contiguous(), out, pairs, params)
    return out


@_flow_op.register_fake
def _empty_flow(frames, pairs, dtype, *_):
    b, _, *size = frames.shape
    return frames.new_empty((b, len(pairs) // 2, 2, *size), dtype=dtype)


def _listed(pairs: str | Sequence[Sequence[int]] | Tensor, n_frames: int) -> list[tuple[int, int]]:
    if isinstance(pairs, str):
        if pairs == "consecutive":
            return [(t, t + 1) for t in range(n_frames - 1)]
        if pairs == "reference":
            return [(0, t) for t in range(1, n_frames)]
        raise ValueError(f'optical_flow: pairs must be "consecutive", "reference" or (P, 2) frames, got {pairs!r}')
    if hasattr(pairs, "tolist"):  # a tensor or an array
        pairs = pairs.tolist()
    if not isinstance(pairs, Sequence):
        raise ValueError(f"optical_flow: pairs must be rows of two frames, got {pairs!r}")
    return [_pair(row, n_frames) for row in pairs]


def _pair(row: Sequence[int], n_frames: int) -> tuple[int, int]:
    try:
        first, second = (integer("pairs", frame) for frame in (row.tolist() if hasattr(row, "tolist") else row))
    except (TypeError, ValueError):
        raise ValueError(f"optical_flow: pairs must be rows of two frames, integers, got {row!r}") from None
    if not (0 <= first < n_frames and 0 <= second < n_frames):
        raise ValueError(f"optical_flow: pairs must name frames 0..{n_frames - 1}, got {(first, second)}")
    return first, second


def checked(
    frames: Tensor, pairs: str | Sequence[Sequence[int]] | Tensor, params: FlowParams
) -> tuple[list[tuple[int, int]], FlowParams]:
    """The pairs as a list of (first, second), and the parameters. ValueError as `optical_flow` describes."""
    if frames.ndim not in (4, 5) or 0 in frames.shape[1:]:
        raise ValueError(f"optical_flow: frames must be (B, T, X, Y) or (B, T, X, Y, Z), got {tuple(frames.shape)}")
    if frames.dtype not in DTYPES:
        raise ValueError(f"optical_flow: frames must be uint8, float16 or float32, got {frames.dtype}")
    if not isinstance(params, FlowParams):
        raise ValueError(f"optical_flow: params must be a FlowParams, got {params!r}")
    return _listed(pairs, frames.shape[1]), params.checked()


def refuse_non_finite(frames: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """ValueError where frames on the CPU that pairs name are not finite: the PyTorch form would spread the NaN."""
    used = sorted({frame for pair in pairs for frame in pair})
    if frames.device.type == "cpu" and not frames[:, used].isfinite().all():
        raise ValueError(NON_FINITE_TEXT)


UNSUPPORTED = {"cuda": cuda_unsupported, "native": partial(native_unsupported, "optical_flow")}  # fastest first


def reasons(frames: Tensor) -> dict[str, Callable[[], list[str]]]:
    """For each backend a function that lists why it cannot run on these frames."""
    return {name: partial(why, frames) for name, why in UNSUPPORTED.items()}


def optical_flow(
    frames: Tensor,
    pairs: str | Sequence[Sequence[int]] | Tensor = "consecutive",
    *,
    params: FlowParams = DEFAULT,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Displacement of every pixel from the first to the second frame of each pair.

    Args:
        frames (B, T, X, Y) or (B, T, X, Y, Z) uint8, float16 or float32: grey values of 0..255. Each of the Z slices
            is treated alone. Floats are not rescaled, as in OpenCV. Multiply images in 0..1 by 255: otherwise the
            damping of flat regions and the smoothness term outweigh the image.
        pairs: "consecutive" (t, t + 1), "reference" (0, t) for t >= 1, or (P, 2) frames: a list, tensor or array.
        params: parameters of the method, such as FlowParams(window=9).
        dtype: of the result, float32 or float16. float16 halves the bytes, rounds a displacement by up to 1/2048 of it,
            and gives infinity above 65504 pixels. All is computed in float32.
        backend: "auto", "torch", "native" (C++ on the CPU) or "cuda".

    Returns:
        (B, P, 2, X, Y[, Z]) `dtype`, pixels, component 0 along X, 1 along Y. (In OpenCV component 0 is along columns,
        which are Y here.)

    Raises:
        ValueError: an argument out of range, or a frame of some pair that is not finite. On a GPU frames are not
            checked, because the host would have to wait: there a NaN spoils the flow around it.
        BackendError: `backend` cannot run here.
    """
    if dtype not in OUT_DTYPES:
        raise ValueError(f"optical_flow: dtype must be torch.float32 or torch.float16, got {dtype}")
    listed, params = checked(frames, pairs, params)
    picked = choose("optical_flow", backend, reasons(frames))
    if picked == "torch":
        refuse_non_finite(frames, listed)
        return optical_flow_ref(frames, listed, params).to(dtype)
    return _flow_op(frames, [t for pair in listed for t in pair], dtype, *params)

# Registration


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """The frames have 8 bits, whatever the activations' dtype."""
    frames = inputs.integers(256, 1, 3, 33, 40, 2, dtype=torch.uint8)
    return [optical_flow(frames, backend="cuda" if frames.is_cuda else "native")]


register(Operation(
    optical_flow,
    computes="dense flow between frames of whole batches of cines: Farneback's with OpenCV's parameters by name, "
    "refined by a variational step (closer to the true motion than OpenCV's Farneback and DIS: "
    "[accuracy](docs/experiments/flow_accuracy.md)); one arithmetic in C++ for the CPU and CUDA",
    unsupported=UNSUPPORTED,
    launches=("optical_flow",),
    small=_small,
    code=Code(False, False, False, "a thread computes one pixel: neighbours read neighbouring floats"),
))  # fmt: skip
