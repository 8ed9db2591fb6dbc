"""Transformer blocks whose norms and GELUs save little memory for the backward.

A LayerNorm followed by a linear layer, an MLP or GELU is a single autograd function. It saves the normalised input (in
the dtype that the GEMM reads) and one number a row, and computes the affine and the GELU again in the backward; PyTorch
would save x, the normalised x, the hidden layer and its GELU. The residual stream keeps its dtype (float32 for tokens
under autocast, as in the reference); GEMMs run in autocast's dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..kernels.packed_sequences import Runs
from ..kernels.sparse_attention import sparse_attention


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that GEMMs on x run in: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _normalise(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x - mean) / std of each row in `dtype`, and 1 / std, (rows, 1) in at least float32"""
    if not x.is_cuda:  # on a CPU, a bf16 input would get bf16 statistics
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    xhat, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    return xhat.to(dtype), rstd


def _affine(xhat: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias.to(xhat.dtype), xhat, weight.to(xhat.dtype))


def _norm_backward(dy: Tensor, xhat: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype):
    """Gradients of x (in `dtype`), weight and bias, from xhat: LayerNorm's backward at mean 0 and deviation 1."""
    zero, one = torch.zeros_like(rstd), torch.ones_like(rstd)
    affine_dtype = dy.dtype if dy.is_cuda else rstd.dtype  # the dtype that the CUDA and the CPU kernel require
    # gradients of weight and bias are computed separately, because the CPU's kernel accumulates them in bf16
    dx, _, _ = torch.ops.aten.native_layer_norm_backward(
        dy, xhat, xhat.shape[-1:], zero, one, weight.to(affine_dtype), bias.to(affine_dtype), [True, False, False]
    )
    dweight = (dy * xhat).flatten(0, -2).sum(0).to(weight.dtype)
    return dx.to(dtype) * rstd.to(dtype), dweight, dy.flatten(0, -2).sum(0).to(bias.dtype)


def _linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of x @ weight.T + bias."""
    dy_rows, x_rows = dy.flatten(0, -2), x.flatten(0, -2)
    dweight = (dy_rows.T @ x_rows).to(weight.dtype)
    return dy @ weight.to(dy.dtype), dweight, dy_rows.sum(0).to(weight.dtype)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, bias, eps, dtype):
        xhat, rstd = _normalise(x, eps, dtype)
        ctx.save_for_backward(xhat, rstd, norm_weight, norm_bias, weight)
        ctx.stream_dtype = x.dtype
        return F.linear(_affine(xhat, norm_weight, norm_bias), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, rstd, norm_weight, norm_bias, weight = ctx.saved_tensors
        dn, dweight, dbias = _linear_backward(dy, _affine(xhat, norm_weight, norm_bias), weight)
        dx, dnw, dnb = _norm_backward(dn, xhat, rstd, norm_weight, norm_bias, ctx.stream_dtype)
        return dx, dnw, dnb, dweight, dbias, None, None


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, dtype, keep_hidden):
        xhat, rstd = _normalise(x, eps, dtype)
        hidden = F.linear(_affine(xhat, norm_weight, norm_bias), weight1.to(dtype), bias1.to(dtype))
        kept = hidden if keep_hidden else None
        ctx.save_for_backward(xhat, rstd, kept, norm_weight, norm_bias, weight1, bias1, weight2)
        ctx.stream_dtype = x.dtype
        return F.linear(F.gelu(hidden), weight2.to(dtype), bias2.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, rstd, hidden, norm_weight, norm_bias, weight1, bias1, weight2 = ctx.saved_tensors
        if hidden is None:
            hidden = F.linear(_affine(xhat, norm_weight, norm_bias), weight1.to(xhat.dtype), bias1.to(xhat.dtype))
        dact, dweight2, dbias2 = _linear_backward(dy, F.gelu(hidden), weight2)
        dhidden = torch.ops.aten.gelu_backward(dact, hidden)
        dn, dweight1, dbias1 = _linear_backward(dhidden, _affine(xhat, norm_weight, norm_bias), weight1)
        dx, dnw, dnb = _norm_backward(dn, xhat, rstd, norm_weight, norm_bias, ctx.stream_dtype)
        return dx, dnw, dnb, dweight1, dbias1, dweight2, dbias2, None, None, None


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps):
        xhat, rstd = _normalise(x, eps, x.dtype)
        ctx.save_for_backward(xhat, rstd, norm_weight, norm_bias)
        return F.gelu(_affine(xhat, norm_weight, norm_bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xhat, rstd, norm_weight, norm_bias = ctx.saved_tensors
        dn = torch.ops.aten.gelu_backward(dy, _affine(xhat, norm_weight, norm_bias))
        return *_norm_backward(dn, xhat, rstd, norm_weight, norm_bias, dy.dtype), None


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """norm(x) @ weight.T + bias: x (..., D), weight (E, D) -> (..., E) in the compute dtype."""
    return _NormLinear.apply(x, norm.weight, norm.bias, weight, bias, norm.eps, compute_dtype(x))


def norm_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Module, fc2: nn.Module, *, keep_hidden: bool = True
) -> Tensor:
    """fc2(gelu(fc1(norm(x)))) on the rows of x (..., D); the weights may be those of 1x1 convolutions.

    keep_hidden: save the output of fc1 for the backward instead of computing it again.
    """
    weights = fc1.weight.flatten(1), fc1.bias, fc2.weight.flatten(1), fc2.bias
    return _NormMlp.apply(x, norm.weight, norm.bias, *weights, norm.eps, compute_dtype(x), keep_hidden)


def norm_gelu(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """gelu(norm(x)) on the rows of x (..., D), in x's dtype."""
    return _NormGelu.apply(x, norm.weight, norm.bias, norm.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Runs, keys: Runs) -> Tensor:
    """`sparse_attention` of sequences whose lengths the host knows: q (Tq, H, D), k, v (Tk, H, D) -> (Tq, H, D)."""
    cu_k = keys.offsets(k.device)
    cu_q = cu_k if queries is keys else queries.offsets(q.device)
    return sparse_attention(
        q, k, v, cu_q, cu_k, max_q=queries.longest, max_k=keys.longest, runs=(queries, keys)
    )


