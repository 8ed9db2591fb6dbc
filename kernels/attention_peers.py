"""Attention of other libraries with the arguments of sparse_attention: PyTorch, cuDNN, flash-attn, xformers.

Each takes q (Tq, H, D), k, v (Tk, H, D), cu_q, cu_k (B + 1,), max_q, max_k, scale, already checked by sparse_attention,
and returns (Tq, H, D). Each comes with a function <name>_unsupported(q, k, v, equal), which lists the reasons why it
cannot run; equal: whether all sequences are equally long.
"""

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from .packed_sequences import is_uniform, sequence_lengths

HALF = (torch.bfloat16, torch.float16)
# asked here, because torch.compile cannot trace it
TILES = torch.cpu._is_amx_tile_supported()
BF16_WITHOUT_TILES = torch.cpu._is_avx512_bf16_supported() and not TILES
FEW_SCORES = 2**19  # of a head: saving the softmax's output takes 1 MiB at most
SCORES_AT_ONCE = 2**20  # in float32: what fits into a cache


def sdpa_unsupported(q: Tensor, k: Tensor, v: Tensor, equal: bool) -> list[str]:
    """Empty: PyTorch's own attention runs anywhere."""
    return []


def sdpa(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention: one batched call where the sequences are equally long, else a loop."""
    with torch.autocast(q.device.type, enabled=False):  # autocast would change the dtype
        if is_uniform(cu_q, max_q, len(q)) and is_uniform(cu_k, max_k, len(k)):
            batched = (x.unflatten(0, (len(cu_q) - 1, -1)).transpose(1, 2) for x in (q, k, v))
            return _sdpa(*batched, scale).transpose(1, 2).flatten(0, 1)
        lengths_q, lengths_k = sequence_lengths(cu_q, max_q, len(q)), sequence_lengths(cu_k, max_k, len(k))
        split = (x.transpose(0, 1)[None].split(n, 2) for x, n in ((q, lengths_q), (k, lengths_k), (v, lengths_k)))
        out = torch.cat([_sdpa(*sequence, scale) for sequence in zip(*split)], 2)
        return out[0].transpose(0, 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q (B, H, Nq, D), k, v (B, H, Nk, D) -> (B, H, Nq, D)."""
    n_scores = q.shape[2] * k.shape[2]
    if q.device.type == "cpu" and q.dtype in HALF and not TILES and n_scores and q.numel():
        if not (BF16_WITHOUT_TILES and q.dtype == torch.bfloat16):
            return _WideOnCpu.apply(q, k, v, scale)
        if n_scores <= FEW_SCORES:
            return _ExplicitOnCpu.apply(*(x.flatten(0, 1) for x in (q, k, v)), scale).unflatten(0, q.shape[:2])
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class _WideOnCpu(torch.autograd.Function):
    """Attention of 16-bit inputs in float32, which saves 16 bits for the backward. On a CPU that does not multiply them
    PyTorch's own takes longer in 16 bits."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.float(), k.float(), v.float(), scale=scale
        )
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        *tensors, lse = ctx.saved_tensors
        wide = (x.float() for x in (dout, *tensors))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *wide, lse, 0.0, False, scale=ctx.scale
        )
        return *(x.to(dout.dtype) for x in gradients), None


class _ExplicitOnCpu(torch.autograd.Function):
    """Attention of bfloat16 q (M, Nq, D) and k, v (M, Nk, D) by matrix products and a softmax, whose output is saved.

    Faster than PyTorch's own on a CPU that multiplies bfloat16 without matrix units, for short sequences. Scores are in
    float32: rounded to bfloat16, large ones (of deviation 16) would leave gradients with errors of 4 %.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        weights = q.new_empty(len(q), q.shape[1], k.shape[1])
        heads = max(1, SCORES_AT_ONCE // weights[0].numel())
        for part, *pair in zip(*(x.split(heads) for x in (weights, q, k))):
            q_wide, k_wide = (x.float() for x in pair)
            part.copy_(_scaled(q_wide, k_wide.mT, scale).softmax(-1))
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, weights = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):  # it would change the dtype of some
            dscores = torch.ops.aten._softmax_backward_data(torch.bmm(dout, v.mT), weights, -1, weights.dtype)
            dq, dk = _scaled(dscores, k, ctx.scale), _scaled(dscores.mT, q, ctx.scale)
            return dq, dk, torch.bmm(weights.mT, dout), None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b of matrices (M, n, m) and (M, m, l), scaled before it is rounded."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def cudnn_unsupported(q: Tensor, k: Tensor, v: Tensor, equal: bool) -> list[str]:
    """The known reasons; for anything else that cuDNN lacks PyTorch raises when it is called."""
    why = _gpu_only(q, 128) + ([] if equal else ["needs sequences that are all equally long"])
    if torch.are_deterministic_algorithms_enabled():
        why.append("its backward is not deterministic (torch.use_deterministic_algorithms is on)")
    return why


def cudnn(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float) -> Tensor:
    """cuDNN's kernels, through scaled_dot_product_attention."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return sdpa(q, k, v, cu_q, cu_k, max_q, max_k, scale)


def _gpu_only(q: Tensor, widest: int) -> list[str]:
    why = [] if q.is_cuda else [f"needs CUDA tensors, got {q.device.type}"]
    why += [] if q.dtype in HALF else [f"needs bfloat16 or float16, got {str(q.dtype)[6:]}"]
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= widest
    return why if fits else [*why, f"head dim {q.shape[-1]} (expected 8, 16, ..., {widest})"]


def _library(module: str, package: str, q: Tensor) -> list[str]:
    return _gpu_only(q, 256) or ([] if _has(module) else [f"{package} is not installed"])


def flash_unsupported(q: Tensor, k: Tensor, v: Tensor, equal: bool) -> list[str]:
    """flash-attn-4 has no backward below sm_90; flash-attn 2 has."""
    why = _library("flash_attn", "flash-attn", q)
    if not why and not _flash_4(q) and not _has("flash_attn.flash_attn_interface"):
        why.append(f"flash-attn-4 has no backward for sm_{torch.cuda.get_device_capability(q.device)[0]}x")
    return why


def _flash_4(q: Tensor) -> bool:
    return torch.cuda.get_device_capability(q.device)[0] >= 9 and _has("flash_attn.cute")


def flash(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float) -> Tensor:
    """flash_attn_varlen_func of flash-attn-4 where it can run, else of flash-attn 2."""
    how = {"softmax_scale": scale, "deterministic": torch.are_deterministic_algorithms_enabled()}
    if _flash_4(q):
        from flash_attn.cute import flash_attn_varlen_func

        names = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
        return flash_attn_varlen_func(q, k, v, **names, **how)[0]
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, **how)


@cache
def xformers_problem() -> str:
    """Why the attention of the installed xformers cannot be used; empty where it can."""
    try:
        from xformers.ops.fmha import BlockDiagonalMask, memory_efficient_attention  # noqa: F401

        return ""
    except Exception as error:  # its libraries raise other errors where they do not fit this torch
        said = f"{type(error).__name__}: {error}"
    try:
        found = version("xformers")
    except PackageNotFoundError:
        found = "without a version"
    # from 0.0.36 on it re-exports the attention of mslk, and gives no error where there is none
    return (
        f"xformers {found} has no attention here ({said}): pip install 'xformers>=0.0.35,<0.0.36' (0.0.36 takes it "
        "from mslk, which is an empty placeholder on the package index)"
    )


def xformers_unsupported(q: Tensor, k: Tensor, v: Tensor, equal: bool) -> list[str]:
    """The known reasons; for anything else that its operators lack it raises when it is called."""
    why = _library("xformers", "xformers", q)
    return why or ([problem] if (problem := xformers_problem()) else [])


def xformers(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    """memory_efficient_attention with a BlockDiagonalMask; the mask needs the lengths on the host."""
    from xformers.ops import fmha, memory_efficient_attention

    lengths = sequence_lengths(cu_q, max_q, len(q)), sequence_lengths(cu_k, max_k, len(k))
    mask = fmha.BlockDiagonalMask.from_seqlens(*lengths, device=q.device)
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask, scale=scale)[0]


PEERS = {  # name: (function, why it cannot run)
    "flash": (flash, flash_unsupported),
    "sdpa": (sdpa, sdpa_unsupported),
    "cudnn": (cudnn, cudnn_unsupported),
    "xformers": (xformers, xformers_unsupported),
}
