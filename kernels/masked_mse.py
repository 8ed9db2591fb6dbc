"""masked_mse: mean squared error of predicted patches against the image's own pixels.

    loss = mean over b, m, i of (pred[b, m, i] - t[b, m, i])^2,   t = (pixels of token masked[b, m] - offset) * scale

Pixels of a token in the order p, q, (r,) c. With `norm` each target patch becomes (t - mean) / (std + 1e-6), std
unbiased (He et al., "Masked autoencoders are scalable vision learners", CVPR 2022, section 3; the epsilon is CineMA's).

Only the pixels of decoded tokens are read, in the dtype they are stored in: no patchified or scaled copy of the image
is made. Bytes: forward reads pred and pixels (in sectors of 32 bytes); backward reads them again, computes the target
again, and writes pred's gradient. Accumulates in float32: a sum for each row, then one sum of fixed order over the
rows, so the bits are the same every time.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .patch_address import image_unsupported, load_values, locate_rows, patch_layout, sector_bytes
from .patches import gather_patches, grid_of
from .registry import Call, Code, Operation, call_name, register
from .shapes import SMALL_VIEW, VIEW_SHAPES, ViewShape, audited_dtypes
from .token_plan import TokenPlan

TARGET_EPS = 1e-6
PRED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def masked_mse_ref(
    pred: Tensor,
    image: Tensor,
    masked: Tensor,
    patch: tuple[int, ...],
    norm: bool = False,
    intensity: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch in pred's dtype, at least float32."""
    dtype = torch.promote_types(pred.dtype, torch.float32)
    target = gather_patches(image.detach(), masked, patch).flatten(2).to(dtype)
    if intensity is not None:
        target = (target - intensity[:, None, :1].to(dtype)) * intensity[:, None, 1:].to(dtype)
    if norm:
        mean = target.mean(-1, keepdim=True)
        target = (target - mean) / (target.std(-1, keepdim=True) + TARGET_EPS)
    return F.mse_loss(pred.to(dtype), target)


def masked_mse_bytes(pred: Tensor, image: Tensor, masked: Tensor, patch: tuple[int, ...]) -> int:
    """Bytes that the forward moves; the backward also writes pred's gradient, as many bytes as pred."""
    return (
        pred.numel() * pred.element_size()
        + sector_bytes(image, masked, patch)
        + masked.numel() * (masked.element_size() + 4)
    )