class Attention(nn.Module):
    """Parameters of multi-head attention: q, and k and v from one matrix (k first), all with bias; `joint`: q, k and v
    from one matrix, in this order, as in DINO."""

    def __init__(self, width: int, n_heads: int, *, joint: bool = False):
        super().__init__()
        self.n_heads, self._joint = n_heads, joint
        if joint:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q = nn.Linear(width, width)
            self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def together(self) -> tuple[Tensor, Tensor]:
        """Weight and bias that give q, k and v, in this order."""
        if self._joint:
            return self.qkv.weight, self.qkv.bias
        return torch.cat([self.q.weight, self.kv.weight]), torch.cat([self.q.bias, self.kv.bias])

    def apart(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight and bias that give q, and those that give k and v."""
        if not self._joint:
            return (self.q.weight, self.q.bias), (self.kv.weight, self.kv.bias)
        sizes = len(self.proj.weight), 2 * len(self.proj.weight)
        return tuple(zip(self.qkv.weight.split(sizes), self.qkv.bias.split(sizes)))

    def heads(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """(..., n * width) -> n views (rows, H, head dim)."""
        return x.flatten(0, -2).unflatten(-1, (n, self.n_heads, -1)).unbind(1)


class Mlp(nn.Module):
    """Parameters of a two-layer perceptron."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)


def _drop_path(branch: Tensor, rate: float, runs: Runs | None) -> Tensor:
    """Sets the branch of a sample to zero with probability `rate`, and scales the others to keep the mean.

    branch (B, ...), or with `runs` (rows, ...) of packed sequences, each a sample.
    """
    batch = len(branch) if runs is None else runs.sequences
    keep = torch.empty(batch, *[1] * (branch.ndim - 1), dtype=branch.dtype, device=branch.device)
    keep = keep.bernoulli_(1 - rate).div_(1 - rate)
    return branch * (keep if runs is None else runs.spread(keep))


class Block(nn.Module):
    """Pre-norm transformer block, MLP ratio 4.

    recompute: what the backward computes again instead of reading it from memory. "none"; "selective": the wide hidden
    layer of the MLP, which saves 4 of 10 values per token and channel for a ninth of the block's work; "full":
    everything but the block's input, for a third of the work.
    drop_path: probability that a sample skips a branch in training (Huang et al., "Deep networks with stochastic
    depth", ECCV 2016).
    eps: of the norms. joint: as for `Attention`.
    """

    recompute = "none"

    def __init__(self, width: int, n_heads: int, drop_path: float = 0.0, *, eps: float = 1e-5, joint: bool = False):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, n_heads, joint=joint)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor] | None = None, runs: Runs | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D): self-attention, or cross-attention to `keys`, k and v (B * K, H, head dim).

        With `runs`, x (T, D) are the rows of packed sequences, each of which attends to itself.
        """
        return self._recomputed(self._forward, x, keys, runs)

    def first_rows(self, x: Tensor, runs: Runs) -> Tensor:
        """The block's output in the first row of each sequence alone: x (T, D) -> (sequences, D).

        Where nothing else is read, such as the class token after the last block, this saves most of the block's work.
        """
        return self._recomputed(self._first_rows, x, runs)

    def _recomputed(self, compute, x: Tensor, *args) -> Tensor:
        if self.recompute == "full" and torch.is_grad_enabled():
            draws = self.training and self.drop_path > 0
            return checkpoint(compute, x, *args, use_reentrant=False, preserve_rng_state=draws)
        return compute(x, *args)

    def _forward(self, x: Tensor, keys: tuple[Tensor, Tensor] | None, runs: Runs | None) -> Tensor:
        attn = self.attn
        if keys is None:
            q, k, v = attn.heads(norm_linear(x, self.norm1, *attn.together()), 3)
        else:
            (q,) = attn.heads(norm_linear(x, self.norm1, *attn.apart()[0]), 1)
            k, v = keys
        if runs is None:
            batch, n, _ = x.shape
            mixed = attend(q, k, v, Runs(((batch, n),)), Runs(((batch, len(k) // batch),)))
        else:
            mixed = attend(q, k, v, runs, runs)
        return self._finish(x, mixed, runs)

    def _first_rows(self, x: Tensor, runs: Runs) -> Tensor:
        attn, alone = self.attn, Runs(((runs.sequences, 1),))
        first = torch.cat([rows[::length] for rows, (_, length) in zip(x.split(runs.rows), runs.of)])
        to_q, to_kv = attn.apart()
        (q,) = attn.heads(norm_linear(first, self.norm1, *to_q), 1)
        mixed = attend(q, *attn.heads(norm_linear(x, self.norm1, *to_kv), 2), runs.shortened(1), runs)
        return self._finish(first, mixed, alone)

    def _finish(self, x: Tensor, mixed: Tensor, runs: Runs | None) -> Tensor:
        """x with both branches added; mixed (rows, H, head dim): the attention's output."""
        x = x + self._drop(self.attn.proj(mixed.reshape(x.shape)), runs)
        hidden = norm_mlp(x, self.norm2, self.mlp.fc1, self.mlp.fc2, keep_hidden=self.recompute == "none")
        return x + self._drop(hidden, runs)

    def _drop(self, branch: Tensor, runs: Runs | None) -> Tensor:
        return _drop_path(branch, self.drop_path, runs) if self.training and self.drop_path else branch


class Encoder(nn.Module):
    """ViT over the visible tokens of all views, after one class token."""

    def __init__(self, width: int, depth: int, n_heads: int, drop_path: float = 0.0):
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be a probability from 0 to below 1, got {drop_path}")
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, n_heads, drop_path) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, 1 + N, D), class token first."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Cross-attention from the tokens to decode to the visible tokens; queries do not attend to each other."""

    def __init__(self, width: int, depth: int, n_heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, visible: Tensor) -> Tensor:
        """queries (B, M, D), visible (B, K, D) -> (B, M, D)."""
        attns = [block.attn for block in self.blocks]
        # all blocks read the same visible tokens: their keys and values are one GEMM
        weight, bias = torch.cat([a.kv.weight for a in attns]), torch.cat([a.kv.bias for a in attns])
        heads = attns[0].heads(F.linear(visible, weight, bias), 2 * len(attns))
        x = queries
        for i, block in enumerate(self.blocks):
            x = block(x, heads[2 * i : 2 * i + 2])
        return self.norm(x)
