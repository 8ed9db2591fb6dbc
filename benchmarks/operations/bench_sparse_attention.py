"""sparse_attention on views of fused projections, against PyTorch's fused kernels, flash-attn and xformers.

pytest benchmarks --benchmark-only -k attention
"""

from contextlib import nullcontext
from functools import lru_cache

import pytest
import timing
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cinema_fast.kernels.shapes import ATTENTION_SHAPES
from cinema_fast.kernels.sparse_attention import (
    sparse_attention,
    sparse_attention_bytes,
    sparse_attention_flops,
    sparse_attention_ref,
)

CPU_SHAPES = ("heartmae-encoder-b16", "heartmae-decoder-b16")
GPU_SHAPES = [name for name in ATTENTION_SHAPES if name != timing.SMOKE_SHAPE]
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
PASSES = ("fwd", "bwd")
# held to float64 on a GPU before anything is timed
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-encoder-b16", "cinema-decoder-b16")
DECODER_BLOCKS = 8  # whose keys and values are one projection
KERNELS = {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION}
PEERS = ("sdpa", *KERNELS, "flash", "xformers") if timing.DEVICE == "cuda" else ("sdpa",)


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """q, k and v as the model's projections leave them, of a batch of equally long sequences; peers that refuse them
    are left out."""
    s, device = ATTENTION_SHAPES[shape], timing.DEVICE
    torch.manual_seed(0)

    def project(tokens, n):
        return torch.randn(s.batch * tokens, n, s.heads, s.head_dim, device=device, dtype=timing.DTYPE)

    if s.queries == s.keys:
        inputs = project(s.queries, 3).unbind(1)
    else:
        inputs = project(s.queries, 1)[:, 0], *project(s.keys, 2 * DECODER_BLOCKS).unbind(1)[6:8]
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    cu = torch.arange(s.batch + 1, dtype=torch.int32, device=device)
    offsets = cu * s.queries, cu * s.keys

    def way(name):
        def attend(q, k, v):
            with sdpa_kernel(KERNELS[name]) if name in KERNELS else nullcontext():
                backend = "sdpa" if name in KERNELS else name
                return sparse_attention(q, k, v, *offsets, max_q=s.queries, max_k=s.keys, backend=backend)

        return attend

    ways = {name: way(name) for name in dict.fromkeys([timing.OURS, "torch"])}
    ways |= {name: way(name) for name in PEERS if accepts(way(name), leaves)}
    costs = s.batch * s.queries * s.keys, s.heads, s.head_dim
    return timing.Operation(
        "sparse_attention", shape, timing.DTYPE, ways, leaves,
        lambda q, k, v: sparse_attention_ref(q, k, v, *offsets, s.queries, s.keys, s.head_dim**-0.5),
        n_bytes={p: sparse_attention_bytes(*leaves[:2], backward=p == "bwd") for p in PASSES},
        flops={p: sparse_attention_flops(*costs, backward=p == "bwd") for p in PASSES},
        exponentials=dict.fromkeys(PASSES, s.batch * s.queries * s.keys * s.heads),  # once a logit and pass, at least
    )  # fmt: skip


def accepts(way, leaves) -> bool:
    """Whether a library that may be missing, or not made for this GPU or shape, runs forward and backward."""
    try:
        out = way(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    except (RuntimeError, ValueError, NotImplementedError, AssertionError, ImportError):
        return False
    return True


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    return {(shape, "bfloat16"): [f"{shape} bf16"] for shape in GPU_SHAPES}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "sparse_attention", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, timing.ways(*PEERS))


def test_sparse_attention(benchmark, summary, pytestconfig, shape, pass_, way):
    operation = build(shape)
    if way not in operation.ways and way != "clone":
        pytest.skip(f"{way} does not run at this shape")
    timing.run(benchmark, summary, operation, pass_, way, pytestconfig.getoption("--smoke"))
