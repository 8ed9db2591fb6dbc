"""patch_embed: linear embedding of chosen patches, read from the image inside the GEMM.

    out[b, r] = weight @ x[b, r] + bias + table[index[b, r]],   x[b, r] = (pixels of token index[b, r] - offset) * scale

Pixels of a token in the order p, q, (r,) c. Patches that are not in index are never read, and no patchified or
scaled copy of the image is made: a uint8 image is read as uint8. The operation is the embedding of a plain ViT (patch =
token), and the first convolution of a convolutional stem, whose stride equals its kernel (patch = kernel, index = the
visible tokens' positions).

Bytes: forward reads pixels (in sectors of 32 bytes), index and weight and writes out; backward reads pixels, index and
out's gradient and writes the gradients of weight and bias. x is rounded to the compute dtype, products accumulate in
float32, and bias and table are added before out is rounded once. The sum over rows in the weight's gradient is made in
two steps of fixed order: the same bits every time. The image's gradient, which no training step here needs, is a GEMM
and a scatter-add in PyTorch.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import INTERPRET, choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .patch_address import image_unsupported, load_values, locate_rows, patch_layout, sector_bytes
from .patches import gather_patches, grid_of, scatter_patches
from .registry import Call, Code, Operation, call_name, register
from .shapes import SMALL_VIEW, VIEW_SHAPES, ViewShape, audited_dtypes

DOT_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


def patch_embed_ref(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    patch: tuple[int, ...],
    table: Tensor | None = None,
    intensity: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch in the weight's dtype, at least float32; under autocast it behaves like a linear layer."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    x = gather_patches(image, index, patch).flatten(2).to(dtype)
    if intensity is not None:
        offset, scale = intensity.to(dtype).view(-1, 2, 1, 1).unbind(1)
        x = (x - offset) * scale
    out = F.linear(x, weight.to(dtype), bias.to(dtype))
    return out if table is None else out + F.embedding(index.long(), table).to(out.dtype)


def patch_embed_flops(n_rows: int, n_values: int, width: int) -> int:
    """FLOPs of the forward, or of the weight's gradient."""
    return 2 * n_rows * n_values * width


def patch_embed_bytes(image: Tensor, weight: Tensor, index: Tensor, patch: tuple[int, ...], out_size: int) -> int:
    """Bytes that the forward moves; out_size: bytes of an element of out. The backward moves as many: it reads out's
    gradient."""
    return (
        sector_bytes(image, index, patch)
        + index.numel() * index.element_size()
        + weight.numel() * weight.element_size()
        + index.numel() * weight.shape[0] * out_size
    )