@triton.jit
def _masked_mse(
    pred_ptr, image_ptr, masked_ptr, intensity_ptr, dloss_ptr, out_ptr,
    n_rows, rows_per_sample, stride_b, stride_m, strides, grid_shape, weight,
    GRAD: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, HAS_INTENSITY: tl.constexpr,
    PATCH: tl.constexpr, CHANNELS: tl.constexpr, N_VALUES: tl.constexpr, ACROSS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A block of rows: their weighted squared errors, or with GRAD the gradient of pred."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    in_rows = rows < n_rows
    _, first, shift, scale = locate_rows(
        rows, in_rows, masked_ptr, intensity_ptr, rows_per_sample, strides, grid_shape, HAS_INTENSITY, PATCH
    )
    sample = (rows // rows_per_sample).to(tl.int64)
    pred_row = sample * stride_b + (rows % rows_per_sample).to(tl.int64) * stride_m
    if NORM:
        acc = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
        for start in range(0, N_VALUES, BLOCK_P):
            i = start + tl.arange(0, BLOCK_P)  # [BLOCK_P]
            in_patch = i < N_VALUES
            t = load_values(
                image_ptr, first, in_rows, shift, scale, i, in_patch, strides, HAS_INTENSITY, PATCH, CHANNELS, ACROSS
            )
            acc += tl.where(in_patch[None, :], t, 0.0)
        mean = tl.sum(acc, axis=1)[:, None] / N_VALUES
        acc = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
        for start in range(0, N_VALUES, BLOCK_P):
            i = start + tl.arange(0, BLOCK_P)
            in_patch = i < N_VALUES
            t = load_values(
                image_ptr, first, in_rows, shift, scale, i, in_patch, strides, HAS_INTENSITY, PATCH, CHANNELS, ACROSS
            )
            acc += tl.where(in_patch[None, :], (t - mean) * (t - mean), 0.0)
        rstd = 1.0 / (tl.sqrt(tl.sum(acc, axis=1)[:, None] / (N_VALUES - 1)) + EPS)
    if GRAD:
        weight = 2.0 * weight * tl.load(dloss_ptr).to(tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for start in range(0, N_VALUES, BLOCK_P):
        i = start + tl.arange(0, BLOCK_P)
        in_patch = i < N_VALUES
        keep = in_rows[:, None] & in_patch[None, :]
        t = load_values(
            image_ptr, first, in_rows, shift, scale, i, in_patch, strides, HAS_INTENSITY, PATCH, CHANNELS, ACROSS
        )
        if NORM:
            t = (t - mean) * rstd
        pred = tl.load(pred_ptr + (pred_row[:, None] + i[None, :]), mask=keep, other=0.0).to(tl.float32)
        error = tl.where(keep, pred - t, 0.0)
        if GRAD:
            place = rows.to(tl.int64)[:, None] * N_VALUES + i[None, :]
            tl.store(out_ptr + place, (weight * error).to(out_ptr.dtype.element_ty), mask=keep)
        else:
            acc += error * error
    if not GRAD:
        tl.store(out_ptr + rows, weight * tl.sum(acc, axis=1), mask=in_rows)


def masked_mse_config(n_values: int, across: bool) -> dict[str, int]:
    """Block sizes and warps; across: a warp's lanes run over tokens, else along the rows of pixels in a patch."""
    block_p = min(max(16, 1 << (n_values - 1).bit_length()), 64 if across else 1024)
    return {"BLOCK_M": 32 if across else min(2048 // block_p, 16), "BLOCK_P": block_p, "num_warps": 4}


def unsupported(pred: Tensor, image: Tensor) -> list[str]:
    """Why the kernel cannot run on these tensors; empty where it can."""
    why = triton_unsupported(pred, image) + image_unsupported(image)
    return why + ([] if pred.dtype in PRED_DTYPES else [f"takes float16, bfloat16 and float32, got {pred.dtype}"])


def _launch(pred, image, masked, intensity, patch, norm, dloss, out):
    # where the innermost axis of memory has one pixel a patch, neighbouring tokens are adjacent, not a token's values
    across = not any(p > 1 and stride == 1 for p, stride in zip((image.shape[1], *patch), image.stride()[1:]))
    n_rows, n_values = masked.numel(), pred.shape[2]
    config = masked_mse_config(n_values, across)
    with launching("masked_mse" if dloss is None else "masked_mse_bwd", pred):
        _masked_mse[(triton.cdiv(n_rows, config["BLOCK_M"]),)](
            pred, image, masked, intensity, dloss, out, n_rows, masked.shape[1], pred.stride(0), pred.stride(1),
            weight=1.0 / (n_rows * n_values), GRAD=dloss is not None, NORM=norm, EPS=TARGET_EPS,
            HAS_INTENSITY=intensity is not None, N_VALUES=n_values, ACROSS=across, **patch_layout(image, patch),
            **config,
        )  # fmt: skip


@torch.library.custom_op("cinema_fast::masked_mse", mutates_args=())
def _masked_mse_op(
    pred: Tensor, image: Tensor, masked: Tensor, intensity: Tensor | None, patch: list[int], norm: bool
) -> Tensor:
    rows = pred.new_empty(masked.numel(), dtype=torch.float32)
    _launch(pred, image, masked, intensity, patch, norm, None, rows)
    return rows.sum()


@_masked_mse_op.register_fake
def _(pred, image, masked, intensity, patch, norm):
    return pred.new_empty((), dtype=torch.float32)


@torch.library.custom_op("cinema_fast::masked_mse_bwd", mutates_args=())
def _masked_mse_bwd_op(
    dloss: Tensor, pred: Tensor, image: Tensor, masked: Tensor, intensity: Tensor | None, patch: list[int], norm: bool
) -> Tensor:
    dpred = _empty_gradient(dloss, pred, image, masked, intensity, patch, norm)
    _launch(pred, image, masked, intensity, patch, norm, dloss, dpred)
    return dpred


@_masked_mse_bwd_op.register_fake
def _empty_gradient(dloss, pred, image, masked, intensity, patch, norm):
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    pred, image, masked, intensity, ctx.patch, ctx.norm = inputs
    ctx.save_for_backward(pred, image, masked, intensity)


def _backward(ctx, dloss):
    return _masked_mse_bwd_op(dloss, *ctx.saved_tensors, ctx.patch, ctx.norm), None, None, None, None, None


_masked_mse_op.register_autograd(_backward, setup_context=_setup_context)


def masked_mse(
    pred: Tensor,
    image: Tensor,
    plan: TokenPlan,
    patch: tuple[int, ...],
    *,
    norm: bool = False,
    intensity: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Loss of the decoded tokens of one view.

    Args:
        pred (B, M, prod(patch) * C) floating: predictions at `plan.masked`.
        image (B, C, *size), 2 to 4 axes, any strides: the target, not differentiated; uint8, float16, bfloat16 or
            float32 (PyTorch's form: any dtype).
        plan: only its masked (B, M) is used; it is not checked against the grid.
        patch: pixels per axis of a token.
        norm: normalise each target patch.
        intensity (B, 2) float32: offset and scale a sample, pixel = (stored - offset) * scale; None: as stored.
        backend: "auto", "torch" or "triton".

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes or devices that do not fit together, or nothing to decode; BackendError: `backend` cannot
        run here.
    """
    masked = plan.masked
    expected = (image.shape[0], masked.shape[1])
    if pred.ndim != 3 or pred.shape[:2] != expected or not pred.numel():
        raise ValueError(f"masked_mse: expected pred (B, M, P), (B, M) = {expected}, M > 0; got {tuple(pred.shape)}")
    grid_of(image.shape[2:], patch)
    n_values = math.prod(patch) * image.shape[1]
    if pred.shape[2] != n_values:
        raise ValueError(f"masked_mse: a patch {tuple(patch)} holds {n_values} values, pred has {pred.shape[2]}")
    if intensity is not None and intensity.shape != (len(image), 2):
        raise ValueError(f"masked_mse: expected intensity ({len(image)}, 2), got {tuple(intensity.shape)}")
    for name, tensor in {"pred": pred, "plan": masked, "intensity": intensity}.items():
        if tensor is not None and tensor.device != image.device:
            raise ValueError(f"masked_mse: image is on {image.device}, {name} on {tensor.device}")
    if choose("masked_mse", backend, {"triton": lambda: unsupported(pred, image)}) == "torch":
        return masked_mse_ref(pred, image, masked, patch, norm, intensity)
    pred = pred if pred.stride(2) == 1 else pred.contiguous()
    intensity = None if intensity is None else intensity.float().contiguous()
    return _masked_mse_op(pred, image.detach(), masked.contiguous(), intensity, list(patch), norm)

# Registration


def _call(view: ViewShape, inputs: Inputs, dtype: torch.dtype, norm: bool, stored: bool) -> list[Tensor]:
    image, intensity = inputs.image(view, stored)
    plan = inputs.plan(view.batch, view.n, view.keep)
    n_values = math.prod(view.token) * view.channels
    pred = inputs.floats(*plan.masked.shape, n_values, dtype=dtype, grad=True)
    loss = masked_mse(pred, image, plan, view.token, norm=norm, intensity=intensity, backend="triton")
    return inputs.with_gradients(loss, pred)


def _calls() -> Iterator[Call]:
    for name, view in VIEW_SHAPES.items():
        for dtype, norm in product(audited_dtypes(name), (False, True)):
            run = partial(_call, view, dtype=dtype, norm=norm, stored=dtype != torch.float32)
            yield Call(call_name(name, dtype, "norm" * norm), run)


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    return [x for stored in (True, False) for x in _call(SMALL_VIEW, inputs, dtype, stored, stored)]


register(Operation(
    masked_mse,
    computes="loss against the image's own pixels, no patchified copy, fixed summation order",
    unsupported={"triton": triton_unsupported},
    launches=("masked_mse",),
    backward=("masked_mse_bwd",),
    calls=_calls,
    small=_small,
    code=Code(False, True, "GRAD", "predictions in; their gradient out, but forward writes one number a row"),
))  # fmt: skip