@triton.jit
def _patch_embed_fwd(
    image_ptr, weight_ptr, bias_ptr, table_ptr, index_ptr, intensity_ptr, out_ptr,
    n_rows, rows_per_sample, width, strides, grid_shape,
    HAS_TABLE: tl.constexpr, HAS_INTENSITY: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    N_VALUES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    column_blocks = tl.cdiv(width, BLOCK_E)
    rows = tl.program_id(0) // column_blocks * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    cols = tl.program_id(0) % column_blocks * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    in_rows, in_cols = rows < n_rows, cols < width
    position, first, shift, scale = locate_rows(
        rows, in_rows, index_ptr, intensity_ptr, rows_per_sample, strides, grid_shape, HAS_INTENSITY, PATCH
    )
    acc = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    for start in range(0, N_VALUES, BLOCK_P):
        i = start + tl.arange(0, BLOCK_P)  # [BLOCK_P]
        in_patch = i < N_VALUES
        x = load_values(
            image_ptr, first, in_rows, shift, scale, i, in_patch, strides, HAS_INTENSITY, PATCH, CHANNELS, False
        )
        w_mask = in_patch[:, None] & in_cols[None, :]
        w = tl.load(weight_ptr + cols[None, :] * N_VALUES + i[:, None], mask=w_mask, other=0.0)  # [BLOCK_P, BLOCK_E]
        acc = tl.dot(x.to(DOT), w.to(tl.float32).to(DOT), acc, input_precision=PRECISION)
    acc += tl.load(bias_ptr + cols, mask=in_cols, other=0.0).to(tl.float32)[None, :]
    keep = in_rows[:, None] & in_cols[None, :]
    if HAS_TABLE:
        place = position.to(tl.int64)[:, None] * width + cols[None, :]
        acc += tl.load(table_ptr + place, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * width + cols[None, :], acc.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _patch_embed_dw(
    image_ptr, dout_ptr, index_ptr, intensity_ptr, partial_ptr,
    n_rows, rows_per_sample, width, strides, grid_shape,
    HAS_INTENSITY: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    N_VALUES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: a block of the weight's gradient, summed over STEPS * BLOCK_R rows; and one of the bias's."""
    value_blocks: tl.constexpr = (N_VALUES + BLOCK_P - 1) // BLOCK_P
    column_blocks = tl.cdiv(width, BLOCK_E)
    block = tl.program_id(0) % (column_blocks * value_blocks)
    split = tl.program_id(0) // (column_blocks * value_blocks)
    cols = block // value_blocks * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    i = block % value_blocks * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    in_cols, in_patch = cols < width, i < N_VALUES
    dw = tl.zeros((BLOCK_E, BLOCK_P), tl.float32)
    db = tl.zeros((BLOCK_E,), tl.float32)
    for step in range(STEPS):
        rows = (split * STEPS + step) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
        in_rows = rows < n_rows
        _, first, shift, scale = locate_rows(
            rows, in_rows, index_ptr, intensity_ptr, rows_per_sample, strides, grid_shape, HAS_INTENSITY, PATCH
        )
        x = load_values(
            image_ptr, first, in_rows, shift, scale, i, in_patch, strides, HAS_INTENSITY, PATCH, CHANNELS, False
        )
        place = rows.to(tl.int64)[:, None] * width + cols[None, :]
        dout = tl.load(dout_ptr + place, mask=in_rows[:, None] & in_cols[None, :], other=0.0).to(tl.float32)
        dw = tl.dot(tl.trans(dout.to(DOT)), x.to(DOT), dw, input_precision=PRECISION)
        db += tl.sum(dout, axis=0)
    partial_ptr += split.to(tl.int64) * width * (N_VALUES + 1)
    keep = in_cols[:, None] & in_patch[None, :]
    tl.store(partial_ptr + cols[:, None] * N_VALUES + i[None, :], dw, mask=keep)
    if block % value_blocks == 0:
        tl.store(partial_ptr + width * N_VALUES + cols, db, mask=in_cols)


def _power_of_two(n: int, low: int, high: int) -> int:
    return min(max(low, 1 << (n - 1).bit_length()), high)


def patch_embed_config(n_values: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes, warps and stages of the forward, which computes in `dtype`."""
    if dtype == torch.float32:  # no matrix units: operands in registers
        rows, columns, values, warps, stages = 32, 64, 32, 4, 2
    elif n_values <= 32:  # bound by memory: small blocks, many of them at once
        rows, columns, values, warps, stages = 64, 64, 32, 4, 2
    else:  # if not a multiple of 64, values are read one by one: the addresses of 64 would fill the registers
        rows, columns, values, warps, stages = 128, 128, 32 if n_values % 64 else 64, 8, 3
    return {
        "BLOCK_R": rows,
        "BLOCK_E": _power_of_two(width, 16, columns),
        "BLOCK_P": _power_of_two(n_values, 16, values),
        "num_warps": warps,
        "num_stages": stages,
    }


def patch_embed_dw_config(n_rows: int, n_values: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes, warps and stages of the weight's gradient; a program sums STEPS blocks of rows."""
    if dtype == torch.float32:
        rows, columns, values, warps, stages, programs = 32, 64, 32, 4, 2, 512
    elif n_values <= 32:
        rows, columns, values, warps, stages, programs = 128, 64, 32, 4, 2, 512
    else:  # few programs: each writes a whole block of the weight
        side = 64 if n_values % 128 else 128
        rows, columns, values, warps, stages, programs = 64, side, side, 8, 3, 128
    block_e, block_p = _power_of_two(width, 16, columns), _power_of_two(n_values, 16, values)
    blocks = -(-width // block_e) * -(-n_values // block_p)
    steps = max(n_rows * blocks // (programs * rows), 1)
    return {
        "STEPS": min(1 << (steps.bit_length() - 1), 64),
        "BLOCK_R": rows,
        "BLOCK_E": block_e,
        "BLOCK_P": block_p,
        "num_warps": warps,
        "num_stages": stages,
    }


def unsupported(image: Tensor, table: Tensor | None, dtype: torch.dtype) -> list[str]:
    """Why the kernels cannot embed this image in `dtype`; empty where they can."""
    why = triton_unsupported(image) + image_unsupported(image)
    if table is not None and table.requires_grad:
        why.append("computes no gradient for the table, which requires one")
    if dtype not in DOT_DTYPES:
        why.append(f"computes in float16, bfloat16 and float32, got {dtype}")
    return why


def _common(image: Tensor, index: Tensor, intensity: Tensor | None, patch: list[int], dtype: torch.dtype) -> dict:
    """Kernel arguments that forward and backward share."""
    return {
        "image_ptr": image,
        "index_ptr": index,
        "intensity_ptr": intensity,
        "n_rows": index.numel(),
        "rows_per_sample": index.shape[1],
        "HAS_INTENSITY": intensity is not None,
        "N_VALUES": math.prod(patch) * image.shape[1],
        # the interpreter has no bf16 arithmetic
        "DOT": tl.float32 if INTERPRET else getattr(tl, DOT_DTYPES[dtype]),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        **patch_layout(image, patch),
    }


@torch.library.custom_op("cinema_fast::patch_embed", mutates_args=())
def _patch_embed_op(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    table: Tensor | None,
    intensity: Tensor | None,
    patch: list[int],
    dtype: torch.dtype,
) -> Tensor:
    out = _empty_embedding(image, weight, bias, index, table, intensity, patch, dtype)
    width, n_values = weight.shape
    config = patch_embed_config(n_values, width, dtype)
    if n_values > config["BLOCK_P"]:
        weight = weight.to(dtype)  # converted once, since every block of rows reads it again
    if out.numel():
        blocks = triton.cdiv(index.numel(), config["BLOCK_R"]) * triton.cdiv(width, config["BLOCK_E"])
        with launching("patch_embed", image):
            _patch_embed_fwd[(blocks,)](
                weight_ptr=weight.contiguous(), bias_ptr=bias, table_ptr=table, out_ptr=out, width=width,
                HAS_TABLE=table is not None, **_common(image, index, intensity, patch, dtype), **config,
            )  # fmt: skip
    return out


@_patch_embed_op.register_fake
def _empty_embedding(image, weight, bias, index, table, intensity, patch, dtype):
    return image.new_empty(*index.shape, weight.shape[0], dtype=dtype)


@torch.library.custom_op("cinema_fast::patch_embed_dw", mutates_args=())
def _patch_embed_dw_op(
    dout: Tensor, image: Tensor, index: Tensor, intensity: Tensor | None, patch: list[int], n_values: int
) -> Tensor:
    """Gradients of weight and bias one after the other, float32."""
    width, n_rows = dout.shape[2], index.numel()
    config = patch_embed_dw_config(n_rows, n_values, width, dout.dtype)
    splits = triton.cdiv(n_rows, config["BLOCK_R"] * config["STEPS"])
    partial = image.new_empty(splits, width * (n_values + 1), dtype=torch.float32)
    if partial.numel():
        blocks = splits * triton.cdiv(width, config["BLOCK_E"]) * triton.cdiv(n_values, config["BLOCK_P"])
        with launching("patch_embed_dw", image):
            _patch_embed_dw[(blocks,)](
                dout_ptr=dout.contiguous(), partial_ptr=partial, width=width,
                **_common(image, index, intensity, patch, dout.dtype), **config,
            )  # fmt: skip
    return partial.sum(0)


@_patch_embed_dw_op.register_fake
def _(dout, image, index, intensity, patch, n_values):
    return image.new_empty(dout.shape[2] * (n_values + 1), dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    image, weight, bias, index, _, intensity, ctx.patch, _ = inputs
    ctx.save_for_backward(image, weight, bias, index, intensity)


def _backward(ctx, dout):
    image, weight, bias, index, intensity = ctx.saved_tensors
    dimage = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        dimage = _image_gradient(dout, image, weight, index, intensity, ctx.patch)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        both = _patch_embed_dw_op(dout, image, index, intensity, ctx.patch, weight.shape[1])
        dweight, dbias = both.split([weight.numel(), bias.numel()])
        dweight, dbias = dweight.view(weight.shape).to(weight.dtype), dbias.to(bias.dtype)
    return dimage, dweight, dbias, None, None, None, None, None


def _image_gradient(dout, image, weight, index, intensity, patch):
    dx = dout.float() @ weight.float()  # (B, R, P)
    if intensity is not None:
        dx = dx * intensity[:, None, 1:]
    size = image.shape[2:]
    n_tokens = math.prod(grid_of(size, patch))
    tokens = dx.new_zeros(len(dx), n_tokens, dx.shape[2])
    sample = torch.arange(len(dx), device=dx.device).unsqueeze(1)
    tokens = tokens.index_put((sample, index.long()), dx, accumulate=True)  # an index may occur twice
    every = torch.arange(n_tokens, device=dx.device).expand(len(dx), n_tokens)
    return scatter_patches(tokens, every, size, patch).to(image.dtype)


_patch_embed_op.register_autograd(_backward, setup_context=_setup_context)


def patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    index: Tensor,
    patch: tuple[int, ...],
    *,
    table: Tensor | None = None,
    intensity: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Embed the patches at `index`.

    Args:
        image (B, C, *size), 2 to 4 axes, any strides: uint8, float16, bfloat16 or float32 (PyTorch's form: any dtype).
        weight (E, prod(patch) * C), bias (E,): parameters.
        index (B, R) integer: positions on the grid size / patch, row-major; not checked against it.
        patch: pixels per axis of a token.
        table (N, E): position embeddings of the grid's N tokens, which are added; None: none. A table that requires a
            gradient needs PyTorch's form.
        intensity (B, 2) float32: offset and scale a sample, pixel = (stored - offset) * scale; None: as stored.
        backend: "auto", "torch" or "triton".

    Returns:
        (B, R, E) in autocast's dtype where it is on, else in the weight's.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together; BackendError: `backend` cannot run here.
    """
    _check(image, weight, bias, index, patch, table, intensity)
    kind = image.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if choose("patch_embed", backend, {"triton": lambda: unsupported(image, table, dtype)}) == "torch":
        return patch_embed_ref(image, weight, bias, index, patch, table, intensity).to(dtype)
    index = index.contiguous()
    table = None if table is None else table.contiguous()
    intensity = None if intensity is None else intensity.float().contiguous()
    return _patch_embed_op(image, weight, bias, index, table, intensity, list(patch), dtype)


def _check(image, weight, bias, index, patch, table, intensity):
    if not 4 <= image.ndim <= 6 or index.ndim != 2 or len(index) != len(image) or index.is_floating_point():
        raise ValueError(
            "patch_embed: expected image (B, C, 2 to 4 axes) and integer index (B, R), "
            f"got {tuple(image.shape)} and {index.dtype} {tuple(index.shape)}"
        )
    n_tokens = math.prod(grid_of(image.shape[2:], patch))
    n_values = math.prod(patch) * image.shape[1]
    if weight.ndim != 2 or weight.shape[1] != n_values or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"patch_embed: expected weight (E, {n_values}) and bias (E,) for patch {tuple(patch)} of {image.shape[1]} "
            f"channels, got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if table is not None and table.shape != (n_tokens, weight.shape[0]):
        raise ValueError(f"patch_embed: expected table ({n_tokens}, {weight.shape[0]}), got {tuple(table.shape)}")
    if intensity is not None and intensity.shape != (len(image), 2):
        raise ValueError(f"patch_embed: expected intensity ({len(image)}, 2), got {tuple(intensity.shape)}")
    others = {"weight": weight, "bias": bias, "index": index, "table": table, "intensity": intensity}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != image.device:
            raise ValueError(f"patch_embed: image is on {image.device}, {name} on {tensor.device}")

# Registration


def _call(
    view: ViewShape, inputs: Inputs, dtype: torch.dtype, stored: bool, parameters: torch.dtype = torch.float32
) -> list[Tensor]:
    """A call under autocast."""
    image, intensity = inputs.image(view, stored)
    outputs = math.prod(view.block)  # of a token
    index = inputs.plan(view.batch, view.n * outputs, view.keep * outputs).keep
    weight = inputs.floats(view.width, math.prod(view.kernel) * view.channels, dtype=parameters, grad=True)
    bias = inputs.floats(view.width, dtype=parameters, grad=True)
    with inputs.autocast(dtype):
        out = patch_embed(image, weight, bias, index, view.kernel, intensity=intensity, backend="triton")
    return inputs.with_gradients(out, weight, bias)


def _calls() -> Iterator[Call]:
    for name, view in VIEW_SHAPES.items():
        for dtype in audited_dtypes(name):
            stored = dtype != torch.float32
            yield Call(call_name(name, dtype), partial(_call, view, dtype=dtype, stored=stored))


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """One call with parameters in float32, and one with parameters in the activations' dtype."""
    stored = _call(SMALL_VIEW, inputs, dtype, stored=True)
    return [*stored, *_call(SMALL_VIEW, inputs, dtype, stored=False, parameters=dtype)]


register(Operation(
    patch_embed,
    computes="visible patches of 2-, 3-, 4-D images gathered inside the GEMM; intensity window, bias and position "
    "added",
    unsupported={"triton": triton_unsupported},
    launches=("patch_embed",),
    backward=("patch_embed_dw",),
    calls=_calls,
    small=_small,
    code=Code(
        True, True, True, "a GEMM: reads the weight, writes tokens or gradients; pixels as wide as they lie together"
    ),
))  # fmt: skip
